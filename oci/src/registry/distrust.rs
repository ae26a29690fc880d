//! TLS that fails: who does not trust whom, which file decides about that, and what to do.

use reqwest::Url;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::{
    error::{RegistryError, find},
    hosts::Trust,
};

/// What a failed request says about trust; `None` where it failed for another reason.
pub(super) fn distrust(url: &Url, trust: &Trust, error: &reqwest::Error) -> Option<RegistryError> {
    let host = authority(url);
    let error = find::<Error>(error)?;
    let (reason, hint) = explain(&host, trust, error)?;
    let is_spoken = !matches!(error, Error::InvalidMessage(InvalidMessage::InvalidContentType));
    Some(RegistryError::Tls { host, reason, hint, is_spoken })
}

/// `host[:port]`, as settings name it.
fn authority(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host_str().unwrap_or_default())
}

fn explain(host: &str, trust: &Trust, error: &Error) -> Option<(String, String)> {
    match error {
        Error::InvalidCertificate(error) => Some(theirs(host, trust, error)),
        Error::AlertReceived(alert) if is_about_ours(*alert) => Some(ours(host, trust)),
        Error::AlertReceived(alert) => Some((
            format!("it ends the connection with the TLS alert {alert:?}"),
            "the server's log may say why".to_owned(),
        )),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some((
            "it does not speak TLS".to_owned(),
            format!("name it with --insecure-registry {host} if plain HTTP is right"),
        )),
        _ => None,
    }
}

/// Their certificate is not to be trusted.
fn theirs(host: &str, trust: &Trust, error: &CertificateError) -> (String, String) {
    let skip = format!("--skip-tls-verify-registry {host} would talk to whoever answers");
    let clock = format!("have it renewed, or set this machine's clock; {skip}");
    match error {
        CertificateError::UnknownIssuer if trust.ca_files.is_empty() => (
            "its certificate is signed by nobody who is trusted here".to_owned(),
            format!(
                "trust its authority with --registry-certificate {host}=CA.pem or /etc/docker/certs.d/{host}/ca.crt; {skip}"
            ),
        ),
        CertificateError::UnknownIssuer => {
            let files: Vec<String> = trust.ca_files.iter().map(|path| path.display().to_string()).collect();
            (
                format!(
                    "its certificate is signed neither by {} nor by anybody else who is trusted here",
                    files.join(", ")
                ),
                format!("ask who runs it for the authority's certificate; {skip}"),
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("its certificate has expired".to_owned(), clock)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate is not valid yet".to_owned(), clock)
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "its certificate is for other names".to_owned(),
            format!("reach it by a name that the certificate has; {skip}"),
        ),
        other => (format!("its certificate cannot be used: {other}"), skip),
    }
}

/// Ours is not trusted by them, or is missing.
fn ours(host: &str, trust: &Trust) -> (String, String) {
    match &trust.identity {
        None => (
            "it wants a client certificate".to_owned(),
            format!(
                "give it with --registry-client-cert {host}=CERT.pem,KEY.pem, or as client.cert and client.key in \
                 /etc/docker/certs.d/{host}"
            ),
        ),
        Some(identity) => (
            format!("it does not accept the client certificate {}", identity.certificate.display()),
            "see whether it has expired, and whether its authority is one that the server trusts".to_owned(),
        ),
    }
}

/// What servers say about a client's certificate (RFC 8446, section 6.2); those of TLS 1.2 say less about one that is
/// missing.
fn is_about_ours(alert: AlertDescription) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, HandshakeFailure, NoCertificate, UnknownCA, UnsupportedCertificate,
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | HandshakeFailure
            | NoCertificate
            | UnknownCA
            | UnsupportedCertificate
    )
}

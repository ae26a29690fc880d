//! HTTP clients, one for each way of trusting and reaching a host, made when they are first needed.
//!
//! Certificates are verified against the system's authorities (with `SSL_CERT_FILE` and `SSL_CERT_DIR` honoured, as by
//! OpenSSL) and those of the user. The cryptography is ring's: the default provider would bring a C library that takes
//! minutes to build.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use reqwest::{Client, Url, redirect};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::{address::is_loopback, error::RegistryError, hosts::Hosts, retry::Limits};

/// Longest file of certificate authorities that is read, in bytes.
const MAX_CA_FILE: u64 = 16 << 20;

/// Makes and keeps the clients.
#[derive(Debug)]
pub(super) struct Clients {
    insecure: Vec<String>,
    ca_files: Vec<PathBuf>,
    hosts: Hosts,
    user_agent: String,
    limits: Limits,
    made: [OnceLock<Client>; 5],
}

/// How a host is reached, and what its certificate is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// This machine, without TLS.
    LoopbackPlain,
    /// This machine, with a verified certificate.
    LoopbackVerified,
    /// This machine, with any certificate.
    LoopbackUnverified,
    /// Any other, with a verified certificate where TLS is used.
    Verified,
    /// Any other, whoever it is.
    Unverified,
}

impl Clients {
    pub fn new(
        insecure: Vec<String>,
        ca_files: Vec<PathBuf>,
        hosts: Hosts,
        user_agent: String,
        limits: Limits,
    ) -> Self {
        Self { insecure, ca_files, hosts, user_agent, limits, made: Default::default() }
    }

    /// Whether the user has said that this host need not prove who it is. Entries are `host` or `host:port`.
    pub fn is_insecure(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let port = url.port_or_known_default().unwrap_or_default();
        let authority = format!("{host}:{port}");
        let mut named = self.insecure.iter().chain(self.hosts.insecure());
        named.any(|entry| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(&authority))
    }

    /// The client for a URL.
    pub fn get(&self, url: &Url) -> Result<&Client, RegistryError> {
        let loopback = is_loopback(url.host_str().unwrap_or_default());
        let kind = match (loopback, url.scheme() == "http", self.is_insecure(url)) {
            (true, true, _) => Kind::LoopbackPlain,
            (true, false, false) => Kind::LoopbackVerified,
            (true, false, true) => Kind::LoopbackUnverified,
            (false, _, false) => Kind::Verified,
            (false, _, true) => Kind::Unverified,
        };
        let cell = &self.made[kind as usize];
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        // Two threads may make it at the same time; one of the two is kept.
        let client = self.make(kind, loopback)?;
        Ok(cell.get_or_init(|| client))
    }

    fn make(&self, kind: Kind, loopback: bool) -> Result<Client, RegistryError> {
        let tls = match kind {
            Kind::LoopbackPlain => config_with(RootCertStore::empty())?,
            Kind::LoopbackVerified | Kind::Verified => config_with(self.roots()?)?,
            Kind::LoopbackUnverified | Kind::Unverified => unverified_config()?,
        };
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            // Redirects are followed by hand: which credentials go along is ours to decide.
            .redirect(redirect::Policy::none())
            .referer(false)
            .user_agent(&self.user_agent)
            .connect_timeout(self.limits.connect);
        // A proxy could not reach this machine's loopback.
        let builder = if loopback { builder.no_proxy() } else { builder };
        builder.build().map_err(|source| setup("HTTP", source))
    }

    /// The system's authorities and the user's.
    fn roots(&self) -> Result<RootCertStore, RegistryError> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        for path in &self.ca_files {
            let failed = |source| RegistryError::CaFile { path: path.clone(), source };
            for certificate in read_certificates(path).map_err(failed)? {
                let added = roots.add(certificate);
                added.map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
            }
        }
        if roots.is_empty() {
            return Err(RegistryError::NoRoots { found: native.errors.first().map(ToString::to_string) });
        }
        Ok(roots)
    }
}

fn setup(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RegistryError {
    RegistryError::Setup { what, source: source.into() }
}

fn read_certificates(path: &PathBuf) -> io::Result<Vec<CertificateDer<'static>>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if fs::metadata(path)?.len() > MAX_CA_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {MAX_CA_FILE} bytes")));
    }
    let text = fs::read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(invalid("no certificate in PEM form".to_owned())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn config_with(roots: RootCertStore) -> Result<ClientConfig, RegistryError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|source| setup("TLS", source))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn unverified_config() -> Result<ClientConfig, RegistryError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|source| setup("TLS", source))?;
    let verifier = Arc::new(Anybody { provider: provider() });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes any certificate, for hosts the user has called insecure. That the peer holds its key is still checked.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

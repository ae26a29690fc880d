//! HTTP clients, one for each way of trusting and reaching a host, made when they are first needed.
//!
//! Certificates are verified against the system's authorities (with `SSL_CERT_FILE` and `SSL_CERT_DIR` honoured, as by
//! OpenSSL) and those of the user. The cryptography is ring's: the default provider would bring a C library that takes
//! minutes to build.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use reqwest::{Client, Url, redirect};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use super::{
    address::is_loopback,
    error::RegistryError,
    hosts::{Hosts, Identity, Lenience, Trust},
    retry::Limits,
};

/// Longest PEM file that is read, in bytes.
const MAX_PEM_FILE: u64 = 16 << 20;

/// Makes and keeps the clients.
#[derive(Debug)]
pub(super) struct Clients {
    insecure: Vec<String>,
    ca_files: Vec<PathBuf>,
    pub hosts: Hosts,
    user_agent: String,
    limits: Limits,
    made: Mutex<HashMap<Kind, Client>>,
}

/// How a host is reached, and what its certificate is worth.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    /// It is this machine.
    is_loopback: bool,
    /// How it is trusted; `None` without TLS.
    trust: Option<Trust>,
}

impl Clients {
    pub fn new(
        insecure: Vec<String>,
        ca_files: Vec<PathBuf>,
        hosts: Hosts,
        user_agent: String,
        limits: Limits,
    ) -> Self {
        Self { insecure, ca_files, hosts, user_agent, limits, made: Mutex::default() }
    }

    /// How the host of a URL is spoken to.
    pub fn trust(&self, url: &Url) -> Result<Trust, RegistryError> {
        let trust = self.hosts.trust(url)?;
        Ok(Trust { lenience: self.lenience(url)?, ..trust })
    }

    /// What the host of a URL need not do.
    pub fn lenience(&self, url: &Url) -> Result<Lenience, RegistryError> {
        match self.is_insecure(url) {
            true => Ok(Lenience::Insecure),
            false => self.hosts.lenience(url),
        }
    }

    /// Whether this host is one of those that need not prove who they are. Entries are `host` or `host:port`.
    fn is_insecure(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let port = url.port_or_known_default().unwrap_or_default();
        let authority = format!("{host}:{port}");
        self.insecure
            .iter()
            .any(|entry| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(&authority))
    }

    /// The client for a URL.
    pub fn get(&self, url: &Url) -> Result<Client, RegistryError> {
        let is_loopback = is_loopback(url.host_str().unwrap_or_default());
        let trust = (url.scheme() == "https").then(|| self.trust(url)).transpose()?;
        let kind = Kind { is_loopback, trust };
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made().get(&kind) {
            return Ok(client.clone());
        }
        // Two threads may make it at the same time; one of the two is kept.
        let client = self.make(&kind)?;
        Ok(made().entry(kind).or_insert(client).clone())
    }

    fn make(&self, kind: &Kind) -> Result<Client, RegistryError> {
        let tls = match &kind.trust {
            None => config()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
            Some(trust) => self.tls(trust)?,
        };
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            // Redirects are followed by hand: which credentials go along is ours to decide.
            .redirect(redirect::Policy::none())
            .referer(false)
            .user_agent(&self.user_agent)
            .connect_timeout(self.limits.connect);
        // A proxy could not reach this machine's loopback.
        let builder = if kind.is_loopback { builder.no_proxy() } else { builder };
        builder.build().map_err(|source| setup("HTTP", source))
    }

    fn tls(&self, trust: &Trust) -> Result<ClientConfig, RegistryError> {
        let builder = match trust.lenience {
            Lenience::None => config()?.with_root_certificates(self.roots(&trust.ca_files)?),
            _ => config()?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody { provider: provider() })),
        };
        match &trust.identity {
            Some(identity) => with_identity(builder, identity),
            None => Ok(builder.with_no_client_auth()),
        }
    }

    /// The system's authorities, the user's, and those of one host.
    fn roots(&self, of_host: &[PathBuf]) -> Result<RootCertStore, RegistryError> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        for path in self.ca_files.iter().chain(of_host) {
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

fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_PEM_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {MAX_PEM_FILE} bytes")));
    }
    fs::read(path)
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn read_certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = read_pem(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(invalid("no certificate in PEM form")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn read_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let text = read_pem(path)?;
    if String::from_utf8_lossy(&text).contains("ENCRYPTED") {
        return Err(invalid("it is protected by a passphrase, which nobody could be asked for"));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| invalid("no private key in PEM form"))
}

/// With a client certificate, whose key must be its own.
fn with_identity(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: &Identity,
) -> Result<ClientConfig, RegistryError> {
    let failed = |path: &Path, source| RegistryError::ClientCertificate { path: path.to_owned(), source };
    let chain =
        read_certificates(&identity.certificate).map_err(|error| failed(&identity.certificate, error))?;
    let key = read_key(&identity.key).map_err(|error| failed(&identity.key, error))?;
    let with = builder.with_client_auth_cert(chain, key);
    with.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let reason = format!("its key is not that of {}", identity.key.display());
            failed(&identity.certificate, invalid(reason))
        }
        other => failed(&identity.key, invalid(other)),
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn config() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, RegistryError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    builder.map_err(|source| setup("TLS", source))
}

/// Takes any certificate, for hosts of which the user has said so. That the peer holds its key is still checked.
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

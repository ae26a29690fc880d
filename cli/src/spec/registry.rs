//! The values of the flags that say how a registry is reached, in kaniko's and Docker's words: which registry, and what
//! holds for it.

use std::{path::PathBuf, str::FromStr};

use oci::{
    reference::DEFAULT_REGISTRY,
    registry::{Identity, Location},
};

/// `HOST[:PORT]`, as a reference has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(pub String);

/// `[REGISTRY=]MIRROR`: Docker Hub's, where no registry is named, as Docker and kaniko have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorSpec {
    /// `host[:port][/path]` that is looked for elsewhere.
    pub prefix: String,
    /// Where.
    pub location: Location,
}

/// `REGISTRY=FILE`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSpec {
    /// Whose.
    pub registry: String,
    /// Certificates of its authorities.
    pub file: PathBuf,
}

/// `REGISTRY=CERTIFICATE,KEY`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificateSpec {
    /// Who is shown it.
    pub registry: String,
    /// The files.
    pub identity: Identity,
}

/// Why a value says nothing about a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrySpecError {
    /// Something else than a host.
    #[error("{0:?} is no HOST or HOST:PORT")]
    Host(String),
    /// Something else than a place of images.
    #[error("{0:?} is no HOST[:PORT][/PATH], with http:// before it for plain HTTP")]
    Location(String),
    /// No registry before the file.
    #[error("expected HOST[:PORT]=CA.pem")]
    Certificate,
    /// No registry before the files, or one file.
    #[error("expected HOST[:PORT]=CERTIFICATE.pem,KEY.pem")]
    ClientCertificate,
}

impl FromStr for HostName {
    type Err = RegistrySpecError;

    fn from_str(text: &str) -> Result<Self, RegistrySpecError> {
        host(text).map(Self)
    }
}

impl FromStr for MirrorSpec {
    type Err = RegistrySpecError;

    fn from_str(text: &str) -> Result<Self, RegistrySpecError> {
        let (prefix, mirror) = text.split_once('=').unwrap_or((DEFAULT_REGISTRY, text));
        let malformed = || RegistrySpecError::Location(prefix.to_owned());
        let prefix = match prefix.parse() {
            Ok(Location { name, .. }) if !prefix.contains("://") => name,
            _ => return Err(malformed()),
        };
        let location = mirror.parse().map_err(|_| RegistrySpecError::Location(mirror.to_owned()))?;
        Ok(Self { prefix, location })
    }
}

impl FromStr for CertificateSpec {
    type Err = RegistrySpecError;

    fn from_str(text: &str) -> Result<Self, RegistrySpecError> {
        let (registry, file) = text.split_once('=').ok_or(RegistrySpecError::Certificate)?;
        match file.is_empty() {
            false => Ok(Self { registry: host(registry)?, file: PathBuf::from(file) }),
            true => Err(RegistrySpecError::Certificate),
        }
    }
}

impl FromStr for ClientCertificateSpec {
    type Err = RegistrySpecError;

    fn from_str(text: &str) -> Result<Self, RegistrySpecError> {
        let parts =
            text.split_once('=').and_then(|(registry, files)| Some((registry, files.split_once(',')?)));
        match parts {
            Some((registry, (certificate, key))) if !certificate.is_empty() && !key.is_empty() => {
                let identity = Identity { certificate: certificate.into(), key: key.into() };
                Ok(Self { registry: host(registry)?, identity })
            }
            _ => Err(RegistrySpecError::ClientCertificate),
        }
    }
}

/// A registry's name without a path.
fn host(text: &str) -> Result<String, RegistrySpecError> {
    match text.parse::<Location>() {
        Ok(Location { name, is_plain: false }) if !name.contains('/') && !text.contains("://") => Ok(name),
        _ => Err(RegistrySpecError::Host(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_docker_hubs_unless_they_name_a_registry() {
        for (text, prefix, name, is_plain) in [
            ("mirror.example.com", "docker.io", "mirror.example.com", false),
            ("https://mirror.example.com/", "docker.io", "mirror.example.com", false),
            ("http://10.0.0.1:5000", "docker.io", "10.0.0.1:5000", true),
            ("quay.io=m:5000/quay", "quay.io", "m:5000/quay", false),
            ("quay.io/org=m:5000", "quay.io/org", "m:5000", false),
            ("index.docker.io=m:5000", "docker.io", "m:5000", false),
        ] {
            let location = Location { name: name.to_owned(), is_plain };
            assert_eq!(text.parse(), Ok(MirrorSpec { prefix: prefix.to_owned(), location }), "{text}");
        }
        for text in ["", "=", "quay.io=", "=m", "a=ftp://m", "a=m//", "a=m?x", "a=u:p@m", "http://a=m"] {
            assert!(text.parse::<MirrorSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_of_a_registry() {
        let parsed: ClientCertificateSpec = "h:5000=c.pem,k.pem".parse().expect("well-formed");
        assert_eq!((parsed.registry.as_str(), parsed.identity.key.to_str()), ("h:5000", Some("k.pem")));
        for text in ["h", "h=", "h=c", "h=c,", "h=,k", "=c,k", "https://h=c,k", "h/p=c,k"] {
            assert!(text.parse::<ClientCertificateSpec>().is_err(), "{text}");
        }
        let parsed: CertificateSpec = "docker.io=/a=b.pem".parse().expect("well-formed");
        assert_eq!((parsed.registry.as_str(), parsed.file.to_str()), ("docker.io", Some("/a=b.pem")));
        for text in ["h", "h=", "=f", "a b=f"] {
            assert!(text.parse::<CertificateSpec>().is_err(), "{text}");
        }
        assert_eq!("h:5000".parse(), Ok(HostName("h:5000".to_owned())));
        assert!("http://h".parse::<HostName>().is_err());
    }
}

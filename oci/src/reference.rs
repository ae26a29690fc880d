//! Image references: `[registry/]repository[:tag][@digest]`, completed as Docker does.
//!
//! A first part with a dot or a colon, or `localhost`, is the registry; without one it is `docker.io`, and a
//! repository there without a slash lies in `library/`. Grammar: distribution/reference; repository names are
//! lower case (distribution-spec, "Pulling manifests").

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;

/// The registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// Names one image in one repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    /// `host[:port]`, `docker.io` for Docker Hub.
    pub registry: String,
    /// Path of the repository, `library/debian`.
    pub repository: String,
    /// The tag, if one was given.
    pub tag: Option<String>,
    /// The digest, if one was given; it wins over the tag.
    pub digest: Option<Sha256Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference {text:?}: {reason}")]
pub struct ReferenceError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Reference {
    /// What a registry is asked for: the digest, else the tag, else `latest`.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.as_deref().unwrap_or("latest").to_owned(),
        }
    }

    /// The same repository by digest, without a tag.
    pub fn with_digest(&self, digest: Sha256Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same reference with `latest` filled in where it has neither tag nor digest.
    pub fn with_default_tag(&self) -> Self {
        let mut reference = self.clone();
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        reference
    }

    /// The short form people write: `debian:bookworm` for `docker.io/library/debian:bookworm`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|_| fail("the digest must be sha256: and 64 hex digits"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("a tag is up to 128 letters, digits, '_', '.' and '-'"));
        }
        let (registry, path) = split_registry(name);
        if !is_registry(registry) {
            return Err(fail("the registry is not a host name"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(fail("repository name must be lowercase"));
        }
        if path.is_empty() || path.len() > 255 || !path.split('/').all(is_path_component) {
            return Err(fail("the repository name is malformed"));
        }
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// The first part of full names, `host[:port][/path]`, with Docker Hub by the name that references have.
pub(crate) fn prefix(text: &str) -> Result<String, ReferenceError> {
    let fail = |reason| ReferenceError { text: text.to_owned(), reason };
    let (registry, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    if !is_registry(registry) {
        return Err(fail("the registry is not a host name"));
    }
    let registry = canonical_registry(registry);
    match path {
        None => Ok(registry.to_owned()),
        Some(path) if path.split('/').all(is_path_component) => Ok(format!("{registry}/{path}")),
        Some(_) => Err(fail("what follows the registry is not the beginning of a repository's name")),
    }
}

fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if is_registry_name(first) => (canonical_registry(first), rest),
        _ => (DEFAULT_REGISTRY, name),
    }
}

/// Docker Hub by one name.
pub(crate) fn canonical_registry(registry: &str) -> &str {
    match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    }
}

fn is_registry_name(first: &str) -> bool {
    let upper = first.bytes().any(|byte| byte.is_ascii_uppercase());
    first == "localhost" || first.contains(['.', ':']) || upper
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid_host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let valid = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            valid && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        }),
    };
    valid_host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.starts_with(alphanumeric) || !component.ends_with(alphanumeric) {
        return false;
    }
    let separators = component.split(alphanumeric).filter(|run| !run.is_empty());
    separators.into_iter().all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (text, want) in [
            ("debian", "docker.io/library/debian"),
            ("debian:bookworm", "docker.io/library/debian:bookworm"),
            ("me/app", "docker.io/me/app"),
            ("docker.io/debian", "docker.io/library/debian"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("localhost/app:1", "localhost/app:1"),
            ("127.0.0.1:5000/a/b-c__d:T.1", "127.0.0.1:5000/a/b-c__d:T.1"),
            ("[::1]:5000/app", "[::1]:5000/app"),
        ] {
            let reference = text.parse::<Reference>().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reference.to_string(), want);
            assert_eq!(reference.to_string().parse(), Ok(reference));
        }
        let pinned = format!("app:1@{}", Sha256Digest::of(b""));
        assert_eq!(pinned.parse::<Reference>().map(|reference| reference.familiar()), Ok(pinned));
    }

    #[test]
    fn what_no_registry_accepts_is_refused() {
        for text in
            ["", "App", "a//b", "-a", "a:", "a:.t", "a@sha256:12", "a/../b", "h.x:99999/a", "a b", "a___b"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}

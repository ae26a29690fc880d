//! What can go wrong with a registry, and what is worth trying again.

use std::{io, path::PathBuf, time::Duration};

use reqwest::Url;

use super::{address::is_loopback, credentials::CredentialError, hosts::HostsError, retry::Limits};
use crate::{digest::Sha256Digest, document::DocumentError, verify::BlobError};

/// Why the registry could not be used. URLs in it are without user information and query.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client, its TLS configuration or its threads could not be set up.
    #[error("cannot set up the registry client: {what}")]
    Setup {
        /// What was being set up.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of certificate authorities cannot be used.
    #[error("cannot read certificate authorities from {}", path.display())]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A client certificate or its key cannot be used.
    #[error("cannot use the client certificate {}", path.display())]
    ClientCertificate {
        /// The file that is wrong.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The two ends do not trust each other.
    #[error("cannot talk to {host}: {reason}; {hint}")]
    Tls {
        /// Who does not trust us, or is not to be trusted.
        host: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        hint: String,
        /// Whether the other end speaks TLS at all.
        is_spoken: bool,
    },
    /// HTTPS is asked for, but nobody is trusted.
    #[error(
        "no certificate authority is known: install the system's certificates, or set SSL_CERT_FILE{}",
        note(found)
    )]
    NoRoots {
        /// What was found instead.
        found: Option<String>,
    },
    /// No connection, or it broke.
    #[error("{}", broken(url, cause))]
    Transport {
        /// To whom.
        url: String,
        /// Why not. What of it people want to know is in the message already.
        cause: Box<reqwest::Error>,
    },
    /// Nothing moved for too long.
    #[error("{url} did not answer for {} s", waited.as_secs_f32())]
    Timeout {
        /// Who did not.
        url: String,
        /// For how long.
        waited: Duration,
    },
    /// Something moved, but not fast enough to ever end.
    #[error("{url} sent no more than {bytes} bytes in {} s", waited.as_secs())]
    Slow {
        /// Who.
        url: String,
        /// How little.
        bytes: u64,
        /// In which time.
        waited: Duration,
    },
    /// The answer was an error.
    #[error("{url} answered {status}{}", note(reason))]
    Status {
        /// Who answered.
        url: String,
        /// HTTP status code.
        status: u16,
        /// The error codes of the distribution-spec in the answer.
        codes: Vec<String>,
        /// What the server says about it.
        reason: Option<String>,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
    /// It does not exist.
    #[error("{name} does not exist{}", note(reason))]
    NotFound {
        /// What: a reference or a blob of a repository.
        name: String,
        /// What the server says about it.
        reason: Option<String>,
    },
    /// We may not.
    #[error("access to {name} is denied{}; {hint}", note(reason))]
    Denied {
        /// What we asked for.
        name: String,
        /// What the server says about it.
        reason: Option<String>,
        /// Which credentials were used.
        hint: String,
    },
    /// A redirect or an upload location that must not be followed.
    #[error("{from} sends us to {to}: {reason}")]
    Redirect {
        /// Who sends us.
        from: String,
        /// Where to.
        to: String,
        /// Why we do not go.
        reason: &'static str,
    },
    /// The token service of a registry is not one to show credentials to.
    #[error("{registry} wants its credentials sent to {realm}: {reason}")]
    Realm {
        /// The registry.
        registry: String,
        /// The URL it named.
        realm: String,
        /// Why we do not send them.
        reason: &'static str,
    },
    /// Credentials are configured, but cannot be had.
    #[error("cannot get the credentials for {registry}")]
    Credentials {
        /// The registry.
        registry: String,
        /// Why not.
        #[source]
        source: Box<CredentialError>,
    },
    /// What is set for registries cannot be followed.
    #[error("the settings of registries cannot be used")]
    Hosts(#[source] Box<HostsError>),
    /// A file of settings forbids the image.
    #[error("{name} is blocked by {}:{line}", path.display())]
    Blocked {
        /// The image.
        name: String,
        /// The file.
        path: PathBuf,
        /// In which line, the first being 1.
        line: usize,
    },
    /// A whole name is replaced by a host, which leaves no repository.
    #[error("{name} cannot be looked for at {location}, which names no repository")]
    NoRepository {
        /// The image.
        name: String,
        /// What takes its name's place.
        location: String,
    },
    /// The body of a manifest is not what it should be.
    #[error("{url} sent a wrong document")]
    Document {
        /// Who sent it.
        url: String,
        /// What is wrong.
        #[source]
        source: Box<DocumentError>,
    },
    /// The bytes of a blob are not the blob's.
    #[error("{name} sent a wrong blob")]
    Damaged {
        /// The repository.
        name: String,
        /// What is wrong with them.
        #[source]
        source: Box<BlobError>,
    },
    /// The digest of the body, the one asked for and the one in the header are not the same.
    #[error("{url} sent content with digest {found} where {expected} was promised")]
    Digest {
        /// Who sent it.
        url: String,
        /// By the reference or the header `Docker-Content-Digest`.
        expected: Sha256Digest,
        /// Of the body, or in the header.
        found: Sha256Digest,
    },
    /// The answer does not keep to the distribution-spec.
    #[error("{url} does not speak the registry protocol: {reason}")]
    Protocol {
        /// Who.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A server that is no registry says what cannot be, or is asked what cannot be asked.
    #[error("{url} cannot be downloaded: {reason}")]
    Web {
        /// Who.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// What is downloaded cannot be written.
    #[error("cannot keep what {url} sends")]
    Sink {
        /// Who sends it.
        url: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The blob to be pushed cannot be read.
    #[error("cannot read blob {digest} to push it")]
    Source {
        /// Which.
        digest: Sha256Digest,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Whoever asked wants no answer any more.
    #[error("cancelled")]
    Cancelled,
}

impl From<HostsError> for RegistryError {
    fn from(error: HostsError) -> Self {
        Self::Hosts(Box::new(error))
    }
}

fn note(text: &Option<String>) -> String {
    text.as_ref().map(|text| format!(": {text}")).unwrap_or_default()
}

/// Whom we cannot reach and the last of the causes, which is the one that says why.
fn broken(url: &str, error: &reqwest::Error) -> String {
    let last = causes(error).last().map(reason).unwrap_or_default();
    let host = Url::parse(url).ok().and_then(|url| {
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}{port}", url.host_str()?))
    });
    match host {
        Some(host) if error.is_connect() => format!("cannot connect to {host}: {last}{}", proxies(url)),
        _ => format!("cannot talk to {url}: {last}"),
    }
}

/// The variable that names a proxy for a URL, which may be what cannot be reached. What it holds is not told: it may have a
/// password in it.
fn proxies(url: &str) -> String {
    let url = Url::parse(url).ok().filter(|url| !is_loopback(url.host_str().unwrap_or_default()));
    let names = match url.as_ref().map(Url::scheme) {
        Some("http") => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        Some(_) => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        None => return String::new(),
    };
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let set = names.into_iter().find(is_set);
    set.map(|name| format!(" (by the proxy that {name} names, unless NO_PROXY has the host)"))
        .unwrap_or_default()
}

fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(kind) = error.downcast_ref::<io::Error>().filter(|error| error.raw_os_error().is_some()) {
        // Without the number.
        let text = kind.to_string();
        let bare = text.split(" (os error").next().unwrap_or_default();
        let (first, rest) = bare.split_at(bare.chars().next().map_or(0, char::len_utf8));
        return first.to_lowercase() + rest;
    }
    let text = error.to_string();
    match text.strip_prefix("failed to lookup address information: ") {
        // glibc and musl.
        Some("Name or service not known" | "Name does not resolve") => "name not known".to_owned(),
        Some(other) => format!("its name cannot be looked up: {other}"),
        None => text,
    }
}

/// How long an error is worth trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It would be the same again.
    None,
    /// It may have been a hiccup: seconds.
    Short,
    /// Servers recover from it: minutes.
    Long,
}

impl RegistryError {
    /// Whether the registry lacks a blob that a pushed manifest names: push it again, then the manifest.
    pub fn is_blob_unknown(&self) -> bool {
        let unknown = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"];
        matches!(self, Self::Status { codes, .. } if codes.iter().any(|code| unknown.contains(&code.as_str())))
    }

    /// Whether the registry does not do such a thing at all (distribution-spec: code `UNSUPPORTED`).
    pub fn is_unsupported(&self) -> bool {
        let says_so = |codes: &[String]| codes.iter().any(|code| code == "UNSUPPORTED");
        matches!(self, Self::Status { status, codes, .. } if *status == 405 || says_so(codes))
    }

    /// Whether what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether nobody was there to answer, or could not now: it says nothing about what was asked for.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Tls { .. } | Self::Timeout { .. } | Self::Slow { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether it is this machine's settings or files that must be mended, or nobody wants an answer: nothing that another
    /// registry could help with.
    pub(super) fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::Setup { .. }
                | Self::CaFile { .. }
                | Self::ClientCertificate { .. }
                | Self::NoRoots { .. }
                | Self::Credentials { .. }
                | Self::Hosts(_)
                | Self::Blocked { .. }
                | Self::NoRepository { .. }
                | Self::Source { .. }
                | Self::Sink { .. }
                | Self::Cancelled
        )
    }

    /// Whether the other end speaks TLS, though the two do not trust each other.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { is_spoken: true, .. })
    }

    /// The same, with what a server has chosen of its text rewritten.
    pub(super) fn rewritten(mut self, rewrite: impl Fn(&str) -> String) -> Self {
        let again = |text: &mut String| *text = rewrite(text);
        match &mut self {
            Self::Transport { url, .. } | Self::Timeout { url, .. } | Self::Realm { realm: url, .. } => {
                again(url)
            }
            Self::Redirect { from, to, .. } => [from, to].into_iter().for_each(again),
            Self::Protocol { url, reason } => [url, reason].into_iter().for_each(again),
            Self::Status { url, reason, .. } => std::iter::once(url).chain(reason).for_each(again),
            Self::NotFound { reason, .. } | Self::Denied { reason, .. } => reason.iter_mut().for_each(again),
            _ => {}
        }
        self
    }

    /// Refused, though each attempt came with a new token.
    pub(super) fn after_renewals(self) -> Self {
        match self {
            Self::Denied { name, reason, hint } => {
                Self::Denied { name, reason, hint: format!("the registry refuses every new token; {hint}") }
            }
            other => other,
        }
    }

    /// How long it took to fail, where that was the failure.
    pub(super) fn waited(&self, limits: &Limits) -> Duration {
        match self {
            Self::Timeout { waited, .. } | Self::Slow { waited, .. } => *waited,
            Self::Transport { cause, .. } if cause.is_timeout() => limits.connect,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn patience(&self) -> Patience {
        match self {
            Self::Transport { cause, .. } => transport_patience(cause),
            Self::Timeout { .. } | Self::Slow { .. } => Patience::Long,
            Self::Status { status: 408 | 425 | 429 | 500 | 502 | 503 | 504, .. } => Patience::Long,
            // No error at all, or none of a registry: an answer to something else, from something in between.
            Self::Status { status, codes, .. } if *status < 400 || *status == 404 && codes.is_empty() => {
                Patience::Short
            }
            Self::Status { codes, .. } if codes.iter().any(|code| is_lost_upload(code)) => Patience::Short,
            Self::Redirect { .. } | Self::Protocol { .. } => Patience::Short,
            Self::Source { source, .. } => match find(source) {
                Some(Self::Damaged { .. }) => Patience::Short,
                _ => Patience::None,
            },
            // A body that was damaged on its way.
            Self::Digest { .. } | Self::Document { .. } | Self::Damaged { .. } => Patience::Short,
            _ => Patience::None,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Codes that say a new upload session may succeed where this one did not (distribution-spec, "Error Codes").
fn is_lost_upload(code: &str) -> bool {
    matches!(code, "BLOB_UPLOAD_UNKNOWN" | "BLOB_UPLOAD_INVALID" | "DIGEST_INVALID" | "SIZE_INVALID")
}

fn transport_patience(error: &reqwest::Error) -> Patience {
    if error.is_builder() || find::<rustls::Error>(error).is_some() {
        return Patience::None;
    }
    // Nobody listens, or the name does not resolve: a typo more often than a restart.
    if error.is_connect() { Patience::Short } else { Patience::Long }
}

/// An error and its causes.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        // rustls errors travel inside io errors, whose source is that of the error inside, not the error itself.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source())
    })
}

/// The first cause of a type.
pub(crate) fn find<'a, T: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a T> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// A URL as it may be shown: no user information, no query (which carries signatures), no fragment.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Neither fails for http and https, and others are refused before they are shown.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// What a server wrote, on one line that can do no harm to a terminal.
pub(super) fn one_line(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(harmless).take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown_of_a_url() {
        let url: Url =
            "https://user:pass@host:5000/v2/a/blobs/x?X-Amz-Signature=abc#frag".parse().expect("a URL");
        assert_eq!(shown(&url), "https://host:5000/v2/a/blobs/x");
    }

    #[test]
    fn the_last_cause_is_told_in_few_words() {
        let looked_up = |text| io::Error::other(format!("failed to lookup address information: {text}"));
        for (error, want) in [
            (io::Error::from_raw_os_error(111), "connection refused"),
            (looked_up("Name or service not known"), "name not known"),
            (looked_up("Name does not resolve"), "name not known"),
            (looked_up("Try again"), "its name cannot be looked up: Try again"),
            (io::Error::other("unexpected end"), "unexpected end"),
        ] {
            assert_eq!(causes(&error).last().map(reason).as_deref(), Some(want));
        }
    }

    #[test]
    fn what_servers_write_cannot_drive_a_terminal() {
        assert_eq!(one_line("a\x1b[31mb\nc\r"), "a [31mb c");
        assert_eq!(one_line(&"x".repeat(1000)).len(), 300);
    }
}

//! HTTPS or plain HTTP: decided once for each registry.
//!
//! HTTPS is the rule. Loopback hosts are spoken to plainly unless they speak TLS or a certificate is configured for them,
//! and hosts that the user has called insecure are asked for TLS first; both by a request that carries no credentials.
//! Plain HTTP and nothing else is spoken to a mirror whose address says so.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use reqwest::{Method, Response, StatusCode, Url, header::HeaderMap};
use tokio::sync::OnceCell;

use super::{
    address::{host_of, is_loopback},
    auth::Access,
    error::RegistryError,
    hosts::Lenience,
    http::{Inner, Payload},
};

/// What has been found out, by registry.
#[derive(Debug, Default)]
pub(super) struct Schemes {
    found: Mutex<HashMap<String, Arc<OnceCell<&'static str>>>>,
}

impl Schemes {
    /// Whoever comes first finds out, and the others wait for that.
    fn of(&self, registry: &str) -> Arc<OnceCell<&'static str>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(found.entry(registry.to_owned()).or_default())
    }
}

impl Inner {
    /// The URL of a path below `/v2/` of a registry.
    pub async fn url(&self, registry: &str, path: &str) -> Result<Url, RegistryError> {
        let mut url = parse_url(&format!("https://{}/v2/{path}", host_of(registry)))?;
        if self.scheme(registry, &url).await? == "http" {
            url = parse_url(&format!("http://{}/v2/{path}", host_of(registry)))?;
        }
        Ok(url)
    }

    /// The URL of a repository, or of a registry as such.
    pub async fn home(&self, access: &Access) -> Result<Url, RegistryError> {
        match access.repository.as_str() {
            "" => self.url(&access.registry, "").await,
            repository => self.url(&access.registry, &format!("{repository}/")).await,
        }
    }

    /// HTTPS, except for loopback and insecure hosts, which are asked once what they speak, and where plain HTTP is asked
    /// for.
    async fn scheme(&self, registry: &str, https: &Url) -> Result<&'static str, RegistryError> {
        let trust = self.clients.trust(https)?;
        let is_loopback = is_loopback(https.host_str().unwrap_or_default());
        match trust.lenience {
            Lenience::Plain => return Ok("http"),
            Lenience::Insecure => {}
            _ if is_loopback && !trust.needs_tls() => {}
            _ => return Ok("https"),
        }
        let find_out = || self.probe(registry, https, trust.lenience, is_loopback);
        self.schemes.of(registry).get_or_try_init(find_out).await.copied()
    }

    /// Asks for the whole registry, or for the part of it for which the same holds.
    async fn probe(
        &self,
        registry: &str,
        https: &Url,
        lenience: Lenience,
        is_loopback: bool,
    ) -> Result<&'static str, RegistryError> {
        let root = parse_url(&format!("https://{}/v2/", host_of(registry)))?;
        let is_whole = self.clients.lenience(&root)? == lenience;
        let path = if is_whole { root.path() } else { repository(https.path()) };
        let https = parse_url(&format!("https://{}{path}", host_of(registry)))?;
        let http = parse_url(&format!("http://{}{path}", host_of(registry)))?;
        match is_loopback {
            true => self.probe_plain(&https, &http).await,
            false => self.probe_tls(&https, &http).await,
        }
    }

    /// Plain HTTP, unless the host speaks TLS.
    async fn probe_plain(&self, https: &Url, http: &Url) -> Result<&'static str, RegistryError> {
        let none = HeaderMap::new();
        let response = match self.send(&Method::GET, http, &none, None, &Payload::Empty).await {
            Ok(response) => response,
            // A TLS server may answer plain HTTP with an alert, which is no HTTP. So may a hiccup look.
            Err(error @ RegistryError::Transport { .. }) => {
                let tls = self.send(&Method::GET, https, &none, None, &Payload::Empty).await;
                let speaks_tls = tls.map_or_else(|error| error.is_tls(), |_| true);
                return if speaks_tls { Ok("https") } else { Err(error) };
            }
            Err(error) => return Err(error),
        };
        Ok(if self.wants_tls(response).await { "https" } else { "http" })
    }

    /// Whether an answer to plain HTTP says that the port is one for HTTPS, as Go's and nginx's servers do.
    async fn wants_tls(&self, response: Response) -> bool {
        response.status() == StatusCode::BAD_REQUEST
            && self.read_error_body(response).await.to_ascii_uppercase().contains("HTTPS")
    }

    /// HTTPS with whatever certificate, else plain HTTP.
    async fn probe_tls(&self, https: &Url, http: &Url) -> Result<&'static str, RegistryError> {
        let none = HeaderMap::new();
        let Err(error) = self.send(&Method::GET, https, &none, None, &Payload::Empty).await else {
            return Ok("https");
        };
        let Ok(plain) = self.send(&Method::GET, http, &none, None, &Payload::Empty).await else {
            return Err(error);
        };
        // Where the port is one for HTTPS, that was a hiccup.
        if self.wants_tls(plain).await { Err(error) } else { Ok("http") }
    }
}

/// The part of a path that names the repository: what holds for it may not hold for all of the host.
fn repository(path: &str) -> &str {
    let ends = ["/blobs/", "/manifests/", "/tags/"].iter().filter_map(|part| path.find(part));
    ends.min().map_or(path, |end| &path[..=end])
}

fn parse_url(text: &str) -> Result<Url, RegistryError> {
    let invalid =
        |error| RegistryError::Protocol { url: text.to_owned(), reason: format!("not a URL: {error}") };
    Url::parse(text).map_err(invalid)
}

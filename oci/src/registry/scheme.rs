//! HTTPS or plain HTTP: decided once for each registry.
//!
//! HTTPS is the rule. Loopback hosts are spoken to plainly unless they speak TLS or a certificate is configured for them:
//! whoever comes first tries, and only if that is answered as a TLS server might they are asked. Hosts that the user has
//! called insecure are asked for TLS before anything else. No request carries credentials that was not answered by a
//! challenge before, and that was HTTP. Plain HTTP and nothing else is spoken to a mirror whose address says so.

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
    http::{Call, Inner, Payload},
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
        self.spoken(registry, &url("https", registry, &format!("/v2/{path}"))?).await
    }

    /// The same address with what the registry is known to speak by now: a request may have shown that the guess was wrong.
    pub async fn spoken(&self, registry: &str, address: &Url) -> Result<Url, RegistryError> {
        let scheme = self.scheme(registry, &url("https", registry, address.path())?).await?;
        let mut spoken = url(scheme, registry, address.path())?;
        spoken.set_query(address.query());
        Ok(spoken)
    }

    /// The URL of a repository, or of a registry as such.
    pub async fn home(&self, access: &Access) -> Result<Url, RegistryError> {
        match access.repository.as_str() {
            "" => self.url(&access.registry, "").await,
            repository => self.url(&access.registry, &format!("{repository}/")).await,
        }
    }

    /// HTTPS, except for insecure hosts, which are asked once what they speak, for loopback hosts, which are taken to speak
    /// plainly until they turn out not to, and where plain HTTP is asked for.
    async fn scheme(&self, registry: &str, https: &Url) -> Result<&'static str, RegistryError> {
        let trust = self.clients.trust(https)?;
        let found = self.schemes.of(registry);
        match trust.lenience {
            Lenience::Plain => Ok("http"),
            _ if self.is_guessed(https)? => Ok(found.get().copied().unwrap_or("http")),
            Lenience::Insecure => {
                let (https, http) = self.part(registry, https)?;
                found.get_or_try_init(|| self.probe_tls(&https, &http)).await.copied()
            }
            _ => Ok("https"),
        }
    }

    /// Whether what a host speaks is found out by trying.
    fn is_guessed(&self, url: &Url) -> Result<bool, RegistryError> {
        let trust = self.clients.trust(url)?;
        let may_be_plain = trust.lenience == Lenience::Insecure || !trust.needs_tls();
        Ok(is_loopback(url.host_str().unwrap_or_default())
            && trust.lenience != Lenience::Plain
            && may_be_plain)
    }

    /// Sends a request. If it goes out plainly by a guess, and the answer may be that of a TLS server, the host is asked what
    /// it speaks, and where the guess was wrong, the request is sent again.
    pub async fn tried(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let answer = self.authorised(call, &call.url).await;
        let (registry, sent) = (&call.access.registry, &call.url);
        if sent.scheme() == "https" || !self.is_guessed(sent)? {
            return answer;
        }
        let found = self.schemes.of(registry);
        match &answer {
            Ok(response) if response.status() != StatusCode::BAD_REQUEST => {
                // Whoever is finding out finds the same.
                let _ = found.set("http");
                return answer;
            }
            // An alert, which is no HTTP. So may a hiccup look.
            Ok(_) | Err(RegistryError::Transport { .. }) => {}
            Err(_) => return answer,
        }
        let (https, http) = self.part(registry, sent)?;
        match found.get_or_try_init(|| self.probe_plain(&https, &http)).await {
            Ok(&"https") => self.authorised(call, &self.spoken(registry, sent).await?).await,
            _ => answer,
        }
    }

    /// What is asked of a registry to find out what it speaks: for the whole of it, or for the part for which the same holds
    /// as for an address in it.
    fn part(&self, registry: &str, inside: &Url) -> Result<(Url, Url), RegistryError> {
        let root = url("https", registry, "/v2/")?;
        let is_whole = self.clients.lenience(&root)? == self.clients.lenience(inside)?;
        let path = if is_whole { root.path() } else { repository(inside.path()) };
        Ok((url("https", registry, path)?, url("http", registry, path)?))
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

fn url(scheme: &str, registry: &str, path: &str) -> Result<Url, RegistryError> {
    let text = format!("{scheme}://{}{path}", host_of(registry));
    Url::parse(&text)
        .map_err(|error| RegistryError::Protocol { url: text, reason: format!("not a URL: {error}") })
}

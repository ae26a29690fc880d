//! HTTPS or plain HTTP: decided once for each registry.
//!
//! HTTPS is the rule. Loopback hosts are spoken to plainly unless they speak TLS, and hosts that the user has called
//! insecure are asked for TLS first; both by a request that carries no credentials.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use reqwest::{Method, StatusCode, Url, header::HeaderMap};

use super::{
    address::{host_of, is_loopback},
    error::RegistryError,
    http::{Inner, Payload},
};

/// What has been found out.
#[derive(Debug, Default)]
pub(super) struct Schemes {
    known: Mutex<HashMap<String, &'static str>>,
}

impl Schemes {
    fn get(&self, registry: &str) -> Option<&'static str> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(registry).copied()
    }

    fn set(&self, registry: &str, scheme: &'static str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(registry.to_owned(), scheme);
    }
}

impl Inner {
    /// The URL of a path below `/v2/` of a registry.
    pub async fn url(&self, registry: &str, path: &str) -> Result<Url, RegistryError> {
        let scheme = self.scheme(registry).await?;
        parse_url(&format!("{scheme}://{}/v2/{path}", host_of(registry)))
    }

    /// HTTPS, except for loopback and insecure hosts, which are asked once what they speak.
    async fn scheme(&self, registry: &str) -> Result<&'static str, RegistryError> {
        let https = parse_url(&format!("https://{}/v2/", host_of(registry)))?;
        let loopback = is_loopback(https.host_str().unwrap_or_default());
        if !loopback && !self.clients.is_insecure(&https) {
            return Ok("https");
        }
        let known = self.schemes.get(registry);
        if let Some(known) = known {
            return Ok(known);
        }
        let http = parse_url(&format!("http://{}/v2/", host_of(registry)))?;
        let found = match loopback {
            true => self.probe_plain(&https, &http).await?,
            false => self.probe_tls(&https, &http).await?,
        };
        self.schemes.set(registry, found);
        Ok(found)
    }

    /// Plain HTTP, unless the host speaks TLS.
    async fn probe_plain(&self, https: &Url, http: &Url) -> Result<&'static str, RegistryError> {
        let none = HeaderMap::new();
        let response = match self.send(&Method::GET, http, &none, None, &Payload::Empty).await {
            Ok(response) => response,
            // A TLS server may answer plain HTTP with an alert, which is no HTTP. So may a hiccup look.
            Err(error @ RegistryError::Transport { .. }) => {
                let tls = self.send(&Method::GET, https, &none, None, &Payload::Empty).await;
                let speaks_tls = tls.map_or_else(|error| error.is_certificate(), |_| true);
                return if speaks_tls { Ok("https") } else { Err(error) };
            }
            Err(error) => return Err(error),
        };
        if response.status() != StatusCode::BAD_REQUEST {
            return Ok("http");
        }
        let text = self.read_error_body(response).await.to_ascii_uppercase();
        Ok(if text.contains("HTTPS") { "https" } else { "http" })
    }

    /// HTTPS with whatever certificate, else plain HTTP.
    async fn probe_tls(&self, https: &Url, http: &Url) -> Result<&'static str, RegistryError> {
        let none = HeaderMap::new();
        let Err(error) = self.send(&Method::GET, https, &none, None, &Payload::Empty).await else {
            return Ok("https");
        };
        let plain = self.send(&Method::GET, http, &none, None, &Payload::Empty).await;
        plain.map(|_| "http").map_err(|_| error)
    }
}

fn parse_url(text: &str) -> Result<Url, RegistryError> {
    let invalid =
        |error| RegistryError::Protocol { url: text.to_owned(), reason: format!("not a URL: {error}") };
    Url::parse(text).map_err(invalid)
}

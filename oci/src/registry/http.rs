//! One exchange with a registry: authorisation, redirects and deadlines around a request that can be repeated.
//!
//! Credentials go to the registry's own scheme, host and port only (RELIABILITY R25): a redirect or an upload location
//! elsewhere is followed without them, and they are not taken up again on the way back. Plain HTTP is spoken to loopback
//! hosts and to those the user has called insecure, and never after HTTPS.

use std::{
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::{
    Body, Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION},
};
use serde::Deserialize;

use super::{
    address::{Origin, is_loopback},
    auth::{Access, Auth},
    challenge::Challenge,
    clock,
    distrust::distrust,
    error::{RegistryError, one_line, shown},
    flow::{Feed, Flow, Motion, Over, PROGRESS},
    hosts::Lenience,
    mirrors::{Mirrors, Notes},
    retry::{Attempts, Limits, Pauses, retry_after},
    scheme::Schemes,
    tls::Clients,
};

/// Longest body of an error that is read.
const MAX_ERROR_BODY: u64 = 64 << 10;
const MAX_REDIRECTS: usize = 10;
/// How often a request is sent again because the registry wants another authorisation.
const MAX_RENEWALS: usize = 3;
/// A registry that has received a blob hashes it, and may move it, before it answers: a second for so many bytes.
const SETTLED_PER_SECOND: u64 = 16 << 20;

/// Everything that outlives a single call.
#[derive(Debug)]
pub(super) struct Inner {
    pub clients: Arc<Clients>,
    pub auth: Arc<Auth>,
    pub pauses: Arc<Pauses>,
    pub limits: Limits,
    pub schemes: Arc<Schemes>,
    pub mirrors: Arc<Mirrors>,
}

/// A request that can be sent more than once.
pub(super) struct Call<'a> {
    pub method: Method,
    pub url: Url,
    pub access: &'a Access,
    pub headers: HeaderMap,
    pub payload: Payload<'a>,
}

impl<'a> Call<'a> {
    /// A request without headers and body.
    pub fn new(method: Method, url: Url, access: &'a Access) -> Self {
        Self { method, url, access, headers: HeaderMap::new(), payload: Payload::Empty }
    }
}

/// The body of a request.
pub(super) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    /// Of a known size; `open` begins it anew.
    Stream {
        size: u64,
        open: &'a (dyn Fn() -> Feed + Sync),
    },
}

/// How fast a body comes while it is waited for: a reader that takes its time is not the server's fault.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// The next piece of a body, which must not come in crumbs for ever.
    pub async fn chunk(
        &mut self,
        inner: &Inner,
        response: &mut Response,
    ) -> Result<Option<Bytes>, RegistryError> {
        let asked = Instant::now();
        let chunk = inner.chunk(response).await?;
        self.waited += asked.elapsed();
        self.bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        let Self { waited, bytes } = *self;
        if waited < inner.limits.idle || chunk.is_none() {
            return Ok(chunk);
        }
        if bytes < PROGRESS {
            return Err(RegistryError::Slow { url: shown(response.url()), bytes, waited });
        }
        *self = Self::default();
        Ok(chunk)
    }
}

/// An answer, and whether it comes from the registry itself or from where it has sent us.
struct Answer {
    response: Response,
    from_registry: bool,
}

impl Inner {
    /// `notes` are told of mirrors.
    pub fn new(clients: Clients, auth: Auth, limits: Limits, notes: Notes) -> Self {
        Self {
            mirrors: Arc::new(Mirrors::new(&limits, notes)),
            clients: Arc::new(clients),
            auth: Arc::new(auth),
            limits,
            pauses: Arc::default(),
            schemes: Arc::default(),
        }
    }

    /// With another patience; all else is shared.
    pub fn with_limits(&self, limits: Limits) -> Self {
        let Self { clients, auth, pauses, limits: _, schemes, mirrors } = self;
        let (clients, auth, pauses) = (Arc::clone(clients), Arc::clone(auth), Arc::clone(pauses));
        Self { clients, auth, pauses, limits, schemes: Arc::clone(schemes), mirrors: Arc::clone(mirrors) }
    }

    /// Repeats an operation while its errors are worth it.
    pub async fn retrying<T>(
        &self,
        registry: &str,
        operation: impl AsyncFn() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut attempts = Attempts::new(&self.limits);
        loop {
            self.pauses.wait(registry).await;
            let error = match operation().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(pause) = attempts.pause_after(&error) else { return Err(error) };
            self.put_off(registry, &error, pause);
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a request with the authorisation the registry wants, and follows redirects. Any final status is an `Ok`,
    /// except the one that says that we may not.
    pub async fn exchange(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        // A server that sends us elsewhere chooses the text of the address, and may put into it what it has seen.
        self.tried(call).await.map_err(|error| error.rewritten(|text| self.auth.scrub(text)))
    }

    /// The same, to an address that may not be the call's own.
    pub async fn authorised(&self, call: &Call<'_>, url: &Url) -> Result<Response, RegistryError> {
        let home = Origin::of(&self.home(call.access).await?);
        let mut refused = None;
        for renewals in 0..=MAX_RENEWALS {
            let authorization = self.auth.current(self, call.access).await?;
            let answer = self.follow(call, url, &home, authorization.as_ref()).await?;
            let response = answer.response;
            if response.status() != StatusCode::UNAUTHORIZED || !answer.from_registry {
                return Ok(response);
            }
            let challenge = Challenge::in_headers(response.headers());
            let refusal = self.failure(response, &call.access.registry, &call.access.name()).await;
            // A token for the same scopes, but a moment old, cannot allow more.
            let is_final = renewals > 0 && challenge.as_ref().is_some_and(Challenge::wants_another_scope);
            if is_final || !self.auth.answer(self, call.access, challenge, authorization).await? {
                return Err(refusal);
            }
            refused = Some(refusal);
        }
        Err(refused.expect("it was sent at least once").after_renewals())
    }

    async fn follow(
        &self,
        call: &Call<'_>,
        first: &Url,
        home: &Origin,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut url = first.clone();
        let mut from_registry = Origin::of(&url) == *home;
        for _ in 0..=MAX_REDIRECTS {
            let authorization = authorization.filter(|_| from_registry);
            let response = self.send(&call.method, &url, &call.headers, authorization, &call.payload).await?;
            if !is_redirect(&response, &call.method) {
                return Ok(Answer { response, from_registry });
            }
            url = self.location(&url, response.headers())?;
            from_registry = from_registry && Origin::of(&url) == *home;
        }
        let (from, to) = (shown(first), shown(&url));
        Err(RegistryError::Redirect { from, to, reason: "too many redirects" })
    }

    /// The `Location` of an answer, absolute and without user information, if it may be gone to.
    pub fn location(&self, from: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
        let protocol = |reason: &str| RegistryError::Protocol { url: shown(from), reason: reason.to_owned() };
        let text = headers.get(LOCATION).ok_or_else(|| protocol("it gives no Location"))?;
        let text = text.to_str().map_err(|_| protocol("its Location is not text"))?;
        let mut to = from.join(text).map_err(|_| protocol("its Location is not a URL"))?;
        let plain = to.set_username("").and_then(|()| to.set_password(None));
        plain.map_err(|()| protocol("its Location is not a URL of a host"))?;
        let refuse = |reason| RegistryError::Redirect { from: shown(from), to: shown(&to), reason };
        match (from.scheme(), to.scheme()) {
            (_, "https") => Ok(to),
            ("https", "http") => Err(refuse("that would leave HTTPS")),
            (_, "http") if self.may_be_plain(&to)? => Ok(to),
            (_, "http") => Err(refuse("plain HTTP is spoken only to loopback and insecure hosts")),
            _ => Err(refuse("only HTTP is followed")),
        }
    }

    fn may_be_plain(&self, url: &Url) -> Result<bool, RegistryError> {
        let is_loopback = is_loopback(url.host_str().unwrap_or_default());
        Ok(is_loopback || self.clients.lenience(url)? >= Lenience::Insecure)
    }

    /// Sends one request to one host, and waits for the head of its answer.
    pub async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        payload: &Payload<'_>,
    ) -> Result<Response, RegistryError> {
        let mut request =
            self.clients.get(url)?.request(method.clone(), url.clone()).headers(headers.clone());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut flow = None;
        match payload {
            Payload::Empty => {}
            Payload::Bytes(bytes) => request = request.body(bytes.clone()),
            Payload::Stream { size, open } => {
                let feed = open();
                flow = Some((Over(feed.flow.clone()), *size));
                request = request.header(CONTENT_LENGTH, *size).body(Body::wrap_stream(feed));
            }
        }
        let watched = flow.as_ref().map(|(over, size)| (&*over.0, *size));
        match first(request.send(), self.watch(watched, url)).await {
            Ok(response) => response.map_err(|error| self.broken(url, error)),
            Err(timeout) => Err(timeout),
        }
    }

    /// Why a request has failed; where it is for want of trust, what to do about it.
    fn broken(&self, url: &Url, error: reqwest::Error) -> RegistryError {
        let trust = self.clients.trust(url).unwrap_or_default();
        distrust(url, &trust, &error).unwrap_or_else(|| transport(url, error))
    }

    /// Ends when nothing has moved for too long.
    async fn watch(&self, flow: Option<(&Flow, u64)>, url: &Url) -> RegistryError {
        let idle = self.limits.idle;
        let timeout = |waited| RegistryError::Timeout { url: shown(url), waited };
        let Some((flow, size)) = flow else {
            tokio::time::sleep(idle).await;
            return timeout(idle);
        };
        let mut before = None;
        loop {
            match flow.since(before, size) {
                Motion::Moves(sent) => before = Some(sent),
                Motion::Stands => return timeout(idle),
                Motion::Ended => break,
            }
            tokio::time::sleep(idle).await;
        }
        let settle = idle + Duration::from_secs(size / SETTLED_PER_SECOND);
        tokio::time::sleep(settle).await;
        timeout(settle)
    }

    /// The next piece of a body.
    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        let idle = self.limits.idle;
        match tokio::time::timeout(idle, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| transport(response.url(), error)),
            Err(_) => Err(RegistryError::Timeout { url: shown(response.url()), waited: idle }),
        }
    }

    /// A whole body, or `None` when it is longer than `limit`.
    pub async fn body(&self, response: &mut Response, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let (mut body, mut pace) = (Vec::new(), Pace::default());
        while let Some(chunk) = pace.chunk(self, response).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }

    pub async fn read_error_body(&self, mut response: Response) -> String {
        let (mut body, mut pace) = (Vec::new(), Pace::default());
        while let Ok(Some(chunk)) = pace.chunk(self, &mut response).await {
            let room = MAX_ERROR_BODY as usize - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() as u64 == MAX_ERROR_BODY {
                break;
            }
        }
        String::from_utf8_lossy(&body).into_owned()
    }

    /// The error of an answer that is not a success. `name` is what was asked for. What the server writes is shown without
    /// our credentials, which it may echo.
    pub async fn failure(&self, response: Response, registry: &str, name: &str) -> RegistryError {
        let (name, ahead) = (name.to_owned(), clock::ahead(response.headers()));
        match self.answered(response).await {
            RegistryError::Status { status: 401 | 403, reason, .. } => {
                RegistryError::Denied { name, reason, hint: self.auth.hint(registry, ahead) }
            }
            RegistryError::Status { status: 404, codes, reason, .. }
                if !codes.iter().any(|code| is_of_push(code)) =>
            {
                RegistryError::NotFound { name, reason }
            }
            other => other,
        }
    }

    /// The same, but nothing is made of the status.
    pub async fn answered(&self, response: Response) -> RegistryError {
        let (url, status) = (self.auth.scrub(&shown(response.url())), response.status().as_u16());
        let retry_after = retry_after(response.headers());
        let (codes, reason) = explain(&self.auth.scrub(&self.read_error_body(response).await));
        RegistryError::Status { url, status, codes, reason, retry_after }
    }
}

/// Whether "unknown" is not what was asked for, but what a push leans on.
fn is_of_push(code: &str) -> bool {
    code.starts_with("BLOB_UPLOAD") || code == "MANIFEST_BLOB_UNKNOWN"
}

/// What the first of two futures to end gives; the other is dropped.
pub(super) async fn first<A, B>(
    one: impl Future<Output = A>,
    other: impl Future<Output = B>,
) -> Result<A, B> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    std::future::poll_fn(|context| {
        if let Poll::Ready(value) = one.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        other.as_mut().poll(context).map(Err)
    })
    .await
}

/// Whether an answer sends us elsewhere, and is to be obeyed: a method that changes something is repeated elsewhere only
/// where the server says that it is to stay the same method.
fn is_redirect(response: &Response, method: &Method) -> bool {
    match response.status().as_u16() {
        307 | 308 => true,
        301..=303 => *method == Method::GET || *method == Method::HEAD,
        _ => false,
    }
}

pub(super) fn transport(url: &Url, error: reqwest::Error) -> RegistryError {
    RegistryError::Transport { url: shown(url), cause: Box::new(error.without_url()) }
}

/// The error codes of an answer, and what it says for people (distribution-spec, "Error Codes").
fn explain(body: &str) -> (Vec<String>, Option<String>) {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<ServerError>,
    }
    #[derive(Deserialize)]
    struct ServerError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_str(body) else {
        let plain = !body.contains('<') && !body.trim().is_empty();
        return (Vec::new(), plain.then(|| one_line(body)));
    };
    let text = |error: &ServerError| one_line(&format!("{} {}", error.code, error.message));
    let reason = errors.iter().take(3).map(text).collect::<Vec<_>>().join("; ");
    (errors.into_iter().map(|error| error.code).collect(), Some(reason).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{auth::Wish, credentials::CredentialStore};

    fn inner() -> Inner {
        let insecure = vec!["lab.example.com:5000".to_owned()];
        let clients =
            Clients::new(insecure, vec![], Default::default(), "test".to_owned(), Limits::default());
        Inner::new(
            clients,
            Auth::new(CredentialStore::new(&[], &|_| None), vec![], Wish::Access),
            Limits::default(),
            Notes::default(),
        )
    }

    #[test]
    fn locations_are_made_absolute_and_stay_on_https() {
        let go = |from: &str, to: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, to.parse().expect("a header"))]);
            let gone = inner().location(&from.parse().expect("a URL"), &headers);
            gone.map_or_else(|error| error.to_string(), |url| url.to_string())
        };
        let https = "https://r.example.com/v2/a/blobs/uploads/";
        for (from, to, want) in [
            (https, "/v2/up?x=1", "https://r.example.com/v2/up?x=1"),
            (https, "https://user:pw@s3.example.com/up", "https://s3.example.com/up"),
            (https, "http://r.example.com/up", "that would leave HTTPS"),
            (https, "http://127.0.0.1/up", "that would leave HTTPS"),
            (https, "http://lab.example.com:5000/up", "that would leave HTTPS"),
            (https, "data:text/plain,x", "is not a URL of a host"),
            ("http://127.0.0.1:1/", "http://localhost:2/up", "http://localhost:2/up"),
            ("http://127.0.0.1:1/", "http://lab.example.com:5000/up", "http://lab.example.com:5000/up"),
            ("http://127.0.0.1:1/", "http://lab.example.com/up", "only to loopback and insecure hosts"),
            ("http://127.0.0.1:1/", "https://s3.example.com/up", "https://s3.example.com/up"),
        ] {
            let found = go(from, to);
            assert!(found.ends_with(want) && !found.contains("pw"), "{to}: {found}");
        }
    }

    #[test]
    fn errors_are_explained_by_their_codes_or_by_plain_text() {
        let json = r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"UNKNOWN"}]}"#;
        let codes = vec!["DENIED".to_owned(), "UNKNOWN".to_owned()];
        assert_eq!(explain(json), (codes, Some("DENIED no; UNKNOWN".to_owned())));
        assert_eq!(explain("no room\n"), (vec![], Some("no room".to_owned())));
        for silent in ["", " ", "<html>502</html>", r#"{"errors":[]}"#] {
            assert_eq!(explain(silent), (vec![], None), "{silent}");
        }
    }
}

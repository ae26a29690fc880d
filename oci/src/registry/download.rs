//! One file behind a URL that has nothing to do with a registry, by the same clients: bounded, cancellable, resumed where
//! it breaks.
//!
//! Plain HTTP is spoken where the URL says so, and never after HTTPS. The authorization goes to the URL's own origin only.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    sync::{Arc, Mutex, PoisonError},
};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{
        AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue,
        IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
    },
};

use super::{
    Registry,
    address::Origin,
    error::{Patience, RegistryError, shown},
    flow::PROGRESS,
    http::{Inner, Pace, Payload, first},
    retry::{Attempts, retry_after},
    wait_until,
};
use crate::digest::{Sha256Digest, Sha256Hasher};

/// Largest file that is downloaded (RELIABILITY R21), in bytes.
pub const FILE_MAX: u64 = 64 << 30;
const MAX_REDIRECTS: usize = 10;

/// What to download.
#[derive(Clone, Default)]
pub struct FileRequest {
    /// `http://` or `https://`; user information becomes basic authorization.
    pub url: String,
    /// Value of `Authorization`, before that of the URL.
    pub authorization: Option<String>,
    /// `ETag` of what is there already.
    pub etag: Option<String>,
}

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Downloaded {
    /// What is there already is what it has (304).
    NotModified,
    /// The caller asked to stop.
    Cancelled,
    /// A file.
    File {
        /// Of its bytes.
        digest: Sha256Digest,
        /// How many.
        size: u64,
        /// `ETag`.
        etag: Option<String>,
        /// `Last-Modified`, as it was sent.
        last_modified: Option<String>,
        /// `Content-Disposition`.
        disposition: Option<String>,
    },
}

/// Whom a download tells how far it has come, and whom it asks whether to go on.
pub struct Watch<'a> {
    /// Bytes so far, and in all (0 while that is unknown).
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Whether to stop.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Registry {
    /// Downloads a file to the beginning of an empty one.
    ///
    /// # Errors
    /// [`RegistryError::Status`] for any answer but the file itself; what was written then is of no use.
    pub fn download(
        &self,
        request: &FileRequest,
        into: &File,
        watch: &Watch<'_>,
    ) -> Result<Downloaded, RegistryError> {
        let transfer = Transfer::new(&self.inner, request, into, watch)?;
        let stop = wait_until(watch.cancelled);
        self.runtime
            .block_on(async { first(transfer.run(), stop).await.unwrap_or(Ok(Downloaded::Cancelled)) })
    }
}

/// One download.
struct Transfer<'a> {
    inner: &'a Arc<Inner>,
    url: Url,
    authorization: Option<HeaderValue>,
    conditions: HeaderMap,
    into: &'a File,
    watch: &'a Watch<'a>,
    arrived: Mutex<Arrived>,
}

/// What has arrived, until it breaks.
#[derive(Default)]
struct Arrived {
    bytes: u64,
    hasher: Sha256Hasher,
    head: Option<Head>,
}

/// What the server says about a file.
#[derive(Debug, Clone)]
struct Head {
    etag: Option<String>,
    last_modified: Option<String>,
    disposition: Option<String>,
    total: u64,
}

impl<'a> Transfer<'a> {
    fn new(
        inner: &'a Arc<Inner>,
        request: &FileRequest,
        into: &'a File,
        watch: &'a Watch<'a>,
    ) -> Result<Self, RegistryError> {
        let mut url = parse(&request.url)?;
        let login = (url.username().to_owned(), url.password().map(str::to_owned));
        // Neither fails for http and https.
        let _ = (url.set_username(""), url.set_password(None));
        let authorization = match &request.authorization {
            Some(value) => Some(secret_header(&url, value)?),
            None if login.0.is_empty() && login.1.is_none() => None,
            None => Some(secret_header(&url, &basic(&login.0, login.1.as_deref().unwrap_or_default()))?),
        };
        let mut conditions = HeaderMap::new();
        let etag = request.etag.as_ref().and_then(|etag| HeaderValue::from_str(etag).ok());
        etag.map(|etag| conditions.insert(IF_NONE_MATCH, etag));
        let arrived = Mutex::default();
        Ok(Self { inner, url, authorization, conditions, into, watch, arrived })
    }

    async fn run(&self) -> Result<Downloaded, RegistryError> {
        let mut attempts = Attempts::new(&self.inner.limits);
        let mut broke_at = 0;
        loop {
            let error = match self.attempt().await {
                Ok(downloaded) => return Ok(downloaded),
                Err(error) => error,
            };
            let bytes = self.bytes();
            if bytes >= broke_at + PROGRESS {
                attempts.reset();
            }
            broke_at = bytes;
            // What no registry would say, a web server means.
            let is_meant =
                matches!(error, RegistryError::Status { .. }) && error.patience() == Patience::Short;
            let pause = if is_meant { None } else { attempts.pause_after(&error) };
            let Some(pause) = pause else { return Err(error) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self) -> Result<Downloaded, RegistryError> {
        let mut response = self.follow(self.headers()).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED if !self.conditions.is_empty() => return Ok(Downloaded::NotModified),
            StatusCode::OK => self.begin(&response)?,
            StatusCode::PARTIAL_CONTENT => self.resume(&response)?,
            status => {
                let retry_after = retry_after(response.headers());
                let (url, status) = (shown(response.url()), status.as_u16());
                return Err(RegistryError::Status {
                    url,
                    status,
                    codes: Vec::new(),
                    reason: None,
                    retry_after,
                });
            }
        }
        let mut pace = Pace::default();
        while let Some(chunk) = pace.chunk(self.inner, &mut response).await? {
            self.write(&chunk).map_err(|source| RegistryError::Sink { url: shown(&self.url), source })?;
        }
        self.finish()
    }

    /// Conditions where nothing has arrived yet; else the rest, if it is of the same file.
    fn headers(&self) -> HeaderMap {
        let arrived = self.lock();
        let etag = arrived.head.as_ref().and_then(|head| head.etag.as_deref());
        // A weak validator does not vouch for bytes (RFC 9110, section 13.1.5).
        let strong =
            etag.filter(|etag| !etag.starts_with("W/")).and_then(|etag| HeaderValue::from_str(etag).ok());
        let range = HeaderValue::from_str(&format!("bytes={}-", arrived.bytes));
        match (strong, range, arrived.bytes) {
            (Some(etag), Ok(range), 1..) => HeaderMap::from_iter([(RANGE, range), (IF_RANGE, etag)]),
            (_, _, 0) if arrived.head.is_none() => self.conditions.clone(),
            _ => HeaderMap::new(),
        }
    }

    async fn follow(&self, headers: HeaderMap) -> Result<Response, RegistryError> {
        let home = Origin::of(&self.url);
        let (mut url, mut is_home) = (self.url.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            let authorization = self.authorization.as_ref().filter(|_| is_home);
            let sent = self.inner.send(&Method::GET, &url, &headers, authorization, &Payload::Empty).await?;
            if !matches!(sent.status().as_u16(), 301..=303 | 307 | 308) {
                return Ok(sent);
            }
            url = location(&url, sent.headers())?;
            // Once elsewhere, always elsewhere: the way back would be of their choosing.
            is_home = is_home && Origin::of(&url) == home;
        }
        Err(RegistryError::Redirect { from: shown(&self.url), to: shown(&url), reason: "too many redirects" })
    }

    /// A whole file comes.
    fn begin(&self, response: &Response) -> Result<(), RegistryError> {
        let total = response.content_length().unwrap_or(0);
        if total > FILE_MAX {
            return Err(self.protocol("the file is larger than 64 GiB"));
        }
        let mut into = self.into;
        let emptied = into.set_len(0).and_then(|()| into.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| RegistryError::Sink { url: shown(&self.url), source })?;
        let text = |name: HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (etag, last_modified) = (text(ETAG), text(LAST_MODIFIED));
        let head = Head { etag, last_modified, disposition: text(CONTENT_DISPOSITION), total };
        *self.lock() = Arrived { head: Some(head), ..Arrived::default() };
        Ok(())
    }

    /// The rest of a file comes.
    fn resume(&self, response: &Response) -> Result<(), RegistryError> {
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let expected = format!("bytes {}-", self.bytes());
        match range.is_some_and(|range| range.starts_with(&expected)) && self.bytes() > 0 {
            true => Ok(()),
            false => Err(self.protocol("it sends another part than it was asked for")),
        }
    }

    fn write(&self, chunk: &[u8]) -> io::Result<()> {
        let mut into = self.into;
        into.write_all(chunk)?;
        let mut arrived = self.lock();
        arrived.hasher.update(chunk);
        arrived.bytes += chunk.len() as u64;
        if arrived.bytes > FILE_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than 64 GiB"));
        }
        let total = arrived.head.as_ref().map_or(0, |head| head.total);
        (self.watch.progress)(arrived.bytes, total);
        Ok(())
    }

    fn finish(&self) -> Result<Downloaded, RegistryError> {
        let Arrived { bytes, hasher, head } = std::mem::take(&mut *self.lock());
        let head = head.ok_or_else(|| self.protocol("it sends a part of a file that was not begun"))?;
        let Head { etag, last_modified, disposition, total } = head;
        // HTTP sees to the length of each answer; that the parts make the whole is ours to see.
        if total > 0 && bytes != total {
            return Err(self.protocol("the parts that it sends are not the length of the file"));
        }
        (self.watch.progress)(bytes, bytes);
        Ok(Downloaded::File { digest: hasher.finish(), size: bytes, etag, last_modified, disposition })
    }

    fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn protocol(&self, reason: &str) -> RegistryError {
        RegistryError::Web { url: shown(&self.url), reason: reason.to_owned() }
    }
}

fn parse(text: &str) -> Result<Url, RegistryError> {
    let bad = |reason: String| RegistryError::Web { url: "the URL".to_owned(), reason };
    let url = Url::parse(text).map_err(|error| bad(format!("it is malformed: {error}")))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        scheme => Err(bad(format!("{scheme}: is not spoken"))),
    }
}

fn location(from: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
    let wrong = |reason: &str| RegistryError::Web { url: shown(from), reason: reason.to_owned() };
    let text = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| wrong("it redirects to nowhere"))?;
    let mut to = from.join(text).map_err(|_| wrong("it redirects to what is no URL"))?;
    let _ = (to.set_username(""), to.set_password(None));
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") if to.has_host() => Ok(to),
        (_, scheme) => {
            let reason = if scheme == "http" { "that would leave HTTPS" } else { "only HTTP is followed" };
            Err(RegistryError::Redirect { from: shown(from), to: shown(&to), reason })
        }
    }
}

fn secret_header(url: &Url, value: &str) -> Result<HeaderValue, RegistryError> {
    let reason = || format!("the secret for {AUTHORIZATION} is no value of a header");
    let mut value =
        HeaderValue::from_str(value).map_err(|_| RegistryError::Web { url: shown(url), reason: reason() })?;
    value.set_sensitive(true);
    Ok(value)
}

/// RFC 7617; the parts are percent-encoded in a URL.
fn basic(user: &str, password: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let decoded = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [byte, tail @ ..] = rest {
            let digits = tail.get(..2).filter(|_| *byte == b'%').and_then(|d| std::str::from_utf8(d).ok());
            match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(decoded) => (bytes.push(decoded), rest = &tail[2..]).1,
                None => (bytes.push(*byte), rest = tail).1,
            }
        }
        bytes
    };
    let login = [decoded(user), vec![b':'], decoded(password)].concat();
    format!("Basic {}", STANDARD.encode(login))
}

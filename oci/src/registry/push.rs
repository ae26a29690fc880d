//! Pushing a blob: is it there, can it be taken from another repository, else one PUT that streams it.
//!
//! The calling thread drives the requests; a second one reads the blob, as often as a request has to be sent anew. A
//! session that the registry has lost is not resumed but begun again: registries disagree on what a broken one is worth.
//! docker-registry forgets it when a PATCH breaks in its middle, so pieces would cost time (256 MiB on loopback: 2.4 s by
//! one PUT, 3.8 s in pieces of 64 MiB) and save nothing.

use std::{
    io::{self, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc as orders,
    },
};

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::sync::mpsc;

use super::{
    Pushed, Runtime, Stop,
    address::Origin,
    auth::Access,
    error::{RegistryError, shown},
    flow::{Feed, Flow},
    http::{Call, Inner, Payload, first},
    manifest::announced_digest,
};
use crate::{descriptor::Descriptor, digest::Sha256Digest, reference::Reference, verify::Verified};

/// Size of one piece of a body.
const PIECE: usize = 256 << 10;
/// Pieces on their way between reader and socket.
const IN_FLIGHT: usize = 4;

/// Opens the blob from its beginning; called once for each request that carries it.
pub type OpenBlob<'a> = &'a (dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync);
/// Told of bytes that have been handed to the socket. After a break they are sent, and told of, again.
pub type OnProgress<'a> = &'a (dyn Fn(u64) + Sync);

/// Who pushes.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    pub runtime: &'a Runtime,
    pub inner: &'a Inner,
    /// Ends all waiting.
    pub stop: &'a Stop,
}

/// Makes sure the repository of `reference` has a blob.
pub(super) fn push_blob(
    Client { runtime, inner, stop }: Client<'_>,
    reference: &Reference,
    descriptor: &Descriptor,
    mount_from: Option<&Reference>,
    open: OpenBlob<'_>,
    progress: OnProgress<'_>,
) -> Result<Pushed, RegistryError> {
    let (sender, receiver) = orders::channel();
    let source = Source { runtime, descriptor, open, progress, failure: Mutex::default() };
    let other =
        |from: &&Reference| from.registry == reference.registry && from.repository != reference.repository;
    let push = Push {
        inner,
        access: Access::push(&reference.registry, &reference.repository),
        descriptor,
        mount_from: mount_from.filter(other).map(|from| from.repository.as_str()),
        mount_tried: AtomicBool::new(false),
        orders: Mutex::new(sender),
        source: &source,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| source.serve(receiver));
        let pushing = inner.retrying(&reference.registry, async || push.attempt().await);
        let pushed = runtime.block_on(async { first(pushing, stop.requested()).await });
        // The reader ends when nobody can order any more.
        drop(push);
        pushed.unwrap_or(Err(RegistryError::Cancelled))
    })
}

/// The blob, on the thread that reads it.
struct Source<'a> {
    runtime: &'a Runtime,
    descriptor: &'a Descriptor,
    open: OpenBlob<'a>,
    progress: OnProgress<'a>,
    /// Why it could not be read; says more than the broken request does.
    failure: Mutex<Option<io::Error>>,
}

/// Asks for the blob, from its beginning.
struct Order {
    sender: mpsc::Sender<io::Result<Bytes>>,
    flow: Arc<Flow>,
}

impl Source<'_> {
    fn serve(&self, orders: orders::Receiver<Order>) {
        for order in orders {
            if let Err(error) = self.send(&order) {
                let broken = io::Error::from(error.kind());
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.hand_over(&order, Err(broken));
            }
        }
    }

    /// Reads the blob once more: whether it is us or the way to the registry that damaged it.
    fn verify(&self) -> Result<(), RegistryError> {
        let read = (self.open)()
            .and_then(|blob| io::copy(&mut Verified::new(blob, self.descriptor), &mut io::sink()));
        read.map(drop).map_err(|source| RegistryError::Source { digest: self.descriptor.digest, source })
    }

    /// `false` when the request is over, and wants no more.
    fn hand_over(&self, order: &Order, piece: io::Result<Bytes>) -> bool {
        let sent = self.runtime.block_on(first(order.sender.send(piece), order.flow.over()));
        matches!(sent, Ok(Ok(())))
    }

    fn send(&self, order: &Order) -> io::Result<()> {
        let mut reader = (self.open)()?;
        let mut remaining = self.descriptor.size;
        while remaining > 0 {
            let mut piece = Vec::with_capacity(PIECE);
            let count = reader.by_ref().take(remaining.min(PIECE as u64)).read_to_end(&mut piece)? as u64;
            if count == 0 {
                let reason = format!("{remaining} bytes are missing at its end");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
            remaining -= count;
            if !self.hand_over(order, Ok(piece.into())) {
                return Ok(());
            }
            (self.progress)(count);
        }
        // A reader that verifies does so at the end of the bytes.
        match reader.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it goes on after its size")),
        }
    }
}

/// The requests of one push.
struct Push<'a> {
    inner: &'a Inner,
    access: Access,
    descriptor: &'a Descriptor,
    mount_from: Option<&'a str>,
    /// A registry that has answered once to the wish for a mount is not asked again.
    mount_tried: AtomicBool,
    orders: Mutex<orders::Sender<Order>>,
    source: &'a Source<'a>,
}

impl Push<'_> {
    async fn attempt(&self) -> Result<Pushed, RegistryError> {
        if has_blob(self.inner, &self.access, &self.descriptor.digest).await? {
            return Ok(Pushed::Existed);
        }
        let (session, access) = match self.mount_from {
            Some(from) if !self.mount_tried.load(Ordering::Relaxed) => match self.mount(from).await? {
                Mount::Done => return Ok(Pushed::Mounted),
                Mount::Session(url, access) => (url, access),
                Mount::Refused => (start(self.inner, &self.access).await?, self.access.clone()),
            },
            _ => (start(self.inner, &self.access).await?, self.access.clone()),
        };
        self.upload(session, &access).await.map(|()| Pushed::Uploaded)
    }

    /// Asks the registry to take the blob from another repository; it may open an upload session instead.
    async fn mount(&self, from: &str) -> Result<Mount, RegistryError> {
        let access = self.access.clone().and_pull(from);
        let mut url = uploads(self.inner, &access).await?;
        url.query_pairs_mut()
            .append_pair("mount", &self.descriptor.digest.to_string())
            .append_pair("from", from);
        let response = match self.inner.exchange(&empty_post(url, &access)).await {
            // A token for both repositories may be too much to ask.
            Err(RegistryError::Denied { .. }) => None,
            sent => Some(sent?),
        };
        if let Some(busy) = response.as_ref().map(Response::status)
            && (busy.is_server_error() || busy == StatusCode::TOO_MANY_REQUESTS)
            && let Some(response) = response
        {
            return Err(self.inner.failure(response, &access.registry, &access.name()).await);
        }
        self.mount_tried.store(true, Ordering::Relaxed);
        match response {
            Some(response) if response.status() == StatusCode::CREATED => Ok(Mount::Done),
            Some(response) if response.status() == StatusCode::ACCEPTED => {
                let session = self.inner.location(response.url(), response.headers())?;
                Ok(Mount::Session(session, access))
            }
            _ => Ok(Mount::Refused),
        }
    }

    /// Sends the blob in one request.
    async fn upload(&self, mut session: Url, access: &Access) -> Result<(), RegistryError> {
        session.query_pairs_mut().append_pair("digest", &self.descriptor.digest.to_string());
        let open = || self.order();
        let mut call = Call::new(Method::PUT, session, access);
        call.headers = octets();
        call.payload = match self.descriptor.size {
            0 => Payload::Bytes(Bytes::new()),
            size => Payload::Stream { size, open: &open },
        };
        let sent = self.inner.exchange(&call).await;
        if let Some(source) = self.source.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(RegistryError::Source { digest: self.descriptor.digest, source });
        }
        let response = sent?;
        if response.status().is_success() {
            return Ok(());
        }
        let failure = self.inner.failure(response, &access.registry, &access.name()).await;
        if matches!(&failure, RegistryError::Status { codes, .. } if codes.iter().any(|code| code == "DIGEST_INVALID"))
        {
            self.source.verify()?;
        }
        Err(match failure {
            // A session that is gone, in the words of registries that do not say so.
            RegistryError::NotFound { reason, .. } => RegistryError::Status {
                url: access.name(),
                status: 404,
                codes: vec!["BLOB_UPLOAD_UNKNOWN".to_owned()],
                reason,
                retry_after: None,
            },
            other => other,
        })
    }

    /// Has the reading thread begin anew.
    fn order(&self) -> Feed {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let flow = Arc::new(Flow::default());
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a reader the feed is empty, and the request breaks for want of its bytes.
        let _ = orders.send(Order { sender, flow: flow.clone() });
        Feed { receiver, flow }
    }
}

/// What came of asking for a mount.
enum Mount {
    Done,
    Session(Url, Access),
    Refused,
}

/// Whether a repository has a blob of this digest.
pub(super) async fn has_blob(
    inner: &Inner,
    access: &Access,
    digest: &Sha256Digest,
) -> Result<bool, RegistryError> {
    let url = inner.url(&access.registry, &format!("{}/blobs/{digest}", access.repository)).await?;
    let response = inner.exchange(&Call::new(Method::HEAD, url, access)).await?;
    let home = Origin::of(&inner.home(access).await?);
    match response.status() {
        StatusCode::OK => is_of(digest, &response),
        StatusCode::NOT_FOUND => Ok(false),
        // A storage service to which the registry sends downloads may not answer HEAD: then nothing is known.
        status if status.is_client_error() && Origin::of(response.url()) != home => Ok(false),
        _ => Err(inner.failure(response, &access.registry, &access.name()).await),
    }
}

/// Whether an answer is about this blob, as far as it says so: on a connection that is out of step it is about another.
fn is_of(digest: &Sha256Digest, response: &Response) -> Result<bool, RegistryError> {
    match announced_digest(response.headers()) {
        Some(found) if found != *digest => {
            Err(RegistryError::Digest { url: shown(response.url()), expected: *digest, found })
        }
        _ => Ok(true),
    }
}

/// Opens an upload session, and ends it: whether we may push is known without having pushed.
pub(super) async fn check(inner: &Inner, access: &Access) -> Result<(), RegistryError> {
    let session = start(inner, access).await?;
    // What a registry does not let us cancel, it forgets by itself.
    let _ = inner.exchange(&Call::new(Method::DELETE, session, access)).await;
    Ok(())
}

/// Opens an upload session.
async fn start(inner: &Inner, access: &Access) -> Result<Url, RegistryError> {
    let call = empty_post(uploads(inner, access).await?, access);
    let response = inner.exchange(&call).await?;
    match response.status() {
        StatusCode::ACCEPTED | StatusCode::CREATED => inner.location(response.url(), response.headers()),
        // Registries say in JSON that a repository does not exist; whoever does not, is none.
        StatusCode::NOT_FOUND => match inner.answered(response).await {
            RegistryError::Status { codes, reason, .. } if !codes.is_empty() => {
                Err(RegistryError::NotFound { name: repository(access), reason })
            }
            other => Err(other),
        },
        _ => Err(inner.failure(response, &access.registry, &repository(access)).await),
    }
}

fn repository(access: &Access) -> String {
    format!("repository {}", access.name())
}

async fn uploads(inner: &Inner, access: &Access) -> Result<Url, RegistryError> {
    inner.url(&access.registry, &format!("{}/blobs/uploads/", access.repository)).await
}

/// With an explicit length: some servers want one even of nothing.
fn empty_post<'a>(url: Url, access: &'a Access) -> Call<'a> {
    Call { payload: Payload::Bytes(Bytes::new()), ..Call::new(Method::POST, url, access) }
}

fn octets() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))])
}

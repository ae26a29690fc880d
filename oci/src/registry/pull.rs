//! Pulling a blob: a task moves bytes from the socket into a bounded channel, the reader's thread takes and hashes them.
//!
//! A transfer that breaks goes on where it broke (`Range`), from a new request to the registry: the storage URL behind a
//! redirect may have expired in the meantime. What arrives is bounded by the channel, so a slow reader slows the server
//! down.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE},
};
use tokio::sync::mpsc;

use super::{
    Runtime, Stop,
    auth::Access,
    error::{RegistryError, shown},
    flow::PROGRESS,
    hosts::Sources,
    http::{Call, Inner, Pace, first},
    retry::Attempts,
};
use crate::{
    descriptor::Descriptor,
    digest::Sha256Digest,
    reference::Reference,
    verify::{BlobError, Verified},
};

/// Pieces on their way between socket and reader; each is what one read of the socket gave, at most some 400 KiB.
const IN_FLIGHT: usize = 8;

/// What the task sends: an empty piece first, when the transfer has begun.
type Piece = Result<Bytes, RegistryError>;

/// Begins the transfer of a blob. Returns once the registry has begun to send it.
pub(super) fn pull_blob(
    runtime: &Arc<Runtime>,
    inner: &Arc<Inner>,
    stop: &Stop,
    sources: Sources,
    descriptor: &Descriptor,
) -> Result<Box<dyn Read + Send>, RegistryError> {
    let Sources { mirrors, own } = sources;
    let served = Served::default();
    let transfer = Transfer {
        inner: inner.clone(),
        access: access(&own),
        digest: descriptor.digest,
        size: descriptor.size,
        served: served.clone(),
    };
    let name = transfer.access.name();
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    runtime.spawn(transfer.run(mirrors, own, sender));
    let (runtime, stop) = (runtime.clone(), stop.clone());
    let mut reader = BlobReader { receiver, piece: Bytes::new(), runtime, stop };
    reader.piece = reader.next()?.unwrap_or_default();
    let verified = Verified::new(reader, descriptor);
    Ok(Box::new(Blaming { verified, name, digest: descriptor.digest, inner: inner.clone(), served }))
}

fn access(place: &Reference) -> Access {
    Access::pull(&place.registry, &place.repository)
}

/// The registries of the mirrors that have sent a part of the blob.
type Served = Arc<Mutex<Vec<String>>>;

/// A verified blob; where its bytes are wrong, it says who has sent them, and the mirrors among those are not asked again.
struct Blaming {
    verified: Verified<BlobReader>,
    /// The repository.
    name: String,
    digest: Sha256Digest,
    inner: Arc<Inner>,
    served: Served,
}

impl Read for Blaming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.verified.read(buffer).map_err(|error| {
            let kind = error.kind();
            match error.downcast::<BlobError>() {
                Ok(source) => io::Error::new(kind, self.damaged(source)),
                Err(other) => other,
            }
        })
    }
}

impl Blaming {
    fn damaged(&self, source: BlobError) -> RegistryError {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.iter().for_each(|mirror| self.inner.mirrors.blame(mirror, &format!("blob {}", self.digest)));
        let mirrors: String = served.iter().map(|mirror| format!(", or its mirror {mirror},")).collect();
        RegistryError::Damaged { name: format!("{}{mirrors}", self.name), source: Box::new(source) }
    }
}

/// The reader's end of a transfer.
struct BlobReader {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    /// The task at the other end lives as long as this does.
    runtime: Arc<Runtime>,
    stop: Stop,
}

impl BlobReader {
    /// What the task sends next; `None` after the last.
    fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let (receiver, stop) = (&mut self.receiver, &self.stop);
        let sent = self.runtime.block_on(async { first(receiver.recv(), stop.requested()).await });
        sent.map_err(|()| RegistryError::Cancelled)?.transpose()
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.next().map_err(io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The socket's end.
struct Transfer {
    inner: Arc<Inner>,
    access: Access,
    digest: Sha256Digest,
    size: u64,
    served: Served,
}

/// How a transfer stands.
#[derive(Default)]
struct Progress {
    begun: bool,
    position: u64,
    /// The server sends all of it or nothing.
    whole: bool,
}

impl Transfer {
    /// From each place in its turn; what one has sent, the next need not send again.
    async fn run(mut self, mirrors: Vec<Reference>, own: Reference, sender: mpsc::Sender<Piece>) {
        let (inner, mut progress) = (self.inner.clone(), Progress::default());
        let mut failure = None;
        for mirror in mirrors.iter().filter(|mirror| inner.mirrors.is_usable(mirror)) {
            self.access = access(mirror);
            let served = || self.served.lock().unwrap_or_else(PoisonError::into_inner);
            served().push(mirror.registry.clone());
            let (attempts, begin) = (Attempts::brief(&inner.mirrors.limits), progress.position);
            let Err(error) = self.transfer(attempts, &sender, &mut progress).await else { return };
            if progress.position == begin {
                served().pop();
            }
            failure = inner.mirrors.pass_over(mirror, error).err();
            if failure.is_some() {
                break;
            }
        }
        if failure.is_none() {
            self.access = access(&own);
            failure = self.transfer(Attempts::new(&inner.limits), &sender, &mut progress).await.err();
        }
        if let Some(error) = failure {
            // Whoever no longer listens does not need to know.
            let _ = sender.send(Err(error)).await;
        }
    }

    /// Moves bytes to their end, as long as errors are worth another attempt. `Ok` as well when nobody listens any more.
    async fn transfer(
        &self,
        mut attempts: Attempts<'_>,
        sender: &mpsc::Sender<Piece>,
        progress: &mut Progress,
    ) -> Result<(), RegistryError> {
        let mut broke_at = progress.position;
        loop {
            self.inner.pauses.wait(&self.access.registry).await;
            let Err(error) = self.attempt(sender, progress).await else { return Ok(()) };
            if progress.position >= broke_at + PROGRESS {
                attempts.reset();
            }
            broke_at = progress.position;
            let Some(pause) = attempts.pause_after(&error) else { return Err(error) };
            self.inner.put_off(&self.access.registry, &error, pause);
            if tokio::time::timeout(pause, sender.closed()).await.is_ok() {
                return Ok(());
            }
        }
    }

    /// Moves bytes from where the transfer stands to its end. `Ok` as well when nobody listens any more.
    async fn attempt(
        &self,
        sender: &mpsc::Sender<Piece>,
        progress: &mut Progress,
    ) -> Result<(), RegistryError> {
        let mut response = self.request(progress).await?;
        if !progress.begun {
            progress.begun = true;
            if sender.send(Ok(Bytes::new())).await.is_err() {
                return Ok(());
            }
        }
        let mut skip = self.start_of(&response, progress.position)?;
        let mut pace = Pace::default();
        while let Some(mut chunk) = pace.chunk(&self.inner, &mut response).await? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            chunk.advance(skipped as usize);
            progress.position += chunk.len() as u64;
            // One byte too many is for the reader to refuse; more of them are not worth moving.
            if !chunk.is_empty() && sender.send(Ok(chunk)).await.is_err() || progress.position > self.size {
                return Ok(());
            }
        }
        if progress.position < self.size {
            return Err(self.truncated(&response, progress.position));
        }
        Ok(())
    }

    async fn request(&self, progress: &mut Progress) -> Result<Response, RegistryError> {
        let position = progress.position;
        let path = format!("{}/blobs/{}", self.access.repository, self.digest);
        let url = self.inner.url(&self.access.registry, &path).await?;
        let mut call = Call::new(Method::GET, url, &self.access);
        if position > 0 && !progress.whole {
            let range =
                HeaderValue::from_str(&format!("bytes={position}-")).expect("digits are a header value");
            call.headers = HeaderMap::from_iter([(RANGE, range)]);
        }
        let response = self.inner.exchange(&call).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            // It has the blob, but will not begin in its middle.
            StatusCode::RANGE_NOT_SATISFIABLE if position > 0 && !progress.whole => {
                progress.whole = true;
                Box::pin(self.request(progress)).await
            }
            _ => {
                let name = format!("blob {} of {}", self.digest, self.access.name());
                Err(self.inner.failure(response, &self.access.registry, &name).await)
            }
        }
    }

    /// How many bytes to skip before those that are wanted: a server that ignores `Range` begins at the beginning.
    fn start_of(&self, response: &Response, position: u64) -> Result<u64, RegistryError> {
        if response.status() == StatusCode::OK {
            return Ok(position);
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start =
            range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
        match start {
            Some(start) if start <= position => Ok(position - start),
            _ => Err(RegistryError::Protocol {
                url: shown(response.url()),
                reason: format!("asked for bytes from {position}, it sent {}", range.unwrap_or("others")),
            }),
        }
    }

    /// A body that ended early without the connection having broken.
    fn truncated(&self, response: &Response, position: u64) -> RegistryError {
        let announced =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        // What the server has is shorter, which waiting seldom cures.
        if response.status() == StatusCode::OK && announced == Some(position) {
            let source = BlobError::Truncated { digest: self.digest, found: position, size: self.size };
            return RegistryError::Damaged { name: self.access.name(), source: Box::new(source) };
        }
        let reason = Some(format!("the body ends after {position} of {} bytes", self.size));
        let (url, status) = (shown(response.url()), StatusCode::BAD_GATEWAY.as_u16());
        RegistryError::Status { url, status, codes: Vec::new(), reason, retry_after: None }
    }
}

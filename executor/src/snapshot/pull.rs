//! One layer of a base image: from wherever its blob is into a directory of temporaries.

use std::io::{self, Read};

use oci::{
    BaseLayer, DiffId, MediaType,
    fetch::{FetchError, Fetcher},
};
use solver::{Cancel, Event};

use super::{
    Events,
    stream::{StreamError, Streamed, decompress},
};
use crate::unpack::UnpackError;

/// Bytes between two progress events.
const PROGRESS_STEP: u64 = 1 << 20;

/// Why a base layer is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Its media type is none that we know how to read.
    #[error("its media type {0} is not supported")]
    MediaType(MediaType),
    /// The blob cannot be had.
    #[error("cannot get the blob")]
    Open(#[source] io::Error),
    /// The blob cannot be read to its end.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What is in it cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The blob has arrived with other bytes than it should have.
    #[error("cannot read the blob")]
    Damaged(#[source] FetchError),
    /// It is not the layer that the image's config speaks of.
    #[error("its diff ID is {found}, but the image's config says {expected}")]
    DiffId {
        /// From the config.
        expected: DiffId,
        /// Of the bytes.
        found: DiffId,
    },
    /// The copy of its blob cannot be put into the store.
    #[error("cannot keep the blob")]
    Keep(#[source] FetchError),
}

/// Lets `consume` have the uncompressed bytes of a layer while it is downloaded. A blob that comes from a registry is kept
/// in the store, since an export to another place will want its bytes; one that lies in a layout is there already.
pub(super) fn pull<T>(
    fetcher: &Fetcher,
    layer: &BaseLayer,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, UnpackError>,
    events: &Events,
    cancel: &Cancel,
) -> Result<T, PullError> {
    // Who has asked to stop knows why it ends, whatever it ended with.
    pull_whole(fetcher, layer, consume, events, cancel).map_err(|error| match cancel.is_requested() {
        true => StreamError::Cancelled.into(),
        false => error,
    })
}

fn pull_whole<T>(
    fetcher: &Fetcher,
    layer: &BaseLayer,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, UnpackError>,
    events: &Events,
    cancel: &Cancel,
) -> Result<T, PullError> {
    let descriptor = &layer.descriptor;
    if descriptor.media_type.layer_compression().is_none() {
        return Err(PullError::MediaType(descriptor.media_type.clone()));
    }
    let mut blob = fetcher.arrive(descriptor, &layer.origin).map_err(PullError::Open)?;
    let verb = if blob.is_copied() { "pull" } else { "unpack" };
    let task = format!("{verb} {:.19}", descriptor.digest.to_string());
    let watched = Watched { blob: &mut blob, task, done: 0, told: 0, total: descriptor.size, events };
    let consumed = consume_layer(watched, layer.diff_id, consume, cancel);
    if let Err(PullError::Stream(StreamError::Cancelled)) = consumed {
        return consumed;
    }
    // What makes no sense may have been damaged on its way, which only all of it can tell.
    match (consumed, blob.keep()) {
        (_, Err(error)) if error.is_damage() => Err(PullError::Damaged(error)),
        (Err(error), _) => Err(error),
        (Ok(consumed), kept) => kept.map(|()| consumed).map_err(PullError::Keep),
    }
}

fn consume_layer<T>(
    blob: impl Read + Send,
    expected: DiffId,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, UnpackError>,
    cancel: &Cancel,
) -> Result<T, PullError> {
    let Streamed { consumed, diff_id } = decompress(blob, cancel, consume)??;
    match diff_id == expected {
        true => Ok(consumed),
        false => Err(PullError::DiffId { expected, found: diff_id }),
    }
}

/// A blob on its way, counted.
struct Watched<'a, R> {
    blob: R,
    task: String,
    done: u64,
    told: u64,
    total: u64,
    events: &'a Events,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.done += count as u64;
        let is_news = self.done >= self.told + PROGRESS_STEP || self.done == self.total;
        if is_news && count > 0 {
            self.told = self.done;
            (self.events)(Event::Transfer { task: self.task.clone(), done: self.done, total: self.total });
        }
        Ok(count)
    }
}

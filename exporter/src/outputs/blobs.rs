//! The blobs of an image on their way out: what there is to bring, and a verified stream of each.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

use oci::{BlobOrigin, Descriptor, Sha256Digest};

use super::{ExportError, Tools};
use crate::{assemble::Assembled, parallel};

/// Blobs that are brought at the same time.
const PARALLEL: usize = 4;

/// One blob of an image and where its bytes are.
#[derive(Debug, Clone)]
pub struct Blob<'a> {
    /// What it is.
    pub descriptor: &'a Descriptor,
    /// Where it is.
    pub place: Place<'a>,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Here.
    Memory(&'a [u8]),
    /// In our store.
    Store,
    /// A base image's: in the store, or else there.
    Origin(&'a BlobOrigin),
}

impl Blob<'_> {
    /// Its bytes; the stream fails at the end if they are not what the descriptor says. What this process has written is
    /// not hashed again.
    ///
    /// # Errors
    /// The blob cannot be had.
    pub fn open(&self, tools: &Tools<'_>) -> io::Result<Box<dyn Read + Send>> {
        let Self { descriptor, place } = self;
        match place {
            Place::Memory(bytes) => Ok(Box::new(io::Cursor::new(bytes.to_vec()))),
            Place::Origin(origin) => tools.fetcher.open(descriptor, origin),
            Place::Store => match self.own_file(tools)? {
                Some(file) => Ok(Box::new(file)),
                None => tools.fetcher.open_stored(descriptor).map_err(io::Error::other),
            },
        }
    }

    /// Its file, if that is one which this process has written and hashed.
    ///
    /// # Errors
    /// The blob cannot be had.
    pub fn own_file(&self, tools: &Tools<'_>) -> io::Result<Option<File>> {
        let store = tools.fetcher.store();
        store.open_own_blob(&self.descriptor.digest).map_err(io::Error::other)
    }

    /// What a failure to read it becomes.
    pub fn failed(&self) -> impl Fn(io::Error) -> ExportError {
        let digest = self.descriptor.digest;
        move |source| ExportError::Blob { digest, source }
    }
}

/// The layers and configs of all images by digest, each once.
pub fn contents(assembled: &Assembled) -> BTreeMap<Sha256Digest, Blob<'_>> {
    let mut blobs = BTreeMap::new();
    for image in &assembled.images {
        let config = Blob { descriptor: &image.config, place: Place::Memory(&image.config_bytes) };
        blobs.insert(image.config.digest, config);
        for layer in &image.layers {
            let place = layer.origin.as_ref().map_or(Place::Store, Place::Origin);
            blobs.insert(layer.descriptor.digest, Blob { descriptor: &layer.descriptor, place });
        }
    }
    blobs
}

/// The manifests and, after them, the index.
pub fn manifests(assembled: &Assembled) -> Vec<Blob<'_>> {
    let images = assembled.images.iter().map(|image| (&image.manifest, image.manifest_bytes.as_slice()));
    let index = assembled.index.iter().map(|index| (&assembled.root, index.as_slice()));
    let blob = |(descriptor, bytes)| Blob { descriptor, place: Place::Memory(bytes) };
    images.chain(index).map(blob).collect()
}

/// Does something with each blob, several at the same time, the largest first. After a failure no further blob is
/// begun; the failure of the blob that comes first in that order is returned.
///
/// # Errors
/// What `work` gives.
pub fn in_parallel<'a>(
    blobs: impl IntoIterator<Item = Blob<'a>>,
    work: impl Fn(&Blob<'a>) -> Result<(), ExportError> + Sync,
) -> Result<(), ExportError> {
    let mut blobs: Vec<_> = blobs.into_iter().collect();
    blobs.sort_by_key(|blob| (std::cmp::Reverse(blob.descriptor.size), blob.descriptor.digest));
    parallel::in_parallel(&blobs, PARALLEL, work)
}

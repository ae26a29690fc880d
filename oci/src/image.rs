//! From a name to one image: index → platform → manifest → config, every step verified against the one before.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use crate::{
    config::ImageConfig,
    descriptor::{Descriptor, MediaType},
    digest::{DiffId, Sha256Digest},
    document::{self, DocumentError, Found},
    layer::{BaseLayer, BlobOrigin},
    layout::{self, LayoutArchive, LayoutError},
    manifest::Manifest,
    platform::Platform,
    reference::Reference,
    registry::{Registry, RegistryError},
    store::{Store, StoreError},
};

/// Why a name is not an image we can use.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout did not give it.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The image of a registry is not one, or not for this platform.
    #[error("cannot use {reference}")]
    Document {
        /// Which.
        reference: Box<Reference>,
        /// Why not.
        #[source]
        source: Box<DocumentError>,
    },
    /// A config broke off.
    #[error("cannot read the config of {reference}")]
    Read {
        /// Which image's.
        reference: Box<Reference>,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Whether the image exists, but not for the platform that was asked for.
    pub fn is_missing_platform(&self) -> bool {
        let source = match self {
            Self::Document { source, .. } | Self::Layout(LayoutError::Document { source, .. }) => source,
            _ => return false,
        };
        matches!(**source, DocumentError::NoPlatform { .. })
    }
}

/// An image, resolved down to its config. No layer has been touched.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// Digest of the platform's manifest.
    pub manifest_digest: Sha256Digest,
    /// Digest of what the name points at: an index, or that manifest.
    pub root_digest: Sha256Digest,
    /// The manifest. It has as many layers as the config has diff IDs, all of types that can be unpacked.
    pub manifest: Manifest,
    /// The config.
    pub config: ImageConfig,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
}

impl ResolvedImage {
    /// The layers with their diff IDs, the base first; their blobs can be had from `origin`.
    pub fn base_layers(&self, origin: &BlobOrigin) -> Vec<BaseLayer> {
        let layers = self.manifest.layers.iter().zip(&self.config.rootfs.diff_ids);
        let layer = |(descriptor, diff_id): (&Descriptor, &DiffId)| BaseLayer {
            diff_id: *diff_id,
            descriptor: descriptor.clone(),
            origin: origin.clone(),
        };
        layers.map(layer).collect()
    }
}

/// Resolves an image of a registry. A tag is asked for once; everything below it goes by digest.
///
/// # Errors
/// [`ImageError`].
pub fn resolve_registry(
    registry: &Registry,
    reference: &Reference,
    platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    RegistryImage { registry, reference, store: None, find: &|_| None }.resolve(platform)
}

/// Finds a document by its digest somewhere else than in a registry. What it gives is held against the digest.
pub type FindDocument = dyn Fn(&Sha256Digest) -> Option<Vec<u8>> + Send + Sync;

/// As [`resolve_registry`], with the documents of images that this store has seen before, or that `find` finds: then the
/// registry is asked only what the tag points at (by HEAD, which registries that count pulls do not count), and nothing
/// for a digest.
///
/// # Errors
/// [`ImageError`]. A store that cannot be read or written is passed over.
pub fn resolve_registry_with(
    registry: &Registry,
    store: &Store,
    find: &FindDocument,
    reference: &Reference,
    platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    RegistryImage { registry, reference, store: Some(store), find }.resolve(platform)
}

/// Resolves an image of an OCI layout, a directory or a tar that holds one; `selector` is a tag or a digest.
///
/// # Errors
/// [`ImageError::Layout`].
pub fn resolve_layout(
    directory: &Path,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    if directory.is_file() {
        return resolve_archive(&LayoutArchive::open(directory)?, selector, platform);
    }
    let found = layout::find_image(directory, selector, platform)?;
    let config_bytes = layout::read_document(directory, &found.manifest.config)?;
    let config = document::image_config(&found.manifest, &config_bytes).map_err(|source| {
        LayoutError::Document { directory: directory.to_owned(), source: Box::new(source) }
    })?;
    let (manifest_digest, root_digest) = (found.descriptor.digest, found.root_digest);
    Ok(ResolvedImage { manifest_digest, root_digest, manifest: found.manifest, config, config_bytes })
}

fn resolve_archive(
    archive: &LayoutArchive,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    let wrong =
        |source| LayoutError::Document { directory: archive.path().to_owned(), source: Box::new(source) };
    let root = archive.find_root(selector)?;
    let root_digest = root.descriptor.digest;
    let mut read = |descriptor: &Descriptor| archive.read_document(descriptor).map_err(Selected::Layout);
    let (found, manifest) = document::select(root, platform, &mut read).map_err(|failure| match failure {
        Selected::Layout(error) => error,
        Selected::Document(error) => wrong(error),
    })?;
    let config_bytes = archive.read_document(&manifest.config)?;
    let config = document::image_config(&manifest, &config_bytes).map_err(wrong)?;
    Ok(ResolvedImage {
        manifest_digest: found.descriptor.digest,
        root_digest,
        manifest,
        config,
        config_bytes,
    })
}

/// Why nothing was selected in an archive.
enum Selected {
    Layout(LayoutError),
    Document(DocumentError),
}

impl From<DocumentError> for Selected {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

/// One repository as a source of documents.
pub(crate) struct RegistryImage<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) reference: &'a Reference,
    /// Where documents are kept.
    pub(crate) store: Option<&'a Store>,
    /// Who may have one that is not.
    pub(crate) find: &'a FindDocument,
}

impl RegistryImage<'_> {
    fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, ImageError> {
        let root = self.root()?;
        let root_digest = root.descriptor.digest;
        let mut read = |descriptor: &Descriptor| self.manifest(descriptor);
        let selected = document::select(root, platform, &mut read);
        let (found, manifest) = selected.map_err(|failure| self.failed(failure))?;
        let config_bytes = self.config(&manifest.config)?;
        let config =
            document::image_config(&manifest, &config_bytes).map_err(|error| self.unusable(error))?;
        Ok(ResolvedImage {
            manifest_digest: found.descriptor.digest,
            root_digest,
            manifest,
            config,
            config_bytes,
        })
    }

    pub(crate) fn root(&self) -> Result<Found, ImageError> {
        if let Some(found) = self.known_root()? {
            return Ok(found);
        }
        let fetched = self.registry.manifest(self.reference)?;
        self.keep(&fetched.bytes);
        let descriptor = Descriptor::new(fetched.media_type, fetched.digest, fetched.bytes.len() as u64);
        Ok(Found { descriptor, bytes: fetched.bytes })
    }

    /// What the reference points at, if it has been seen before. A kept document that does not say itself what it is
    /// is only used where the registry does.
    fn known_root(&self) -> Result<Option<Found>, ImageError> {
        if self.store.is_none() {
            return Ok(None);
        }
        let announced = match self.reference.digest {
            Some(digest) => (digest, None),
            // What does not exist is told better by the request for it.
            None => match self.registry.resolve(self.reference)? {
                Some(descriptor) => (descriptor.digest, Some(descriptor.media_type)),
                None => return Ok(None),
            },
        };
        let (digest, media_type) = announced;
        let found = self.kept(&digest).and_then(|bytes| {
            let media_type = document::media_type(media_type.as_ref(), &bytes).ok()?;
            Some(Found { descriptor: Descriptor::new(media_type, digest, bytes.len() as u64), bytes })
        });
        Ok(found)
    }

    fn known(&self, descriptor: &Descriptor) -> Option<Vec<u8>> {
        let bytes = self.kept(&descriptor.digest)?;
        document::verify(descriptor, &bytes).is_ok().then_some(bytes)
    }

    /// A document that was kept, or is found; then it is kept.
    fn kept(&self, digest: &Sha256Digest) -> Option<Vec<u8>> {
        let store = self.store?;
        kept(store, digest).or_else(|| {
            let bytes = (self.find)(digest).filter(|bytes| Sha256Digest::of(bytes) == *digest)?;
            self.keep(&bytes);
            Some(bytes)
        })
    }

    /// What cannot be kept is asked for again next time.
    fn keep(&self, bytes: &[u8]) {
        let Some(store) = self.store else { return };
        let _ = store.blob_writer().and_then(|mut blob| {
            blob.write_all(bytes).map_err(|source| StoreError::Io {
                action: "write",
                path: store.root().to_owned(),
                source,
            })?;
            blob.commit()
        });
    }

    /// A manifest or index below the root.
    pub(crate) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        document::check_size(descriptor.size).map_err(|error| self.unusable(error))?;
        self.manifest(descriptor).map_err(|failure| self.failed(failure))
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Failure> {
        if let Some(bytes) = self.known(descriptor) {
            return Ok(bytes);
        }
        let fetched = self.registry.manifest(&self.reference.with_digest(descriptor.digest))?;
        document::verify(descriptor, &fetched.bytes)?;
        if fetched.media_type != descriptor.media_type {
            let (announced, body): (MediaType, _) = (descriptor.media_type.clone(), fetched.media_type);
            return Err(DocumentError::MediaType { announced, body }.into());
        }
        self.keep(&fetched.bytes);
        Ok(fetched.bytes)
    }

    /// Asked for twice where what comes is not it: bytes that were damaged on their way are not the image's fault.
    pub(crate) fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        document::check_size(descriptor.size).map_err(|error| self.unusable(error))?;
        if let Some(bytes) = self.known(descriptor) {
            return Ok(bytes);
        }
        let read = |source| ImageError::Read { reference: Box::new(self.reference.clone()), source };
        let attempt = || self.registry.pull_blob(self.reference, descriptor).map(read_to_end);
        let bytes = match attempt()? {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => attempt()?.map_err(read)?,
            result => result.map_err(read)?,
        };
        self.keep(&bytes);
        Ok(bytes)
    }

    fn failed(&self, failure: Failure) -> ImageError {
        match failure {
            Failure::Registry(error) => error.into(),
            Failure::Document(error) => self.unusable(error),
        }
    }

    fn unusable(&self, source: DocumentError) -> ImageError {
        ImageError::Document { reference: Box::new(self.reference.clone()), source: Box::new(source) }
    }
}

/// A document of the store, hashed: a damaged one is as good as none.
fn kept(store: &Store, digest: &Sha256Digest) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    store.open_blob(digest).ok()?.take(document::MAX_SIZE + 1).read_to_end(&mut bytes).ok()?;
    (Sha256Digest::of(&bytes) == *digest).then_some(bytes)
}

fn read_to_end(mut reader: Box<dyn Read + Send>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(|_| bytes)
}

/// Either half of what [`document::select`] may fail with here.
#[derive(Debug)]
enum Failure {
    Registry(RegistryError),
    Document(DocumentError),
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

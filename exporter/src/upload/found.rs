//! Images that exist already, on their way to registries: from an OCI layout, a tar of one, or another registry.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    sync::Arc,
};

use oci::{
    Descriptor, MediaType, Platform, Reference, Sha256Digest,
    document::{self, Document as Parsed, DocumentError, Found},
    documents::Documents,
    image::ImageError,
    manifest::Manifest,
};

use super::parcel::{Blob, BlobSource, Document, Parcel, Place};

/// Why an image that exists cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// It cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is no image.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

impl Parcel {
    /// What lies there, whole; or, with a platform, the only manifest for that. Layers that may not be distributed are left
    /// where their URLs say they are.
    ///
    /// # Errors
    /// [`FoundError`]: every document is read and verified; the blobs are when they are sent.
    pub fn found(documents: &Documents, platform: Option<&Platform>) -> Result<Self, FoundError> {
        let root = documents.root()?;
        let root = match platform {
            None => root,
            Some(platform) => {
                let mut read = |descriptor: &Descriptor| Ok(documents.document(descriptor)?);
                let (found, manifest) = document::select::<FoundError>(root, platform, &mut read)?;
                is_for(documents, &found.descriptor, &manifest, platform)?;
                found
            }
        };
        let source: Arc<dyn BlobSource> = Arc::new(Source(documents.clone()));
        let mut walk =
            Walk { documents, source, seen: BTreeSet::new(), blobs: Vec::new(), found: Vec::new() };
        walk.visit(root, 0)?;
        Ok(Self::new(walk.blobs, walk.found))
    }

    /// Manifests, each with the place where what it names lies, below an index of them.
    ///
    /// # Errors
    /// One of them makes no sense.
    pub fn joined(manifests: &[(Documents, Found)], index: Document) -> Result<Self, ImageError> {
        let (mut blobs, mut documents) = (Vec::new(), Vec::new());
        for (place, Found { descriptor, bytes }) in manifests {
            let parsed = Parsed::parse(&descriptor.media_type, bytes);
            if let Parsed::Manifest(manifest) = parsed.map_err(|error| place.unusable(error))? {
                let source: Arc<dyn BlobSource> = Arc::new(Source(place.clone()));
                blobs.extend(named_by(&manifest, &source));
            }
            documents.push(Document { descriptor: descriptor.clone(), bytes: bytes.clone() });
        }
        documents.push(index);
        Ok(Self::new(blobs, documents))
    }
}

/// Refuses an image for another platform: a manifest that no index names a platform for is chosen whatever its own is.
fn is_for(
    documents: &Documents,
    descriptor: &Descriptor,
    manifest: &Manifest,
    platform: &Platform,
) -> Result<(), FoundError> {
    let is_config = matches!(manifest.config.media_type, MediaType::OciConfig | MediaType::DockerConfig);
    let own = match &descriptor.platform {
        Some(own) => own.clone(),
        None if is_config => {
            document::image_config(manifest, &documents.document(&manifest.config)?)?.platform()
        }
        None => return Ok(()),
    };
    if own.satisfies(platform) {
        return Ok(());
    }
    Err(DocumentError::NoPlatform { platform: Box::new(platform.clone()), available: vec![own.to_string()] }
        .into())
}

/// Collects an image from its root down.
struct Walk<'a> {
    documents: &'a Documents,
    source: Arc<dyn BlobSource>,
    seen: BTreeSet<Sha256Digest>,
    blobs: Vec<Blob>,
    found: Vec<Document>,
}

impl Walk<'_> {
    /// What a document names, then the document.
    fn visit(&mut self, Found { descriptor, bytes }: Found, depth: usize) -> Result<(), FoundError> {
        if !self.seen.insert(descriptor.digest) {
            return Ok(());
        }
        match Parsed::parse(&descriptor.media_type, &bytes)? {
            Parsed::Manifest(manifest) => self.take(&manifest),
            Parsed::Index(_) if depth > document::MAX_DEPTH => return Err(DocumentError::TooDeep.into()),
            Parsed::Index(index) => {
                for descriptor in index.manifests {
                    let bytes = self.documents.document(&descriptor)?;
                    self.visit(Found { descriptor, bytes }, depth + 1)?;
                }
            }
        }
        self.found.push(Document { descriptor, bytes });
        Ok(())
    }

    fn take(&mut self, manifest: &Manifest) {
        self.blobs.extend(named_by(manifest, &self.source));
    }
}

/// The blobs of a manifest that may be brought elsewhere.
fn named_by<'a>(manifest: &'a Manifest, source: &'a Arc<dyn BlobSource>) -> impl Iterator<Item = Blob> + 'a {
    let layers = manifest.layers.iter().filter(|layer| is_distributable(&layer.media_type));
    let blob = |descriptor: &Descriptor| Blob {
        descriptor: descriptor.clone(),
        place: Place::Source(Arc::clone(source)),
    };
    layers.chain([&manifest.config]).map(blob)
}

/// Windows base layers once were not to leave the servers of their maker (image-spec, "Non-Distributable Layers").
fn is_distributable(media_type: &MediaType) -> bool {
    let name = media_type.as_str();
    !name.contains("nondistributable") && !name.contains(".foreign.")
}

struct Source(Documents);

impl BlobSource for Source {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        self.0.open_blob(descriptor)
    }

    fn home(&self) -> Option<&Reference> {
        self.0.repository()
    }
}

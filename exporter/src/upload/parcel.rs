//! What is pushed: blobs with where their bytes are, and the documents that name them.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::Arc,
};

use oci::{BlobOrigin, Descriptor, Reference, Sha256Digest, fetch::Fetcher};

use crate::{assemble::Assembled, outputs::ExportError, seal::SealedLayer};

/// Digits of a commit's hash that name it, as `git rev-parse --short` and `{git.short}` have them.
const SHORT: usize = 7;

/// An image, or an index of images, on its way to a registry.
#[derive(Clone)]
pub struct Parcel {
    /// Layers and configs, each once.
    pub(super) blobs: BTreeMap<Sha256Digest, Blob>,
    /// Manifests and indexes, each after what it names; a name will point at the last one.
    pub(super) documents: Vec<Document>,
}

/// A manifest or index.
#[derive(Debug, Clone)]
pub struct Document {
    /// What it is.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A layer or config.
#[derive(Clone)]
pub struct Blob {
    /// What it is.
    pub descriptor: Descriptor,
    /// Where its bytes are.
    pub place: Place,
}

/// Where the bytes of a blob are.
#[derive(Clone)]
pub enum Place {
    /// Here.
    Memory(Arc<[u8]>),
    /// In the store.
    Store(Fetcher),
    /// A base image's: in the store, or else there.
    Origin(Fetcher, BlobOrigin),
    /// Wherever this finds them.
    Source(Arc<dyn BlobSource>),
}

/// Blobs that are neither in the store nor in a registry.
pub trait BlobSource: Send + Sync {
    /// A verified stream of a blob, from its beginning: it fails at its end if it was not what the descriptor says.
    ///
    /// # Errors
    /// It cannot be had.
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>>;

    /// The repository they lie in, where they can be mounted from.
    fn home(&self) -> Option<&Reference> {
        None
    }
}

impl Parcel {
    /// Blobs, and the documents that name them: each after what it names, the one that names will point at last.
    ///
    /// # Panics
    /// Without a document.
    pub fn new(blobs: impl IntoIterator<Item = Blob>, documents: Vec<Document>) -> Self {
        assert!(!documents.is_empty(), "there is something to push");
        let blobs = blobs.into_iter().map(|blob| (blob.descriptor.digest, blob)).collect();
        Self { blobs, documents }
    }

    /// What a build has made.
    pub fn of(assembled: &Assembled, fetcher: &Fetcher) -> Self {
        let config = |image: &crate::AssembledImage| Blob {
            descriptor: image.config.clone(),
            place: Place::Memory(image.config_bytes.as_slice().into()),
        };
        let beside = |(descriptor, bytes): &(Descriptor, Vec<u8>)| Blob {
            descriptor: descriptor.clone(),
            place: Place::Memory(bytes.as_slice().into()),
        };
        let blobs = assembled.images.iter().flat_map(|image| {
            let layers = image.layers.iter().map(|layer| Blob::of(layer, fetcher));
            layers.chain([config(image)]).chain(image.beside.iter().map(beside))
        });
        let document = |descriptor: &Descriptor, bytes: &[u8]| Document {
            descriptor: descriptor.clone(),
            bytes: bytes.to_vec(),
        };
        let images = assembled.images.iter().map(|image| document(&image.manifest, &image.manifest_bytes));
        let index = assembled.index.iter().map(|index| document(&assembled.root, index));
        Self::new(blobs, images.chain(index).collect())
    }

    /// What a name will point at.
    pub fn root(&self) -> &Document {
        self.documents.last().expect("there is at least one")
    }

    /// Whether a name that the image has had before is likely to be this one. Of a commit's image it is one that says the
    /// commit; all others move from commit to commit, or are new, and what they stand for is no use.
    pub(super) fn is_named_like(&self, name: &Reference) -> bool {
        let Some(revision) = revision(&self.root().bytes) else { return true };
        let short = revision.get(..SHORT).unwrap_or(&revision);
        name.tag.as_ref().is_none_or(|tag| tag.contains(short))
    }

    /// All that the root names, in an order in which nothing names what is not there.
    pub(super) fn below_root(&self) -> &[Document] {
        &self.documents[..self.documents.len() - 1]
    }
}

/// The commit that a manifest or index says it was made of (image-spec, annotations.md, "Pre-Defined Annotation Keys").
fn revision(document: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        annotations: BTreeMap<String, String>,
    }
    let Annotated { mut annotations } = serde_json::from_slice(document).ok()?;
    annotations.remove("org.opencontainers.image.revision").filter(|revision| !revision.is_empty())
}

impl Blob {
    /// A layer: in the store, or where its base image is.
    pub fn of(layer: &SealedLayer, fetcher: &Fetcher) -> Self {
        let place = match &layer.origin {
            Some(origin) => Place::Origin(fetcher.clone(), origin.clone()),
            None => Place::Store(fetcher.clone()),
        };
        Self { descriptor: layer.descriptor.clone(), place }
    }

    /// Its bytes; the stream fails at the end if they are not what the descriptor says. What this process has written is
    /// not hashed again.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let Self { descriptor, place } = self;
        match place {
            Place::Memory(bytes) => Ok(Box::new(io::Cursor::new(Arc::clone(bytes)))),
            Place::Origin(fetcher, origin) => fetcher.open(descriptor, origin),
            Place::Source(source) => source.open(descriptor),
            Place::Store(fetcher) => {
                let own = fetcher.store().open_own_blob(&descriptor.digest).map_err(io::Error::other)?;
                match own {
                    Some(file) => Ok(Box::new(file)),
                    None => fetcher.open_stored(descriptor).map_err(io::Error::other),
                }
            }
        }
    }

    /// Whether nothing has to be downloaded to bring it there: what a step needs, too, is not downloaded twice.
    pub(super) fn is_at_hand(&self, destination: &oci::Reference) -> bool {
        let Self { descriptor, place } = self;
        match place {
            Place::Origin(fetcher, BlobOrigin::Registry(origin)) => {
                let can_be_mounted = origin.registry == destination.registry;
                can_be_mounted || fetcher.store().has_blob(&descriptor.digest, descriptor.size)
            }
            _ => true,
        }
    }

    /// Whether the same may go well later: not where the bytes themselves cannot be had here.
    pub(super) fn is_worth_another_try(&self, failure: &ExportError) -> bool {
        match failure {
            ExportError::Blob { .. } => matches!(self.place, Place::Origin(..)),
            _ => true,
        }
    }

    /// A repository that it may be mounted from, of any registry.
    pub(crate) fn home(&self) -> Option<&Reference> {
        match &self.place {
            Place::Origin(_, BlobOrigin::Registry(reference)) => Some(reference),
            Place::Source(source) => source.home(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use oci::MediaType;

    use super::*;

    #[test]
    fn of_a_commits_image_the_names_that_say_the_commit_are_likely() {
        let of = |text: &str| {
            let descriptor = Descriptor::of(MediaType::OciManifest, text.as_bytes());
            Parcel::new([], vec![Document { descriptor, bytes: text.into() }])
        };
        let revision = "org.opencontainers.image.revision";
        let of_commit = |commit: &str| of(&format!(r#"{{"annotations": {{"{revision}": "{commit}"}}}}"#));
        let name =
            |tag: &str| -> Reference { format!("h.example.org/app:{tag}").parse().expect("a reference") };
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for tag in [commit, "0123456", "v1-0123456789-dirty"] {
            assert!(of_commit(commit).is_named_like(&name(tag)), "{tag}");
        }
        for tag in ["v1", "main", "012345"] {
            assert!(!of_commit(commit).is_named_like(&name(tag)), "{tag}");
        }
        assert!(of_commit("mine").is_named_like(&name("mine")), "what the user says it is");
        for nobodys in ["{}", r#"{"annotations": {"a": "b"}}"#, r#"{"annotations": null}"#] {
            assert!(of(nobodys).is_named_like(&name("main")), "{nobodys}");
        }
        assert!(of_commit("").is_named_like(&name("main")));
        assert!(of_commit(commit).is_named_like(&Reference { tag: None, ..name("main") }), "by digest");
    }
}

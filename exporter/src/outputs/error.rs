//! Why an export failed: what an output cannot do, what a registry or a file system refused, what is damaged.

use std::{io, path::PathBuf};

use oci::{Platform, Reference, Sha256Digest, registry::RegistryError, store::StoreError};

use super::LoadError;
use crate::{archive::ArchiveError, seal::SealError};

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The output asks for what there is not.
    #[error("{0}")]
    Unsupported(&'static str),
    /// An output needs a name.
    #[error("pushing needs a name: give one with -t or name=")]
    NoName,
    /// A name for an image that is not built yet cannot have a digest.
    #[error("cannot name the image {0}: its digest is not known before it is built")]
    NameWithDigest(Box<Reference>),
    /// A name that a push by digest would not give.
    #[error("cannot push {0} by digest: it has a tag")]
    TagOfDigest(Box<Reference>),
    /// Two names would be the same tag of an OCI layout.
    #[error("cannot write both {0} and {1} to one OCI layout: its tags hold no repository")]
    SameTag(Box<Reference>, Box<Reference>),
    /// A file cannot appear there.
    #[error("cannot write {}: {reason}", path.display())]
    NoPlace {
        /// Where it should be.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// The directory holds something else.
    #[error("{} is neither empty nor an OCI layout", .0.display())]
    NotALayout(PathBuf),
    /// A file of an existing layout makes no sense.
    #[error("{} is damaged: {reason}", path.display())]
    DamagedLayout {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something outside the store cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done: `write`, `read`, ...
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A blob cannot be read.
    #[error("cannot read blob {digest}")]
    Blob {
        /// Which.
        digest: Sha256Digest,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the image cannot be read, or is not what its layer says.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// What the store knows of a layer cannot be read.
    #[error(transparent)]
    Tree(#[from] SealError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry refused or cannot be reached.
    #[error("cannot push {reference}")]
    Push {
        /// The name that was being pushed.
        reference: Box<Reference>,
        /// Why not.
        #[source]
        source: Box<RegistryError>,
    },
    /// The registry confirmed blobs that it does not have.
    #[error("{reference}: the registry does not keep blob {digest}")]
    Vanished {
        /// The name that was being pushed.
        reference: Box<Reference>,
        /// The blob.
        digest: Sha256Digest,
    },
    /// A name points at something else right after it was put.
    #[error("{reference} was pushed as {ours}, but {}", pointing(found))]
    Overwritten {
        /// The name.
        reference: Box<Reference>,
        /// What was pushed.
        ours: Sha256Digest,
        /// What the name points at.
        found: Option<Sha256Digest>,
    },
    /// One archive for docker holds one image.
    #[error("a docker archive holds the image of one platform, not of {0}")]
    SeveralPlatforms(usize),
    /// Two platforms have a file in one place.
    #[error(
        "cannot write {} of {second} over that of {first}: with platform-split=false no file may be of two platforms",
        String::from_utf8_lossy(path)
    )]
    Collision {
        /// The file's path in both images.
        path: Vec<u8>,
        /// Whose file was there.
        first: Box<Platform>,
        /// Whose file comes next.
        second: Box<Platform>,
    },
    /// What was to take the image did not.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The user stopped the export.
    #[error("stopped while exporting")]
    Cancelled,
}

fn pointing(found: &Option<Sha256Digest>) -> String {
    match found {
        Some(found) => format!("the registry says it is {found}: somebody else has pushed it"),
        None => "the registry does not know it".to_owned(),
    }
}

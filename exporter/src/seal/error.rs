//! Why a layer could not be sealed: what the build made that no layer can hold, or what failed here.

use std::{io, path::PathBuf, sync::Arc};

use oci::{
    Descriptor, DiffId, Sha256Digest, TreeDigest, elsewhere::bring::BringError, store::StoreError,
    tree::TreeError,
};
use solver::StepFailure;

use crate::{archive::ArchiveError, layer::LayerError};

/// Why a layer could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Threads for compression could not be started.
    #[error("cannot start the threads that compress layers")]
    Threads(#[source] Arc<io::Error>),
    /// A file of the store that describes a built layer cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A tree file is damaged.
    #[error("{} is damaged", path.display())]
    DamagedTree {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; `None` if it is a good tree, but another one.
        #[source]
        source: Option<TreeError>,
    },
    /// The files of a snapshot are not what the layer's tree says they are. Without the snapshot the step that made
    /// it can be run again.
    #[error("snapshot {} is damaged: {:?}: {what}", chain.hex(), String::from_utf8_lossy(path))]
    Damaged {
        /// Digest of the snapshot whose directory holds the file.
        chain: TreeDigest,
        /// The built layer whose file it is.
        tree: TreeDigest,
        /// The file, by its path in the image.
        path: Vec<u8>,
        /// What is wrong with it.
        what: String,
    },
    /// A file of a context is not what it was when its step was keyed.
    #[error("changed while reading: {}", String::from_utf8_lossy(path))]
    Changed {
        /// The file, by its path in the image.
        path: Vec<u8>,
    },
    /// A file cannot be had where its step took it from, which is not because it has changed.
    #[error("cannot read {:?} for its layer", String::from_utf8_lossy(path))]
    Origin {
        /// The file, by its path in the image.
        path: Vec<u8>,
        /// Why not, and what to do about it.
        #[source]
        source: Box<StepFailure>,
    },
    /// The lock of a layer cannot be had.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing holds the bytes of a layer any more: no directory, no step of this build, no other blob.
    #[error("the files of layer {} are gone from the store", tree.hex())]
    Gone {
        /// Digest of the snapshot that ends in the layer.
        chain: TreeDigest,
        /// The built layer.
        tree: TreeDigest,
    },
    /// A layer of a remote cache could not be brought.
    #[error(transparent)]
    Elsewhere(Box<BringError>),
    /// The layer's tar could not be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The blob could not be written.
    #[error("cannot write a layer's blob to the store {}", root.display())]
    Write {
        /// The store.
        root: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A layer of the base image has a type that images in the OCI format cannot have.
    #[error("layer {} of the base image has the unsupported media type {}", .0.digest, .0.media_type)]
    MediaType(Box<Descriptor>),
    /// A layer of the base image that is to be packed anew cannot be read.
    #[error("cannot unpack layer {digest} of the base image")]
    Base {
        /// Its blob.
        digest: Sha256Digest,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A layer of the base image is not what the image's config says.
    #[error(
        "layer {digest} of the base image unpacks to {found}, and not to {wanted} as the image's config has it"
    )]
    DiffId {
        /// Its blob.
        digest: Sha256Digest,
        /// What the config says.
        wanted: DiffId,
        /// What its tar is.
        found: DiffId,
    },
    /// The user stopped the build.
    #[error("stopped while compressing a layer")]
    Cancelled,
}

impl SealError {
    /// Whether the build made something that no layer can hold, rather than the machine failing.
    pub fn is_the_builds_own(&self) -> bool {
        let impossible = |error: &LayerError| match error {
            LayerError::ReservedName(_) => true,
            LayerError::Archive(error) => matches!(error, ArchiveError::Header { .. }),
        };
        match self {
            Self::Changed { .. } => true,
            Self::Layer(error) => impossible(error),
            _ => false,
        }
    }
}

impl From<BringError> for SealError {
    fn from(error: BringError) -> Self {
        match error {
            BringError::Cancelled => Self::Cancelled,
            BringError::Store(error) => error.into(),
            error => Self::Elsewhere(Box::new(error)),
        }
    }
}

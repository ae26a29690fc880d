//! Why a snapshot could not be had or made.

use std::{
    io,
    path::{Path, PathBuf},
};

use oci::{
    Sha256Digest, TreeDigest,
    elsewhere::bring::BringError,
    store::{StoreError, checked::CheckedError},
};

use super::PullError;
use crate::{
    catalogue::CatalogueError, copy::CopyError, fuse::CloseError, imprint::ImprintError, mount::MountError,
    rootfs::shown, unpack::UnpackError,
};

/// Why a snapshot could not be had or made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is known of a layer cannot be read.
    #[error(transparent)]
    Meta(#[from] CheckedError),
    /// A layer of a base image could not be unpacked.
    #[error("cannot unpack layer {blob} of the base image")]
    Base {
        /// Its blob.
        blob: Sha256Digest,
        /// Why not.
        #[source]
        source: Box<PullError>,
    },
    /// What the store knows of a layer of a base image cannot be read at the moment.
    #[error("cannot read {}", path.display())]
    Catalogue {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CatalogueError,
    },
    /// A device that nobody would see.
    #[error(
        "fuse-overlayfs, which merges layers here, does not show the device /{} to later steps",
        shown(path)
    )]
    Unseen {
        /// Where it is.
        path: Vec<u8>,
    },
    /// What a step has written may not all be there.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// A layer of a base image could not be completed.
    #[error("cannot unpack layer {blob} of the base image")]
    Settle {
        /// Its blob.
        blob: Sha256Digest,
        /// Why not.
        #[source]
        source: UnpackError,
    },
    /// What was unpacked cannot be read again.
    #[error("cannot read what was unpacked of layer {blob} of the base image")]
    Imprint {
        /// Its blob.
        blob: Sha256Digest,
        /// Why not.
        #[source]
        source: Box<ImprintError>,
    },
    /// What the store keeps of a layer is damaged. It is out of the way by now, so that it is made again when somebody
    /// needs it.
    #[error("the snapshot {} is damaged: {what}", path.display())]
    Damaged {
        /// Where it was.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The same, but another build may be using it, so it stays where it is.
    #[error("the snapshot {} is damaged, and another build uses it: {what}", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The files of a step's layer were in the store and no longer are.
    #[error("the layer {layer} that an earlier step made is gone from the store: {} is missing", path.display())]
    Gone {
        /// The layer.
        layer: TreeDigest,
        /// Where it was.
        path: PathBuf,
    },
    /// A layer of a remote cache could not be brought.
    #[error(transparent)]
    Elsewhere(Box<BringError>),
    /// The files of a layer could not be written.
    #[error(transparent)]
    Files(Box<CopyError>),
    /// A blob does not hold the files of the layer it was made of.
    #[error("the blob {blob} of layer {layer} is damaged: {what}")]
    Sealed {
        /// The layer.
        layer: TreeDigest,
        /// Its blob.
        blob: Sha256Digest,
        /// What is wrong.
        what: String,
    },
    /// The tree of a layer is damaged.
    #[error("{} is damaged", path.display())]
    Tree {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: oci::tree::TreeError,
    },
    /// More layers than the kernel merges.
    #[error("a step would stand on {count} layers, and overlayfs merges {most} at most{}", in_base(*of_base, base.as_deref()))]
    TooManyLayers {
        /// How many there are.
        count: usize,
        /// How many there can be.
        most: usize,
        /// How many of them are of the base image.
        of_base: usize,
        /// The base image, where there is one.
        base: Option<String>,
    },
    /// The file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The disk has no room for the files of a layer.
    #[error("{source} (the files of the layer take about {wanted} bytes)")]
    Full {
        /// What they take, in bytes.
        wanted: u64,
        /// What could not be written.
        #[source]
        source: Box<SnapshotError>,
    },
    /// A device among the files of a step, where nothing keeps the step from it.
    #[error(
        "a step in a chroot could open the device at /{}, and nothing would keep it from that",
        String::from_utf8_lossy(path)
    )]
    Device {
        /// Where it is in the image, without a slash in front.
        path: Vec<u8>,
    },
    /// The clock stands before 2025.
    #[error("this machine's clock is wrong: it stands before 2025, when the output format was fixed")]
    Clock,
    /// The user stopped the build.
    #[error("cancelled")]
    Cancelled,
}

fn in_base(count: usize, base: Option<&str>) -> String {
    base.map(|base| format!(" ({count} are of the base image {base})")).unwrap_or_default()
}

impl From<CopyError> for SnapshotError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Cancelled => Self::Cancelled,
            error => Self::Files(Box::new(error)),
        }
    }
}

impl SnapshotError {
    /// Whether the store, or a remote cache, has lost something that a further build would make again by itself.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::InUse { .. } | Self::Gone { .. } => true,
            Self::Elsewhere(error) => matches!(**error, BringError::Lost { .. }),
            _ => false,
        }
    }

    /// The error of writing files that take so many bytes.
    pub(super) fn of_files(self, wanted: u64) -> Self {
        match crate::error::is_out_of_space(&self) {
            true => Self::Full { wanted, source: Box::new(self) },
            false => self,
        }
    }

    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

//! Why files could not be copied: what the Dockerfile asks for in vain, and what the system refused.

use solver::op::SEVERAL_SOURCES;

use super::BadMode;
use crate::{
    archive::ArchiveError,
    beneath::OnDiskOnly,
    diff::DiffError,
    listing::{ListError, lookup::TooManyLinks},
    rootfs::PathError,
    snapshot::SnapshotError,
    users::UserError,
};

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source cannot be picked or read.
    #[error(transparent)]
    Source(ListError),
    /// A file would take the place of a directory.
    #[error("cannot replace to directory {0} with file")]
    ReplacesDirectory(String),
    /// A directory would be merged into something else.
    #[error("cannot copy to non-directory: {0}")]
    NonDirectory(String),
    /// Several sources would go to one name.
    #[error("{SEVERAL_SOURCES}: {first} and {second} cannot both be {destination}")]
    SeveralSources {
        /// The destination.
        destination: String,
        /// The first source.
        first: String,
        /// The next one.
        second: String,
    },
    /// A part of the destination is something else.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// A device, of an archive or an image, that this user cannot make: another image would come out.
    #[error("{0} is a device, which only root outside of a user namespace can make")]
    Device(String),
    /// `--chown` or WORKDIR's user is nobody.
    #[error(transparent)]
    User(#[from] UserError),
    /// `--chmod` is no mode.
    #[error(transparent)]
    Mode(#[from] BadMode),
    /// An archive cannot be unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Something that was copied cannot be part of a layer.
    #[error(transparent)]
    Layer(#[from] DiffError),
    /// What is below cannot be had.
    #[error(transparent)]
    Below(Box<SnapshotError>),
    /// It cannot be planned, and must be written.
    #[error(transparent)]
    OnDiskOnly(#[from] OnDiskOnly),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The system said no.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl From<SnapshotError> for CopyError {
    fn from(error: SnapshotError) -> Self {
        Self::Below(Box::new(error))
    }
}

impl From<TooManyLinks> for CopyError {
    fn from(error: TooManyLinks) -> Self {
        Self::Source(error.into())
    }
}

impl From<ListError> for CopyError {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Cancelled => Self::Cancelled,
            error => Self::Source(error),
        }
    }
}

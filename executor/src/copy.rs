//! COPY, ADD and WORKDIR.

use std::os::fd::BorrowedFd;

use oci::TreeDigest;
use solver::op::{Copy, MakeDir, Selector};

use crate::listing::{Listing, Owners};

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source names nothing.
    #[error("\"/{0}\": not found")]
    NotFound(String),
    /// A source is not what was keyed any more.
    #[error("changed while reading: {0}")]
    Changed(String),
    /// The system said no.
    #[error(transparent)]
    Path(#[from] crate::rootfs::PathError),
}

/// What a selector can pick of a snapshot. `owners` are those that the snapshot's disk could not hold.
///
/// # Errors
/// A source is not there, or cannot be read.
pub fn list(view: BorrowedFd<'_>, owners: &Owners, selector: &Selector) -> Result<Listing, CopyError> {
    let _ = (view, owners);
    Err(CopyError::NotFound(selector.include.join(" ")))
}

/// Digest of what a selector picks of a snapshot: paths, kinds, modes, owners, layer times, contents, link targets,
/// attributes, hard-link groups, device numbers.
///
/// # Errors
/// A source is not there, or cannot be read.
pub fn select(view: BorrowedFd<'_>, owners: &Owners, selector: &Selector) -> Result<TreeDigest, CopyError> {
    list(view, owners, selector).map(|listing| listing.digest())
}

/// Copies into a mounted file system. `sources` are listings that hold at least what each item picks, one for each of
/// `copy.items`, in their order. Returns the owners that could not be set on disk.
///
/// # Errors
/// See [`CopyError`]; what was copied until then stays.
pub fn copy(copy: &Copy, sources: &[&Listing], root: BorrowedFd<'_>) -> Result<Owners, CopyError> {
    let _ = (sources, root);
    Err(CopyError::NotFound(copy.destination.clone()))
}

/// Makes a directory and its parents where they are missing (WORKDIR).
///
/// # Errors
/// See [`CopyError`].
pub fn make_dir(make: &MakeDir, root: BorrowedFd<'_>) -> Result<Owners, CopyError> {
    let _ = root;
    Err(CopyError::NotFound(make.path.clone()))
}

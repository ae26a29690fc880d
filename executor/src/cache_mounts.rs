//! Cache mounts: directories that stay from build to build (`RUN --mount=type=cache`).

use std::path::Path;

use solver::{Step, op::Exec};

use crate::{SnapshotError, Snapshots, sandbox::Rung};

/// The cache mounts of one store, in one build.
#[derive(Clone)]
pub struct CacheMounts {
    snapshots: Snapshots,
    rung: Rung,
}

/// Why a cache mount could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheMountError {
    /// Files could not be had.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The owner that it should have is none of this user's ids.
    #[error(
        "the cache mount at {target} cannot be given to {uid}:{gid}: this user has only one id, 0 in the build"
    )]
    OneIdOnly {
        /// Where it is mounted.
        target: String,
        /// User that it should belong to.
        uid: u32,
        /// Group that it should belong to.
        gid: u32,
    },
    /// Work in progress.
    #[error("RUN --mount=type=cache is not there yet")]
    Missing,
    /// The user stopped the build.
    #[error("cancelled")]
    Cancelled,
}

/// The cache mounts of a step, in use. Their locks are free again when it is dropped.
#[derive(Debug, Default)]
pub struct Held {}

impl CacheMounts {
    /// The cache mounts of the store that the snapshots are in. To be made once a build.
    pub fn new(snapshots: &Snapshots, rung: Rung) -> Self {
        Self { snapshots: snapshots.clone(), rung }
    }

    /// Gets all cache mounts of a step (none, mostly), making those that are not there yet. Says in the step's log what
    /// it waits for, and stops waiting when the step is to be cancelled.
    ///
    /// # Errors
    /// See [`CacheMountError`].
    pub fn acquire(&self, step: &Step<'_>, exec: &Exec) -> Result<Held, CacheMountError> {
        let _ = (&self.snapshots, self.rung, step);
        match exec.mounts.iter().any(|mount| matches!(mount, solver::op::Mount::Cache(_))) {
            true => Err(CacheMountError::Missing),
            false => Ok(Held::default()),
        }
    }
}

impl Held {
    /// The directory to mount for `exec.mounts[index]`; `None` if that is no cache mount.
    pub fn directory(&self, _index: usize) -> Option<&Path> {
        None
    }

    /// A directory to put on top of the lower directories of the step's root, where files need another time than they
    /// have there.
    pub fn fresh_root(&self) -> Option<&Path> {
        None
    }

    /// The same for the file system of the bind mount `exec.mounts[index]`: a directory to put on top of that
    /// snapshot's, before the mount's source is looked up in it.
    pub fn fresh(&self, _index: usize) -> Option<&Path> {
        None
    }

    /// To be called when no process of the step lives any more, however it ended, and before its changes are looked
    /// at: `upper` is where they arrived.
    ///
    /// # Errors
    /// The store or the changes cannot be written.
    pub fn release(self, _upper: &Path) -> Result<(), CacheMountError> {
        Ok(())
    }
}

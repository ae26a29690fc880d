//! The place where one step writes.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci::{ContentDigest, store::TempDir};

use super::{FILES, Meta, SnapshotError, meta::write_brought, open_directory};
use crate::{
    mount::{Overlay, OverlayMarks, OverlaySync, mount_overlay},
    unpack::copy_metadata,
};

/// A place for a step to write on top of a snapshot; gone when dropped without a commit.
#[derive(Debug)]
pub struct Writable {
    temp: TempDir,
    lowers: Vec<PathBuf>,
    marks: OverlayMarks,
}

impl Writable {
    pub(super) fn new(
        temp: TempDir,
        lowers: Vec<PathBuf>,
        marks: OverlayMarks,
    ) -> Result<Self, SnapshotError> {
        let writable = Self { temp, lowers, marks };
        for path in [writable.upper(), writable.work()] {
            fs::create_dir(&path).map_err(SnapshotError::io("create", &path))?;
        }
        writable.inherit_root()?;
        Ok(writable)
    }

    /// Where the step's changes arrive, in overlay format.
    pub fn upper(&self) -> PathBuf {
        self.temp.path().join(FILES)
    }

    /// The overlay's own working directory.
    pub fn work(&self) -> PathBuf {
        self.temp.path().join("work")
    }

    /// How the overlay marks opaque directories.
    pub fn marks(&self) -> OverlayMarks {
        self.marks
    }

    /// The directories below, topmost first; at least one.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// The merged file system, writable, as a detached mount: what is written appears in [`Writable::upper`]. Can be
    /// had once.
    ///
    /// # Errors
    /// The mount fails.
    pub fn mount(&self) -> Result<OwnedFd, SnapshotError> {
        let lowers: Vec<&Path> = self.lowers.iter().map(PathBuf::as_path).collect();
        let (upper, work) = (self.upper(), self.work());
        let writable = Some((upper.as_path(), work.as_path()));
        // The store is made durable as a whole before a build says that it is done.
        let sync = OverlaySync::Ignored;
        Ok(mount_overlay(&Overlay { lowers: &lowers, writable, marks: self.marks, sync })?)
    }

    /// What becomes a snapshot's directory.
    pub(super) fn finish(
        self,
        meta: &Meta,
        brought: &BTreeSet<ContentDigest>,
    ) -> Result<TempDir, SnapshotError> {
        // The root is no entry of a layer, so a change of its metadata would be seen here and nowhere else.
        self.inherit_root()?;
        let work = self.work();
        fs::remove_dir_all(&work).map_err(SnapshotError::io("remove", &work))?;
        let directory = self.temp.path();
        write_brought(directory, brought)?;
        meta.write(directory)?;
        Ok(self.temp)
    }

    /// The metadata of the merged root is that of the topmost directory's.
    fn inherit_root(&self) -> Result<(), SnapshotError> {
        let upper = self.upper();
        let copied = copy_metadata(open_directory(&self.lowers[0])?, open_directory(&upper)?);
        copied.map_err(|errno| SnapshotError::io("change", &upper)(errno.into()))
    }
}

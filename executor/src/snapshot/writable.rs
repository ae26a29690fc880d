//! The place where one step writes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use oci::{
    ContentDigest,
    store::{Store, TempDir},
};
use solver::Cancel;

use super::{FILES, Meta, SnapshotError, meta::write_brought, open_directory};
use crate::{
    copies::{self, Twins},
    copy::CopyError,
    diff::UpperKind,
    form::Form,
    fuse::{self, Merged},
    mount::{Overlay, OverlayMarks, OverlaySync, mount_overlay},
    rootfs::failed,
    sandbox::{FileTree, Root, Rung},
    unpack::copy_metadata,
};

/// A place for a step to write on top of a snapshot; gone when dropped without a commit.
#[derive(Debug)]
pub struct Writable {
    temp: TempDir,
    lowers: Vec<PathBuf>,
    written: Written,
}

#[derive(Debug)]
enum Written {
    /// To the upper directory of an overlay.
    Above(OverlayMarks),
    /// To a copy of what is below, with a place for what a chroot takes out of it.
    Within(Twins, TempDir),
}

impl Writable {
    pub(super) fn new(
        store: &Store,
        name: &str,
        lowers: Vec<PathBuf>,
        form: Form,
        cancel: &Cancel,
    ) -> Result<Self, SnapshotError> {
        let written = match form {
            Form::Layers(marks) => Written::Above(marks),
            Form::Copies => Written::Within(Twins::default(), store.temp_dir("aside")?),
        };
        let mut writable = Self { temp: store.temp_dir(name)?, lowers, written };
        for path in [writable.upper(), writable.work()] {
            fs::create_dir(&path).map_err(SnapshotError::io("create", &path))?;
        }
        writable.inherit_root()?;
        if let Written::Within(..) = writable.written {
            let (upper, below) = (open_directory(&writable.upper())?, open_directory(&writable.lowers[0])?);
            let twins = copies::fill(&upper, Some(&below), cancel)?;
            twins.part_from_what_follows();
            if let Written::Within(known, _) = &mut writable.written {
                *known = twins;
            }
        }
        Ok(writable)
    }

    /// Where the step's changes arrive.
    pub fn upper(&self) -> PathBuf {
        self.temp.path().join(FILES)
    }

    /// How the step's changes are to be read.
    pub fn kind(&self) -> UpperKind<'_> {
        match &self.written {
            Written::Above(marks) => UpperKind::Overlay(*marks),
            Written::Within(twins, _) => UpperKind::Copy(twins),
        }
    }

    /// Whether a step did something here to a file with several names that a copy keeps one, and an overlay parts.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn holds_together(&self) -> Result<bool, SnapshotError> {
        let Written::Within(twins, _) = &self.written else { return Ok(false) };
        let upper = open_directory(&self.upper())?;
        let has_changed = twins.has_changed_one(&upper).map_err(failed("looking at the changes of", b"/"));
        Ok(has_changed.map_err(CopyError::from)?)
    }

    /// The root file system of a sandbox that writes here. `fresh` is a directory in overlay format whose files lie on top of
    /// those below: the same ones with other times.
    ///
    /// # Errors
    /// Times cannot be changed; there is a device in it that nothing on that rung would keep the sandbox from.
    pub fn root(&mut self, rung: Rung, fresh: Option<&Path>) -> Result<Root, SnapshotError> {
        if let (Rung::Chroot, Written::Within(twins, aside)) = (rung, &self.written) {
            return match twins.device() {
                Some(path) => Err(SnapshotError::Device { path: path.to_vec() }),
                None => Ok(Root::Chroot { directory: self.upper(), aside: aside.path().to_owned() }),
            };
        }
        Ok(match self.tree(fresh)? {
            FileTree::Scratch { lowers, upper, work } => Root::Overlay { lowers, upper, work },
            FileTree::Place(copy) => Root::Directory(copy),
            FileTree::Merged(_) => unreachable!("it is written"),
        })
    }

    /// The same for a mount.
    ///
    /// # Errors
    /// Times cannot be changed.
    pub fn tree(&mut self, fresh: Option<&Path>) -> Result<FileTree, SnapshotError> {
        if let Written::Above(_) = self.written {
            let lowers = fresh.map(Path::to_owned).into_iter().chain(self.lowers.iter().cloned()).collect();
            return Ok(FileTree::Scratch { lowers, upper: self.upper(), work: self.work() });
        }
        let upper = self.upper();
        if let (Some(fresh), Written::Within(twins, _)) = (fresh, &mut self.written) {
            copies::restamp(&open_directory(&upper)?, &open_directory(fresh)?, twins)
                .map_err(CopyError::from)?;
        }
        Ok(FileTree::Place(upper))
    }

    /// The overlay's own working directory.
    fn work(&self) -> PathBuf {
        self.temp.path().join("work")
    }

    /// The root directory of the file system, writable: what is written appears in [`Writable::upper`]. Can be had once.
    ///
    /// # Errors
    /// The mount fails.
    pub fn mount(&self) -> Result<Merged, SnapshotError> {
        let Written::Above(marks) = self.written else {
            return open_directory(&self.upper()).map(Merged::by_kernel);
        };
        let lowers: Vec<&Path> = self.lowers.iter().map(PathBuf::as_path).collect();
        let (upper, work) = (self.upper(), self.work());
        let writable = Some((upper.as_path(), work.as_path()));
        // The store is made durable as a whole before a build says that it is done.
        let sync = OverlaySync::Ignored;
        Ok(mount_overlay(&Overlay { lowers: &lowers, writable, marks, sync })?)
    }

    /// Ends what [`Writable::mount`] gave, when all has been written.
    ///
    /// # Errors
    /// What was written may not all be there.
    pub fn unmount(&self, mounted: Merged) -> Result<(), SnapshotError> {
        Ok(fuse::close(mounted, &self.upper(), &self.lowers)?)
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

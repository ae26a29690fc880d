//! Files with another time than they have in their layers: copies in one more directory on top of them, for one step.
//!
//! The directory is in no snapshot. What the step does to a copy is compared with the file below, so a copy that is
//! not touched is in no layer; and a time that only a copy had is taken back from whatever the step has made of it
//! ([`restore`]), so that no layer tells of this machine's past.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, futimens, linkat, mkdirat, readlinkat,
        symlinkat,
    },
    io::Errno,
};
use solver::Cancel;

use super::{
    CacheMountError,
    sight::{Kind, Sight, go_on, time},
    times::Overrides,
};
use crate::{
    View,
    rootfs::{
        PathError, failed, file_type, join, lstat, mtime, names, open_beneath, permissions, set_mode,
        set_mtime, set_owner, set_xattr, split, xattrs,
    },
    snapshot::Stamp,
    unpack::copy_metadata,
};

/// Writes the copies into an empty directory. `lowers` are the layers' directories, topmost first: where the file
/// system can, copies share their blocks.
pub(super) fn write(
    sight: &Sight,
    overrides: &Overrides,
    lowers: &[PathBuf],
    directory: &Path,
    cancel: &Cancel,
) -> Result<(), CacheMountError> {
    let mut writer = Writer {
        view: &sight.view,
        lowers: lowers.iter().map(|lower| open(lower)).collect::<Result<_, _>>()?,
        root: open(directory)?,
        made: BTreeMap::new(),
        first_names: BTreeMap::new(),
    };
    for (path, time) in overrides {
        go_on(cancel)?;
        let item = &sight.items[path];
        writer.directories(if item.kind == Kind::Directory { path } else { split(path).0 })?;
        match item.kind {
            Kind::Directory => drop(writer.made.insert(path.clone(), *time)),
            Kind::Symlink => writer.symlink(path, *time)?,
            Kind::File => writer.file(path, *time, item.inode)?,
        }
    }
    writer.finish()
}

struct Writer<'a> {
    view: &'a View,
    lowers: Vec<OwnedFd>,
    root: OwnedFd,
    /// Directories that were made, with the time they are to have.
    made: BTreeMap<Vec<u8>, Stamp>,
    /// The first name of a file with several.
    first_names: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Writer<'_> {
    /// Makes a directory and those above it, each as it is in the view.
    fn directories(&mut self, path: &[u8]) -> Result<(), PathError> {
        if self.made.contains_key(path) {
            return Ok(());
        }
        if !path.is_empty() {
            let (parent, name) = split(path);
            self.directories(parent)?;
            mkdirat(self.parent(parent)?, OsStr::from_bytes(name), Mode::RWXU)
                .map_err(failed("making", path))?;
        }
        let from = open_beneath(self.view, path, OFlags::RDONLY | OFlags::DIRECTORY);
        let from = from.map_err(failed("reading", path))?;
        let made = self.parent(path)?;
        copy_metadata(&from, &made).map_err(failed("making", path))?;
        let stat = fstat(&from).map_err(failed("reading", path))?;
        self.made.insert(path.to_vec(), time(&stat));
        Ok(())
    }

    fn parent(&self, path: &[u8]) -> Result<OwnedFd, PathError> {
        open_beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("opening", path))
    }

    fn symlink(&self, path: &[u8], time: Stamp) -> Result<(), PathError> {
        let (parent, name) = split(path);
        let from = open_beneath(self.view, parent, OFlags::PATH | OFlags::DIRECTORY);
        let from = from.map_err(failed("opening", path))?;
        let link =
            readlinkat(&from, OsStr::from_bytes(name), Vec::new()).map_err(failed("reading link", path))?;
        let stat = lstat(&from, name).and_then(|stat| stat.ok_or(Errno::NOENT));
        let stat = stat.map_err(failed("reading link", path))?;
        let to = self.parent(parent)?;
        let made = symlinkat(&link, &to, OsStr::from_bytes(name));
        made.and_then(|()| set_owner(&to, name, stat.st_uid, stat.st_gid))
            .and_then(|()| set_mtime(&to, name, time.seconds, time.nanoseconds))
            .map_err(failed("making", path))
    }

    fn file(&mut self, path: &[u8], time: Stamp, inode: Option<(u64, u64)>) -> Result<(), PathError> {
        let (parent, name) = split(path);
        let to = self.parent(parent)?;
        if let Some(first) = inode.and_then(|inode| self.first_names.get(&inode)) {
            let first_parent = self.parent(split(first).0)?;
            let first = OsStr::from_bytes(split(first).1);
            let linked = linkat(first_parent, first, &to, OsStr::from_bytes(name), AtFlags::empty());
            return linked.map_err(failed("linking", path));
        }
        let from = self.open_lower(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let copy = File::from(open_beneath(&to, name, flags).map_err(failed("making", path))?);
        io::copy(&mut &from, &mut &copy).map_err(failed("copying", path))?;
        let stamped = stamp(&from, &copy, time);
        stamped.map_err(failed("changing", path))?;
        if let Some(inode) = inode {
            self.first_names.insert(inode, path.to_vec());
        }
        Ok(())
    }

    /// The file of a layer that is seen at a path: one of the merged view would not share its blocks.
    fn open_lower(&self, path: &[u8]) -> Result<File, PathError> {
        for lower in &self.lowers {
            match open_beneath(lower, path, OFlags::RDONLY | OFlags::NONBLOCK) {
                Ok(file) => return Ok(file.into()),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(failed("reading", path)(errno)),
            }
        }
        Err(failed("reading", path)(Errno::NOENT))
    }

    /// Directories last, since what is made in them changes their times.
    fn finish(self) -> Result<(), CacheMountError> {
        for (path, time) in self.made.iter().rev() {
            let directory = self.parent(path)?;
            futimens(directory, &mtime(time.seconds, time.nanoseconds)).map_err(failed("changing", path))?;
        }
        Ok(())
    }
}

/// Gives a copy all that the file has, and its own time.
fn stamp(from: &File, copy: &File, time: Stamp) -> Result<(), Errno> {
    let stat = fstat(from)?;
    fchown(copy, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for (name, value) in xattrs(from.as_fd())? {
        set_xattr(copy, &name, &value)?;
    }
    set_mode(copy, permissions(&stat))?;
    futimens(copy, &mtime(time.seconds, time.nanoseconds))
}

/// The time on disk behind each time that only copies have.
#[derive(Debug, Default)]
pub(super) struct Masks {
    by_path: Overrides,
    by_time: BTreeMap<Stamp, Stamp>,
}

impl Masks {
    pub(super) fn of(sight: &Sight, overrides: &Overrides) -> Self {
        let own = |path: &Vec<u8>| sight.items[path].time;
        // Where files of several times have one now, the earliest stands for all that was moved.
        let by_time = overrides.iter().rev().map(|(path, shown)| (*shown, own(path)));
        let mut earliest: BTreeMap<Stamp, Stamp> = BTreeMap::new();
        for (shown, own) in by_time {
            let time = earliest.entry(shown).or_insert(own);
            *time = (*time).min(own);
        }
        let by_path = overrides.keys().map(|path| (path.clone(), own(path))).collect();
        Self { by_path, by_time: earliest }
    }

    fn behind(&self, path: &[u8], shown: Stamp) -> Option<Stamp> {
        let any = self.by_time.get(&shown)?;
        Some(*self.by_path.get(path).unwrap_or(any))
    }
}

/// Gives everything in a step's upper directory the time it would have without the copies: what was copied up, moved,
/// linked, or copied with its time.
pub(super) fn restore(upper: &Path, masks: &Masks) -> Result<(), CacheMountError> {
    if masks.by_time.is_empty() {
        return Ok(());
    }
    let root = open(upper)?;
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let directory = open_beneath(&root, &path, OFlags::RDONLY | OFlags::DIRECTORY);
        let directory = directory.map_err(failed("reading", &path))?;
        for name in names(&directory).map_err(failed("reading", &path))? {
            let child = join(&path, &name);
            let Some(stat) = lstat(&directory, &name).map_err(failed("reading", &child))? else { continue };
            if file_type(&stat) == FileType::Directory {
                todo.push(child.clone());
            }
            if let Some(own) = masks.behind(&child, time(&stat)) {
                set_mtime(&directory, &name, own.seconds, own.nanoseconds)
                    .map_err(failed("changing", &child))?;
            }
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<OwnedFd, CacheMountError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| CacheMountError::io("open", path)(errno.into()))
}

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
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, futimens, linkat, mkdirat,
        readlinkat, symlinkat,
    },
    io::Errno,
};
use solver::Cancel;

use super::{
    CacheMountError,
    sight::{Item, Kind, Sight, go_on, kind_of, time},
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
    copies: BTreeMap<Vec<u8>, Mask>,
    /// Whether a copy of this time only can be behind it, and of which.
    by_time: BTreeMap<Stamp, Option<Stamp>>,
    /// The copies of a second, for tools that keep no more of a time when they copy a file.
    by_second: BTreeMap<i64, Vec<Vec<u8>>>,
}

#[derive(Debug, Clone, Copy)]
struct Mask {
    kind: Kind,
    size: u64,
    shown: Stamp,
    own: Stamp,
}

impl Masks {
    pub(super) fn of(sight: &Sight, overrides: &Overrides) -> Self {
        let mut masks = Self::default();
        for (path, shown) in overrides {
            let Item { kind, size, time: own, .. } = sight.items[path];
            let behind = masks.by_time.entry(*shown).or_insert(Some(own));
            *behind = behind.filter(|other| *other == own);
            masks.by_second.entry(shown.seconds).or_default().push(path.clone());
            masks.copies.insert(path.clone(), Mask { kind, size, shown: *shown, own });
        }
        let others = sight.items.iter().filter(|(path, _)| !overrides.contains_key(*path));
        for (_, item) in others {
            masks.by_time.entry(item.time).and_modify(|behind| *behind = None);
        }
        masks
    }

    /// The time that something would have without the copies.
    fn behind(&self, path: &[u8], stat: &Stat) -> Option<Stamp> {
        let time = time(stat);
        let own = self.copies.get(path).filter(|mask| mask.shown == time).map(|mask| mask.own);
        own.or_else(|| *self.by_time.get(&time)?).or_else(|| self.behind_second(path, stat))
    }

    /// What is behind a time of whole seconds: that of a copy of this name and size, or of all copies of this size.
    fn behind_second(&self, path: &[u8], stat: &Stat) -> Option<Stamp> {
        if stat.st_mtime_nsec != 0 {
            return None;
        }
        let kind = kind_of(stat)?;
        let is_alike = |mask: &Mask| {
            mask.kind == kind && (kind == Kind::Directory || i64::try_from(mask.size) == Ok(stat.st_size))
        };
        let copies = self.by_second.get(&stat.st_mtime)?.iter().map(|path| (path, self.copies[path]));
        let alike: Vec<_> = copies.filter(|(_, mask)| is_alike(mask)).collect();
        let same_name = alike.iter().find(|(copy, _)| split(copy).1 == split(path).1);
        let all = || alike.first().filter(|(_, first)| alike.iter().all(|(_, mask)| mask.own == first.own));
        same_name.or_else(all).map(|(_, mask)| mask.own)
    }
}

/// Gives everything in a step's upper directory the time it would have without the copies: what was copied up, moved,
/// linked, or copied with its time.
pub(super) fn restore(upper: &Path, masks: &Masks) -> Result<(), CacheMountError> {
    if masks.copies.is_empty() {
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
            if let Some(own) = masks.behind(&child, &stat) {
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

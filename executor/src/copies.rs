//! Whole file systems in the place of overlays, for where the kernel mounts none.
//!
//! [`fill`] completes a directory that holds one layer by copying what shows through it of the whole file system below; an
//! empty one becomes a copy of that. Blocks are shared where the disk can. Nothing a step may write is a hard link to
//! what it must not: links are kept among the names of one copy only.
//!
//! What a step has changed is then what differs from the original ([`crate::diff`]). [`Twins`] tells which copy is of what, so
//! that a replaced file is told from a rewritten one as an overlay tells them, and spares reading what nobody has touched:
//! the inode of that is the copy's, and its time of change, which nobody can set, is that of copying.
//!
//! What an overlay does otherwise and a copy cannot: it parts the names of a file when one of them is written through. Here the
//! file changes under all its names, as it does on every other file system. Nor does an overlay move a directory of a layer: the
//! command copies it, with links of its own. [`Bond`] says what is seen of that.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, fchown, fstat, futimens, linkat, major, minor,
        mkdirat, mknodat, readlinkat, statx, symlinkat, unlinkat,
    },
    io::Errno,
    process::{Gid, Uid},
};
use solver::Cancel;

use crate::{
    context::clock::keeps_time_of_change,
    copy::{CopyError, content},
    form::{is_opaque_mark, is_socket},
    rootfs::{
        PathError, failed, file_type, join, lstat, mtime, names, open_beneath, permissions, set_mode,
        set_mtime, set_node_mode, set_owner, set_xattr, set_xattr_at, split, xattrs, xattrs_at,
    },
    snapshot::Stamp,
    unpack::copy_metadata,
};

/// How many files with several names are kept open for each step: as many as a base image has, and few enough for several steps.
const WATCHED: usize = 64;

/// Which copy is of what.
#[derive(Debug, Default)]
pub struct Twins {
    /// By the copy's device and inode.
    originals: HashMap<(u64, u64), Original>,
    /// Whether an unchanged time of change means an unchanged file.
    changes_are_told: bool,
    last_change: (i64, u64),
    device: Option<Vec<u8>>,
    /// Copies of files with several names, open: what is done to one is seen also when it has none any more.
    watched: Vec<OwnedFd>,
    /// Where copies of files with several names were made, by the copy's device and inode.
    places: HashMap<(u64, u64), Vec<Vec<u8>>>,
}

/// What has become of a copy, as far as its several names go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// It has one name, or is no copy.
    None,
    /// Nothing has been done to it, but directories in which it has names may have been moved.
    Kept,
    /// It has lost a name, and is what it was.
    Loosened,
    /// It has lost a name, and something has been done to it before or after.
    Changed,
    /// Something has been done to it that an overlay would have done to one name.
    Touched,
}

/// What changes when a file is written or given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Face {
    /// Mode, owner, group, size.
    own: (u32, u32, u32, i64),
    /// When it was written.
    time: (i64, u64),
}

fn face(stat: &Stat) -> Face {
    let own = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size);
    Face { own, time: (stat.st_mtime, stat.st_mtime_nsec) }
}

#[derive(Debug, Clone, Copy)]
struct Original {
    identity: (u64, u64),
    /// When the copy was made: numbers of inodes are used again.
    born: Option<Birth>,
    /// The time of change of the copy when it was done.
    changed: (i64, u64),
    /// And when the step began, which may have found it with another time.
    settled: (i64, u64),
    /// How many names the copy has.
    names: u64,
    /// How the step found it.
    face: Face,
}

impl Twins {
    /// Whether this is the copy of that, whatever has been done to it. Where the file system does not know when anything was
    /// made, nothing is: it is taken for replaced.
    pub fn is_copy(&self, now: &Stat, born: Option<Birth>, before: &Stat) -> bool {
        let original = self.originals.get(&identity(now));
        original.is_some_and(|original| {
            original.identity == identity(before) && born.is_some() && original.born == born
        })
    }

    /// Whether this is the copy of that, and nothing has been done to it.
    pub fn is_untouched(&self, now: &Stat, before: &Stat) -> bool {
        let original = self.originals.get(&identity(now)).filter(|_| self.changes_are_told);
        original
            .is_some_and(|original| original.identity == identity(before) && original.changed == changed(now))
    }

    /// What has become of this, wherever it is now.
    ///
    /// # Errors
    /// Those of `born`, which says when it was made.
    pub fn bond(
        &self,
        now: &Stat,
        born: impl FnOnce() -> Result<Option<Birth>, Errno>,
    ) -> Result<Bond, Errno> {
        let Some(original) = self.originals.get(&identity(now)).filter(|original| original.names > 1) else {
            return Ok(Bond::None);
        };
        let is_untouched = self.changes_are_told && original.settled == changed(now);
        if is_untouched {
            return Ok(Bond::Kept);
        }
        // Where nobody knows when anything was made, another file with the same number is taken for this one.
        if original.born.is_some() && born()? != original.born {
            return Ok(Bond::None);
        }
        let has_all = now.st_nlink >= original.names && self.changes_are_told;
        Ok(match (has_all, original.face == face(now)) {
            (true, _) => Bond::Touched,
            (false, true) => Bond::Loosened,
            (false, false) => Bond::Changed,
        })
    }

    /// The names under which a file with several was copied.
    pub fn places(&self, copy: &Stat) -> &[Vec<u8>] {
        self.places.get(&identity(copy)).map_or(&[], Vec::as_slice)
    }

    /// Whether the copy of a file with several names was changed and has none any more.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn has_lost_a_changed_one(&self) -> Result<bool, Errno> {
        for file in &self.watched {
            let now = fstat(file)?;
            let is_like = |original: &Original| original.face == face(&now);
            if now.st_nlink == 0 && !self.originals.get(&identity(&now)).is_some_and(is_like) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether something has been done to one of the copies with several names that are watched, wherever it is now below their
    /// root, that an overlay would have done to one name.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn has_changed_one(&self, root: &OwnedFd) -> Result<bool, Errno> {
        for file in &self.watched {
            let now = fstat(file)?;
            let has_changed = match self.bond(&now, || born(file, b""))? {
                Bond::None => false,
                Bond::Kept | Bond::Loosened => self.names_left(root, &now) < now.st_nlink,
                Bond::Changed | Bond::Touched => true,
            };
            if has_changed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many names a copy has where it was copied to.
    fn names_left(&self, root: &OwnedFd, copy: &Stat) -> u64 {
        let is_there = |place: &&Vec<u8>| {
            let (parent, name) = split(place);
            let parent = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY);
            let found = parent.and_then(|parent| lstat(parent, name));
            matches!(found, Ok(Some(found)) if identity(&found) == identity(copy))
        };
        self.places(copy).iter().filter(is_there).count() as u64
    }

    /// A device among the copies that opens something of the machine, unless it is in `/dev`, which no step sees of an image.
    pub fn device(&self) -> Option<&[u8]> {
        self.device.as_deref()
    }

    fn note_device(&mut self, path: &[u8], stat: &Stat) {
        let number = (major(stat.st_rdev), minor(stat.st_rdev));
        let is_harmless = match file_type(stat) {
            // null, zero, full, random, urandom, tty; and 0:0 is nothing at all.
            FileType::CharacterDevice => {
                [(0, 0), (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)].contains(&number)
            }
            FileType::BlockDevice => false,
            _ => true,
        };
        if !is_harmless && !path.starts_with(b"dev/") && self.device.is_none() {
            self.device = Some(path.to_vec());
        }
    }

    fn note(&mut self, copy: &Stat, born: Option<Birth>, original: &Stat) {
        let changed = changed(copy);
        self.last_change = self.last_change.max(changed);
        let names = if file_type(copy) == FileType::Directory { 1 } else { copy.st_nlink };
        let face = face(copy);
        let original =
            Original { identity: identity(original), born, changed, settled: changed, names, face };
        self.originals.insert(identity(copy), original);
    }

    /// A copy has got another time, which is not the step's doing.
    fn note_time(&mut self, copy: &Stat) {
        let changed = changed(copy);
        self.last_change = self.last_change.max(changed);
        if let Some(original) = self.originals.get_mut(&identity(copy)) {
            (original.settled, original.face) = (changed, face(copy));
        }
    }

    /// Waits, for a few milliseconds, until the clock that stamps files has moved on: whatever is changed after this has
    /// another time of change.
    pub fn part_from_what_follows(&self) {
        let now = || {
            let Stamp { seconds, nanoseconds } = Stamp::of_files_now();
            (seconds, u64::from(nanoseconds))
        };
        while self.changes_are_told && now() <= self.last_change {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// When something was made: seconds and nanoseconds of Unix time.
pub type Birth = (i64, u32);

/// When what a name stands for was made (an empty one for the open directory itself), if the file system knows.
///
/// # Errors
/// What statx(2) says.
pub fn born(directory: impl AsFd, name: &[u8]) -> Result<Option<Birth>, Errno> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    match statx(directory, OsStr::from_bytes(name), flags, StatxFlags::BTIME) {
        Ok(found) if found.stx_mask & StatxFlags::BTIME.bits() != 0 => {
            Ok(Some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec)))
        }
        // A container's filter may not know the call.
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn changed(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

/// Completes a directory by what shows through of the one below, and takes its marks away.
///
/// # Errors
/// The disk fails, or `cancel` asks to stop.
pub fn fill(top: &OwnedFd, below: Option<&OwnedFd>, cancel: &Cancel) -> Result<Twins, CopyError> {
    let changes_are_told = keeps_time_of_change(top).map_err(failed("looking at", b"/"))?;
    let twins = Twins { changes_are_told, ..Twins::default() };
    let mut filler = Filler { top, below, cancel, first_names: BTreeMap::new(), twins, done: Vec::new() };
    let of = if below.is_some() { Of::Both } else { Of::Top };
    let mut todo = vec![Pending { path: Vec::new(), of }];
    while let Some(pending) = todo.pop() {
        filler.directory(pending, &mut todo)?;
    }
    filler.finish()
}

/// Whose a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// It was there, and nothing of what is below shows.
    Top,
    /// It was there, and what is below shows through.
    Both,
    /// It was made like the one below.
    Below,
}

struct Pending {
    path: Vec<u8>,
    of: Of,
}

struct Filler<'a> {
    top: &'a OwnedFd,
    below: Option<&'a OwnedFd>,
    cancel: &'a Cancel,
    /// Where the copy of a file with several names is.
    first_names: BTreeMap<(u64, u64), Vec<u8>>,
    twins: Twins,
    /// Directories that are listed, with what they were; those above come first.
    done: Vec<(Pending, Stat)>,
}

impl Filler<'_> {
    fn directory(&mut self, pending: Pending, todo: &mut Vec<Pending>) -> Result<(), CopyError> {
        let Pending { path, mut of } = pending;
        let top = open(self.top, &path)?;
        let stat = fstat(&top).map_err(failed("looking at", &path))?;
        let own = match of {
            Of::Below => Vec::new(),
            Of::Top | Of::Both => names(&top).map_err(failed("reading", &path))?,
        };
        let mut directories = Vec::new();
        for name in &own {
            let stat = lstat(&top, name).and_then(|stat| stat.ok_or(Errno::NOENT));
            let stat = stat.map_err(failed("looking at", &join(&path, name)))?;
            if is_opaque_mark(name, &stat) {
                of = Of::Top;
            }
            if is_socket(&stat) {
                unlinkat(&top, OsStr::from_bytes(name), AtFlags::empty())
                    .map_err(failed("removing", &join(&path, name)))?;
            } else if file_type(&stat) == FileType::Directory {
                directories.push(name);
            }
        }
        let below = match self.below.filter(|_| of != Of::Top) {
            Some(below) => Some(open(below, &path)?),
            None => None,
        };
        for name in directories {
            let path = join(&path, name);
            let was = match &below {
                Some(below) => lstat(below, name).map_err(failed("looking at", &path))?,
                None => None,
            };
            let is_merged = was.is_some_and(|stat| file_type(&stat) == FileType::Directory);
            todo.push(Pending { path, of: if is_merged { Of::Both } else { Of::Top } });
        }
        if let Some(below) = &below {
            for name in names(below).map_err(failed("reading", &path))? {
                if own.binary_search(&name).is_err() {
                    self.copy(below, &top, &name, &join(&path, &name), todo)?;
                }
            }
        }
        self.done.push((Pending { path, of }, stat));
        Ok(())
    }

    fn copy(
        &mut self,
        below: &OwnedFd,
        top: &OwnedFd,
        name: &[u8],
        path: &[u8],
        todo: &mut Vec<Pending>,
    ) -> Result<(), CopyError> {
        if self.cancel.is_requested() {
            return Err(CopyError::Cancelled);
        }
        let from = lstat(below, name).and_then(|stat| stat.ok_or(Errno::NOENT));
        let from = from.map_err(failed("looking at", path))?;
        let kind = file_type(&from);
        self.twins.note_device(path, &from);
        if kind == FileType::Directory {
            mkdirat(top, OsStr::from_bytes(name), Mode::RWXU).map_err(failed("making", path))?;
            todo.push(Pending { path: path.to_vec(), of: Of::Below });
            return Ok(());
        }
        match self.first_names.get(&identity(&from)).cloned() {
            Some(first) => self.link(&first, top, name).map_err(failed("linking", path))?,
            None if kind == FileType::RegularFile => self.file(below, top, name, path, &from)?,
            None => node(below, top, name, &from).map_err(failed("copying", path))?,
        }
        if from.st_nlink > 1
            && self.twins.watched.len() < WATCHED
            && !self.first_names.contains_key(&identity(&from))
        {
            let copy = open_beneath(top, name, OFlags::PATH | OFlags::NOFOLLOW);
            self.twins.watched.push(copy.map_err(failed("opening", path))?);
        }
        if from.st_nlink > 1 {
            self.first_names.entry(identity(&from)).or_insert_with(|| path.to_vec());
        }
        let made = lstat(top, name).and_then(|stat| stat.ok_or(Errno::NOENT));
        let made = made.map_err(failed("looking at", path))?;
        let born = born(top, name).map_err(failed("looking at", path))?;
        self.twins.note(&made, born, &from);
        if from.st_nlink > 1 {
            self.twins.places.entry(identity(&made)).or_default().push(path.to_vec());
        }
        Ok(())
    }

    fn link(&self, first: &[u8], to: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let (parent, first) = split(first);
        let parent = open_beneath(self.top, parent, OFlags::PATH | OFlags::DIRECTORY)?;
        linkat(parent, OsStr::from_bytes(first), to, OsStr::from_bytes(name), AtFlags::empty())
    }

    fn file(
        &self,
        below: &OwnedFd,
        top: &OwnedFd,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), CopyError> {
        let from =
            open_beneath(below, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed("reading", path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let to = open_beneath(top, name, flags).map_err(failed("making", path))?;
        let (from, to) = (File::from(from), File::from(to));
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        content::share_all(&from, &to, size, path, self.cancel)?;
        stamp(&from, &to, stat).map_err(failed("changing", path))?;
        Ok(())
    }

    /// Directories last, since what is made in one changes its time.
    fn finish(mut self) -> Result<Twins, CopyError> {
        for (Pending { path, of }, was) in self.done.iter().rev() {
            let top = open(self.top, path)?;
            match self.below.filter(|_| *of == Of::Below) {
                Some(below) => copy_metadata(open(below, path)?, &top),
                None => futimens(&top, &mtime(was.st_mtime, was.st_mtime_nsec as u32)),
            }
            .map_err(failed("changing", path))?;
            let Some(below) = self.below.filter(|_| *of != Of::Top) else { continue };
            let made = fstat(&top).map_err(failed("looking at", path))?;
            let original = fstat(open(below, path)?).map_err(failed("looking at", path))?;
            let born = born(&top, b"").map_err(failed("looking at", path))?;
            self.twins.note(&made, born, &original);
        }
        Ok(self.twins)
    }
}

fn open(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, PathError> {
    open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("opening", path))
}

/// Gives a copy all that the file has.
fn stamp(from: &File, to: &File, stat: &Stat) -> Result<(), Errno> {
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for (name, value) in xattrs(from)? {
        set_xattr(to, &name, &value)?;
    }
    set_mode(to, permissions(stat))?;
    futimens(to, &mtime(stat.st_mtime, stat.st_mtime_nsec as u32))
}

/// Copies what has no bytes. What a device is, nobody asks it: it is not opened.
fn node(below: &OwnedFd, top: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), Errno> {
    let os_name = OsStr::from_bytes(name);
    let kind = file_type(stat);
    if kind == FileType::Symlink {
        symlinkat(readlinkat(below, os_name, Vec::new())?, top, os_name)?;
    } else {
        mknodat(top, os_name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
    }
    set_owner(top, name, stat.st_uid, stat.st_gid)?;
    for (attribute, value) in xattrs_at(below, name)? {
        set_xattr_at(top, name, &attribute, &value)?;
    }
    if kind != FileType::Symlink {
        set_node_mode(top, name, permissions(stat))?;
    }
    set_mtime(top, name, stat.st_mtime, stat.st_mtime_nsec as u32)
}

/// Gives what is in a whole file system the times that things of the same paths have in another directory, before the step.
///
/// # Errors
/// The disk fails.
pub fn restamp(root: &OwnedFd, times: &OwnedFd, twins: &mut Twins) -> Result<(), PathError> {
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let (from, to) = (open(times, &path)?, open(root, &path)?);
        for name in names(&from).map_err(failed("reading", &path))? {
            let path = join(&path, &name);
            let stat = lstat(&from, &name).and_then(|stat| stat.ok_or(Errno::NOENT));
            let stat = stat.map_err(failed("looking at", &path))?;
            set_mtime(&to, &name, stat.st_mtime, stat.st_mtime_nsec as u32)
                .map_err(failed("changing", &path))?;
            if let Some(copy) = lstat(&to, &name).map_err(failed("looking at", &path))? {
                twins.note_time(&copy);
            }
            if file_type(&stat) == FileType::Directory {
                todo.push(path);
            }
        }
    }
    twins.part_from_what_follows();
    Ok(())
}

#[cfg(test)]
mod tests;

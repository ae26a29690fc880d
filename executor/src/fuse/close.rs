//! The end of a file system that fuse-overlayfs has merged: what was written becomes what an overlay of the kernel would have
//! left, with [`OverlayMarks::Names`].
//!
//! - It marks what is gone by devices 0:0, by files `.wh.NAME`, and by attributes, as it can; only the files stay. A file
//!   `.wh.NAME` of the step's own, which the program shows in its directory and never shows a mark, is made one that nobody
//!   takes for a mark: such a name is in no layer, and the step is refused for it.
//! - When it copies something up, the directory above gets a new time, which a step does not see until it changes the
//!   directory itself: so long the kernel knows the one that the directory had. So the times of directories are asked for
//!   through the mount, before that is gone, and are what the directories get, but for those whose own time was
//!   [lost](times::lost), which get that of the layer below. A link gets a new time itself, which a step sees, and is
//!   [given back](times::restore_links) its own.
//! - It writes down whence it has copied a file, and would take the copy for another name of that later.
//! - Of a pipe, a socket or a device of an earlier layer it makes an empty file when it is to change it. That is no result.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fremovexattr, futimens, lgetxattr,
        llistxattr, lremovexattr, open, unlinkat,
    },
    io::Errno,
};

use super::{
    Ended, Merged,
    times::{self, Time},
};
use crate::{
    mount::OverlayMarks,
    rootfs::{PathError, failed, file_type, join, lstat, mtime, names, open_beneath, shown, split},
    whiteout::{MARK_PREFIX, hidden_by, is_overlay_xattr, is_whiteout},
};

/// Why it is not known what was written.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// Who served the file system has failed.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// It has made a file of something else.
    #[error(
        "fuse-overlayfs, which merges the layers here, cannot change {0}, a pipe, socket or device of an earlier layer"
    )]
    Unlike(String),
    /// The system said no.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Ends a file system that nobody uses any more, and brings what was written to its upper directory into the form of the store.
/// `lowers` are the directories below, topmost first.
///
/// # Errors
/// The program has failed, and so may have what was written; the disk fails.
pub fn close(merged: Merged, upper: &Path, lowers: &[PathBuf]) -> Result<(), CloseError> {
    let (root, merger) = merged.into_parts();
    let Some(merger) = merger else { return Ok(()) };
    let directory = open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.map_err(failed("opening the changes of", b"/"))?;
    let looked = look(&directory, &root);
    drop(root);
    // Its words say more than what it has made of our look.
    merger.end()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lowers = lowers.iter().map(|lower| open(lower, flags, Mode::empty()));
    let lowers = lowers.collect::<Result<Vec<_>, _>>().map_err(failed("opening the layers of", b"/"))?;
    for seen in looked? {
        seen.settle(&directory, &lowers)?;
    }
    Ok(())
}

/// A directory of those that were written to.
struct Seen {
    path: Vec<u8>,
    /// What time it has for who sees it merged.
    time: Time,
    /// Files that have the name of a mark, and are none.
    own: Vec<Vec<u8>>,
}

/// Looks at all directories in the upper one through the mount.
fn look(upper: &OwnedFd, root: &OwnedFd) -> Result<Vec<Seen>, PathError> {
    let mut found = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let below = names_and_kinds(upper, &path)?;
        let merged = open_beneath(root, &path, OFlags::PATH | OFlags::DIRECTORY);
        let merged = match merged {
            // A directory that lost its name while it was open, or one called like a mark.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => continue,
            merged => merged.map_err(failed("looking at", &path))?,
        };
        let stat = rustix::fs::fstat(&merged).map_err(failed("looking at", &path))?;
        let time = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let own = match below.iter().any(|(name, _)| name.starts_with(MARK_PREFIX)) {
            true => marked_names(root, &path)?,
            false => Vec::new(),
        };
        for (name, kind) in below {
            if kind == FileType::Directory {
                todo.push(join(&path, &name));
            }
        }
        found.push(Seen { path, time, own });
    }
    Ok(found)
}

fn names_and_kinds(upper: &OwnedFd, path: &[u8]) -> Result<Vec<(Vec<u8>, FileType)>, PathError> {
    let directory = open_directory(upper, path)?;
    let mut found = Vec::new();
    for name in names(&directory).map_err(failed("reading", path))? {
        if let Some(stat) = lstat(&directory, &name).map_err(failed("reading", path))? {
            found.push((name, file_type(&stat)));
        }
    }
    Ok(found)
}

/// The names in a merged directory that are those of marks.
fn marked_names(root: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, PathError> {
    let merged = open_directory(root, path)?;
    let mut names = names(&merged).map_err(failed("reading", path))?;
    names.retain(|name| name.starts_with(MARK_PREFIX));
    Ok(names)
}

fn open_directory(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, PathError> {
    open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("opening", path))
}

impl Seen {
    fn settle(&self, upper: &OwnedFd, lowers: &[OwnedFd]) -> Result<(), CloseError> {
        let path = self.path.as_slice();
        let directory = open_directory(upper, path)?;
        let mut is_opaque = is_marked_opaque(&directory).map_err(failed("reading attributes of", path))?;
        let lost = times::lost(&directory, path, self.time, lowers).map_err(failed("reading", path))?;
        forget_origin(&directory).map_err(failed("changing attributes of", path))?;
        for name in names(&directory).map_err(failed("reading", path))? {
            let stat = lstat(&directory, &name).map_err(failed("reading", &join(path, &name)))?;
            let Some(stat) = stat else { continue };
            if is_unlike(&directory, &name, &stat, lowers).map_err(failed("reading", &join(path, &name)))? {
                return Err(CloseError::Unlike(format!("/{}", shown(&join(path, &name)))));
            }
            self.entry(&directory, &name, &stat).map_err(failed("changing", &join(path, &name)))?;
            is_opaque |= hidden_by(&name, &stat) == Some(None) && !self.own.contains(&name);
        }
        if is_opaque && !path.is_empty() {
            OverlayMarks::Names.mark_opaque(&directory).map_err(failed("changing", path))?;
        }
        times::restore_links(&directory, path, lowers).map_err(failed("changing links in", path))?;
        let (seconds, nanoseconds) = lost.unwrap_or(self.time);
        Ok(futimens(&directory, &mtime(seconds, nanoseconds)).map_err(failed("changing", path))?)
    }

    fn entry(&self, directory: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), Errno> {
        if is_whiteout(stat) {
            unlinkat(directory, OsStr::from_bytes(name), AtFlags::empty())?;
            // The program makes one of no use for the mark of an opaque directory.
            return match name.starts_with(MARK_PREFIX) {
                true => Ok(()),
                false => OverlayMarks::Names.hide(directory, name),
            };
        }
        if self.own.iter().any(|own| own == name) && hidden_by(name, stat).is_some() {
            let file = open_beneath(directory, name, OFlags::WRONLY)?;
            return File::from(file)
                .write_all_at(b"!", 0)
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error));
        }
        match file_type(stat) {
            FileType::Directory => Ok(()),
            _ => forget_origin_at(directory, name),
        }
    }
}

/// Whether a file was made of something below that is none.
fn is_unlike(directory: &OwnedFd, name: &[u8], stat: &Stat, lowers: &[OwnedFd]) -> Result<bool, Errno> {
    if file_type(stat) != FileType::RegularFile || stat.st_size != 0 {
        return Ok(false);
    }
    let Some(origin) = origin(directory, name)? else { return Ok(false) };
    let (parent, name) = split(&origin);
    for lower in lowers {
        let found = match open_beneath(lower, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(parent) => lstat(parent, name)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(errno) => return Err(errno),
        };
        if let Some(found) = found {
            return Ok(file_type(&found) != FileType::RegularFile);
        }
    }
    Ok(false)
}

/// What a file of the upper directory says that it is the copy of: a path below the root.
pub(super) fn origin(directory: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let file = by_descriptor(directory, name);
    let mut origin = vec![0_u8; libc::PATH_MAX as usize];
    match lgetxattr(file.as_slice(), ORIGIN, &mut origin) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        length => Ok(origin[..length?].split(|byte| *byte == 0).next().map(<[u8]>::to_vec)),
    }
}

/// Where it says so.
const ORIGIN: &str = "user.fuseoverlayfs.origin";

/// A name in a directory, for calls that take a path.
fn by_descriptor(directory: &OwnedFd, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat()
}

pub(super) fn is_marked_opaque(directory: &OwnedFd) -> Result<bool, Errno> {
    for attribute in ["trusted.overlay.opaque", "user.fuseoverlayfs.opaque"] {
        let mut value = [0_u8; 8];
        match fgetxattr(directory, attribute, &mut value) {
            Ok(length) if &value[..length] == b"y" => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

/// Attributes of all files together are no longer than this (`XATTR_LIST_MAX`).
const LIST_MAX: usize = 64 << 10;

fn forget_origin(directory: &OwnedFd) -> Result<(), Errno> {
    let mut list = vec![0_u8; LIST_MAX];
    let length = match flistxattr(directory, &mut list) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in merger_attributes(&list[..length]) {
        fremovexattr(directory, OsStr::from_bytes(name))?;
    }
    Ok(())
}

fn forget_origin_at(directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let path = by_descriptor(directory, name);
    let mut list = vec![0_u8; LIST_MAX];
    let length = match llistxattr(path.as_slice(), &mut list) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in merger_attributes(&list[..length]) {
        lremovexattr(path.as_slice(), OsStr::from_bytes(name))?;
    }
    Ok(())
}

fn merger_attributes(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0).filter(|name| is_overlay_xattr(name))
}

//! Finds the directory an entry belongs to, and makes those that the archive leaves out.
//!
//! Links that the layer itself brought are followed inside the layer's own root, as if the kernel did it in a chroot;
//! every step is one `openat(O_NOFOLLOW)` from a directory we hold, so nothing can be swapped under us. The result
//! carries the path without links, by which the rest of the unpacker remembers things.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{
        AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat, renameat, statat, unlinkat,
    },
    io::Errno,
};

use super::error::UnpackError;
use crate::form::is_mark;

/// Links on the way to one entry, as in the kernel.
pub(crate) const MAX_LINKS: usize = 40;

/// An open directory of the layer (`O_PATH`), and its path without links.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    pub(super) path: Vec<u8>,
}

impl Directory {
    /// The path of something in this directory.
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Splits a path of an archive into names; slashes at both ends and `.` mean nothing.
pub(crate) fn names(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let names: Vec<_> =
        path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    match names.contains(&&b".."[..]) {
        true => Err(UnpackError::refused(path, "its path holds \"..\"")),
        false => Ok(names),
    }
}

/// What takes the place of something that an earlier entry of the layer made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    /// There was nothing.
    Nothing,
    /// There was something other than a directory: lower layers no longer shine through.
    Other,
    /// There was a directory.
    Directory,
}

/// Something that had to be made on the way, which the archive did not list (yet).
pub(super) struct Made<'a> {
    /// Where; its path has no links.
    pub(super) parent: &'a Directory,
    /// Its name there.
    pub(super) name: &'a [u8],
    /// What was there before.
    pub(super) replaced: Replaced,
}

/// The directories of one layer.
pub(super) struct Walker {
    root: OwnedFd,
    /// Where replaced directories go; it is deleted with the unpacker's temporaries.
    trash: OwnedFd,
    thrown: u64,
    last: Option<(Vec<u8>, Arc<Directory>)>,
}

impl Walker {
    pub(super) fn new(root: OwnedFd, trash: OwnedFd) -> Self {
        Self { root, trash, thrown: 0, last: None }
    }

    /// The directory behind a path without links.
    pub(super) fn open(&self, path: &[u8]) -> Result<Directory, Errno> {
        let path_or_dot = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = openat2(&self.root, path_or_dot, DIRECTORY, Mode::empty(), resolve)?;
        Ok(Directory { fd, path: path.to_vec() })
    }

    /// The directory that these names lead to; it must be there.
    pub(super) fn find(&mut self, names: &[&[u8]]) -> Result<Arc<Directory>, UnpackError> {
        self.resolve(names, None)
    }

    /// The directory that these names lead to; `made` is told of what had to be made for it, with mode 0700.
    pub(super) fn find_or_make(
        &mut self,
        names: &[&[u8]],
        made: &mut dyn FnMut(Made<'_>) -> Result<(), UnpackError>,
    ) -> Result<Arc<Directory>, UnpackError> {
        self.resolve(names, Some(made))
    }

    /// Takes whatever an earlier entry left at a name out of the way.
    pub(super) fn clear(&mut self, parent: &Directory, name: &[u8]) -> Result<Replaced, UnpackError> {
        let path = parent.join(name);
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {
                self.last = None;
                Ok(Replaced::Other)
            }
            Err(Errno::NOENT) => Ok(Replaced::Nothing),
            Err(Errno::ISDIR) => {
                self.last = None;
                self.thrown += 1;
                renameat(parent, name, &self.trash, self.thrown.to_string())
                    .map_err(UnpackError::at("replace", &path))?;
                Ok(Replaced::Directory)
            }
            Err(errno) => Err(UnpackError::io("replace", &path, errno)),
        }
    }

    fn resolve(&mut self, names: &[&[u8]], made: OnMade<'_>) -> Result<Arc<Directory>, UnpackError> {
        let wanted = names.join(&b'/');
        if let Some((path, directory)) = &self.last
            && *path == wanted
        {
            return Ok(directory.clone());
        }
        let directory = match self.open(&wanted) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.step_through(&wanted, names, made)?,
            Err(errno) => return Err(UnpackError::io("open", &wanted, errno)),
        };
        let directory = Arc::new(directory);
        self.last = Some((wanted, directory.clone()));
        Ok(directory)
    }

    fn step_through(
        &mut self,
        wanted: &[u8],
        names: &[&[u8]],
        mut made: OnMade<'_>,
    ) -> Result<Directory, UnpackError> {
        let failed = UnpackError::at("open", wanted);
        let mut pending: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut here = self.open(b"").map_err(&failed)?;
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                let above = here.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                here = self.open(&here.path[..above]).map_err(&failed)?;
                continue;
            }
            match step(&here, &name).map_err(&failed)? {
                Step::Into(directory) => here = directory,
                Step::Link(_) if links == MAX_LINKS => {
                    return Err(UnpackError::refused(wanted, "its path goes through too many links"));
                }
                Step::Link(target) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        here = self.open(b"").map_err(&failed)?;
                    }
                    let names = target.split(|byte| *byte == b'/').rev();
                    pending.extend(names.filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec));
                }
                Step::Missing => {
                    self.make(&here, &name, &mut made)?;
                    pending.push(name);
                }
                Step::Other => {
                    return Err(UnpackError::refused(
                        wanted,
                        "its path goes through something that is no directory",
                    ));
                }
            }
        }
        Ok(here)
    }

    /// `.wh.d` followed by `d/f`: the lower `d` is gone, and a new one begins.
    fn make(&mut self, parent: &Directory, name: &[u8], made: &mut OnMade<'_>) -> Result<(), UnpackError> {
        let path = parent.join(name);
        let Some(made) = made else {
            return Err(UnpackError::refused(&path, "an entry refers to it, but the layer does not hold it"));
        };
        let replaced = self.clear(parent, name)?;
        mkdirat(parent, name, Mode::RWXU).map_err(UnpackError::at("make directory", &path))?;
        made(Made { parent, name, replaced })
    }
}

/// What one name of a path leads to.
enum Step {
    Into(Directory),
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// Nothing, or the mark of something removed.
    Missing,
    /// Something else.
    Other,
}

fn step(here: &Directory, name: &[u8]) -> Result<Step, Errno> {
    match openat(here, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(fd) => return Ok(Step::Into(Directory { fd, path: here.join(name) })),
        Err(Errno::NOENT) => return Ok(Step::Missing),
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(errno) => return Err(errno),
    }
    match readlinkat(here, name, Vec::new()) {
        Ok(target) => Ok(Step::Link(target.into_bytes())),
        Err(Errno::INVAL) if is_mark(&statat(here, name, AtFlags::SYMLINK_NOFOLLOW)?) => Ok(Step::Missing),
        Err(Errno::INVAL) => Ok(Step::Other),
        Err(errno) => Err(errno),
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

type OnMade<'a> = Option<&'a mut dyn FnMut(Made<'_>) -> Result<(), UnpackError>>;

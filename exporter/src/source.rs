//! Where the bytes of a layer's files come from when they are in a directory.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use oci::FileSource;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

/// `openat2` takes no longer path in one call (PATH_MAX with its NUL).
const LONGEST_PATH: usize = 4095;

/// The files below a directory. No link is followed and no other file system entered on the way to one.
#[derive(Debug)]
pub struct DirectorySource {
    root: OwnedFd,
}

impl DirectorySource {
    /// Files below `directory`.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(CWD, directory, directory_flags(), Mode::empty())?;
        Ok(Self { root })
    }
}

impl FileSource for DirectorySource {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(open_regular(&self.root, path)?))
    }
}

/// Opens a regular file below a directory without following a link or leaving the file system.
pub(crate) fn open_regular(root: &OwnedFd, path: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open_beneath(root, path, flags)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(File::from(file))
}

fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let open = |path: &[u8], flags| {
        rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
    };
    if path.len() <= LONGEST_PATH {
        return Ok(open(path, flags)?);
    }
    let cut = path[..LONGEST_PATH].iter().rposition(|byte| *byte == b'/');
    let cut = cut.ok_or(rustix::io::Errno::NAMETOOLONG)?;
    let below = open(&path[..cut], directory_flags())?;
    open_beneath(&below, &path[cut + 1..], flags)
}

fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

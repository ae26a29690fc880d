//! How an upper directory is read: at rest, when its step is over, or *live*, while the step still writes to it.
//!
//! What is read live may be gone, moved or another file by the time that it is opened, which is nobody's mistake: it is
//! left out. A step may as well put a device or a FIFO where a file was found, and opening such a thing can do something:
//! so it is looked at before it is opened, through a descriptor that cannot be read. Access times stay as they are.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use oci::FileSource;
use rustix::{
    fs::{FileType, Mode, OFlags, fstat},
    io::Errno,
};

use super::DiffError;
use crate::rootfs::{file_type, open_beneath};

/// An upper directory.
#[derive(Debug, Clone, Copy)]
pub enum Upper<'a> {
    /// Nobody writes to it.
    AtRest(BorrowedFd<'a>),
    /// A step does.
    Live(BorrowedFd<'a>),
}

impl Upper<'_> {
    /// Opens a directory in it, itself included.
    pub fn open_directory(self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self {
            Self::AtRest(root) => open_beneath(root, path, flags),
            Self::Live(root) => open_beneath(root, path, flags | OFlags::NOATIME),
        }
    }

    /// Opens a file that was found to be a regular one.
    pub fn open_file(self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self {
            Self::AtRest(root) => open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK),
            Self::Live(root) => open_regular(root, path),
        }
    }

    /// What the system refuses of a live directory is not there.
    pub fn forgive<T: Default>(self, found: Result<T, DiffError>) -> Result<T, DiffError> {
        match (self, found) {
            (Self::Live(_), Err(DiffError::Path(_))) => Ok(T::default()),
            (_, found) => found,
        }
    }
}

impl FileSource for Upper<'_> {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::from(self.open_file(path)?)))
    }
}

fn open_regular(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let found = open_beneath(root, path, OFlags::PATH)?;
    if file_type(&fstat(&found)?) != FileType::RegularFile {
        return Err(Errno::NOENT);
    }
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", found.as_fd().as_raw_fd()), flags, Mode::empty())
}

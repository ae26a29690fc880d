//! The bytes of what is listed: opened without following or waiting, and hashed until somebody asks to stop.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    os::fd::BorrowedFd,
};

use rustix::{
    fs::{FileType, OFlags, fstat},
    io::Errno,
};
use solver::Cancel;

use super::ListError;
use crate::rootfs::{failed, file_type, open_beneath, shown};

/// Opens a regular file of a source. What is no such file, or not there any more, has changed.
pub fn open_regular(root: BorrowedFd<'_>, path: &[u8]) -> Result<File, ListError> {
    // Without O_NONBLOCK the open would wait for the other end of a FIFO.
    let file = match open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
            return Err(ListError::Changed(shown(path)));
        }
        answer => answer.map_err(failed("reading", path))?,
    };
    let stat = fstat(&file).map_err(failed("reading", path))?;
    match file_type(&stat) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(ListError::Changed(shown(path))),
    }
}

/// Feeds all of a stream to a hasher and says how long it was; `size` is how long it should be.
pub fn hash(stream: &mut impl Read, size: u64, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    const BLOCK: usize = 256 << 10;
    let mut buffer = vec![0; BLOCK.min(usize::try_from(size).unwrap_or(BLOCK).saturating_add(1))];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(length),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Feeds the file at a path to a hasher like [`hash`], until `cancel` asks to stop.
pub fn hash_until(
    stream: impl Read,
    path: &[u8],
    size: u64,
    hasher: &mut blake3::Hasher,
    cancel: &Cancel,
) -> Result<u64, ListError> {
    let hashed = hash(&mut Until { stream, cancel }, size, hasher);
    if cancel.is_requested() {
        return Err(ListError::Cancelled);
    }
    Ok(hashed.map_err(failed("reading", path))?)
}

/// A stream that fails once the build is to stop; what the failure means is for whoever knows the [`Cancel`].
pub struct Until<'a, R> {
    /// The stream.
    pub stream: R,
    /// Says when.
    pub cancel: &'a Cancel,
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.cancel.is_requested() {
            true => Err(io::Error::other("cancelled")),
            false => self.stream.read(buffer),
        }
    }
}

/// An open file of a listing.
#[derive(Debug)]
pub enum Opened<'a> {
    /// On disk.
    File(File),
    /// In memory, read for whoever opened it.
    Bytes(Cursor<Vec<u8>>),
    /// What is left of it, in memory.
    Inline(&'a [u8]),
}

impl Read for Opened<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Bytes(bytes) => bytes.read(buffer),
            Self::Inline(bytes) => bytes.read(buffer),
        }
    }
}

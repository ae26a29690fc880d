//! The bytes of one file, from a listing to the target.
//!
//! Bytes of a context are hashed as they pass, and are wrong when the hash is not the one that was keyed. Bytes of a
//! snapshot cannot change; the kernel copies them (or shares the blocks, where the file system can). Holes stay holes.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use oci::ContentDigest;
use rustix::{
    fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};
use solver::Cancel;

use super::{CopyError, target::Target};
use crate::{
    listing::{Content, ListError, Listing, Node, NodeKind, Opened, hash_until},
    rootfs::{failed, shown},
};

/// Read, hashed and written at a time; a run of zeros of this length becomes a hole.
const BLOCK: usize = 256 << 10;
/// Smaller files are not worth the attempt to share their blocks.
const CLONE_MIN: u64 = 1 << 20;

/// Writes a file of a listing to a place where nothing is, and returns it open.
pub fn write(
    listing: &Listing,
    source: &[u8],
    node: &Node,
    target: &Target<'_>,
    path: &[u8],
    cancel: &Cancel,
) -> Result<File, CopyError> {
    let NodeKind::File { size, content } = &node.kind else { unreachable!("only files have bytes") };
    if *content == Some(ContentDigest::of(b"")) {
        // What was keyed has no bytes. It may be a socket, which cannot be opened.
        return Ok(File::from(target.create_file(path)?));
    }
    let mut from = listing.open(source)?;
    let to = File::from(target.create_file(path)?);
    let shown_path = target.shown(path).into_bytes();
    let cannot_change = content.is_none() || matches!(listing.content, Content::Snapshot(_));
    if let (true, Opened::File(from)) = (cannot_change, &from) {
        share(from, &to, *size, cancel).map_err(|trouble| trouble.told(source, &shown_path))?;
        return Ok(to);
    }
    if let (Some(expected), Opened::File(from)) = (content, &from)
        && let Some(found) = clone(from, &to, path, *size, cancel)?
    {
        return if found == *expected { Ok(to) } else { Err(ListError::Changed(shown(source)).into()) };
    }
    let mut hasher = blake3::Hasher::new();
    let mut tap = |bytes: &[u8]| {
        hasher.update(bytes);
    };
    let block = BLOCK.min(usize::try_from(*size).unwrap_or(BLOCK).saturating_add(1));
    match stream(&mut from, &to, block, &mut tap, cancel) {
        Ok(()) if content.is_none_or(|expected| expected == hasher.finalize().into()) => Ok(to),
        Ok(()) => Err(ListError::Changed(shown(source)).into()),
        Err(trouble) => Err(trouble.told(source, &shown_path)),
    }
}

/// Writes a file whose bytes nobody can change to a place where nothing is, and returns it open.
pub fn write_shared(
    from: &File,
    size: u64,
    target: &Target<'_>,
    path: &[u8],
    cancel: &Cancel,
) -> Result<File, CopyError> {
    let to = File::from(target.create_file(path)?);
    let shown_path = target.shown(path).into_bytes();
    share(from, &to, size, cancel).map_err(|trouble| trouble.told(path, &shown_path))?;
    Ok(to)
}

/// Copies a file whose bytes nobody can change into an empty one.
pub fn share_all(from: &File, to: &File, size: u64, path: &[u8], cancel: &Cancel) -> Result<(), CopyError> {
    share(from, to, size, cancel).map_err(|trouble| trouble.told(path, path))
}

/// Shares the blocks of a file that may change meanwhile, and says what they hold from then on; `None` where these two
/// file systems share nothing.
fn clone(
    from: &File,
    to: &File,
    path: &[u8],
    size: u64,
    cancel: &Cancel,
) -> Result<Option<ContentDigest>, CopyError> {
    if size < CLONE_MIN || ioctl_ficlone(to, from).is_err() {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hash_until(to, path, size, &mut hasher, cancel)?;
    Ok(Some(hasher.finalize().into()))
}

/// Writes what comes from a stream, an archive's entry of `size` bytes, to a place where nothing is, and returns it
/// open.
pub fn write_stream(
    from: &mut impl Read,
    size: u64,
    target: &Target<'_>,
    path: &[u8],
    cancel: &Cancel,
) -> Result<File, CopyError> {
    let to = File::from(target.create_file(path)?);
    let shown_path = target.shown(path).into_bytes();
    let block = BLOCK.min(usize::try_from(size).unwrap_or(BLOCK).saturating_add(1));
    match stream(from, &to, block, &mut |_| (), cancel) {
        Ok(()) => Ok(to),
        Err(trouble) => Err(trouble.told(b"the archive", &shown_path)),
    }
}

enum Trouble {
    Cancelled,
    Read(io::Error),
    Write(io::Error),
}

impl Trouble {
    fn told(self, source: &[u8], path: &[u8]) -> CopyError {
        match self {
            Self::Cancelled => CopyError::Cancelled,
            Self::Read(error) => failed("reading", source)(error).into(),
            Self::Write(error) => failed("writing", path)(error).into(),
        }
    }
}

/// Copies block by block; `tap` sees what passes.
fn stream(
    from: &mut impl Read,
    to: &File,
    block: usize,
    tap: &mut dyn FnMut(&[u8]),
    cancel: &Cancel,
) -> Result<(), Trouble> {
    let mut block = vec![0; block];
    let mut offset = 0;
    loop {
        if cancel.is_requested() {
            return Err(Trouble::Cancelled);
        }
        let filled = fill(from, &mut block).map_err(Trouble::Read)?;
        let bytes = &block[..filled];
        if bytes.is_empty() {
            return to.set_len(offset).map_err(Trouble::Write);
        }
        tap(bytes);
        let is_hole = filled == BLOCK && bytes.iter().all(|byte| *byte == 0);
        if !is_hole {
            to.write_all_at(bytes, offset).map_err(Trouble::Write)?;
        }
        offset += filled as u64;
    }
}

/// Reads until the block is full or the stream ends.
fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Copies the parts of a file that hold data, without looking at them.
fn share(from: &File, to: &File, size: u64, cancel: &Cancel) -> Result<(), Trouble> {
    let mut offset = 0;
    while offset < size {
        let data = match seek(from, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => break,
            answer => answer.map_err(|error| Trouble::Read(error.into()))?,
        };
        let hole = seek(from, SeekFrom::Hole(data)).map_err(|error| Trouble::Read(error.into()))?;
        offset = data;
        while offset < hole {
            if cancel.is_requested() {
                return Err(Trouble::Cancelled);
            }
            let count = usize::try_from(hole - offset).unwrap_or(usize::MAX).min(64 << 20);
            let (mut read_at, mut write_at) = (offset, offset);
            match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), count) {
                Ok(0) => break,
                Ok(copied) => offset += copied as u64,
                Err(Errno::INTR) => {}
                // Not between these two file systems.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    return rest(from, to, cancel);
                }
                Err(error) => return Err(Trouble::Write(error.into())),
            }
        }
        if offset < hole {
            break;
        }
    }
    to.set_len(size).map_err(Trouble::Write)
}

/// Copies a file from its beginning, by hand.
fn rest(from: &File, to: &File, cancel: &Cancel) -> Result<(), Trouble> {
    seek(from, SeekFrom::Start(0)).map_err(|error| Trouble::Read(error.into()))?;
    stream(&mut &*from, to, BLOCK, &mut |_| (), cancel)
}

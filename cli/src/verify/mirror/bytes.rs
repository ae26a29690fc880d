//! One file of a context: its bytes, without those that are not there, and what stands beside them.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use executor::rootfs;
use rustix::{
    fs::{OFlags, SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};
use solver::Cancel;

/// The one extended attribute that builds take from contexts.
const CAPABILITY: &[u8] = b"security.capability";
/// Copied between two looks at whether we are to stop.
const PIECE: u64 = 16 << 20;

/// Copies a regular file to where nothing is.
pub fn copy(from: &Path, to: &Path, metadata: &Metadata, cancel: &Cancel) -> io::Result<()> {
    // What has become a pipe since would be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let source = File::options().read(true).custom_flags(flags.cast_signed()).open(from).map_err(hinted)?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    if ioctl_ficlone(&target, &source).is_err() {
        pieces(&source, &target, cancel)?;
    }
    super::finish(to, metadata)?;
    // Owners and bytes that change take it away.
    if let Some(capability) = rootfs::xattr(&source, CAPABILITY)? {
        rootfs::set_xattr(&target, CAPABILITY, &capability)?;
    }
    Ok(())
}

/// An empty one in its place could be told from it by no build: what reads it would fail here and not there.
fn hinted(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            io::Error::new(error.kind(), format!("{error}: an ignore file can take it out"))
        }
        _ => error,
    }
}

fn pieces(source: &File, target: &File, cancel: &Cancel) -> io::Result<()> {
    let size = source.metadata()?.len();
    let mut offset = 0;
    while offset < size {
        let data = match seek(source, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => break,
            // A file system that knows nothing of holes has none.
            Err(Errno::INVAL) => offset,
            answer => answer?,
        };
        let hole = seek(source, SeekFrom::Hole(data)).unwrap_or(size);
        data_of(source, target, data..hole.min(size), cancel)?;
        offset = hole;
    }
    target.set_len(size)
}

fn data_of(source: &File, target: &File, range: std::ops::Range<u64>, cancel: &Cancel) -> io::Result<()> {
    let mut offset = range.start;
    while offset < range.end {
        if cancel.is_requested() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = (range.end - offset).min(PIECE);
        let (mut read_at, mut write_at) = (offset, offset);
        let copied = copy_file_range(
            source,
            Some(&mut read_at),
            target,
            Some(&mut write_at),
            usize::try_from(count).unwrap_or(usize::MAX),
        );
        offset += match copied {
            Err(Errno::INTR) => 0,
            // Not between these two file systems.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) | Ok(0) => {
                match by_hand(source, target, offset, count)? {
                    // It has become shorter meanwhile.
                    0 => return Ok(()),
                    copied => copied,
                }
            }
            copied => copied? as u64,
        };
    }
    Ok(())
}

fn by_hand(mut source: &File, mut target: &File, offset: u64, count: u64) -> io::Result<u64> {
    seek(source, SeekFrom::Start(offset))?;
    seek(target, SeekFrom::Start(offset))?;
    io::copy(&mut io::Read::take(&mut source, count), &mut target)
}

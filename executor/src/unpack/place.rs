//! Puts one entry into its directory and gives it its metadata.
//!
//! Nothing is opened or changed by a name that could lead elsewhere: what is made is made with `O_EXCL` or fails if it
//! exists, and owner, attributes, mode and time are set in this order (a later chown would drop a capability and the
//! setuid bit) through a descriptor of the very thing that was made (RELIABILITY R17, R18).

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use oci::{
    ContentDigest,
    tree::{NORMAL_TIME, content_time},
};
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod,
        fchown, fsetxattr, futimens, lsetxattr, openat, utimensat,
    },
    io::Errno,
};

use super::{Notes, UnpackError, room::Room, walk::Directory};
use crate::{snapshot::Stamp, tarball::TarEntry, whiteout::is_overlay_xattr};

/// How much is read, written and looked at for holes at once.
const BUFFER: usize = 128 << 10;

/// Writes a file's bytes, leaving holes where there are only zeros. Returns their digest.
pub(super) fn write_content(
    mut content: impl Read,
    file: &mut File,
    entry: &TarEntry,
    room: &mut Room,
) -> io::Result<ContentDigest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER.min(usize::try_from(entry.size).unwrap_or(BUFFER))];
    let mut ends_in_hole = false;
    loop {
        let filled = fill(&mut content, &mut buffer)?;
        let bytes = &buffer[..filled];
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        ends_in_hole = bytes.iter().all(|byte| *byte == 0);
        match ends_in_hole {
            true => drop(file.seek(SeekFrom::Current(filled as i64))?),
            false => {
                room.take(&*file, filled as u64)?;
                file.write_all(bytes)?;
            }
        }
    }
    if ends_in_hole {
        file.set_len(entry.size)?;
    }
    Ok(hasher.finalize().into())
}

fn fill(content: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The time an entry gets on disk, as seen by make and cargo while the build runs: a normalised one would make a
/// changed source look old, so it becomes the time of unpacking. Notes the content of files that were brought by COPY
/// or ADD.
pub(super) fn time_on_disk(entry: &TarEntry, content: Option<ContentDigest>, notes: &mut Notes) -> Stamp {
    let own = Stamp { seconds: entry.seconds, nanoseconds: entry.nanoseconds };
    match content {
        Some(content) if entry.nanoseconds == 0 && content_time(&content) == entry.seconds => {
            notes.brought.insert(content);
            notes.stamp
        }
        _ if own == (Stamp { seconds: NORMAL_TIME, nanoseconds: 0 }) => notes.stamp,
        _ => own,
    }
}

/// Gives an open file or directory its metadata.
pub(super) fn finish_open(
    fd: impl AsFd,
    path: &[u8],
    entry: &TarEntry,
    time: Stamp,
    notes: &mut Notes,
) -> Result<(), UnpackError> {
    let at = |action| UnpackError::at(action, &entry.path);
    let (uid, gid) = owner(entry);
    notes.owner(path, entry, fchown(&fd, uid, gid))?;
    for (name, value) in attributes(entry, notes) {
        notes.xattr(entry, name, fsetxattr(&fd, name, value, XattrFlags::empty()))?;
    }
    fchmod(&fd, Mode::from_raw_mode(entry.mode)).map_err(at("set the mode of"))?;
    futimens(&fd, &timestamps(time)).map_err(at("set the time of"))
}

/// Gives a link, device or FIFO its metadata; these must not be opened.
pub(super) fn finish_node(
    parent: &Directory,
    name: &[u8],
    kind: FileType,
    entry: &TarEntry,
    notes: &mut Notes,
) -> Result<(), UnpackError> {
    let at = |action| UnpackError::at(action, &entry.path);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(parent, name, flags, Mode::empty()).map_err(at("open"))?;
    let (uid, gid) = owner(entry);
    notes.owner(&parent.join(name), entry, chownat(&node, "", uid, gid, AtFlags::EMPTY_PATH))?;
    // There is no call that sets attributes through an O_PATH descriptor before Linux 6.13; the directory's own entry
    // in /proc is a descriptor, too, and the last name is not followed.
    let path = [format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).as_bytes(), name].concat();
    for (attribute, value) in attributes(entry, notes) {
        notes.xattr(entry, attribute, lsetxattr(&*path, attribute, value, XattrFlags::empty()))?;
    }
    if kind != FileType::Symlink {
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        chmod(path, Mode::from_raw_mode(entry.mode)).map_err(at("set the mode of"))?;
    }
    let time = time_on_disk(entry, None, notes);
    utimensat(parent, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time of"))
}

/// Opens a directory for changing its attributes.
pub(super) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Access and modification time alike.
pub(super) fn timestamps(time: Stamp) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn owner(entry: &TarEntry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// The attributes that are not overlayfs's own. No mount ever shows those, so no process of the image has seen them.
fn attributes<'a>(entry: &'a TarEntry, notes: &mut Notes) -> Vec<(&'a [u8], &'a [u8])> {
    let (own, kept): (Vec<_>, Vec<_>) = entry.xattrs.iter().partition(|(name, _)| is_overlay_xattr(name));
    for (name, _) in own {
        notes.skipped_xattr(entry, name);
    }
    kept.into_iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect()
}

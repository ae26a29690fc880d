//! Takes out of an upper directory what its layer does not say, so that the next step finds the same files whether the
//! step before it ran or came from a cache.
//!
//! A file that turned out unchanged goes, and the one below shows again, with its own time and its other names. Where
//! something hides that (its directory was made anew) it stays and gets the time of the one below, and so do unchanged
//! directories. Sockets go. The overlay must not be mounted any more.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{AtFlags, OFlags, Stat, unlinkat},
    io::Errno,
};

use super::{Changed, walk::Found};
use crate::{
    listing::NodeKind,
    rootfs::{PathError, failed, open_beneath, set_mtime, split},
    whiteout::make_whiteout,
};

/// Settles an upper directory. `unchanged` are the paths in `found` that are not in the layer.
pub fn settle(root: &OwnedFd, found: &Changed, unchanged: &BTreeSet<&[u8]>) -> Result<(), PathError> {
    let mut disturbed: BTreeSet<&[u8]> = BTreeSet::new();
    for (path, found) in found {
        let Found::Present(present) = found else { continue };
        match (&present.kind, &present.before) {
            (None, before) => remove(root, path, before.is_some() && present.shows_lower)?,
            _ if !unchanged.contains(path.as_slice()) => continue,
            (Some(NodeKind::Directory), _) => {
                disturbed.insert(path);
                continue;
            }
            (_, Some(before)) if !present.shows_lower => stamp(root, path, &before.stat)?,
            _ => remove(root, path, false)?,
        }
        disturbed.insert(split(path).0);
    }
    for path in disturbed {
        let Some(Found::Present(present)) = found.get(path) else { continue };
        let before = present.before.as_ref().filter(|_| unchanged.contains(path));
        stamp(root, path, before.map_or(&present.stat, |before| &before.stat))?;
    }
    Ok(())
}

fn remove(root: &OwnedFd, path: &[u8], hides_lower: bool) -> Result<(), PathError> {
    let name = split(path).1;
    let parent = parent(root, path).map_err(failed("opening the directory of", path))?;
    unlinkat(&parent, OsStr::from_bytes(name), AtFlags::empty()).map_err(failed("removing", path))?;
    match hides_lower {
        true => make_whiteout(&parent, name).map_err(failed("hiding", path)),
        false => Ok(()),
    }
}

fn stamp(root: &OwnedFd, path: &[u8], stat: &Stat) -> Result<(), PathError> {
    let parent = parent(root, path).map_err(failed("opening the directory of", path))?;
    set_mtime(parent, split(path).1, stat.st_mtime, stat.st_mtime_nsec as u32)
        .map_err(failed("changing the time of", path))
}

fn parent(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(root, split(path).0, OFlags::RDONLY | OFlags::DIRECTORY)
}

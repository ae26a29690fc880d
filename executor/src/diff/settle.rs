//! Takes out of an upper directory what its layer does not say, so that the next step finds the same files whether the
//! step before it ran or came from a cache.
//!
//! A file that turned out unchanged goes, and the one below shows again, with its own time and its other names. Where
//! something hides that (its directory was made anew), and in a whole copy, it stays and gets the time of the one below, and so
//! do unchanged directories. Sockets go. A time that the layer keeps loses its fraction of a second, which no layer has: `make`
//! would see it after the step ran, and not after its layer was brought. The overlay must not be mounted any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{AtFlags, OFlags, Stat, linkat, unlinkat},
    io::Errno,
};

use solver::op::Timestamps;

use super::{
    Changed, UpperKind, kept_time,
    walk::{Found, Present},
};
use crate::{
    listing::NodeKind,
    mount::OverlayMarks,
    rootfs::{PathError, failed, open_beneath, set_mtime, split},
};

/// Settles an upper directory. `unchanged` are the paths in `found` that are not in the layer.
pub fn settle(
    root: &OwnedFd,
    kind: UpperKind<'_>,
    found: &Changed,
    unchanged: &BTreeSet<&[u8]>,
    timestamps: Timestamps,
) -> Result<(), PathError> {
    let marks = match kind {
        UpperKind::Overlay(marks) => Some(marks),
        UpperKind::Copy(_) => None,
    };
    let is_whole = marks.is_none();
    // The time of what is in the layer.
    let kept = |stat: &Stat| match kept_time(stat.st_mtime, timestamps) {
        Some(seconds) => (seconds, 0),
        None => time(stat),
    };
    let mut disturbed: BTreeSet<&[u8]> = BTreeSet::new();
    for (path, found) in found {
        let Found::Present(present) = found else { continue };
        match (&present.kind, &present.before) {
            (None, before) => {
                let marks = marks.filter(|_| before.is_some() && present.shows_lower);
                remove(root, path, marks)?;
            }
            _ if !unchanged.contains(path.as_slice()) => {
                if kept(&present.stat) != time(&present.stat) {
                    stamp(root, path, kept(&present.stat))?;
                }
                continue;
            }
            (Some(NodeKind::Directory), _) => {
                disturbed.insert(path);
                continue;
            }
            (_, Some(before)) if is_whole || !present.shows_lower => stamp(root, path, time(&before.stat))?,
            _ => remove(root, path, None)?,
        }
        disturbed.insert(split(path).0);
    }
    if is_whole {
        disturbed.extend(relink(root, found, unchanged)?);
    }
    for path in disturbed {
        let Some(Found::Present(present)) = found.get(path) else { continue };
        let before = present.before.as_ref().filter(|_| unchanged.contains(path));
        stamp(root, path, before.map_or_else(|| kept(&present.stat), |before| time(&before.stat)))?;
    }
    Ok(())
}

/// Makes names of one file that were replaced by equal files names of one file again, as they show in an overlay once nothing
/// lies above them. Gives the directories that were written to.
fn relink<'a>(
    root: &OwnedFd,
    found: &Changed,
    unchanged: &BTreeSet<&'a [u8]>,
) -> Result<Vec<&'a [u8]>, PathError> {
    let mut files: BTreeMap<_, Vec<(&'a [u8], &Present)>> = BTreeMap::new();
    for path in unchanged {
        let Some(Found::Present(present)) = found.get(*path) else { continue };
        let has_names = present.shows_lower && !present.is_directory();
        if let Some(before) = present.before.as_ref().filter(|before| has_names && before.stat.st_nlink > 1) {
            files.entry((before.stat.st_dev, before.stat.st_ino)).or_default().push((path, present));
        }
    }
    let mut written = Vec::new();
    for names in files.into_values() {
        let (first, kept) = names.iter().find(|(_, present)| present.is_copy).unwrap_or(&names[0]);
        for (path, _) in names.iter().filter(|(_, present)| present.stat.st_ino != kept.stat.st_ino) {
            let name = OsStr::from_bytes(split(path).1);
            let from = parent(root, first).map_err(failed("opening the directory of", first))?;
            let to = parent(root, path).map_err(failed("opening the directory of", path))?;
            unlinkat(&to, name, AtFlags::empty()).map_err(failed("removing", path))?;
            linkat(from, OsStr::from_bytes(split(first).1), to, name, AtFlags::empty())
                .map_err(failed("linking", path))?;
            written.push(split(path).0);
        }
    }
    Ok(written)
}

/// Seconds and nanoseconds.
fn time(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}

/// Removes something; what stood there before is hidden by a mark, if one is given.
fn remove(root: &OwnedFd, path: &[u8], mark: Option<OverlayMarks>) -> Result<(), PathError> {
    let name = split(path).1;
    let parent = parent(root, path).map_err(failed("opening the directory of", path))?;
    unlinkat(&parent, OsStr::from_bytes(name), AtFlags::empty()).map_err(failed("removing", path))?;
    match mark {
        Some(marks) => marks.hide(&parent, name).map_err(failed("hiding", path)),
        None => Ok(()),
    }
}

fn stamp(root: &OwnedFd, path: &[u8], (seconds, nanoseconds): (i64, u32)) -> Result<(), PathError> {
    let parent = parent(root, path).map_err(failed("opening the directory of", path))?;
    set_mtime(parent, split(path).1, seconds, nanoseconds).map_err(failed("changing the time of", path))
}

fn parent(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(root, split(path).0, OFlags::RDONLY | OFlags::DIRECTORY)
}

//! A time that a directory has lost. When the program copies something up, the directory above gets a new time on disk; the
//! kernel still knows the old one and shows that, until the directory itself is changed: then it asks, and is told the new one.
//! So `chown -R`, which comes to a directory after all that is in it, would touch every directory, which it does not on an
//! overlay. And a link that is copied up for an owner has a new time at once.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{FileType, OFlags, Stat, fstat, readlinkat},
    io::Errno,
};

use super::{below::Below, close::origin};
use crate::{
    copies::born,
    mount::OverlayMarks,
    rootfs::{file_type, join, lstat, names, open_beneath, permissions, set_mtime},
    whiteout::{MARK_PREFIX, is_whiteout},
};

/// Seconds and nanoseconds of Unix time.
pub type Time = (i64, u32);

/// The time that a directory of the upper one had below, where it has another one for nothing but that: something in it was
/// copied up, no name in it came or went, and then it was changed itself.
///
/// What leaves no trace is not told from that: a `touch` of the directory, a name made and removed in it, or a link made anew as
/// it was, before the change, in a step that also changed a file there and added or removed no other name.
///
/// It must be as it was served: before any mark in it is changed.
///
/// # Errors
/// What the disk says.
pub fn lost(
    directory: &OwnedFd,
    path: &[u8],
    shown: Time,
    lowers: &[OwnedFd],
) -> Result<Option<Time>, Errno> {
    let now = fstat(directory)?;
    if path.is_empty() || !is_of_this_step(directory, b"", shown, &now)? {
        return Ok(None);
    }
    let names = names(directory)?;
    let is_copied = |name: &Vec<u8>| is_from_its_place(directory, path, name);
    if names.is_empty() || !all(&names, is_copied)? {
        return Ok(None);
    }
    let Some(below) = Below::at(lowers, path)? else { return Ok(None) };
    let before = below.stat()?;
    if !was_changed_itself(&before, &now) || !all(&names, |name| is_there(&below, directory, name))? {
        return Ok(None);
    }
    Ok(Some(modified(&before)))
}

fn all(names: &[Vec<u8>], mut holds: impl FnMut(&Vec<u8>) -> Result<bool, Errno>) -> Result<bool, Errno> {
    for name in names {
        if !holds(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a time is one that the system has given since this was made in the upper directory; nobody knows that where the disk
/// does not say when that was.
fn is_of_this_step(directory: &OwnedFd, name: &[u8], shown: Time, now: &Stat) -> Result<bool, Errno> {
    let is_given = shown == modified(now) && shown <= changed(now);
    Ok(is_given && born(directory, name)?.is_some_and(|birth| birth <= shown))
}

/// Whether the last that happened to a directory was a change of it, and not of a name in it. Where both fell into one tick
/// of the clock what has changed may tell.
fn was_changed_itself(before: &Stat, now: &Stat) -> bool {
    let what = |stat: &Stat| (stat.st_uid, stat.st_gid, permissions(stat));
    changed(now) > modified(now) || what(before) != what(now)
}

/// Whether a file was copied up where it is, and nothing is marked as gone or as opaque; of others this is not known yet.
fn is_from_its_place(directory: &OwnedFd, path: &[u8], name: &[u8]) -> Result<bool, Errno> {
    if name.starts_with(MARK_PREFIX) {
        return Ok(false);
    }
    let Some(stat) = lstat(directory, name)? else { return Ok(false) };
    match file_type(&stat) {
        FileType::RegularFile => {
            Ok(origin(directory, name)?.is_some_and(|origin| origin == join(path, name)))
        }
        _ => Ok(!is_whiteout(&stat)),
    }
}

/// Whether a name was there before, and of the same kind. A link, which cannot say where it is from, is told by its target; a
/// directory made anew says that it hides the one below.
fn is_there(below: &Below, directory: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let (Some(now), Some(before)) = (lstat(directory, name)?, below.entry(name)?) else { return Ok(false) };
    if file_type(&now) != file_type(&before) {
        return Ok(false);
    }
    match file_type(&now) {
        FileType::RegularFile => Ok(true),
        FileType::Directory => {
            let inner = open_beneath(directory, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            Ok(!super::close::is_marked_opaque(&inner)? && !OverlayMarks::Names.is_opaque(&inner)?)
        }
        FileType::Symlink => Ok(readlinkat(directory, name, Vec::new())? == below.target(name)?),
        _ => Ok(false),
    }
}

/// Gives links that stand where one with the same target was the time of that.
///
/// One that was made anew and has another owner now is not told from one that was copied up for that owner. With the same owner
/// it is the same.
///
/// # Errors
/// What the disk says.
pub fn restore_links(directory: &OwnedFd, path: &[u8], lowers: &[OwnedFd]) -> Result<(), Errno> {
    let mut links = Vec::new();
    for name in names(directory)? {
        let Some(stat) = lstat(directory, &name)? else { continue };
        let is_link = file_type(&stat) == FileType::Symlink;
        if is_link && is_of_this_step(directory, &name, modified(&stat), &stat)? {
            links.push(name);
        }
    }
    if links.is_empty() {
        return Ok(());
    }
    let Some(below) = Below::at(lowers, path)? else { return Ok(()) };
    for name in links {
        if let (true, Some(before)) = (is_there(&below, directory, &name)?, below.entry(&name)?) {
            let (seconds, nanoseconds) = modified(&before);
            set_mtime(directory, &name, seconds, nanoseconds)?;
        }
    }
    Ok(())
}

fn modified(stat: &Stat) -> Time {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}

fn changed(stat: &Stat) -> Time {
    (stat.st_ctime, stat.st_ctime_nsec as u32)
}

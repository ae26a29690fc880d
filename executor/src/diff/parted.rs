//! Tells, of a copy, which names of one file an overlay would have parted from each other.

use std::{
    collections::BTreeSet,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{OFlags, fstat},
    io::Errno,
};

use super::compare::Leader;
use crate::{
    copies::{Bond, Twins, born},
    rootfs::{PathError, failed, join, open_beneath},
};

/// A copy that a step has changed, and what it is of.
#[derive(Debug, Clone, Copy)]
pub struct Copied<'a> {
    /// Its root directory.
    pub root: BorrowedFd<'a>,
    /// That of the original.
    pub original: BorrowedFd<'a>,
    /// Which copy is of what.
    pub twins: &'a Twins,
}

impl Copied<'_> {
    /// All names of a file, if it is that of one with several to which something was done: an overlay would have parted them.
    /// Nobody knows by which name it was, nor what came first.
    ///
    /// # Errors
    /// The directories of its names cannot be looked at.
    pub fn held_together(
        self,
        leader: &Leader<'_>,
        is_changed: bool,
    ) -> Result<Option<Vec<Vec<u8>>>, PathError> {
        let has_several = leader.names.len() > 1;
        let is_held = match leader.present.bond {
            Bond::None => false,
            // Directories were moved, which an overlay leaves to the command: that copies each with what it has.
            Bond::Kept => (is_changed || leader.is_hidden()) && !self.was_moved_as_one(leader)?,
            // It looks as before. What is new are names that are still one, or content where it was; else a name was moved.
            Bond::Loosened => is_changed && (has_several || leader.present.is_copy),
            // Even if it is as it was: the command may have used its names in between.
            Bond::Changed | Bond::Touched => true,
        };
        Ok(is_held.then(|| leader.names.iter().map(|name| name.to_vec()).collect()))
    }

    /// Whether all names that the file has are those of before below one directory that was moved, and nothing in that was.
    fn was_moved_as_one(self, leader: &Leader<'_>) -> Result<bool, PathError> {
        // Names that the layer does not have stay those of this file for the next step.
        if leader.present.stat.st_nlink > leader.names.len() as u64 {
            return Ok(false);
        }
        let places = self.twins.places(&leader.present.stat);
        let moves: BTreeSet<_> = places.iter().flat_map(|place| moves(place, leader.names[0])).collect();
        for (from, to) in moves {
            if self.is_copy(from, to)? && self.are_those_of_before(leader, (from, to), places)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn are_those_of_before(
        self,
        leader: &Leader<'_>,
        (from, to): (&[u8], &[u8]),
        places: &[Vec<u8>],
    ) -> Result<bool, PathError> {
        let below = |place: &Vec<u8>| {
            let rest = place.strip_prefix(from)?.strip_prefix(b"/")?;
            Some(join(to, rest))
        };
        let were: BTreeSet<Vec<u8>> = places.iter().filter_map(below).collect();
        if !were.iter().eq(&leader.names) {
            return Ok(false);
        }
        let inner: BTreeSet<&[u8]> = leader.names.iter().flat_map(|name| inside(to, name)).collect();
        for now in inner {
            let was = join(from, &now[to.len() + 1..]);
            if !self.look(&was, now, |now, was| Ok(self.twins.is_untouched(&fstat(now)?, &fstat(was)?)))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a directory is the copy of one that was elsewhere.
    fn is_copy(self, was: &[u8], now: &[u8]) -> Result<bool, PathError> {
        self.look(was, now, |now, was| Ok(self.twins.is_copy(&fstat(now)?, born(now, b"")?, &fstat(was)?)))
    }

    fn look(
        self,
        was: &[u8],
        now: &[u8],
        say: impl FnOnce(&OwnedFd, &OwnedFd) -> Result<bool, Errno>,
    ) -> Result<bool, PathError> {
        let open = |root, path| open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY);
        let both = open(self.root, now).and_then(|there| say(&there, &open(self.original, was)?));
        both.map_err(failed("looking at", now))
    }
}

/// The directories of which one may have become the other, if that moved the file.
fn moves<'a>(from: &'a [u8], to: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let slashes = (1..from.len()).filter(|at| from[*at] == b'/');
    slashes.filter_map(|at| {
        let (directory, rest) = from.split_at(at);
        let other = to.strip_suffix(rest)?;
        (!other.is_empty() && other != directory).then_some((directory, other))
    })
}

/// The directories between one and what is somewhere in it.
fn inside<'a>(directory: &[u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let start = directory.len() + 1;
    (start..name.len()).filter(|at| name[*at] == b'/').map(|at| &name[..at])
}

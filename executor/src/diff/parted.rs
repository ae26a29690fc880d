//! Tells, of a copy, which names of one file an overlay would have parted from each other.

use std::{collections::BTreeSet, os::fd::BorrowedFd};

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
        // Names that the layer does not have stay those of this file for the next step.
        let has_others = leader.present.stat.st_nlink > leader.names.len() as u64;
        let is_held = match leader.present.bond {
            Bond::None => false,
            // Directories were moved, which an overlay leaves to the command: that copies each with what it has.
            Bond::Kept => is_changed && (has_others || !self.was_moved_as_one(leader)?),
            // It looks as before. What is new are names that are still one, or content where it was; else a name was moved.
            Bond::Loosened => is_changed && (has_others || leader.names.len() > 1 || leader.present.is_copy),
            // The name that is left may be the one that was written, or another.
            Bond::Changed => is_changed,
            // Even if it is as it was: the command may have used its names in between.
            Bond::Touched => true,
        };
        Ok(is_held.then(|| leader.names.iter().map(|name| name.to_vec()).collect()))
    }

    /// Whether the names are those of before below one directory that was moved.
    fn was_moved_as_one(self, leader: &Leader<'_>) -> Result<bool, PathError> {
        let now: BTreeSet<Vec<u8>> = leader.names.iter().map(|name| name.to_vec()).collect();
        let places = self.twins.places(&leader.present.stat);
        for (from, to) in places.iter().flat_map(|place| moves(place, leader.names[0])) {
            let below = |place: &Vec<u8>| {
                let rest = place.strip_prefix(from)?.strip_prefix(b"/")?;
                Some(join(to, rest))
            };
            if places.iter().filter_map(below).collect::<BTreeSet<_>>() == now && self.is_copy(to, from)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a directory is the copy of one that was elsewhere.
    fn is_copy(self, now: &[u8], was: &[u8]) -> Result<bool, PathError> {
        let open = |root, path| open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY);
        let is_copy = || -> Result<bool, Errno> {
            let now = open(self.root, now)?;
            let was = fstat(open(self.original, was)?)?;
            Ok(self.twins.is_copy(&fstat(&now)?, born(&now, b"")?, &was))
        };
        is_copy().map_err(failed("looking at", now))
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

//! A named control group for as long as a build takes: made where it is missing, and taken away by the last one that uses it.
//!
//! Whoever uses it holds a shared lock on its directory; who has made it takes it away if he can have the lock for himself. So
//! builds that name the same group do not take it from each other, and what was there before them stays. Anybody can hold a
//! lock on a directory that he can open, so nobody waits for one: who cannot have it uses the group all the same.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::sandbox::plan::Group;

/// How often a lock is tried that somebody has for himself, and how long after each time: who takes a group away has it for
/// less than that.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// A group in which steps get theirs. Dropped, what was made for it is taken away.
#[derive(Debug)]
pub struct GroupLease {
    group: Group,
    _made: Option<Made>,
}

impl GroupLease {
    /// Of a group that is kept as long as `made`.
    pub(super) fn new(group: Group, made: Option<Made>) -> Self {
        Self { group, _made: made }
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }
}

/// Groups that were made, from the topmost one on.
#[derive(Debug, Default)]
pub struct Made {
    directories: Vec<PathBuf>,
    /// The one that is used, once it is.
    held: Option<File>,
}

impl Made {
    /// Makes a group that is missing.
    pub fn make(&mut self, directory: &Path) -> io::Result<()> {
        match fs::create_dir(directory) {
            Ok(()) => {
                self.directories.push(directory.to_owned());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells others that it is used; `NotFound` where somebody has just taken it away.
    pub fn hold(&mut self, directory: &Path) -> io::Result<()> {
        let opened = File::open(directory)?;
        let is_held = lock_shared(&opened)?;
        match fs::metadata(directory)?.ino() == opened.metadata()?.ino() {
            true => {
                self.held = Some(opened);
                if !is_held {
                    // A stranger has it: what was made stays, as in the end it would.
                    self.directories.clear();
                }
                Ok(())
            }
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Whether it could be had.
fn lock_shared(directory: &File) -> io::Result<bool> {
    for _ in 0..TRIES {
        match flock(directory, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
            locked => return locked.map(|()| true).map_err(io::Error::from),
        }
    }
    Ok(false)
}

impl Drop for Made {
    fn drop(&mut self) {
        let alone = |held: &File| flock(held, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !self.held.as_ref().is_none_or(alone) {
            return;
        }
        // One that is not empty is somebody's, and so are those above it.
        let _ = self.directories.iter().rev().try_for_each(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_takes_away_what_was_made() {
        let place = tempfile::tempdir().unwrap();
        let (there, leaf) = (place.path().join("there"), place.path().join("there/made"));
        fs::create_dir(&there).unwrap();
        let used = || {
            let mut made = Made::default();
            made.make(&there).and_then(|()| made.make(&leaf)).and_then(|()| made.hold(&leaf)).unwrap();
            made
        };
        let (first, second) = (used(), used());
        drop(second);
        assert!(leaf.exists(), "another one has made it");
        drop(first);
        assert!(there.exists() && !leaf.exists());
        let (first, second) = (used(), used());
        drop(first);
        assert!(leaf.exists(), "another one uses it");
        drop(second);
        assert!(leaf.exists(), "who has not made it leaves it");
    }

    #[test]
    fn nobody_waits_for_a_stranger_who_holds_the_lock() {
        let place = tempfile::tempdir().unwrap();
        let leaf = place.path().join("made");
        let mut made = Made::default();
        made.make(&leaf).unwrap();
        let stranger = File::open(&leaf).unwrap();
        flock(&stranger, FlockOperation::LockExclusive).unwrap();
        made.hold(&leaf).unwrap();
        drop(made);
        assert!(leaf.exists(), "it may be another builder's");
    }

    #[test]
    fn what_was_made_for_nothing_goes_at_once() {
        let place = tempfile::tempdir().unwrap();
        let mut made = Made::default();
        made.make(&place.path().join("a")).and_then(|()| made.make(&place.path().join("a/b"))).unwrap();
        assert!(made.hold(&place.path().join("a/c")).is_err());
        drop(made);
        assert!(!place.path().join("a").exists());
    }
}

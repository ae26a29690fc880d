//! How much room a directory takes on its disk: the blocks of every inode below it, each once.
//!
//! Whoever writes there may still be at it, and may be hostile: no link is followed, no other file system entered, and a path
//! is never spelled, so that none is too long. Two descriptors are enough for a tree of any depth, since the way back up is
//! `..`, looked at: a directory that was moved meanwhile ends the walk there.

mod heap;

use std::{collections::HashSet, ffi::CString, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, statat},
    io::Errno,
};

use self::heap::Heap;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Allocated bytes.
    pub bytes: u64,
    /// Where the most of them are: a path below the directory, and how much that takes; nothing where nothing is.
    pub most: Option<(String, u64)>,
}

/// The unit of `st_blocks`, whatever the file system's blocks are.
const BLOCK: u64 = 512;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Measures a directory; what of it was seen where `is_over` says that nobody wants to know any more, or where a directory was
/// moved from under the walk.
///
/// # Errors
/// Something there cannot be read.
pub fn measure(directory: &Path, is_over: &dyn Fn() -> bool) -> Result<Room, Errno> {
    let root = open(directory, DIRECTORY, Mode::empty())?;
    let mut walk = Walk::begin(&root)?;
    let mut here = root;
    while !is_over() {
        match walk.next_directory(&here)? {
            Next::Into(child) => here = child,
            Next::UpTo(parent) => here = parent,
            Next::Over => break,
        }
    }
    Ok(walk.heap.told())
}

/// A directory on the way down.
struct Frame {
    identity: (u64, u64),
    /// The directories in it that were not entered yet.
    below: Vec<CString>,
}

enum Next {
    Into(OwnedFd),
    UpTo(OwnedFd),
    Over,
}

struct Walk {
    frames: Vec<Frame>,
    device: u64,
    /// Of inodes with several names.
    seen: HashSet<u64>,
    heap: Heap,
}

impl Walk {
    fn begin(root: &OwnedFd) -> Result<Self, Errno> {
        let found = fstat(root)?;
        let mut walk =
            Self { frames: Vec::new(), device: found.st_dev, seen: HashSet::new(), heap: Heap::default() };
        walk.heap.add_here(room_of(&found));
        walk.enter(root, &found)?;
        Ok(walk)
    }

    fn next_directory(&mut self, here: &OwnedFd) -> Result<Next, Errno> {
        while let Some(name) = self.frames.last_mut().and_then(|frame| frame.below.pop()) {
            if let Some((child, found)) = self.open_child(here, &name)? {
                self.heap.descend(name.as_bytes());
                self.enter(&child, &found)?;
                return Ok(Next::Into(child));
            }
        }
        self.leave(here)
    }

    /// A directory, unless it has become something else, or is gone, or covered by another file system.
    fn open_child(&self, here: &OwnedFd, name: &CString) -> Result<Option<(OwnedFd, Stat)>, Errno> {
        match openat(here, name, DIRECTORY, Mode::empty()) {
            Ok(child) => {
                let found = fstat(&child)?;
                Ok((found.st_dev == self.device).then_some((child, found)))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn enter(&mut self, directory: &OwnedFd, found: &Stat) -> Result<(), Errno> {
        let mut below = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                found => found?,
            };
            let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if is_directory {
                below.push(name.to_owned());
            }
            // The number of links of a directory says how many are in it.
            let is_new = is_directory || found.st_nlink < 2 || self.seen.insert(found.st_ino);
            if is_new && found.st_dev == self.device {
                self.heap.add(name.to_bytes(), room_of(&found));
            }
        }
        self.frames.push(Frame { identity: (found.st_dev, found.st_ino), below });
        Ok(())
    }

    fn leave(&mut self, here: &OwnedFd) -> Result<Next, Errno> {
        self.frames.pop();
        self.heap.ascend();
        let Some(frame) = self.frames.last() else { return Ok(Next::Over) };
        let parent = openat(here, "..", DIRECTORY, Mode::empty())?;
        let found = fstat(&parent)?;
        match (found.st_dev, found.st_ino) == frame.identity {
            true => Ok(Next::UpTo(parent)),
            false => Ok(Next::Over),
        }
    }
}

fn room_of(found: &Stat) -> u64 {
    u64::try_from(found.st_blocks).unwrap_or(0) * BLOCK
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn bytes(path: &Path) -> u64 {
        measure(path, &|| false).unwrap().bytes
    }

    #[test]
    fn every_inode_counts_once_and_no_link_is_followed() {
        let (outside, inside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("large"), vec![1; 1 << 20]).unwrap();
        fs::create_dir_all(inside.path().join("a/b")).unwrap();
        let empty = bytes(inside.path());
        fs::write(inside.path().join("a/b/file"), vec![1; 256 << 10]).unwrap();
        let one = bytes(inside.path());
        assert!((empty + (256 << 10)..empty + (300 << 10)).contains(&one), "{empty} {one}");
        fs::hard_link(inside.path().join("a/b/file"), inside.path().join("again")).unwrap();
        symlink(outside.path(), inside.path().join("directory")).unwrap();
        symlink(outside.path().join("large"), inside.path().join("a/large")).unwrap();
        assert!(bytes(inside.path()) < one + (64 << 10));
        let sparse = fs::File::create(inside.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        assert!(bytes(inside.path()) < one + (64 << 10));
        assert!(measure(&inside.path().join("directory"), &|| false).is_err(), "a link is no directory");
    }

    #[test]
    fn trees_may_be_deeper_than_a_path_can_be_spelled() {
        let place = tempfile::tempdir().unwrap();
        let mut here = open(place.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..100 {
            rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
            here = openat(&here, &name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let file = openat(&here, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        rustix::io::write(&file, &[1; 128 << 10]).unwrap();
        let room = measure(place.path(), &|| false).unwrap();
        assert!(room.bytes >= 128 << 10);
        assert!(room.most.is_some_and(|(path, _)| path.matches('/').count() == 4));
    }
}

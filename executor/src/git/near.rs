//! The lstat of many paths, one after the other as the index has them: what lies in one directory is asked for in that.
//!
//! A path that leads through a link names no file of the work tree: git tracks nothing behind one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{OFlags, Stat},
    io::Errno,
};

use crate::rootfs::{lstat, open_beneath, split};

/// Looks at paths below a directory.
pub(super) struct Near<'a> {
    top: BorrowedFd<'a>,
    /// The directory of the last one, and what there was to be opened.
    opened: Option<(Vec<u8>, Result<OwnedFd, Errno>)>,
}

impl<'a> Near<'a> {
    /// Nothing is opened yet.
    pub(super) fn new(top: BorrowedFd<'a>) -> Self {
        Self { top, opened: None }
    }

    /// What is at a path; `None` where nothing is, or a link stands on its way.
    pub(super) fn lstat(&mut self, path: &[u8]) -> Result<Option<Stat>, Errno> {
        let (parent, name) = split(path);
        if parent.is_empty() {
            return lstat(self.top, name);
        }
        if self.opened.as_ref().is_none_or(|(dir, _)| dir != parent) {
            let opened = open_beneath(self.top, parent, OFlags::PATH | OFlags::DIRECTORY);
            self.opened = Some((parent.to_vec(), opened));
        }
        match self.opened.as_ref().map(|(_, opened)| opened) {
            Some(Ok(directory)) => lstat(directory.as_fd(), name),
            Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) | None => Ok(None),
            Some(Err(error)) => Err(*error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::symlink,
    };

    use super::*;

    #[test]
    fn what_is_behind_a_link_is_not_there() {
        let directory = tempfile::tempdir().expect("made");
        let place = |name: &str| directory.path().join(name);
        fs::create_dir_all(place("a/b")).expect("made");
        for name in ["top", "a/b/one", "a/b/two"] {
            fs::write(place(name), name).expect("written");
        }
        symlink("b", place("a/l")).expect("linked");
        let top = File::open(directory.path()).expect("opened");
        let mut near = Near::new(top.as_fd());
        for (path, size) in [
            ("a/b/one", Some(7)),
            ("a/b/two", Some(7)),
            ("a/b/three", None),
            ("a/l", Some(1)),
            ("a/l/one", None),
            ("a/none/one", None),
            ("top", Some(3)),
            ("top/below", None),
            ("a/b/one", Some(7)),
        ] {
            let found = near.lstat(path.as_bytes()).expect("looked at");
            assert_eq!(found.map(|stat| stat.st_size), size, "{path}");
        }
    }
}

//! A file system seen through one open directory: the only way paths of images are looked at.
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, so an absolute link or
//! a `..` in an image ends at the image's own root, also while somebody else swaps directories under us.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::{Errno, retry_on_intr},
};

use crate::fuse::{Merged, Merger};

/// A read-only file system, detached from every mount tree: it is gone when this value is dropped.
#[derive(Debug)]
pub struct View {
    root: Merged,
}

impl View {
    /// Wraps the root directory of a mount that nobody else can reach, or one of the store's.
    pub fn new(root: OwnedFd) -> Self {
        Self::of(Merged::by_kernel(root))
    }

    /// Wraps merged layers.
    pub fn of(root: Merged) -> Self {
        Self { root }
    }

    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Gives up the view and keeps its root. Who serves it, if somebody does, ends when that is closed.
    pub fn into_root(self) -> OwnedFd {
        let (root, merger) = self.root.into_parts();
        merger.into_iter().for_each(Merger::disown);
        root
    }

    /// Opens a path, following links inside the root. `O_CLOEXEC` is added to the flags.
    ///
    /// # Errors
    /// What openat2(2) says; `ENOENT` where nothing is.
    pub fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        open_in_root(self.root(), path, flags)
    }
}

impl AsFd for View {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root()
    }
}

/// Opens a path below a root directory, following links inside it (the last component only without `O_NOFOLLOW`);
/// `/` and the empty path are the root itself. `O_CLOEXEC` is added to the flags; files are created with mode 0600.
///
/// # Errors
/// What openat2(2) says. `EAGAIN`, which the kernel answers when something was renamed while it walked `..`, is
/// tried again.
pub fn open_in_root(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"/" } else { path };
    let path = Path::new(OsStr::from_bytes(path));
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match retry_on_intr(|| openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, mode, resolve)) {
            Err(Errno::AGAIN) => continue,
            answer => return answer,
        }
    }
}

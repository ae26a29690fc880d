//! A directory on disk as a source: a context, or a snapshot's file system.
//!
//! What a context may not hold (a device) is an error where it would be copied.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    os::fd::{BorrowedFd, OwnedFd},
};

use oci::ContentDigest;
use rayon::prelude::*;
use rustix::{
    fs::{Dir, FileType, OFlags, Stat, readlinkat},
    io::Errno,
};
use solver::{Cancel, op::Selector, pattern::ignore::Matcher};

use super::{
    ListError, Node, NodeKind, Nodes, Owners,
    lookup::{Found, Names, Paths},
    sight::{Entry, Terrain, go_on, is_present, nodes, see},
    state::FileState,
    walk::{Seen, Standing},
};
use crate::rootfs::{
    failed, file_type, join, lstat, names, open_beneath, permissions, shown, split, xattrs, xattrs_at,
};

/// A directory to list, and how.
pub struct Disk<'a> {
    /// The root of the source.
    pub root: BorrowedFd<'a>,
    /// What the source is.
    pub kind: DiskKind<'a>,
    /// Says when to stop looking.
    pub cancel: &'a Cancel,
}

/// What a source on disk is, and what that makes of the things in it.
pub enum DiskKind<'a> {
    /// Files of whoever runs the build: all become root's, and may change while they are read.
    Context {
        /// What is not part of the context at all.
        ignore: Option<&'a Matcher>,
    },
    /// A file system of an image, which nobody changes.
    Snapshot {
        /// Owners that the disk could not hold.
        owners: &'a Owners,
    },
}

/// Everything that a selector can pick of a snapshot. File contents are not read.
///
/// # Errors
/// A source is not there, or cannot be looked at; or it is time to stop.
pub fn list(disk: &Disk<'_>, selector: &Selector) -> Result<Nodes, ListError> {
    let (mut seen, _) = see(disk, selector)?.settled();
    let read = seen.par_iter_mut().map(|thing| read_attributes(disk, thing));
    read.collect::<Result<(), ListError>>()?;
    Ok(nodes(seen))
}

/// Of a named directory nothing is copied; what is no file nor directory must not be opened.
fn read_attributes(disk: &Disk<'_>, Seen { path, node, standing, .. }: &mut Seen) -> Result<(), ListError> {
    go_on(disk.cancel)?;
    if *standing == Standing::Named {
        return Ok(());
    }
    let read = match node.kind {
        NodeKind::File { .. } | NodeKind::Directory => {
            let file = open_beneath(disk.root, path, OFlags::RDONLY | OFlags::NONBLOCK);
            xattrs(file.map_err(failed("opening", path))?)
        }
        _ => {
            let (parent, name) = split(path);
            let dir = open_beneath(disk.root, parent, OFlags::PATH | OFlags::DIRECTORY);
            xattrs_at(dir.map_err(failed("opening", parent))?, name)
        }
    };
    node.xattrs = read.map_err(failed("reading attributes of", path))?;
    Ok(())
}

impl Paths for Disk<'_> {
    type Error = ListError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, ListError> {
        if path.is_empty() {
            return Ok(Some(Found::Directory));
        }
        let Some((dir, stat)) = self.stat(path)? else { return Ok(None) };
        let found = match file_type(&stat) {
            FileType::Directory => Found::Directory,
            FileType::Symlink => Found::Link(read_link(&dir, path)?),
            _ => Found::Other,
        };
        Ok(is_present(self, path, found == Found::Directory)?.then_some(found))
    }
}

impl Names for Disk<'_> {
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, ListError> {
        let opened = match open_beneath(self.root, dir, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOTDIR) => return Ok(Vec::new()),
            answer => answer.map_err(failed("reading directory", dir))?,
        };
        Ok(names(&opened).map_err(failed("reading directory", dir))?)
    }
}

impl Terrain for Disk<'_> {
    type Directory = OwnedFd;
    type Status = Stat;

    fn ignore(&self) -> Option<&Matcher> {
        match self.kind {
            DiskKind::Context { ignore } => ignore,
            DiskKind::Snapshot { .. } => None,
        }
    }

    fn cancel(&self) -> &Cancel {
        self.cancel
    }

    fn directory(&self, dir: &[u8]) -> Result<OwnedFd, ListError> {
        match open_beneath(self.root, dir, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(ListError::Changed(shown(dir))),
            answer => Ok(answer.map_err(failed("reading directory", dir))?),
        }
    }

    fn entries(&self, opened: &OwnedFd, dir: &[u8]) -> Result<Vec<Entry>, ListError> {
        let mut entries = Vec::new();
        let unreadable = |error: Errno| failed("reading directory", dir)(error);
        for entry in Dir::read_from(opened).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = CStr::to_bytes(entry.file_name());
            if name == b"." || name == b".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => None,
                kind => Some(kind == FileType::Directory),
            };
            entries.push(Entry { path: join(dir, name), is_directory });
        }
        Ok(entries)
    }

    fn status(&self, opened: &OwnedFd, path: &[u8]) -> Result<Option<Stat>, ListError> {
        Ok(lstat(opened, split(path).1).map_err(failed("reading", path))?)
    }

    fn is_directory(status: &Stat) -> bool {
        file_type(status) == FileType::Directory
    }

    fn thing(
        &self,
        opened: &OwnedFd,
        path: &[u8],
        status: Stat,
    ) -> Result<Option<(Node, Option<FileState>)>, ListError> {
        let is_file = file_type(&status) == FileType::RegularFile;
        let state = is_file.then(|| FileState::of(&status));
        Ok(self.node(opened, path, &status)?.map(|node| (node, state)))
    }

    fn thing_at(&self, path: &[u8]) -> Result<Option<(Node, Option<FileState>)>, ListError> {
        match self.stat(path)? {
            Some((dir, stat)) => self.thing(&dir, path, stat),
            None => Ok(None),
        }
    }
}

impl Disk<'_> {
    /// The open parent of a path and what is there.
    fn stat(&self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>, ListError> {
        let (parent, name) = split(path);
        let dir = match open_beneath(self.root, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            answer => answer.map_err(failed("reading directory", parent))?,
        };
        let stat = lstat(&dir, name).map_err(failed("reading", path))?;
        Ok(stat.map(|stat| (dir, stat)))
    }

    /// The node of a path in an open directory. A socket of a context becomes an empty file, as with BuildKit; a device
    /// of one is refused, for no ordinary user could make it.
    fn node(&self, dir: &OwnedFd, path: &[u8], stat: &Stat) -> Result<Option<Node>, ListError> {
        let special = |what| Err(ListError::Special { path: shown(path), what });
        let kind = NodeKind::of(dir, path, stat)?;
        let DiskKind::Snapshot { owners } = &self.kind else {
            return match kind {
                None => {
                    let content = Some(ContentDigest::of(b""));
                    Ok(Some(context_node(NodeKind::File { size: 0, content }, stat)))
                }
                Some(NodeKind::CharDevice { .. }) => special("a character device"),
                Some(NodeKind::BlockDevice { .. }) => special("a block device"),
                Some(kind) => Ok(Some(context_node(kind, stat))),
            };
        };
        Ok(kind.map(|kind| snapshot_node(path, kind, owners, stat)))
    }
}

fn read_link(dir: &OwnedFd, path: &[u8]) -> Result<Vec<u8>, ListError> {
    let target = readlinkat(dir, split(path).1, Vec::new()).map_err(failed("reading link", path))?;
    Ok(target.into_bytes())
}

/// Permission bits; those of links mean nothing.
fn mode(kind: &NodeKind, stat: &Stat) -> u32 {
    if matches!(kind, NodeKind::Symlink { .. }) { 0o777 } else { permissions(stat) }
}

fn context_node(kind: NodeKind, stat: &Stat) -> Node {
    Node {
        mode: mode(&kind, stat),
        inode: inode(&kind, stat),
        kind,
        uid: 0,
        gid: 0,
        seconds: stat.st_mtime,
        nanoseconds: stat.st_mtime_nsec as u32,
        xattrs: BTreeMap::new(),
    }
}

/// Of something that has several names.
pub fn inode(kind: &NodeKind, stat: &Stat) -> Option<(u64, u64)> {
    let has_names = *kind != NodeKind::Directory && stat.st_nlink > 1;
    has_names.then_some((stat.st_dev, stat.st_ino))
}

fn snapshot_node(path: &[u8], kind: NodeKind, owners: &Owners, stat: &Stat) -> Node {
    let (uid, gid) = owners.get(path).copied().unwrap_or((stat.st_uid, stat.st_gid));
    Node {
        mode: mode(&kind, stat),
        inode: inode(&kind, stat),
        kind,
        uid,
        gid,
        seconds: stat.st_mtime,
        nanoseconds: stat.st_mtime_nsec as u32,
        xattrs: BTreeMap::new(),
    }
}

//! What a COPY sees of its source: paths with what stands there, but not their bytes.
//!
//! A [`Listing`] is made once, from a context or a snapshot, of everything a selector can pick; links on the way to a
//! source are part of it. Sources are then looked up in the listing and never again on disk, so two things follow:
//! the digest of a listing covers all that the copy can bring, and nothing that changes on disk meanwhile can change what
//! is copied: the bytes of a context's file are compared with the digest that was keyed while they are copied.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use oci::{ContentDigest, TreeDigest};

/// Owners that the disk could not hold, by path without a leading slash: in a user namespace with a single id every
/// file on disk is root's, while the layer says whose it is.
pub type Owners = BTreeMap<Vec<u8>, (u32, u32)>;

/// Something a COPY can pick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time that the copy gets on disk, whole Unix seconds.
    pub seconds: i64,
    /// The rest of the modification time.
    pub nanoseconds: u32,
    /// Extended attributes that are copied.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Device and inode of a file with several names, which the copy makes links of each other; `None` for all other
    /// things, and for contexts, whose hard links are separate files.
    pub inode: Option<(u64, u64)>,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// What its bytes must hash to when they are copied; `None` where nobody can change them (a snapshot).
        content: Option<ContentDigest>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where the bytes of a listing's files are.
#[derive(Debug, Clone)]
pub enum Content {
    /// Below this directory.
    Directory(Arc<OwnedFd>),
    /// Here, by path.
    Inline(Arc<BTreeMap<Vec<u8>, Vec<u8>>>),
}

/// Everything that a selector can pick of a source.
#[derive(Debug, Clone)]
pub struct Listing {
    /// By path from the source's root, without a leading slash; the root itself is the empty path and always a
    /// directory.
    pub nodes: BTreeMap<Vec<u8>, Node>,
    /// Where the bytes of its files are.
    pub content: Content,
}

impl Listing {
    /// The files of heredocs, by name: mode 0644, owned by root.
    pub fn inline(files: &BTreeMap<String, String>) -> Self {
        let _ = files;
        Self { nodes: BTreeMap::new(), content: Content::Inline(Arc::default()) }
    }

    /// Identity of a context's or inline listing: paths, kinds, modes, link targets, contents, attributes. Never time,
    /// owner or inode.
    pub fn digest(&self) -> TreeDigest {
        oci::Tree::empty_digest()
    }

    /// The directory that holds the files, unless they are inline.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        match &self.content {
            Content::Directory(root) => Some(root.as_fd()),
            Content::Inline(_) => None,
        }
    }
}

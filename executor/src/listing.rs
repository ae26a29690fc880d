//! What a COPY sees of its source: paths with what stands there, but not their bytes.
//!
//! A [`Listing`] is made once, from a context or a snapshot, of everything a selector can pick; links on the way to a
//! source are part of it. Sources are then looked up in the listing and never again on disk, so two things follow:
//! the digest of a listing covers all that the copy can bring, and nothing that changes on disk meanwhile can change what
//! is copied: the bytes of a context's file are compared with the digest that was keyed while they are copied.

use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use oci::{
    ContentDigest, TreeDigest,
    canonical::{Bytes, Canonical, Encoder},
    tree::TIME_LIMIT,
};
use rayon::prelude::*;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, readlinkat};
use solver::{
    Cancel,
    explain::{Inventory, Item, ItemKind},
    pattern::{glob::BadPattern, ignore::IgnoreError},
};

use crate::{
    git::{CommitTree, FileBytes, GitError},
    rootfs::{PathError, failed, file_type, shown, split},
};

mod bytes;
pub mod disk;
pub mod filter;
pub mod lookup;
pub mod sight;
pub mod state;
pub mod walk;

pub use bytes::{Opened, Until, hash, hash_until, open_regular};
use lookup::{Found, Names, Paths, TooManyLinks};

/// Why a listing cannot be made, or its files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// A source names nothing.
    #[error("\"/{0}\": not found")]
    NotFound(String),
    /// Something stands there that cannot be copied.
    #[error("{path} is {what}, which cannot be copied from a context")]
    Special {
        /// Where.
        path: String,
        /// What, with its article.
        what: &'static str,
    },
    /// Something is not what it was a moment ago.
    #[error("changed while reading: {0}")]
    Changed(String),
    /// A source is no pattern.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// A pattern of `--exclude` or `--parents` is malformed.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// A loop.
    #[error(transparent)]
    Links(#[from] TooManyLinks),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The system said no.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A commit cannot be read.
    #[error(transparent)]
    Git(Box<GitError>),
}

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
    /// Modification time, whole Unix seconds.
    pub seconds: i64,
    /// The rest of the modification time.
    pub nanoseconds: u32,
    /// Extended attributes that are copied.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Device and inode of a file with several names, which the copy makes links of each other; `None` for all other
    /// things. Of a context only names in the listing count.
    pub inode: Option<(u64, u64)>,
}

/// Nodes by path from the source's root, without a leading slash. The root is the empty path, always a directory and
/// never a node; so is a directory on the way to a node that is not picked itself.
pub type Nodes = BTreeMap<Vec<u8>, Node>;

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

impl NodeKind {
    /// What a name in an open directory is, from what lstat(2) says of it; `path` ends in that name. `None` for a socket,
    /// which means nothing without the process behind it and is in no layer.
    ///
    /// # Errors
    /// A link cannot be read, or this kernel has kinds of files that we do not know.
    pub fn of(dir: &OwnedFd, path: &[u8], stat: &Stat) -> Result<Option<Self>, PathError> {
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        Ok(Some(match file_type(stat) {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File { size: stat.st_size as u64, content: None },
            FileType::Symlink => {
                let target = readlinkat(dir, split(path).1, Vec::new());
                Self::Symlink { target: target.map_err(failed("reading link", path))?.into_bytes() }
            }
            FileType::CharacterDevice => Self::CharDevice { major, minor },
            FileType::BlockDevice => Self::BlockDevice { major, minor },
            FileType::Fifo => Self::Fifo,
            FileType::Socket => return Ok(None),
            _ => {
                let unknown = io::Error::other("this kind of file is unknown");
                return Err(failed("reading", path)(unknown));
            }
        }))
    }
}

/// Where the bytes of a listing's files are, and so what their times mean.
#[derive(Debug, Clone)]
pub enum Content {
    /// In a context, below this directory. Times are those of whoever checked the files out.
    Context(Arc<OwnedFd>),
    /// In the objects of a commit. Times are the commit's.
    Commit(Arc<CommitTree>),
    /// The same, and when it was committed is part of it.
    DatedCommit(Arc<CommitTree>),
    /// In an image's file system with this root. Times are part of it.
    Snapshot(Arc<OwnedFd>),
    /// In heredocs, by name.
    Inline(Arc<BTreeMap<Vec<u8>, Vec<u8>>>),
    /// In this directory, which holds nothing but a file that was downloaded. Its time is that of the server.
    Download(Arc<OwnedFd>),
}

impl Content {
    /// Whether sources are names as they stand: that of a heredoc, or of a file behind a URL, is no pattern.
    pub fn has_plain_names(&self) -> bool {
        matches!(self, Self::Inline(_) | Self::Download(_))
    }
}

/// Everything that a selector can pick of a source.
#[derive(Debug, Clone)]
pub struct Listing {
    /// What there is.
    pub nodes: Nodes,
    /// Where the bytes of its files are.
    pub content: Content,
}

impl Node {
    /// A directory of which nothing but its being there matters.
    pub fn bare_directory() -> Self {
        Self::ours(NodeKind::Directory, 0o755)
    }

    /// Something that this builder brings: root's, new, without attributes.
    fn ours(kind: NodeKind, mode: u32) -> Self {
        let (seconds, nanoseconds) = (TIME_LIMIT, 0);
        Self { kind, mode, uid: 0, gid: 0, seconds, nanoseconds, xattrs: BTreeMap::new(), inode: None }
    }
}

/// Everything below a directory, by path relative to it, in order; the empty path is the root.
pub fn below<'a>(nodes: &'a Nodes, dir: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a Node)> {
    let inside = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
    let range = nodes.range(inside.clone()..);
    range.map_while(move |(path, node)| Some((path.strip_prefix(inside.as_slice())?, node)))
}

impl Listing {
    /// The files of heredocs, by name: mode 0644, root's.
    pub fn inline(files: &BTreeMap<String, String>) -> Self {
        let node = |text: &String| {
            let content = Some(ContentDigest::of(text.as_bytes()));
            Node::ours(NodeKind::File { size: text.len() as u64, content }, 0o644)
        };
        let nodes = files.iter().map(|(name, text)| (name.clone().into_bytes(), node(text))).collect();
        let bytes = files.iter().map(|(name, text)| (name.clone().into_bytes(), text.clone().into_bytes()));
        Self { nodes, content: Content::Inline(Arc::new(bytes.collect())) }
    }

    /// A file that was downloaded into a directory of the store: mode 0600, as BuildKit has it, and root's. `modified`
    /// is what the server says of its time, Unix seconds.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn download(directory: &Path, name: &str, modified: Option<i64>) -> Result<Self, ListError> {
        let path = name.as_bytes().to_vec();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(directory, flags, Mode::empty()).map_err(failed("opening", &path))?;
        let file = open_regular(directory.as_fd(), &path)?;
        let stat = fstat(&file).map_err(failed("reading", &path))?;
        let kind = NodeKind::File { size: stat.st_size as u64, content: None };
        let node = Node { seconds: modified.unwrap_or(TIME_LIMIT), ..Node::ours(kind, 0o600) };
        Ok(Self { nodes: Nodes::from([(path, node)]), content: Content::Download(Arc::new(directory)) })
    }

    /// Reads the contents that are not known yet, several files at a time, until `cancel` asks to stop.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn complete(mut self, cancel: &Cancel) -> Result<Self, ListError> {
        let unknown: Vec<_> = self.nodes.iter().filter(|(_, node)| node.content() == Some(None)).collect();
        let read = unknown
            .par_iter()
            .map(|(path, node)| Ok((path.to_vec(), self.content_digest(path, node, cancel)?)));
        let contents: Vec<(Vec<u8>, ContentDigest)> = read.collect::<Result<_, ListError>>()?;
        for (path, digest) in contents {
            if let Some(Node { kind: NodeKind::File { content, .. }, .. }) = self.nodes.get_mut(&path) {
                *content = Some(digest);
            }
        }
        Ok(self)
    }

    /// Identity: paths, kinds, modes, owners, contents, link targets, attributes, device numbers, which names are
    /// links of one file, and of a snapshot times as far as they would reach a layer. In a context's listing owners
    /// and links are the same for everybody. Contents that are not known yet are read, until `cancel` asks to stop.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self, cancel: &Cancel) -> Result<TreeDigest, ListError> {
        let unknown: Vec<_> = self.nodes.iter().filter(|(_, node)| node.content() == Some(None)).collect();
        let read = unknown
            .par_iter()
            .map(|(path, node)| Ok((path.as_slice(), self.content_digest(path, node, cancel)?)));
        let contents: BTreeMap<&[u8], ContentDigest> = read.collect::<Result<_, ListError>>()?;
        let mut first_names = BTreeMap::new();
        let mut encoder = Encoder::new("listing");
        (self.nodes.len() as u64).encode(&mut encoder);
        for (path, node) in &self.nodes {
            let first_name = node.inode.map(|inode| Bytes(first_names.entry(inode).or_insert(path)));
            let content = node.content().flatten().or_else(|| contents.get(path.as_slice()).copied());
            let kept_time = self.kept_time(node);
            encoder.field(1, &Bytes(path)).field(2, &content).field(3, &first_name).field(4, &kept_time);
            encoder.field(5, node);
        }
        Ok(encoder.digest())
    }

    /// What is listed, for people; `None` where a file cannot be read whose content is not known yet.
    pub fn inventory(&self) -> Option<Inventory> {
        let item = |path: &[u8], node: &Node| {
            let kind = match &node.kind {
                NodeKind::Directory => ItemKind::Directory,
                NodeKind::File { content: Some(content), .. } => ItemKind::File(*content),
                NodeKind::File { content: None, .. } => {
                    ItemKind::File(self.content_digest(path, node, &Cancel::default()).ok()?)
                }
                NodeKind::Symlink { target } => ItemKind::Link(shown(target)),
                NodeKind::CharDevice { .. } => ItemKind::Other("character device".to_owned()),
                NodeKind::BlockDevice { .. } => ItemKind::Other("block device".to_owned()),
                NodeKind::Fifo => ItemKind::Other("named pipe".to_owned()),
            };
            Some(Item { kind, mode: node.mode })
        };
        let items = self.nodes.iter().map(|(path, node)| Some((shown(path), item(path, node)?)));
        items.collect::<Option<_>>().map(Inventory)
    }

    /// The time that a copy of something would have in a layer, if it is not normalised there.
    fn kept_time(&self, node: &Node) -> Option<i64> {
        match self.content {
            Content::Context(_) | Content::Commit(_) | Content::Inline(_) => None,
            Content::DatedCommit(_) | Content::Snapshot(_) | Content::Download(_) => {
                Some(node.seconds).filter(|seconds| *seconds < TIME_LIMIT)
            }
        }
    }

    /// Hashes the bytes of a file.
    fn content_digest(&self, path: &[u8], node: &Node, cancel: &Cancel) -> Result<ContentDigest, ListError> {
        let NodeKind::File { size, .. } = node.kind else { unreachable!("only files have bytes") };
        let mut hasher = blake3::Hasher::new();
        hash_until(self.open(path)?, path, size, &mut hasher, cancel)?;
        Ok(hasher.finalize().into())
    }

    /// Opens a file that the listing holds, for reading.
    ///
    /// # Errors
    /// [`ListError::Changed`] when it is no regular file any more.
    pub fn open(&self, path: &[u8]) -> Result<Opened<'_>, ListError> {
        let root = match &self.content {
            Content::Context(root) | Content::Snapshot(root) | Content::Download(root) => root,
            Content::Commit(tree) | Content::DatedCommit(tree) => {
                // Whoever reads one of its files reads all.
                let files = self.nodes.iter().filter(|(_, node)| node.content().is_some());
                tree.bring_among(path, files.map(|(path, _)| path.as_slice()))?;
                return match tree.file(path)?.ok_or_else(|| ListError::NotFound(shown(path)))?.bytes {
                    FileBytes::Blob(bytes) => Ok(Opened::Bytes(Cursor::new(bytes))),
                    FileBytes::Large(file) => Ok(Opened::File(file)),
                };
            }
            Content::Inline(files) => {
                let bytes = files.get(path).ok_or_else(|| ListError::NotFound(shown(path)))?;
                return Ok(Opened::Inline(bytes));
            }
        };
        open_regular(root.as_fd(), path).map(Opened::File)
    }
}

impl Node {
    /// For files: what their bytes must hash to, where that is known.
    fn content(&self) -> Option<Option<ContentDigest>> {
        match &self.kind {
            NodeKind::File { content, .. } => Some(*content),
            _ => None,
        }
    }
}

/// All but content, hard links and time, which the listing knows better.
impl Canonical for Node {
    fn encode(&self, out: &mut Encoder) {
        let Self { kind, mode, uid, gid, seconds: _, nanoseconds: _, xattrs, inode: _ } = self;
        let xattrs: Vec<_> = xattrs.iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect();
        out.field(1, kind).field(2, mode).field(3, uid).field(4, gid).field(5, &xattrs);
    }
}

impl Canonical for NodeKind {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Directory => out.variant(1),
            Self::File { size, content: _ } => out.variant(2).field(1, size),
            Self::Symlink { target } => out.variant(3).field(1, &Bytes(target)),
            Self::CharDevice { major, minor } => out.variant(4).field(1, major).field(2, minor),
            Self::BlockDevice { major, minor } => out.variant(5).field(1, major).field(2, minor),
            Self::Fifo => out.variant(6),
        };
    }
}

/// A listing is looked up by the same rules as the disk it was made of.
impl Paths for Listing {
    type Error = ListError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, ListError> {
        let found = match self.nodes.get(path).map(|node| &node.kind) {
            Some(NodeKind::Directory) => Some(Found::Directory),
            Some(NodeKind::Symlink { target }) => Some(Found::Link(target.clone())),
            Some(_) => Some(Found::Other),
            None => None,
        };
        let is_parent = || path.is_empty() || below(&self.nodes, path).next().is_some();
        Ok(found.or_else(|| is_parent().then_some(Found::Directory)))
    }
}

impl Names for Listing {
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, ListError> {
        let mut children: Vec<Vec<u8>> = Vec::new();
        for (path, _) in below(&self.nodes, dir) {
            let name = path.split(|byte| *byte == b'/').next().unwrap_or_default();
            if children.last().is_none_or(|last| last != name) {
                children.push(name.to_vec());
            }
        }
        children.sort_unstable();
        children.dedup();
        Ok(children)
    }
}

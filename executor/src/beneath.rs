//! What stands below a step, looked up and never written: in the trees of layers that are not on disk, from the top
//! down, and below those in the merged file system of the ones that are, or in the [catalogues](crate::catalogue) of a
//! base image that nobody needs on disk.
//!
//! A tree says of a path what image-spec (layer.md, "Whiteouts") has a layer say: something stands there; or nothing does
//! any more, for it is whited out, or lies below something that is, or below something that is no directory; or it is
//! silent, and the next lower layer is asked. The file system on disk is opened, and the base image read, when the first
//! question gets that far.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, Metadata, Snapshot, Tree, TreeDigest, tree::TIME_LIMIT,
};
use rustix::{
    fs::{FileType, OFlags, Stat},
    io::Errno,
};
use solver::Cancel;

use crate::{
    catalogue::{self, Catalogue, Looked},
    contents::{Contents, Origin},
    copy::CopyError,
    listing::{
        NodeKind, Owners, hash_until,
        lookup::{Absent, Found, LastLink, Paths, follow},
    },
    rootfs::{failed, file_type, lstat, open_beneath, permissions, split, xattrs, xattrs_at},
    snapshot::{SnapshotError, Snapshots},
    users::{Accounts, FILE_MAX, UserError},
    view::View,
};

/// The file system below a step.
pub struct Beneath {
    /// Of layers that are not on disk, topmost first.
    trees: Vec<(TreeDigest, Arc<Tree>)>,
    /// Where their files are.
    contents: Contents,
    /// The layers that are, or that can be pulled; none where there is nothing at all.
    ground: Option<(Snapshots, Snapshot)>,
    bases: Bases,
    below: OnceLock<Below>,
}

/// How the layers of a base image are looked at that are not on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bases {
    /// They are unpacked: somebody needs their files in any case.
    Unpacked,
    /// By their catalogues, as long as these tell enough.
    Catalogued,
}

/// What is below the trees.
enum Below {
    /// Layers on disk.
    Disk(Disk),
    /// A base image that is not on disk: its layers, topmost first.
    Catalogues(Vec<Arc<Catalogue>>),
    /// Nothing at all.
    Nothing,
}

struct Disk {
    view: View,
    owners: Owners,
}

/// What was found at a path.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it is; a regular file's content is known if a tree has it. `None` for a socket.
    pub kind: Option<NodeKind>,
    /// Permission bits; 0o777 for links.
    pub mode: u32,
    /// Whose it is, also where the disk does not know.
    pub owner: (u32, u32),
    /// Modification time, whole Unix seconds; [`TIME_LIMIT`] for one that is normalised.
    pub seconds: i64,
    /// Equal for names of one file.
    pub file: FileId,
    xattrs: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// What names of one file have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileId {
    /// Device and inode.
    Disk(u64, u64),
    /// Number of the layer, topmost first, and its first name.
    Tree(usize, Vec<u8>),
}

/// Something that can only be found out, or made, by writing files: the long way must be gone.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{0} needs files on disk")]
pub struct OnDiskOnly(pub &'static str);

/// What one tree says of a path.
enum Said<'a> {
    Stands(&'a Entry),
    Nothing,
    Silence,
}

impl Beneath {
    /// A file system of which `trees` are on top, the topmost first, and `ground` is the rest.
    pub fn new(
        snapshots: &Snapshots,
        trees: Vec<(TreeDigest, Arc<Tree>)>,
        ground: Snapshot,
        bases: Bases,
    ) -> Self {
        let contents = snapshots.contents().clone();
        let ground = ground.chain().next().is_some().then(|| (snapshots.clone(), ground.clone()));
        Self { trees, contents, ground, bases, below: OnceLock::new() }
    }

    /// A file system on disk. `owners` are those that it could not hold.
    #[cfg(test)]
    pub(crate) fn on_disk(root: OwnedFd, owners: Owners) -> Self {
        let (trees, contents) = Default::default();
        let below = Below::Disk(Disk { view: View::new(root), owners }).into();
        Self { trees, contents, ground: None, bases: Bases::Unpacked, below }
    }

    /// The same file system with another layer on top.
    #[cfg(test)]
    pub(crate) fn with(mut self, tree: Tree, origins: crate::contents::Origins) -> Self {
        let digest = tree.digest();
        self.contents.insert(digest, tree.clone(), origins);
        self.trees.insert(0, (digest, Arc::new(tree)));
        self
    }

    /// What is at a path without links; the root is the empty one, and always a directory.
    ///
    /// # Errors
    /// The file system on disk cannot be had or read.
    pub fn look(&self, path: &[u8]) -> Result<Option<Seen>, CopyError> {
        for (level, (_, tree)) in self.trees.iter().enumerate() {
            match says(tree, path) {
                Said::Stands(entry) => {
                    return Ok(Some(seen_entry(level, |target| tree.get(target), entry)));
                }
                Said::Nothing => return Ok(None),
                Said::Silence => {}
            }
        }
        match self.below()? {
            Below::Disk(disk) => disk.look(path),
            Below::Catalogues(catalogues) => Ok(self.look_up(catalogues, path)),
            Below::Nothing => Ok(None),
        }
    }

    /// What is at a path of the base image.
    fn look_up(&self, catalogues: &[Arc<Catalogue>], path: &[u8]) -> Option<Seen> {
        Some(match catalogue::look(catalogues, path)? {
            Looked::Entry(layer, entry) => {
                let first = |target: &[u8]| catalogues[layer].get(target);
                seen_entry(self.trees.len() + layer, first, entry)
            }
            Looked::Plain => {
                let file = FileId::Tree(usize::MAX, path.to_vec());
                seen(Some(NodeKind::Directory), &catalogue::plain(), file)
            }
        })
    }

    /// The attributes that reach layers of what was found at a path.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn xattrs(&self, path: &[u8], seen: &Seen) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, CopyError> {
        match &seen.xattrs {
            Some(xattrs) => Ok(xattrs.clone()),
            None => {
                let read = match seen.kind {
                    Some(NodeKind::File { .. } | NodeKind::Directory) => xattrs(self.open(path)?),
                    _ => xattrs_at(self.open(split(path).0)?, split(path).1),
                };
                Ok(read.map_err(failed("reading attributes of", path))?)
            }
        }
    }

    /// The content of a regular file that was found at a path.
    ///
    /// # Errors
    /// It cannot be read, or `cancel` asks to stop.
    pub fn content(&self, path: &[u8], seen: &Seen, cancel: &Cancel) -> Result<ContentDigest, CopyError> {
        let (size, known) = match &seen.kind {
            Some(NodeKind::File { size, content }) => (*size, *content),
            _ => unreachable!("only files have content"),
        };
        if let Some(content) = known {
            return Ok(content);
        }
        let mut hasher = blake3::Hasher::new();
        hash_until(File::from(self.open(path)?), path, size, &mut hasher, cancel)?;
        Ok(hasher.finalize().into())
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, CopyError> {
        let Below::Disk(disk) = self.below()? else {
            unreachable!("only what was found on disk is opened: of all else everything is known");
        };
        let opened = open_beneath(disk.view.root(), path, OFlags::RDONLY | OFlags::NONBLOCK);
        Ok(opened.map_err(failed("reading", path))?)
    }

    /// What is below the trees.
    fn below(&self) -> Result<&Below, SnapshotError> {
        match self.below.get() {
            Some(below) => Ok(below),
            None => {
                let below =
                    self.ground.as_ref().map_or(Ok(Below::Nothing), |ground| self.open_ground(ground))?;
                Ok(self.below.get_or_init(|| below))
            }
        }
    }

    fn open_ground(&self, (snapshots, ground): &(Snapshots, Snapshot)) -> Result<Below, SnapshotError> {
        if self.bases == Bases::Catalogued
            && let Some(catalogues) = snapshots.catalogues(ground)?
        {
            return Ok(Below::Catalogues(catalogues));
        }
        Ok(Below::Disk(Disk { view: snapshots.view(ground)?, owners: snapshots.owners(ground)? }))
    }

    /// The bytes of an account file, if it is there and small enough.
    fn read(&self, file: &'static str) -> Result<Option<Vec<u8>>, Unread> {
        let led = follow(self, file.as_bytes(), LastLink::Follow, Absent::IsNowhere, &mut Vec::new());
        let Some(path) = led? else { return Ok(None) };
        let Some(seen) = self.look(&path)? else { return Ok(None) };
        let size = match seen.kind {
            Some(NodeKind::File { size, .. }) if size <= FILE_MAX => size,
            _ => return Err(Unread::NotAFile),
        };
        let mut bytes = Vec::with_capacity(size as usize);
        match &seen.file {
            FileId::Disk(..) => File::from(self.open(&path)?).take(FILE_MAX).read_to_end(&mut bytes)?,
            FileId::Tree(level, _) if *level >= self.trees.len() => {
                let content = seen.kind.and_then(content_of);
                let account = content.and_then(|content| self.account(level - self.trees.len(), &content));
                return Ok(Some(account.ok_or(OnDiskOnly("an account file"))?.to_vec()));
            }
            FileId::Tree(level, name) => {
                let origin = self.origin(*level, name).ok_or(OnDiskOnly("an account file"))?;
                origin.open().map_err(CopyError::from)?.take(FILE_MAX).read_to_end(&mut bytes)?
            }
        };
        let expected =
            matches!(seen.file, FileId::Tree(..)).then(|| seen.kind.and_then(content_of)).flatten();
        match expected {
            Some(expected) if expected != ContentDigest::of(&bytes) => {
                Err(Unread::Io(io::Error::other("changed while reading")))
            }
            _ => Ok(Some(bytes)),
        }
    }

    fn account(&self, layer: usize, content: &ContentDigest) -> Option<&[u8]> {
        match self.below.get() {
            Some(Below::Catalogues(catalogues)) => catalogues.get(layer)?.account(content),
            _ => None,
        }
    }

    fn origin(&self, level: usize, name: &[u8]) -> Option<Origin> {
        self.contents.get(&self.trees[level].0)?.files.get(name).cloned()
    }
}

fn content_of(kind: NodeKind) -> Option<ContentDigest> {
    match kind {
        NodeKind::File { content, .. } => content,
        _ => None,
    }
}

impl Paths for Beneath {
    type Error = CopyError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, CopyError> {
        if path.is_empty() {
            return Ok(Some(Found::Directory));
        }
        Ok(self.look(path)?.map(|seen| match seen.kind {
            Some(NodeKind::Directory) => Found::Directory,
            Some(NodeKind::Symlink { target }) => Found::Link(target),
            _ => Found::Other,
        }))
    }
}

impl Accounts for &Beneath {
    fn text(self, file: &'static str) -> Result<String, UserError> {
        match self.read(file) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()),
            Err(Unread::NotAFile) => Err(UserError::NotAFile { file }),
            Err(Unread::Io(source)) => Err(UserError::Read { file, source }),
            Err(Unread::OnDiskOnly(error)) => Err(UserError::Below(Box::new(CopyError::OnDiskOnly(error)))),
            Err(Unread::Copy(error)) => Err(UserError::Below(Box::new(error))),
        }
    }
}

/// Why an account file was not read.
enum Unread {
    NotAFile,
    Io(io::Error),
    OnDiskOnly(OnDiskOnly),
    Copy(CopyError),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<OnDiskOnly> for Unread {
    fn from(error: OnDiskOnly) -> Self {
        Self::OnDiskOnly(error)
    }
}

impl From<CopyError> for Unread {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

impl Disk {
    fn look(&self, path: &[u8]) -> Result<Option<Seen>, CopyError> {
        let Some((dir, stat)) = self.stat(path)? else { return Ok(None) };
        let kind = NodeKind::of(&dir, path, &stat)?;
        let mode = if matches!(kind, Some(NodeKind::Symlink { .. })) { 0o777 } else { permissions(&stat) };
        Ok(Some(Seen {
            kind,
            mode,
            owner: self.owners.get(path).copied().unwrap_or((stat.st_uid, stat.st_gid)),
            seconds: stat.st_mtime,
            file: FileId::Disk(stat.st_dev, stat.st_ino),
            xattrs: None,
        }))
    }

    /// The open parent of a path and what is there.
    fn stat(&self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>, CopyError> {
        let (parent, name) = split(path);
        let dir = match open_beneath(self.view.root(), parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            answer => answer.map_err(failed("reading", parent))?,
        };
        let stat = lstat(&dir, name).map_err(failed("reading", path))?;
        Ok(stat.filter(|stat| file_type(stat) != FileType::Unknown).map(|stat| (dir, stat)))
    }
}

/// What a tree says of a path.
fn says<'a>(tree: &'a Tree, path: &[u8]) -> Said<'a> {
    let mut hidden = false;
    for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        for entry in tree.at(&path[..end]) {
            match entry.kind {
                EntryKind::Directory => {}
                EntryKind::Whiteout | EntryKind::Opaque => hidden = true,
                _ => return Said::Nothing,
            }
        }
    }
    let own = tree.at(path);
    let stands = own.iter().find(|entry| !matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque));
    match stands {
        Some(entry) => Said::Stands(entry),
        None if hidden || own.iter().any(|entry| entry.kind == EntryKind::Whiteout) => Said::Nothing,
        None => Said::Silence,
    }
}

/// What an entry of a layer is; `get` finds the first name of a hard link.
fn seen_entry<'a>(level: usize, get: impl Fn(&[u8]) -> Option<&'a Entry>, entry: &'a Entry) -> Seen {
    let first = match &entry.kind {
        EntryKind::HardLink { target } => get(target).unwrap_or(entry),
        _ => entry,
    };
    seen(node_kind(&first.kind), &entry.metadata, FileId::Tree(level, first.path.clone()))
}

fn seen(kind: Option<NodeKind>, metadata: &Metadata, file: FileId) -> Seen {
    let Metadata { mode, uid, gid, time, xattrs } = metadata;
    let seconds = match time {
        EntryTime::Kept(seconds) => *seconds,
        EntryTime::Epoch | EntryTime::Content => TIME_LIMIT,
    };
    Seen { kind, mode: *mode, owner: (*uid, *gid), seconds, file, xattrs: Some(xattrs.clone()) }
}

/// What an entry is that stands for itself.
pub(crate) fn node_kind(kind: &EntryKind) -> Option<NodeKind> {
    Some(match kind {
        EntryKind::Directory => NodeKind::Directory,
        EntryKind::File { size, content } => NodeKind::File { size: *size, content: Some(*content) },
        EntryKind::Symlink { target } => NodeKind::Symlink { target: target.clone() },
        EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major: *major, minor: *minor },
        EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major: *major, minor: *minor },
        EntryKind::Fifo => NodeKind::Fifo,
        EntryKind::Whiteout | EntryKind::Opaque | EntryKind::HardLink { .. } => return None,
    })
}

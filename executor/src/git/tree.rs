//! The files of a commit: directories read from trees as they are asked for, each once.

use std::{
    collections::HashMap,
    fs::File,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use gix::{
    ObjectId,
    objs::{Kind, TreeRefIter, tree::EntryKind},
};

use oci::ContentDigest;

use super::{
    Commit, GitError, Repository,
    known::Known,
    lfs::{self, Pointer},
};
use crate::rootfs::{join, shown, split};

/// More names than any repository has: a few trees that name each other many times stand for more files than a disk holds.
const NAMES_MAX: usize = 2_000_000;
/// What the kernel takes for a path, and git for a link's target.
const PATH_MAX: usize = 4096;

/// The files of a commit, or of a directory of one.
#[derive(Debug)]
pub struct CommitTree {
    root: Arc<Directory>,
    commit: Commit,
    directories: Mutex<HashMap<Vec<u8>, Arc<Directory>>>,
    names: Names,
}

/// How many names were read, and how many may be.
#[derive(Debug)]
struct Names {
    read: AtomicUsize,
    most: usize,
}

/// A directory of a commit, or of one of its submodules.
#[derive(Debug)]
pub struct Directory {
    /// What its objects are read from.
    pub(super) repository: Arc<Repository>,
    /// The commit of that repository which it belongs to.
    pub(super) commit: Commit,
    /// Its path there.
    pub(super) path: Vec<u8>,
    /// The id of its tree.
    pub(super) tree: ObjectId,
    /// What it holds, by name.
    pub(super) entries: Vec<Entry>,
    /// Whether Git LFS is used for it.
    lfs: OnceLock<bool>,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The object that has it.
    pub id: ObjectId,
}

/// A file of a commit, open.
#[derive(Debug)]
pub struct CommitFile {
    /// The id of its blob.
    id: ObjectId,
    /// What it holds.
    pub bytes: FileBytes,
    /// What its blob is, where that is not what it holds.
    pointer: Option<(Pointer, Arc<Directory>)>,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum FileBytes {
    /// Those of its blob.
    Blob(Vec<u8>),
    /// In a file of Git LFS.
    Large(File),
}

impl CommitFile {
    /// What it holds, how much that is, and the id to remember it by.
    ///
    /// # Errors
    /// A file of Git LFS is not what its pointer says.
    pub fn content(self, known: &Known) -> Result<(ObjectId, ContentDigest, u64), GitError> {
        match (self.pointer, self.bytes) {
            (Some((pointer, directory)), FileBytes::Large(file)) => {
                let content = match known.find(&pointer.file) {
                    Some((content, _)) => content,
                    None => pointer.content(&directory, file)?,
                };
                Ok((pointer.file, content, pointer.size))
            }
            (_, FileBytes::Blob(bytes)) => Ok((self.id, ContentDigest::of(&bytes), bytes.len() as u64)),
            (None, FileBytes::Large(_)) => unreachable!("only a pointer leads to one"),
        }
    }
}

impl Directory {
    /// Whether blobs in it may be pointers of Git LFS.
    fn uses_lfs(&self) -> Result<bool, GitError> {
        if let Some(uses) = self.lfs.get() {
            return Ok(*uses);
        }
        let uses = lfs::is_used(self)?;
        Ok(*self.lfs.get_or_init(|| uses))
    }

    /// What a name stands for.
    pub(super) fn entry(&self, name: &[u8]) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.name.as_slice().cmp(name));
        at.ok().map(|at| &self.entries[at])
    }
}

impl CommitTree {
    /// The files of a commit. Only its own tree is read.
    ///
    /// # Errors
    /// The tree cannot be read, or is refused.
    pub fn new(repository: Arc<Repository>, commit: Commit) -> Result<Self, GitError> {
        Self::limited(repository, commit, NAMES_MAX)
    }

    /// The same with no more names than this.
    pub(super) fn limited(
        repository: Arc<Repository>,
        commit: Commit,
        most: usize,
    ) -> Result<Self, GitError> {
        let names = Names { read: AtomicUsize::new(0), most };
        let root = open(&names, repository, commit, Vec::new(), commit.tree)?;
        Ok(Self { root: Arc::new(root), commit, directories: Mutex::default(), names })
    }

    /// The files of one of its directories. Links are not followed.
    ///
    /// # Errors
    /// There is no such directory, or it cannot be read.
    pub fn below(&self, path: &[u8]) -> Result<Self, GitError> {
        let missing = || GitError::NoDirectory { path: shown(path), commit: self.commit.id };
        let root = self.directory(path)?.ok_or_else(missing)?;
        let names = Names { read: AtomicUsize::new(0), most: self.names.most };
        Ok(Self { root, commit: self.commit, directories: Mutex::default(), names })
    }

    /// The commit whose files these are.
    pub fn commit(&self) -> Commit {
        self.commit
    }

    /// What stands for all that it holds: equal ids are equal files.
    pub fn id(&self) -> ObjectId {
        self.root.tree
    }

    /// The repository that holds the commit.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.root.repository
    }

    /// The directory at a path, which holds no links; `None` where there is no directory.
    ///
    /// # Errors
    /// A tree on the way cannot be read, or is refused; or a submodule's.
    pub fn directory(&self, path: &[u8]) -> Result<Option<Arc<Directory>>, GitError> {
        if path.is_empty() {
            return Ok(Some(Arc::clone(&self.root)));
        }
        if let Some(known) = self.known(path) {
            return Ok(Some(known));
        }
        let mut parent = Arc::clone(&self.root);
        for end in ends(path) {
            parent = match self.known(&path[..end]) {
                Some(known) => known,
                None => match self.child(&parent, split(&path[..end]).1)? {
                    Some(child) => self.keep(&path[..end], child),
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(parent))
    }

    /// What stands at a path, which holds no links, and the directory that has it.
    ///
    /// # Errors
    /// See [`Self::directory`].
    pub fn entry(&self, path: &[u8]) -> Result<Option<(Arc<Directory>, Entry)>, GitError> {
        let (parent, name) = split(path);
        let Some(directory) = self.directory(parent)? else { return Ok(None) };
        let entry = directory.entry(name).cloned();
        Ok(entry.map(|entry| (directory, entry)))
    }

    /// The bytes of the file at a path, which holds no links; `None` where there is no file.
    ///
    /// # Errors
    /// They are not there, or damaged.
    pub fn read(&self, path: &[u8]) -> Result<Option<Vec<u8>>, GitError> {
        let Some((directory, Entry { kind, id, .. })) = self.entry(path)? else { return Ok(None) };
        match kind {
            EntryKind::Blob | EntryKind::BlobExecutable => {
                directory.repository.object(&id, Kind::Blob).map(Some)
            }
            EntryKind::Tree | EntryKind::Link | EntryKind::Commit => Ok(None),
        }
    }

    /// The file at a path, which holds no links, as a checkout has it; `None` where there is no file.
    ///
    /// # Errors
    /// Its bytes are not there, or damaged; or those of Git LFS are not here.
    pub fn file(&self, path: &[u8]) -> Result<Option<CommitFile>, GitError> {
        let Some((directory, Entry { kind, id, .. })) = self.entry(path)? else { return Ok(None) };
        if !matches!(kind, EntryKind::Blob | EntryKind::BlobExecutable) {
            return Ok(None);
        }
        let bytes = directory.repository.object(&id, Kind::Blob)?;
        let pointer = match Pointer::parse(&bytes) {
            Some(pointer) if directory.uses_lfs()? => pointer,
            _ => return Ok(Some(CommitFile { id, bytes: FileBytes::Blob(bytes), pointer: None })),
        };
        let Some(file) = pointer.open(&directory) else {
            return Err(GitError::Pointers { paths: vec![shown(path)], more: 0 });
        };
        let pointer = Some((pointer, directory));
        Ok(Some(CommitFile { id, bytes: FileBytes::Large(file), pointer }))
    }

    /// A directory in an open one: of the same repository, or of a submodule.
    fn child(&self, parent: &Directory, name: &[u8]) -> Result<Option<Directory>, GitError> {
        let Some(entry) = parent.entry(name) else { return Ok(None) };
        let path = join(&parent.path, name);
        match entry.kind {
            EntryKind::Tree => {
                let repository = Arc::clone(&parent.repository);
                open(&self.names, repository, parent.commit, path, entry.id).map(Some)
            }
            EntryKind::Commit => {
                let (repository, commit) = super::submodules::find(parent, &path, entry.id)?;
                let root = commit.tree;
                open(&self.names, repository, commit, Vec::new(), root).map(Some)
            }
            EntryKind::Blob | EntryKind::BlobExecutable | EntryKind::Link => Ok(None),
        }
    }

    fn known(&self, path: &[u8]) -> Option<Arc<Directory>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    fn keep(&self, path: &[u8], directory: Directory) -> Arc<Directory> {
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(directories.entry(path.to_vec()).or_insert_with(|| Arc::new(directory)))
    }
}

impl Entry {
    /// Whether it is one to whoever looks at files.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Tree | EntryKind::Commit)
    }

    /// Where a link leads.
    ///
    /// # Errors
    /// Its blob cannot be read, or is no path.
    pub fn target(&self, directory: &Directory, path: &[u8]) -> Result<Vec<u8>, GitError> {
        let target = directory.repository.object(&self.id, Kind::Blob)?;
        match target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
            true => Err(refused(path, "it is a link that leads to no path")),
            false => Ok(target),
        }
    }
}

/// Where each name of a path ends.
fn ends(path: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    slashes.chain([path.len()])
}

fn open(
    names: &Names,
    repository: Arc<Repository>,
    commit: Commit,
    path: Vec<u8>,
    tree: ObjectId,
) -> Result<Directory, GitError> {
    let bytes = repository.object(&tree, Kind::Tree)?;
    let entries = entries(&bytes, &tree, &path)?;
    if names.read.fetch_add(entries.len(), Ordering::Relaxed) + entries.len() > names.most {
        return Err(refused(&path, "with it the commit stands for millions of files"));
    }
    Ok(Directory { repository, commit, path, tree, entries, lfs: OnceLock::new() })
}

/// The names in a tree, sorted. A tree that holds nothing is left out, since git checks none out.
fn entries(bytes: &[u8], tree: &ObjectId, dir: &[u8]) -> Result<Vec<Entry>, GitError> {
    let empty = ObjectId::empty_tree(tree.kind());
    let mut entries = Vec::new();
    for entry in TreeRefIter::from_bytes(bytes, tree.kind()) {
        let entry = entry.map_err(|_| refused(dir, "its tree cannot be read"))?;
        let name = entry.filename.to_vec();
        if let Some(reason) = objection(&name, dir) {
            return Err(refused(&join(dir, &name), reason));
        }
        let (kind, id) = (entry.mode.kind(), entry.oid.to_owned());
        if kind != EntryKind::Tree || id != empty {
            entries.push(Entry { name, kind, id });
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    match entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(refused(&join(dir, &pair[0].name), "its directory names it twice")),
        None => Ok(entries),
    }
}

/// Why git would not check out something of this name.
fn objection(name: &[u8], dir: &[u8]) -> Option<&'static str> {
    match name {
        b"" | b"." | b".." => Some("that is no name of a file"),
        name if name.contains(&b'/') => Some("a name holds no slash"),
        name if name.eq_ignore_ascii_case(b".git") => Some("that name is git's own"),
        name if dir.len() + name.len() + 2 > PATH_MAX => Some("its path is too long"),
        _ => None,
    }
}

fn refused(path: &[u8], reason: &'static str) -> GitError {
    GitError::Refused { path: shown(path), reason }
}

//! The files of a commit: directories read from trees as they are asked for, each once.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use gix::{
    ObjectId,
    objs::{Kind, TreeRefIter, tree::EntryKind},
};

use super::{
    Commit, GitError, Repository,
    attributes::{self, AttributeFiles, Attributes},
    file::{CommitFile, FileBytes},
    lfs::{self, Pointer},
    overlay::Overlay,
    submodules,
};
use crate::rootfs::{join, shown, split};

/// More names than any repository has: a few trees that name each other many times stand for more files than a disk holds.
const NAMES_MAX: usize = 2_000_000;
/// What the kernel takes for a path, and git for a link's target.
const PATH_MAX: usize = 4096;

/// The files of a commit, or of a directory of one.
#[derive(Debug)]
pub struct CommitTree {
    pub(super) root: Arc<Directory>,
    commit: Commit,
    directories: Mutex<HashMap<Vec<u8>, Arc<Directory>>>,
    names: Names,
    /// Held by who brings what is not here.
    pub(super) bringing: Mutex<()>,
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
    /// The id of its tree; `None` for one that only the work tree has.
    pub(super) tree: Option<ObjectId>,
    /// What it holds, by name.
    pub(super) entries: Vec<Entry>,
    /// What the work tree lays over it.
    pub(super) over: Option<Over>,
    /// The files that say so of its own and of those below it, and what they say of its own.
    attribute_files: OnceLock<AttributeFiles>,
    attributes: OnceLock<Option<Attributes>>,
}

/// What is laid over a directory, and its path from the top of the work tree.
#[derive(Debug, Clone)]
pub(super) struct Over {
    pub(super) overlay: Arc<Overlay>,
    pub(super) place: Vec<u8>,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The object that has it; `None` for what is as the work tree has it.
    pub id: Option<ObjectId>,
}

/// What stands for all that there is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// What it is; a file that may be run is another one.
    pub kind: u16,
    /// The object that has it.
    pub id: ObjectId,
    /// The files of attributes in the directories above, whose ids that of the object does not cover.
    pub rules: Vec<(Vec<u8>, ObjectId)>,
    /// Where it is, if that is to be known to apply them.
    pub place: Vec<u8>,
}

impl Directory {
    /// Whether one of its files is a pointer of Git LFS, if it has the form of one.
    pub(super) fn has_in_lfs(&self, name: &[u8]) -> Result<bool, GitError> {
        let attributes = once(&self.attributes, || Attributes::of(self))?;
        let path = || join(&self.path, name);
        Ok(attributes.as_ref().is_some_and(|attributes| attributes.is_filtered(&path(), lfs::FILTER)))
    }

    /// The files of attributes that count for it, the highest first.
    pub(super) fn attribute_files(&self) -> Result<&AttributeFiles, GitError> {
        once(&self.attribute_files, || attributes::files(self))
    }

    /// What is laid over it, which has the files without an object.
    pub(super) fn over(&self) -> Result<&Overlay, GitError> {
        let over = self.over.as_ref().ok_or_else(|| refused(&self.path, "a file of it has no object"))?;
        Ok(&over.overlay)
    }

    /// The path of one of its names from the top of the work tree.
    pub(super) fn place(&self, name: &[u8]) -> Vec<u8> {
        self.over.as_ref().map_or_else(Vec::new, |over| join(&over.place, name))
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
        Self::with(repository, commit, None, most)
    }

    /// The same under what the work tree of the repository has otherwise.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn under(repository: Arc<Repository>, commit: Commit, overlay: Overlay) -> Result<Self, GitError> {
        let over = Over { overlay: Arc::new(overlay), place: Vec::new() };
        Self::with(repository, commit, Some(over), NAMES_MAX)
    }

    fn with(
        repository: Arc<Repository>,
        commit: Commit,
        over: Option<Over>,
        most: usize,
    ) -> Result<Self, GitError> {
        let names = Names { read: AtomicUsize::new(0), most };
        let root = open(&names, Place::top(repository, commit, over))?;
        Ok(Self {
            root: Arc::new(root),
            commit,
            directories: Mutex::default(),
            names,
            bringing: Mutex::default(),
        })
    }

    /// The files of one of its directories. Links are not followed.
    ///
    /// # Errors
    /// There is no such directory, or it cannot be read.
    pub fn below(&self, path: &[u8]) -> Result<Self, GitError> {
        let missing = || GitError::NoDirectory { path: shown(path), commit: self.commit.id };
        let root = self.directory(path)?.ok_or_else(missing)?;
        let names = Names { read: AtomicUsize::new(0), most: self.names.most };
        Ok(Self {
            root,
            commit: self.commit,
            directories: Mutex::default(),
            names,
            bringing: Mutex::default(),
        })
    }

    /// The commit whose files these are.
    pub fn commit(&self) -> Commit {
        self.commit
    }

    /// What stands for all that it holds: equal ids are equal files. `None` where a work tree is laid over it.
    pub fn id(&self) -> Option<ObjectId> {
        self.root.tree.filter(|_| self.root.over.is_none())
    }

    /// The id of its tree in the commit, whatever is laid over it; `None` for a directory that only the work tree has.
    pub fn tree_id(&self) -> Option<ObjectId> {
        self.root.tree
    }

    /// Stands for all that can be seen at a path, which holds no links: equal names are equal files there. `None` where that is
    /// not known without looking, as where a work tree is laid over it.
    ///
    /// # Errors
    /// A tree on the way cannot be read.
    pub fn name_of(&self, path: &[u8]) -> Result<Option<Name>, GitError> {
        let (directory, entry) = match path {
            b"" => (
                Arc::clone(&self.root),
                Entry { name: Vec::new(), kind: EntryKind::Tree, id: self.root.tree },
            ),
            path => match self.entry(path)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        let Some(id) = entry.id.filter(|_| directory.over.is_none()) else { return Ok(None) };
        let rules = directory.attribute_files()?.to_vec();
        // Without rules it does not matter where it is.
        let place = if rules.is_empty() { Vec::new() } else { join(&directory.path, &entry.name) };
        Ok(Some(Name { kind: entry.kind as u16, id, place, rules }))
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
                None => match child(&self.names, &parent, split(&path[..end]).1)? {
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

    /// The file at a path, which holds no links, as a checkout has it; `None` where there is no file.
    ///
    /// # Errors
    /// Its bytes are not there, or damaged; or those of Git LFS are not here.
    pub fn file(&self, path: &[u8]) -> Result<Option<CommitFile>, GitError> {
        let Some((directory, Entry { name, kind, id })) = self.entry(path)? else { return Ok(None) };
        if !matches!(kind, EntryKind::Blob | EntryKind::BlobExecutable) {
            return Ok(None);
        }
        let Some(id) = id else {
            let bytes = FileBytes::Large(directory.over()?.open(&directory.place(&name))?);
            return Ok(Some(CommitFile { id, bytes, pointer: None }));
        };
        if let Some(file) = directory.repository.large(&id).map_err(|error| error.at(path))? {
            return Ok(Some(CommitFile { id: Some(id), bytes: FileBytes::Large(file), pointer: None }));
        }
        let bytes = directory.repository.object(&id, Kind::Blob).map_err(|error| error.at(path))?;
        let pointer = match Pointer::parse(&bytes) {
            Some(pointer) if directory.has_in_lfs(&name)? => pointer,
            // Where it is one the same blob is another file, so it is not remembered what this one holds.
            Some(_) => {
                return Ok(Some(CommitFile { id: None, bytes: FileBytes::Blob(bytes), pointer: None }));
            }
            None => {
                return Ok(Some(CommitFile { id: Some(id), bytes: FileBytes::Blob(bytes), pointer: None }));
            }
        };
        let Some(file) = pointer.open(&directory) else {
            return Err(GitError::Pointers { paths: vec![shown(path)], more: 0 });
        };
        let pointer = Some((pointer, directory));
        Ok(Some(CommitFile { id: Some(id), bytes: FileBytes::Large(file), pointer }))
    }

    /// How long the file at a path is, which holds no links, as a checkout has it. That of Git LFS need not be here.
    ///
    /// # Errors
    /// Its blob is not there.
    pub fn size(&self, path: &[u8]) -> Result<u64, GitError> {
        let Some((directory, Entry { name, id, .. })) = self.entry(path)? else { return Ok(0) };
        let Some(id) = id else {
            let place = directory.place(&name);
            let file = directory.over()?.open(&place)?.metadata();
            return file
                .map(|metadata| metadata.len())
                .map_err(|source| GitError::WorkTree { path: shown(&place).into(), source });
        };
        let size = directory.repository.size(&id).map_err(|error| error.at(path))?;
        if !lfs::may_be_pointer(size) || !directory.has_in_lfs(&name)? {
            return Ok(size);
        }
        let blob = directory.repository.object(&id, Kind::Blob).map_err(|error| error.at(path))?;
        Ok(Pointer::parse(&blob).map_or(size, |pointer| pointer.size))
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
        let target = match &self.id {
            Some(id) => directory.repository.object(id, Kind::Blob).map_err(|error| error.at(path))?,
            None => directory.over()?.target(&directory.place(&self.name))?,
        };
        match target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
            true => Err(refused(path, "it is a link that leads to no path")),
            false => Ok(target),
        }
    }
}

/// Makes something when it is first asked for.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, GitError>) -> Result<&T, GitError> {
    match cell.get() {
        Some(made) => Ok(made),
        None => make().map(|made| cell.get_or_init(|| made)),
    }
}

/// Where each name of a path ends.
fn ends(path: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    slashes.chain([path.len()])
}

/// Where a directory is.
struct Place {
    repository: Arc<Repository>,
    commit: Commit,
    path: Vec<u8>,
    tree: Option<ObjectId>,
    over: Option<Over>,
}

impl Place {
    /// The top of a commit.
    fn top(repository: Arc<Repository>, commit: Commit, over: Option<Over>) -> Self {
        Self { repository, commit, path: Vec::new(), tree: Some(commit.tree), over }
    }
}

/// A directory in an open one: of the same repository, or of a submodule.
fn child(names: &Names, parent: &Directory, name: &[u8]) -> Result<Option<Directory>, GitError> {
    let Some(entry) = parent.entry(name) else { return Ok(None) };
    let path = join(&parent.path, name);
    let over = parent.over.as_ref().map(|over| Over { place: parent.place(name), ..over.clone() });
    let place = match (entry.kind, entry.id) {
        (EntryKind::Tree, tree) => {
            Place { repository: Arc::clone(&parent.repository), commit: parent.commit, path, tree, over }
        }
        (EntryKind::Commit, Some(id)) => {
            match submodules::find(parent, &path, id)? {
                Some((repository, commit)) => Place::top(repository, commit, over),
                // Nothing is put into its directory.
                None => Place {
                    repository: Arc::clone(&parent.repository),
                    commit: parent.commit,
                    path,
                    tree: None,
                    over,
                },
            }
        }
        _ => return Ok(None),
    };
    open(names, place).map(Some)
}

fn open(names: &Names, place: Place) -> Result<Directory, GitError> {
    let Place { repository, commit, path, tree, over } = place;
    let entries = match &tree {
        Some(tree) => {
            let bytes = repository.object(tree, Kind::Tree).map_err(|error| error.at(&path))?;
            entries(&bytes, tree, &path)?
        }
        None => Vec::new(),
    };
    if names.read.fetch_add(entries.len(), Ordering::Relaxed) + entries.len() > names.most {
        return Err(refused(&path, "with it the commit stands for millions of files"));
    }
    let directory = Directory {
        repository,
        commit,
        path,
        tree,
        entries,
        over,
        attribute_files: OnceLock::new(),
        attributes: OnceLock::new(),
    };
    overlaid(names, directory)
}

/// Lays over a directory what the work tree has otherwise.
fn overlaid(names: &Names, mut directory: Directory) -> Result<Directory, GitError> {
    let Some(Over { overlay, place }) = directory.over.clone() else { return Ok(directory) };
    for (name, change) in overlay.of(&place) {
        let at = directory.entries.binary_search_by(|entry| entry.name.cmp(&name));
        let entry = at.ok().map(|at| directory.entries[at].clone());
        let holds_nothing = || {
            let child = child(names, &directory, &name)?;
            Ok(child.is_none_or(|child| child.entries.is_empty()))
        };
        match (at, change.apply(&name, entry, holds_nothing)?) {
            (Ok(at), Some(entry)) => directory.entries[at] = entry,
            (Ok(at), None) => drop(directory.entries.remove(at)),
            (Err(at), Some(entry)) => directory.entries.insert(at, entry),
            (Err(_), None) => {}
        }
    }
    Ok(directory)
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
            entries.push(Entry { name, kind, id: Some(id) });
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

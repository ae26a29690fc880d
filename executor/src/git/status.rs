//! What of a work tree's tracked files differs from the commit that is checked out: what `git status` would say of them.
//!
//! Two comparisons: the index with the commit's trees, where a tree that the index says it equals is not entered; and the work
//! tree with the index, where a file whose lstat is the one that git has written down is not opened. As with git, a file that was
//! written to in the moment in which the index was, or later, is read, since its time says nothing. What differs by its lstat
//! only is no change, and costs a reading. What git is told not to look at (`assume-unchanged`, `skip-worktree`) is looked at all
//! the same, since the file that lies there is what people see; one that is skipped need not be there, as in a sparse checkout.
//! Line ends of a checkout (`eol`, `core.autocrlf`) are no change either, unless the file
//! itself is what is built. Filters are not run: where one, or `ident`, makes other bytes of a file in the work tree, only the
//! lstat in the index says that it is unchanged, which `git status` brings up to date.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsStr,
    fs::File,
    io::Seek,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use gix::{
    ObjectId,
    bstr::ByteSlice,
    index::{
        self,
        entry::{Flags, Mode, Stat},
    },
    objs::{Kind, compute_hash, compute_stream_hash, tree::EntryKind},
    progress::Discard,
};
use rayon::prelude::*;
use rustix::{
    fs::{FileType, Mode as Permissions, OFlags, readlinkat},
    io::Errno,
};
use solver::Cancel;

use super::{Commit, CommitTree, GitError, Repository, WorkTree, lfs::Pointer, line_ends, near::Near};
use crate::rootfs::{file_type, join, open_beneath, permissions, split};

/// What is otherwise in a work tree than in a commit: by path from the top, what is there now, or `None` for what is gone or
/// tracked no more. A submodule stands for itself where it is on another commit.
pub type Changes = BTreeMap<Vec<u8>, Option<Now>>;

/// What a tracked path is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What it is.
    pub kind: EntryKind,
    /// The blob that the index has for it, where the work tree leaves it out; else the file there is what is meant.
    pub staged: Option<ObjectId>,
}

/// So many entries of the index are looked at by one thread without a rest: a few directories.
const ENTRIES_AT_ONCE: usize = 256;

/// One of them.
type Changed = (Vec<u8>, Option<Now>);

/// The changed ones among the tracked files of a work tree that are `wanted`, or lie below what is. `commit` is what is
/// checked out.
///
/// # Errors
/// The index, a tree or the work tree cannot be read.
pub fn changed(
    repository: &Arc<Repository>,
    commit: Commit,
    wanted: &[Vec<u8>],
    work_tree: WorkTree,
    cancel: &Cancel,
) -> Result<Changes, GitError> {
    let Some(top) = repository.work_tree() else { return Ok(Changes::new()) };
    let status = Status {
        top: open(top)?,
        tree: CommitTree::new(Arc::clone(repository), commit)?,
        index: repository.index()?,
        modes_count: repository
            .with(|repository| repository.config_snapshot().boolean("core.fileMode").unwrap_or(true)),
        repository,
        wanted,
        work_tree,
        cancel,
    };
    let mut changed = Changes::new();
    for path in status.staged()? {
        let now = status.now(&path)?;
        changed.insert(path, now);
    }
    changed.extend(status.edited()?);
    Ok(changed)
}

struct Status<'a> {
    top: OwnedFd,
    tree: CommitTree,
    index: index::File,
    /// Whether the file system knows which files may be run.
    modes_count: bool,
    repository: &'a Repository,
    wanted: &'a [Vec<u8>],
    work_tree: WorkTree,
    cancel: &'a Cancel,
}

impl Status<'_> {
    /// What the index has otherwise than the commit.
    fn staged(&self) -> Result<BTreeSet<Vec<u8>>, GitError> {
        let (mut changed, mut alike, mut left) = (BTreeSet::new(), HashSet::new(), HashSet::new());
        let mut todo = vec![(Vec::new(), self.index.tree())];
        while let Some((dir, cached)) = todo.pop() {
            let Some(directory) = self.tree.directory(&dir)? else { continue };
            if cached.is_some_and(|cached| cached.num_entries.is_some() && Some(cached.id) == directory.tree)
            {
                alike.insert(dir);
                continue;
            }
            for entry in &directory.entries {
                let path = join(&dir, &entry.name);
                if entry.kind == EntryKind::Tree {
                    if self.may_hold_wanted(&path) {
                        let mut children = cached.iter().flat_map(|cached| &cached.children);
                        let child = children.find(|child| child.name.as_slice() == entry.name);
                        todo.push((path, child));
                    }
                    continue;
                }
                let is_module = entry.kind == EntryKind::Commit;
                if (self.is_wanted(&path) || is_module && self.may_hold_wanted(&path))
                    && self.indexed(&path).map(|indexed| (indexed.mode, Some(indexed.id)))
                        != Some((mode(entry.kind), entry.id))
                {
                    if is_module {
                        left.insert(path.clone());
                    }
                    changed.insert(path);
                }
            }
        }
        // Where all is alike there is nothing to be compared.
        let entries = if alike.contains(&b""[..]) { &[] } else { self.index.entries() };
        for entry in entries {
            let path: &[u8] = entry.path(&self.index);
            if !self.is_wanted(path) || is_below(path, &alike) {
                continue;
            }
            // What a submodule has of this name is its own, and it need not be here.
            if is_below(path, &left) || !self.is_committed(path)? {
                changed.insert(path.to_vec());
            }
        }
        Ok(changed)
    }

    /// Whether the commit has a file at a path, or a submodule: a directory is no more than what it holds.
    fn is_committed(&self, path: &[u8]) -> Result<bool, GitError> {
        let entry = self.tree.entry(path)?;
        Ok(entry.is_some_and(|(_, entry)| entry.kind != EntryKind::Tree))
    }

    /// What the work tree has otherwise than the index.
    fn edited(&self) -> Result<Vec<Changed>, GitError> {
        let entries = self.index.entries();
        let found: Vec<Vec<Changed>> = match self.work_tree {
            // A process that has other threads cannot enter namespaces.
            WorkTree::IsLaidOver => vec![self.edited_of(entries)?],
            WorkTree::MustBeClean => {
                let parts = entries.par_chunks(ENTRIES_AT_ONCE).map(|part| self.edited_of(part));
                parts.collect::<Result<_, _>>()?
            }
        };
        Ok(found.concat())
    }

    /// The same of a part of the index.
    fn edited_of(&self, entries: &[index::Entry]) -> Result<Vec<Changed>, GitError> {
        let (mut near, mut found) = (Near::new(self.top.as_fd()), Vec::new());
        for entry in entries {
            let path: &[u8] = entry.path(&self.index);
            // Of a submodule a directory of it may be what is wanted.
            if entry.mode == Mode::COMMIT && self.may_hold_wanted(path) {
                found.extend(self.of_submodule(path, entry, &mut near)?);
            }
            if entry.mode == Mode::COMMIT || !self.is_wanted(path) {
                continue;
            }
            if self.is_edited(path, entry, &mut near)? {
                found.push((path.to_vec(), self.now(path)?));
            }
        }
        Ok(found)
    }

    fn is_edited(&self, path: &[u8], entry: &index::Entry, near: &mut Near<'_>) -> Result<bool, GitError> {
        if entry.stage_raw() != 0 {
            return Ok(true);
        }
        // A build that is being stopped asks nothing of what is found.
        if entry.mode == Mode::DIR || self.cancel.is_requested() {
            return Ok(false);
        }
        let stat = near.lstat(path).map_err(|error| self.unreadable(path, error))?;
        let Some(stat) = stat else { return Ok(!entry.flags.contains(Flags::SKIP_WORKTREE)) };
        let is_link = entry.mode == Mode::SYMLINK;
        let expected = if is_link { FileType::Symlink } else { FileType::RegularFile };
        if file_type(&stat) != expected {
            return Ok(true);
        }
        let may_run = permissions(&stat) & 0o100 != 0;
        if !is_link && self.modes_count && may_run != (entry.mode == Mode::FILE_EXECUTABLE) {
            return Ok(true);
        }
        let timestamp = self.index.timestamp();
        let written = (timestamp.unix_seconds(), timestamp.nanoseconds());
        if is_as_recorded(&entry.stat, &stat) && (stat.st_mtime, stat.st_mtime_nsec as u32) < written {
            return Ok(false);
        }
        Ok(!self.holds(path, is_link, entry.id)?)
    }

    /// Whether a link or a file of the work tree is what a blob says.
    fn holds(&self, path: &[u8], is_link: bool, id: ObjectId) -> Result<bool, GitError> {
        if is_link {
            let (parent, name) = split(path);
            let directory = open_beneath(&self.top, parent, OFlags::PATH | OFlags::DIRECTORY);
            let target = directory.and_then(|directory| readlinkat(directory, name, Vec::new()));
            let target = target.map_err(|error| self.unreadable(path, error))?;
            return Ok(compute_hash(id.kind(), Kind::Blob, target.as_bytes()).is_ok_and(|hash| hash == id));
        }
        let mut file = match open_beneath(self.top.as_fd(), path, OFlags::RDONLY | OFlags::NONBLOCK) {
            // A directory on the way has become a link.
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => return Ok(false),
            file => File::from(file.map_err(|error| self.unreadable(path, error))?),
        };
        let failed = |source| self.failed(path, source);
        let size = file.metadata().map_err(failed)?.len();
        let never = AtomicBool::new(false);
        let hash = compute_stream_hash(id.kind(), Kind::Blob, &mut file, size, &mut Discard, &never);
        if hash.is_ok_and(|hash| hash == id) {
            return Ok(true);
        }
        let is_laid_over = self.work_tree == WorkTree::IsLaidOver;
        if !is_laid_over && line_ends::are_all_that_differs(&mut file, id).map_err(failed)? {
            return Ok(true);
        }
        file.rewind().map_err(failed)?;
        let blob = self.repository.object(&id, Kind::Blob);
        let Some(pointer) = blob.ok().and_then(|blob| Pointer::parse(&blob)) else { return Ok(false) };
        let (parent, name) = split(path);
        let is_in_lfs = match self.tree.directory(parent)? {
            Some(directory) => directory.has_in_lfs(name)?,
            None => false,
        };
        Ok(is_in_lfs && pointer.leads_to(&mut file).map_err(failed)?)
    }

    /// What a submodule has otherwise than the commit that the index has of it: nothing, where it is a directory that nothing was
    /// checked out into.
    fn of_submodule(
        &self,
        path: &[u8],
        entry: &index::Entry,
        near: &mut Near<'_>,
    ) -> Result<Vec<Changed>, GitError> {
        let id = entry.id;
        match near.lstat(path).map_err(|error| self.unreadable(path, error))? {
            None if entry.flags.contains(Flags::SKIP_WORKTREE) => return Ok(Vec::new()),
            Some(stat) if file_type(&stat) == FileType::Directory => {}
            _ => return Ok(vec![(path.to_vec(), self.now(path)?)]),
        }
        let dot_git = self.place(path).join(".git");
        if dot_git.symlink_metadata().is_err() {
            return Ok(Vec::new());
        }
        let repository = Arc::new(Repository::open_named(&dot_git)?);
        if repository.head() != Some(id) {
            return Ok(vec![(path.to_vec(), Some(Now { kind: EntryKind::Commit, staged: None }))]);
        }
        let commit = repository.commit_by_id(id)?;
        let changed = changed(&repository, commit, &[Vec::new()], self.work_tree, self.cancel)?;
        let changed = changed.into_iter().map(|(below, now)| (join(path, &below), now));
        Ok(changed.filter(|(path, _)| self.is_wanted(path)).collect())
    }

    /// What a tracked path is now; `None` for what is tracked no more, or is no file. What the work tree leaves out
    /// (`skip-worktree`) is as the index has it. What no commit can hold, and so cannot be laid over one, is refused: git would
    /// say that the file is gone, and it is not.
    fn now(&self, path: &[u8]) -> Result<Option<Now>, GitError> {
        let Some(entry) = self.indexed(path) else { return Ok(None) };
        let of_work_tree = |kind| Ok(Some(Now { kind, staged: None }));
        let stat = Near::new(self.top.as_fd()).lstat(path).map_err(|error| self.unreadable(path, error))?;
        let Some(stat) = stat else {
            let is_left_out = entry.flags.contains(Flags::SKIP_WORKTREE);
            let kind = entry.mode.to_tree_entry_mode().map(|mode| mode.kind());
            return Ok(kind.filter(|_| is_left_out).map(|kind| Now { kind, staged: Some(entry.id) }));
        };
        let may_run = match self.modes_count {
            true => permissions(&stat) & 0o100 != 0,
            false => entry.mode == Mode::FILE_EXECUTABLE,
        };
        match file_type(&stat) {
            FileType::Directory if entry.mode == Mode::COMMIT => of_work_tree(EntryKind::Commit),
            FileType::Symlink => of_work_tree(EntryKind::Link),
            FileType::RegularFile if may_run => of_work_tree(EntryKind::BlobExecutable),
            FileType::RegularFile => of_work_tree(EntryKind::Blob),
            FileType::Fifo => self.no_more(path, "a pipe"),
            FileType::Socket => self.no_more(path, "a socket"),
            FileType::CharacterDevice | FileType::BlockDevice => self.no_more(path, "a device"),
            _ => Ok(None),
        }
    }

    fn no_more(&self, path: &[u8], what: &'static str) -> Result<Option<Now>, GitError> {
        match self.work_tree {
            WorkTree::IsLaidOver => Err(GitError::NoMore { path: self.place(path), what }),
            WorkTree::MustBeClean => Ok(None),
        }
    }

    fn indexed(&self, path: &[u8]) -> Option<&index::Entry> {
        // Where a merge has left several, any of them says that the path is tracked.
        let entry = self.index.entry_by_path(path.as_bstr());
        let entry = entry.or_else(|| self.index.prefixed_entries(path.as_bstr())?.first());
        entry.filter(|entry| *entry.path(&self.index) == path)
    }

    fn is_wanted(&self, path: &[u8]) -> bool {
        self.wanted.iter().any(|wanted| is_at_or_below(path, wanted))
    }

    fn may_hold_wanted(&self, dir: &[u8]) -> bool {
        self.wanted.iter().any(|wanted| is_at_or_below(dir, wanted) || is_at_or_below(wanted, dir))
    }

    fn unreadable(&self, path: &[u8], error: Errno) -> GitError {
        self.failed(path, error.into())
    }

    fn failed(&self, path: &[u8], source: std::io::Error) -> GitError {
        GitError::WorkTree { path: self.place(path), source }
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.repository.work_tree().unwrap_or(Path::new("")).join(OsStr::from_bytes(path))
    }
}

fn open(top: &Path) -> Result<OwnedFd, GitError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(top, flags, Permissions::empty())
        .map_err(|error| GitError::WorkTree { path: top.to_owned(), source: error.into() })
}

/// Whether a path is this one, or below it; everything is below the top.
fn is_at_or_below(path: &[u8], dir: &[u8]) -> bool {
    let rest = path.strip_prefix(dir);
    dir.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Whether a directory above a path is one of these.
fn is_below(path: &[u8], directories: &HashSet<Vec<u8>>) -> bool {
    let mut parent = path;
    while !parent.is_empty() {
        parent = split(parent).0;
        if directories.contains(parent) {
            return true;
        }
    }
    false
}

/// How the index says what a commit holds.
fn mode(kind: EntryKind) -> Mode {
    match kind {
        EntryKind::Tree => Mode::DIR,
        EntryKind::Blob => Mode::FILE,
        EntryKind::BlobExecutable => Mode::FILE_EXECUTABLE,
        EntryKind::Link => Mode::SYMLINK,
        EntryKind::Commit => Mode::COMMIT,
    }
}

/// Whether a file has the state that the index has of it. Owners are another's in a user namespace, and devices after a
/// start of the machine; neither says anything of the bytes.
fn is_as_recorded(recorded: &Stat, stat: &rustix::fs::Stat) -> bool {
    let Stat { mtime, ctime, dev: _, ino, uid: _, gid: _, size } = recorded;
    let is_at = |time: &index::entry::stat::Time, seconds: i64, nanoseconds: u64| {
        time.secs == seconds as u32 && u64::from(time.nsecs) == nanoseconds
    };
    is_at(mtime, stat.st_mtime, stat.st_mtime_nsec)
        && is_at(ctime, stat.st_ctime, stat.st_ctime_nsec)
        && *ino == stat.st_ino as u32
        && *size == stat.st_size as u32
}

//! Tracked files as the work tree has them, laid over those of the commit (`--dirty`).

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use gix::objs::tree::EntryKind;
use rustix::{
    fs::{Mode, OFlags, readlinkat},
    io::Errno,
};

use super::{
    GitError,
    status::{Changes, Now},
    tree::{CommitTree, Entry},
};
use crate::{
    listing::{ListError, open_regular},
    rootfs::{open_beneath, shown, split},
};

/// What is laid over a tree.
#[derive(Debug)]
pub struct Overlay {
    /// The top of the work tree.
    top: OwnedFd,
    place: PathBuf,
    /// By path from the top.
    changes: Changes,
}

/// What changes of one name in a directory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What it is itself from now on, if that has changed; `None` in it where it is gone.
    pub itself: Option<Option<Now>>,
    /// Whether something below it is there from now on.
    pub adds: bool,
    /// Whether something below it is gone.
    pub removes: bool,
}

impl Overlay {
    /// Lays the changed files of a work tree over its `commit`.
    ///
    /// # Errors
    /// The work tree cannot be opened, or one of the changes is a submodule's that is on another commit.
    pub fn new(work_tree: &Path, changes: Changes, commit: &CommitTree) -> Result<Self, GitError> {
        let is_module = |now: &Now| now.kind == EntryKind::Commit;
        let module = changes.iter().find(|(_, now)| now.as_ref().is_some_and(is_module));
        if let Some((path, _)) = module {
            let is_new = commit.entry(path)?.is_none_or(|(_, entry)| entry.kind != EntryKind::Commit);
            return Err(GitError::OtherCommit { path: shown(path), is_new });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(work_tree, flags, Mode::empty());
        let top = top.map_err(|error| unreadable(work_tree, error))?;
        Ok(Self { top, place: work_tree.to_owned(), changes })
    }

    /// What changes of the names in a directory.
    pub fn of(&self, dir: &[u8]) -> BTreeMap<Vec<u8>, Change> {
        let inside = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        let below = self.changes.range(inside.clone()..);
        let below = below.map_while(|(path, now)| Some((path.strip_prefix(inside.as_slice())?, now)));
        let mut names: BTreeMap<Vec<u8>, Change> = BTreeMap::new();
        for (path, now) in below {
            match path.iter().position(|byte| *byte == b'/') {
                None => names.entry(path.to_vec()).or_default().itself = Some(*now),
                Some(end) => {
                    let change = names.entry(path[..end].to_vec()).or_default();
                    change.adds |= now.is_some();
                    change.removes |= now.is_none();
                }
            }
        }
        names
    }

    /// Opens a file of the work tree. No link is followed.
    ///
    /// # Errors
    /// It is no file any more, or cannot be read.
    pub fn open(&self, path: &[u8]) -> Result<File, GitError> {
        open_regular(self.top.as_fd(), path).map_err(|error| match error {
            ListError::Path(error) => GitError::WorkTree { path: self.path(path), source: error.source },
            error => GitError::WorkTree { path: self.path(path), source: std::io::Error::other(error) },
        })
    }

    /// Where a link of the work tree leads.
    ///
    /// # Errors
    /// It is no link any more.
    pub fn target(&self, path: &[u8]) -> Result<Vec<u8>, GitError> {
        let (parent, name) = split(path);
        let directory = open_beneath(&self.top, parent, OFlags::PATH | OFlags::DIRECTORY);
        let target = directory.and_then(|directory| readlinkat(directory, name, Vec::new()));
        Ok(target.map_err(|error| unreadable(&self.path(path), error))?.into_bytes())
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        self.place.join(shown(path))
    }
}

impl Change {
    /// What becomes of a name; `None` where it is gone. What is there is looked into only where all of it may be gone.
    pub fn apply(
        self,
        name: &[u8],
        entry: Option<Entry>,
        holds_nothing: impl FnOnce() -> Result<bool, GitError>,
    ) -> Result<Option<Entry>, GitError> {
        let laid = |Now { kind, staged }| Some(Entry { name: name.to_vec(), kind, id: staged });
        let is_directory = entry.as_ref().is_some_and(Entry::is_directory);
        Ok(match self {
            // A submodule that is gone leaves nothing to what has its place.
            Self { adds: true, itself: None, .. } if is_directory => entry,
            Self { adds: true, .. } => laid(Now { kind: EntryKind::Tree, staged: None }),
            Self { itself: Some(itself), .. } => itself.and_then(laid),
            Self { removes: true, .. } if is_directory && holds_nothing()? => None,
            _ => entry,
        })
    }
}

fn unreadable(path: &Path, error: Errno) -> GitError {
    GitError::WorkTree { path: path.to_owned(), source: error.into() }
}

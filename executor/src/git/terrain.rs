//! The files of a commit as a place that is walked: directories are trees, and what a file holds is known by its object id.
//!
//! Modes are those that a checkout under umask 022 has, so that both have the same keys.

use std::{collections::BTreeMap, sync::Arc};

use gix::objs::tree::EntryKind;
use solver::{Cancel, pattern::ignore::Matcher};

use super::{
    CommitTree, GitError,
    known::Known,
    tree::{self, Directory},
};
use crate::{
    listing::{
        ListError, Node, NodeKind,
        lookup::{Found, Names, Paths},
        sight::{Entry, Terrain, is_present},
        state::FileState,
    },
    rootfs::{join, shown, split},
};

/// The files of a commit, to be listed.
pub struct CommitTerrain<'a> {
    /// The files.
    pub tree: &'a CommitTree,
    /// What is not part of the context at all.
    pub ignore: Option<&'a Matcher>,
    /// What blobs hold.
    pub known: &'a Known,
    /// Says when to stop looking.
    pub cancel: &'a Cancel,
}

impl From<GitError> for ListError {
    fn from(error: GitError) -> Self {
        Self::Git(Box::new(error))
    }
}

impl Paths for CommitTerrain<'_> {
    type Error = ListError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, ListError> {
        if path.is_empty() {
            return Ok(Some(Found::Directory));
        }
        let Some((directory, entry)) = self.tree.entry(path)? else { return Ok(None) };
        let found = match entry.kind {
            EntryKind::Tree | EntryKind::Commit => Found::Directory,
            EntryKind::Link => Found::Link(entry.target(&directory, path)?),
            EntryKind::Blob | EntryKind::BlobExecutable => Found::Other,
        };
        Ok(is_present(self, path, entry.is_directory())?.then_some(found))
    }
}

impl Names for CommitTerrain<'_> {
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, ListError> {
        let names =
            |directory: Arc<Directory>| directory.entries.iter().map(|entry| entry.name.clone()).collect();
        Ok(self.tree.directory(dir)?.map(names).unwrap_or_default())
    }
}

impl Terrain for CommitTerrain<'_> {
    type Directory = Arc<Directory>;
    type Status = tree::Entry;

    fn ignore(&self) -> Option<&Matcher> {
        self.ignore
    }

    fn cancel(&self) -> &Cancel {
        self.cancel
    }

    fn directory(&self, path: &[u8]) -> Result<Arc<Directory>, ListError> {
        self.tree.directory(path)?.ok_or_else(|| ListError::NotFound(shown(path)))
    }

    fn entries(&self, opened: &Arc<Directory>, dir: &[u8]) -> Result<Vec<Entry>, ListError> {
        let entry = |entry: &tree::Entry| Entry {
            path: join(dir, &entry.name),
            is_directory: Some(entry.is_directory()),
        };
        Ok(opened.entries.iter().map(entry).collect())
    }

    fn status(&self, opened: &Arc<Directory>, path: &[u8]) -> Result<Option<tree::Entry>, ListError> {
        Ok(opened.entry(split(path).1).cloned())
    }

    fn is_directory(status: &tree::Entry) -> bool {
        status.is_directory()
    }

    fn thing(
        &self,
        opened: &Arc<Directory>,
        path: &[u8],
        status: tree::Entry,
    ) -> Result<Option<(Node, Option<FileState>)>, ListError> {
        let file = |mode| {
            let (size, content) = match status.id.as_ref().and_then(|id| self.known.find(id)) {
                Some((content, size)) => (size, Some(content)),
                None => (0, None),
            };
            (NodeKind::File { size, content }, mode)
        };
        let (kind, mode) = match status.kind {
            EntryKind::Tree | EntryKind::Commit => (NodeKind::Directory, 0o755),
            EntryKind::Link => (NodeKind::Symlink { target: status.target(opened, path)? }, 0o777),
            EntryKind::Blob => file(0o644),
            EntryKind::BlobExecutable => file(0o755),
        };
        let (seconds, xattrs) = (self.tree.commit().time, BTreeMap::new());
        let node = Node { kind, mode, uid: 0, gid: 0, seconds, nanoseconds: 0, xattrs, inode: None };
        Ok(Some((node, None)))
    }

    fn thing_at(&self, path: &[u8]) -> Result<Option<(Node, Option<FileState>)>, ListError> {
        match self.tree.entry(path)? {
            Some((directory, entry)) => self.thing(&directory, path, entry),
            None => Ok(None),
        }
    }
}

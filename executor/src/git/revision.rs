//! A context as people name it: a directory in a repository, and a revision with, behind a colon, another directory.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use gix::objs::tree::EntryKind;
use rustix::io::Errno;
use solver::Cancel;

use super::{
    Commit, CommitTerrain, CommitTree, FileBytes, GitError, Repository, known::Known, overlay::Overlay,
    status,
};
use crate::{
    listing::{
        ListError,
        lookup::{LastLink, resolve},
    },
    rootfs::{failed, shown},
};

/// So many changed files are told.
const CHANGES_TOLD: usize = 3;
/// What reads whole files takes no longer ones.
const READ_MAX: u64 = 64 << 20;

/// The files of a commit, and the directory of it that is built.
#[derive(Debug, Clone)]
pub struct Revision {
    /// All that the commit holds.
    top: Arc<CommitTree>,
    /// The context.
    context: Arc<CommitTree>,
    /// The way from the one to the other.
    way: PathBuf,
    /// What people call the commit.
    name: String,
    /// Whether the work tree is laid over it.
    is_dirty: bool,
}

/// What becomes of tracked files that are not as the commit has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkTree {
    /// They are refused.
    MustBeClean,
    /// They are built as they are.
    IsLaidOver,
}

impl Revision {
    /// Looks up `REV` or `REV:DIRECTORY` in the repository that a directory lies in. Without a directory of its own the
    /// context is the one that the place is in the work tree.
    ///
    /// # Errors
    /// There is no such repository, commit or directory.
    pub fn open(place: &Path, revision: &str) -> Result<Self, GitError> {
        let (repository, way) = Repository::discover(place)?;
        let (name, directory) = parts(revision);
        let commit = repository.commit(name)?;
        let top = Arc::new(CommitTree::new(Arc::new(repository), commit)?);
        let way = match directory {
            Some(directory) => directory.trim_matches('/').as_bytes().to_vec(),
            None => way,
        };
        let context = match way.is_empty() {
            true => Arc::clone(&top),
            false => Arc::new(top.below(&way)?),
        };
        Ok(Self {
            top,
            context,
            way: PathBuf::from(OsStr::from_bytes(&way)),
            name: name.to_owned(),
            is_dirty: false,
        })
    }

    /// A commit that was fetched, and a directory of it, to which links may lead.
    ///
    /// # Errors
    /// [`GitError::NoDirectory`], or something on the way cannot be read.
    pub fn fetched(top: CommitTree, directory: Option<&str>, name: String) -> Result<Self, GitError> {
        let top = Arc::new(top);
        let (context, way) = match directory {
            None => (Arc::clone(&top), Vec::new()),
            Some(directory) => {
                let missing =
                    || GitError::NoDirectory { path: directory.to_owned(), commit: top.commit().id };
                let way = at(&top, directory.as_bytes()).map_err(|error| match error {
                    ListError::Git(error) => *error,
                    _ => missing(),
                })?;
                let way = way.ok_or_else(missing)?;
                (Arc::new(top.below(&way)?), way)
            }
        };
        Ok(Self { top, context, way: PathBuf::from(OsStr::from_bytes(&way)), name, is_dirty: false })
    }

    /// Whether it was fetched from elsewhere.
    pub fn is_fetched(&self) -> bool {
        self.top.repository().supplied().is_some()
    }

    /// The commit with what the work tree makes of the context, and of the `others`, paths from the top. Only of the commit that
    /// is checked out anybody expects the work tree to say something; a bare repository has none. What is laid over is found
    /// by the thread that asks and no other.
    ///
    /// # Errors
    /// [`GitError::Dirty`], [`GitError::NotCheckedOut`], [`GitError::OtherCommit`]; or the work tree cannot be read.
    pub fn against(self, work_tree: WorkTree, others: &[PathBuf], cancel: &Cancel) -> Result<Self, GitError> {
        let (repository, commit) = (self.top.repository(), self.top.commit());
        let head = repository.head().filter(|_| repository.work_tree().is_some());
        let Some(top) = repository.work_tree().filter(|_| head == Some(commit.id)) else {
            return match work_tree {
                WorkTree::MustBeClean => Ok(self),
                WorkTree::IsLaidOver => Err(GitError::NotCheckedOut { revision: self.name, head }),
            };
        };
        let bytes = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
        let wanted: Vec<Vec<u8>> = others.iter().chain([&self.way]).map(bytes).collect();
        let changes = status::changed(repository, commit, &wanted, work_tree, cancel)?;
        if changes.is_empty() {
            return Ok(self);
        }
        if work_tree == WorkTree::MustBeClean {
            let more = changes.len().saturating_sub(CHANGES_TOLD);
            let paths = changes.keys().take(CHANGES_TOLD).map(|path| shown(path)).collect();
            return Err(GitError::Dirty { revision: self.name, paths, more });
        }
        let overlay = Overlay::new(top, changes, &self.top)?;
        let top = Arc::new(CommitTree::under(Arc::clone(repository), commit, overlay)?);
        let way = self.way.as_os_str().as_bytes();
        let context = if way.is_empty() { Arc::clone(&top) } else { Arc::new(top.below(way)?) };
        Ok(Self { top, context, is_dirty: true, ..self })
    }

    /// Whether files of the work tree are laid over those of the commit.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Whether the commit itself has something at a path from the top, whatever is laid over it. Links are not followed.
    pub fn has_committed(&self, path: &Path) -> bool {
        let plain = CommitTree::new(Arc::clone(self.top.repository()), self.top.commit());
        let found = plain.and_then(|plain| plain.entry(path.as_os_str().as_bytes()));
        found.is_ok_and(|found| found.is_some())
    }

    /// The commit.
    pub fn commit(&self) -> Commit {
        self.top.commit()
    }

    /// All that the commit holds.
    pub(super) fn top(&self) -> &CommitTree {
        &self.top
    }

    /// What people call the commit: a revision without a directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files of the context.
    pub fn context(&self) -> &Arc<CommitTree> {
        &self.context
    }

    /// The path from the top of the commit of what is called `path` in the context.
    pub fn in_context(&self, path: &Path) -> PathBuf {
        self.way.join(path)
    }

    /// The path from the top of the commit of what has this absolute path in the work tree; `None` for what lies elsewhere.
    pub fn in_work_tree(&self, path: &Path) -> Option<PathBuf> {
        let top = self.top.repository().work_tree()?.canonicalize().ok()?;
        // What is looked for need not be in the work tree.
        let (there, rest) = path.ancestors().find_map(|there| {
            let place = there.canonicalize().ok()?;
            Some((place, path.strip_prefix(there).ok()?.to_owned()))
        })?;
        let found: PathBuf = there.strip_prefix(&top).ok()?.components().chain(rest.components()).collect();
        let is_plain = found.components().all(|part| matches!(part, Component::Normal(_)));
        is_plain.then_some(found)
    }

    /// The bytes of the file at a path from the top, to which links may lead; `None` where there is nothing.
    ///
    /// # Errors
    /// It cannot be read, or is a directory.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, ListError> {
        match at(&self.top, path.as_os_str().as_bytes())? {
            Some(at) => match self.top.file(&at)?.map(|file| file.bytes) {
                Some(FileBytes::Blob(bytes)) => Ok(Some(bytes)),
                Some(FileBytes::Large(file)) => {
                    let mut bytes = Vec::new();
                    file.take(READ_MAX).read_to_end(&mut bytes).map_err(failed("reading", &at))?;
                    Ok(Some(bytes))
                }
                None => Err(failed("reading", &at)(Errno::ISDIR).into()),
            },
            None => Ok(None),
        }
    }

    /// Where the link at a path from the top leads, for people; `None` where none is, or it cannot be read.
    pub fn link(&self, path: &Path) -> Option<String> {
        let at = looked_up(&self.top, path.as_os_str().as_bytes(), LastLink::Keep).ok()??;
        let (directory, entry) = self.top.entry(&at).ok()??;
        let is_link = entry.kind == EntryKind::Link;
        is_link.then(|| entry.target(&directory, &at).ok().map(|target| shown(&target)))?
    }
}

/// Where a path leads to that may hold links, if anywhere.
fn at(tree: &CommitTree, path: &[u8]) -> Result<Option<Vec<u8>>, ListError> {
    looked_up(tree, path, LastLink::Follow)
}

fn looked_up(tree: &CommitTree, path: &[u8], last: LastLink) -> Result<Option<Vec<u8>>, ListError> {
    let (known, cancel) = (Known::default(), Cancel::default());
    let terrain = CommitTerrain { tree, ignore: None, known: &known, cancel: &cancel };
    resolve(&terrain, path, last, &mut Vec::new())
}

/// A revision, and the directory behind its first colon, which stands in no braces and at no beginning.
fn parts(revision: &str) -> (&str, Option<&str>) {
    let mut depth = 0_usize;
    for (at, byte) in revision.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && at > 0 => return (&revision[..at], Some(&revision[at + 1..])),
            _ => {}
        }
    }
    (revision, None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::git::testing::Scratch;

    #[test]
    fn a_revision_may_name_a_directory() {
        for (text, parted) in [
            ("HEAD", ("HEAD", None)),
            ("v1:a/b", ("v1", Some("a/b"))),
            ("HEAD:", ("HEAD", Some(""))),
            (":/text", (":/text", None)),
            ("HEAD^{/a: b}", ("HEAD^{/a: b}", None)),
            ("HEAD@{10:00}:d", ("HEAD@{10:00}", Some("d"))),
        ] {
            assert_eq!(parts(text), parted, "{text}");
        }
    }

    #[test]
    fn files_are_found_from_the_context_and_from_the_work_tree() {
        let scratch = Scratch::new();
        scratch.write(&[
            ("sub/Dockerfile", "of sub"),
            ("other/link@", "../sub/Dockerfile"),
            ("out@", "/etc/passwd"),
        ]);
        scratch.commit();
        fs::remove_dir_all(scratch.top().join("other")).expect("removed");
        let read =
            |revision: &Revision, path: &Path| revision.read(path).expect("read").map(|bytes| shown(&bytes));
        for (place, name, way) in [("sub", "HEAD", "sub"), ("", "HEAD:sub", "sub"), ("sub", "HEAD:", "")] {
            let revision = Revision::open(&scratch.top().join(place), name).expect("there");
            assert_eq!(revision.in_context(Path::new("Dockerfile")), Path::new(way).join("Dockerfile"));
            let gone = revision.in_work_tree(&scratch.top().join("other/link")).expect("below the top");
            assert_eq!(read(&revision, &gone).as_deref(), Some("of sub"));
            assert_eq!(revision.in_work_tree(&scratch.beside("file")), None);
            assert_eq!(read(&revision, Path::new("out")), None);
            assert_eq!(revision.link(Path::new("out")).as_deref(), Some("/etc/passwd"));
            assert_eq!(revision.link(Path::new("sub/Dockerfile")), None);
        }
        let revision = Revision::open(&scratch.top(), "HEAD").expect("there");
        assert!(revision.read(Path::new("sub")).is_err(), "it is a directory");
        let error = Revision::open(&scratch.top(), "HEAD:none").expect_err("it is not there");
        assert!(error.to_string().ends_with("has no directory \"none\""), "{error}");
    }
}

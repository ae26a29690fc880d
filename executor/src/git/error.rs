//! What can be wrong with a repository of this machine or a commit in it, and what to do about it.

use std::{error::Error, path::PathBuf};

use gix::ObjectId;
use solver::{FailureKind, StepFailure};

use crate::rootfs::shown;

/// What went wrong below.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Why a commit cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no repository.
    #[error("{} lies in no git repository", place.display())]
    NoRepository {
        /// What was given.
        place: PathBuf,
    },
    /// What should be a repository is none.
    #[error("cannot open the git repository {}", directory.display())]
    Open {
        /// Its directory.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A file of a repository that is somebody else's.
    #[error("cannot read {} of the git repository", path.display())]
    Unreadable {
        /// Where it lies.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Branches and tags that are kept in a way that is not known here.
    #[error("the git repository {} keeps its references as {format:?}, which cannot be read", directory.display())]
    References {
        /// Its directory.
        directory: PathBuf,
        /// What its configuration calls that.
        format: String,
    },
    /// Something that nobody can read, where a repository has a file.
    #[error("{} is {what}, where a git repository has a file", path.display())]
    NoFile {
        /// Where it lies.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// A revision that names nothing.
    #[error("there is no commit {revision:?} in {}: {why}", repository.display())]
    NoCommit {
        /// As given.
        revision: String,
        /// The repository's directory.
        repository: PathBuf,
        /// As far as it leads.
        why: String,
        /// What there is.
        hint: String,
    },
    /// A directory that the commit does not have.
    #[error("commit {commit} has no directory {path:?}")]
    NoDirectory {
        /// Relative to the top of the repository.
        path: String,
        /// Its hash.
        commit: ObjectId,
    },
    /// An object that is not there.
    #[error("{what} {id}{} is not in the repository {}", of(path), repository.display())]
    Missing {
        /// `the blob`
        what: &'static str,
        /// Its id.
        id: ObjectId,
        /// What the commit has it for, where that is known.
        path: Option<String>,
        /// The repository's directory.
        repository: PathBuf,
    },
    /// An object that is not what it is called, or cannot be read.
    #[error("{what} {id}{} in the repository {} is damaged", of(path), repository.display())]
    Damaged {
        /// `the blob`
        what: &'static str,
        /// Its id.
        id: ObjectId,
        /// What the commit has it for, where that is known.
        path: Option<String>,
        /// The repository's directory.
        repository: PathBuf,
        /// How.
        #[source]
        source: Cause,
    },
    /// A tree that holds what git would not check out.
    #[error("the commit holds {path:?}: {reason}")]
    Refused {
        /// Where.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An index that cannot be read.
    #[error("cannot read the index {}", path.display())]
    Index {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A file of the work tree that cannot be looked at.
    #[error("cannot read {} in the work tree", path.display())]
    WorkTree {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What lies where a file is tracked, and is nothing that an image could have.
    #[error("{} is {what} in the work tree, where a file is tracked", path.display())]
    NoMore {
        /// Where it lies.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// A work tree that differs from the commit.
    #[error("the work tree differs from {revision}: {}", told(paths, *more))]
    Dirty {
        /// As given.
        revision: String,
        /// The first of what differs.
        paths: Vec<String>,
        /// How much there is besides.
        more: usize,
    },
    /// `--dirty`, and a commit that no work tree shows.
    #[error("--dirty lays a work tree over the commit that is checked out, and {revision} is {}", match head {
        Some(head) => format!("another one than {head}"),
        None => "of a repository without one".to_owned(),
    })]
    NotCheckedOut {
        /// As given.
        revision: String,
        /// What is checked out; nothing where there is no work tree.
        head: Option<ObjectId>,
    },
    /// `--dirty`, and a submodule that is on another commit or in none: what is laid over a commit is files.
    #[error("the submodule {path:?} is {}, and --dirty builds changed files, but no other commit of a submodule", match is_new {
        true => "in the index and not in the commit",
        false => "on another commit than the one that is committed",
    })]
    OtherCommit {
        /// Where, from the top of the work tree.
        path: String,
        /// Whether the commit has none there.
        is_new: bool,
    },
    /// Files of Git LFS that were not fetched.
    #[error("{} of Git LFS {} not on this machine: {}", files(paths.len() + more), be(paths.len() + more), told(paths, *more))]
    Pointers {
        /// The first of them.
        paths: Vec<String>,
        /// How many there are besides.
        more: usize,
    },
    /// A file of Git LFS that cannot be used.
    #[error("cannot use {}, a file of Git LFS", file.display())]
    LargeFile {
        /// Where it lies.
        file: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A submodule whose commit is not here.
    #[error("the files of the submodule {path:?}, commit {commit}, are not on this machine: {reason}")]
    Submodule {
        /// Where, from the top of the repository.
        path: String,
        /// Its commit.
        commit: ObjectId,
        /// Where it was looked for.
        reason: String,
        /// Whether it was to be in a repository with a work tree, as git's own command needs one.
        has_work_tree: bool,
    },
    /// What is not on this machine cannot be brought.
    #[error(transparent)]
    Elsewhere(Box<StepFailure>),
}

impl GitError {
    /// The same of an object that the commit has for this path.
    pub(super) fn at(mut self, place: &[u8]) -> Self {
        if let Self::Missing { path, .. } | Self::Damaged { path, .. } = &mut self {
            path.get_or_insert_with(|| shown(place));
        }
        self
    }

    /// Whose fault it is.
    pub fn blame(&self) -> FailureKind {
        match self {
            Self::NoRepository { .. }
            | Self::NoCommit { .. }
            | Self::NoDirectory { .. }
            | Self::NoMore { .. }
            | Self::Dirty { .. }
            | Self::OtherCommit { .. }
            | Self::NotCheckedOut { .. } => FailureKind::Usage,
            Self::Open { .. }
            | Self::Unreadable { .. }
            | Self::References { .. }
            | Self::NoFile { .. }
            | Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::LargeFile { .. }
            | Self::Index { .. }
            | Self::WorkTree { .. } => FailureKind::Machine,
            Self::Refused { .. } | Self::Submodule { .. } | Self::Pointers { .. } => FailureKind::Build,
            Self::Elsewhere(failure) => failure.kind,
        }
    }

    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoRepository { .. } => Some(
                "the context of --git is a directory in a git repository, or a bare repository".to_owned(),
            ),
            Self::NoCommit { hint, .. } => Some(hint.clone()),
            Self::Unreadable { .. } => Some(
                "who builds must be able to read all of the repository: build as its owner, or build a clone".to_owned(),
            ),
            Self::References { directory, .. } => Some(format!(
                "git -C {} refs migrate --ref-format=files converts them (git 2.48), or build a clone that git clone \
                 --ref-format=files has made",
                directory.display()
            )),
            Self::NoFile { .. } => {
                Some("no git puts one there: ask whose repository it is, or clone it and build the clone".to_owned())
            }
            Self::Missing { repository, .. } => Some(format!(
                "nothing is fetched for --git: in a partial or shallow clone get it with git first: git -C {0} fetch \
                 --refetch --no-filter; in any other, git -C {0} fsck tells what else is gone",
                repository.display()
            )),
            Self::Damaged { repository, .. } => {
                Some(format!("git -C {} fsck tells what else is", repository.display()))
            }
            Self::Pointers { .. } => Some(
                "no build fetches them: build a clone to which git lfs fetch origin REV has brought them with --git, or keep \
                 them out of the build with .dockerignore"
                    .to_owned(),
            ),
            Self::LargeFile { .. } => Some("git lfs fsck tells what else is wrong, git lfs fetch brings it anew".to_owned()),
            Self::Elsewhere(failure) => failure.hint.clone(),
            Self::Submodule { has_work_tree: true, .. } => Some("git submodule update --init --recursive".to_owned()),
            Self::Submodule { has_work_tree: false, .. } => Some(
                "a bare repository has no submodules: build a clone with a work tree, made with git clone --recurse-submodules"
                    .to_owned(),
            ),
            Self::NoMore { .. } => {
                Some("restore the file with git restore, or take it out of the index with git rm --cached".to_owned())
            }
            Self::Dirty { .. } => Some(
                "commit what is to be built, or build tracked files as they are with --dirty (git status brings the index up to \
                 date where it finds no difference)"
                    .to_owned(),
            ),
            Self::OtherCommit { is_new: true, path } => {
                Some(format!("commit it, or take it out of the index with git restore --staged {path}"))
            }
            Self::OtherCommit { is_new: false, path } => Some(format!(
                "commit that, or check out the committed one with git restore --staged {path} and git submodule update {path}"
            )),
            Self::Open { .. }
            | Self::NoDirectory { .. }
            | Self::Refused { .. }
            | Self::Index { .. }
            | Self::WorkTree { .. }
            | Self::NotCheckedOut { .. } => None,
        }
    }
}

/// What an object is of.
fn of(path: &Option<String>) -> String {
    path.as_ref().map(|path| format!(", {path:?} of the commit,")).unwrap_or_default()
}

fn files(count: usize) -> String {
    if count == 1 { "a file".to_owned() } else { format!("{count} files") }
}

fn be(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// The first few of many paths.
fn told(paths: &[String], more: usize) -> String {
    let paths = paths.join(", ");
    if more == 0 { paths } else { format!("{paths} and {more} more") }
}

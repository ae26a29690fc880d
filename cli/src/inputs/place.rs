//! Where the files of the main context are, and how one of them is read before there is a build.

use std::{
    io,
    path::{Path, PathBuf},
};

use executor::{
    git::{GitError, Revision, WorkTree},
    listing::ListError,
};
use solver::Cancel;

use super::{dockerfile::own_ignore_file, text};
use crate::{request::DockerfilePlace, spec::context::CommitSpec};

/// Where the files of the main context are.
#[derive(Debug, Clone)]
pub enum ContextPlace {
    /// In a directory.
    Directory(PathBuf),
    /// In a commit: of a repository of this machine, or fetched from elsewhere.
    Commit(Revision),
}

impl ContextPlace {
    /// The path of what the context calls so: in a commit from its top, else from the context.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Directory(_) => PathBuf::from(name),
            Self::Commit(revision) => revision.in_context(Path::new(name)),
        }
    }

    /// What people call it.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Directory(_) => "context",
            Self::Commit(_) => "commit",
        }
    }

    /// The text of a file at such a path. No link leads out of a context that came from elsewhere, or of a commit.
    ///
    /// # Errors
    /// It is not there, too large, or no text.
    pub fn text(&self, path: &Path) -> io::Result<String> {
        let revision = match self {
            Self::Directory(directory) => return text::of_file_in(directory, path),
            Self::Commit(revision) => revision,
        };
        let bytes = revision.read(path).map_err(|error| match error {
            ListError::Path(error) => error.source,
            error => io::Error::other(error),
        })?;
        text::of_bytes(bytes.ok_or(io::ErrorKind::NotFound)?)
    }

    /// Where a link at such a path leads, for people; `None` where there is none.
    pub fn link(&self, path: &Path) -> Option<String> {
        match self {
            Self::Directory(directory) => text::link_in(directory, path),
            Self::Commit(revision) => revision.link(path),
        }
    }
}

/// Opens what `--git` names, with what `--dirty` lays over it: the tracked files of the context in the work tree, and the
/// Dockerfile with its ignore file wherever it lies. No thread is started.
///
/// # Errors
/// There is no such commit, or the work tree cannot be read.
pub fn opened(spec: &CommitSpec, dockerfile: &DockerfilePlace) -> Result<Revision, GitError> {
    let opened = Revision::open(&spec.place, &spec.revision)?;
    match spec.is_dirty {
        true => compared(opened, dockerfile, WorkTree::IsLaidOver, &Cancel::default()),
        false => Ok(opened),
    }
}

/// Refuses a work tree in which the same files differ from the commit that is checked out.
///
/// # Errors
/// They do, or cannot be read.
pub fn clean(opened: Revision, dockerfile: &DockerfilePlace, cancel: &Cancel) -> Result<Revision, GitError> {
    compared(opened, dockerfile, WorkTree::MustBeClean, cancel)
}

fn compared(
    opened: Revision,
    dockerfile: &DockerfilePlace,
    work_tree: WorkTree,
    cancel: &Cancel,
) -> Result<Revision, GitError> {
    let named = match dockerfile {
        DockerfilePlace::Path(path) => in_commit(&opened, path),
        DockerfilePlace::Default | DockerfilePlace::Stdin | DockerfilePlace::Url(_) => None,
    };
    let others: Vec<PathBuf> = named.into_iter().flat_map(|path| [own_ignore_file(&path), path]).collect();
    opened.against(work_tree, &others, cancel)
}

/// The path from the top of a commit of what `-f` names: what is below the work tree has its path there, and anything else that
/// is relative is so to the context. `None` for a file of this machine.
pub fn in_commit(revision: &Revision, path: &Path) -> Option<PathBuf> {
    let inside = std::path::absolute(path).ok().and_then(|path| revision.in_work_tree(&path));
    inside.or_else(|| path.is_relative().then(|| revision.in_context(path)))
}

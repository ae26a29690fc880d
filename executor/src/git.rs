//! Commits of git repositories on this machine, read from the object database: no checkout, no file of a work tree.
//!
//! Who builds a commit wants what the commit holds, at once, and nothing of what lies about in the work tree. So the files of
//! such a context are listed from trees ([`tree`]), their bytes come from blobs, and what a blob holds is remembered by its
//! object id ([`known`]): where nothing has changed, nothing but a few trees is read. gix reads, since it reads in this process,
//! on all threads, and runs nothing; fetching from elsewhere is the program `git`'s ([`crate::remote`]).
//!
//! A repository is as hostile as any context:
//! - Nothing of its configuration is executed, included or followed, since only objects, references and the index are read: no
//!   hooks, filters, editors, helpers or includes. `core.worktree` is not looked at; replacement objects and grafts do not
//!   count, for they would make a commit something else than what it is called.
//! - Every object that is read is hashed and must have the id by which it was asked for, by a SHA-1 that finds out
//!   collisions: what is remembered by ids holds for every repository.
//! - A tree with a name that git would refuse to check out (`..`, `.git`, a slash) is refused, and so is one that stands
//!   for millions of files.
//! - Since nothing is executed, it does not matter who owns a repository, and git's `safe.directory` is not asked: root builds a
//!   user's repository, as it builds his directory. Links in a commit lead inside of it only.

mod attributes;
mod error;
mod file;
pub mod known;
mod lfs;
mod line_ends;
mod names;
mod near;
mod overlay;
mod plain;
mod repository;
mod revision;
mod status;
mod submodules;
pub mod supply;
mod terrain;
pub mod tree;
mod unresolved;
mod watch;

pub use error::GitError;
pub use file::{CommitFile, FileBytes};
pub use names::Called;
pub use repository::{Commit, Repository};
pub use revision::{Revision, WorkTree};
pub use terrain::CommitTerrain;
pub use tree::CommitTree;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

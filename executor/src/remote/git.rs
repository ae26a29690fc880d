//! Commits of git repositories elsewhere, fetched by the program `git` and read from the object database.
//!
//! Why the program: it speaks every dialect that servers, proxies and SSH set-ups have, its users know its errors, and a
//! stack of our own would be a larger tree than all else here; the field does the same. So contexts and ADD from git need
//! git installed, and say so.
//!
//! In the store: `git/remotes` holds a bare repository for each remote. A commit that is there is never fetched again; of a
//! branch or a tag only the hash is asked for. Where the server can, a commit comes with its trees and without files
//! ([`supply`] brings those that are read). Nothing is checked out, but for who wants `.git` with it ([`checkout`]).
//!
//! Repositories are hostile: [`command`] says how git is kept from doing what one says, [`remote`] whom is spoken to,
//! [`crate::git`] what is believed of what they hold.

mod access;
mod checkout;
mod command;
mod error;
mod keep;
mod progress;
mod remote;
mod repository;
mod resolve;
mod supply;
mod tree;

use std::sync::Arc;

use solver::{
    Cancel,
    remote::{GitAddress, redacted},
};

use self::{
    error::GitError,
    remote::Remote,
    repository::Repository,
    resolve::{Resolved, Wanted, is_hash, resolve},
    supply::Origin,
};
use super::{Fetched, FetchedFiles, RemoteOptions};
use crate::git::{CommitTree, GitError as ReadError, Revision};

pub(crate) use checkout::{META, META_VERSION, Meta};

/// Makes sure the store has a commit, and says where its files are. What is fetched of it later stops when `lasting` asks.
///
/// # Errors
/// See [`GitError`].
pub fn fetch(
    options: &RemoteOptions,
    lasting: &Arc<Cancel>,
    address: &GitAddress,
) -> Result<Fetched, GitError> {
    let remote = Remote::parse(&address.remote)
        .ok_or_else(|| GitError::Protocol { remote: redacted(&address.remote) })?;
    let git = access::git(options, &remote)?;
    let origin = Origin { options: options.clone(), remote, git, lasting: Arc::clone(lasting) };
    let known = known(&origin, address)?;
    known.verify(address.checksum.as_deref())?;
    if address.keep_git_dir {
        return checkout::checkout(&origin, &known, address);
    }
    let (repository, commit) = origin.open(&known, address.submodules)?;
    let top = CommitTree::new(repository, commit)?;
    let revision = Revision::fetched(top, address.subdir.as_deref(), named(address));
    let revision = revision.map_err(|error| match (error, &address.subdir) {
        (ReadError::NoDirectory { .. }, Some(subdir)) => {
            GitError::Subdir { remote: origin.remote.shown.clone(), subdir: subdir.clone() }
        }
        (error, _) => error.into(),
    })?;
    let files = FetchedFiles::Commit(revision);
    Ok(Fetched { files, commit: commit.id.to_string(), time: commit.time })
}

/// Which commit an address means now.
fn known(origin: &Origin, address: &GitAddress) -> Result<Resolved, GitError> {
    let Origin { options, remote, git, .. } = origin;
    let wanted = match (address.fetch_by_commit, &address.checksum) {
        (true, Some(commit)) => Wanted::Known(Resolved {
            name: address.reference.clone().filter(|name| !is_hash(name)),
            ..Resolved::by_hash(commit)
        }),
        _ => resolve(git, remote, address.reference.as_deref())?,
    };
    let store = options.fetcher.store();
    match wanted {
        Wanted::Known(known) => Ok(known),
        Wanted::Prefix(prefix) => origin.heard(|heard| {
            let open = || Repository::open(store, git, remote, 40, heard);
            Repository::mended(store, open, |repository| repository.find(&prefix))
        }),
    }
}

/// What people call the commit: the address without the directory.
fn named(address: &GitAddress) -> String {
    match (&address.reference, &address.subdir) {
        (None, None) => address.remote.clone(),
        (reference, _) => format!("{}#{}", address.remote, reference.as_deref().unwrap_or_default()),
    }
}

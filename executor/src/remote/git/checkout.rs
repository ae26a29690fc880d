//! The files of a commit on disk, for who wants `.git` with them (`keep-git-dir`).
//!
//! Each checkout is named after the remote, the commit and what was made of it, and is renamed into place whole.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use oci::store::checked::{self, CheckedError};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use solver::{Event, remote::GitAddress};

use super::{
    error::GitError,
    remote::Remote,
    repository::{Blobs, Repository},
    resolve::Resolved,
    supply::Origin,
    tree::Checkouts,
};
use crate::{
    imprint,
    remote::{Fetched, FetchedFiles, RemoteOptions},
    view::open_in_root,
};

/// Name of the file beside a checkout's `fs/`.
pub(crate) const META: &str = "meta.json";

/// Version of the content of `meta.json`.
pub(crate) const META_VERSION: u32 = 2;

/// What is known of a checkout beside its files.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    commit: String,
    time: i64,
}

/// Makes sure the store has a checkout, and says where.
///
/// # Errors
/// See [`GitError`].
pub fn checkout(origin: &Origin, known: &Resolved, address: &GitAddress) -> Result<Fetched, GitError> {
    let Origin { options, remote, git, .. } = origin;
    let store = options.fetcher.store();
    let place = store.area("git/checkouts").join(name(remote, known, address));
    store.pin(&[&place])?;
    let Meta { commit, time } = match read_meta(&place, options)? {
        Some(meta) => meta,
        None => origin.heard(|heard| {
            let checkouts = Checkouts { store, git, submodules: address.submodules, heard };
            let open = || Repository::open(store, git, remote, known.object.len(), heard);
            let check_out = |repository| check_out(&checkouts, repository, remote, known, &place, options);
            Repository::mended(store, open, check_out)
        })?,
    };
    store.touch(&place);
    let directory = match &address.subdir {
        None => place.join("fs"),
        Some(subdir) => subdirectory(&place.join("fs"), subdir, remote)?,
    };
    Ok(Fetched { files: FetchedFiles::Checkout(directory), commit, time })
}

/// Makes a checkout, unless somebody else has by the time that the repository is ours.
fn check_out(
    checkouts: &Checkouts<'_>,
    repository: Repository<'_>,
    remote: &Remote,
    known: &Resolved,
    place: &Path,
    options: &RemoteOptions,
) -> Result<Meta, GitError> {
    let store = checkouts.store;
    if let Some(meta) = read_meta(place, options)? {
        return Ok(meta);
    }
    repository.ensure(known, Blobs::All)?;
    let commit = repository.commit_of(&known.object)?;
    let temp = store.temp_dir("checkout")?;
    let files = temp.path().join("fs");
    fs::create_dir(&files).map_err(GitError::io("create", &files))?;
    let time = commit_time(&repository.ask(&["cat-file", "commit", &commit])?);
    checkouts.write(repository, remote, known, &commit, &files)?;
    imprint::keep(temp.path(), &imprint_of(&files)?)?;
    let made = Meta { commit, time };
    checked::write_beside(&temp.path().join(META), META_VERSION, &made)?;
    store.rename_into(temp, place)?;
    Ok(made)
}

/// What a checkout is called: equal names hold equal files.
fn name(remote: &Remote, wanted: &Resolved, address: &GitAddress) -> String {
    // What is kept in `.git` names the reference.
    let kept = Some((&wanted.object, &wanted.name));
    let text = format!("{:?}", (&remote.url, wanted.commit(), kept, address.submodules));
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// What is known of a checkout, if it is there. A damaged one is taken out of the way: the commit can be fetched again.
fn read_meta(place: &Path, options: &RemoteOptions) -> Result<Option<Meta>, GitError> {
    let why = match checked::read(&place.join(META), META_VERSION) {
        Ok(Some(meta)) => return Ok(Some(meta)),
        Ok(None) if !place.exists() => return Ok(None),
        Ok(None) => format!("{META} is missing"),
        Err(error @ CheckedError::Io { .. }) if !error.is_damage() => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    if !options.fetcher.store().set_aside(place)? {
        return Err(GitError::InUse { path: place.to_owned(), what: why });
    }
    let warning = format!("the checkout {} will be made again: {why}", place.display());
    (options.events)(Event::Warning(warning));
    Ok(None)
}

fn imprint_of(files: &Path) -> Result<oci::Tree, GitError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(files, flags, Mode::empty()).map_err(GitError::io("open", files))?;
    imprint::imprint(&root, &|_| None).map_err(|error| GitError::io("read", files)(io::Error::other(error)))
}

/// When a commit was committed: `committer NAME <MAIL> SECONDS ZONE`.
fn commit_time(object: &[u8]) -> i64 {
    let text = String::from_utf8_lossy(object);
    let committer =
        text.lines().take_while(|line| !line.is_empty()).find(|line| line.starts_with("committer "));
    let seconds = committer.and_then(|line| line.rsplit(' ').nth(1)?.parse().ok());
    // What has no committer has no time; git refuses to make such a commit.
    seconds.unwrap_or(0)
}

/// A directory of the checkout; links in its path lead inside of it only.
fn subdirectory(files: &Path, subdir: &str, remote: &Remote) -> Result<PathBuf, GitError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(files, flags, Mode::empty()).map_err(GitError::io("open", files))?;
    let opened = open_in_root(&root, subdir.as_bytes(), OFlags::PATH | OFlags::DIRECTORY);
    let none = |_| GitError::Subdir { remote: remote.shown.clone(), subdir: subdir.to_owned() };
    let opened = opened.map_err(none)?;
    let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
    fs::read_link(&link).map_err(GitError::io("read", link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_commit_is_that_of_its_committer() {
        let object =
            b"tree x\nauthor A <a> 1 +0000\ncommitter B C <b> 1700000000 +0100\n\ncommitter D <d> 3 +0000";
        assert_eq!(commit_time(object), 1_700_000_000);
    }
}

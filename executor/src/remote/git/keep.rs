//! `keep-git-dir`: a repository of one commit in the checkout, without history and without credentials.
//!
//! Every byte of it is a function of the commit, the reference and the version of git: the objects are packed anew by one
//! thread instead of being taken from whatever packs the server sent, and the index holds no times.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{
    command::{Call, Git},
    error::GitError,
    remote::Remote,
    repository::Repository,
    resolve::Resolved,
};

/// Writes `.git` into a directory that holds the files of a commit.
///
/// # Errors
/// The disk, or git.
pub fn write_git_dir(
    git: &Git,
    repository: &Repository<'_>,
    remote: &Remote,
    wanted: &Resolved,
    commit: &str,
    directory: &Path,
) -> Result<(), GitError> {
    let own = directory.join(".git");
    let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    let call = || Call { directory: Some(directory), ..Call::default() };
    git.run(call(), &["init", "--quiet", "--template=", format, "."])?;
    let inside = || Call { directory: Some(directory), git_dir: Some(&own), ..Call::default() };
    // After the objects, for git looks at what references name.
    pack(git, repository, wanted, commit, &own)?;
    for (key, value) in [
        ("remote.origin.url", remote.shown.as_str()),
        ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
    ] {
        git.run(inside(), &["config", key, value])?;
    }
    let write = |name: &str, text: String| {
        fs::write(own.join(name), text).map_err(GitError::io("write", own.join(name)))
    };
    let parents = repository.ask(&["cat-file", "commit", commit])?;
    if parents
        .split(|byte| *byte == b'\n')
        .take_while(|line| !line.is_empty())
        .any(|line| line.starts_with(b"parent "))
    {
        write("shallow", format!("{commit}\n"))?;
    }
    write("HEAD", format!("{commit}\n"))?;
    if let Some(name) = wanted.name.as_ref().filter(|name| name.starts_with("refs/")) {
        let object = wanted.object.as_str();
        let peeled = if object == commit { String::new() } else { format!("^{commit}\n") };
        write(
            "packed-refs",
            format!("# pack-refs with: peeled fully-peeled sorted \n{object} {name}\n{peeled}"),
        )?;
    }
    git.run(inside(), &["read-tree", commit])?;
    Ok(())
}

/// Packs the commit, its trees and files, and the tag that names it.
fn pack(
    git: &Git,
    repository: &Repository<'_>,
    wanted: &Resolved,
    commit: &str,
    own: &Path,
) -> Result<(), GitError> {
    let mut objects = repository.ask(&["rev-list", "--objects", "--no-walk", commit])?;
    if wanted.object != commit {
        objects.extend_from_slice(format!("{}\n", wanted.object).as_bytes());
    }
    let list = own.join("objects.list");
    fs::write(&list, &objects).map_err(GitError::io("write", &list))?;
    let input = File::open(&list).map_err(GitError::io("read", &list))?;
    let packs = own.join("objects/pack");
    fs::create_dir_all(&packs).map_err(GitError::io("create", &packs))?;
    // In the new repository, which has no tags yet: those move objects in a pack.
    let call = Call {
        directory: Some(&packs),
        git_dir: Some(own),
        alternate: Some(&repository.directory),
        input: Some(input),
        ..Call::default()
    };
    let options = ["--quiet", "--threads=1", "--no-reuse-delta", "--no-reuse-object"];
    git.run(call, &[&["pack-objects"], &options[..], &["pack"]].concat())?;
    fs::remove_file(&list).map_err(GitError::io("remove", &list))
}

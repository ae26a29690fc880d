//! The files of a commit and of its submodules, in a directory of ours, each with its `.git`.
//!
//! `git` writes the files of one commit; where submodules go, and where from, is decided here, from `.gitmodules` as the
//! commit has it: git's own submodule machinery keeps state, runs what configuration says, and has been led astray before.
//! Modes are those that git has: 0644, 0755 for what is executable and for directories, whatever the umask.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use oci::store::Store;
use rustix::fs::OFlags;

use super::{
    command::{Call, Git},
    error::GitError,
    keep::write_git_dir,
    remote::Remote,
    repository::{Blobs, Repository},
    resolve::{Resolved, is_hash},
};
use crate::rootfs::{failed, open_beneath};

/// How deep submodules may lie in submodules.
const DEPTH_MAX: usize = 16;
/// How many submodules one checkout may have.
const SUBMODULES_MAX: usize = 1000;

/// How commits become files.
pub struct Checkouts<'a> {
    /// Where repositories are.
    pub store: &'a Store,
    /// How `git` is run.
    pub git: &'a Git,
    /// Whether submodules are fetched.
    pub submodules: bool,
    /// Takes progress.
    pub heard: &'a (dyn Fn(&str) + Sync),
}

/// A submodule of a commit.
#[derive(Debug, PartialEq, Eq)]
struct Gitlink {
    path: String,
    commit: String,
}

/// A submodule that is to be written.
struct Pending {
    /// How many repositories are around it.
    depth: usize,
    /// The directory of the repository that names it.
    parent: PathBuf,
    remote: Remote,
    link: Gitlink,
}

/// What `.gitmodules` says of one submodule.
#[derive(Debug, Default, PartialEq, Eq)]
struct Module {
    path: Option<String>,
    url: Option<String>,
    /// `update = none`
    unwanted: bool,
}

impl Checkouts<'_> {
    /// Writes the files of a commit that `repository` has into an empty directory. The repository is free for others
    /// afterwards.
    ///
    /// # Errors
    /// The commit holds what cannot be written, or a submodule cannot be had.
    pub fn write(
        &self,
        repository: Repository<'_>,
        remote: &Remote,
        wanted: &Resolved,
        commit: &str,
        directory: &Path,
    ) -> Result<(), GitError> {
        let mut todo = self.write_one(&repository, remote, wanted, commit, directory)?;
        drop(repository);
        let mut count = 0;
        while let Some(Pending { depth, parent, remote, link: Gitlink { path, commit } }) = todo.pop() {
            count += 1;
            if depth > DEPTH_MAX || count > SUBMODULES_MAX {
                let reason = "there are too many submodules, or they lie too deep".to_owned();
                return Err(GitError::Submodule { remote: remote.shown.clone(), path, reason });
            }
            let place = place_of(&parent, &path)?;
            let git = self.git.for_submodule(&remote)?;
            let repository = Repository::open(self.store, &git, &remote, commit.len(), self.heard)?;
            let wanted = Resolved::by_hash(&commit);
            repository.ensure(&wanted, Blobs::All)?;
            let commit = repository.commit_of(&commit)?;
            let below = self.write_one(&repository, &remote, &wanted, &commit, &place)?;
            todo.extend(below.into_iter().map(|pending| Pending { depth: depth + 1, ..pending }));
        }
        settle_modes(directory)
    }

    /// Writes one repository's own files, and says which submodules are to follow.
    fn write_one(
        &self,
        repository: &Repository<'_>,
        remote: &Remote,
        wanted: &Resolved,
        commit: &str,
        directory: &Path,
    ) -> Result<Vec<Pending>, GitError> {
        let temp = self.store.temp_dir("git-index")?;
        let index = temp.path().join("index");
        let call = Call {
            git_dir: Some(&repository.directory),
            work_tree: Some(directory),
            index: Some(&index),
            ..Call::default()
        };
        self.git.run(call, &["read-tree", "--reset", "-u", commit])?;
        write_git_dir(self.git, repository, remote, wanted, commit, directory)?;
        if !self.submodules {
            return Ok(Vec::new());
        }
        let found = self.submodules(repository, remote, commit)?;
        let pending = |(remote, link)| Pending { depth: 1, parent: directory.to_owned(), remote, link };
        Ok(found.into_iter().map(pending).collect())
    }

    fn submodules(
        &self,
        repository: &Repository<'_>,
        remote: &Remote,
        commit: &str,
    ) -> Result<Vec<(Remote, Gitlink)>, GitError> {
        let (links, has_file) = entries(&repository.ask(&["ls-tree", "-r", "-z", "--full-tree", commit])?);
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let blob = format!("--blob={commit}:.gitmodules");
        let modules = match has_file {
            true => modules(&repository.ask(&["config", "--null", "--no-includes", &blob, "--list"])?),
            false => BTreeMap::new(),
        };
        let mut found = Vec::new();
        for link in links {
            let failed = |reason: &str| GitError::Submodule {
                remote: remote.shown.clone(),
                path: link.path.clone(),
                reason: reason.to_owned(),
            };
            let module = modules.values().find(|module| module.path.as_deref() == Some(&link.path));
            let module = module.ok_or_else(|| failed("no submodule mapping found in .gitmodules"))?;
            if module.unwanted {
                continue;
            }
            let url = module.url.as_deref().ok_or_else(|| failed("its entry in .gitmodules has no url"))?;
            let from = remote.submodule(url);
            let from = from.ok_or_else(|| failed("its url is no http, https, ssh or git address"))?;
            found.push((from, link));
        }
        Ok(found)
    }
}

/// The directory that `git` made for a submodule; nothing on the way there is a link.
fn place_of(parent: &Path, path: &str) -> Result<PathBuf, GitError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let root = rustix::fs::open(parent, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty());
    let root = root.map_err(GitError::io("open", parent))?;
    open_beneath(&root, path.as_bytes(), flags).map_err(failed("opening the submodule", path.as_bytes()))?;
    Ok(parent.join(path))
}

/// The submodules in the output of `ls-tree -z`, and whether `.gitmodules` is a file. A link of that name could lead
/// anywhere, and paths that are no text cannot be named in it.
fn entries(output: &[u8]) -> (Vec<Gitlink>, bool) {
    let (mut links, mut has_file) = (Vec::new(), false);
    for entry in output.split(|byte| *byte == 0) {
        let Some((head, path)) = std::str::from_utf8(entry).ok().and_then(|entry| entry.split_once('\t'))
        else {
            continue;
        };
        let mut head = head.split(' ');
        match (head.next(), head.nth(1)) {
            (Some("160000"), Some(commit)) if is_hash(commit) => {
                links.push(Gitlink { path: path.to_owned(), commit: commit.to_owned() });
            }
            (Some("100644" | "100755"), _) if path == ".gitmodules" => has_file = true,
            _ => {}
        }
    }
    (links, has_file)
}

/// The entries in the output of `git config --null --list`, by name. The first value of a key counts: a repository that
/// says two things may mean two readers.
fn modules(output: &[u8]) -> BTreeMap<String, Module> {
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for entry in String::from_utf8_lossy(output).split('\0') {
        let Some((key, value)) = entry.split_once('\n') else { continue };
        let Some((name, key)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else {
            continue;
        };
        let module = modules.entry(name.to_owned()).or_default();
        match key {
            "path" => _ = module.path.get_or_insert_with(|| value.trim_end_matches('/').to_owned()),
            "url" => _ = module.url.get_or_insert_with(|| value.to_owned()),
            "update" => module.unwanted = value == "none",
            _ => {}
        }
    }
    modules
}

/// Gives everything the mode that git has for it, whatever the umask made of it.
fn settle_modes(directory: &Path) -> Result<(), GitError> {
    for entry in walkdir::WalkDir::new(directory).follow_links(false).contents_first(true) {
        let failed = |path: &Path, error: std::io::Error| GitError::io("read", path)(error);
        let entry = entry.map_err(|error| failed(directory, error.into()))?;
        if entry.path_is_symlink() {
            continue;
        }
        let metadata = entry.metadata().map_err(|error| failed(entry.path(), error.into()))?;
        let is_executable = metadata.is_dir() || metadata.permissions().mode() & 0o100 != 0;
        let mode = fs::Permissions::from_mode(if is_executable { 0o755 } else { 0o644 });
        fs::set_permissions(entry.path(), mode).map_err(GitError::io("set the mode of", entry.path()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gitlinks_are_told_from_files() {
        let hash = "a".repeat(40);
        let list = format!(
            "100644 blob {hash}\t.gitmodules\0160000 commit {hash}\tsub/a b\0160000 commit short\tbad\0120000 blob {hash}\tlink\0"
        );
        let (links, has_file) = entries(list.as_bytes());
        assert_eq!(links, [Gitlink { path: "sub/a b".to_owned(), commit: hash.clone() }]);
        assert!(has_file);
        let (_, has_file) = entries(format!("120000 blob {hash}\t.gitmodules\0").as_bytes());
        assert!(!has_file, "a link is no file");
    }

    #[test]
    fn the_first_word_of_gitmodules_counts() {
        let text = "submodule.a.b.path\nsub/\0submodule.a.b.url\n../x.git\0submodule.a.b.url\nfile:///etc\0\
                    submodule.c.update\nnone\0core.hookspath\n/x\0";
        let modules = modules(text.as_bytes());
        let first =
            Module { path: Some("sub".to_owned()), url: Some("../x.git".to_owned()), unwanted: false };
        assert_eq!(modules.get("a.b"), Some(&first));
        assert!(modules["c"].unwanted);
        assert_eq!(modules.len(), 2);
    }
}

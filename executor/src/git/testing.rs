//! Repositories for tests, made by the program `git` without anybody's configuration.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use tempfile::TempDir;

use super::{CommitTree, Repository};

/// A repository with a work tree, in a directory of its own.
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// An empty one.
    pub fn new() -> Self {
        let scratch = Self { directory: tempfile::tempdir().expect("made") };
        fs::create_dir(scratch.top()).expect("made");
        scratch.git(&["init", "-q", "-b", "main"]);
        scratch
    }

    /// The top of its work tree.
    pub fn top(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// A place beside the work tree.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs git in the work tree.
    pub fn git(&self, arguments: &[&str]) -> String {
        git(&self.top(), arguments)
    }

    /// Writes files: `NAME`, `NAME*` for one that may be run, `NAME@` for a link to its text.
    pub fn write(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.top().join(name.trim_end_matches(['*', '@']));
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            match name.chars().last() {
                Some('@') => symlink(text, &path).expect("linked"),
                last => {
                    fs::write(&path, text).expect("written");
                    let mode = if last == Some('*') { 0o755 } else { 0o644 };
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
                }
            }
        }
    }

    /// Commits all that is there; its hash.
    pub fn commit(&self) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// The repository, to be read.
    pub fn open(&self) -> Arc<Repository> {
        Arc::new(Repository::discover(&self.top()).expect("found").0)
    }

    /// The files of a commit.
    pub fn tree(&self, revision: &str) -> CommitTree {
        let repository = self.open();
        let commit = repository.commit(revision).expect("it is there");
        CommitTree::new(repository, commit).expect("read")
    }
}

/// Runs git; what it says, without the line end.
pub fn git(directory: &Path, arguments: &[impl AsRef<OsStr>]) -> String {
    let output = Command::new("git")
        .args(["-c", "protocol.file.allow=always"])
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "somebody")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "a@b")))
        .stdin(Stdio::null())
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

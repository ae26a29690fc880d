//! The store's copy of a remote: a bare repository that fetched commits gather in, each by itself, without history.
//!
//! One process at a time fetches. The lock is a file that `git` has as its standard input, so a `git` that outlives a
//! killed builder keeps others away until it ends. What a killed `git` leaves is its lock files, which whoever has the
//! lock next removes, and unfinished packs, which git does not look at.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use oci::store::Store;
use solver::Event;

use super::{
    command::{Call, Git, SILENCE},
    error::GitError,
    remote::Remote,
    resolve::{Resolved, is_hash, no_reference},
};
use crate::lock::{NotLocked, wait_for};

/// Looks at every object.
const CHECK: [&str; 4] = ["fsck", "--full", "--no-dangling", "--no-progress"];

/// A repository that nobody else fetches into.
pub struct Repository<'a> {
    /// Its directory.
    pub directory: PathBuf,
    git: &'a Git,
    remote: &'a Remote,
    lock: File,
    heard: &'a (dyn Fn(&str) + Sync),
}

impl<'a> Repository<'a> {
    /// Opens the store's repository for a remote, making it where there is none, and waits for others who have it.
    ///
    /// # Errors
    /// The disk, or the user who does not want to wait.
    pub fn open(
        store: &Store,
        git: &'a Git,
        remote: &'a Remote,
        hash_length: usize,
        heard: &'a (dyn Fn(&str) + Sync),
    ) -> Result<Self, GitError> {
        let format = if hash_length == 64 { "sha256" } else { "sha1" };
        let name = blake3::hash(remote.url.as_bytes()).to_hex();
        let directory = store.area("git/remotes").join(format!("{name}.{format}"));
        // Its lock is a thing of its own, so that a repository can be given up while nobody is about to lock it.
        let lock_path = directory.with_extension(format!("{format}.lock"));
        store.pin(&[&directory, &lock_path])?;
        let lock = lock(&lock_path, git)?;
        store.touch(&directory);
        let repository = Self { directory, git, remote, lock, heard };
        if !repository.directory.join("complete").exists() {
            repository.init(store, format)?;
        }
        repository.remove_stale_locks()?;
        Ok(repository)
    }

    /// Does something with a repository. If that fails because what the store has of it is damaged, that is fetched anew,
    /// and it is done once more.
    ///
    /// # Errors
    /// Those of `open` and `work`; or a damaged repository cannot be given up, since another build uses it.
    pub fn mended<T>(
        store: &Store,
        open: impl Fn() -> Result<Self, GitError>,
        work: impl Fn(Self) -> Result<T, GitError>,
    ) -> Result<T, GitError> {
        let error = match open().and_then(&work) {
            Err(error @ (GitError::Failed { .. } | GitError::NoReference { .. })) => error,
            done => return done,
        };
        let repository = open()?;
        let Err(GitError::Failed { said: what, .. }) = repository.ask(&CHECK) else { return Err(error) };
        let Self { directory: path, git, .. } = &repository;
        if !store.set_aside(path)? {
            return Err(GitError::InUse { path: path.clone(), what });
        }
        let warning = format!("the repository {} will be fetched again: {what}", path.display());
        (git.events)(Event::Warning(warning));
        drop(repository);
        open().and_then(work)
    }

    /// A whole repository arrives by one rename.
    fn init(&self, store: &Store, format: &str) -> Result<(), GitError> {
        let temp = store.temp_dir("git")?;
        let format = format!("--object-format={format}");
        let arguments = ["init", "--quiet", "--bare", "--template=", &format, "."];
        self.git.run(Call { directory: Some(temp.path()), ..Call::default() }, &arguments)?;
        fs::write(temp.path().join("complete"), b"").map_err(GitError::io("write", temp.path()))?;
        store.rename_into(temp, &self.directory)?;
        Ok(())
    }

    /// Nobody alive holds them, for whoever wrote them held our lock.
    fn remove_stale_locks(&self) -> Result<(), GitError> {
        for name in ["shallow.lock", "packed-refs.lock", "HEAD.lock", "config.lock"] {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(GitError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        // References are files that are written under a lock of their own.
        remove_locks_below(&self.directory.join("refs"))
    }

    /// Whether an object is here, as something that can be made a commit.
    pub fn has_commit(&self, object: &str) -> bool {
        let commit = format!("{object}^{{commit}}");
        self.ask(&["cat-file", "-e", &commit]).is_ok()
    }

    /// The commit that an object is, or that a tag names.
    ///
    /// # Errors
    /// There is none.
    pub fn commit_of(&self, object: &str) -> Result<String, GitError> {
        let commit = format!("{object}^{{commit}}");
        let said = self.ask(&["rev-parse", "--verify", "--quiet", "--end-of-options", &commit]);
        let hash = said.map(|said| String::from_utf8_lossy(&said).trim().to_owned()).unwrap_or_default();
        if is_hash(&hash) { Ok(hash) } else { Err(no_reference(self.remote, object)) }
    }

    /// Runs `git` in the repository.
    ///
    /// # Errors
    /// As those of [`Git::run`].
    pub fn ask(&self, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        self.git.run(Call { git_dir: Some(&self.directory), ..Call::default() }, arguments)
    }

    /// Makes sure that a commit is here: alone if the server gives out single commits, by its name if it gives out names
    /// only, and else with everything there is.
    ///
    /// # Errors
    /// The remote does not have it, or cannot be asked.
    pub fn ensure(&self, wanted: &Resolved) -> Result<(), GitError> {
        let object = wanted.object.as_str();
        if self.has_commit(object) {
            return Ok(());
        }
        let kept = format!("refs/layerwright/{object}");
        let alone = self.fetch_shallow(&format!("+{object}:{kept}"));
        if alone.is_ok() && self.has_commit(object) {
            return Ok(());
        }
        if let Err(error) = alone
            && !is_refusal(&error)
        {
            return Err(error);
        }
        if let Some(name) = &wanted.name {
            self.fetch_shallow(&format!("+{name}:{kept}"))?;
            if self.has_commit(object) {
                return Ok(());
            }
        }
        self.fetch_all()?;
        if self.has_commit(object) { Ok(()) } else { Err(no_reference(self.remote, object)) }
    }

    /// The only commit of the remote's branches and tags whose hash begins so.
    ///
    /// # Errors
    /// There is none, or there are several; or the remote cannot be asked.
    pub fn find(&self, prefix: &str) -> Result<Resolved, GitError> {
        self.fetch_all()?;
        let commit = self.commit_of(prefix).map_err(|_| no_reference(self.remote, prefix))?;
        Ok(Resolved::commit(&commit))
    }

    fn fetch_shallow(&self, refspec: &str) -> Result<(), GitError> {
        match self.fetch(&["--depth=1"], &[refspec]) {
            Err(GitError::Failed { said, .. }) if said.contains("shallow") || said.contains("--depth") => {
                self.fetch(&[], &[refspec])
            }
            fetched => fetched,
        }
    }

    fn fetch_all(&self) -> Result<(), GitError> {
        let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let is_shallow = self.directory.join("shallow").exists();
        let options: &[&str] = if is_shallow { &["--unshallow"] } else { &[] };
        self.fetch(options, &everything)
    }

    fn fetch(&self, options: &[&str], refspecs: &[&str]) -> Result<(), GitError> {
        let lock = self.lock.try_clone().map_err(GitError::io("lock", &self.directory))?;
        let base = ["fetch", "--no-tags", "--force", "--progress", "--no-write-fetch-head"];
        let arguments = [&base, options, &["--", &self.remote.url], refspecs].concat();
        let call = Call {
            git_dir: Some(&self.directory),
            silence: Some(SILENCE),
            input: Some(lock),
            heard: Some(self.heard),
            ..Call::default()
        };
        self.git.run(call, &arguments).map(drop)
    }
}

/// Whether a server says that it does not give out a commit by its hash.
fn is_refusal(error: &GitError) -> bool {
    let GitError::Failed { said, .. } = error else { return false };
    [
        "not our ref",
        "unadvertised object",
        "no such remote ref",
        "couldn't find remote ref",
        "Server does not allow",
    ]
    .iter()
    .any(|text| said.contains(text))
}

fn remove_locks_below(directory: &Path) -> Result<(), GitError> {
    for entry in walkdir::WalkDir::new(directory) {
        let Ok(entry) = entry else { continue };
        if entry.file_type().is_file() && entry.path().extension().is_some_and(|end| end == "lock") {
            fs::remove_file(entry.path()).map_err(GitError::io("remove", entry.path()))?;
        }
    }
    Ok(())
}

/// Takes a lock, as soon as nobody else has it.
fn lock(path: &Path, git: &Git) -> Result<File, GitError> {
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(GitError::io("open", path))?;
    match wait_for(&file, &format!("fetches {}", git.remote), &git.events, &git.cancel) {
        Ok(()) => Ok(file),
        Err(NotLocked::Cancelled) => Err(GitError::Cancelled),
        Err(NotLocked::Io(error)) => Err(GitError::io("lock", path)(error)),
    }
}

//! The store's copy of a remote: a bare repository that fetched commits gather in, each by itself, without history, and without
//! files where the server can leave them out: those are fetched by their ids when they are needed, all at once.
//!
//! One process at a time fetches. The lock is a file that `git` has as its standard input, so a `git` that outlives a
//! killed builder keeps others away until it ends. What a killed `git` leaves is its lock files and unfinished packs, which
//! whoever has the lock next removes.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{Seek, Write as _},
    path::{Path, PathBuf},
};

use gix::ObjectId;
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

/// What fetches by ids tell the server of what is here: nothing, which is what git itself does when it lacks something.
const SILENT: (&str, &str) = ("fetch.negotiationAlgorithm", "noop");

/// So many packs may have no index in common.
const PACKS_MAX: usize = 32;

/// Which files come with a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blobs {
    /// None, where the server can leave them out.
    Later,
    /// All.
    All,
}

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
        let format = format(hash_length);
        let directory = Self::place(store, remote, hash_length);
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
        repository.remove_unfinished()?;
        Ok(repository)
    }

    /// Where the store's repository for a remote is.
    pub fn place(store: &Store, remote: &Remote, hash_length: usize) -> PathBuf {
        let name = blake3::hash(remote.url.as_bytes()).to_hex();
        store.area("git/remotes").join(format!("{name}.{}", format(hash_length)))
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
            Err(error @ (GitError::Failed { .. } | GitError::NoReference { .. } | GitError::Read(_))) => {
                error
            }
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
        const LOCKS: [&str; 5] = [
            "shallow.lock",
            "packed-refs.lock",
            "HEAD.lock",
            "config.lock",
            "objects/pack/multi-pack-index.lock",
        ];
        for name in LOCKS {
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

    /// Makes sure that a commit is here.
    ///
    /// # Errors
    /// The remote does not have it, or cannot be asked.
    pub fn ensure(&self, wanted: &Resolved, blobs: Blobs) -> Result<(), GitError> {
        let object = wanted.object.as_str();
        if !self.has_commit(object) {
            self.fetch_commit(wanted, self.filter(blobs)?, &|| Ok(self.has_commit(object)))?;
        }
        match blobs {
            Blobs::Later => Ok(()),
            // The server was told of other commits, and believes that we have their files.
            Blobs::All => self.bring(&self.lacking(object)?, wanted),
        }
    }

    /// Fetches blobs of a commit by their ids; all that the commit holds from a server that does not give out single ones.
    ///
    /// # Errors
    /// The remote does not have them, or cannot be asked.
    pub fn bring(&self, blobs: &BTreeSet<ObjectId>, wanted: &Resolved) -> Result<(), GitError> {
        if blobs.is_empty() {
            return Ok(());
        }
        match self.fetch_by_ids(blobs) {
            Err(error) if is_refusal(&error) => {
                let remote = &self.remote.shown;
                let text = format!("{remote} gives out no single files, so all of the commit is fetched");
                (self.git.events)(Event::Warning(text));
                let is_whole = || Ok(self.lacking(&wanted.object)?.is_empty());
                self.fetch_commit(wanted, &["--refetch", "--no-filter"], &is_whole)
            }
            fetched => fetched,
        }
    }

    /// Fetches a commit: alone if the server gives out single commits, by its name if it gives out names only, and else with
    /// everything there is.
    fn fetch_commit(
        &self,
        wanted: &Resolved,
        options: &[&str],
        is_here: &dyn Fn() -> Result<bool, GitError>,
    ) -> Result<(), GitError> {
        let object = wanted.object.as_str();
        let kept = format!("refs/layerwright/{object}");
        let alone = self.fetch_shallow(options, &format!("+{object}:{kept}"));
        if alone.is_ok() && is_here()? {
            return Ok(());
        }
        if let Err(error) = alone
            && !is_refusal(&error)
        {
            return Err(error);
        }
        if let Some(name) = &wanted.name {
            self.fetch_shallow(options, &format!("+{name}:{kept}"))?;
            if is_here()? {
                return Ok(());
            }
        }
        self.fetch_all(options)?;
        if is_here()? { Ok(()) } else { Err(no_reference(self.remote, object)) }
    }

    /// The blobs of a commit that are not here.
    fn lacking(&self, object: &str) -> Result<BTreeSet<ObjectId>, GitError> {
        let commit = format!("{object}^{{commit}}");
        let said = self.ask(&["rev-list", "--objects", "--no-walk", "--missing=print", &commit])?;
        let missing = said.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"?"));
        Ok(missing.filter_map(|id| ObjectId::from_hex(id).ok()).collect())
    }

    /// The only commit of the remote's branches and tags whose hash begins so.
    ///
    /// # Errors
    /// There is none, or there are several; or the remote cannot be asked.
    pub fn find(&self, prefix: &str) -> Result<Resolved, GitError> {
        self.fetch_all(self.filter(Blobs::Later)?)?;
        let commit = self.commit_of(prefix).map_err(|_| no_reference(self.remote, prefix))?;
        Ok(Resolved::by_hash(&commit))
    }

    /// What becomes of files that a fetch could bring. Without a word git does as the last time.
    fn filter(&self, blobs: Blobs) -> Result<&'static [&'static str], GitError> {
        Ok(match blobs {
            Blobs::Later if self.git.can_filter()? => &["--filter=blob:none"],
            Blobs::Later | Blobs::All => &["--no-filter"],
        })
    }

    fn fetch_shallow(&self, options: &[&str], refspec: &str) -> Result<(), GitError> {
        match self.fetch(&[options, &["--depth=1"]].concat(), &[refspec]) {
            Err(GitError::Failed { said, .. }) if said.contains("shallow") || said.contains("--depth") => {
                self.fetch(options, &[refspec])
            }
            fetched => fetched,
        }
    }

    fn fetch_all(&self, options: &[&str]) -> Result<(), GitError> {
        let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let is_shallow = self.directory.join("shallow").exists();
        let deepen: &[&str] = if is_shallow { &["--unshallow"] } else { &[] };
        self.fetch(&[options, deepen].concat(), &everything)
    }

    /// The list of ids is in the lock, which is git's standard input, and nobody else's while it is locked.
    fn fetch_by_ids(&self, blobs: &BTreeSet<ObjectId>) -> Result<(), GitError> {
        let mut list = String::new();
        for id in blobs {
            writeln!(list, "{id}").expect("a string takes everything");
        }
        let mut lock = &self.lock;
        let noted =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(list.as_bytes()));
        let failed = || GitError::io("note what is fetched in the lock of", &self.directory);
        noted.and_then(|()| lock.rewind()).map_err(failed())?;
        let fetched = self.call(&["--filter=blob:none", "--stdin"], &[], &[SILENT]);
        lock.set_len(0).map_err(failed())?;
        fetched
    }

    fn fetch(&self, options: &[&str], refspecs: &[&str]) -> Result<(), GitError> {
        self.call(options, refspecs, &[])
    }

    fn call(&self, options: &[&str], refspecs: &[&str], settings: &[(&str, &str)]) -> Result<(), GitError> {
        let lock = self.lock.try_clone().map_err(GitError::io("lock", &self.directory))?;
        let base = ["fetch", "--no-tags", "--force", "--progress", "--no-write-fetch-head"];
        // By a name: git notes by it that files are lacking, and where the remote is need not be known to anybody else.
        let arguments = [&base, options, &["--", "origin"], refspecs].concat();
        let origin = [("remote.origin.url", self.remote.url.as_str())];
        let call = Call {
            git_dir: Some(&self.directory),
            silence: Some(SILENCE),
            settings: &[&origin, settings].concat(),
            input: Some(lock),
            file_max: Some(self.git.pack_max),
            heard: Some(self.heard),
            ..Call::default()
        };
        if let Err(error) = self.git.run(call, &arguments) {
            let most = self.git.pack_max;
            // The kernel has stopped it there, of which git says only that it has failed.
            return Err(match self.remove_unfinished().is_ok_and(|largest| largest >= most) {
                true => GitError::TooMuch { remote: self.remote.shown.clone(), most },
                false => error,
            });
        }
        self.index_packs()
    }

    /// Takes away what fetches that came to no end have left of their packs, and says how long the largest one was. Nobody else
    /// writes any.
    fn remove_unfinished(&self) -> Result<u64, GitError> {
        let packs = self.directory.join("objects/pack");
        let mut largest = 0;
        for entry in fs::read_dir(&packs).map_err(GitError::io("read", &packs))? {
            let entry = entry.map_err(GitError::io("read", &packs))?;
            if entry.file_name().as_encoded_bytes().starts_with(b"tmp_") {
                let failed = || GitError::io("remove", entry.path());
                largest = largest.max(entry.metadata().map_err(failed())?.len());
                fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(largest)
    }

    /// Each fetch leaves a pack. Where there are many they get an index in common, so that an object is not looked for in each;
    /// none is taken away, since others may be reading them.
    fn index_packs(&self) -> Result<(), GitError> {
        let packs = self.directory.join("objects/pack");
        let failed = || GitError::io("read", &packs);
        let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
        let indexed = changed(&packs.join("multi-pack-index")).ok();
        let mut others = 0;
        for entry in fs::read_dir(&packs).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let is_index = path.extension().is_some_and(|end| end == "idx");
            if is_index && indexed < Some(changed(&path).map_err(failed())?) {
                others += 1;
            }
        }
        match others < PACKS_MAX {
            true => Ok(()),
            false => self.ask(&["multi-pack-index", "write", "--no-progress"]).map(drop),
        }
    }
}

/// What git calls a kind of hashes.
fn format(hash_length: usize) -> &'static str {
    if hash_length == 64 { "sha256" } else { "sha1" }
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

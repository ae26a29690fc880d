//! The store: one directory that keeps what builds need again, shared by any number of processes without a daemon.
//!
//! Invariants:
//! - A file appears under its final name whole or not at all: it is written below `tmp/` and renamed. That is enough
//!   against `kill -9`; [`Store::sync`] makes it enough against power loss, and is awaited before a build says it is done.
//! - Writers go blob → record → reference, so that nothing names bytes that are not there.
//! - Everything temporary lies in `tmp/RUN`, one directory a process, whose lock the kernel frees when the process
//!   dies; the next [`Store::open`] removes what the dead have left.
//! - What a process uses is pinned before it is looked for, so nobody collects it ([`pins`]).
//! - A store belongs to one user and one id map ([`owner`]): with another, ownership in its snapshots means nothing.
//!
//! Blobs are not verified when they are opened; whoever reads one against a descriptor verifies
//! ([`crate::fetch::Fetcher::open`]).

mod blob;
pub mod checked;
mod owner;
mod pins;
pub mod sealed;
mod space;
mod temp;
mod torn;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};

use self::temp::Run;
pub use self::{
    blob::{BlobCopy, BlobWriter},
    owner::Owner,
    pins::{Pinned, Removal, Taken},
    space::{NoSpace, free_bytes},
    temp::TempDir,
};
use crate::digest::Sha256Digest;

/// The directories of a store, made when it is opened.
const AREAS: &[&str] = &[
    "blobs/sha256",
    "snapshots",
    "catalogues",
    "trees",
    "sealed",
    "seeds",
    "records/definition",
    "records/content",
    "mounts",
    "locks",
    "git/remotes",
    "git/checkouts",
    "downloads/records",
    "downloads/files",
    "history",
    "contexts",
    "glances",
    "inventories",
    "tmp",
];

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done: "create", "read", ...
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store was made by another user, or inside another user namespace.
    #[error("the store {} belongs to {found}, but this process is {own}", root.display())]
    Foreign {
        /// The store.
        root: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asks.
        own: String,
    },
    /// The directory is another user's.
    #[error("the store {} belongs to another user", root.display())]
    OtherUser {
        /// The store.
        root: PathBuf,
    },
    /// The directory holds something else.
    #[error("{} is not empty and not a store: it has no file {:?}", root.display(), owner::FILE)]
    NotAStore {
        /// The directory.
        root: PathBuf,
    },
    /// The store was written by another version of the format, or its `format` file is damaged.
    #[error("the store {} has format {found:?}, and this version reads {:?}", root.display(), owner::FORMAT)]
    Format {
        /// The store.
        root: PathBuf,
        /// First line of its `format` file.
        found: String,
    },
    /// Nothing says any more whose the store is.
    #[error("the file {:?} of the store {} is {what}", owner::FILE, root.display())]
    Unmarked {
        /// The store.
        root: PathBuf,
        /// "damaged" or "missing".
        what: &'static str,
    },
    /// A file system whose locks are not kept between machines.
    #[error("the store {} lies on {kind}, a network file system without reliable locks", root.display())]
    NetworkFileSystem {
        /// The store.
        root: PathBuf,
        /// Which file system.
        kind: &'static str,
    },
    /// The store cannot be written. Also who only looks at one notes in it that he lives, so that nobody clears up after him.
    #[error("the store {} is on a read-only file system; also who only looks at a store writes to it", root.display())]
    ReadOnly {
        /// The store.
        root: PathBuf,
    },
    /// The path given is not one inside the store.
    #[error("{} is not a path inside the store", path.display())]
    Outside {
        /// The path.
        path: PathBuf,
    },
    /// A blob is not there.
    #[error("the store has no blob {digest}")]
    NoBlob {
        /// Which.
        digest: Sha256Digest,
    },
    /// Less or more was written than the blob has.
    #[error("blob {digest} of {size} bytes was not stored: {found} bytes were written")]
    IncompleteBlob {
        /// Which blob.
        digest: Sha256Digest,
        /// How many bytes it has.
        size: u64,
        /// How many were written.
        found: u64,
    },
}

impl StoreError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    fn errno(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { action, path, source: errno.into() }
    }
}

/// An open store. Share it behind an [`Arc`]; all methods may be called from any thread.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    directory: File,
    run: Arc<Run>,
}

impl Store {
    /// Whether the store in `root` was made by this user with the id maps this process has now; `None` where there is no
    /// store, or it does not say. Opens nothing.
    pub fn is_of_this_process(root: &Path) -> Option<bool> {
        owner::is_of(root, &Owner::of_this_process().ok()?)
    }

    /// Opens the store in `root`, making it where nothing is there yet, and removes what dead processes left in it.
    ///
    /// # Errors
    /// [`StoreError::Foreign`], [`StoreError::NotAStore`], [`StoreError::Format`] or
    /// [`StoreError::NetworkFileSystem`] where it must not be used, [`StoreError::ReadOnly`] or [`StoreError::Io`] where it
    /// cannot be.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        make_directory(root)?;
        let root = root.canonicalize().map_err(StoreError::io("resolve", root))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&root, flags, Mode::empty()).map_err(StoreError::errno("open", &root))?;
        owner::refuse_network_file_system(&directory, &root)?;
        owner::refuse_read_only_file_system(&directory, &root)?;

        // Held while the store is made and while the dead are told from the living, and no longer.
        let lock = lock_directory(&directory, &root)?;
        owner::claim(&directory, &root, &Owner::of_this_process()?)?;
        for area in AREAS {
            make_area(&root.join(area))?;
        }
        let mut dead = temp::dead_runs(&root.join("tmp"))?;
        let run = Arc::new(Run::start(&root, &dead)?);
        if let Some(since) = dead.iter().filter_map(temp::DeadRun::torn_since).min() {
            // Under the lock, and once: nobody has used anything since.
            torn::throw_away(&root, since, &TempDir::new(&run, "torn")?)?;
            run.note_unsynced();
            dead.drain(..).for_each(temp::DeadRun::remove);
        }
        drop(lock);

        if !dead.is_empty() {
            // Before what says so is removed.
            run.note_unsynced();
        }
        dead.into_iter().for_each(temp::DeadRun::remove);
        Ok(Store { root, directory: directory.into(), run })
    }

    /// Says anew whose the store in `root` is, where its `format` file is damaged or missing: this user's, seen through
    /// the id map of this process. Whoever calls this looks at the owners of all that is in it after. Anything else is as
    /// with [`Store::open`].
    ///
    /// # Errors
    /// As those of [`Store::open`], but for [`StoreError::Unmarked`].
    pub fn claim_again(root: &Path) -> Result<(), StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(root, flags, Mode::empty()).map_err(StoreError::errno("open", root))?;
        let _lock = lock_directory(&directory, root)?;
        owner::claim_again(&directory, root, &Owner::of_this_process()?)
    }

    /// The directory, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `ROOT/name`: one of `blobs/sha256`, `snapshots`, `trees`, `sealed`, `seeds`, `records/definition`, `records/content`,
    /// `mounts`, `locks`, `git`, `git/remotes`, `git/checkouts`, `downloads/records`, `downloads/files`, `history`,
    /// `contexts`, `glances`, `inventories`, all of which exist.
    pub fn area(&self, name: &str) -> PathBuf {
        debug_assert!(AREAS.iter().any(|area| Path::new(area).starts_with(name)), "no area {name}");
        self.root.join(name)
    }

    /// Where below the root this process keeps what is temporary.
    pub fn own_temporary(&self) -> &Path {
        self.run.directory().strip_prefix(&self.root).expect("made below the root")
    }

    /// A new empty directory below `tmp/`, mode 0700, removed with all it holds when it is dropped. `purpose` becomes
    /// part of its name.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn temp_dir(&self, purpose: &str) -> Result<TempDir, StoreError> {
        TempDir::new(&self.run, purpose)
    }

    /// Whether there is a blob of this digest and size, which then counts as used now and stays. Its bytes are not read.
    pub fn has_blob(&self, digest: &Sha256Digest, size: u64) -> bool {
        let path = self.blob_path(digest);
        // What cannot be pinned may go at any time.
        let is_kept = self.pin(&[&path]).is_ok();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if is_kept && metadata.is_file() && metadata.len() == size => {
                pins::touch(&path, &metadata);
                true
            }
            _ => false,
        }
    }

    /// Opens a blob for reading, and keeps it. Its bytes are not verified.
    ///
    /// # Errors
    /// [`StoreError::NoBlob`], or [`StoreError::Io`].
    pub fn open_blob(&self, digest: &Sha256Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        self.pin(&[&path])?;
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoBlob { digest: *digest })
            }
            opened => opened.map_err(StoreError::io("open", path)),
        }
    }

    /// Opens the file of a blob if it is the one that this process has written, and hashed while it did: its bytes need
    /// not be verified.
    ///
    /// # Errors
    /// As those of [`Store::open_blob`].
    pub fn open_own_blob(&self, digest: &Sha256Digest) -> Result<Option<File>, StoreError> {
        let Some(own) = self.run.blob(digest) else { return Ok(None) };
        let file = self.open_blob(digest)?;
        Ok((blob::identity(&file) == Some(own)).then_some(file))
    }

    /// Removes a blob that has turned out to be damaged, so that it is a miss from now on. A good one that somebody has
    /// put there in the meantime goes too, which costs a download.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_blob(&self, digest: &Sha256Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(StoreError::io("remove", path)),
        }
    }

    /// Where a blob lies, whether or not it is there.
    pub fn blob_path(&self, digest: &Sha256Digest) -> PathBuf {
        self.root.join(blob::path(digest))
    }

    /// Starts a blob whose bytes come one after the other.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        BlobWriter::new(&self.run, &self.root)
    }

    /// Whether a blob of this process found the disk full, be there room again or not.
    pub fn was_full(&self) -> bool {
        self.run.was_full()
    }

    /// Starts a blob whose bytes are verified before they are written.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn blob_copy(&self) -> Result<BlobCopy, StoreError> {
        BlobCopy::new(&self.run, &self.root)
    }

    /// Writes a file: other processes see the old content or the new, never half of it. Missing directories on the way
    /// are made. The path is relative to the root, or begins with it.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn write_atomic(&self, path_in_root: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let target = self.inside(path_in_root)?;
        self.pin(&[path_in_root])?;
        self.place(&target, bytes)?;
        self.run.note_growth();
        Ok(())
    }

    /// As [`Store::write_atomic`], for what nobody misses after a power loss: it makes nobody sync, and is not pinned.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn write_loose(&self, path_in_root: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let target = self.inside(path_in_root)?;
        self.place(&target, bytes)
    }

    fn place(&self, target: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.run.new_path("file");
        let written = write_new(&temporary, bytes).map_err(StoreError::io("write", target));
        let placed = written.and_then(|()| rename_making_parent(&temporary, target));
        if placed.is_err() {
            // What cannot be removed now is swept with the run.
            let _ = fs::remove_file(&temporary);
        }
        placed
    }

    /// Moves a temporary directory to its final place. Returns `false`, and removes the temporary, when something is
    /// there already: somebody was faster, and content-addressed places hold equal things.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn rename_into(&self, temp: TempDir, target_in_root: &Path) -> Result<bool, StoreError> {
        let target = self.inside(target_in_root)?;
        self.pin(&[target_in_root])?;
        if let Some(parent) = target.parent() {
            make_directory(parent)?;
        }
        match rename_no_replace(temp.path(), &target) {
            Ok(()) => {
                temp.placed();
                Ok(true)
            }
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => temp.remove().map(|()| false),
            Err(errno) => Err(StoreError::errno("create", target)(errno)),
        }
    }

    /// Whether this process has put anything in place that a limit on the store's size could mind: anything but what was
    /// [written loosely](Store::write_loose).
    pub fn has_grown(&self) -> bool {
        self.run.has_grown()
    }

    /// Waits until everything written so far, by whomever, would survive a power loss (`syncfs`). To be called before a
    /// build says that it is done and before a tag is pushed, and by whoever leaves after having written. Costs nothing
    /// where nothing was written.
    ///
    /// # Errors
    /// [`StoreError::Io`]: what was written since the last success may be lost.
    pub fn sync(&self) -> Result<(), StoreError> {
        let sync = || rustix::fs::syncfs(&self.directory);
        self.run.sync(sync).map_err(StoreError::errno("sync", &self.root))
    }

    /// The absolute path of something inside the store.
    fn inside(&self, path: &Path) -> Result<PathBuf, StoreError> {
        Ok(self.root.join(self.relative(path)?))
    }

    /// The path of something inside the store, from its root on.
    fn relative<'a>(&self, path: &'a Path) -> Result<&'a Path, StoreError> {
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        let plain = relative.components().all(|component| matches!(component, Component::Normal(_)));
        if plain && relative.components().next().is_some() {
            return Ok(relative);
        }
        Err(StoreError::Outside { path: path.to_owned() })
    }
}

/// Makes a directory and those above it, mode 0700 whatever the umask allows beyond that, and without the ACLs that a
/// directory above would hand down: everything made below would have them, too, and layers made there other modes.
fn make_directory(path: &Path) -> Result<(), StoreError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(StoreError::io("create", path))?;
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        // Asked first: removing what is not there fails on a directory of others, and says nothing of whose it is.
        if rustix::fs::getxattr(path, acl, &mut [0_u8; 0]).is_ok() {
            match rustix::fs::removexattr(path, acl) {
                Ok(()) | Err(rustix::io::Errno::NODATA) => {}
                Err(errno) => return Err(StoreError::errno("remove the ACL of", path)(errno)),
            }
        }
    }
    Ok(())
}

/// Makes a directory below the root, which has no ACL to hand down, unless it is there.
fn make_area(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        _ => make_directory(path),
    }
}

/// Takes the lock of the store's root; it is free again when the result is dropped.
fn lock_directory(directory: &impl std::os::fd::AsFd, root: &Path) -> Result<File, StoreError> {
    // A description of its own: a duplicate would share the lock with `directory`, which stays open.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own =
        rustix::fs::openat(directory, ".", flags, Mode::empty()).map_err(StoreError::errno("open", root))?;
    rustix::fs::flock(&own, FlockOperation::LockExclusive).map_err(StoreError::errno("lock", root))?;
    Ok(own.into())
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_new(path)?;
    io::Write::write_all(&mut file, bytes)
}

/// A new file that only its owner may read, and nobody may write once it is closed.
fn create_new(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o400).open(path)
}

fn rename_making_parent(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directory(to.parent().unwrap_or(to))?;
            fs::rename(from, to).map_err(StoreError::io("create", to))
        }
        renamed => renamed.map_err(StoreError::io("create", to)),
    }
}

fn rename_no_replace(from: &Path, to: &Path) -> Result<(), rustix::io::Errno> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        // A file system without RENAME_NOREPLACE: a plain rename still never replaces a directory that holds anything.
        Err(rustix::io::Errno::INVAL) => rustix::fs::rename(from, to),
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests;

//! The directories behind the cache mounts of one id, and who uses which.
//!
//! `ROOT/mounts/ID/` belongs to one id (its name is a hash of it), `VARIANT/` below it to one way of making a new one
//! (owner, mode, what it is filled from): like BuildKit, a mount that asks for another start gets another directory.
//! In there `0/`, `1/`, ... are directories that were made: more than one when they were wanted at the same time and
//! could not be shared. Each has
//!
//! - `fs/`, what the command sees, and all of it that it can reach;
//! - `use`, locked (`flock`) by who uses it: shared by those that share, else exclusively, as BuildKit has it. Whoever
//!   finds no free one and need not wait makes another;
//! - `retired`, where a build with `--no-cache` has given it up.
//!
//! Choosing is done under the lock of the id, so two never choose at once; giving back is closing a file. What is written
//! down of a directory in use is read and written under that lock, too ([`settle`]).

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use oci::store::{Store, TempDir};
use solver::{Cancel, op::Sharing};

use super::CacheMountError;

/// How long to wait before a lock that somebody else holds is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// What the command sees of a directory.
pub(super) const FILES: &str = "fs";
const USE: &str = "use";
const RETIRED: &str = "retired";

/// All directories of one id.
pub(super) struct Pool<'a> {
    store: &'a Store,
    /// `ROOT/mounts/ID`.
    directory: PathBuf,
    cancel: &'a Cancel,
}

/// A directory in use, for as long as this value lives.
#[derive(Debug)]
pub(super) struct Chosen {
    /// `ROOT/mounts/ID/VARIANT/NUMBER`.
    pub(super) directory: PathBuf,
    /// Whether it was made just now.
    pub(super) is_new: bool,
    sharing: Sharing,
    lock: File,
    pool_lock: PathBuf,
}

/// Whether one could be had.
enum Choice {
    Chosen(Chosen),
    AllInUse,
}

impl<'a> Pool<'a> {
    /// The pool of an id, whose name in the store is `name`. `told` says what it is, for people who look there.
    pub(super) fn open(
        store: &'a Store,
        name: &str,
        told: &str,
        cancel: &'a Cancel,
    ) -> Result<Self, CacheMountError> {
        let directory = store.area("mounts").join(name);
        store.pin(&[&directory])?;
        make_directory(&directory)?;
        let label = directory.join("id");
        if !label.exists() {
            store.write_atomic(&label, told.as_bytes())?;
        }
        Ok(Self { store, directory, cancel })
    }

    /// Takes a directory for use, calling `make` for what a new one holds. `waits` is told once when there is one to
    /// wait for.
    pub(super) fn choose(
        &self,
        variant: &str,
        sharing: Sharing,
        make: impl Fn(&Path) -> Result<(), CacheMountError>,
        waits: impl Fn(),
    ) -> Result<Chosen, CacheMountError> {
        let directory = self.directory.join(variant);
        make_directory(&directory)?;
        let mut has_told = false;
        loop {
            {
                let _pool = lock(&self.lock_path(), self.cancel)?;
                if let Choice::Chosen(chosen) = self.try_choose(&directory, sharing, &make)? {
                    return Ok(chosen);
                }
            }
            if !has_told {
                waits();
                has_told = true;
            }
            pause(self.cancel)?;
        }
    }

    /// Gives up all directories of the id: what comes next starts anew. Those in use are gone when they no longer are.
    pub(super) fn retire(&self) -> Result<(), CacheMountError> {
        let _pool = lock(&self.lock_path(), self.cancel)?;
        for variant in subdirectories(&self.directory)? {
            for (_, directory) in numbered(&variant)? {
                let mark = directory.join(RETIRED);
                File::create(&mark).map_err(CacheMountError::io("create", &mark))?;
                self.remove_if_free(&directory)?;
            }
        }
        Ok(())
    }

    fn lock_path(&self) -> PathBuf {
        self.directory.join("lock")
    }

    fn try_choose(
        &self,
        variant: &Path,
        sharing: Sharing,
        make: impl Fn(&Path) -> Result<(), CacheMountError>,
    ) -> Result<Choice, CacheMountError> {
        let (mut free, mut in_use, mut unused_number) = (None, false, 0);
        for (number, directory) in numbered(variant)? {
            unused_number = number + 1;
            if directory.join(RETIRED).exists() {
                self.remove_if_free(&directory)?;
                continue;
            }
            let path = directory.join(USE);
            let file = File::create(&path).map_err(CacheMountError::io("open", &path))?;
            if try_lock(&file, &path)? {
                free.get_or_insert((directory, file));
                continue;
            }
            in_use = true;
            // Those that share stay together, as long as one of them is there.
            if sharing == Sharing::Shared && file.try_lock_shared().is_ok() {
                return Ok(Choice::Chosen(self.chosen(directory, file, false, sharing)));
            }
        }
        let (directory, lock, is_new) = match free {
            Some((directory, lock)) => (directory, lock, false),
            None if in_use && sharing == Sharing::Locked => return Ok(Choice::AllInUse),
            None => {
                let directory = variant.join(unused_number.to_string());
                let lock = self.make(&directory, make)?;
                (directory, lock, true)
            }
        };
        if sharing == Sharing::Shared {
            // Nobody can come between: all locks are taken under that of the pool.
            lock.lock_shared().map_err(CacheMountError::io("lock", &directory))?;
        }
        Ok(Choice::Chosen(self.chosen(directory, lock, is_new, sharing)))
    }

    fn chosen(&self, directory: PathBuf, lock: File, is_new: bool, sharing: Sharing) -> Chosen {
        Chosen { directory, is_new, sharing, lock, pool_lock: self.lock_path() }
    }

    /// Makes a directory beside its place, and takes its lock before others can see it.
    fn make(
        &self,
        directory: &Path,
        make: impl Fn(&Path) -> Result<(), CacheMountError>,
    ) -> Result<File, CacheMountError> {
        let temp = self.store.temp_dir("cache-mount")?;
        make(&temp.path().join(FILES))?;
        let path = temp.path().join(USE);
        let lock = File::create(&path).map_err(CacheMountError::io("create", &path))?;
        lock.try_lock().map_err(|error| CacheMountError::io("lock", &path)(error.into()))?;
        self.store.rename_into(temp, directory)?;
        Ok(lock)
    }

    fn remove_if_free(&self, directory: &Path) -> Result<(), CacheMountError> {
        let path = directory.join(USE);
        let lock = File::create(&path).map_err(CacheMountError::io("open", &path))?;
        if !try_lock(&lock, &path)? {
            return Ok(());
        }
        // Emptied among the temporaries: whatever the command has left there, that copes with it.
        let temp: TempDir = self.store.temp_dir("retired")?;
        let target = temp.path().join("mount");
        fs::rename(directory, target).map_err(CacheMountError::io("remove", directory))
    }
}

impl Chosen {
    /// What the command sees.
    pub(super) fn files(&self) -> PathBuf {
        self.directory.join(FILES)
    }

    /// Whether somebody else uses it, too. To be asked of what is [settled](settle).
    pub(super) fn is_shared(&self) -> Result<bool, CacheMountError> {
        if self.sharing != Sharing::Shared {
            return Ok(false);
        }
        let path = self.directory.join(USE);
        let is_alone = try_lock(&self.lock, &path)?;
        // Either answer has cost our own lock. Nobody can come between, as above.
        self.lock.lock_shared().map_err(CacheMountError::io("lock", &path))?;
        Ok(!is_alone)
    }

    /// Whether nobody else uses it now. To be asked by who is done with it: the answer may cost the lock.
    pub(super) fn is_last(&self) -> Option<File> {
        let pool = File::create(&self.pool_lock).ok()?;
        pool.try_lock().ok()?;
        self.lock.try_lock().ok()?;
        Some(pool)
    }
}

/// Keeps everybody else from choosing and settling directories of the same ids, for as long as the result lives: who
/// comes at the same time reads what was written down of the directories only when it tells of us. All who choose
/// several name them in the same order.
pub(super) fn settle(chosen: &[Chosen], cancel: &Cancel) -> Result<Vec<File>, CacheMountError> {
    let mut pools: Vec<&Path> = chosen.iter().map(|chosen| chosen.pool_lock.as_path()).collect();
    // Two ways of making one id have one lock.
    pools.dedup();
    pools.into_iter().map(|pool| lock(pool, cancel)).collect()
}

/// Waits for an exclusive lock.
fn lock(path: &Path, cancel: &Cancel) -> Result<File, CacheMountError> {
    let file = File::create(path).map_err(CacheMountError::io("create", path))?;
    while !try_lock(&file, path)? {
        pause(cancel)?;
    }
    Ok(file)
}

fn try_lock(file: &File, path: &Path) -> Result<bool, CacheMountError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(CacheMountError::io("lock", path)(error)),
    }
}

fn pause(cancel: &Cancel) -> Result<(), CacheMountError> {
    if cancel.is_requested() {
        return Err(CacheMountError::Cancelled);
    }
    thread::sleep(PAUSE);
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), CacheMountError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(CacheMountError::io("create", path)),
    }
}

/// Keeps everybody from using the directory of a mount for as long as the result lives; `None` while somebody uses it.
pub(crate) fn take_if_free(directory: &Path) -> io::Result<Option<Option<File>>> {
    let file = match File::open(directory.join(USE)) {
        // A mount without its lock was never finished, or is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(Some(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether a build has given the mount in this directory up.
pub(crate) fn is_retired(directory: &Path) -> bool {
    directory.join(RETIRED).exists()
}

/// The directories in one, in no order.
fn subdirectories(path: &Path) -> Result<Vec<PathBuf>, CacheMountError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries.iter().map(fs::DirEntry::path).filter(|path| path.is_dir()).collect())
    };
    read().map_err(CacheMountError::io("read", path))
}

/// The directories whose names are numbers, by number.
fn numbered(path: &Path) -> Result<Vec<(u32, PathBuf)>, CacheMountError> {
    let number = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, path));
    let mut found: Vec<_> = subdirectories(path)?.into_iter().filter_map(number).collect();
    found.sort_unstable();
    Ok(found)
}

//! The directory beside a store in which builds are made that leave nothing.
//!
//! It is called after the store and locked while its verification runs; whoever comes and finds one that is not, takes it, and
//! clears away what is there. What steps of an ordinary user have made belongs to ids that only the namespaces of a build can touch, so stores are emptied by
//! `layerwright gc --all` first.

use std::{
    env, fs,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{STORE, VerifyError};

/// What stands between the store's name and a number.
const MARK: &str = ".verify-";
/// The file that is locked.
const LOCK: &str = "lock";
/// How many there can be at a time.
const ROOMS: u32 = 1000;

/// The directory, and what keeps others from removing it.
#[derive(Debug)]
pub struct Room {
    path: PathBuf,
    _lock: File,
}

impl Room {
    /// Makes one beside a store that need not be there, where nobody else is: the first that is free.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(store: &Path) -> Result<Self, VerifyError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| VerifyError::Room { action, path, source }
        };
        let store = std::path::absolute(store).map_err(failed("find", store))?;
        let parent = store.parent().unwrap_or(&store);
        fs::create_dir_all(parent).map_err(failed("make", parent))?;
        for number in 0..ROOMS {
            let mut name = store.file_name().unwrap_or_default().to_owned();
            name.push(format!("{MARK}{number}"));
            let path = parent.join(name);
            fs::create_dir_all(&path).map_err(failed("make", &path))?;
            if let Some(lock) = lock(&path) {
                let room = Self { path, _lock: lock };
                room.clear();
                return Ok(room);
            }
        }
        Err(failed("find a free place beside", &store)(io::ErrorKind::ResourceBusy.into()))
    }

    /// A new directory in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf, VerifyError> {
        let path = self.path.join(name);
        let made = fs::create_dir_all(&path);
        made.map(|()| path.clone()).map_err(|source| VerifyError::Room { action: "make", path, source })
    }

    /// Removes it.
    pub fn leave(self) {
        let Self { path, _lock: lock } = self;
        remove(&path, lock);
    }

    /// Removes what a killed one has left in it.
    fn clear(&self) {
        empty(&self.path);
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name() != LOCK {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The lock of a directory, if nobody has it and nobody has just removed it.
fn lock(path: &Path) -> Option<File> {
    let path = path.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path).ok()?;
    file.try_lock().ok()?;
    let (own, there) = (file.metadata().ok()?, fs::metadata(path).ok()?);
    (own.ino() == there.ino()).then_some(file)
}

/// What cannot be removed is found by the next one; there is nothing else to be done about it.
fn remove(path: &Path, lock: File) {
    empty(path);
    let _ = fs::remove_dir_all(path);
    drop(lock);
}

/// Lets stores go with their own means.
fn empty(path: &Path) {
    for directory in ["here", "somewhere/else"] {
        let store = path.join(directory).join(STORE);
        if !store.is_dir() {
            continue;
        }
        let Ok(program) = env::current_exe() else { return };
        let mut gc = Command::new(program);
        gc.args(["gc", "--all", "--root"]).arg(&store);
        let _ = gc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

//! Pins: what living processes use, so that garbage collection leaves it alone.
//!
//! A process writes the path of a thing into its `tmp/RUN/pins` *before* it looks whether the thing is there and before it
//! puts it in place, holding `gc.lock` shared. Whoever removes things holds that lock exclusively while he reads all pins
//! and moves what nobody has pinned out of the way. So either the remover sees the pin, or the user finds nothing and
//! makes it anew; what was once pinned stays until its user ends.
//!
//! Every file of pins counts, also one whose process is dead by now: opening a store sweeps those, and to tell them apart
//! here would mean to take locks that a process may be about to take. Files in `locks/` are pinned like everything else
//! ([`Store::lock_file`]), so none is unlinked between its opening and its locking.
//!
//! `gc.lock` is held for an append, or for a batch of renames; never while something is read, walked or deleted.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File, TryLockError},
    io::{self, Write},
    ops::Bound,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::{Store, StoreError, TempDir};

/// Name of the file of pins in a run's directory.
pub(super) const PINS: &str = "pins";
/// Held shared by who pins, exclusively by who removes.
const GATE: &str = "gc.lock";
/// A last use is noted at most this often.
const TOUCHED_EVERY: Duration = Duration::from_secs(3600);

/// What this process has pinned.
#[derive(Debug)]
pub(super) struct Pins {
    /// `ROOT/gc.lock`
    gate: PathBuf,
    /// `ROOT/tmp/RUN/pins`
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The gate and the file of pins, once something is pinned.
    open: Option<(File, File)>,
    pinned: HashSet<PathBuf>,
}

impl Pins {
    pub(super) fn new(root: &Path, run: &Path) -> Self {
        Self { gate: root.join(GATE), path: run.join(PINS), state: Mutex::default() }
    }

    /// Pins paths relative to the root. What is pinned already costs nothing, all others together one append.
    pub(super) fn pin<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Result<(), StoreError> {
        // Held while the lock of the gate is: its description is shared by all our threads.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_pinned = |path: &&Path| path.ancestors().any(|path| state.pinned.contains(path));
        let new: BTreeSet<&Path> = paths.into_iter().filter(|path| !is_pinned(path)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for path in &new {
            if path.as_os_str().as_bytes().contains(&b'\n') {
                return Err(StoreError::Outside { path: path.to_path_buf() });
            }
            // In front: what an append that failed has left is a line of its own.
            lines.push(b'\n');
            lines.extend_from_slice(path.as_os_str().as_bytes());
        }
        let (gate, mut file) = match &state.open {
            Some((gate, file)) => (gate, file),
            None => {
                let (gate, file) = state.open.insert((open_gate(&self.gate)?, open_pins(&self.path)?));
                (&*gate, &*file)
            }
        };
        lock(gate, FlockOperation::LockShared, &self.gate)?;
        let written = file.write_all(&lines);
        lock(gate, FlockOperation::Unlock, &self.gate)?;
        written.map_err(StoreError::io("write", &self.path))?;
        let new: Vec<PathBuf> = new.into_iter().map(Path::to_owned).collect();
        state.pinned.extend(new);
        Ok(())
    }

    /// Gives up all pins.
    fn release(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pinned.clear();
        match &state.open {
            Some((_, file)) => file.set_len(0).map_err(StoreError::io("write", &self.path)),
            None => Ok(()),
        }
    }
}

fn open_gate(path: &Path) -> Result<File, StoreError> {
    let opened = File::options().read(true).append(true).create(true).mode(0o600).open(path);
    opened.map_err(StoreError::io("open", path))
}

fn open_pins(path: &Path) -> Result<File, StoreError> {
    let opened = File::options().append(true).create(true).mode(0o600).open(path);
    opened.map_err(StoreError::io("create", path))
}

fn lock(gate: &File, operation: FlockOperation, path: &Path) -> Result<(), StoreError> {
    loop {
        match rustix::fs::flock(gate, operation) {
            Err(rustix::io::Errno::INTR) => {}
            locked => return locked.map_err(StoreError::errno("lock", path)),
        }
    }
}

impl Store {
    /// Keeps things from being collected until this process ends or calls [`Store::release_pins`]. To be called before a
    /// thing is looked for, and before it is put in place ([`Store::write_atomic`], [`Store::rename_into`] and everything
    /// about blobs do it themselves). Paths are relative to the root, or begin with it; a directory's pin holds for all
    /// that is in it. All paths of a call cost one append to a file.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn pin(&self, paths: &[impl AsRef<Path>]) -> Result<(), StoreError> {
        let relative: Result<Vec<&Path>, _> = paths.iter().map(|path| self.relative(path.as_ref())).collect();
        self.run.pin(relative?)
    }

    /// Gives up all pins of this process. To be called when nothing that it has looked up or made is needed any more.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn release_pins(&self) -> Result<(), StoreError> {
        self.run.pins().release()
    }

    /// Notes that a thing is used now: sets its modification time, if the last use that is noted is an hour ago. What
    /// cannot be noted is not: it only looks older than it is. The path is relative to the root, or begins with it.
    pub fn touch(&self, path_in_root: &Path) {
        let Ok(path) = self.inside(path_in_root) else { return };
        if let Ok(metadata) = fs::symlink_metadata(&path) {
            touch(&path, &metadata);
        }
    }

    /// Opens a file in `locks/` to be locked, making it if need be, and pins it: as long as this process lives, nobody
    /// unlinks it, so all who open it lock the same file.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn lock_file(&self, name: &str) -> Result<File, StoreError> {
        let path = Path::new("locks").join(name);
        self.pin(&[&path])?;
        let path = self.inside(&path)?;
        let opened = File::options().read(true).append(true).create(true).mode(0o600).open(&path);
        opened.map_err(StoreError::io("open", path))
    }

    /// What is pinned now. It may be more in a moment: to be sure, [remove](Store::removal).
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn pinned(&self) -> Result<Pinned, StoreError> {
        read_all(&self.root.join("tmp"), None)
    }

    /// Takes something that turned out to be of no use out of the way, for as long as this process lives, whose other
    /// threads may be reading it. `false`: another process may be using it, so it stays.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn set_aside(&self, path_in_root: &Path) -> Result<bool, StoreError> {
        let relative = self.relative(path_in_root)?;
        let path = self.inside(relative)?;
        let aside = self.run.new_path("aside");
        let gate_path = self.root.join(GATE);
        let gate = open_gate(&gate_path)?;
        lock(&gate, FlockOperation::LockExclusive, &gate_path)?;
        let own = self.run.pins().path.parent();
        if read_all(&self.root.join("tmp"), own)?.holds(relative) {
            return Ok(false);
        }
        match fs::rename(&path, aside) {
            // Somebody else has seen it, too.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", path)(error))
            }
            _ => Ok(true),
        }
    }

    /// Begins to remove things. Nobody pins anything, and so nobody finds anything, as long as the result lives: decide
    /// before, and [drop](drop) or [finish](Removal::finish) it soon. The store must not be asked for anything else by
    /// this thread meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn removal(&self) -> Result<Removal<'_>, StoreError> {
        let trash = self.temp_dir("removed")?;
        let path = self.root.join(GATE);
        let gate = open_gate(&path)?;
        lock(&gate, FlockOperation::LockExclusive, &path)?;
        let pinned = self.pinned()?;
        Ok(Removal { store: self, trash, gate, pinned, taken: 0 })
    }
}

/// Sets the modification time, unless it is recent.
pub(super) fn touch(path: &Path, metadata: &fs::Metadata) {
    let is_recent = |time: SystemTime| time.elapsed().is_ok_and(|age| age < TOUCHED_EVERY);
    if metadata.modified().is_ok_and(is_recent) {
        return;
    }
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: keep, last_modification: now };
    // The store may be read-only, or the thing gone by now: it then looks older than it is.
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// All that anybody has pinned, but for the run of this directory.
fn read_all(tmp: &Path, but: Option<&Path>) -> Result<Pinned, StoreError> {
    let mut pinned = BTreeSet::new();
    for entry in fs::read_dir(tmp).map_err(StoreError::io("read", tmp))? {
        let run = entry.map_err(StoreError::io("read", tmp))?.path();
        if but == Some(run.as_path()) {
            continue;
        }
        let path = run.join(PINS);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // Its process pins nothing, or is ending.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        pinned.extend(lines.map(|line| PathBuf::from(std::ffi::OsStr::from_bytes(line))));
    }
    Ok(Pinned(pinned))
}

/// What somebody has pinned, at one moment.
#[derive(Debug)]
pub struct Pinned(BTreeSet<PathBuf>);

impl Pinned {
    /// Whether somebody uses a thing, something in it, or a directory that it is in. The path is relative to the root.
    pub fn holds(&self, path: &Path) -> bool {
        let inside = (Bound::Included(path), Bound::Unbounded);
        let first = self.0.range::<Path, _>(inside).next();
        let is_above = |above: &Path| !above.as_os_str().is_empty() && self.0.contains(above);
        first.is_some_and(|pinned| pinned.starts_with(path)) || path.ancestors().any(is_above)
    }
}

/// What became of a thing that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is out of the store.
    Yes,
    /// It was gone already.
    Gone,
    /// Somebody uses it, so it stays.
    InUse,
}

/// Things being removed, while nobody can pin any.
#[derive(Debug)]
pub struct Removal<'a> {
    store: &'a Store,
    trash: TempDir,
    gate: File,
    pinned: Pinned,
    taken: u64,
}

impl Removal<'_> {
    /// Moves a thing out of the store, unless somebody has pinned it.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn take(&mut self, path_in_root: &Path) -> Result<Taken, StoreError> {
        let relative = self.store.relative(path_in_root)?;
        if self.pinned.holds(relative) {
            return Ok(Taken::InUse);
        }
        let path = self.store.inside(relative)?;
        let target = self.trash.path().join(self.taken.to_string());
        self.taken += 1;
        match fs::rename(&path, target) {
            Ok(()) => Ok(Taken::Yes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Taken::Gone),
            Err(error) => Err(StoreError::io("remove", path)(error)),
        }
    }

    /// The same for a file that is locked (`flock`) by who works with what it stands for: it stays while somebody holds its
    /// lock, and is gone from its place and from the disk at once, so that who gets the lock later can see that. Holders
    /// may remove and make such a file without a pin, so what is locked here must still be what has the name.
    ///
    /// # Errors
    /// [`StoreError::Outside`] or [`StoreError::Io`].
    pub fn take_lock(&mut self, path_in_root: &Path) -> Result<Taken, StoreError> {
        let relative = self.store.relative(path_in_root)?;
        if self.pinned.holds(relative) {
            return Ok(Taken::InUse);
        }
        let path = self.store.inside(relative)?;
        let _lock = match lock_in_place(&path)? {
            Lock::Held(lock) => lock,
            Lock::InUse => return Ok(Taken::InUse),
            Lock::Gone => return Ok(Taken::Gone),
        };
        fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
        Ok(Taken::Yes)
    }

    /// Lets others go on, then deletes what was taken.
    ///
    /// # Errors
    /// [`StoreError::Io`]: it is deleted when the store is opened next.
    pub fn finish(self) -> Result<(), StoreError> {
        drop(self.gate);
        self.trash.remove()
    }
}

/// What came of trying to lock a file.
enum Lock {
    /// It is ours, and nobody else removes the file or puts another one in its place.
    Held(File),
    /// Somebody else has it, or has just replaced the file.
    InUse,
    /// There is no file.
    Gone,
}

/// Locks a file that its last holder may be removing, and another one may be making anew, at this moment.
fn lock_in_place(path: &Path) -> Result<Lock, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::Gone),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Lock::InUse),
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
    }
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let locked = file.metadata().map(identity).map_err(StoreError::io("read", path))?;
    match fs::symlink_metadata(path).map(identity) {
        Ok(named) if named == locked => Ok(Lock::Held(file)),
        Ok(_) => Ok(Lock::InUse),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lock::Gone),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests;

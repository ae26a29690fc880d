//! Temporaries: one directory a process, found dead by its lock; and how a tree is removed.
//!
//! A process holds `flock` on `tmp/RUN/lock` as long as it lives; the kernel frees it however the process ends. No pid
//! is written down, so none can be reused. Runs are made and judged under the store's own lock, so that a run cannot be
//! taken for dead between the making of its directory and the taking of its lock.
//!
//! A run's directory also says that what its process has written may not be on disk yet: it goes with the process only
//! if that has synced. So a store without another run's directory is durable but for what this process has written, and a
//! build that wrote nothing need not wait for the disk.
//!
//! A dead run of another boot means that the machine went down while its process lived: what was put into the store since
//! that began may be torn, whatever its name says. Things that are not verified where they are used are thrown away then
//! ([`super::torn`]). So the name of a run says since when, and in which boot; one that sweeps dead runs of its own boot
//! takes over their beginning.
//!
//! Trees are removed by file descriptor, never through a link or into a mount. What a step has written may hold
//! directories of mode 000 and be 100 000 levels deep, so a directory is first moved up beside the root of the removal
//! and then emptied: depth costs neither stack nor descriptors.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{
    StoreError,
    blob::Identity,
    pins::{PINS, Pins},
};
use crate::digest::Sha256Digest;

const LOCK: &str = "lock";

/// The temporaries of this process.
#[derive(Debug)]
pub(super) struct Run {
    directory: PathBuf,
    next: AtomicU64,
    /// Whether something was written since the last sync, or may have been by a process that is gone.
    is_unsynced: AtomicBool,
    pins: Pins,
    /// Whether anything was put in place.
    has_grown: AtomicBool,
    /// Whether the disk was full once.
    was_full: AtomicBool,
    /// The blobs that were put in place here, and which files they are.
    blobs: Mutex<HashMap<Sha256Digest, Identity>>,
    /// Its `flock` says that we live.
    _lock: File,
}

impl Run {
    /// Makes the directory below `ROOT/tmp` and takes its lock. Needs the store's lock. `dead` are runs that end with it.
    pub(super) fn start(root: &Path, dead: &[DeadRun]) -> Result<Self, StoreError> {
        let directory = make_run_directory(&root.join("tmp"), dead)?;
        let path = directory.join(LOCK);
        let lock = super::create_new(&path).map_err(StoreError::io("create", &path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(StoreError::errno("lock", &path))?;
        let pins = Pins::new(root, &directory);
        Ok(Self {
            directory,
            next: AtomicU64::new(0),
            is_unsynced: AtomicBool::new(false),
            pins,
            has_grown: AtomicBool::new(false),
            was_full: AtomicBool::new(false),
            blobs: Mutex::default(),
            _lock: lock,
        })
    }

    /// A blob has been put in place whose bytes were hashed on their way.
    pub(super) fn note_blob(&self, digest: Sha256Digest, identity: Identity) {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, identity);
    }

    /// Which file this process has put in place as a blob.
    pub(super) fn blob(&self, digest: &Sha256Digest) -> Option<Identity> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied()
    }

    /// Something has been put into the store that a power failure may take. To be called after that: a sync of another
    /// thread may be under way.
    pub(super) fn note_unsynced(&self) {
        self.is_unsynced.store(true, Ordering::Release);
    }

    /// Runs `sync`, unless all that lies in the store has been synced: nothing was written here since, and there is no
    /// trace of anybody else who may have.
    pub(super) fn sync(&self, sync: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        if !self.is_unsynced.swap(false, Ordering::AcqRel) && !self.has_company() {
            return Ok(());
        }
        sync().inspect_err(|_| self.note_unsynced())
    }

    /// Whether there are runs besides this one, living or dead.
    fn has_company(&self) -> bool {
        let runs = self.directory.parent().and_then(|tmp| fs::read_dir(tmp).ok());
        let own = self.directory.file_name();
        runs.is_none_or(|mut runs| {
            runs.any(|run| run.map_or(true, |run| Some(run.file_name().as_os_str()) != own))
        })
    }

    /// The same of something that takes room that it has not taken before.
    pub(super) fn note_growth(&self) {
        self.note_unsynced();
        self.has_grown.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_grown(&self) -> bool {
        self.has_grown.load(Ordering::Relaxed)
    }

    /// The disk has taken nothing more; what was half written is given back, so nobody can see that later.
    pub(super) fn note_full(&self) {
        self.was_full.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_full(&self) -> bool {
        self.was_full.load(Ordering::Relaxed)
    }

    /// What this process has pinned.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Pins paths relative to the store's root.
    pub(super) fn pin<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Result<(), StoreError> {
        self.pins.pin(paths)
    }

    /// Where all of it lies.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path in the run's directory that has not been used yet.
    pub(super) fn new_path(&self, purpose: &str) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        self.directory.join(format!("{}.{number}", purpose.chars().take(40).map(word).collect::<String>()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.directory.join(PINS));
        let _ = fs::remove_file(self.directory.join(LOCK));
        // Where something was kept, or not synced, the directory stays: the next open sweeps it.
        if !*self.is_unsynced.get_mut() {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Pids repeat, also at the same time in pid namespaces that share a store. A name must not come again soon: somebody may
/// still be about to sweep what had it before.
fn make_run_directory(tmp: &Path, dead: &[DeadRun]) -> Result<PathBuf, StoreError> {
    let pid = std::process::id();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = dead.iter().filter_map(DeadRun::began).map(|(since, _)| since).min().unwrap_or(u64::MAX);
    let (now, since, boot) = (now.as_nanos(), since.min(now.as_secs()), boot());
    for attempt in 0_u32.. {
        let path = tmp.join(format!("{pid}.{now:x}.{attempt}.{since:x}.{boot}"));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::io("create", path)(error)),
        }
    }
    unreachable!("no directory holds four billion entries of one pid")
}

/// Which boot of the machine this is; the same text for all where that cannot be told.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.chars().filter(char::is_ascii_alphanumeric).take(16).collect()
}

/// The temporaries of a process that is gone. We hold its lock, if it came as far as making one.
pub(super) struct DeadRun {
    directory: PathBuf,
    _lock: Option<File>,
}

/// Finds the runs whose lock is free, and takes it. Needs the store's lock.
pub(super) fn dead_runs(tmp: &Path) -> Result<Vec<DeadRun>, StoreError> {
    let mut dead = Vec::new();
    for entry in fs::read_dir(tmp).map_err(StoreError::io("read", tmp))? {
        let directory = entry.map_err(StoreError::io("read", tmp))?.path();
        match File::open(directory.join(LOCK)) {
            Ok(lock) if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() => {}
            Ok(lock) => dead.push(DeadRun { directory, _lock: Some(lock) }),
            Err(_) => dead.push(DeadRun { directory, _lock: None }),
        }
    }
    Ok(dead)
}

impl DeadRun {
    /// Since when, in Unix seconds, it and those before it have written what may not be on disk, and in which boot.
    fn began(&self) -> Option<(u64, &str)> {
        let name = self.directory.file_name()?.to_str()?;
        let mut parts = name.split('.').skip(3);
        Some((u64::from_str_radix(parts.next()?, 16).ok()?, parts.next()?))
    }

    /// The same, if the machine has gone down since.
    pub(super) fn torn_since(&self) -> Option<u64> {
        self.began().filter(|(_, boot)| *boot != self::boot()).map(|(since, _)| since)
    }

    /// Removes what the process left. What cannot be removed now (a mount of another namespace is still in it) is tried
    /// again by the next open.
    pub(super) fn remove(self) {
        let _ = remove_tree(&self.directory);
    }
}

/// A private directory among the store's temporaries, removed with all it holds when it is dropped.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    /// Keeps the lock for as long as something of ours lies in the run's directory. `None` once given up.
    run: Option<Arc<Run>>,
}

impl TempDir {
    pub(super) fn new(run: &Arc<Run>, purpose: &str) -> Result<Self, StoreError> {
        let path = run.new_path(purpose);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(StoreError::io("create", &path))?;
        Ok(Self { path, run: Some(run.clone()) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory beyond this value's life. Once the store is closed, the next [`super::Store::open`] removes
    /// it all the same, unless it has been moved.
    pub fn into_path(mut self) -> PathBuf {
        if let Some(run) = self.run.take() {
            run.note_unsynced();
        }
        self.path.clone()
    }

    /// Removes the directory now, and says if that fails, which a drop cannot.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(mut self) -> Result<(), StoreError> {
        self.run = None;
        remove_tree(&self.path).map_err(StoreError::io("remove", &self.path))
    }

    /// Gives up the directory: it has been moved into the store.
    pub(super) fn placed(mut self) {
        if let Some(run) = self.run.take() {
            run.note_growth();
        }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.run.is_some() {
            let _ = remove_tree(&self.path);
        }
    }
}

/// Removes a directory and all it holds. What is gone already is no error.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    let name = CString::new(name.as_bytes())?;
    match open_for_removal(&parent, &name) {
        Ok(root) => empty(&root)?,
        Err(Errno::NOENT) => return Ok(()),
        // Not a directory, or a link: the name itself goes.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return gone(rustix::fs::unlinkat(&parent, &name, AtFlags::empty()));
        }
        Err(errno) => return Err(errno.into()),
    }
    gone(rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR))
}

/// Empties a directory: what lies deeper than its own children is moved up into it first.
fn empty(root: &OwnedFd) -> io::Result<()> {
    let mut pending = unlink_files(root)?;
    let mut moved = 0_u64;
    while let Some(name) = pending.pop() {
        let directory = match open_for_removal(root, &name) {
            Err(Errno::NOENT) => continue,
            opened => opened?,
        };
        for child in unlink_files(&directory)? {
            pending.extend(remove_or_move(&directory, &child, root, &mut moved)?);
        }
        gone(rustix::fs::unlinkat(root, &name, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

/// Removes everything but directories from a directory, and returns the names of those.
fn unlink_files(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => directories.push(name.to_owned()),
            unlinked => gone(unlinked)?,
        }
    }
    Ok(directories)
}

/// Removes an empty directory; moves any other into `root` and returns its name there.
fn remove_or_move(
    directory: &OwnedFd,
    name: &CStr,
    root: &OwnedFd,
    moved: &mut u64,
) -> io::Result<Option<CString>> {
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // To move a directory is to write its "..", which its mode must allow.
    drop(open_for_removal(directory, name)?);
    loop {
        *moved += 1;
        let target = CString::new(format!(".removing.{moved}")).expect("digits hold no NUL");
        match rustix::fs::renameat(directory, name, root, &target) {
            Ok(()) => return Ok(Some(target)),
            // A step has chosen that name too.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Opens a directory to empty it, giving its owner the right to do so first. Fails for a link ([`Errno::LOOP`]) and for
/// a mount point ([`Errno::XDEV`]).
fn open_for_removal(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let handle = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode & 0o7777);
    if !mode.contains(Mode::RWXU) {
        // An O_PATH descriptor takes no fchmod; its link in /proc does, and leads to this very directory.
        rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&handle, ".", flags, Mode::empty())
}

fn gone(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

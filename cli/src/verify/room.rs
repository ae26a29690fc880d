//! The directory beside a store in which builds are made that leave nothing.
//!
//! It is called after the store and locked while its verification runs; whoever comes and finds one that is not, takes it, and
//! clears away what is there. What steps of an ordinary user have made belongs to ids that only the namespaces of a build can
//! touch, so stores are emptied by `layerwright gc --all` first.
//!
//! Its name can be guessed, and the directory around it may be everybody's. So nobody but its owner may enter it, and one that
//! is there is taken only if it is such a one and holds nothing but what we put there; else the next number is.

use std::{
    env, fs,
    fs::{DirBuilder, File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use executor::rootfs;
use rustix::{
    fs::{CWD, Mode, OFlags, Stat, fstat},
    process::geteuid,
};

use super::{STORE, VerifyError};

/// What stands between the store's name and a number.
const MARK: &str = ".verify-";
/// The file that is locked.
const LOCK: &str = "lock";
/// The build that is made as it is asked for.
pub const HERE: &str = "here";
/// The build that is made elsewhere, and what it lies in.
pub const ELSEWHERE: &str = "somewhere/else";
const SOMEWHERE: &str = "somewhere";
/// How many there can be at a time.
const ROOMS: u32 = 1000;

/// The directory, and what keeps others from removing it.
#[derive(Debug)]
pub struct Room {
    path: PathBuf,
    directory: OwnedFd,
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
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make", &path)(error));
                }
                _ => {}
            }
            if let Some(room) = Self::take(path) {
                room.clear();
                return Ok(room);
            }
        }
        Err(failed("find a free place beside", &store)(io::ErrorKind::ResourceBusy.into()))
    }

    /// The one of that name, if it is ours, nobody has it, and nobody has just removed it.
    fn take(path: PathBuf) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        let own = fstat(&directory).ok()?;
        let is_ours = own.st_uid == geteuid().as_raw() && rootfs::permissions(&own) & 0o077 == 0;
        let names = rootfs::names(&directory).ok()?;
        let known = [LOCK, HERE, SOMEWHERE].map(str::as_bytes);
        if !is_ours || !names.iter().all(|name| known.contains(&name.as_slice())) {
            return None;
        }
        let lock = lock(&directory)?;
        let there = rootfs::lstat(CWD, path.as_os_str().as_bytes()).ok()??;
        is_one(&own, &there).then_some(Self { path, directory, _lock: lock })
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

    /// Removes it. What cannot be removed is found by the next one; there is nothing else to be done about it.
    pub fn leave(self) {
        self.clear();
        // The lock is the last to go: who finds the directory until then finds it locked.
        let _ = fs::remove_file(self.path.join(LOCK));
        let _ = fs::remove_dir(&self.path);
    }

    /// Removes what a build, perhaps of a killed one, has left in it.
    fn clear(&self) {
        for place in [HERE, ELSEWHERE] {
            self.empty(place);
        }
        if self.is_directory(ELSEWHERE) {
            open_up(&self.path.join(ELSEWHERE));
        }
        for name in [HERE, SOMEWHERE] {
            let _ = fs::remove_dir_all(self.path.join(name));
        }
    }

    /// Whether there is a directory in it, with no link on the way.
    fn is_directory(&self, path: &str) -> bool {
        rootfs::open_beneath(&self.directory, path.as_bytes(), OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// Lets a store go with its own means.
    fn empty(&self, place: &str) {
        let store = format!("{place}/{STORE}");
        if !self.is_directory(&store) {
            return;
        }
        let Ok(program) = env::current_exe() else { return };
        let mut gc = Command::new(program);
        gc.args(["gc", "--all", "--root"]).arg(self.path.join(store));
        let _ = gc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// The lock of a directory, if nobody has it and nobody has just removed it.
fn lock(directory: &OwnedFd) -> Option<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
    let file = File::from(rootfs::open_beneath(directory, LOCK.as_bytes(), flags).ok()?);
    let own = file.metadata().ok().filter(fs::Metadata::is_file)?;
    file.try_lock().ok()?;
    let there = rootfs::lstat(directory, LOCK.as_bytes()).ok()??;
    (own.ino() == there.st_ino).then_some(file)
}

fn is_one(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Copies of directories that their owner may not write or enter can be removed then. Stores have gone before.
fn open_up(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name() != STORE && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::set_permissions(entry.path(), Permissions::from_mode(0o700));
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What somebody has planted is not taken: the room is the next one, and the planted one is as it was.
    #[track_caller]
    fn not_taken(plant: impl FnOnce(&Path)) {
        let scratch = tempfile::tempdir().expect("a directory");
        let planted = scratch.path().join("store.verify-0");
        plant(&planted);
        let room = Room::make(&scratch.path().join("store")).expect("a room");
        assert_eq!(room.path, scratch.path().join("store.verify-1"));
        assert_eq!(fs::metadata(&room.path).expect("there").mode() & 0o7777, 0o700);
        room.leave();
        assert!(!scratch.path().join("store.verify-1").exists());
        assert!(planted.symlink_metadata().is_ok());
    }

    fn private(path: &Path) {
        DirBuilder::new().mode(0o700).create(path).expect("made");
    }

    #[test]
    fn what_others_could_have_made_is_left_alone() {
        not_taken(|planted| {
            fs::create_dir(planted).expect("made");
            fs::set_permissions(planted, Permissions::from_mode(0o755)).expect("set");
        });
        not_taken(|planted| {
            let elsewhere = planted.with_file_name("elsewhere");
            private(&elsewhere);
            symlink(elsewhere, planted).expect("linked");
        });
        not_taken(|planted| fs::write(planted, "").expect("written"));
        not_taken(|planted| {
            private(planted);
            fs::write(planted.join("thesis"), "").expect("written");
        });
        not_taken(|planted| {
            private(planted);
            symlink(planted.with_file_name("made-through-a-link"), planted.join(LOCK)).expect("linked");
        });
    }

    #[test]
    fn a_lock_that_is_a_link_makes_no_file() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (planted, target) = (scratch.path().join("store.verify-0"), scratch.path().join("target"));
        private(&planted);
        symlink(&target, planted.join(LOCK)).expect("linked");
        Room::make(&scratch.path().join("store")).expect("a room").leave();
        assert!(!target.exists());
    }

    #[test]
    fn what_is_left_goes_without_a_look_through_links() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (left, kept) = (scratch.path().join("store.verify-0"), scratch.path().join("kept"));
        private(&left);
        fs::create_dir_all(kept.join("else/store")).expect("made");
        symlink(&kept, left.join(SOMEWHERE)).expect("linked");
        let closed = left.join(HERE).join("closed");
        fs::create_dir_all(&closed).expect("made");
        let room = Room::make(&scratch.path().join("store")).expect("a room");
        assert_eq!(room.path, left);
        assert!(!closed.exists() && !left.join(SOMEWHERE).exists() && kept.join("else/store").is_dir());
        room.leave();
        assert!(!left.exists());
    }
}

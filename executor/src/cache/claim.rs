//! Which builder runs a step: of all that share a store, the one that holds `flock` on `ROOT/locks/step-HEX`, HEX being
//! the step's content key.
//!
//! Nobody waits here. The file says who holds it, for those who have to. The kernel lets go of it when its holder dies,
//! however that happens. It is removed when it is let go, so whoever gets the lock of a file must see that the file
//! still is the one in its place.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use oci::{TreeDigest, store::Store};
use solver::{Claim, Maker};

/// A lock that is held.
struct Held {
    path: PathBuf,
    _file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // While it is still ours; the lock goes with the file. What cannot be removed is in nobody's way.
        let _ = fs::remove_file(&self.path);
    }
}

/// Tries to take a step for this process; `maker` and the process are what others are told.
///
/// # Errors
/// The lock file cannot be made or locked.
pub(super) fn claim(store: &Store, content: &TreeDigest, maker: &Maker) -> io::Result<Claim> {
    let path = store.area("locks").join(format!("step-{}", content.hex()));
    loop {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Claim::Busy(owner(&mut file))),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => {}
        }
        if is_in_place(&file, &path)? {
            // Only a courtesy: a full disk keeps nobody from building.
            let _ = file.set_len(0).and_then(|()| file.write_all(signature(maker).as_bytes()));
            return Ok(Claim::Held(Box::new(Held { path, _file: file })));
        }
    }
}

/// Whether the file is what the path names, and not one that its last holder has removed.
fn is_in_place(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `20261121T140501Z-3f9c on builder, process 4711`
fn signature(maker: &Maker) -> String {
    let Maker { builder: _, host, build, at: _ } = maker;
    let process = std::process::id();
    match (build.as_str(), host.as_str()) {
        ("", "") => format!("process {process}"),
        ("", host) => format!("process {process} on {host}"),
        (build, _) => format!("{build}, process {process}"),
    }
}

/// Who holds the lock, as far as is known yet.
fn owner(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.take(200).read_to_string(&mut text);
    if text.is_empty() { "another process".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().expect("made");
        let store = Store::open(root.path()).expect("a store");
        (root, store)
    }

    fn digest(text: &str) -> TreeDigest {
        TreeDigest::from(blake3::hash(text.as_bytes()))
    }

    fn maker(build: &str) -> Maker {
        Maker { build: build.to_owned(), ..Maker::default() }
    }

    #[test]
    fn one_has_it_others_are_told_who_and_nothing_stays() {
        let (_root, store) = store();
        let (ours, other) = (digest("ours"), digest("other"));
        let take = |content, build| claim(&store, &content, &maker(build)).expect("no trouble");
        let held = take(ours, "b1");
        assert!(matches!(&held, Claim::Held(_)));
        let Claim::Busy(owner) = take(ours, "b2") else { panic!("it is held") };
        assert_eq!(owner, format!("b1, process {}", std::process::id()));
        let beside = take(other, "b2");
        assert!(matches!(&beside, Claim::Held(_)));
        drop(held);
        let again = take(ours, "b2");
        assert!(matches!(&again, Claim::Held(_)));
        drop((beside, again));
        assert_eq!(fs::read_dir(store.area("locks")).expect("read").count(), 0);
    }

    #[test]
    fn a_lock_file_without_a_holder_is_nobodys() {
        let (_root, store) = store();
        let content = digest("left behind");
        let path = store.area("locks").join(format!("step-{}", content.hex()));
        fs::write(&path, "a dead build").expect("written");
        let claimed = claim(&store, &content, &Maker::default()).expect("no trouble");
        assert!(matches!(claimed, Claim::Held(_)));
    }

    #[test]
    fn however_often_it_changes_hands_one_has_it_at_a_time() {
        let (_root, store) = store();
        let (content, holders, turns) = (digest("hot"), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while turns.load(Ordering::SeqCst) < 100 {
                        if let Claim::Held(held) =
                            claim(&store, &content, &Maker::default()).expect("no trouble")
                        {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                            turns.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1, "two have it");
                            drop(held);
                        }
                    }
                });
            }
        });
    }
}

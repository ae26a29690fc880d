use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use super::*;
use crate::digest::Sha256Digest;

fn store(root: &Path) -> Store {
    Store::open(root).expect("a store")
}

fn write(store: &Store, path: &str) {
    store.write_atomic(Path::new(path), b"content").expect("written");
}

#[test]
fn what_is_set_aside_stays_readable_here_and_in_its_place_while_others_use_it() {
    let root = tempfile::tempdir().expect("tempdir");
    let (own, other) = (store(root.path()), store(root.path()));
    write(&own, "snapshots/a/fs/file");
    let path = root.path().join("snapshots/a");
    let directory = fs::File::open(path.join("fs")).expect("opened");
    other.pin(&["snapshots/a"]).expect("pinned");
    assert!(!own.set_aside(&path).expect("possible") && path.exists());
    drop(other);
    own.pin(&["snapshots/a"]).expect("pinned");
    assert!(own.set_aside(&path).expect("possible") && !path.exists());
    assert!(own.set_aside(&path).expect("possible"), "gone is out of the way");
    let flags = rustix::fs::OFlags::RDONLY;
    let read = rustix::fs::openat(&directory, "file", flags, rustix::fs::Mode::empty());
    assert!(read.is_ok(), "who has it mounted reads on");
    drop(own);
    let _next = store(root.path());
    let read = rustix::fs::openat(&directory, "file", flags, rustix::fs::Mode::empty());
    assert!(read.is_err(), "it goes with the process");
}

#[test]
fn what_is_pinned_stays_with_all_that_is_in_it_and_above_it() {
    let root = tempfile::tempdir().expect("tempdir");
    let (user, remover) = (store(root.path()), store(root.path()));
    let paths =
        ["trees/a", "sealed/a/x.json", "sealed/a/y.json", "sealed/a.b/x.json", "mounts/i/v/0", "locks/x"];
    paths.iter().for_each(|path| write(&remover, path));
    remover.release_pins().expect("released");
    user.pin(&["sealed/a/x.json", "mounts/i"]).expect("pinned");
    user.lock_file("x").expect("opened");

    let mut removal = remover.removal().expect("begun");
    for (path, expected) in [
        ("trees/a", Taken::Yes),
        ("sealed/a", Taken::InUse),
        ("sealed/a/x.json", Taken::InUse),
        ("sealed/a/y.json", Taken::Yes),
        ("sealed/a.b", Taken::Yes),
        ("mounts/i/v/0", Taken::InUse),
        ("mounts/i", Taken::InUse),
        ("locks/x", Taken::InUse),
        ("trees/a", Taken::Gone),
    ] {
        assert_eq!(removal.take(Path::new(path)).expect("possible"), expected, "{path}");
    }
    removal.finish().expect("deleted");
    drop(user);
    let mut removal = remover.removal().expect("begun");
    let taken = removal.take(Path::new("sealed/a")).expect("possible");
    assert_eq!(taken, Taken::Yes, "its user has ended");
    removal.finish().expect("deleted");
    assert!(!root.path().join("sealed/a").exists());
    assert_eq!(fs::read_dir(root.path().join("tmp")).expect("there").count(), 1);
}

#[test]
fn what_is_put_in_place_is_pinned_until_it_is_released() {
    let root = tempfile::tempdir().expect("tempdir");
    let (user, remover) = (store(root.path()), store(root.path()));
    let mut writer = user.blob_writer().expect("a temporary");
    writer.write_all(b"blob").expect("written");
    let (digest, _) = writer.commit().expect("stored");
    user.rename_into(user.temp_dir("x").expect("made"), Path::new("snapshots/s")).expect("placed");
    write(&user, "trees/t");
    let places = [user.blob_path(&digest), "snapshots/s".into(), "trees/t".into()];
    let take = || {
        let mut removal = remover.removal().expect("begun");
        let taken = places.each_ref().map(|place| removal.take(place).expect("possible"));
        removal.finish().expect("deleted");
        taken
    };
    assert_eq!(take(), [Taken::InUse; 3]);
    user.release_pins().expect("released");
    assert_eq!(take(), [Taken::Yes; 3]);
    assert!(!user.has_blob(&digest, 4));
}

#[test]
fn a_path_that_is_none_or_would_be_two_is_refused() {
    let root = tempfile::tempdir().expect("tempdir");
    let store = store(root.path());
    for bad in ["", "..", "trees/../x", "/elsewhere", "trees/a\ntrees/b"] {
        assert!(matches!(store.pin(&[bad]), Err(StoreError::Outside { .. })), "{bad:?}");
    }
    let whole = root.path().canonicalize().expect("there").join("trees/a");
    store.pin(&[whole]).expect("the root in front is no harm");
}

#[test]
fn a_use_is_noted_once_an_hour() {
    let root = tempfile::tempdir().expect("tempdir");
    let store = store(root.path());
    let mut writer = store.blob_writer().expect("a temporary");
    writer.write_all(b"blob").expect("written");
    let (digest, size) = writer.commit().expect("stored");
    let path = store.blob_path(&digest);
    let age = || fs::metadata(&path).expect("there").modified().expect("known").elapsed().expect("past");
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    for (before, is_noted) in [(minutes(50), false), (minutes(70), true)] {
        let file = fs::File::open(&path).expect("there");
        file.set_modified(SystemTime::now() - before).expect("ours");
        store.touch(&path);
        assert_eq!(age() < minutes(1), is_noted);
        file.set_modified(SystemTime::now() - before).expect("ours");
        assert!(store.has_blob(&digest, size));
        assert_eq!(age() < minutes(1), is_noted);
    }
    store.touch(Path::new("trees/not-there"));
}

/// Users look for a thing, or make it, and then read it, many times; a remover takes all that he may. Whoever has found
/// or made something must be able to read it until he ends.
#[test]
fn nobody_loses_what_he_uses() {
    let root = tempfile::tempdir().expect("tempdir");
    let (ended, start, made) = (AtomicBool::new(false), Barrier::new(5), AtomicU32::new(0));
    let life = |seed: u32| {
        let store = store(root.path());
        let blobs: Vec<Vec<u8>> =
            (0..6_u32).map(|blob| ((blob * seed) % 11).to_le_bytes().to_vec()).collect();
        for blob in &blobs {
            let digest = Sha256Digest::of(blob);
            if !store.has_blob(&digest, 4) {
                let mut writer = store.blob_writer().expect("a temporary");
                writer.write_all(blob).expect("written");
                writer.commit().expect("stored");
                made.fetch_add(1, Ordering::Relaxed);
            }
        }
        for blob in &blobs {
            let path = store.blob_path(&Sha256Digest::of(blob));
            assert_eq!(&fs::read(path).expect("what was found stays"), blob);
        }
    };
    thread::scope(|scope| {
        let users: Vec<_> = (1..5)
            .map(|user| {
                let (life, start) = (&life, &start);
                scope.spawn(move || {
                    start.wait();
                    (0..40).for_each(|round| life(user * 7 + round));
                })
            })
            .collect();
        scope.spawn(|| {
            let store = store(root.path());
            start.wait();
            while !ended.load(Ordering::Relaxed) {
                let mut removal = store.removal().expect("begun");
                for blob in 0..11_u32 {
                    removal.take(&store.blob_path(&Sha256Digest::of(&blob.to_le_bytes()))).expect("possible");
                }
                removal.finish().expect("deleted");
            }
        });
        let all_ended: Vec<_> = users.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::Relaxed);
        assert!(all_ended.iter().all(Result::is_ok));
    });
    assert!(made.load(Ordering::Relaxed) >= 11, "something was removed and made again, or at least made");
}

/// Holders of a claim remove its file when they let go of it, and the next one makes another: what a remover has opened may
/// have lost its name by the time its lock is free.
#[test]
fn a_lock_file_that_took_anothers_place_stays() {
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().join("x");
    let (ended, start) = (AtomicBool::new(false), Barrier::new(2));
    let hold = || {
        for _ in 0..2000 {
            let file = File::create(&path).expect("made");
            if file.try_lock().is_ok() && is_named(&file, &path) {
                // Whoever removes it now takes it from under its holder.
                thread::yield_now();
                assert!(is_named(&file, &path), "it is held");
                fs::remove_file(&path).expect("ours");
            }
        }
    };
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            start.wait();
            hold();
        });
        scope.spawn(|| {
            start.wait();
            while !ended.load(Ordering::Relaxed) {
                if let Lock::Held(_lock) = lock_in_place(&path).expect("possible") {
                    fs::remove_file(&path).expect("ours");
                }
            }
        });
        let held = holder.join();
        ended.store(true, Ordering::Relaxed);
        assert!(held.is_ok());
    });
}

fn is_named(file: &File, path: &Path) -> bool {
    let own = file.metadata().expect("open");
    fs::symlink_metadata(path).is_ok_and(|named| named.ino() == own.ino())
}

#[test]
fn a_lock_that_somebody_holds_stays() {
    let root = tempfile::tempdir().expect("tempdir");
    let store = store(root.path());
    let path = Path::new("locks/x");
    let held = File::create(root.path().join(path)).expect("made");
    held.lock().expect("free");
    let take = || {
        let mut removal = store.removal().expect("begun");
        let taken = removal.take_lock(path).expect("possible");
        removal.finish().expect("deleted");
        taken
    };
    assert_eq!(take(), Taken::InUse);
    held.unlock().expect("held");
    assert_eq!([take(), take()], [Taken::Yes, Taken::Gone]);
}

use std::{
    os::unix::fs::PermissionsExt,
    sync::{Barrier, atomic::AtomicUsize, atomic::Ordering},
};

use oci::MediaType;

use super::*;
use crate::cache::storage::ArtifactKind;

fn artifact(content: &str) -> Artifact {
    let document = content.as_bytes().to_vec();
    let blobs = vec![blob(content)];
    Artifact { kind: ArtifactKind::Record, document, signature: Some(vec![7; 64]), blobs }
}

fn blob(content: &str) -> Descriptor {
    Descriptor::of(MediaType::OciLayerGzip, content.as_bytes())
}

fn get(storage: &DirectoryStorage, name: &str) -> Result<Option<Artifact>, StorageErrorKind> {
    let named = storage.get(name, &Cancel::default()).map_err(|error| error.kind)?;
    Ok(named.and_then(Named::artifact))
}

fn put(storage: &DirectoryStorage, names: &[&str], artifact: &Artifact) {
    storage.put(names, artifact, &Cancel::default()).expect("written");
}

/// Whether the bytes were written.
fn put_blob(storage: &DirectoryStorage, content: &str) -> Result<bool, StorageErrorKind> {
    let open = || Ok(Box::new(io::Cursor::new(content.as_bytes().to_vec())) as Box<dyn Read + Send>);
    storage.put_blob(&blob(content), None, &open, &Cancel::default()).map_err(|error| error.kind)
}

fn storage() -> (tempfile::TempDir, DirectoryStorage) {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = DirectoryStorage::new(&directory.path().join("not/yet"));
    (directory, storage)
}

#[test]
fn what_is_put_under_several_names_is_there_under_each() {
    let (_directory, storage) = storage();
    assert_eq!(get(&storage, "a"), Ok(None), "not even a directory");
    put(&storage, &["a", "b"], &artifact("one"));
    put(&storage, &["b"], &artifact("two"));
    assert_eq!(get(&storage, "a"), Ok(Some(artifact("one"))));
    assert_eq!(get(&storage, "b"), Ok(Some(artifact("two"))), "the last writer's stays");
    let long = artifact(&"long".repeat(1 << 18));
    put(&storage, &["long"], &long);
    assert!(fs::metadata(storage.name_path("long").expect("a name")).expect("there").len() < 2048);
    assert_eq!(get(&storage, "long"), Ok(Some(long)));
}

#[test]
fn a_name_is_no_path() {
    let (_directory, storage) = storage();
    for name in ["", ".", "..", "../a", "a/b", "a\0", ".hidden", &"x".repeat(129)] {
        assert_eq!(get(&storage, name), Ok(None), "{name:?}");
        let put = storage.put(&[name], &artifact("x"), &Cancel::default());
        assert_eq!(put.expect_err("no name").kind, StorageErrorKind::Damaged, "{name:?}");
    }
}

#[test]
fn damage_is_found_out_and_mended() {
    let (_directory, storage) = storage();
    let long = artifact(&"long".repeat(1 << 18));
    put(&storage, &["long"], &long);
    put(&storage, &["short"], &artifact("short"));
    assert_eq!(put_blob(&storage, "layer"), Ok(true));
    assert_eq!(put_blob(&storage, "layer"), Ok(false));

    let layer = storage.blob_path(&blob("layer").digest);
    fs::write(&layer, "l4yer").expect("damaged");
    assert_eq!(put_blob(&storage, "layer"), Ok(true), "a damaged blob is as good as none");
    assert_eq!(fs::read(&layer).expect("there"), b"layer");

    let document = storage.blob_path(&artifact::config(long.kind, &long.document).digest);
    fs::write(&document, "something else").expect("damaged");
    assert_eq!(get(&storage, "long"), Err(StorageErrorKind::Damaged));
    fs::remove_file(&document).expect("gone");
    assert_eq!(get(&storage, "long"), Err(StorageErrorKind::Damaged));
    put(&storage, &["long"], &long);
    assert_eq!(get(&storage, "long"), Ok(Some(long)));

    let short = storage.name_path("short").expect("a name");
    let good = fs::read_to_string(&short).expect("there");
    let another = good.replace("c2hvcnQ=", "U0hPUlQ=");
    assert_ne!(another, good, "the document in the manifest is base64");
    for bad in
        ["", "{", "[]", "{}", &good[..good.len() / 2], &another, &good.replace("\"size\":5", "\"size\":6")]
    {
        fs::write(&short, bad).expect("damaged");
        assert_eq!(get(&storage, "short"), Err(StorageErrorKind::Damaged), "{bad}");
    }
}

#[test]
fn wrong_bytes_are_not_taken() {
    let (_directory, storage) = storage();
    let open = || Ok(Box::new(io::Cursor::new(b"l4yer".to_vec())) as Box<dyn Read + Send>);
    let put = storage.put_blob(&blob("layer"), None, &open, &Cancel::default());
    assert_eq!(put.expect_err("not these").kind, StorageErrorKind::Damaged);
    assert!(!storage.blob_path(&blob("layer").digest).exists());
    let names: Vec<_> = fs::read_dir(storage.directory.join("blobs/sha256")).expect("made").collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_file_system_that_does_not_answer_is_no_user_who_stops() {
    let (_directory, storage) = storage();
    let far = || Err(io::Error::from_raw_os_error(rustix::io::Errno::TIMEDOUT.raw_os_error()));
    let put = storage.put_blob(&blob("layer"), None, &far, &Cancel::default());
    assert_eq!(put.expect_err("far away").kind, StorageErrorKind::Failed);
    let stopped = Cancel::default();
    stopped.request();
    let open = || Ok(Box::new(io::Cursor::new(b"layer".to_vec())) as Box<dyn Read + Send>);
    let put = storage.put_blob(&blob("layer"), None, &open, &stopped);
    assert_eq!(put.expect_err("stopped").kind, StorageErrorKind::Cancelled);
}

#[test]
fn what_is_no_file_holds_nobody_up() {
    let (_directory, storage) = storage();
    put(&storage, &["a"], &artifact("one"));
    let path = storage.name_path("fifo").expect("a name");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    assert_eq!(get(&storage, "fifo"), Err(StorageErrorKind::Damaged));
    fs::create_dir(storage.name_path("directory").expect("a name")).expect("made");
    assert!(get(&storage, "directory").is_err());
}

#[test]
fn a_cancelled_copy_leaves_nothing() {
    let (_directory, storage) = storage();
    let cancel = Cancel::default();
    cancel.request();
    let open = || Ok(Box::new(io::repeat(0)) as Box<dyn Read + Send>);
    let endless = Descriptor::new(MediaType::OciLayer, Sha256Digest::of(b"x"), u64::MAX);
    let put = storage.put_blob(&endless, None, &open, &cancel);
    assert_eq!(put.expect_err("cancelled").kind, StorageErrorKind::Cancelled);
    assert_eq!(fs::read_dir(storage.directory.join("blobs/sha256")).expect("made").count(), 0);
}

/// Writers of the same and of different things, and readers who look all the while: who sees a name sees all of it.
#[test]
fn many_write_and_read_at_the_same_time() {
    let (_directory, storage) = storage();
    let (start, written) = (Barrier::new(8), AtomicUsize::new(0));
    let contents: Vec<_> = (0..4).map(|n| format!("content {n} ").repeat(4_000)).collect();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (storage, start, contents, written) = (&storage, &start, &contents, &written);
            scope.spawn(move || {
                start.wait();
                for round in 0..20 {
                    let content = &contents[(writer + round) % 4];
                    put_blob(storage, content).expect("written");
                    put(storage, &["shared", &format!("own-{writer}")], &artifact(content));
                }
                written.fetch_add(1, Ordering::SeqCst);
            });
        }
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                while written.load(Ordering::SeqCst) < 4 {
                    if let Some(found) = get(&storage, "shared").expect("never half") {
                        assert!(contents.iter().any(|content| artifact(content) == found));
                    }
                }
            });
        }
    });
    let files = fs::read_dir(storage.directory.join("blobs/sha256")).expect("made").count();
    assert_eq!(files, 4, "each blob once, which is the document too, and nothing left over");
    assert_eq!(fs::read_dir(storage.directory.join("names")).expect("made").count(), 5);
}

#[test]
fn who_may_not_write_may_read() {
    let (_directory, storage) = storage();
    put(&storage, &["a"], &artifact("one"));
    assert_eq!(put_blob(&storage, "layer"), Ok(true));
    let below = ["names", "blobs/sha256"].map(|name| storage.directory.join(name));
    let set = |mode| {
        for path in &below {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        }
    };
    set(0o555);
    assert_eq!(get(&storage, "a"), Ok(Some(artifact("one"))));
    assert_eq!(put_blob(&storage, "layer"), Ok(false), "it is there");
    // Nothing is forbidden to root.
    if !rustix::process::geteuid().is_root() {
        assert_eq!(put_blob(&storage, "another"), Err(StorageErrorKind::Denied));
        let put = storage.put(&["b"], &artifact("two"), &Cancel::default());
        assert_eq!(put.expect_err("read-only").kind, StorageErrorKind::Denied);
    }
    set(0o755);
}

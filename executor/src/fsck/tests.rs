//! A store with one of everything: each damage is found where it is, and removed with what needs it.

use std::{fs, os::unix::fs::PermissionsExt};

use oci::{
    Descriptor, Entry, EntryKind, Layer, MediaType, Metadata, Snapshot, Tree,
    store::{
        checked,
        sealed::{self, SealedRecord},
    },
};
use solver::{CacheBackend, Made, Maker, Record};

use super::*;
use crate::{
    LocalCache, imprint,
    snapshot::{Meta, Stamp},
};

struct Ground {
    _temp: tempfile::TempDir,
    store: std::sync::Arc<Store>,
}

fn meta(layer: TreeDigest) -> Meta {
    let stamp = Stamp { seconds: 1, nanoseconds: 0 };
    Meta { layer, parent: None, bytes: 0, stamp, opaque_root: false, owners: Vec::new() }
}

/// One layer that a step made, with its record and its blob; one unpacked layer; a history entry.
fn ground() -> Ground {
    let temp = tempfile::tempdir().expect("made");
    let store = std::sync::Arc::new(Store::open(temp.path()).expect("a store"));
    let place = |digest: &TreeDigest, write: &dyn Fn(&Path)| {
        let directory = store.temp_dir("test").expect("made");
        fs::create_dir(directory.path().join("fs")).expect("made");
        fs::write(directory.path().join("fs/file"), "text").expect("written");
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(directory.path().join("fs/file"), mode).expect("changed");
        write(directory.path());
        checked::write_binary(&directory.path().join("brought"), Vec::new()).expect("written");
        store.rename_into(directory, &Path::new("snapshots").join(digest.hex())).expect("placed");
    };
    let content = oci::ContentDigest::of(b"text");
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let metadata = Metadata { mode: 0o644, uid, gid, ..Metadata::default() };
    let entry = Entry { path: b"file".to_vec(), kind: EntryKind::File { size: 4, content }, metadata };
    let tree = Tree::new(vec![entry]).expect("one entry");
    store.write_atomic(&Path::new("trees").join(tree.digest().hex()), &tree.to_bytes()).expect("written");
    let snapshot = Snapshot::default().with(Layer::Built(tree.digest()));
    place(&snapshot.digest(), &|path| meta(tree.digest()).write(path).expect("written"));
    let unpacked = TreeDigest::new([7; 32]);
    place(&unpacked, &|path| {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let root = rustix::fs::open(path.join("fs"), flags, rustix::fs::Mode::empty()).expect("open");
        imprint::keep(path, &imprint::imprint(&root, &|_| None).expect("readable")).expect("written");
        meta(unpacked).write(path).expect("written");
    });
    let mut blob = store.blob_writer().expect("a blob");
    io::Write::write_all(&mut blob, b"a tar").expect("written");
    let (digest, size) = blob.commit().expect("stored");
    let descriptor = Descriptor::new(MediaType::OciLayer, digest, size);
    let sealed = SealedRecord { diff_id: digest.into(), descriptor };
    sealed::write(&store, &tree.digest(), "tar.normal", &sealed).expect("written");
    let proven = [sealed::chunks_path(&tree.digest(), "tar.normal"), Path::new("seeds").join(digest.hex())];
    proven.iter().for_each(|path| checked::write(&store, path, 1, &"proven").expect("written"));
    let cache = LocalCache::new(store.clone(), std::sync::Arc::new(|event| panic!("{event:?}")));
    cache.store(&Record {
        definition: TreeDigest::new([1; 32]),
        content: TreeDigest::new([2; 32]),
        parent: Snapshot::default().digest(),
        snapshot,
        pre_image: Default::default(),
        made: Made { by: Maker::default(), took_ms: 0 },
    });
    checked::write(&store, Path::new("history/20250101T000000Z-0.json"), 1, &"entry").expect("written");
    Ground { _temp: temp, store }
}

impl Ground {
    fn found(&self, repair: Repair) -> Vec<Finding> {
        check(&self.store, repair, &|_| {}).expect("checked").findings
    }

    /// What is found, by area; each with its words.
    fn told(&self) -> Vec<String> {
        let tell = |found: Finding| {
            let area = found.path.iter().next().expect("a path").display().to_string();
            format!("{area}: {}", found.what)
        };
        self.found(Repair::Nothing).into_iter().map(tell).collect()
    }

    /// All files, but locks and temporaries.
    fn files(&self) -> Vec<PathBuf> {
        let walk = walkdir::WalkDir::new(self.store.root()).sort_by_file_name().into_iter();
        let files = walk.map(|entry| entry.expect("readable")).filter(|entry| entry.file_type().is_file());
        let relative = |path: &Path| path.strip_prefix(self.store.root()).expect("inside").to_owned();
        let is_content =
            |path: &PathBuf| !["tmp", "locks", "gc.lock", "format"].iter().any(|name| path.starts_with(name));
        files.map(|entry| relative(entry.path())).filter(is_content).collect()
    }
}

#[test]
fn a_good_store_has_no_findings_and_keeps_everything() {
    let ground = ground();
    let before = ground.files();
    assert_eq!(ground.told(), [""; 0]);
    assert_eq!(ground.found(Repair::Remove), []);
    assert_eq!(ground.files(), before);
    assert!(before.len() > 10, "{before:?}");
}

#[test]
fn a_flipped_bit_in_any_file_is_found_and_what_needs_it_goes_too() {
    for path in ground().files() {
        let ground = ground();
        let file = ground.store.root().join(&path);
        let mut bytes = fs::read(&file).expect("read");
        let Some(first) = bytes.first_mut() else { continue };
        *first ^= 1;
        let mode = fs::metadata(&file).expect("there").permissions();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&file, bytes).expect("written");
        fs::set_permissions(&file, mode).expect("changed");
        let found = ground.found(Repair::Remove);
        let is_found = found.iter().any(|found| path.starts_with(&found.path));
        assert!(is_found, "{}: {found:?}", path.display());
        assert!(found.iter().all(|found| found.outcome == Outcome::Repaired), "{found:?}");
        assert_eq!(ground.told(), [""; 0], "after {}", path.display());
    }
}

#[test]
fn a_missing_file_is_found_by_what_needs_it() {
    for (lost, told) in [
        ("blobs/sha256", vec!["sealed: its blob sha256:"]),
        ("trees", vec!["records: its layer", "records: its layer", "snapshots: the tree of its layer"]),
    ] {
        let ground = ground();
        for path in ground.files().iter().filter(|path| path.starts_with(lost)) {
            fs::remove_file(ground.store.root().join(path)).expect("removed");
        }
        let found = ground.told();
        assert_eq!(found.len(), told.len(), "{found:?}");
        assert!(found.iter().zip(told).all(|(found, told)| found.starts_with(told)), "{found:?}");
    }
}

#[test]
fn a_layer_whose_blob_is_there_is_not_lost_with_its_directory() {
    let ground = ground();
    let unpacked = TreeDigest::new([7; 32]).hex();
    for name in names(&ground.store.area("snapshots")).expect("readable") {
        if *name != *unpacked {
            fs::remove_dir_all(ground.store.area("snapshots").join(name)).expect("removed");
        }
    }
    assert_eq!(ground.told(), [""; 0]);
}

#[test]
fn what_a_living_process_has_pinned_stays() {
    let ground = ground();
    let other = Store::open(ground.store.root()).expect("a store");
    let blob = ground.files().into_iter().find(|path| path.starts_with("blobs")).expect("a blob");
    fs::remove_file(ground.store.root().join(&blob)).expect("removed");
    fs::write(ground.store.root().join(&blob), "damaged").expect("written");
    other.pin(&[&blob]).expect("pinned");
    let found = ground.found(Repair::Remove);
    let outcome = |area: &str| {
        let found = found.iter().find(|found| found.path.starts_with(area)).expect("found");
        found.outcome.clone()
    };
    assert_eq!((outcome("blobs"), outcome("sealed")), (Outcome::InUse, Outcome::Repaired));
    assert!(ground.store.root().join(&blob).exists());
    drop(other);
    assert_eq!(ground.found(Repair::Remove).len(), 1);
    assert!(!ground.store.root().join(&blob).exists());
}

#[test]
fn strays_are_found() {
    let ground = ground();
    fs::write(ground.store.area("trees").join("notes.txt"), "mine").expect("written");
    assert_eq!(ground.told(), ["trees: it is no part of a store"]);
}

//! What of a cache in a directory comes into the store, and when.

use std::{fs, path::Path, sync::Arc};

use oci::{
    BlobOrigin, ContentDigest, Entry, EntryKind, Layer, MediaType, Metadata, RemoteLayer, Sha256Digest,
    Snapshot, Tree,
    packed::{TREE_MEDIA_TYPE, pack},
    registry::{Registry, RegistryOptions},
    store::Store,
};
use solver::{CacheBackend, Key, Made, Maker, Record};

use super::*;
use crate::{
    LocalCache,
    beneath::Bases,
    mount::OverlayMarks,
    tarball::craft::{Archive, Fields},
};

/// A store that has nothing, and a cache that has layers of one file each.
struct Ground {
    root: tempfile::TempDir,
    cache: tempfile::TempDir,
    snapshots: Snapshots,
    layers: Vec<RemoteLayer>,
}

fn put(cache: &Path, media_type: MediaType, bytes: &[u8]) -> Descriptor {
    let blob = Descriptor::of(media_type, bytes);
    fs::write(cache.join("blobs/sha256").join(blob.digest.hex()), bytes).expect("written");
    blob
}

/// The layer with one file, as its tree and as its tar have it.
fn layer(cache: &Path, path: &str, in_tree: &[u8], in_tar: &[u8], mode_in_tar: u32) -> RemoteLayer {
    let kind = EntryKind::File { size: in_tree.len() as u64, content: ContentDigest::of(in_tree) };
    // So that no test has to be root.
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let metadata = Metadata { mode: 0o644, uid, gid, ..Metadata::default() };
    let tree = Tree::new(vec![Entry { path: path.into(), kind, metadata }]).expect("one entry");
    let fields = Fields { path: path.as_bytes(), mode: mode_in_tar, owner: (uid, gid), ..Fields::default() };
    let tar = Archive::default().entry(fields, in_tar).finish();
    RemoteLayer {
        tree: tree.digest(),
        diff_id: Sha256Digest::of(&tar).into(),
        blobs: [("uncompressed".to_owned(), put(cache, MediaType::OciLayer, &tar))].into(),
        tree_blob: put(cache, MediaType::Other(TREE_MEDIA_TYPE.to_owned()), &pack(&tree.to_bytes())),
        origin: BlobOrigin::OciLayout(cache.to_owned()),
    }
}

fn ground(make: impl Fn(&Path) -> Vec<RemoteLayer>) -> Ground {
    let (root, cache) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
    fs::create_dir_all(cache.path().join("blobs/sha256")).expect("made");
    let layers = make(cache.path());
    let store = Arc::new(Store::open(root.path()).expect("a store"));
    let fetcher = Fetcher::new(store, Registry::new(RegistryOptions::default()).expect("a client"));
    layers.iter().for_each(|layer| fetcher.elsewhere().note(layer.clone()));
    let snapshots = Snapshots::new(fetcher, OverlayMarks::User.into(), Arc::new(|_| ()), Arc::default());
    Ground { root, cache, snapshots, layers }
}

fn good(cache: &Path) -> Vec<RemoteLayer> {
    ["a", "b", "c"].map(|name| layer(cache, name, name.as_bytes(), name.as_bytes(), 0o644)).to_vec()
}

impl Ground {
    fn snapshot(&self, layers: &[usize]) -> Snapshot {
        Snapshot { layers: layers.iter().map(|index| Layer::Built(self.layers[*index].tree)).collect() }
    }

    fn count(&self, area: &str) -> usize {
        fs::read_dir(self.root.path().join(area)).expect("listed").count()
    }
}

#[test]
fn a_look_brings_trees_and_files_on_disk_bring_the_blobs_of_their_chain() {
    let ground = ground(good);
    let snapshot = ground.snapshot(&[0, 1]);
    ground.snapshots.beneath(&snapshot, Bases::Unpacked).expect("trees");
    assert_eq!((ground.count("trees"), ground.count("blobs/sha256"), ground.count("snapshots")), (2, 0, 0));
    let lowers = ground.snapshots.ensure(&snapshot).expect("brought");
    assert_eq!(fs::read(lowers[0].join("b")).expect("there"), b"b");
    assert_eq!(fs::read(lowers[1].join("a")).expect("there"), b"a");
    assert_eq!((ground.count("trees"), ground.count("blobs/sha256"), ground.count("snapshots")), (2, 2, 2));
    fs::remove_dir_all(ground.cache.path()).expect("ours");
    ground.snapshots.ensure(&snapshot).expect("here by now");
    let lost = ground.snapshots.ensure(&ground.snapshot(&[0, 1, 2])).expect_err("gone");
    assert!(lost.is_lost() && ground.snapshots.fetcher().elsewhere().count_lost() == 1, "{lost:?}");
}

#[test]
fn a_blob_that_holds_something_else_than_the_tree_says_is_lost() {
    let wrong: [fn(&Path) -> Vec<RemoteLayer>; 3] = [
        |cache| vec![layer(cache, "a", b"this", b"that", 0o644)],
        |cache| vec![layer(cache, "a", b"this", b"this and more", 0o644)],
        |cache| vec![layer(cache, "a", b"this", b"this", 0o4755)],
    ];
    for wrong in wrong {
        let ground = ground(wrong);
        let lost = ground.snapshots.ensure(&ground.snapshot(&[0])).expect_err("not this");
        assert!(lost.is_lost(), "{lost:?}");
        assert!(ground.snapshots.fetcher().elsewhere().is_lost(&ground.layers[0].tree));
        assert_eq!((ground.count("blobs/sha256"), ground.count("snapshots")), (0, 0));
    }
}

#[test]
fn a_layer_that_no_disk_takes_is_lost() {
    let name = "n".repeat(300);
    let ground = ground(|cache| vec![layer(cache, &name, b"this", b"this", 0o644)]);
    let lost = ground.snapshots.ensure(&ground.snapshot(&[0])).expect_err("too long a name");
    assert!(lost.is_lost(), "{lost:?}");
    assert!(ground.snapshots.fetcher().elsewhere().is_lost(&ground.layers[0].tree));
    assert_eq!((ground.count("blobs/sha256"), ground.count("snapshots")), (0, 0));
}

#[test]
fn a_record_is_written_once_all_its_layers_are_here() {
    let ground = ground(good);
    let store = ground.snapshots.store();
    let snapshot = ground.snapshot(&[0, 1]);
    let digest = |text: &str| TreeDigest::from(blake3::hash(text.as_bytes()));
    let record = Record {
        definition: digest("definition"),
        content: digest("content"),
        parent: ground.snapshot(&[0]).digest(),
        snapshot: snapshot.clone(),
        pre_image: Default::default(),
        made: Made { by: Maker::default(), took_ms: 0 },
    };
    let keys = [Key::Definition(record.definition), Key::Content(record.content)];
    let cache = LocalCache::new(Arc::clone(store), Arc::new(|_| ()));
    let next_build = || LocalCache::new(Arc::clone(store), Arc::new(|_| ())).lookup(&keys);
    cache.store(&record);
    assert_eq!(cache.lookup(&keys), [Some(record.clone()), Some(record.clone())], "this build knows it");
    ground.snapshots.bring_trees(&[ground.layers[0].tree, ground.layers[1].tree]).expect("brought");
    ground.snapshots.bring_layer(&ground.layers[1].tree).expect("brought").expect("known");
    cache.flush();
    assert_eq!(next_build(), [None, None], "one layer is not here");
    ground.snapshots.ensure(&snapshot).expect("brought");
    cache.flush();
    assert_eq!(next_build(), [Some(record.clone()), Some(record)]);
}

#[test]
fn who_stops_loses_nothing() {
    let ground = ground(good);
    let stopped = Cancel::default();
    stopped.request();
    let failed = ground.snapshots.until(&stopped).ensure(&ground.snapshot(&[0]));
    assert!(matches!(failed, Err(SnapshotError::Cancelled)), "{failed:?}");
    assert_eq!(ground.snapshots.fetcher().elsewhere().count_lost(), 0);
    ground.snapshots.ensure(&ground.snapshot(&[0])).expect("still there");
}

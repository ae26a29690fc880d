use std::{
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    sync::{Barrier, Mutex},
    thread,
};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, Entry, EntryKind, EntryTime, MediaType, Metadata,
    Sha256Digest,
    registry::{Registry, RegistryOptions},
};
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::mount::OverlayMarks;
use crate::tarball::craft::{Archive, Fields};

/// A store, and an OCI layout that layers come from.
struct Ground {
    root: tempfile::TempDir,
    layout: tempfile::TempDir,
    snapshots: Snapshots,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Ground {
    /// `None`, loudly, where the test cannot give files to root or mount.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root", thread::current().name().unwrap_or("a test"));
            return None;
        }
        let (root, layout) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        fs::create_dir_all(layout.path().join("blobs/sha256")).expect("made");
        let store = Arc::new(Store::open(root.path()).expect("a store"));
        let registry = Registry::new(RegistryOptions::default()).expect("a client");
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let tell: Events = Arc::new(move |event| sink.lock().expect("no panic").push(event));
        let fetcher = Fetcher::new(store, registry);
        let snapshots = Snapshots::new(fetcher, OverlayMarks::Trusted.into(), tell, Arc::default());
        Some(Self { root, layout, snapshots, events })
    }

    /// A layer whose blob lies in the layout.
    fn layer(&self, archive: Archive) -> Layer {
        let tar = archive.finish();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).expect("in memory");
        self.blob(
            &encoder.finish().expect("in memory"),
            Sha256Digest::of(&tar).into(),
            MediaType::OciLayerGzip,
        )
    }

    fn blob(&self, blob: &[u8], diff_id: DiffId, media_type: MediaType) -> Layer {
        let descriptor = Descriptor::of(media_type, blob);
        fs::write(self.layout.path().join("blobs/sha256").join(descriptor.digest.hex()), blob)
            .expect("written");
        let origin = BlobOrigin::OciLayout(self.layout.path().to_owned());
        Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin }))
    }

    /// Another process's view of the same store.
    fn other_process(&self) -> Snapshots {
        let Snapshots { fetcher, form, events, cancel, .. } = self.snapshots.clone();
        Snapshots::new(fetcher, form, events, cancel)
    }

    fn remove_layout(&self) {
        fs::remove_dir_all(self.layout.path().join("blobs")).expect("removed");
    }

    fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().expect("no panic");
        let warning = |event: &Event| match event {
            Event::Warning(text) => Some(text.clone()),
            _ => None,
        };
        events.iter().filter_map(warning).collect()
    }

    fn temporaries(&self) -> usize {
        let runs = fs::read_dir(self.root.path().join("tmp")).expect("listed");
        let in_run = |run: fs::DirEntry| fs::read_dir(run.path()).expect("listed");
        // Beside them lie the lock of the process and its pins.
        let is_left = |entry: &io::Result<fs::DirEntry>| entry.as_ref().expect("read").path().is_dir();
        runs.map(|run| in_run(run.expect("read")).filter(is_left).count()).sum()
    }
}

fn archive() -> Archive {
    Archive::default()
}

fn directory_changes(path: &str) -> Changes {
    let metadata = Metadata { mode: 0o755, time: EntryTime::Epoch, ..Metadata::default() };
    let entry = Entry { path: path.into(), kind: EntryKind::Directory, metadata };
    Changes {
        tree: Tree::new(vec![entry]).expect("one entry"),
        brought: BTreeSet::from([ContentDigest::of(b"x")]),
        held_together: None,
    }
}

fn names(view: &View, path: &str) -> Vec<String> {
    let directory = view.open(path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).expect("it is there");
    let entries = rustix::fs::Dir::new(directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name != "." && name != "..").collect();
    names.sort();
    names
}

#[test]
fn layers_are_unpacked_once_and_listed_topmost_first() {
    let Some(ground) = Ground::new() else { return };
    let layers =
        ["a", "b", "c", "d", "e", "f"].map(|name| ground.layer(archive().file(name, name.as_bytes())));
    let snapshot = Snapshot { layers: layers.to_vec() };
    let lowers = ground.snapshots.ensure(&snapshot).expect("unpacked");
    let top: Vec<_> = lowers.iter().map(|lower| fs::read_dir(lower).expect("listed").count()).collect();
    assert_eq!(top, [1; 6]);
    assert!(lowers[0].join("f").is_file() && lowers[5].join("a").is_file());
    ground.remove_layout();
    assert_eq!(ground.snapshots.ensure(&snapshot).expect("still there"), lowers);
    assert_eq!(ground.snapshots.ensure(&snapshot.parent().expect("it has one")).expect("there"), lowers[1..]);
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn everybody_waits_for_the_first_who_wants_a_snapshot() {
    let Some(ground) = Ground::new() else { return };
    let base = ground.layer(archive().file("a", &[1; 100_000]));
    let snapshots = ["b", "c"].map(|name| {
        let layers = vec![base.clone(), ground.layer(archive().file(name, b""))];
        Snapshot { layers }
    });
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for at in 0..8 {
            let (ground, snapshot, start) = (&ground, &snapshots[at % 2], &start);
            scope.spawn(move || {
                start.wait();
                ground.snapshots.ensure(snapshot).expect("unpacked");
            });
        }
    });
    let events = ground.events.lock().expect("no panic");
    let is_end = |event: &&Event| matches!(event, Event::Transfer { done, total, .. } if done == total);
    assert_eq!(events.iter().filter(is_end).count(), 3);
    drop(events);
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn a_layer_that_is_not_what_its_digests_say_is_refused() {
    let Some(ground) = Ground::new() else { return };
    let good = ground.layer(archive().file("a", b"a"));
    let tar = archive().file("b", b"b").finish();
    let other_diff_id = ground.blob(&tar, Sha256Digest::of(b"other").into(), MediaType::OciLayer);
    let changed = ground.layer(archive().file("c", b"c"));
    let Layer::Base(base) = &changed else { panic!("a base layer") };
    let path = ground.layout.path().join("blobs/sha256").join(base.descriptor.digest.hex());
    let mut bytes = fs::read(&path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&path, bytes).expect("written");
    let unknown = ground.blob(&tar, Sha256Digest::of(&tar).into(), MediaType::Other("text/plain".to_owned()));
    let escape = ground.layer(archive().file("../../escape", b""));
    for (bad, says) in [
        (other_diff_id, "its diff ID is"),
        (changed, "cannot read the blob"),
        (unknown, "its media type text/plain is not supported"),
        (escape, "its path holds \"..\""),
    ] {
        let snapshot = Snapshot { layers: vec![good.clone(), bad] };
        let error = ground.snapshots.ensure(&snapshot).expect_err(says);
        let cause = std::error::Error::source(&error).expect("it has a cause").to_string();
        assert!(cause.contains(says), "{cause}");
        assert!(!directory(ground.snapshots.store(), &snapshot.digest()).exists());
    }
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn what_a_step_wrote_becomes_the_next_one_s_parent() {
    let Some(ground) = Ground::new() else { return };
    let root = Fields { path: b"./", typeflag: b'5', mode: 0o711, ..Fields::default() };
    let base =
        Snapshot { layers: vec![ground.layer(archive().entry(root, b"").directory("old").file("f", b"f"))] };
    let writable = ground.snapshots.scratch(&base).expect("a place to write");
    let mount = writable.mount().expect("mounted");
    rustix::fs::mkdirat(&mount, "new", Mode::from_raw_mode(0o755)).expect("made");
    rustix::fs::unlinkat(&mount, "f", rustix::fs::AtFlags::empty()).expect("removed");
    rustix::fs::fchmod(open_directory(&writable.upper()).expect("open"), Mode::from_raw_mode(0o777))
        .expect("changed");
    drop(mount);
    let changes = directory_changes("new");
    let layer = ground.snapshots.commit(&base, writable, &changes, &Owners::new()).expect("committed");
    let snapshot = base.with(layer);

    let store = ground.snapshots.store();
    let tree = fs::read(store.root().join(tree_file(&changes.tree.digest()))).expect("it is there");
    assert_eq!(Tree::from_bytes(&tree), Ok(changes.tree));
    assert!(snapshot.chain().all(|(chain, layer)| holds_layer(store, &chain, layer)));
    let view = ground.snapshots.view(&snapshot).expect("mounted");
    assert_eq!(names(&view, "/"), ["new", "old"]);
    assert!(view.open(b"written", OFlags::CREATE | OFlags::WRONLY).is_err());
    assert_eq!(rustix::fs::fstat(view.root()).expect("seen").st_mode & 0o7777, 0o711);
    assert_eq!(ground.snapshots.brought(&snapshot).expect("known"), changes.brought);
    let stamp = |snapshot| ground.snapshots.top_meta(snapshot).expect("read").expect("it is there").stamp;
    assert!(stamp(&snapshot) > stamp(&base));
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn a_step_that_changes_nothing_leaves_nothing() {
    let Some(ground) = Ground::new() else { return };
    let writable = ground.snapshots.scratch(&Snapshot::default()).expect("a place to write");
    let layer = ground.snapshots.commit(&Snapshot::default(), writable, &Changes::default(), &Owners::new());
    let snapshot = Snapshot::default().with(layer.expect("committed"));
    assert_eq!(snapshot.digest(), Snapshot::default().digest());
    assert_eq!(names(&ground.snapshots.view(&snapshot).expect("open"), "/"), [""; 0]);
    assert_eq!((ground.temporaries(), ground.snapshots.brought(&snapshot).expect("known").len()), (0, 0));
}

#[test]
fn two_steps_that_make_the_same_layer_end_with_one() {
    let Some(ground) = Ground::new() else { return };
    let base = Snapshot::default();
    let writables = [(); 2].map(|()| ground.snapshots.scratch(&base).expect("a place to write"));
    let commit = |writable| ground.snapshots.commit(&base, writable, &directory_changes("d"), &Owners::new());
    let [first, second] = writables.map(|writable| commit(writable).expect("committed"));
    assert_eq!((first, ground.temporaries()), (second, 0));
}

#[test]
fn a_built_layer_that_is_gone_is_named_before_anything_is_pulled() {
    let Some(ground) = Ground::new() else { return };
    let base = Snapshot { layers: vec![ground.layer(archive().file("a", b""))] };
    let writable = ground.snapshots.scratch(&base).expect("a place to write");
    let layer = ground.snapshots.commit(&base, writable, &directory_changes("d"), &Owners::new());
    let snapshot = base.with(layer.expect("committed"));
    let store = ground.snapshots.store();
    for snapshot in [&base, &snapshot] {
        fs::remove_dir_all(directory(store, &snapshot.digest())).expect("removed");
    }
    assert!(!snapshot.chain().all(|(chain, layer)| holds_layer(store, &chain, layer)));
    assert!(matches!(ground.other_process().ensure(&snapshot), Err(SnapshotError::Gone { .. })));
    assert!(!directory(store, &base.digest()).exists());
}

#[test]
fn a_layer_of_which_only_the_directory_is_left_stays_when_the_one_below_is_made_again() {
    let Some(ground) = Ground::new() else { return };
    let base = Snapshot { layers: vec![ground.layer(archive().file("a", b""))] };
    let writable = ground.snapshots.scratch(&base).expect("a place to write");
    fs::create_dir(writable.upper().join("d")).expect("made");
    let layer = ground.snapshots.commit(&base, writable, &directory_changes("d"), &Owners::new());
    let snapshot = base.with(layer.expect("committed"));
    let store = ground.snapshots.store();
    fs::remove_dir_all(directory(store, &base.digest())).expect("removed");
    assert!(snapshot.chain().all(|(chain, layer)| holds_layer(store, &chain, layer)));
    let view = ground.other_process().view(&snapshot).expect("the base is unpacked again");
    assert_eq!(names(&view, "/"), ["a", "d"]);
}

#[test]
fn a_damaged_snapshot_is_made_again() {
    let Some(ground) = Ground::new() else { return };
    let snapshot = Snapshot { layers: vec![ground.layer(archive().file("a", b""))] };
    for damage in ["", "{}", "{\"version\":2}"] {
        ground.snapshots.ensure(&snapshot).expect("unpacked");
        let meta = directory(ground.snapshots.store(), &snapshot.digest()).join("meta.json");
        fs::write(&meta, damage).expect("written");
        ground.other_process().ensure(&snapshot).expect("made again");
        assert!(fs::metadata(&meta).expect("it is there").len() > 50);
    }
    assert_eq!(ground.warnings().len(), 3, "{:?}", ground.warnings());
}

#[test]
fn a_damaged_snapshot_that_another_build_may_have_mounted_stays() {
    let Some(ground) = Ground::new() else { return };
    let snapshot = Snapshot { layers: vec![ground.layer(archive().file("a", b""))] };
    ground.snapshots.ensure(&snapshot).expect("unpacked");
    let path = directory(ground.snapshots.store(), &snapshot.digest());
    fs::write(path.join("meta.json"), "").expect("written");
    let other = Store::open(ground.snapshots.store().root()).expect("a store");
    other.pin(&[&path]).expect("pinned");
    let failed = ground.other_process().ensure(&snapshot);
    assert!(matches!(failed, Err(SnapshotError::InUse { .. })), "{failed:?}");
    assert!(path.join("fs/a").exists());
    drop(other);
    ground.other_process().ensure(&snapshot).expect("made again");
}

#[test]
fn a_damaged_blob_of_the_store_is_fetched_again() {
    let Some(ground) = Ground::new() else { return };
    let layer = ground.layer(archive().file("a", &[1; 10_000]));
    let Layer::Base(base) = &layer else { panic!("a base layer") };
    ground.snapshots.fetcher.ensure(&base.descriptor, &base.origin).expect("fetched");
    let stored = ground.snapshots.store().blob_path(&base.descriptor.digest);
    let mut bytes = fs::read(&stored).expect("read");
    bytes[20] ^= 1;
    fs::remove_file(&stored).expect("removed");
    fs::write(&stored, bytes).expect("written");
    ground.snapshots.ensure(&Snapshot { layers: vec![layer] }).expect("unpacked");
    assert!(ground.warnings().iter().any(|text| text.contains("fetched again")), "{:?}", ground.warnings());
    assert_eq!(ground.temporaries(), 0);
}

#[test]
fn a_view_shows_neither_marks_nor_what_lies_below_an_opaque_root() {
    let Some(ground) = Ground::new() else { return };
    let bottom = ground.layer(archive().file("below", b""));
    let opaque = ground.layer(archive().file(".wh..wh..opq", b"").file(".wh.x", b"").file("own", b""));
    let snapshot = Snapshot { layers: vec![bottom, opaque.clone()] };
    assert_eq!(names(&ground.snapshots.view(&snapshot).expect("mounted"), "/"), ["own"]);
    let lowers = ground.snapshots.ensure(&snapshot).expect("there");
    assert_eq!(lowers.len(), 1);
    assert!(fs::symlink_metadata(lowers[0].join("x")).expect("marked").file_type().is_char_device());
    let top = snapshot.with(ground.layer(archive().file("top", b"")));
    assert_eq!(names(&ground.snapshots.view(&top).expect("mounted"), "/"), ["own", "top"]);
    assert_eq!(fs::metadata(&lowers[0]).expect("there").mode() & 0o7777, 0o755);
}

#[test]
fn owners_follow_the_tree_of_a_layer() {
    let entry = |path: &str, kind| Entry { path: path.into(), kind, metadata: Metadata::default() };
    let file = || EntryKind::File { size: 0, content: ContentDigest::of(b"") };
    let entries = vec![
        entry("dir", EntryKind::Directory),
        entry("gone", EntryKind::Whiteout),
        entry("hidden", EntryKind::Directory),
        entry("hidden", EntryKind::Opaque),
        entry("new", file()),
        entry("replaced", file()),
    ];
    let tree = Tree::new(entries).expect("valid");
    let owners =
        |paths: &[&str]| paths.iter().map(|path| (path.as_bytes().to_vec(), (1, 1))).collect::<Owners>();
    let below =
        owners(&["dir", "dir/f", "gone", "gone/f", "goner", "hidden", "hidden/f", "replaced", "replaced/f"]);
    assert_eq!(
        owners_above(below, &tree, &owners(&["new", "hidden"])),
        owners(&["dir/f", "goner", "hidden", "new"])
    );
}

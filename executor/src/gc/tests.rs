use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    sync::Arc,
};

use oci::{
    Descriptor, Entry, EntryKind, Layer, MediaType, Metadata, Snapshot, Tree, TreeDigest,
    store::sealed::{self, SealedRecord},
};
use solver::{CacheBackend, Event, Key, Made, Maker, Record};

use super::*;
use crate::{
    LocalCache,
    snapshot::{Meta, Stamp},
};

/// A store with the layers of a few builds, put together by hand.
struct Ground {
    root: tempfile::TempDir,
    records: Vec<Record>,
}

const HOUR: Duration = Duration::from_secs(3600);

fn digest(text: &str) -> TreeDigest {
    TreeDigest::from(blake3::hash(text.as_bytes()))
}

fn open(root: &Path) -> Arc<Store> {
    Arc::new(Store::open(root).expect("a store"))
}

fn cache(store: &Arc<Store>) -> LocalCache {
    LocalCache::new(Arc::clone(store), Arc::new(|event: Event| panic!("{event:?}")))
}

/// Makes a layer of its own on top of others: tree, directory of about `size` bytes, sealed blob, and record.
fn step(store: &Arc<Store>, parent: &Snapshot, name: &str, size: usize) -> Record {
    let entry = Entry { path: name.into(), kind: EntryKind::Directory, metadata: Metadata::default() };
    let tree = Tree::new(vec![entry]).expect("one entry");
    let layer = Layer::Built(tree.digest());
    let snapshot = parent.with(layer);
    store.write_atomic(&Path::new("trees").join(tree.digest().hex()), &tree.to_bytes()).expect("written");
    let temp = store.temp_dir("layer").expect("made");
    fs::create_dir(temp.path().join("fs")).expect("made");
    fs::write(temp.path().join("fs/data"), vec![1; size]).expect("written");
    let meta = Meta {
        layer: tree.digest(),
        parent: (!parent.layers.is_empty()).then(|| parent.digest()),
        bytes: size as u64,
        stamp: Stamp { seconds: 1, nanoseconds: 0 },
        opaque_root: false,
        owners: Vec::new(),
    };
    meta.write(temp.path()).expect("written");
    store.rename_into(temp, &snapshot_path(&snapshot)).expect("placed");
    let mut blob = store.blob_writer().expect("a temporary");
    blob.write_all(&vec![2; size / 2]).and_then(|()| blob.write_all(name.as_bytes())).expect("written");
    let (blob, length) = blob.commit().expect("stored");
    let descriptor = Descriptor::new(MediaType::OciLayer, blob, length);
    let record = SealedRecord { diff_id: blob.into(), descriptor };
    sealed::write(store, &tree.digest(), "gzip.normal", &record).expect("written");
    let record = Record {
        definition: digest(&format!("definition {name}")),
        content: digest(&format!("content {name}")),
        parent: parent.digest(),
        snapshot,
        pre_image: BTreeMap::from([("~instruction".to_owned(), format!("RUN {name}"))]),
        made: Made { by: Maker::default(), took_ms: 0 },
    };
    cache(store).store(&record);
    record
}

fn snapshot_path(snapshot: &Snapshot) -> PathBuf {
    Path::new("snapshots").join(snapshot.digest().hex())
}

fn keys(record: &Record) -> [Key; 2] {
    [Key::Definition(record.definition), Key::Content(record.content)]
}

/// A trunk of two steps with three branches of two each; the later a branch, the later it was used.
fn ground() -> Ground {
    let root = tempfile::tempdir().expect("tempdir");
    let store = open(root.path());
    let mut records = Vec::new();
    let mut below = Snapshot::default();
    for name in ["trunk-0", "trunk-1"] {
        records.push(step(&store, &below, name, 40_000));
        below = records[records.len() - 1].snapshot.clone();
    }
    for branch in 0..3 {
        let first = step(&store, &below, &format!("branch-{branch}-0"), 40_000);
        let second = step(&store, &first.snapshot, &format!("branch-{branch}-1"), 40_000);
        records.extend([first, second]);
    }
    let ground = Ground { root, records };
    for (at, record) in ground.records.iter().enumerate() {
        let age = HOUR * (100 - 10 * (at as u32 / 2));
        for path in paths(&store, record) {
            // Each branch's build has found the trunk in the cache.
            let is_found_again = at < 2 && path.starts_with("records");
            set_age(&store.root().join(path), if is_found_again { HOUR * 70 } else { age });
        }
    }
    ground
}

/// Everything that one step has put into the store.
fn paths(store: &Store, record: &Record) -> Vec<PathBuf> {
    let tree = record.snapshot.layers.last().expect("one").tree();
    let blob = sealed::all(store, &tree).pop().expect("sealed").1.descriptor.digest;
    store.release_pins().expect("released");
    vec![
        Path::new("records/definition").join(format!("{}.json", record.definition.hex())),
        Path::new("records/content").join(format!("{}.json", record.content.hex())),
        sealed::path(&tree, "gzip.normal"),
        sealed::directory(&tree),
        snapshot_path(&record.snapshot),
        Path::new("trees").join(tree.hex()),
        Path::new("blobs/sha256").join(blob.hex()),
    ]
}

fn set_age(path: &Path, age: Duration) {
    File::open(path).and_then(|file| file.set_modified(SystemTime::now() - age)).expect("ours");
}

impl Ground {
    fn collect(&self, keep: Keep, mode: Mode) -> Collected {
        collect(&open(self.root.path()), keep, mode).expect("collected")
    }

    /// Which steps are cached, asked in a process of its own.
    fn cached(&self) -> Vec<bool> {
        let store = open(self.root.path());
        let found = |record: &Record| cache(&store).lookup(&keys(record)).iter().all(Option::is_some);
        self.records.iter().map(found).collect()
    }

    fn total(&self) -> u64 {
        total(&usage(&open(self.root.path())).expect("counted"))
    }

    /// Whatever is left lacks nothing.
    fn check_whole(&self) {
        let left = self.collect(Keep::Under { cap: Cap::None, unused_for: Duration::ZERO }, Mode::Pretend);
        assert!(left.removed.is_empty(), "something useless is left: {:?}", left.removed);
        let store = open(self.root.path());
        for record in &self.records {
            for key in keys(record) {
                let (Key::Definition(digest) | Key::Content(digest)) = key;
                let area = if matches!(key, Key::Content(_)) { "content" } else { "definition" };
                let file = store.area("records").join(area).join(format!("{}.json", digest.hex()));
                assert_eq!(
                    file.exists(),
                    cache(&store).lookup(&[key])[0].is_some(),
                    "a record lies: {record:?}"
                );
            }
        }
    }
}

fn under(bytes: u64) -> Keep {
    Keep::Under { cap: Cap::Bytes(bytes), unused_for: Duration::ZERO }
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let ground = ground();
    let whole = ground.total();
    assert!(ground.collect(under(whole), Mode::Remove).removed.is_empty(), "it is under the limit");
    let collected = ground.collect(under(whole - 100_000), Mode::Remove);
    // A layer goes when its records do, also where a little less would have been enough.
    assert!((whole - 250_000..=whole - 100_000).contains(&collected.left), "{} of {whole}", collected.left);
    assert_eq!(collected.bytes(), whole - collected.left);
    assert_eq!(ground.total(), collected.left);
    // The trunk is older than its branches, but they stand on it.
    assert_eq!(ground.cached()[..2], [true, true]);
    assert_eq!(ground.cached()[4..], [true; 4]);
    assert!(!ground.cached()[3], "the top of the oldest branch");
    ground.check_whole();
}

#[test]
fn what_is_pinned_stays_with_all_that_it_stands_on() {
    let ground = ground();
    let (user, store) = (open(ground.root.path()), open(ground.root.path()));
    // The top of the oldest branch, as a look-up pins it.
    assert!(cache(&user).lookup(&keys(&ground.records[3])).iter().all(Option::is_some));
    let reclaimable = usage(&store).expect("counted");
    let collected = ground.collect(Keep::Nothing, Mode::Remove);
    assert_eq!(ground.cached(), [false, false, false, true, false, false, false, false]);
    for record in &ground.records[..4] {
        assert!(store.root().join(snapshot_path(&record.snapshot)).exists(), "the step stands on it");
    }
    let told: u64 = reclaimable.iter().filter(|thing| thing.is_reclaimable).map(|thing| thing.bytes).sum();
    let locks: u64 = collected.removed.iter().filter(|thing| !counts(thing)).map(|thing| thing.bytes).sum();
    assert!(told.abs_diff(collected.bytes()) <= locks + 100_000, "{told} {}", collected.bytes());
    drop(user);
    ground.collect(Keep::Nothing, Mode::Remove);
    assert_eq!(ground.total(), 0);
}

#[test]
fn what_was_used_within_the_time_stays_whatever_the_limit() {
    let ground = ground();
    let keep = Keep::Under { cap: Cap::Bytes(0), unused_for: HOUR * 75 };
    let whole = ground.total();
    let collected = ground.collect(keep, Mode::Pretend);
    assert_eq!(ground.total(), whole, "nothing is removed by asking");
    let again = ground.collect(keep, Mode::Remove);
    let names = |collected: &Collected| {
        collected.removed.iter().map(|thing| thing.path.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&collected), names(&again));
    // Branches were used 90, 80 and 70 hours ago.
    assert!(!ground.cached()[2..6].iter().any(|cached| *cached));
    assert_eq!(ground.cached()[6..], [true, true]);
    ground.check_whole();
}

#[test]
fn what_nobody_can_need_goes_whatever_the_limit() {
    let ground = ground();
    let root = ground.root.path();
    let top = &ground.records[7];
    let record = root.join("records/content").join(format!("{}.json", top.content.hex()));
    fs::remove_file(&record).expect("ours");
    fs::write(&record, "damaged").expect("ours");
    fs::remove_file(root.join("records/definition").join(format!("{}.json", top.definition.hex())))
        .expect("ours");
    fs::write(root.join("trees/stray"), "x").expect("ours");
    fs::write(root.join("locks/snapshot-left"), "").expect("ours");
    fs::create_dir_all(root.join("mounts/id/variant/0/fs")).expect("ours");
    fs::write(root.join("mounts/id/variant/0/retired"), "").expect("ours");
    let collected = ground.collect(Keep::Under { cap: Cap::None, unused_for: HOUR * 1000 }, Mode::Remove);
    let removed: BTreeSet<_> = collected.removed.iter().map(|thing| thing.path.clone()).collect();
    let expected = [
        Path::new("records/content").join(format!("{}.json", top.content.hex())),
        // It keeps its tree, which keeps the sealed blob: the step may run again and make the same.
        snapshot_path(&top.snapshot),
        "trees/stray".into(),
        "locks/snapshot-left".into(),
        "mounts/id/variant/0".into(),
    ];
    assert_eq!(removed, BTreeSet::from(expected));
    assert!(!root.join("mounts/id").exists(), "an id without directories goes, too");
    assert_eq!(ground.cached()[..7], [true; 7]);
    ground.check_whole();
}

#[test]
fn cache_mounts_go_last_and_those_in_use_never() {
    let ground = ground();
    let mount = |number: u32| ground.root.path().join(format!("mounts/id/variant/{number}"));
    for number in 0..2 {
        fs::create_dir_all(mount(number).join("fs")).expect("ours");
        fs::write(mount(number).join("fs/object"), vec![3; 500_000]).expect("ours");
        fs::write(mount(number).join("use"), "").expect("ours");
        fs::write(mount(number).join("used"), "").expect("ours");
        set_age(&mount(number).join("used"), HOUR * 1000);
    }
    let in_use = File::open(mount(1).join("use")).expect("there");
    in_use.lock_shared().expect("free");
    ground.collect(under(1_050_000), Mode::Remove);
    assert_eq!(ground.cached(), [false; 8], "they are older, but dearer");
    assert!(mount(0).exists() && mount(1).exists());
    ground.collect(Keep::Nothing, Mode::Remove);
    assert!(!mount(0).exists() && mount(1).join("fs/object").exists());
}

/// Whatever the limit and whatever is pinned: what is left is whole, pins hold, and the limit is kept as far as they allow.
#[test]
fn any_limit_and_any_pins_leave_a_whole_store() {
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for round in 0..12 {
        let ground = ground();
        let user = open(ground.root.path());
        let pinned: Vec<&Record> = ground.records.iter().filter(|_| random(4) == 0).collect();
        pinned.iter().for_each(|record| {
            cache(&user).lookup(&keys(record));
        });
        let limit = random(ground.total() + 1);
        let collected = ground.collect(under(limit), Mode::Remove);
        assert_eq!(collected.left, ground.total(), "round {round}");
        let free = |thing: &Thing| thing.is_reclaimable && counts(thing);
        let things = usage(&user).expect("counted");
        assert!(collected.left <= limit || !things.iter().any(free), "round {round}");
        for record in &pinned {
            assert!(cache(&user).lookup(&keys(record)).iter().all(Option::is_some), "round {round}");
        }
        drop(user);
        ground.check_whole();
    }
}

/// A build that began and ended while a survey went on: what it used was pinned before, what it made is newer.
#[test]
fn what_was_in_use_when_the_survey_began_or_has_come_since_stays() {
    let ground = ground();
    let (user, store) = (open(ground.root.path()), open(ground.root.path()));
    assert!(cache(&user).lookup(&keys(&ground.records[7])).iter().all(Option::is_some));
    let before = Before::now(&store).expect("read");
    let new = step(&user, &ground.records[7].snapshot, "new", 40_000);
    drop(user);
    let things = list(&store, &mut Sizes::read(&store), Detail::Exact).expect("listed");
    let collected = collect_of(&store, before, things, Keep::Nothing, Mode::Remove).expect("collected");
    assert!(!collected.removed.is_empty());
    assert_eq!(ground.cached(), [false, false, false, false, false, false, false, true]);
    let user = open(ground.root.path());
    assert!(cache(&user).lookup(&keys(&new)).iter().all(Option::is_some));
    drop(user);
    assert_eq!(ground.collect(Keep::Nothing, Mode::Remove).left, 0, "but the next time it goes");
}

#[test]
fn a_cap_costs_the_pins_of_who_keeps_it() {
    let ground = ground();
    let store = open(ground.root.path());
    assert!(cache(&store).lookup(&keys(&ground.records[7])).iter().all(Option::is_some));
    assert!(keep_under(&store, Cap::None).expect("possible").is_none());
    assert!(keep_under(&store, Cap::Bytes(10_000_000)).expect("possible").is_none());
    let collected = keep_under(&store, Cap::Bytes(0)).expect("possible").expect("there was something");
    assert_eq!((collected.left, ground.total()), (0, 0));
}

#[test]
fn all_that_lies_in_a_store_is_counted_as_du_counts_it() {
    let ground = ground();
    let store = open(ground.root.path());
    for _ in 0..2 {
        // The second time from what was measured the first time.
        let counted: u64 = usage(&store).expect("counted").iter().map(|thing| thing.bytes).sum();
        let on_disk = size::on_disk(store.root());
        assert!(counted.abs_diff(on_disk) <= on_disk / 100, "{counted} {on_disk}");
    }
    let things = usage(&store).expect("counted");
    assert!(
        things.iter().all(|thing| thing.kind != Kind::Temporary),
        "who counts is not counted: {things:?}"
    );
    let what =
        |path: PathBuf| things.iter().find(|thing| thing.path == path).and_then(|thing| thing.what.clone());
    for path in paths(&store, &ground.records[5]).into_iter().filter(|path| path.extension().is_none()) {
        assert_eq!(what(path.clone()).as_deref(), Some("RUN branch-1-1"), "{}", path.display());
    }
}

#[test]
fn a_base_layer_that_was_packed_anew_stays_without_a_tree() {
    let ground = ground();
    let store = open(ground.root.path());
    let sealed = |bytes: &[u8], name: &str| {
        let mut blob = store.blob_writer().expect("a temporary");
        blob.write_all(bytes).expect("written");
        let (blob, length) = blob.commit().expect("stored");
        let tree = digest(name);
        let descriptor = Descriptor::new(MediaType::OciLayerZstd, blob, length);
        sealed::write(&store, &tree, name, &SealedRecord { diff_id: blob.into(), descriptor })
            .expect("written");
        Path::new("sealed").join(tree.hex())
    };
    let base = sealed(b"of a base layer", "zstd.base");
    let nobodys = sealed(b"of a tree that is gone", "zstd.normal");
    store.release_pins().expect("released");
    let keep = Keep::Under { cap: Cap::None, unused_for: Duration::ZERO };
    let removed: Vec<_> =
        ground.collect(keep, Mode::Remove).removed.into_iter().map(|thing| thing.path).collect();
    assert!(removed.contains(&nobodys) && !removed.contains(&base), "{removed:?}");
    ground.check_whole();
}

#[test]
fn a_record_whose_layer_is_in_a_blob_only_goes_when_the_blob_does() {
    let ground = ground();
    let (store, top) = (open(ground.root.path()), &ground.records[7]);
    let directory = store.root().join(snapshot_path(&top.snapshot));
    fs::remove_dir_all(&directory).expect("ours");
    let keep = Keep::Under { cap: Cap::None, unused_for: Duration::ZERO };
    assert!(ground.collect(keep, Mode::Remove).removed.is_empty(), "the blob holds its bytes");
    assert!(ground.cached()[7]);
    let blob = paths(&store, top).pop().expect("the last is the blob");
    fs::remove_file(store.root().join(blob)).expect("ours");
    let removed: BTreeSet<_> =
        ground.collect(keep, Mode::Remove).removed.into_iter().map(|thing| thing.path).collect();
    let tree = top.snapshot.layers.last().expect("one").tree().hex();
    let expected = [
        Path::new("records/definition").join(format!("{}.json", top.definition.hex())),
        Path::new("records/content").join(format!("{}.json", top.content.hex())),
        Path::new("sealed").join(&tree),
        Path::new("trees").join(&tree),
    ];
    assert_eq!(removed, BTreeSet::from(expected));
    ground.check_whole();
}

//! Sealing a layer with the help of blobs that are there already: the same bytes, without reading or compressing again
//! what has not changed, whatever has become of those blobs in the meantime.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use exporter::{Encoder, SealError, SealedLayer, Sealer, TimePolicy};
use oci::{
    ContentDigest, Entry, EntryKind, FileSource, LayerContents, Metadata, Sha256Digest, Snapshot, Tree,
    TreeDigest, store::Store,
};
use proptest::prelude::*;
use solver::Event;

use crate::support::{Described, Workshop, unpacked};

mod tables;

const ENCODERS: [Encoder; 3] = [Encoder::GZIP, Encoder::ZSTD, Encoder::Uncompressed];

/// The files of some layers, and which of them were opened.
#[derive(Default)]
struct Contents {
    layers: Mutex<BTreeMap<TreeDigest, Described>>,
    opened: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

struct Files {
    described: Described,
    opened: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

impl FileSource for Files {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        self.opened.lock().expect("no panic").insert(path.to_vec());
        self.described.open(path)
    }
}

impl LayerContents for Contents {
    fn files_of(&self, layer: &TreeDigest) -> Option<Box<dyn FileSource + Send>> {
        let described = self.layers.lock().expect("no panic").get(layer)?.clone();
        Some(Box::new(Files { described, opened: Arc::clone(&self.opened) }))
    }
}

/// A store, and steps whose files are in memory.
struct Place {
    workshop: Workshop,
    contents: Arc<Contents>,
}

impl Place {
    fn new() -> Self {
        Self { workshop: Workshop::new(), contents: Arc::default() }
    }

    fn sealer(&self, encoder: Encoder, times: TimePolicy) -> Sealer {
        self.workshop.sealer_of(Some(self.contents.clone()), encoder, times, 2)
    }

    fn step(&self, layer: &Described) -> Snapshot {
        self.contents.layers.lock().expect("no panic").insert(layer.tree.digest(), layer.clone());
        self.workshop.step_without_files(&Snapshot::default(), layer)
    }

    /// Seals a layer, and tells which files were opened for that.
    fn seal(&self, layer: &Described, encoder: Encoder) -> (SealedLayer, Vec<String>) {
        let snapshot = self.step(layer);
        self.contents.opened.lock().expect("no panic").clear();
        let mut sealed = self.sealer(encoder, TimePolicy::Default).seal(&snapshot).expect("sealed");
        let opened = self.contents.opened.lock().expect("no panic").iter().map(|path| text(path)).collect();
        (sealed.pop().expect("one layer"), opened)
    }

    fn blob(&self, sealed: &SealedLayer) -> PathBuf {
        self.workshop.store.blob_path(&sealed.descriptor.digest)
    }

    /// The blob is what its digest says, and holds the tar of the layer.
    fn check(&self, sealed: &SealedLayer, layer: &Described) {
        let bytes = fs::read(self.blob(sealed)).expect("a blob");
        assert_eq!(Sha256Digest::of(&bytes), sealed.descriptor.digest);
        let tar = layer.tar(TimePolicy::Default);
        assert_eq!(oci::DiffId::from(Sha256Digest::of(&tar)), sealed.diff_id);
        assert!(unpacked(&sealed.descriptor.media_type, &bytes) == tar, "the blob holds another tar");
    }
}

fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).expect("text")
}

/// The digest that a store without any blob gives.
fn from_scratch(layer: &Described, encoder: Encoder) -> SealedLayer {
    Place::new().seal(layer, encoder).0
}

fn described(files: &BTreeMap<String, Vec<u8>>, modes: &BTreeMap<String, u32>) -> Described {
    let entry = |(path, content): (&String, &Vec<u8>)| {
        let kind = EntryKind::File { size: content.len() as u64, content: ContentDigest::of(content) };
        let mode = modes.get(path).copied().unwrap_or(0o644);
        Entry { path: path.as_bytes().to_vec(), kind, metadata: Metadata { mode, ..Metadata::default() } }
    };
    let tree = Tree::new(files.iter().map(entry).collect()).expect("valid");
    let files = files.iter().map(|(path, content)| (path.as_bytes().to_vec(), content.clone())).collect();
    Described { tree, files }
}

/// Bytes that look random and are the same everywhere: of every four three are random, so that they compress a little.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = (seed << 1) | 1;
    let next = |index| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if index % 4 == 0 { b'x' } else { (state >> 56) as u8 }
    };
    (0..length).map(next).collect()
}

/// Many small files, and one that has several chunks.
fn many() -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<_, _> =
        (0..60).map(|index| (format!("d/{index:03}"), noise(9_000 + index * 97, index as u64))).collect();
    files.insert("d/030-large".to_owned(), noise(2_400_000, 7));
    files
}

#[test]
fn only_the_file_that_was_edited_is_opened() {
    for encoder in ENCODERS {
        for (path, content) in [("d/047", &b"edited"[..]), ("d/000", b"first"), ("d/059", b"last")] {
            let place = Place::new();
            let (_, opened) = place.seal(&described(&many(), &BTreeMap::new()), encoder);
            assert_eq!(opened.len(), 61, "all of them, once");
            let mut files = many();
            files.insert(path.to_owned(), content.to_vec());
            let edited = described(&files, &BTreeMap::new());
            let (sealed, opened) = place.seal(&edited, encoder);
            assert_eq!(opened, [path]);
            assert_eq!(sealed, from_scratch(&edited, encoder));
            place.check(&sealed, &edited);
        }
    }
}

#[test]
fn what_was_moved_is_not_opened_either() {
    for encoder in ENCODERS {
        let place = Place::new();
        place.seal(&described(&many(), &BTreeMap::new()), encoder);
        let files = many().into_iter().map(|(path, content)| (path.replace("d/", "elsewhere/"), content));
        let moved = described(&files.collect(), &BTreeMap::new());
        let (sealed, opened) = place.seal(&moved, encoder);
        assert!(opened.is_empty(), "{opened:?}");
        assert_eq!(sealed, from_scratch(&moved, encoder));
    }
}

fn replace(path: &PathBuf, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::write(path, bytes).expect("ours");
}

#[test]
fn a_damaged_blob_helps_nobody_and_goes() {
    let old = described(&many(), &BTreeMap::new());
    let mut files = many();
    files.insert("d/047".to_owned(), b"edited".to_vec());
    let edited = described(&files, &BTreeMap::new());
    for encoder in ENCODERS {
        let want = from_scratch(&edited, encoder);
        for part in 0..8 {
            let place = Place::new();
            let (sealed, _) = place.seal(&old, encoder);
            let path = place.blob(&sealed);
            let mut bytes = fs::read(&path).expect("a blob");
            let at = bytes.len() * part / 8 + 9;
            bytes[at] ^= 0x40;
            replace(&path, &bytes);
            let (found, _) = place.seal(&edited, encoder);
            assert_eq!(found, want, "bit of byte {at}");
            place.check(&found, &edited);
            // The headers of an uncompressed blob are not looked at; its middle is in a file.
            let is_looked_at = encoder != Encoder::Uncompressed || part == 4;
            assert!(!is_looked_at || !path.exists(), "byte {at} of {}", bytes.len());
        }
    }
}

#[test]
fn a_layer_without_files_is_made_of_another_blob_of_it() {
    let layer = described(&many(), &BTreeMap::new());
    let epoch = TimePolicy::Epoch(3);
    for (first, times, then) in [
        (Encoder::GZIP, TimePolicy::Default, Encoder::Uncompressed),
        (Encoder::Uncompressed, TimePolicy::Default, Encoder::GZIP),
        (Encoder::GZIP, epoch, Encoder::GZIP),
        (Encoder::Uncompressed, epoch, Encoder::GZIP),
        (Encoder::GZIP, TimePolicy::Default, Encoder::ZSTD),
        (Encoder::ZSTD, TimePolicy::Default, Encoder::Uncompressed),
        (Encoder::ZSTD, epoch, Encoder::GZIP),
    ] {
        let place = Place::new();
        let snapshot = place.step(&layer);
        place.sealer(first, times).seal(&snapshot).expect("sealed");
        let without = place.workshop.sealer(then, TimePolicy::Default, 2);
        let sealed = without.seal(&snapshot).expect("sealed").remove(0);
        assert_eq!(sealed, from_scratch(&layer, then));
    }
}

#[test]
fn what_cannot_be_sealed_says_whose_fault_it_is() {
    let layer = described(&BTreeMap::from([("f".to_owned(), b"x".to_vec())]), &BTreeMap::new());
    let place = Place::new();
    let snapshot = place.workshop.step_without_files(&Snapshot::default(), &layer);
    let seal =
        || place.sealer(Encoder::GZIP, TimePolicy::Default).seal(&snapshot).expect_err("no such files");
    let gone = seal();
    let SealError::Gone { chain, tree } = &*gone else { panic!("{gone}") };
    assert_eq!((*chain, *tree), (snapshot.digest(), layer.tree.digest()));
    for content in [Some("y"), Some("longer"), Some(""), None] {
        let files = content.map(|content| (b"f".to_vec(), content.into()));
        let changed = Described { tree: layer.tree.clone(), files: files.into_iter().collect() };
        place.contents.layers.lock().expect("no panic").insert(layer.tree.digest(), changed);
        let failed = seal();
        assert!(matches!(&*failed, SealError::Changed { path } if path == b"f"), "{content:?}: {failed}");
        assert!(failed.is_the_builds_own());
    }
    // The blob of the same layer that was to help has gone bad: it is removed, so that the step runs again.
    let place = Place::new();
    let (sealed, _) = place.seal(&layer, Encoder::Uncompressed);
    let path = place.blob(&sealed);
    let mut bytes = fs::read(&path).expect("a blob");
    bytes[512] ^= 1;
    replace(&path, &bytes);
    let failed =
        place.workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1).seal(&snapshot).expect_err("damaged");
    assert!(matches!(&*failed, SealError::Gone { .. }) && !path.exists(), "{failed}");
}

#[test]
fn one_of_several_processes_seals_a_layer() {
    let place = Place::new();
    let layer = described(&many(), &BTreeMap::new());
    let snapshot = place.step(&layer);
    let results: Vec<_> = std::thread::scope(|scope| {
        let seal = || {
            // A store of its own, as in another process.
            let store = Arc::new(Store::open(place.workshop.store.root()).expect("a store"));
            let options = exporter::SealOptions {
                base: exporter::BaseLayers::default(),
                store,
                encoder: Encoder::GZIP,
                times: TimePolicy::Default,
                jobs: 1,
                courtesy: Default::default(),
                events: Arc::new(|_| ()),
                cancel: Arc::default(),
                contents: Some(place.contents.clone()),
                fetcher: place.workshop.fetcher.clone(),
                on_sealed: Arc::new(|_| ()),
            };
            Sealer::new(options).seal(&snapshot).expect("sealed").remove(0)
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(seal)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    place.check(&results[0], &layer);
    let blobs = fs::read_dir(place.workshop.store.area("blobs/sha256")).expect("an area").count();
    assert_eq!(blobs, 1);
}

#[test]
fn waiting_for_another_process_is_seen_and_can_be_stopped() {
    let place = Place::new();
    let layer = described(&BTreeMap::from([("f".to_owned(), b"x".to_vec())]), &BTreeMap::new());
    let snapshot = place.step(&layer);
    let name = format!("seal-{}.{}.normal", layer.tree.digest().hex(), Encoder::GZIP.id());
    let lock = fs::File::create(place.workshop.store.area("locks").join(name)).expect("made");
    lock.lock().expect("locked");
    let sealer = place.sealer(Encoder::GZIP, TimePolicy::Default);
    let seen =
        |wanted: fn(&Event) -> bool| place.workshop.events.lock().expect("no panic").iter().any(wanted);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sealer.seal(&snapshot));
        while !seen(
            |event| matches!(event, Event::Stage(stage) if stage.contains("waiting for another build")),
        ) {
            std::thread::yield_now();
        }
        place.workshop.cancel.request();
        let stopped = waiting.join().expect("no panic").expect_err("stopped");
        assert!(matches!(*stopped, SealError::Cancelled), "{stopped}");
    });
    assert!(seen(|event| matches!(event, Event::StageDone(_))));
}

/// One change of a set of files.
#[derive(Debug, Clone)]
enum Edit {
    Content(prop::sample::Index, u64, usize),
    Middle(prop::sample::Index, prop::sample::Index, Vec<u8>),
    Rename(prop::sample::Index, String),
    Mode(prop::sample::Index, u32),
    Remove(prop::sample::Index),
    Add(String, u64, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let name = "[a-e]/[a-z0-9]{1,5}";
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u64>(), 0..400_000usize)
            .prop_map(|(file, seed, length)| Edit::Content(file, seed, length)),
        (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            prop::collection::vec(any::<u8>(), 0..9)
        )
            .prop_map(|(file, at, bytes)| Edit::Middle(file, at, bytes)),
        (any::<prop::sample::Index>(), name).prop_map(|(file, name)| Edit::Rename(file, name)),
        (any::<prop::sample::Index>(), 0o400..0o777u32).prop_map(|(file, mode)| Edit::Mode(file, mode)),
        any::<prop::sample::Index>().prop_map(Edit::Remove),
        (name, any::<u64>(), 0..500_000usize).prop_map(|(name, seed, length)| Edit::Add(name, seed, length)),
    ]
}

fn apply(edit: &Edit, files: &mut BTreeMap<String, Vec<u8>>, modes: &mut BTreeMap<String, u32>) {
    let pick = |index: &prop::sample::Index, files: &BTreeMap<String, Vec<u8>>| {
        (!files.is_empty()).then(|| files.keys().nth(index.index(files.len())).expect("in range").clone())
    };
    match edit {
        Edit::Add(name, seed, length) => drop(files.insert(name.clone(), noise(*length, *seed))),
        Edit::Content(file, seed, length) => {
            pick(file, files).map(|path| files.insert(path, noise(*length, *seed)));
        }
        Edit::Mode(file, mode) => drop(pick(file, files).map(|path| modes.insert(path, *mode))),
        Edit::Remove(file) => drop(pick(file, files).map(|path| files.remove(&path))),
        Edit::Rename(file, name) => {
            let content = pick(file, files).and_then(|path| files.remove(&path));
            content.map(|content| files.insert(name.clone(), content));
        }
        Edit::Middle(file, at, bytes) => {
            if let Some(content) = pick(file, files).and_then(|path| files.get_mut(&path)) {
                let at = at.index(content.len() + 1);
                content.splice(at..at, bytes.iter().copied());
            }
        }
    }
}

/// Many where there is time for them.
fn cases() -> u32 {
    if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_some() { 200 } else { 5 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn a_blob_made_with_help_is_the_one_made_from_scratch(edits in prop::collection::vec(edit(), 1..5)) {
        let (mut files, mut modes) = (many(), BTreeMap::new());
        let places = ENCODERS.map(|encoder| (encoder, Place::new()));
        for (encoder, place) in &places {
            place.seal(&described(&files, &modes), *encoder);
        }
        for edit in &edits {
            apply(edit, &mut files, &mut modes);
            let edited = described(&files, &modes);
            for (encoder, place) in &places {
                if files.is_empty() {
                    continue;
                }
                let (sealed, _) = place.seal(&edited, *encoder);
                place.check(&sealed, &edited);
                prop_assert_eq!(sealed, from_scratch(&edited, *encoder));
            }
        }
    }
}

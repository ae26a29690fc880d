//! Cache records in the store: implements [`solver::CacheBackend`].
//!
//! A record is one JSON file under each of its two keys, `ROOT/records/{definition,content}/HEX.json`, written by rename
//! after everything it names, as a [`checked`] file: damage is found out, not believed. Whatever is wrong with one
//! (damage, another version, a layer that is gone) makes it a miss: a cache never fails a build.
//!
//! A record some of whose layers only a remote cache has waits in its process like one whose files nobody has written yet:
//! it is written once the store holds all of them, and forgotten otherwise. So what later builds of this store find
//! is what they have; for the rest they ask the remote cache again. A record that stands on somebody's word says whose
//! ([`Words`]), and is a miss for builds that trust only others.

mod claim;
mod word;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci::{
    TreeDigest,
    store::{
        Store, StoreError,
        checked::{self, CheckedError},
    },
};
use serde::{Deserialize, Serialize};
use solver::{CacheBackend, Claim, Event, Key, Maker, Record};

pub use self::word::Words;
use crate::snapshot::{Events, holds_layer, pin_layers};

/// Version of the content of a record's file. Another one is a miss.
const VERSION: u32 = 4;

/// Where the records are under their content keys.
const CONTENT_AREA: &str = "records/content";

/// The cache of one store.
#[derive(Clone)]
pub struct LocalCache {
    store: Arc<Store>,
    events: Events,
    words: Words,
    /// Records with a layer that the store does not hold yet: its files are in the context still.
    pending: Arc<Mutex<Vec<Arc<Kept>>>>,
}

/// What is in a record's file.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    #[serde(flatten)]
    pub(crate) record: Record,
    /// On whose word it stands; on nobody's where this store's builds have run everything.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    words: BTreeSet<String>,
}

/// Why a record's file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    File(#[from] CheckedError),
    #[error("{} is damaged: {what}", path.display())]
    Inconsistent { path: PathBuf, what: &'static str },
}

impl LocalCache {
    /// The records of a store; damaged ones are warned of through `events`.
    pub fn new(store: Arc<Store>, events: Events) -> Self {
        Self { store, events, words: Words::default(), pending: Arc::default() }
    }

    /// The same for a build that believes these, and takes their words.
    pub fn believing(self, words: Words) -> Self {
        Self { words, ..self }
    }

    /// The record under a key, if it may be believed.
    fn read(&self, key: &Key) -> Option<Record> {
        let kept = read_record(&self.store, key).unwrap_or_else(|error| {
            self.warn(format!("a cache record is not used: {}", told(&error)));
            None
        });
        let Kept { record, words } = kept?;
        if !self.words.believe(&words) {
            self.words.doubt(&record);
            return None;
        }
        self.words.take(&words);
        Some(record)
    }

    /// The records under these keys, before anything is known of their layers. What is found, and all that its layers may
    /// lie in, is pinned before it is looked for: what is not pinned may be gone again when it is wanted.
    fn pin_and_read(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.store.pin(&keys.iter().map(path).collect::<Vec<_>>())?;
        let found: Vec<_> = keys.iter().map(|key| self.read(key)).collect();
        pin_layers(&self.store, found.iter().flatten().map(|record| &record.snapshot))?;
        Ok(found)
    }

    /// Writes the records that waited for a layer, as far as the store holds all of theirs by now. To be called once
    /// layers have been sealed, and before the end of a build, however it ends: what still waits then is lost.
    pub fn flush(&self) {
        let pending = self.pending().clone();
        let mut held = BTreeSet::new();
        for kept in pending.iter().filter(|kept| self.is_held(&kept.record, &mut held)) {
            self.write(kept);
            self.pending().retain(|waiting| !Arc::ptr_eq(waiting, kept));
        }
    }

    /// Whether the store holds all layers of a record; those that it is known to hold are added to `held`.
    fn is_held(&self, record: &Record, held: &mut BTreeSet<TreeDigest>) -> bool {
        record.snapshot.chain().all(|(chain, layer)| {
            held.contains(&chain) || (holds_layer(&self.store, &chain, layer) && held.insert(chain))
        })
    }

    fn write(&self, kept: &Kept) {
        for key in [Key::Content(kept.record.content), Key::Definition(kept.record.definition)] {
            if self.is_known_better(&key, kept) {
                continue;
            }
            if let Err(error) = checked::write(&self.store, &path(&key), VERSION, kept) {
                self.warn(format!("a step is not cached: {}", told(&error)));
            }
        }
    }

    /// Whether the store says the same of a key, and more people believe it. What has been made since then is not the same.
    fn is_known_better(&self, key: &Key, kept: &Kept) -> bool {
        if kept.words.is_empty() {
            return false;
        }
        // What cannot be read is written anew.
        let known = read_record(&self.store, key).ok().flatten();
        known.is_some_and(|Kept { record, words }| {
            words != kept.words
                && word::reach_as_far(&words, &kept.words)
                && record.snapshot == kept.record.snapshot
                && record.made.by.at >= kept.record.made.by.at
        })
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Arc<Kept>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of this process that waits for its layers, which this process has.
    fn waiting(&self, key: &Key) -> Option<Record> {
        self.pending().iter().find(|kept| answers(&kept.record, key)).map(|kept| kept.record.clone())
    }

    fn warn(&self, warning: String) {
        (self.events)(Event::Warning(warning));
    }
}

impl CacheBackend for LocalCache {
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>> {
        let found = self.pin_and_read(keys).unwrap_or_else(|_| vec![None; keys.len()]);
        // Records of one build share most of their layers.
        let mut held = BTreeSet::new();
        let find = |(key, found): (&Key, Option<Record>)| {
            let found = || {
                let record = found.filter(|record| self.is_held(record, &mut held))?;
                self.store.touch(&path(key));
                Some(record)
            };
            self.waiting(key).or_else(found)
        };
        keys.iter().zip(found).map(find).collect()
    }

    fn store(&self, record: &Record) {
        self.pending().push(Arc::new(Kept { record: record.clone(), words: self.words.so_far() }));
        self.flush();
    }

    fn claim(&self, content: &TreeDigest, maker: &Maker) -> Claim {
        claim::claim(&self.store, content, maker).unwrap_or_else(|error| {
            self.warn(format!("a step may run in several builds at once: cannot lock it: {error}"));
            Claim::NotKept
        })
    }
}

/// All records that a store has, by content key, for whoever explains them; what cannot be read is left out, and whether
/// their layers are still held is not looked at.
pub fn records(root: &Path) -> impl Iterator<Item = Record> {
    let names = fs::read_dir(root.join(CONTENT_AREA)).into_iter().flatten();
    names.filter_map(|name| checked::read::<Record>(&name.ok()?.path(), VERSION).ok().flatten())
}

/// An error and its cause.
fn told(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn path(key: &Key) -> PathBuf {
    let (area, digest): (_, &TreeDigest) = match key {
        Key::Definition(digest) => ("records/definition", digest),
        Key::Content(digest) => (CONTENT_AREA, digest),
    };
    Path::new(area).join(format!("{}.json", digest.hex()))
}

/// The record in a file, whatever its key.
///
/// # Errors
/// It cannot be read, is damaged, or has another version.
pub(crate) fn read_file(path: &Path) -> Result<Option<Record>, CheckedError> {
    checked::read(path, VERSION)
}

/// The record under a key; `None` where there is none.
pub(crate) fn read_record(store: &Store, key: &Key) -> Result<Option<Kept>, RecordError> {
    let path = store.root().join(path(key));
    let Some(kept) = checked::read::<Kept>(&path, VERSION)? else { return Ok(None) };
    let inconsistent = |what| RecordError::Inconsistent { path: path.clone(), what };
    match () {
        () if !answers(&kept.record, key) => Err(inconsistent("it belongs to another key")),
        () if kept.record.layer().is_none() => Err(inconsistent("its layers are not those of a step")),
        () => Ok(Some(kept)),
    }
}

/// Whether this is the record of a key.
fn answers(record: &Record, key: &Key) -> bool {
    match key {
        Key::Definition(digest) => *digest == record.definition,
        Key::Content(digest) => *digest == record.content,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use oci::{Entry, EntryKind, Layer, Metadata, Snapshot, Tree};
    use solver::{Made, Maker};

    use super::*;
    use crate::snapshot::{Meta, Stamp};

    struct Ground {
        root: tempfile::TempDir,
        cache: LocalCache,
        warnings: Arc<Mutex<Vec<String>>>,
        record: Record,
    }

    /// A cache that has one record, of a step that made a directory on `scratch`.
    fn ground() -> Ground {
        let root = tempfile::tempdir().expect("made");
        let store = Arc::new(Store::open(root.path()).expect("a store"));
        let entry = Entry { path: b"d".to_vec(), kind: EntryKind::Directory, metadata: Metadata::default() };
        let tree = Tree::new(vec![entry]).expect("one entry");
        let snapshot = Snapshot::default().with(Layer::Built(tree.digest()));
        let directory = store.area("snapshots").join(snapshot.digest().hex());
        fs::create_dir_all(directory.join("fs")).expect("made");
        let stamp = Stamp { seconds: 1, nanoseconds: 0 };
        let meta = Meta {
            layer: tree.digest(),
            parent: None,
            bytes: 0,
            stamp,
            opaque_root: false,
            owners: Vec::new(),
        };
        meta.write(&directory).expect("written");
        let tree_path = Path::new("trees").join(tree.digest().hex());
        store.write_atomic(&tree_path, &tree.to_bytes()).expect("written");
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let sink = warnings.clone();
        let events: Events = Arc::new(move |event| match event {
            Event::Warning(text) => sink.lock().expect("no panic").push(text),
            other => panic!("{other:?}"),
        });
        let digest = |text: &str| TreeDigest::from(blake3::hash(text.as_bytes()));
        let record = Record {
            definition: digest("definition"),
            content: digest("content"),
            parent: Snapshot::default().digest(),
            snapshot,
            pre_image: [("args".to_owned(), "mkdir d".to_owned())].into(),
            made: Made { by: Maker::default(), took_ms: 0 },
        };
        let cache = LocalCache::new(store, events);
        cache.store(&record);
        Ground { root, cache, warnings, record }
    }

    /// Files of the store are read-only, also to their owner.
    fn overwrite(path: &Path, bytes: &[u8]) {
        fs::remove_file(path).expect("removed");
        fs::write(path, bytes).expect("written");
    }

    impl Ground {
        /// The cache has nothing any more.
        fn empty(&self) {
            let keys = keys(&self.record);
            keys.iter().for_each(|key| fs::remove_file(self.root.path().join(path(key))).expect("removed"));
        }
    }

    fn keys(record: &Record) -> [Key; 2] {
        [Key::Definition(record.definition), Key::Content(record.content)]
    }

    #[test]
    fn a_record_is_found_under_both_its_keys_and_no_other() {
        let ground = ground();
        let swapped = [Key::Definition(ground.record.content), Key::Content(ground.record.definition)];
        let found = ground.cache.lookup(&[keys(&ground.record), swapped].concat());
        let record = || Some(ground.record.clone());
        assert_eq!(found, [record(), record(), None, None]);
        assert!(ground.warnings.lock().expect("no panic").is_empty());
    }

    #[test]
    fn no_flipped_bit_gives_another_record() {
        let ground = ground();
        let key = Key::Definition(ground.record.definition);
        let file = ground.root.path().join(path(&key));
        let bytes = fs::read(&file).expect("read");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x04;
            overwrite(&file, &damaged);
            let found = ground.cache.lookup(&[key]);
            assert!(found[0].is_none() || found[0].as_ref() == Some(&ground.record), "byte {at}");
        }
        assert!(ground.warnings.lock().expect("no panic").len() > bytes.len() / 2);
    }

    #[test]
    fn other_versions_cut_files_and_other_keys_files_are_misses_with_a_warning() {
        let ground = ground();
        let [definition, content] = keys(&ground.record).map(|key| ground.root.path().join(path(&key)));
        let text = fs::read_to_string(&definition).expect("read");
        let other_version = checked::encode(VERSION + 1, &"another shape").expect("text");
        let other_version = String::from_utf8(other_version).expect("JSON is text");
        for damaged in [&text[..text.len() / 2], "", "{}", &other_version] {
            overwrite(&definition, damaged.as_bytes());
            assert_eq!(ground.cache.lookup(&keys(&ground.record)), [None, Some(ground.record.clone())]);
        }
        let elsewhere = Key::Content(ground.record.definition);
        fs::copy(content, ground.root.path().join(path(&elsewhere))).expect("copied");
        assert_eq!(ground.cache.lookup(&[elsewhere]), [None]);
        let warnings = ground.warnings.lock().expect("no panic");
        assert_eq!(warnings.len(), 5, "{warnings:?}");
        assert!(warnings[3].contains(&format!("has version {}", VERSION + 1)), "{warnings:?}");
    }

    #[test]
    fn a_record_whose_layers_are_gone_is_a_miss() {
        for lost in ["snapshots", "trees"] {
            let ground = ground();
            let area = ground.root.path().join(lost);
            fs::rename(&area, ground.root.path().join("elsewhere")).expect("moved");
            assert_eq!(ground.cache.lookup(&keys(&ground.record)), [None, None], "{lost}");
        }
    }

    #[test]
    fn who_trusts_some_finds_nothing_that_stands_on_the_word_of_others() {
        let key = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        // Whom the build that fills the store believes, whether it takes the word of a remote cache, and who finds that.
        for (trusted, takes, finders, others) in [
            (&[][..], false, &[&[][..], &["a"], &["b"]][..], &[][..]),
            (&[], true, &[&[]], &[&["a"][..], &["a", "b"]]),
            (&["a"], false, &[&[], &["b"]], &[]),
            (&["a"], true, &[&[], &["a"], &["a", "b"]], &[&["b"]]),
            (&["a", "b"], true, &[&[], &["a", "b"]], &[&["a"]]),
        ] {
            let ground = ground();
            ground.empty();
            let cache_of = |words: &Words| ground.cache.clone().believing(words.clone());
            let filling = Words::trusting(key(trusted));
            takes.then(|| filling.take_remote());
            cache_of(&filling).store(&ground.record);
            let found = |names: &[&str]| {
                let words = Words::trusting(key(names));
                let cache = cache_of(&words);
                let found = cache.lookup(&keys(&ground.record))
                    == [Some(&ground.record), Some(&ground.record)].map(Option::<&Record>::cloned);
                // What stands on it stands on the same word.
                (found, words.so_far() == filling.so_far(), words.doubted().len())
            };
            assert!(finders.iter().all(|names| found(names) == (true, true, 0)), "{trusted:?} {takes}");
            let unfound = |names: &&[&str]| matches!(found(names), (false, _, 2));
            assert!(others.iter().all(unfound), "found under neither key, and noted: {trusted:?} {takes}");
        }
    }

    #[test]
    fn what_more_people_believe_is_not_overwritten_by_what_says_the_same() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let later = |record: &mut Record| record.made.by.at += 1;
        let other = |record: &mut Record| {
            record.snapshot = Snapshot::default().with(Layer::Built(record.definition));
        };
        type Change = fn(&mut Record);
        // On whose word what is there stands, and what says the same but for a change; whether what is there stays.
        let cases: [(&[&str], &[&str], Change, bool); 9] = [
            (&[], &["anybody"], |_| (), true),
            (&[], &["a"], |_| (), true),
            (&["a"], &["anybody"], |_| (), true),
            (&["a"], &["a", "b"], |_| (), true),
            (&["a"], &["b"], |_| (), false),
            (&["a"], &[], |_| (), false),
            (&["anybody"], &["a"], |_| (), false),
            (&[], &["anybody"], later, false),
            (&[], &["anybody"], other, false),
        ];
        for (there, then, change, stays) in cases {
            let ground = ground();
            ground.empty();
            let kept = |words| Kept { record: ground.record.clone(), words: names(words) };
            let (there, mut then) = (kept(there), kept(then));
            change(&mut then.record);
            ground.cache.write(&there);
            ground.cache.write(&then);
            let left = if stays { &there } else { &then };
            for key in keys(&ground.record) {
                let found = read_record(&ground.cache.store, &key).expect("readable").expect("there");
                let case = format!("{:?}, then {:?}", there.words, then.words);
                assert_eq!((&found.record, &found.words), (&left.record, &left.words), "{case}");
            }
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_a_warning() {
        let ground = ground();
        for area in ["records/definition", "records/content"] {
            let area = ground.root.path().join(area);
            fs::remove_dir_all(&area).expect("removed");
            fs::write(&area, "in the way").expect("written");
        }
        ground.cache.store(&ground.record);
        assert_eq!(ground.warnings.lock().expect("no panic").len(), 2);
    }
}

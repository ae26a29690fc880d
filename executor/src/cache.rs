//! Cache records in the store: implements [`solver::CacheBackend`].
//!
//! A record is one JSON file under each of its two keys, `ROOT/records/{definition,content}/HEX.json`, written by rename
//! after everything it names. It holds its own digest, so a damaged file is found out, not believed. Whatever is wrong
//! with one (damage, another version, a layer that is gone) makes it a miss: a cache never fails a build.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci::{ContentDigest, TreeDigest, store::Store};
use serde::{Deserialize, Serialize};
use solver::{CacheBackend, Event, Key, Record};

use crate::snapshot::{Events, holds_layer};

/// Version of the file format. Another one is a miss.
const VERSION: u32 = 2;

/// The cache of one store.
#[derive(Clone)]
pub struct LocalCache {
    store: Arc<Store>,
    events: Events,
}

/// The content of a record's file.
#[derive(Serialize, Deserialize)]
struct RecordFile {
    version: u32,
    /// Of the record's compact JSON.
    digest: ContentDigest,
    record: Record,
}

/// Why a record's file is of no use.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is damaged: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has version {0}")]
    Version(u32),
    #[error("its digest is wrong")]
    Digest,
    #[error("it belongs to another key, or its layers are not those of a step")]
    Inconsistent,
}

impl LocalCache {
    /// The records of a store; damaged ones are warned of through `events`.
    pub fn new(store: Arc<Store>, events: Events) -> Self {
        Self { store, events }
    }

    fn read(&self, key: &Key) -> Option<Record> {
        let path = self.store.root().join(path(key));
        read_record(&path, key).unwrap_or_else(|error| {
            self.warn(format!("the cache record {} is not used: {error}", path.display()));
            None
        })
    }

    fn warn(&self, warning: String) {
        (self.events)(Event::Warning(warning));
    }
}

impl CacheBackend for LocalCache {
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>> {
        // Records of one build share most of their layers.
        let mut held = BTreeSet::new();
        let mut is_held = |record: &Record| {
            record.snapshot.chain().all(|(chain, layer)| {
                held.contains(&chain) || (holds_layer(&self.store, &chain, layer) && held.insert(chain))
            })
        };
        keys.iter().map(|key| self.read(key).filter(&mut is_held)).collect()
    }

    fn store(&self, record: &Record) {
        let bytes = match encode(record) {
            Ok(bytes) => bytes,
            Err(error) => return self.warn(format!("a step is not cached: {error}")),
        };
        for key in [Key::Content(record.content), Key::Definition(record.definition)] {
            if let Err(error) = self.store.write_atomic(&path(&key), &bytes) {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                self.warn(format!("a step is not cached: {error}{}", cause.unwrap_or_default()));
            }
        }
    }
}

fn path(key: &Key) -> PathBuf {
    let (area, digest): (_, &TreeDigest) = match key {
        Key::Definition(digest) => ("records/definition", digest),
        Key::Content(digest) => ("records/content", digest),
    };
    Path::new(area).join(format!("{}.json", digest.hex()))
}

fn encode(record: &Record) -> serde_json::Result<Vec<u8>> {
    let digest = digest(record)?;
    serde_json::to_vec(&RecordFile { version: VERSION, digest, record: record.clone() })
}

fn digest(record: &Record) -> serde_json::Result<ContentDigest> {
    serde_json::to_vec(record).map(|bytes| ContentDigest::of(&bytes))
}

fn read_record(path: &Path, key: &Key) -> Result<Option<Record>, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    // The rest of another version's file may look different.
    let Versioned { version } = serde_json::from_slice(&bytes)?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let file: RecordFile = serde_json::from_slice(&bytes)?;
    if digest(&file.record)? != file.digest {
        return Err(RecordError::Digest);
    }
    let is_asked_for = match key {
        Key::Definition(digest) => *digest == file.record.definition,
        Key::Content(digest) => *digest == file.record.content,
    };
    match is_asked_for && file.record.layer().is_some() {
        true => Ok(Some(file.record)),
        false => Err(RecordError::Inconsistent),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use oci::{Entry, EntryKind, Layer, Metadata, Snapshot, Tree};
    use solver::{Made, Maker};

    use super::*;

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
        let meta = "{\"version\":1,\"layer\":\"LAYER\",\"stamp\":{\"seconds\":1,\"nanoseconds\":0},\
                    \"opaque_root\":false,\"owners\":[]}";
        fs::write(directory.join("meta.json"), meta.replace("LAYER", &tree.digest().to_string()))
            .expect("written");
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
        let other_version = text.replace("\"version\":1", "\"version\":2");
        for damaged in [&text[..text.len() / 2], "", "{}", &other_version] {
            overwrite(&definition, damaged.as_bytes());
            assert_eq!(ground.cache.lookup(&keys(&ground.record)), [None, Some(ground.record.clone())]);
        }
        let elsewhere = Key::Content(ground.record.definition);
        fs::copy(content, ground.root.path().join(path(&elsewhere))).expect("copied");
        assert_eq!(ground.cache.lookup(&[elsewhere]), [None]);
        let warnings = ground.warnings.lock().expect("no panic");
        assert_eq!(warnings.len(), 5, "{warnings:?}");
        assert!(warnings[3].contains("version 2"), "{warnings:?}");
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

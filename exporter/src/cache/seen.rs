//! What this build has read of remote caches, byte by byte: whoever writes one passes records on as they came, so that
//! their signatures stay good, and writes nothing that is there already.
//!
//! Whoever reads a cache notes here what it found and verified. Lives as long as the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci::{BlobOrigin, TreeDigest};
use solver::Record;

/// A record as it stands in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRecord {
    /// What it says.
    pub record: Record,
    /// The document that says it.
    pub document: Arc<[u8]>,
    /// Ed25519 signature of the document, where it has one.
    pub signature: Option<Vec<u8>>,
}

/// A bundle as it stands in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenBundle {
    /// Its document.
    pub document: Arc<[u8]>,
    /// The good records in it.
    pub records: Vec<SeenRecord>,
}

/// What has been read. Cheap to clone; a clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By content and definition key: the record, and the places that have it.
    records: BTreeMap<(TreeDigest, TreeDigest), (SeenRecord, BTreeSet<BlobOrigin>)>,
    /// By place and name.
    bundles: BTreeMap<(BlobOrigin, String), SeenBundle>,
}

impl Seen {
    /// A good record was read at a place. What was noted first stands.
    pub fn note(&self, place: &BlobOrigin, record: SeenRecord) {
        let mut state = self.lock();
        let key = (record.record.content, record.record.definition);
        let (known, places) =
            state.records.entry(key).or_insert_with(|| (record.clone(), BTreeSet::default()));
        if known.document == record.document {
            places.insert(place.clone());
        }
    }

    /// A bundle was read at a place; its good records are noted, too.
    pub fn note_bundle(&self, place: &BlobOrigin, name: &str, bundle: SeenBundle) {
        bundle.records.iter().for_each(|record| self.note(place, record.clone()));
        self.lock().bundles.insert((place.clone(), name.to_owned()), bundle);
    }

    /// This very record as some cache has it, and whether it is known to be at `place`.
    pub fn record(&self, record: &Record, place: &BlobOrigin) -> Option<(SeenRecord, bool)> {
        let state = self.lock();
        let (seen, places) = state.records.get(&(record.content, record.definition))?;
        (seen.record == *record).then(|| (seen.clone(), places.contains(place)))
    }

    /// The bundle of a name that was read at a place.
    pub fn bundle(&self, place: &BlobOrigin, name: &str) -> Option<SeenBundle> {
        self.lock().bundles.get(&(place.clone(), name.to_owned())).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

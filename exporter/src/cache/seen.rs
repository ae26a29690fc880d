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

use super::{bundle::SignedRecord, record::RemoteRecord};

/// A record as it stands in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRecord {
    /// What it says.
    pub remote: RemoteRecord,
    /// The bytes that say it.
    pub signed: SignedRecord,
}

/// A bundle as it stands in a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenBundle {
    /// Its document.
    pub document: Vec<u8>,
    /// The records in it that may be believed.
    pub records: Vec<Arc<SeenRecord>>,
}

/// What has been read. Cheap to clone; a clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By content and definition key: the record, and the places that have it.
    records: BTreeMap<(TreeDigest, TreeDigest), (Arc<SeenRecord>, BTreeSet<BlobOrigin>)>,
    /// By place and name.
    bundles: BTreeMap<(BlobOrigin, String), Arc<SeenBundle>>,
}

impl Seen {
    /// A record that may be believed was read at a place. What was noted first stands.
    pub fn note(&self, place: &BlobOrigin, seen: Arc<SeenRecord>) {
        let mut state = self.lock();
        let key = (seen.remote.record.content, seen.remote.record.definition);
        let known = state.records.entry(key).or_insert_with(|| (Arc::clone(&seen), BTreeSet::default()));
        if known.0.signed == seen.signed {
            known.1.insert(place.clone());
        }
    }

    /// A bundle was read at a place; its records are noted, too.
    pub fn note_bundle(&self, place: &BlobOrigin, name: &str, bundle: SeenBundle) {
        bundle.records.iter().for_each(|seen| self.note(place, Arc::clone(seen)));
        self.lock().bundles.insert((place.clone(), name.to_owned()), Arc::new(bundle));
    }

    /// This very record as some caches have it, and which. Where its base layers can be had makes no difference.
    pub fn record(&self, record: &Record) -> Option<(Arc<SeenRecord>, BTreeSet<BlobOrigin>)> {
        let state = self.lock();
        let (seen, places) = state.records.get(&(record.content, record.definition))?;
        is_same(&seen.remote.record, record).then(|| (Arc::clone(seen), places.clone()))
    }

    /// Every record, and a place that has it.
    pub fn records(&self) -> Vec<(Arc<SeenRecord>, BlobOrigin)> {
        let state = self.lock();
        let records = state.records.values();
        records.filter_map(|(seen, places)| Some((Arc::clone(seen), places.first()?.clone()))).collect()
    }

    /// The bundle of a name that was read at a place.
    pub fn bundle(&self, place: &BlobOrigin, name: &str) -> Option<Arc<SeenBundle>> {
        self.lock().bundles.get(&(place.clone(), name.to_owned())).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two records say the same of a step, whoever ran it.
fn is_same(one: &Record, other: &Record) -> bool {
    let Record { definition, content, parent, snapshot, pre_image, made: _ } = one;
    (definition, content, parent) == (&other.definition, &other.content, &other.parent)
        && *pre_image == other.pre_image
        && snapshot.layers.len() == other.snapshot.layers.len()
        && snapshot.digest() == other.snapshot.digest()
}

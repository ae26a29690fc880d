//! On whose word results are remembered.
//!
//! What a build has run itself it knows. What a remote cache has told is somebody's word, and so is everything that stands on
//! it: the names of those are kept with a record, and whoever trusts only some finds no record that stands on the word of
//! others. Nobody follows which step stood on which: once a build has taken somebody's word, all that it remembers from then on
//! does. That is more than need be, and never less.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci::TreeDigest;
use solver::Record;

/// Stands for the word of whoever can write a cache.
const ANYBODY: &str = "anybody";

/// Whether everybody who believes what stands on the word of `others` believes what stands on these words.
pub(super) fn reach_as_far(words: &BTreeSet<String>, others: &BTreeSet<String>) -> bool {
    others.contains(ANYBODY) || words.is_subset(others)
}

/// Whom a build believes, and whose word it has taken. Cheap to clone; a clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Words {
    /// Keys that are trusted, by name; none is everybody.
    trusted: Arc<BTreeSet<String>>,
    taken: Arc<Mutex<BTreeSet<String>>>,
    doubted: Arc<Mutex<Vec<TreeDigest>>>,
}

impl Words {
    /// Those of a build that believes the owners of these keys; everybody, if there are none.
    pub fn trusting(trusted: BTreeSet<String>) -> Self {
        Self { trusted: Arc::new(trusted), ..Self::default() }
    }

    /// A remote cache has told something: one that is trusted has signed it, or anybody may have written it.
    pub fn take_remote(&self) {
        match self.trusted.is_empty() {
            true => drop(self.taken().insert(ANYBODY.to_owned())),
            false => self.take(&self.trusted),
        }
    }

    /// Something is used that stands on the word of these.
    pub(super) fn take(&self, words: &BTreeSet<String>) {
        self.taken().extend(words.iter().cloned());
    }

    /// Whether to believe what stands on the word of these.
    pub(super) fn believe(&self, words: &BTreeSet<String>) -> bool {
        self.trusted.is_empty() || words.is_subset(&self.trusted)
    }

    /// A record was found and not used, since it stands on the word of others.
    pub(super) fn doubt(&self, record: &Record) {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner).push(record.content);
    }

    /// Content keys of what the store remembers and this build does not believe, as far as it has asked for it, for `explain`.
    pub fn doubted(&self) -> Vec<TreeDigest> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// On whose word everything stands that is remembered from now on.
    pub(super) fn so_far(&self) -> BTreeSet<String> {
        self.taken().clone()
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

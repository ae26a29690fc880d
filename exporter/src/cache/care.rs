//! What people do about a remote cache: look what is in it, and remove what is not worth its room.
//!
//! A [`survey`] reads every artifact once; [`choose`] decides, without asking anybody, what a [`Keep`] lets go; [`prune`]
//! removes that. Nothing here is in the way of a build: what is removed is a miss for whoever asks next, a record that a
//! build writes at the same time stays or is written again, and what is no artifact of ours is never touched.
//!
//! A registry does not tell when something was read last. What is known is when a record was made, and that whoever wrote
//! a bundle has used all that is in it: so a bundle is as old as its newest record, and a record as old as itself or the
//! newest bundle that names it, whichever is younger. A bundle therefore always goes before any of its records.

mod choose;
mod directory;
mod registry;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use oci::{DiffId, Layer, Sha256Digest, TreeDigest};
use solver::{Cancel, Key};

use super::{
    names::{self, Name},
    record::{Described, RemoteRecord},
    storage::{Named, Storage, StorageError},
};
use crate::parallel::in_parallel;

pub use self::{
    choose::{Keep, choose, distinct},
    survey::{survey, survey_of},
};

/// Requests that are under way at the same time.
const AT_ONCE: usize = 16;

/// A place for a cache that tells what it has, and from which things can be removed.
pub trait Tidy: Storage {
    /// The names of everything there, sorted; of things that are not ours, too.
    ///
    /// # Errors
    /// It cannot be asked.
    fn names(&self, cancel: &Cancel) -> Result<Vec<String>, StorageError>;

    /// What a name stands for; `None` where it stands for nothing.
    ///
    /// # Errors
    /// It cannot be had.
    fn look(&self, name: &str, cancel: &Cancel) -> Result<Option<Standing>, StorageError>;

    /// Removes a document and the names that stand for it. A name that stands for another one by now stays, and what is
    /// gone already is fine.
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove(&self, names: &[String], digest: &Sha256Digest, cancel: &Cancel) -> Result<(), StorageError>;

    /// Frees the room of blobs that nothing names, where that is not the place's own affair.
    ///
    /// # Errors
    /// A blob cannot be removed.
    fn sweep(&self, cancel: &Cancel) -> Result<Swept, StorageError>;
}

/// What a name stands for.
#[derive(Debug)]
pub struct Standing {
    /// SHA-256 of the manifest.
    pub digest: Sha256Digest,
    /// Length of the manifest in bytes.
    pub size: u64,
    /// What it says, or why that cannot be told.
    pub named: Result<Named, StorageError>,
}

/// What became of blobs that nothing names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// They are gone.
    Freed {
        /// How many.
        count: usize,
        /// Their bytes.
        bytes: u64,
        /// Bytes of those that somebody may be about to name, and which stay until the next time.
        young: u64,
    },
    /// They go when the registry collects its garbage.
    ByRegistry,
}

/// What is in a cache.
#[derive(Debug, Default)]
pub struct Survey {
    /// Its documents, in the order of their first names.
    pub entries: Vec<Entry>,
    /// What builders have said of steps that they run, or ran.
    pub announcements: Vec<Announced>,
    /// Names of what is not ours, or of another version.
    pub others: Vec<String>,
}

/// What a builder has said of a step. Whether that one still lives cannot be told by looking once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// What it is found under.
    pub names: Vec<String>,
    /// SHA-256 of its manifest.
    pub digest: Sha256Digest,
}

/// A document of a cache.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is found under, sorted.
    pub names: Vec<String>,
    /// SHA-256 of its manifest.
    pub digest: Sha256Digest,
    /// Length of its manifest in bytes.
    pub size: u64,
    /// What it keeps alive, its content included: digest and length.
    pub blobs: BTreeMap<Sha256Digest, u64>,
    /// What it holds.
    pub content: Content,
}

/// What a document holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// What one step left.
    Record(Box<Kept>),
    /// What a build has used.
    Bundle(Vec<Kept>),
    /// Nothing that can be used: why.
    Unusable(String),
}

/// A record as it lies in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it says.
    pub remote: RemoteRecord,
    /// Whether it is signed.
    pub seal: Seal,
}

/// Whether somebody answers for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Nobody does.
    Missing,
    /// It is signed, and no key was given to tell by whom.
    Unverified,
    /// One of the keys that are trusted has signed it.
    Trusted,
}

impl Kept {
    /// The diff IDs of the file system, as an image on it has them.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        let RemoteRecord { record, layers, .. } = &self.remote;
        let layer_of = |layer: &Layer| match layer {
            Layer::Base(base) => Some(base.diff_id),
            // Nothing is said of empty layers, which no image has.
            Layer::Built(tree) => layers.get(tree).map(|described| described.diff_id),
        };
        record.snapshot.layers.iter().filter_map(layer_of).collect()
    }

    /// The layer that the step itself made; `None` where it wrote nothing.
    pub fn own_layer(&self) -> Option<(&TreeDigest, &Described)> {
        match self.remote.record.snapshot.layers.last()? {
            Layer::Built(tree) => self.remote.layers.get_key_value(tree),
            Layer::Base(_) => None,
        }
    }

    /// Bytes of the blobs of its own layer.
    pub fn own_bytes(&self) -> u64 {
        let Some((_, Described { blobs, tree_blob, .. })) = self.own_layer() else { return 0 };
        let sizes: BTreeMap<_, _> =
            blobs.values().chain([tree_blob]).map(|blob| (blob.digest, blob.size)).collect();
        sizes.values().sum()
    }

    /// When the build began that made it, Unix seconds.
    pub fn made_at(&self) -> u64 {
        self.remote.record.made.by.at
    }
}

impl Entry {
    /// The records it holds.
    pub fn records(&self) -> &[Kept] {
        match &self.content {
            Content::Record(record) => std::slice::from_ref(record),
            Content::Bundle(records) => records,
            Content::Unusable(_) => &[],
        }
    }

    /// When the newest of its records was made, Unix seconds; the beginning of time where it holds none.
    pub fn made_at(&self) -> u64 {
        self.records().iter().map(Kept::made_at).max().unwrap_or(0)
    }

    /// Whether one of its names is that of a key.
    pub fn is_named(&self, key: &Key) -> bool {
        self.names.iter().any(|name| names::parse(name) == Some(Name::Record(*key)))
    }
}

/// Removes documents, in this order, and all announcements, and frees the room of what nothing names then, where that is not the
/// place's own affair. Who runs a step just now announces it again in some seconds, and nobody who follows him gives him up
/// before.
///
/// # Errors
/// Something cannot be removed; what was removed before is gone.
pub fn prune(
    place: &dyn Tidy,
    going: &[&Entry],
    announcements: &[Announced],
    cancel: &Cancel,
) -> Result<Swept, StorageError> {
    in_parallel(going, AT_ONCE, |entry| place.remove(&entry.names, &entry.digest, cancel))?;
    in_parallel(announcements, AT_ONCE, |Announced { names, digest }| place.remove(names, digest, cancel))?;
    place.sweep(cancel)
}

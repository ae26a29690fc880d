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

use std::collections::BTreeSet;

use oci::{Descriptor, DiffId, Layer, RemoteLayer, Sha256Digest, TreeDigest};
use solver::{Cancel, Record};

use super::storage::{Artifact, Storage, StorageError};

pub use self::choose::{Keep, choose, distinct};

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
    fn look(&self, name: &str, cancel: &Cancel) -> Result<Option<Seen>, StorageError>;

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
pub struct Seen {
    /// SHA-256 of the manifest.
    pub digest: Sha256Digest,
    /// Length of the manifest in bytes.
    pub size: u64,
    /// What it is.
    pub what: What,
}

/// Whether a document is one of ours.
#[derive(Debug)]
pub enum What {
    /// It is.
    Artifact(Artifact),
    /// It should be, by its type, and is damaged: why.
    Damaged(String),
    /// It is an image, or something else.
    Other,
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

/// A document of a cache.
#[derive(Debug)]
pub struct Entry {
    /// What it is found under, sorted.
    pub names: Vec<String>,
    /// SHA-256 of its manifest.
    pub digest: Sha256Digest,
    /// Length of its manifest in bytes.
    pub size: u64,
    /// What it keeps alive: its own document, and blobs.
    pub blobs: Vec<Descriptor>,
    /// Whether it is signed.
    pub seal: Seal,
    /// What it holds.
    pub content: Content,
}

/// What a document holds.
#[derive(Debug)]
pub enum Content {
    /// What one step left.
    Record(Box<Kept>),
    /// What a build has used.
    Bundle(Vec<Kept>),
    /// Nothing that can be used: why.
    Unusable(String),
}

/// A record with what is known of its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The record.
    pub record: Record,
    /// Its built layers, each once, the lowest first; none for empty ones.
    pub layers: Vec<RemoteLayer>,
    /// Whether it is signed.
    pub seal: Seal,
}

/// Whether somebody answers for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Nobody does.
    None,
    /// It is signed, and no key was given to tell by whom.
    Unverified,
    /// One of the keys that are trusted has signed it.
    Trusted,
    /// It is signed with another key, or is not what was signed.
    Wrong,
}

impl Kept {
    /// The diff IDs of the file system, as an image on it has them. `None` where the record does not tell one.
    pub fn diff_ids(&self) -> Option<Vec<DiffId>> {
        let built = |tree: &TreeDigest| {
            self.layers.iter().find(|layer| layer.tree == *tree).map(|layer| layer.diff_id)
        };
        let layers = self.record.snapshot.layers.iter().filter(|layer| !layer.is_empty());
        layers
            .map(|layer| match layer {
                Layer::Base(base) => Some(base.diff_id),
                Layer::Built(tree) => built(tree),
            })
            .collect()
    }

    /// The layer that the step itself made; `None` for an empty one.
    pub fn own_layer(&self) -> Option<&RemoteLayer> {
        match self.record.snapshot.layers.last()? {
            Layer::Built(tree) => self.layers.iter().find(|layer| layer.tree == *tree),
            Layer::Base(_) => None,
        }
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
        self.records().iter().map(|kept| kept.record.made.by.at).max().unwrap_or(0)
    }
}

/// What is in a cache.
#[derive(Debug, Default)]
pub struct Survey {
    /// Its documents, in the order of their first names.
    pub entries: Vec<Entry>,
    /// Names of what is not ours.
    pub others: Vec<String>,
}

impl Survey {
    /// The blobs of all documents, each once.
    pub fn blobs(&self) -> BTreeSet<Sha256Digest> {
        self.entries.iter().flat_map(|entry| &entry.blobs).map(|blob| blob.digest).collect()
    }
}

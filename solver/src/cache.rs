//! What is remembered of a step, and under which keys. The backends (local store, registry) are elsewhere.

use std::{collections::BTreeMap, fmt};

use oci::{Layer, Snapshot, TreeDigest};
use serde::{Deserialize, Serialize};

/// A name under which a result is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "key")]
pub enum Key {
    /// Hash of the operation and of its inputs' definition keys: known before anything runs.
    Definition(TreeDigest),
    /// Hash of the operation and of the content of its inputs: known once they are there.
    Content(TreeDigest),
}

/// The result of a step that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its definition key.
    pub definition: TreeDigest,
    /// Its content key.
    pub content: TreeDigest,
    /// Digest of the file system it ran on.
    pub parent: TreeDigest,
    /// The whole file system that came out, one layer a step.
    pub snapshot: Snapshot,
    /// What the content key was made of, for `explain`: field name to value or digest.
    pub pre_image: BTreeMap<String, String>,
    /// Who made it, when, and how long that took. No part of any identity.
    pub made: Made,
}

/// Where a result comes from, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The build that did it.
    pub by: Maker,
    /// How long the step ran, in milliseconds.
    pub took_ms: u64,
}

/// A build, as it signs the records it makes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// Name and version of the builder: `layerwright 0.1.0`.
    pub builder: String,
    /// Name of the machine.
    pub host: String,
    /// ID of the build in the history of its store.
    pub build: String,
    /// When the build began, Unix seconds.
    pub at: u64,
}

/// What is known of a step that the cache answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Its definition key.
    pub definition: TreeDigest,
    /// Who made it; `None` where the same build did (an equal step ran), or where the answer is the chain of a later
    /// step and the step's own record is gone.
    pub made: Option<Made>,
    /// What the distant cache is called that the answer is from; `None` where it is from a near one, or from this build.
    pub from: Option<String>,
}

/// What is known of a step that the cache does not answer, before it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// Its definition key.
    pub definition: TreeDigest,
    /// Its content key.
    pub content: TreeDigest,
    /// What the content key was made of; see [`Record::pre_image`].
    pub pre_image: BTreeMap<String, String>,
    /// Why the cache was not even asked, if it was not.
    pub forced: bool,
    /// Who made the result that is remembered, where that is too old to count (`--cache-ttl`).
    pub expired: Option<Made>,
}

/// Whether a step is reserved; see [`CacheBackend::claim`](crate::traits::CacheBackend::claim).
pub enum Claim {
    /// It is, as long as this value lives.
    Held(Box<dyn Send>),
    /// Somebody else has it: who, in words.
    Busy(String),
    /// The cache keeps nobody away from anything.
    NotKept,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(_) => write!(f, "Held"),
            Self::Busy(owner) => write!(f, "Busy({owner:?})"),
            Self::NotKept => write!(f, "NotKept"),
        }
    }
}

impl Record {
    /// The layer of the step itself, if the record is consistent: it was made here, on top of a snapshot that has the
    /// parent's digest.
    pub fn layer(&self) -> Option<&Layer> {
        let (layer, below) = self.snapshot.layers.split_last()?;
        let below = Snapshot { layers: below.to_vec() };
        (matches!(layer, Layer::Built(_)) && below.digest() == self.parent).then_some(layer)
    }
}

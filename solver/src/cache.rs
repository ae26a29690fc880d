//! What is remembered of a step, and under which keys. The backends (local store, registry) are elsewhere.

use std::collections::BTreeMap;

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
    /// The builder that ran it, `layerwright 0.1.0`.
    pub builder: String,
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

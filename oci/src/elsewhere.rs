//! Built layers whose bytes are in a remote cache and, as far as this process knows, nowhere on this machine.
//!
//! Whoever reads a remote cache notes here what it says of each layer; whoever needs a layer's tree, or its blob, finds out
//! here where to get it. Nothing is downloaded before that. What turns out to be gone or wrong there is *lost*: from then on
//! nobody is told of it any more, and the records that name it are misses. Lives as long as the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    descriptor::Descriptor,
    digest::{DiffId, TreeDigest},
    layer::BlobOrigin,
};

/// What a remote cache says of a built layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLayer {
    /// Its own identity.
    pub tree: TreeDigest,
    /// SHA-256 of its tar, with the times of [`crate::tree`] as they are.
    pub diff_id: DiffId,
    /// Its blobs, by the id of the encoder that made them; at least one.
    pub blobs: BTreeMap<String, Descriptor>,
    /// The blob that holds the tree in its canonical encoding.
    pub tree_blob: Descriptor,
    /// Where all these blobs can be had.
    pub origin: BlobOrigin,
}

/// The layers that remote caches have. Cheap to clone; a clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct RemoteLayers {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    layers: BTreeMap<TreeDigest, RemoteLayer>,
    lost: BTreeSet<TreeDigest>,
}

impl RemoteLayers {
    /// Notes a layer; what was noted first stands. Nothing happens to one that is lost.
    pub fn note(&self, layer: RemoteLayer) {
        let mut state = self.lock();
        if !state.lost.contains(&layer.tree) {
            state.layers.entry(layer.tree).or_insert(layer);
        }
    }

    /// Where the layer with this tree can be had.
    pub fn get(&self, tree: &TreeDigest) -> Option<RemoteLayer> {
        self.lock().layers.get(tree).cloned()
    }

    /// The layer is not to be had, or not what it should be.
    pub fn lose(&self, tree: TreeDigest) {
        let mut state = self.lock();
        state.layers.remove(&tree);
        state.lost.insert(tree);
    }

    /// Whether the layer has been lost.
    pub fn is_lost(&self, tree: &TreeDigest) -> bool {
        self.lock().lost.contains(tree)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

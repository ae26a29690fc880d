//! What is of steps on a target's own chain: the records of the file systems that its vertices have come to (`mode=min`), and
//! their layers, which an image has. All other layers are the cache's alone.

use std::collections::BTreeSet;

use oci::{Layer, Snapshot, TreeDigest};
use solver::{Graph, VertexId};

use crate::ahead::own_chain;

/// The targets' own chains, and what file systems of them are known.
#[derive(Debug, Clone, Default)]
pub struct OwnChain {
    vertices: BTreeSet<VertexId>,
    settled: BTreeSet<TreeDigest>,
    layers: BTreeSet<TreeDigest>,
}

impl OwnChain {
    /// The chains of a graph's targets.
    pub fn of(graph: &Graph) -> Self {
        Self { vertices: own_chain(graph), settled: BTreeSet::new(), layers: BTreeSet::new() }
    }

    /// What a vertex has come to; says whether that is new, and of a chain.
    pub(super) fn settle(&mut self, id: VertexId, snapshot: &Snapshot) -> bool {
        let is_new = self.vertices.contains(&id) && self.settled.insert(snapshot.digest());
        if is_new {
            self.layers.extend(snapshot.layers.iter().map(Layer::tree));
        }
        is_new
    }

    /// Whether a file system is one of theirs.
    pub(super) fn has(&self, snapshot: &Snapshot) -> bool {
        self.settled.contains(&snapshot.digest())
    }

    /// Whether a layer is in one of theirs.
    pub(super) fn has_layer(&self, tree: &TreeDigest) -> bool {
        self.layers.contains(tree)
    }
}

//! Which records are of steps on a target's own chain (`mode=min`): those of the file systems that its vertices have come to.

use std::collections::BTreeSet;

use oci::{Snapshot, TreeDigest};
use solver::{Graph, VertexId};

use crate::ahead::own_chain;

/// The targets' own chains, and what file systems of them are known.
#[derive(Debug, Clone, Default)]
pub struct OwnChain {
    vertices: BTreeSet<VertexId>,
    settled: BTreeSet<TreeDigest>,
}

impl OwnChain {
    /// The chains of a graph's targets.
    pub fn of(graph: &Graph) -> Self {
        Self { vertices: own_chain(graph), settled: BTreeSet::new() }
    }

    /// What a vertex has come to; says whether that is new, and of a chain.
    pub(super) fn settle(&mut self, id: VertexId, snapshot: &Snapshot) -> bool {
        self.vertices.contains(&id) && self.settled.insert(snapshot.digest())
    }

    /// Whether a file system is one of theirs.
    pub(super) fn has(&self, snapshot: &Snapshot) -> bool {
        self.settled.contains(&snapshot.digest())
    }
}

//! Sealing while the build still runs: tells sealers of each layer that an image will have, as soon as that is certain.
//!
//! A layer is certain once the file system of a step on a target's own chain is known, whether the step ran or the cache
//! had it; those of base images are from the beginning. What is merely copied from never becomes a blob.

use std::{collections::BTreeSet, sync::Arc};

use oci::Snapshot;
use solver::{Event, Graph, Op, VertexId, key::source_snapshot};

use crate::seal::Sealer;

/// Offers the layers of a build's targets to sealers.
pub struct SealAhead<'a> {
    sealers: &'a [Arc<Sealer>],
    wanted: BTreeSet<VertexId>,
}

impl<'a> SealAhead<'a> {
    /// Offers the base layers of the targets of `graph`, and will offer what [`SealAhead::take`] hears of.
    pub fn new(sealers: &'a [Arc<Sealer>], graph: &Graph) -> Self {
        let ahead = Self { sealers, wanted: own_chain(graph) };
        for id in &ahead.wanted {
            if let Op::Source(source) = &graph.vertex(*id).op {
                ahead.offer(&source_snapshot(source));
            }
        }
        ahead
    }

    /// Hears of what the scheduler does. Does not block.
    pub fn take(&self, event: &Event) {
        if let Event::Settled(id, snapshot) = event
            && self.wanted.contains(id)
        {
            self.offer(snapshot);
        }
    }

    fn offer(&self, snapshot: &Snapshot) {
        self.sealers.iter().for_each(|sealer| sealer.offer(snapshot));
    }
}

/// The vertices whose layers the targets of a graph have for their own.
pub(crate) fn own_chain(graph: &Graph) -> BTreeSet<VertexId> {
    let parent = |id: &VertexId| graph.vertex(*id).inputs.first().copied();
    let chain = |id| std::iter::successors(Some(id), parent);
    let wanted: BTreeSet<_> = graph.targets.iter().flat_map(|target| chain(target.vertex)).collect();
    // The only layer of what a merge lays on top is one of its own.
    let merged = |id: &VertexId| match graph.vertex(*id) {
        vertex if vertex.op == Op::Merge => vertex.inputs.get(1).copied(),
        _ => None,
    };
    let merged: Vec<_> = wanted.iter().filter_map(merged).collect();
    wanted.into_iter().chain(merged).collect()
}

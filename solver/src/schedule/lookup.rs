//! Phase 2: what the caches know under the definition keys of a build, all asked at once.

use std::collections::{BTreeMap, BTreeSet};

use oci::{Layer, Snapshot};

use super::{pool::World, steps::Steps};
use crate::{
    cache::{Key, Made, Record},
    graph::VertexId,
};

/// A result that is remembered for the definition of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The file system: a layer for every step of the chain, on top of the graph's own base.
    pub(super) snapshot: Snapshot,
    /// Who made its topmost layer.
    pub(super) made: Made,
}

/// What the caches, the first one first, have under the definition keys; only what can be a result of its step, and
/// is not too old.
pub(super) fn look_up(steps: &Steps, world: &World) -> BTreeMap<VertexId, Remembered> {
    let mut missing: Vec<VertexId> = steps.looked_up_by_definition().collect();
    let mut found = BTreeMap::new();
    for cache in world.caches {
        if missing.is_empty() {
            break;
        }
        let keys: Vec<Key> = missing.iter().map(|id| Key::Definition(steps.definition(*id))).collect();
        let mut records = cache.lookup(&keys).into_iter();
        missing.retain(|id| {
            let fresh = records.next().flatten().filter(|record| record.made.by.at >= world.oldest);
            match fresh.and_then(|record| fitting(steps, *id, record)) {
                Some(remembered) => found.insert(*id, remembered).is_some(),
                None => true,
            }
        });
    }
    if world.oldest > 0 {
        keep_fresh(steps, &mut found);
    }
    found
}

/// A result tells its own age and not that of what it was made of. Where age matters it counts only if everything below
/// it is known to be young enough, too.
fn keep_fresh(steps: &Steps, found: &mut BTreeMap<VertexId, Remembered>) {
    let mut fresh = BTreeSet::new();
    for id in steps.order() {
        let below = steps.inputs(id).iter().all(|input| fresh.contains(input));
        let is_fresh = steps.source(id).is_some() || (found.contains_key(&id) && below);
        if is_fresh {
            fresh.insert(id);
        }
    }
    found.retain(|id, _| fresh.contains(id));
}

/// What a record says, if it can be the result of a step: it has a layer for every step of the chain on top of the very
/// layers of the graph's base. Those are taken from the graph, since the same layer may now come from another place
/// or be compressed in another way.
fn fitting(steps: &Steps, id: VertexId, record: Record) -> Option<Remembered> {
    let base = steps.base_layers(id);
    let layers = &record.snapshot.layers;
    let fits = record.definition == steps.definition(id)
        && record.layer().is_some()
        && layers.len() == steps.length(id)
        && layers.iter().zip(base).all(|(layer, base)| layer.tree() == base.tree())
        && layers[base.len()..].iter().all(|layer| matches!(layer, Layer::Built(_)));
    let on_base = || Remembered {
        snapshot: Snapshot { layers: [base, &layers[base.len()..]].concat() },
        made: record.made,
    };
    fits.then(on_base)
}

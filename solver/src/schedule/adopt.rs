//! Which answers of the cache stand together, and what is left to do. Pure.
//!
//! A definition hit is adopted with its whole chain, so that an image is always one that somebody built. Where two
//! hits that are needed disagree about a step they share, the first in graph order stands and the other is refused:
//! it will be looked up by content. Refusing one makes its inputs needed, which may bring in further hits, so this is
//! repeated until nothing is refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use oci::Snapshot;

use super::{lookup::Remembered, steps::Steps};
use crate::{cache::Made, graph::VertexId};

/// What the cache has settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Adopted {
    /// Snapshots of needed steps, by hits of their own or of steps above them.
    pub(super) snapshots: BTreeMap<VertexId, Snapshot>,
    /// Who made the layers of steps that are settled, needed or not, where that is known.
    pub(super) made: BTreeMap<VertexId, Made>,
    /// What is needed and not settled, sources included, in graph order.
    pub(super) open: Vec<VertexId>,
}

/// Settles what can be settled by what is remembered for definitions; each fits its step.
pub(super) fn adopt(steps: &Steps, remembered: &BTreeMap<VertexId, Remembered>) -> Adopted {
    let mut hits: Hits = remembered.iter().map(|(id, found)| (*id, &found.snapshot)).collect();
    loop {
        let demand = Demand::of(steps, &hits);
        let refused = disagreeing(steps, &hits, &demand.hit);
        if refused.is_empty() {
            let made = demand.makers(steps, &hits, remembered);
            return demand.settle(steps, &hits, made);
        }
        hits.retain(|id, _| !refused.contains(id));
    }
}

/// What is remembered and not refused.
type Hits<'a> = BTreeMap<VertexId, &'a Snapshot>;

/// What the targets need when the cache is believed.
#[derive(Default)]
struct Demand {
    /// Needed and answered by a hit of its own.
    hit: BTreeSet<VertexId>,
    /// Needed and in the chain of a hit: the step, and the hit.
    implied: BTreeMap<VertexId, VertexId>,
    /// Needed and not answered.
    open: BTreeSet<VertexId>,
    /// In the chain of a hit that is needed, whether needed themselves or not: the step, and the hit.
    chains: HashMap<VertexId, VertexId>,
}

impl Demand {
    fn of(steps: &Steps, hits: &Hits<'_>) -> Self {
        let mut demand = Self::default();
        let mut needed: BTreeSet<VertexId> = steps.targets().collect();
        for id in steps.order().rev() {
            let hit = if hits.contains_key(&id) { Some(id) } else { demand.chains.get(&id).copied() };
            match hit {
                _ if !needed.contains(&id) => {}
                _ if steps.source(id).is_some() => drop(demand.open.insert(id)),
                Some(hit) if hit == id => drop(demand.hit.insert(id)),
                Some(hit) => drop(demand.implied.insert(id, hit)),
                None => {
                    demand.open.insert(id);
                    needed.extend(steps.inputs(id));
                }
            }
            // A chain is handed down step by step; a hit that nobody needs says nothing about the steps below it.
            let chain = if demand.hit.contains(&id) { Some(id) } else { demand.chains.get(&id).copied() };
            if let (Some(chain), Some(parent)) = (chain, steps.parent(id)) {
                demand.chains.entry(parent).or_insert(chain);
            }
        }
        demand
    }

    /// Whoever made the record of a step that is settled has made its layer, unless the layer comes with the chain of
    /// another step's hit and is not the same.
    fn makers(
        &self,
        steps: &Steps,
        hits: &Hits<'_>,
        remembered: &BTreeMap<VertexId, Remembered>,
    ) -> BTreeMap<VertexId, Made> {
        let has_made = |(id, found): &(&VertexId, &Remembered)| {
            let chain = self.chains.get(id).filter(|_| !self.hit.contains(id));
            let adopted = chain.map(|hit| &hits[hit].layers[steps.length(**id) - 1]);
            adopted.is_none_or(|layer| Some(layer) == found.snapshot.layers.last())
        };
        let settled = remembered.iter().filter(|(id, _)| !self.open.contains(id));
        settled.filter(has_made).map(|(id, found)| (*id, found.made.clone())).collect()
    }

    fn settle(self, steps: &Steps, hits: &Hits<'_>, made: BTreeMap<VertexId, Made>) -> Adopted {
        let own = self.hit.iter().map(|id| (*id, *id));
        let prefix = |(id, hit): (VertexId, VertexId)| {
            (id, Snapshot { layers: hits[&hit].layers[..steps.length(id)].to_vec() })
        };
        let snapshots = own.chain(self.implied).map(prefix).collect();
        Adopted { snapshots, open: self.open.into_iter().collect(), made }
    }
}

/// Of the hits in use, those that contradict an earlier one about a step in both their chains.
fn disagreeing(steps: &Steps, hits: &Hits<'_>, used: &BTreeSet<VertexId>) -> BTreeSet<VertexId> {
    let mut refused = BTreeSet::new();
    let mut fixed: HashMap<VertexId, &Snapshot> = HashMap::new();
    for id in used {
        let snapshot = hits[id];
        let chain = || std::iter::successors(Some(*id), |step| steps.parent(*step));
        // Where one step of the chain is fixed, all below it are, by snapshots that agree.
        let agrees = match chain().find_map(|step| Some((step, *fixed.get(&step)?))) {
            Some((step, other)) => {
                let length = steps.length(step);
                other.layers[..length] == snapshot.layers[..length]
            }
            None => true,
        };
        if agrees {
            let free: Vec<VertexId> = chain().take_while(|step| !fixed.contains_key(step)).collect();
            fixed.extend(free.into_iter().map(|step| (step, snapshot)));
        } else {
            refused.insert(*id);
        }
    }
    refused
}

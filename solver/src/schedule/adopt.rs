//! Which answers of the cache stand together, and what is left to do. Pure.
//!
//! A definition hit is adopted with its whole chain, so that an image is always one that somebody built. Where two
//! hits that are needed disagree about a step they share, the first in graph order stands and the other is refused:
//! it will be looked up by content. Refusing one makes its inputs needed, which may bring in further hits, so this is
//! repeated until nothing is refused.
//!
//! When answers come late this is decided anew. What is *fixed* by then, since it has run or was adopted before, stands before
//! every hit: one whose chain does not agree with it is refused. What was settled stays settled, and only more is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use oci::Snapshot;

use super::{lookup::Remembered, steps::Steps};
use crate::graph::VertexId;

/// What the caches have settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Adopted {
    /// Snapshots of needed steps that were not fixed, by hits of their own or of steps above them.
    pub(super) snapshots: BTreeMap<VertexId, Snapshot>,
    /// What is known of steps that are not open, needed or not.
    pub(super) answers: BTreeMap<VertexId, Answer>,
    /// What is needed and not settled, sources that are not fixed included, in graph order.
    pub(super) open: Vec<VertexId>,
}

/// What is known of a step that need not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its own record, which agrees with whatever chain the step is in.
    Own(Remembered),
    /// It is in the chain of a later step's record, which the cache of this name has if it is a distant one.
    InChain(Option<String>),
}

/// Settles what can be settled by what is remembered for definitions, each of which fits its step, when some snapshots
/// are fixed.
pub(super) fn adopt(
    steps: &Steps,
    remembered: &BTreeMap<VertexId, &Remembered>,
    fixed: &BTreeMap<VertexId, &Snapshot>,
) -> Adopted {
    let mut hits: Hits = remembered.iter().map(|(id, found)| (*id, &found.record.snapshot)).collect();
    loop {
        let demand = Demand::of(steps, &hits, fixed);
        let refused = disagreeing(steps, &hits, &demand.hit, fixed);
        if refused.is_empty() {
            let answers = demand.answers(steps, &hits, remembered);
            return demand.settle(steps, &hits, answers);
        }
        hits.retain(|id, _| !refused.contains(id));
    }
}

/// What is remembered and not refused.
type Hits<'a> = BTreeMap<VertexId, &'a Snapshot>;

/// What the targets need when the cache is believed, but for what is fixed.
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
    fn of(steps: &Steps, hits: &Hits<'_>, fixed: &BTreeMap<VertexId, &Snapshot>) -> Self {
        let mut demand = Self::default();
        let mut needed: BTreeSet<VertexId> = steps.targets().collect();
        for id in steps.order().rev() {
            if fixed.contains_key(&id) {
                continue;
            }
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

    /// The record of a step that is settled is that of its layer, unless the layer comes with the chain of another step's hit
    /// and is not the same.
    fn answers(
        &self,
        steps: &Steps,
        hits: &Hits<'_>,
        remembered: &BTreeMap<VertexId, &Remembered>,
    ) -> BTreeMap<VertexId, Answer> {
        let in_chain =
            |(id, hit): (&VertexId, &VertexId)| (*id, Answer::InChain(remembered[hit].from.clone()));
        let is_own = |(id, found): &(&VertexId, &&Remembered)| {
            let chain = self.chains.get(id).filter(|_| !self.hit.contains(id));
            let adopted = chain.map(|hit| &hits[hit].layers[steps.length(**id) - 1]);
            adopted.is_none_or(|layer| Some(layer) == found.record.snapshot.layers.last())
        };
        let settled = remembered.iter().filter(|(id, _)| !self.open.contains(id));
        let own = settled.filter(is_own).map(|(id, found)| (*id, Answer::Own(Remembered::clone(found))));
        self.chains.iter().map(in_chain).chain(own).collect()
    }

    fn settle(self, steps: &Steps, hits: &Hits<'_>, answers: BTreeMap<VertexId, Answer>) -> Adopted {
        let own = self.hit.iter().map(|id| (*id, *id));
        let prefix = |(id, hit): (VertexId, VertexId)| {
            (id, Snapshot { layers: hits[&hit].layers[..steps.length(id)].to_vec() })
        };
        let snapshots = own.chain(self.implied).map(prefix).collect();
        Adopted { snapshots, open: self.open.into_iter().collect(), answers }
    }
}

/// Of the hits in use, those that contradict what is fixed, or an earlier one, about a step in both their chains.
fn disagreeing(
    steps: &Steps,
    hits: &Hits<'_>,
    used: &BTreeSet<VertexId>,
    fixed: &BTreeMap<VertexId, &Snapshot>,
) -> BTreeSet<VertexId> {
    let mut refused = BTreeSet::new();
    let mut fixed: HashMap<VertexId, &Snapshot> =
        fixed.iter().map(|(id, snapshot)| (*id, *snapshot)).collect();
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

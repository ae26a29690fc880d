//! Phase 2: what the caches know under the definition keys of a build: the near ones, all asked at once, and for what
//! they lack the distant ones, for as long as those are worth waiting for. Later answers are for phase 4.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use oci::{Layer, Snapshot, TreeDigest};

use super::{
    adopt::{Adopted, adopt},
    distant::Distant,
    early::Early,
    pool::{Pool, World},
    steps::Steps,
    task::Message,
};
use crate::{
    cache::{Key, Record},
    graph::VertexId,
    traits::Found,
};

/// A result that is remembered for the definition of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    /// Its snapshot is a layer for every step of the chain, on top of the graph's own base.
    pub(super) record: Arc<Record>,
    /// The distant cache that has it; `None` for the near ones.
    pub(super) from: Option<String>,
}

/// All that is remembered for definitions.
#[derive(Debug, Default)]
pub(super) struct Memories {
    found: BTreeMap<VertexId, Remembered>,
    /// Records made before do not count, nor what stands on them.
    oldest: u64,
}

impl Memories {
    /// What the near caches have, the first one first; only what can be a result of its step, and is not too old.
    pub(super) fn near(steps: &Steps, world: &World) -> Self {
        let mut memories = Self { found: BTreeMap::new(), oldest: world.oldest };
        let mut missing: Vec<VertexId> = steps.looked_up_by_definition().collect();
        for cache in world.caches {
            if missing.is_empty() {
                break;
            }
            let keys: Vec<Key> = missing.iter().map(|id| Key::Definition(steps.definition(*id))).collect();
            let mut records = cache.lookup(&keys).into_iter();
            missing.retain(|id| match records.next().flatten() {
                Some(record) => !memories.add(steps, *id, record, None),
                None => true,
            });
        }
        memories
    }

    /// Takes what a distant cache has, and says whether that is anything new.
    pub(super) fn learn(&mut self, steps: &Steps, definition: &TreeDigest, found: Found) -> bool {
        let Some(id) = steps.by_definition(definition) else { return false };
        self.add(steps, id, found.record, Some(found.cache))
    }

    fn add(&mut self, steps: &Steps, id: VertexId, record: Record, from: Option<String>) -> bool {
        let is_young = record.made.by.at >= self.oldest;
        match fitting(steps, id, record).filter(|_| is_young && !self.found.contains_key(&id)) {
            Some(record) => self.found.insert(id, Remembered { record: Arc::new(record), from }).is_none(),
            None => false,
        }
    }

    /// What may be adopted when some steps are done. A result tells its own age and not that of what it was made of.
    /// Where age matters it counts only if everything below it is known to be young enough, too, as what is done is.
    pub(super) fn usable(
        &self,
        steps: &Steps,
        is_done: impl Fn(&VertexId) -> bool,
    ) -> BTreeMap<VertexId, &Remembered> {
        let all = self.found.iter().map(|(id, found)| (*id, found));
        if self.oldest == 0 {
            return all.collect();
        }
        let mut young = BTreeSet::new();
        for id in steps.order() {
            let below = || steps.inputs(id).iter().all(|input| young.contains(input));
            if steps.source(id).is_some() || is_done(&id) || (self.found.contains_key(&id) && below()) {
                young.insert(id);
            }
        }
        all.filter(|(id, _)| young.contains(id)).collect()
    }
}

/// What a record says, if it can be the result of a step: it has a layer for every step of the chain on top of the very
/// layers of the graph's base. Those are taken from the graph, since the same layer may now come from another place
/// or be compressed in another way.
fn fitting(steps: &Steps, id: VertexId, record: Record) -> Option<Record> {
    let base = steps.base_layers(id);
    let layers = &record.snapshot.layers;
    let fits = record.definition == steps.definition(id)
        && record.layer().is_some()
        && layers.len() == steps.length(id)
        && layers.iter().zip(base).all(|(layer, base)| layer.tree() == base.tree())
        && layers[base.len()..].iter().all(|layer| matches!(layer, Layer::Built(_)));
    let snapshot = || Snapshot { layers: [base, &layers[base.len()..]].concat() };
    fits.then(snapshot).map(|snapshot| Record { snapshot, ..record })
}

/// Decides by what the near caches know and what the distant ones tell in time. While these are waited for, what the
/// steps stand on that are open next is made ready.
pub(super) fn look_up(
    world: &World,
    pool: &mut Pool<'_>,
    distant: &mut Distant<'_>,
    steps: &Steps,
) -> (Memories, Adopted, Early) {
    let mut memories = Memories::near(steps, world);
    let mut adopted = first_adopted(steps, &memories);
    let (mut early, since) = (Early::default(), distant.now());
    distant.ask(unanswered(steps, &memories, &adopted).map(Key::Definition).collect());
    while is_undecided(steps, distant, &adopted) && !world.stop.is_requested() {
        let Some(patience) = distant.patience() else { break };
        let grace = distant.grace(since);
        if grace.is_none() {
            early.begin(world, pool, steps, &adopted);
        }
        let mut message = pool.next_within(grace.map_or(patience, |grace| grace.min(patience)));
        while let Some(heard) = message {
            take(steps, distant, &mut memories, heard);
            message = pool.heard();
        }
        adopted = first_adopted(steps, &memories);
        early.keep_open(&adopted);
    }
    (memories, adopted, early)
}

fn first_adopted(steps: &Steps, memories: &Memories) -> Adopted {
    adopt(steps, &memories.usable(steps, |_| false), &BTreeMap::new())
}

/// What is left to do and not remembered, the last step first: its answer may make all others needless.
fn unanswered(steps: &Steps, memories: &Memories, adopted: &Adopted) -> impl Iterator<Item = TreeDigest> {
    let is_open = |id: &VertexId| adopted.open.binary_search(id).is_ok() && !memories.found.contains_key(id);
    let mut missing: Vec<_> = steps.looked_up_by_definition().filter(is_open).collect();
    missing.reverse();
    missing.into_iter().map(|id| steps.definition(id))
}

/// Whether any step is left of which it is not known yet whether a distant cache has it.
fn is_undecided(steps: &Steps, distant: &Distant<'_>, adopted: &Adopted) -> bool {
    adopted.open.iter().any(|id| distant.is_open(&Key::Definition(steps.definition(*id))))
}

fn take(steps: &Steps, distant: &mut Distant<'_>, memories: &mut Memories, message: Message) {
    match message {
        Message::Answered(cache, answers) => {
            for (key, found) in answers {
                distant.answered(cache, &key, found.is_some());
                if let (Key::Definition(definition), Some(found)) = (key, found) {
                    memories.learn(steps, &definition, found);
                }
            }
        }
        Message::Returned(cache, untold) => distant.returned(cache, &untold),
        Message::Prepared => {}
        _ => unreachable!("no step is worked on before all is looked up"),
    }
}

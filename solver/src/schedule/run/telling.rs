//! What others are told of a step: people, the near caches, and those who write distant ones.

use std::{collections::BTreeMap, sync::Arc};

use oci::{Snapshot, TreeDigest};

use super::{Answer, Run};
use crate::{
    cache::{Hit, Made, Miss, Record},
    event::Event,
    graph::VertexId,
    key,
    schedule::task::{Keyed, Memory, Task},
};

impl Run<'_, '_> {
    /// Tells what steps have come to. Whoever writes records hears of that first.
    pub(super) fn settled(
        &self,
        snapshots: impl IntoIterator<Item = (VertexId, Snapshot)>,
    ) -> Vec<(VertexId, Arc<Snapshot>)> {
        let shared = snapshots.into_iter().map(|(id, snapshot)| (id, Arc::new(snapshot)));
        shared.inspect(|(id, snapshot)| self.tell_settled(*id, snapshot)).collect()
    }

    /// The same of one step, and of all that are the same.
    pub(super) fn tell_settled(&self, id: VertexId, snapshot: &Arc<Snapshot>) {
        for same in std::iter::once(&id).chain(self.steps.repeats(id)) {
            (self.world.events)(Event::Settled(*same, Arc::clone(snapshot)));
        }
    }

    /// Everything that the targets ask for and nobody has to run, in graph order.
    pub(super) fn tell_answered(&mut self, answers: &mut BTreeMap<VertexId, Answer>) {
        let steps = self.steps;
        for id in steps.order().filter(|id| steps.source(*id).is_none()) {
            if !self.open.contains(&id) {
                self.tell_answer(id, answers.remove(&id));
            }
        }
    }

    /// A step is settled by what is remembered for definitions. Its own record goes where it is not yet.
    pub(super) fn tell_answer(&mut self, id: VertexId, answer: Option<Answer>) {
        match answer {
            Some(Answer::Own(found)) => {
                self.tell_cached(id, &Some(found.record.made.clone()), &found.from);
                if found.from.is_some() {
                    self.pool.submit(Task::Remember(found.record, Memory::default()));
                } else {
                    self.world.writers.iter().for_each(|writer| writer.store(&found.record));
                }
            }
            Some(Answer::InChain(from)) => self.tell_cached(id, &None, &from),
            None => self.tell_cached(id, &None, &None),
        }
    }

    /// A step, and all that are the same, are answered for.
    pub(super) fn tell_cached(&self, id: VertexId, made: &Option<Made>, from: &Option<String>) {
        self.tell_hit(id, made, from);
        self.tell_repeats(id, made, from);
    }

    pub(super) fn tell_repeats(&self, id: VertexId, made: &Option<Made>, from: &Option<String>) {
        self.steps.repeats(id).iter().for_each(|same| self.tell_hit(*same, made, from));
    }

    fn tell_hit(&self, id: VertexId, made: &Option<Made>, from: &Option<String>) {
        let definition = self.steps.definition(self.steps.same(id));
        let hit = Hit { definition, made: made.clone(), from: from.clone() };
        (self.world.events)(Event::Cached(id, Box::new(hit)));
    }

    pub(super) fn tell_missed(&self, id: VertexId) {
        let keyed = &self.keyed[&id];
        let miss = Miss {
            definition: self.steps.definition(id),
            content: keyed.content,
            pre_image: self.pre_image(id, keyed),
            forced: self.steps.is_forced(id),
            expired: keyed.found.expired.clone(),
        };
        (self.world.events)(Event::Missed(id, Box::new(miss)));
    }

    fn pre_image(&self, id: VertexId, keyed: &Keyed) -> BTreeMap<String, String> {
        let vertex = |id: &VertexId| self.world.graph.vertex(*id);
        let inputs: Vec<_> = self.steps.inputs(id).iter().map(vertex).collect();
        key::pre_image(vertex(&id), &inputs, &keyed.read)
    }

    pub(super) fn remember(
        &mut self,
        id: VertexId,
        keyed: Keyed,
        (parent, snapshot): (TreeDigest, &Snapshot),
        made: Made,
        memory: Memory,
    ) {
        if self.world.caches.is_empty() && self.world.writers.is_empty() {
            return memory.settle(self.world);
        }
        let record = Record {
            definition: self.steps.definition(id),
            content: keyed.content,
            parent,
            snapshot: snapshot.clone(),
            pre_image: self.pre_image(id, &keyed),
            made,
        };
        self.pool.submit(Task::Remember(Arc::new(record), memory));
    }
}

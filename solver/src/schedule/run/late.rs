//! What distant caches answer while steps run: it settles what is not settled yet and agrees with what is, and makes
//! other steps needless, which are called back. What was told as done, cached or settled stays so.

use std::collections::BTreeMap;

use oci::TreeDigest;

use super::Run;
use crate::{
    cache::Key,
    graph::VertexId,
    schedule::{
        adopt::{Answer, adopt},
        lookup::Remembered,
        task::{Known, Reserved, layer_on},
    },
    traits::Found,
};

impl Run<'_, '_> {
    /// A distant cache has answered.
    pub(super) fn answered(&mut self, cache: usize, key: Key, found: Option<Found>) {
        self.distant.answered(cache, &key, found.is_some());
        match (key, found) {
            (_, None) => {}
            // Decided on when all that has been said is heard.
            (Key::Definition(key), Some(found)) => {
                self.has_news |= self.memories.learn(self.steps, &key, found);
            }
            (Key::Content(key), Some(found)) => self.found(key, found),
        }
    }

    /// The layer of the steps that are queued under a content key, if it is that and not too old.
    pub(super) fn found(&mut self, content: TreeDigest, found: Found) {
        let Found { record, cache } = found;
        let Some(id) = self.in_lane(content).first().copied().filter(|_| self.failures.is_empty()) else {
            return;
        };
        let parent = &self.done[&self.steps.inputs(id)[0]].digest;
        let Some(layer) = layer_on(&record, content, parent) else { return };
        if record.made.by.at >= self.world.oldest {
            let known = Known { layer, made: record.made, from: Some(cache) };
            self.settle(content, &known, Reserved::default());
        } else if let Some(keyed) = self.keyed.get_mut(&id) {
            keyed.found.expired.get_or_insert(record.made);
        }
    }

    /// Settles what can be settled by all that is remembered by now, on top of what is done.
    pub(super) fn decide_anew(&mut self) {
        if !std::mem::take(&mut self.has_news) || !self.failures.is_empty() {
            return;
        }
        let fixed: BTreeMap<_, _> = self.done.iter().map(|(id, ready)| (*id, &*ready.snapshot)).collect();
        let usable = self.memories.usable(self.steps, |id| fixed.contains_key(id));
        let mut adopted = adopt(self.steps, &usable, &fixed);
        let is_settled = |id: &VertexId| adopted.open.binary_search(id).is_err();
        let settled: Vec<VertexId> = self.open.iter().copied().filter(is_settled).collect();
        let snapshots = self.settled(adopted.snapshots);
        let known: Vec<_> =
            settled.into_iter().filter_map(|id| self.retire(id, adopted.answers.remove(&id))).collect();
        snapshots.into_iter().for_each(|(id, snapshot)| self.adopt(id, snapshot));
        known.into_iter().for_each(|(content, known)| self.settle(content, &known, Reserved::default()));
    }

    /// A step need not run, however far it is. If the layer is known that its content key leads to, those that are queued
    /// behind it need not run, either.
    fn retire(&mut self, id: VertexId, answer: Option<Answer>) -> Option<(TreeDigest, Known)> {
        self.open.remove(&id);
        self.missing.remove(&id);
        if let Some(leash) = self.leashes.remove(&id) {
            leash.let_go();
        }
        let content = self.keyed.remove(&id).map(|keyed| keyed.content);
        if let Some(content) = content {
            self.leave_lane(id, content);
        }
        self.let_inputs_go(id);
        let known = content.zip(answer.as_ref()).and_then(|(content, answer)| known_by(answer, content));
        self.tell_answer(id, answer);
        content.zip(known)
    }
}

/// What an answer for a definition says of a content key.
fn known_by(answer: &Answer, content: TreeDigest) -> Option<Known> {
    let Answer::Own(Remembered { record, from }) = answer else { return None };
    let layer = record.layer().filter(|_| record.content == content)?.clone();
    Some(Known { layer, made: record.made.clone(), from: from.clone() })
}

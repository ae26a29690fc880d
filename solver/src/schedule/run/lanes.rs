//! Equal steps queue in a *lane*, by content key: the first runs, those behind it get its layer. One that is forced to run takes
//! nothing that this build has not made; then it goes on when the others are settled.
//!
//! A lane is held for a moment where a distant cache may have the layer. Where another builder runs the step it is *parked*:
//! nobody waits for a lock, the scheduler's thread has it looked at every now and then, so a step that is not ours to run takes no
//! worker from the others and is given up at once when the build stops. When the first of a lane has become needless while
//! its worker was at it, the lane goes on when that worker has answered: equal steps never run at the same time.

use std::time::Duration;

use oci::TreeDigest;

use super::{Run, fail, skipped};
use crate::{
    cache::Key,
    event::Event,
    graph::VertexId,
    schedule::task::{Known, Reserved, Task, Turn},
    traits::StepFailure,
};

/// Equal steps.
pub(super) struct Lane {
    /// Who runs, or will; it has become needless if it is not open.
    first: VertexId,
    stage: Stage,
    /// Since when it waits for a distant cache, until it is made ready for meanwhile.
    waits: Option<Duration>,
    /// Open ones.
    behind: Vec<VertexId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not begun, and nobody has been told that the caches have missed.
    Held,
    /// A worker is at it.
    Working,
    /// Another builder is.
    Parked,
}

impl Run<'_, '_> {
    /// No near cache has the layer of a step.
    pub(super) fn queue(&mut self, id: VertexId, content: TreeDigest) {
        match self.lanes.get_mut(&content) {
            Some(lane) => {
                lane.behind.push(id);
                if lane.stage != Stage::Held {
                    self.tell_missed(id);
                }
            }
            None => {
                let waits = Some(self.distant.now());
                if !self.steps.is_forced(id) {
                    self.distant.ask(vec![Key::Content(content)]);
                }
                self.lanes.insert(content, Lane { first: id, stage: Stage::Held, waits, behind: Vec::new() });
                self.held.push(content);
            }
        }
    }

    /// Begins what is held, unless a distant cache is worth waiting for.
    pub(super) fn start_held(&mut self) {
        for content in std::mem::take(&mut self.held) {
            let Some(lane) = self.lanes.get(&content).filter(|lane| lane.stage == Stage::Held) else {
                continue;
            };
            if !self.failures.is_empty() {
                continue;
            }
            if self.world.stop.is_requested() {
                self.failures.push(skipped(lane.first));
            } else if self.is_worth_waiting(lane.first, content) {
                self.held.push(content);
                self.prepare(content);
            } else {
                self.start(content);
            }
        }
        self.distant.count(!self.held.is_empty());
    }

    /// A step that this machine cannot run has nothing to lose.
    fn is_worth_waiting(&self, id: VertexId, content: TreeDigest) -> bool {
        let has_time = self.impossible.contains(&id) && self.distant.may_answer();
        has_time || self.distant.is_worth_waiting_for(&Key::Content(content))
    }

    /// Makes ready what a step stands on that has waited for a while.
    fn prepare(&mut self, content: TreeDigest) {
        let lane = self.lanes.get_mut(&content).expect("it is held");
        let Some(first) =
            lane.waits.take_if(|since| self.distant.grace(*since).is_none()).map(|_| lane.first)
        else {
            return;
        };
        let job = self.job(first);
        self.submit(Task::Prepare(job));
    }

    fn start(&mut self, content: TreeDigest) {
        let lane = &self.lanes[&content];
        let (first, all) = (lane.first, [&[lane.first], &lane.behind[..]].concat());
        all.into_iter().for_each(|id| self.tell_missed(id));
        self.execute(first, content);
    }

    fn execute(&mut self, id: VertexId, content: TreeDigest) {
        self.set_stage(content, Stage::Working);
        let job = self.job(id);
        self.submit(Task::Execute(job, content));
    }

    fn set_stage(&mut self, content: TreeDigest, stage: Stage) {
        self.lanes.get_mut(&content).expect("it was queued").stage = stage;
    }

    /// What has come of an open step's turn.
    pub(super) fn turn(&mut self, id: VertexId, content: TreeDigest, turn: Result<Turn, StepFailure>) {
        match turn {
            Ok(Turn::Ran(executed, reserved)) => {
                self.ran.insert(content);
                let behind = self.leave_behind(content);
                self.ran(id, executed, reserved);
                let known = self.layers[&content].clone();
                behind.into_iter().for_each(|id| self.cached(id, known.clone(), Reserved::default()));
            }
            Ok(Turn::Found(known)) => {
                self.settle(content, &known, Reserved::default());
                self.go_on(content);
            }
            Ok(Turn::Busy(owner)) => self.park(id, content, &owner),
            Ok(Turn::Free) => self.execute(id, content),
            Err(failure) => self.failures.push(fail(self.world, id, failure)),
        }
    }

    /// What has come of the turn of a step that has become needless meanwhile is as good for those behind it.
    pub(super) fn inherit(&mut self, content: TreeDigest, turn: Result<Turn, StepFailure>) {
        let Some(heir) = self.promote(content) else { return };
        match turn {
            Ok(Turn::Ran(executed, reserved)) => {
                self.ran.insert(content);
                let known = self.made_here(executed);
                self.settle(content, &known, reserved);
            }
            // It was stopped; if it failed by itself, so will this one, and say why.
            Err(_) => self.execute(heir, content),
            turn => self.turn(heir, content, turn),
        }
    }

    /// Makes the next one the first of a lane, or ends it.
    fn promote(&mut self, content: TreeDigest) -> Option<VertexId> {
        let lane = self.lanes.get_mut(&content)?;
        if lane.behind.is_empty() {
            self.lanes.remove(&content);
            return None;
        }
        lane.first = lane.behind.remove(0);
        Some(lane.first)
    }

    /// All open steps of a lane have this layer, but for those that must run; a worker that is at one is called back.
    pub(super) fn settle(&mut self, content: TreeDigest, known: &Known, mut reserved: Reserved) {
        let all = self.in_lane(content).into_iter();
        let (forced, others): (Vec<_>, Vec<_>) = all.partition(|id| self.must_run(*id, content));
        for id in others {
            if let Some(leash) = self.leashes.get(&id) {
                leash.let_go();
            }
            self.cached(id, known.clone(), std::mem::take(&mut reserved));
        }
        self.layers.entry(content).or_insert_with(|| known.clone());
        self.keep(content, &forced);
    }

    /// Leaves these in a lane, or ends it.
    fn keep(&mut self, content: TreeDigest, ids: &[VertexId]) {
        let Some(lane) = self.lanes.get_mut(&content) else { return };
        lane.behind.retain(|id| ids.contains(id));
        let (is_first, stage) = (ids.contains(&lane.first), lane.stage);
        if ids.is_empty() {
            self.lanes.remove(&content);
        } else if !is_first && stage != Stage::Working {
            // Otherwise the worker that is at it will say how it goes on.
            let heir = self.promote(content).filter(|_| stage == Stage::Parked);
            heir.into_iter().for_each(|heir| self.execute(heir, content));
        }
    }

    /// A worker has found a layer, which is not good enough for those that are left.
    fn go_on(&mut self, content: TreeDigest) {
        let is_over = |lane: &&Lane| !self.open.contains(&lane.first);
        if self.lanes.get(&content).filter(is_over).is_some()
            && let Some(heir) = self.promote(content)
        {
            self.execute(heir, content);
        }
    }

    /// The open steps of a lane.
    pub(super) fn in_lane(&self, content: TreeDigest) -> Vec<VertexId> {
        let Some(lane) = self.lanes.get(&content) else { return Vec::new() };
        let all = std::iter::once(&lane.first).chain(&lane.behind);
        all.copied().filter(|id| self.open.contains(id)).collect()
    }

    /// Ends a lane whose first has run.
    fn leave_behind(&mut self, content: TreeDigest) -> Vec<VertexId> {
        self.lanes.remove(&content).map(|lane| lane.behind).unwrap_or_default()
    }

    /// A step has become needless.
    pub(super) fn leave_lane(&mut self, id: VertexId, content: TreeDigest) {
        let Some(lane) = self.lanes.get_mut(&content) else { return };
        lane.behind.retain(|other| *other != id);
        // Otherwise its worker will say how it goes on.
        if lane.first == id && lane.stage != Stage::Working {
            self.promote(content);
        }
    }

    /// Another builder runs the step: it will be looked at again.
    fn park(&mut self, id: VertexId, content: TreeDigest, owner: &str) {
        self.set_stage(content, Stage::Parked);
        if self.told.insert(id) {
            let what = format!("waiting for another build ({owner}) that runs this step");
            (self.world.events)(Event::Waiting(id, what));
        }
        self.parked.push(content);
    }

    pub(super) fn probe_parked(&mut self) {
        for content in std::mem::take(&mut self.parked) {
            let Some(lane) = self.lanes.get(&content).filter(|lane| lane.stage == Stage::Parked) else {
                continue;
            };
            let id = lane.first;
            if self.world.stop.is_requested() {
                self.failures.push(skipped(id));
                continue;
            }
            self.set_stage(content, Stage::Working);
            let job = self.job(id);
            self.submit(Task::Probe(job, content));
        }
    }
}

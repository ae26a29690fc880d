//! Equal steps queue in a *lane*, by content key: the first runs, those behind it get its layer. One that is forced to run takes
//! nothing that this build has not made; then it goes on when the others are settled.
//!
//! A lane is held for a moment where a distant cache may have the layer. Where another builder runs the step it is *parked*:
//! nobody waits for a lock, the scheduler's thread has it looked at every now and then, so a step that is not ours to run takes
//! no worker from the others and is given up at once when the build stops. Where that builder shares no store with us, we hear
//! of it when our worker is at it: the step is *called back*, unless it ends first, and the lane waits while it runs
//! *elsewhere*. When the first of a lane has become needless while its worker was at it, the lane goes on when that worker has
//! answered: equal steps never run at the same time.

use std::time::Duration;

use oci::TreeDigest;

use super::{Run, fail, skipped};
use crate::{
    cache::Key,
    event::Event,
    graph::VertexId,
    op::Op,
    schedule::{
        seat::Seat,
        task::{Job, Known, Reserved, Task, Turn},
    },
    traits::{Notice, StepFailure},
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
    /// Where others hear of it, once it runs.
    seat: Option<Seat>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not begun, and nobody has been told that the caches have missed.
    Held,
    /// A worker is at it.
    Working,
    /// A worker is at it that has been told to stop, since another builder is, too.
    CalledBack,
    /// The same, and the step is to begin anew as soon as the worker has stopped.
    WantedAgain,
    /// Another builder is at it that has the same store.
    Parked,
    /// Another builder is at it that has a store of its own.
    Elsewhere,
}

impl Stage {
    /// Whether a worker has yet to answer.
    fn has_worker(self) -> bool {
        matches!(self, Self::Working | Self::CalledBack | Self::WantedAgain)
    }
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
                let seat = self.seat(id, content);
                self.lanes
                    .insert(content, Lane { first: id, stage: Stage::Held, waits, behind: Vec::new(), seat });
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

    /// Makes ready what a step stands on that has waited for a while, unless that was begun before its content key was known.
    fn prepare(&mut self, content: TreeDigest) {
        let lane = self.lanes.get_mut(&content).expect("it is held");
        if lane.waits.take_if(|since| self.distant.grace(*since).is_none()).is_none() {
            return;
        }
        let first = lane.first;
        if !self.begun_early.contains(&first) {
            let job = self.job(first);
            self.submit(Task::Prepare(job));
        }
    }

    fn start(&mut self, content: TreeDigest) {
        let lane = &self.lanes[&content];
        let (first, all) = (lane.first, [&[lane.first], &lane.behind[..]].concat());
        all.into_iter().for_each(|id| self.tell_missed(id));
        self.execute(first, content);
    }

    fn execute(&mut self, id: VertexId, content: TreeDigest) {
        self.set_stage(content, Stage::Working);
        let seat = self.lanes[&content].seat.clone();
        let job = Job { seat, ..self.job(id) };
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
            Err(_) if self.is_called_back(content) => self.stopped(content),
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
            Err(_) if self.is_called_back(content) => self.stopped(content),
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
        } else if !is_first && !stage.has_worker() {
            // Otherwise the worker that is at it will say how it goes on.
            let heir = self.promote(content).filter(|_| stage != Stage::Held);
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
        if lane.first == id && !lane.stage.has_worker() {
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

    /// What is heard of a lane from builders with other stores; what has been overtaken here means nothing any more.
    pub(super) fn noticed(&mut self, content: TreeDigest, seat: u64, notice: Notice) {
        let is_current = |lane: &Lane| lane.seat.as_ref().is_some_and(|own| own.is(seat));
        let is_ours = self.lanes.get(&content).is_some_and(is_current);
        if !is_ours || !self.failures.is_empty() || self.world.stop.is_requested() {
            return;
        }
        match notice {
            Notice::Elsewhere => self.call_back(content),
            Notice::Free => self.begin_anew(content),
            Notice::Found(found) => {
                self.found(content, *found);
                // It may be too old, or have another parent.
                self.begin_anew(content);
            }
        }
    }

    fn call_back(&mut self, content: TreeDigest) {
        let Some(lane) = self.lanes.get_mut(&content) else { return };
        let id = lane.first;
        match lane.stage {
            Stage::Working => lane.stage = Stage::CalledBack,
            Stage::WantedAgain => return lane.stage = Stage::CalledBack,
            Stage::Held | Stage::CalledBack | Stage::Parked | Stage::Elsewhere => return,
        }
        if let Some(leash) = self.leashes.remove(&id) {
            leash.let_go();
        }
        if self.open.contains(&id) {
            let what = "waiting for another builder that runs this step".to_owned();
            (self.world.events)(Event::Waiting(id, what));
        }
    }

    fn begin_anew(&mut self, content: TreeDigest) {
        let Some(lane) = self.lanes.get(&content) else { return };
        match lane.stage {
            Stage::CalledBack => self.set_stage(content, Stage::WantedAgain),
            Stage::Elsewhere => {
                let id = lane.first;
                self.parked.retain(|parked| *parked != content);
                self.execute(id, content);
            }
            Stage::Held | Stage::Working | Stage::WantedAgain | Stage::Parked => {}
        }
    }

    fn is_called_back(&self, content: TreeDigest) -> bool {
        let stage = self.lanes.get(&content).map(|lane| lane.stage);
        matches!(stage, Some(Stage::CalledBack | Stage::WantedAgain))
    }

    /// The worker of a step that was called back has stopped.
    fn stopped(&mut self, content: TreeDigest) {
        let Lane { first, stage, .. } = self.lanes[&content];
        match stage {
            Stage::WantedAgain => self.execute(first, content),
            _ => {
                self.set_stage(content, Stage::Elsewhere);
                self.parked.push(content);
            }
        }
    }

    /// Only of commands that the caches may answer: what else there is takes less time than to ask.
    fn seat(&self, id: VertexId, content: TreeDigest) -> Option<Seat> {
        let is_told = matches!(self.world.graph.vertex(id).op, Op::Exec(_)) && !self.steps.is_forced(id);
        self.board.as_ref().filter(|_| is_told).map(|board| board.seat(content))
    }

    pub(super) fn probe_parked(&mut self) {
        for content in std::mem::take(&mut self.parked) {
            let waits = |lane: &&Lane| matches!(lane.stage, Stage::Parked | Stage::Elsewhere);
            let Some(lane) = self.lanes.get(&content).filter(waits) else {
                continue;
            };
            let (id, stage) = (lane.first, lane.stage);
            if self.world.stop.is_requested() {
                self.failures.push(skipped(id));
                continue;
            }
            if stage == Stage::Elsewhere {
                // It is told when that is over.
                self.parked.push(content);
                continue;
            }
            self.set_stage(content, Stage::Working);
            let job = self.job(id);
            self.submit(Task::Probe(job, content));
        }
    }
}

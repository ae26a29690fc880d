//! Phase 4: everything that the caches have not settled, as its inputs become ready.
//!
//! A step that is open waits for its inputs, gets its content key, is *queued* (see [`lanes`]: of equal steps one runs and the
//! others wait for it), runs, and is done; a cache, or an equal step of this build, may settle it at any of these points,
//! and what a distant cache answers for another step may make it needless (see [`late`]). What is done stays as it is.
//!
//! Whatever has been said already is heard before anything is started.

mod lanes;
mod late;
mod telling;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use oci::{Snapshot, TreeDigest};

use super::{
    SolveError,
    adopt::{Adopted, Answer},
    distant::Distant,
    early::Early,
    fail, first,
    leash::Leash,
    lookup::Memories,
    pool::{Pool, Ready, World},
    seat::Board,
    skipped,
    steps::Steps,
    task::{Job, Keyed, Known, Memory, Message, Reserved, Task},
};
use crate::{
    cache::Made,
    event::Event,
    graph::VertexId,
    key,
    traits::{Executed, StepFailure},
};
use lanes::Lane;

/// Time between two looks at what somebody else has to do first.
const PAUSE: Duration = Duration::from_millis(20);

/// What the phases before leave to this one.
pub(super) struct Rest<'a> {
    pub(super) adopted: Adopted,
    pub(super) memories: Memories,
    /// Open steps that this machine cannot run.
    pub(super) impossible: BTreeSet<VertexId>,
    pub(super) distant: Distant<'a>,
    /// Steps that have been begun with.
    pub(super) early: Early,
    pub(super) board: Option<Board>,
}

/// Does what is open and returns the snapshots of the targets.
pub(super) fn run(
    world: &World,
    pool: &mut Pool<'_>,
    steps: &Steps,
    rest: Rest<'_>,
) -> Result<BTreeMap<VertexId, Arc<Snapshot>>, SolveError> {
    let mut run = Run::new(world, pool, steps, rest);
    while let Some(message) = run.next() {
        run.take(message);
    }
    match first(run.failures) {
        Some(error) => Err(error),
        None => Ok(run.done.into_iter().map(|(id, ready)| (id, ready.snapshot)).collect()),
    }
}

struct Run<'a, 'scope> {
    world: &'a World<'a>,
    pool: &'a mut Pool<'scope>,
    steps: &'a Steps<'a>,
    distant: Distant<'a>,
    board: Option<Board>,
    memories: Memories,
    impossible: BTreeSet<VertexId>,
    /// Steps that are not settled.
    open: BTreeSet<VertexId>,
    /// How many inputs of a step are not there yet.
    missing: HashMap<VertexId, usize>,
    /// The open steps that an input is for.
    readers: HashMap<VertexId, Vec<VertexId>>,
    /// Inputs that are there and have readers left, and the targets.
    done: BTreeMap<VertexId, Ready>,
    /// How many readers an input has left; a target has one that never ends.
    uses: HashMap<VertexId, usize>,
    /// Open steps that are worked on or made ready for, or have been.
    leashes: HashMap<VertexId, Leash>,
    /// Steps that were made ready for before this phase.
    begun_early: BTreeSet<VertexId>,
    /// Keys of open steps.
    keyed: HashMap<VertexId, Keyed>,
    /// What is queued, by content key.
    lanes: HashMap<TreeDigest, Lane>,
    /// Lanes that have not begun, in order.
    held: Vec<TreeDigest>,
    /// Lanes that another builder keeps from running.
    parked: Vec<TreeDigest>,
    /// Steps whose waiting has been told.
    told: HashSet<VertexId>,
    /// Layers of this build by content key.
    layers: HashMap<TreeDigest, Known>,
    /// Content keys of steps that have run in this build: nothing older is good enough for a forced one.
    ran: HashSet<TreeDigest>,
    /// Whether a distant cache has told something that may settle more.
    has_news: bool,
    failures: Vec<SolveError>,
}

impl<'a, 'scope> Run<'a, 'scope> {
    fn new(world: &'a World<'a>, pool: &'a mut Pool<'scope>, steps: &'a Steps<'a>, rest: Rest<'a>) -> Self {
        let Rest { adopted, memories, impossible, distant, early, board } = rest;
        let Adopted { snapshots, open, mut answers } = adopted;
        let (sources, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|id| steps.source(*id).is_some());
        let leashes = early.into_leashes();
        let mut run = Self {
            world,
            pool,
            steps,
            distant,
            board,
            memories,
            impossible,
            open: open.iter().copied().collect(),
            missing: HashMap::new(),
            readers: HashMap::new(),
            done: BTreeMap::new(),
            uses: HashMap::new(),
            begun_early: leashes.keys().copied().collect(),
            leashes,
            keyed: HashMap::new(),
            lanes: HashMap::new(),
            held: Vec::new(),
            parked: Vec::new(),
            told: HashSet::new(),
            layers: HashMap::new(),
            ran: HashSet::new(),
            has_news: false,
            failures: Vec::new(),
        };
        steps.targets().for_each(|id| *run.uses.entry(id).or_default() += 1);
        let sources = sources.iter().filter_map(|id| Some((*id, key::source_snapshot(steps.source(*id)?))));
        let settled = run.settled(snapshots.into_iter().chain(sources));
        run.tell_answered(&mut answers);
        open.iter().for_each(|id| run.wait_for_inputs(*id));
        settled.into_iter().for_each(|(id, snapshot)| run.adopt(id, snapshot));
        run
    }

    /// What happens next; `None` when everything is done.
    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.pool.heard() {
                return Some(message);
            }
            self.decide_anew();
            self.start_held();
            if self.open.is_empty() || !self.failures.is_empty() {
                self.distant.give_up();
            }
            let Some(patience) = self.patience() else { return self.pool.next() };
            if let Some(message) = self.pool.next_within(patience) {
                return Some(message);
            }
            self.probe_parked();
        }
    }

    /// How long to wait before something must be looked at that nobody tells of.
    fn patience(&self) -> Option<Duration> {
        let left = Some(self.distant.left()).filter(|left| !left.is_zero());
        match (self.held.is_empty(), self.parked.is_empty()) {
            (false, _) => Some(left.map_or(PAUSE, |left| left.min(PAUSE))),
            (true, false) => Some(PAUSE),
            (true, true) => None,
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Answered(cache, answers) => {
                answers.into_iter().for_each(|(key, found)| self.answered(cache, key, found));
            }
            Message::Returned(cache, untold) => self.distant.returned(cache, &untold),
            Message::Noticed(content, seat, notice) => self.noticed(content, seat, notice),
            Message::Turn(id, content, turn) if self.open.contains(&id) => self.turn(id, content, turn),
            Message::Turn(_, content, turn) => self.inherit(content, turn),
            Message::Skipped(id) => self.failures.push(skipped(id)),
            Message::Keyed(id, _) if !self.open.contains(&id) => {}
            Message::Keyed(id, Ok(keyed)) => self.keyed(id, keyed),
            Message::Keyed(id, Err(failure)) => self.failed(id, failure),
            Message::Remembered | Message::Prepared => {}
            Message::Identified(..) | Message::Lost => {
                unreachable!("sources are identified before steps run")
            }
        }
    }

    fn failed(&mut self, id: VertexId, failure: StepFailure) {
        self.failures.push(fail(self.world, id, failure));
    }

    fn wait_for_inputs(&mut self, id: VertexId) {
        let inputs = self.distinct_inputs(id);
        self.missing.insert(id, inputs.len());
        for input in inputs {
            self.readers.entry(input).or_default().push(id);
            *self.uses.entry(input).or_default() += 1;
        }
    }

    fn distinct_inputs(&self, id: VertexId) -> Vec<VertexId> {
        let mut inputs = self.steps.inputs(id).to_vec();
        inputs.sort_unstable();
        inputs.dedup();
        inputs
    }

    /// A source, or what a cache has settled by definition.
    fn adopt(&mut self, id: VertexId, snapshot: Arc<Snapshot>) {
        let digest = snapshot.digest();
        self.provide(id, snapshot, digest);
    }

    /// An input is there: keeps it for its readers and begins those that waited for nothing else.
    fn provide(&mut self, id: VertexId, snapshot: Arc<Snapshot>, digest: TreeDigest) {
        let identity = self.steps.identity(id);
        self.done.insert(id, Ready { id, snapshot, digest, identity });
        for reader in self.readers.remove(&id).unwrap_or_default() {
            // Nobody waits any more where a reader has been settled without its inputs.
            let Some(missing) = self.missing.get_mut(&reader) else { continue };
            *missing -= 1;
            if *missing == 0 {
                self.missing.remove(&reader);
                let job = self.job(reader);
                self.submit(Task::Key(job));
            }
        }
    }

    fn submit(&mut self, task: Task) {
        if self.failures.is_empty() {
            self.pool.submit(task);
        }
    }

    fn job(&mut self, id: VertexId) -> Job {
        let leash = self.leashes.entry(id).or_insert_with(|| Leash::new(self.world.stop)).clone();
        let inputs = self.steps.inputs(id).iter().map(|input| self.done[input].clone()).collect();
        Job { id, inputs, use_cache: !self.steps.is_forced(id), leash, seat: None }
    }

    fn keyed(&mut self, id: VertexId, keyed: Keyed) {
        let content = keyed.content;
        let known = self.layers.get(&content).cloned().or_else(|| keyed.found.hit.clone());
        let known = known.filter(|_| !self.must_run(id, content));
        self.keyed.insert(id, keyed);
        match known {
            Some(known) => self.cached(id, known, Reserved::default()),
            None => self.queue(id, content),
        }
    }

    /// Whether a step is forced, and no equal one has run.
    fn must_run(&self, id: VertexId, content: TreeDigest) -> bool {
        self.steps.is_forced(id) && !self.ran.contains(&content)
    }

    fn ran(&mut self, id: VertexId, executed: Executed, reserved: Reserved) {
        let known = self.made_here(executed);
        // Whoever is told so may kill the build the moment after: the step is over when it is remembered.
        let told = Event::Done(id, known.layer.clone());
        self.tell_repeats(id, &Some(known.made.clone()), &None);
        self.finish(id, known, Memory { reserved, told: Some(told) });
    }

    fn made_here(&self, executed: Executed) -> Known {
        let Executed { layer, took } = executed;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Known { layer, made: Made { by: self.world.maker.clone(), took_ms }, from: None }
    }

    /// A step need not run. What is reserved is kept until it is remembered.
    fn cached(&mut self, id: VertexId, known: Known, reserved: Reserved) {
        self.tell_cached(id, &Some(known.made.clone()), &known.from);
        self.finish(id, known, Memory { reserved, told: None });
    }

    fn finish(&mut self, id: VertexId, known: Known, memory: Memory) {
        self.open.remove(&id);
        if let Some(leash) = self.leashes.remove(&id) {
            // It may still be made ready for.
            leash.let_go();
        }
        let keyed = self.keyed.remove(&id).expect("a step is keyed before it is done");
        self.layers.insert(keyed.content, known.clone());
        let Known { layer, made, from: _ } = known;
        let parent = self.done[&self.steps.inputs(id)[0]].digest;
        let digest = Snapshot::digest_with(&parent, &layer);
        let mut snapshot = self.take_parent(id);
        snapshot.layers.push(layer);
        let snapshot = Arc::new(snapshot);
        self.tell_settled(id, &snapshot);
        self.remember(id, keyed, (parent, &snapshot), made, memory);
        self.provide(id, snapshot, digest);
    }

    /// The snapshot below a step that is done, which no longer reads its inputs. The last reader gets it as its own:
    /// a long chain is not copied at every step.
    fn take_parent(&mut self, id: VertexId) -> Snapshot {
        let parent = self.steps.inputs(id)[0];
        let snapshot = Arc::clone(&self.done[&parent].snapshot);
        self.let_inputs_go(id);
        Arc::unwrap_or_clone(snapshot)
    }

    /// A step reads its inputs no longer, whether they are there or not.
    fn let_inputs_go(&mut self, id: VertexId) {
        for input in self.distinct_inputs(id) {
            let uses = self.uses.get_mut(&input).expect("it was counted as a reader");
            *uses -= 1;
            if *uses == 0 {
                self.done.remove(&input);
            }
        }
    }
}

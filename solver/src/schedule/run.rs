//! Phase 4: everything that the cache has not settled, as its inputs become ready.
//!
//! A step goes `Waiting → Keying → Running → Done`; it skips `Running` when a cache, or another step of this build with
//! the same content key, has its layer. That key is also the lock: of equal steps one runs and the others wait for it.
//! What another builder runs is *parked*: nobody waits for a lock, this thread has it looked at every now and then, so
//! a step that is not ours to run takes no worker from the others and is given up at once when the build stops.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use oci::{Layer, Snapshot, TreeDigest};

use super::{
    SolveError,
    adopt::Adopted,
    fail, first,
    pool::{Pool, Ready, World},
    skipped,
    steps::Steps,
    task::{Job, Keyed, Memory, Message, Reserved, Task, Turn},
};
use crate::{
    cache::{Hit, Made, Miss, Record},
    event::Event,
    graph::VertexId,
    key,
    traits::{Executed, StepFailure},
};

/// Time between two looks at what another builder runs.
const PAUSE: Duration = Duration::from_millis(20);

/// Does what is open and returns the snapshots of the targets.
pub(super) fn run(
    world: &World,
    pool: &mut Pool<'_>,
    steps: &Steps,
    adopted: Adopted,
) -> Result<BTreeMap<VertexId, Arc<Snapshot>>, SolveError> {
    let mut run = Run::new(world, pool, steps, adopted);
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
    /// How many inputs of a step are not there yet.
    missing: HashMap<VertexId, usize>,
    /// The open steps that an input is for.
    readers: HashMap<VertexId, Vec<VertexId>>,
    /// Inputs that are there and have readers left, and the targets.
    done: BTreeMap<VertexId, Ready>,
    /// How many readers an input has left; a target has one that never ends.
    uses: HashMap<VertexId, usize>,
    /// Content keys of steps that are being run, with those that wait for the same layer.
    running: HashMap<TreeDigest, Vec<VertexId>>,
    /// Steps that another builder runs, to be looked at again.
    parked: Vec<VertexId>,
    /// Steps whose waiting has been told.
    told: HashSet<VertexId>,
    /// Layers of this build by content key, and who made them.
    layers: HashMap<TreeDigest, (Layer, Made)>,
    /// Keys of steps that are not done.
    keyed: HashMap<VertexId, Keyed>,
    failures: Vec<SolveError>,
}

impl<'a, 'scope> Run<'a, 'scope> {
    fn new(world: &'a World<'a>, pool: &'a mut Pool<'scope>, steps: &'a Steps<'a>, adopted: Adopted) -> Self {
        let mut run = Self {
            world,
            pool,
            steps,
            missing: HashMap::new(),
            readers: HashMap::new(),
            done: BTreeMap::new(),
            uses: HashMap::new(),
            running: HashMap::new(),
            parked: Vec::new(),
            told: HashSet::new(),
            layers: HashMap::new(),
            keyed: HashMap::new(),
            failures: Vec::new(),
        };
        steps.targets().for_each(|id| *run.uses.entry(id).or_default() += 1);
        let Adopted { snapshots, open, made } = adopted;
        run.tell_settled(&open, made);
        let (sources, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|id| steps.source(*id).is_some());
        open.iter().for_each(|id| run.wait_for_inputs(*id));
        let sources =
            sources.into_iter().filter_map(|id| Some((id, key::source_snapshot(steps.source(id)?))));
        for (id, snapshot) in snapshots.into_iter().chain(sources.collect::<Vec<_>>()) {
            let digest = snapshot.digest();
            run.provide(id, Arc::new(snapshot), digest);
        }
        run
    }

    /// What happens next; `None` when everything is done.
    fn next(&mut self) -> Option<Message> {
        while !self.parked.is_empty() {
            if let Some(message) = self.pool.next_within(PAUSE) {
                return Some(message);
            }
            self.probe_parked();
        }
        self.pool.next()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Keyed(id, Ok(keyed)) => self.keyed(id, keyed),
            Message::Turn(id, Ok(Turn::Ran(executed, reserved))) => self.ran(id, executed, reserved),
            Message::Turn(id, Ok(Turn::Found(layer, made))) => self.settled(id, layer, made),
            Message::Turn(id, Ok(Turn::Busy(owner))) => self.park(id, owner),
            Message::Turn(id, Ok(Turn::Free)) => self.execute(id),
            Message::Keyed(id, Err(failure)) | Message::Turn(id, Err(failure)) => self.failed(id, failure),
            Message::Skipped(id) => self.failures.push(skipped(id)),
            Message::Remembered => {}
            Message::Identified(..) | Message::Lost => {
                unreachable!("sources are identified before steps run")
            }
        }
    }

    fn failed(&mut self, id: VertexId, failure: StepFailure) {
        self.failures.push(fail(self.world, id, failure));
    }

    /// Everything that the targets ask for and nobody has to run, in graph order.
    fn tell_settled(&self, open: &[VertexId], mut made: BTreeMap<VertexId, Made>) {
        let settled = self.steps.order().filter(|id| self.steps.source(*id).is_none());
        for id in settled.filter(|id| open.binary_search(id).is_err()) {
            self.tell_cached(id, made.remove(&id));
        }
    }

    /// A step, and all that are the same, are answered for.
    fn tell_cached(&self, id: VertexId, made: Option<Made>) {
        self.tell_hit(id, made.clone());
        self.tell_repeats(id, made);
    }

    fn tell_repeats(&self, id: VertexId, made: Option<Made>) {
        self.steps.repeats(id).iter().for_each(|same| self.tell_hit(*same, made.clone()));
    }

    fn tell_hit(&self, id: VertexId, made: Option<Made>) {
        let hit = Hit { definition: self.steps.definition(self.steps.same(id)), made, from: None };
        (self.world.events)(Event::Cached(id, Box::new(hit)));
    }

    fn wait_for_inputs(&mut self, id: VertexId) {
        let mut inputs = self.steps.inputs(id).to_vec();
        inputs.sort_unstable();
        inputs.dedup();
        self.missing.insert(id, inputs.len());
        for input in inputs {
            self.readers.entry(input).or_default().push(id);
            *self.uses.entry(input).or_default() += 1;
        }
    }

    /// An input is there: keeps it for its readers and begins those that waited for nothing else.
    fn provide(&mut self, id: VertexId, snapshot: Arc<Snapshot>, digest: TreeDigest) {
        let identity = self.steps.identity(id);
        for same in std::iter::once(&id).chain(self.steps.repeats(id)) {
            (self.world.events)(Event::Settled(*same, Arc::clone(&snapshot)));
        }
        self.done.insert(id, Ready { id, snapshot, digest, identity });
        for reader in self.readers.remove(&id).unwrap_or_default() {
            let missing =
                self.missing.get_mut(&reader).expect("a reader waits until its last input is there");
            *missing -= 1;
            if *missing == 0 {
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

    fn job(&self, id: VertexId) -> Job {
        let inputs = self.steps.inputs(id).iter().map(|input| self.done[input].clone()).collect();
        Job { id, inputs, use_cache: !self.steps.is_forced(id) }
    }

    fn keyed(&mut self, id: VertexId, keyed: Keyed) {
        let content = keyed.content;
        let known = self.layers.get(&content).cloned().or_else(|| keyed.found.hit.clone());
        self.keyed.insert(id, keyed);
        if let Some((layer, made)) = known {
            return self.cached(id, layer, made);
        }
        (self.world.events)(Event::Missed(id, Box::new(self.miss(id))));
        match self.running.get_mut(&content) {
            Some(waiting) => waiting.push(id),
            None => {
                self.running.insert(content, Vec::new());
                self.execute(id);
            }
        }
    }

    fn execute(&mut self, id: VertexId) {
        let (job, content) = (self.job(id), self.keyed[&id].content);
        self.submit(Task::Execute(job, content));
    }

    /// Another builder runs the step: it will be looked at again.
    fn park(&mut self, id: VertexId, owner: String) {
        if self.told.insert(id) {
            let what = format!("waiting for another build ({owner}) that runs this step");
            (self.world.events)(Event::Waiting(id, what));
        }
        self.parked.push(id);
    }

    fn probe_parked(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            if self.world.stop.is_requested() {
                self.failures.push(skipped(id));
                continue;
            }
            let (job, content) = (self.job(id), self.keyed[&id].content);
            self.submit(Task::Probe(job, content));
        }
    }

    fn miss(&self, id: VertexId) -> Miss {
        let keyed = &self.keyed[&id];
        Miss {
            definition: self.steps.definition(id),
            content: keyed.content,
            pre_image: self.pre_image(id, keyed),
            forced: self.steps.is_forced(id),
            expired: keyed.found.expired.clone(),
        }
    }

    fn pre_image(&self, id: VertexId, keyed: &Keyed) -> BTreeMap<String, String> {
        let vertex = |id: &VertexId| self.world.graph.vertex(*id);
        let inputs: Vec<_> = self.steps.inputs(id).iter().map(vertex).collect();
        key::pre_image(vertex(&id), &inputs, &keyed.read)
    }

    fn ran(&mut self, id: VertexId, executed: Executed, reserved: Reserved) {
        let Executed { layer, took } = executed;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let made = Made { by: self.world.maker.clone(), took_ms };
        // Whoever is told so may kill the build the moment after: the step is over when it is remembered.
        let told = Event::Done(id, layer.clone());
        self.tell_repeats(id, Some(made.clone()));
        let content = self.keyed[&id].content;
        self.finish(id, layer.clone(), made.clone(), Memory { reserved, told: Some(told) });
        self.release(content, &layer, &made);
    }

    /// Another builder has run a step that was ours to run.
    fn settled(&mut self, id: VertexId, layer: Layer, made: Made) {
        let content = self.keyed[&id].content;
        self.cached(id, layer.clone(), made.clone());
        self.release(content, &layer, &made);
    }

    fn cached(&mut self, id: VertexId, layer: Layer, made: Made) {
        self.tell_cached(id, Some(made.clone()));
        self.finish(id, layer, made, Memory::default());
    }

    /// Those of this build that wait for the same layer.
    fn release(&mut self, content: TreeDigest, layer: &Layer, made: &Made) {
        for other in self.running.remove(&content).unwrap_or_default() {
            self.cached(other, layer.clone(), made.clone());
        }
    }

    fn finish(&mut self, id: VertexId, layer: Layer, made: Made, memory: Memory) {
        self.layers.insert(self.keyed[&id].content, (layer.clone(), made.clone()));
        let parent = self.done[&self.steps.inputs(id)[0]].digest;
        let digest = Snapshot::digest_with(&parent, &layer);
        let mut snapshot = self.take_parent(id);
        snapshot.layers.push(layer);
        let snapshot = Arc::new(snapshot);
        self.remember(id, parent, &snapshot, made, memory);
        self.provide(id, snapshot, digest);
    }

    /// The snapshot below a step that is done, which no longer reads its inputs. The last reader gets it as its own:
    /// a long chain is not copied at every step.
    fn take_parent(&mut self, id: VertexId) -> Snapshot {
        let parent = self.steps.inputs(id)[0];
        let snapshot = Arc::clone(&self.done[&parent].snapshot);
        let mut inputs = self.steps.inputs(id).to_vec();
        inputs.sort_unstable();
        inputs.dedup();
        for input in inputs {
            let uses = self.uses.get_mut(&input).expect("it was counted as a reader");
            *uses -= 1;
            if *uses == 0 {
                self.done.remove(&input);
            }
        }
        Arc::unwrap_or_clone(snapshot)
    }

    fn remember(
        &mut self,
        id: VertexId,
        parent: TreeDigest,
        snapshot: &Snapshot,
        made: Made,
        memory: Memory,
    ) {
        let keyed = self.keyed.remove(&id).expect("a step is keyed before it is done");
        if self.world.caches.is_empty() {
            return memory.settle(self.world);
        }
        let pre_image = self.pre_image(id, &keyed);
        let record = Record {
            definition: self.steps.definition(id),
            content: keyed.content,
            parent,
            snapshot: snapshot.clone(),
            pre_image,
            made,
        };
        self.pool.submit(Task::Remember(Box::new(record), memory));
    }
}

//! Phase 4: everything that the cache has not settled, as its inputs become ready.
//!
//! A step goes `Waiting → Keying → Running → Done`; it skips `Running` when a cache, or another step of this build with
//! the same content key, has its layer. That key is also the lock: of equal steps one runs and the others wait for it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use oci::{Layer, Snapshot, TreeDigest};

use super::{
    SolveError,
    adopt::Adopted,
    fail, first,
    pool::{Job, Keyed, Message, Pool, Ready, Task, World},
    skipped,
    steps::Steps,
};
use crate::{
    cache::{Hit, Made, Miss, Record},
    event::Event,
    graph::VertexId,
    key,
    traits::Executed,
};

/// Does what is open and returns the snapshots of the targets.
pub(super) fn run(
    world: &World,
    pool: &mut Pool,
    steps: &Steps,
    adopted: Adopted,
) -> Result<BTreeMap<VertexId, Arc<Snapshot>>, SolveError> {
    let mut run = Run::new(world, pool, steps, adopted);
    while let Some(message) = run.pool.next() {
        match message {
            Message::Keyed(id, Ok(keyed)) => run.keyed(id, keyed),
            Message::Executed(id, Ok(executed)) => run.executed(id, executed),
            Message::Keyed(id, Err(failure)) | Message::Executed(id, Err(failure)) => {
                run.failures.push(fail(world, id, failure));
            }
            Message::Skipped(id) => run.failures.push(skipped(id)),
            Message::Identified(..) | Message::Lost => {
                unreachable!("sources are identified before steps run")
            }
        }
    }
    match first(run.failures) {
        Some(error) => Err(error),
        None => Ok(run.done.into_iter().map(|(id, ready)| (id, ready.snapshot)).collect()),
    }
}

struct Run<'a> {
    world: &'a World<'a>,
    pool: &'a mut Pool,
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
    /// Layers of this build by content key, and who made them.
    layers: HashMap<TreeDigest, (Layer, Made)>,
    /// Keys of steps that are not done.
    keyed: HashMap<VertexId, Keyed>,
    failures: Vec<SolveError>,
}

impl<'a> Run<'a> {
    fn new(world: &'a World<'a>, pool: &'a mut Pool, steps: &'a Steps<'a>, adopted: Adopted) -> Self {
        let mut run = Self {
            world,
            pool,
            steps,
            missing: HashMap::new(),
            readers: HashMap::new(),
            done: BTreeMap::new(),
            uses: HashMap::new(),
            running: HashMap::new(),
            layers: HashMap::new(),
            keyed: HashMap::new(),
            failures: Vec::new(),
        };
        steps.targets().for_each(|id| *run.uses.entry(id).or_default() += 1);
        let Adopted { snapshots, open } = adopted;
        let (sources, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|id| steps.source(*id).is_some());
        open.iter().for_each(|id| run.wait_for_inputs(*id));
        run.tell_cached(&open);
        let sources =
            sources.into_iter().filter_map(|id| Some((id, key::source_snapshot(steps.source(id)?))));
        for (id, snapshot) in snapshots.into_iter().chain(sources.collect::<Vec<_>>()) {
            let digest = snapshot.digest();
            run.provide(id, Arc::new(snapshot), digest);
        }
        run
    }

    /// Everything that the targets need and nobody has to run, in graph order.
    fn tell_cached(&self, open: &[VertexId]) {
        let settled = self.steps.order().filter(|id| self.steps.source(*id).is_none());
        for id in settled.filter(|id| open.binary_search(id).is_err()) {
            let hit = Hit { definition: self.steps.definition(id), made: None };
            (self.world.events)(Event::Cached(id, Box::new(hit)));
        }
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
        let known = self.layers.get(&content).cloned().or_else(|| keyed.hit.clone());
        self.keyed.insert(id, keyed);
        if let Some((layer, made)) = known {
            self.layers.insert(content, (layer.clone(), made.clone()));
            return self.cached(id, layer, made);
        }
        (self.world.events)(Event::Missed(id, Box::new(self.miss(id))));
        match self.running.get_mut(&content) {
            Some(waiting) => waiting.push(id),
            None => {
                self.running.insert(content, Vec::new());
                let job = self.job(id);
                self.submit(Task::Execute(job));
            }
        }
    }

    fn miss(&self, id: VertexId) -> Miss {
        let keyed = &self.keyed[&id];
        Miss {
            definition: self.steps.definition(id),
            content: keyed.content,
            pre_image: self.pre_image(id, keyed),
            forced: self.steps.is_forced(id),
            expired: None,
        }
    }

    fn pre_image(&self, id: VertexId, keyed: &Keyed) -> BTreeMap<String, String> {
        let vertex = |id: &VertexId| self.world.graph.vertex(*id);
        let inputs: Vec<_> = self.steps.inputs(id).iter().map(vertex).collect();
        key::pre_image(vertex(&id), &inputs, &keyed.read)
    }

    fn executed(&mut self, id: VertexId, executed: Executed) {
        let Executed { layer, took } = executed;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let made = Made { by: self.world.maker.clone(), took_ms };
        let content = self.keyed[&id].content;
        self.layers.insert(content, (layer.clone(), made.clone()));
        (self.world.events)(Event::Done(id, layer.clone()));
        self.finish(id, layer.clone(), made.clone());
        for other in self.running.remove(&content).unwrap_or_default() {
            self.cached(other, layer.clone(), made.clone());
        }
    }

    fn cached(&mut self, id: VertexId, layer: Layer, made: Made) {
        let hit = Hit { definition: self.steps.definition(id), made: Some(made.clone()) };
        (self.world.events)(Event::Cached(id, Box::new(hit)));
        self.finish(id, layer, made);
    }

    fn finish(&mut self, id: VertexId, layer: Layer, made: Made) {
        let parent = self.done[&self.steps.inputs(id)[0]].digest;
        let digest = Snapshot::digest_with(&parent, &layer);
        let mut snapshot = self.take_parent(id);
        snapshot.layers.push(layer);
        let snapshot = Arc::new(snapshot);
        self.remember(id, parent, &snapshot, made);
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

    fn remember(&mut self, id: VertexId, parent: TreeDigest, snapshot: &Snapshot, made: Made) {
        let keyed = self.keyed.remove(&id).expect("a step is keyed before it is done");
        if self.world.caches.is_empty() {
            return;
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
        self.pool.submit(Task::Remember(Box::new(record)));
    }
}

//! What a worker does, one function a task: each asks the world and answers with one message.

use std::sync::Arc;

use oci::{Layer, TreeDigest};

use super::{
    leash::Leash,
    pool::{Ready, World},
    seat::Seat,
};
use crate::{
    cache::{Claim, Key, Made, Record},
    event::{Event, Stream},
    graph::VertexId,
    key::{self, Reading},
    op::{Op, Selector, Source},
    traits::{Answer, Cancel, Executed, Input, Notice, Step, StepFailure},
};

/// Who does a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crew {
    /// Those who run steps.
    Steps,
    /// Those who do everything else, none of which takes long but what waits for the disk or the network.
    Other,
}

/// What a worker is asked to do.
pub(super) enum Task {
    /// Hash the files of a source.
    Identify(VertexId),
    /// Compute a step's content key and ask the caches for it.
    Key(Job),
    /// Make ready what a step stands on, of which nobody knows yet whether it will run.
    Prepare(Job),
    /// Run the step with this content key, unless another builder runs it or has run it by now.
    Execute(Job, TreeDigest),
    /// Look whether the builder that runs the step with this content key has ended.
    Probe(Job, TreeDigest),
    /// Store a record in every near cache, give it to the writers, then let others have what was reserved.
    Remember(Arc<Record>, Memory),
}

impl Task {
    pub(super) fn crew(&self) -> Crew {
        match self {
            Self::Prepare(_) | Self::Execute(..) => Crew::Steps,
            Self::Identify(_) | Self::Key(_) | Self::Probe(..) | Self::Remember(..) => Crew::Other,
        }
    }
}

/// A step whose inputs are there.
pub(super) struct Job {
    pub(super) id: VertexId,
    pub(super) inputs: Vec<Ready>,
    /// Whether the caches may answer.
    pub(super) use_cache: bool,
    /// Says when it is not needed any more.
    pub(super) leash: Leash,
    /// Where it is said that it runs.
    pub(super) seat: Option<Seat>,
}

/// What the scheduler is told: by workers, one message a task, and by those who ask distant caches.
pub(super) enum Message {
    Identified(VertexId, Result<TreeDigest, StepFailure>),
    Keyed(VertexId, Result<Keyed, StepFailure>),
    /// To [`Task::Execute`] and [`Task::Probe`], with the content key.
    Turn(VertexId, TreeDigest, Result<Turn, StepFailure>),
    /// A record is written.
    Remembered,
    /// What a step stands on is ready, or was called back.
    Prepared,
    /// The build was stopped before the task was begun.
    Skipped(VertexId),
    /// The distant cache of this number has or has not what was asked for.
    Answered(usize, Vec<Answer>),
    /// What is heard of the step with this content key from builders that share no store with this one, and at which seat.
    Noticed(TreeDigest, u64, Notice),
    /// It has done with a look-up; these keys, of which it has told nothing, are misses.
    Returned(usize, Vec<Key>),
    /// A worker is gone: it panicked, and its scope will say so.
    Lost,
}

/// A step's content key and what is known under it.
pub(super) struct Keyed {
    pub(super) content: TreeDigest,
    /// What the key was made of.
    pub(super) read: Vec<TreeDigest>,
    pub(super) found: Found,
}

/// The layer of a step that need not run.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) layer: Layer,
    pub(super) made: Made,
    /// The distant cache that has it.
    pub(super) from: Option<String>,
}

/// What the near caches have under a content key.
#[derive(Default)]
pub(super) struct Found {
    pub(super) hit: Option<Known>,
    /// Who made the one that is too old, where there is no other.
    pub(super) expired: Option<Made>,
}

/// What came of trying to run a step.
pub(super) enum Turn {
    /// It ran, and stays reserved until it is remembered.
    Ran(Executed, Reserved),
    /// Another builder has run it.
    Found(Known),
    /// Another builder runs it: who, in words.
    Busy(String),
    /// Nobody runs it any more, and nobody has.
    Free,
}

/// What keeps other builders from running a step.
#[derive(Default)]
pub(super) struct Reserved(Vec<Claim>);

/// What waits until a step is remembered.
#[derive(Default)]
pub(super) struct Memory {
    /// Other builders may look for the step then.
    pub(super) reserved: Reserved,
    /// What everybody is told then.
    pub(super) told: Option<Event>,
}

impl Memory {
    /// The step is remembered.
    pub(super) fn settle(self, world: &World) {
        drop(self.reserved);
        if let Some(event) = self.told {
            (world.events)(event);
        }
    }
}

pub(super) fn perform(world: &World, task: Task) -> Message {
    let stopped = world.stop.is_requested();
    match task {
        // Whatever has ended the build, what was made is kept.
        Task::Remember(record, memory) => {
            world.caches.iter().for_each(|cache| cache.store(&record));
            world.writers.iter().for_each(|writer| writer.store(&record));
            memory.settle(world);
            Message::Remembered
        }
        Task::Identify(id) if stopped => Message::Skipped(id),
        Task::Key(Job { id, .. }) | Task::Execute(Job { id, .. }, _) | Task::Probe(Job { id, .. }, _)
            if stopped =>
        {
            Message::Skipped(id)
        }
        Task::Identify(id) => Message::Identified(id, identify(world, id)),
        Task::Prepare(job) => {
            if !stopped {
                prepare(world, &job);
            }
            Message::Prepared
        }
        Task::Key(job) => Message::Keyed(job.id, find(world, &job)),
        Task::Execute(job, content) => Message::Turn(job.id, content, take_turn(world, &job, content)),
        Task::Probe(job, content) => Message::Turn(job.id, content, Ok(probe(world, &job, content))),
    }
}

fn identify(world: &World, id: VertexId) -> Result<TreeDigest, StepFailure> {
    match &world.graph.vertex(id).op {
        Op::Source(source) => world.executor.identify(source, world.stop),
        _ => unreachable!("only sources are identified"),
    }
}

pub(super) fn find(world: &World, job: &Job) -> Result<Keyed, StepFailure> {
    job.leash.still_wanted()?;
    let vertex = world.graph.vertex(job.id);
    let read = key::readings(&vertex.op).into_iter().map(|reading| match reading {
        Reading::Whole(input) => Ok(job.inputs[input].digest),
        Reading::Selected(input, selector) => {
            selected(world, &job.inputs[input], &selector, job.leash.cancel())
        }
    });
    let read = read.collect::<Result<Vec<_>, _>>()?;
    let content = key::content_key(vertex, &read);
    let found = if job.use_cache { remembered(world, content, &job.inputs[0]) } else { Found::default() };
    Ok(Keyed { content, read, found })
}

/// Digest of what a copy takes of one of its sources.
fn selected(
    world: &World,
    input: &Ready,
    selector: &Selector,
    cancel: &Cancel,
) -> Result<TreeDigest, StepFailure> {
    match &world.graph.vertex(input.id).op {
        Op::Source(source @ (Source::Context(_) | Source::Inline(_))) => {
            Ok(key::source_key(source, input.identity.as_ref()))
        }
        _ => world.executor.select(&input.snapshot, selector, cancel),
    }
}

/// The layer that the first near cache to know it has under a content key.
fn remembered(world: &World, content: TreeDigest, parent: &Ready) -> Found {
    let mut expired = None;
    for cache in world.caches {
        let Some(record) = cache.lookup(&[Key::Content(content)]).pop().flatten() else { continue };
        let Some(layer) = layer_on(&record, content, &parent.digest) else { continue };
        if record.made.by.at >= world.oldest {
            return Found { hit: Some(Known { layer, made: record.made, from: None }), expired: None };
        }
        expired = expired.or(Some(record.made));
    }
    Found { hit: None, expired }
}

/// What a record has for a content key. One that was not made on this parent is none of ours.
pub(super) fn layer_on(record: &Record, content: TreeDigest, parent: &TreeDigest) -> Option<Layer> {
    let fits = record.content == content && record.parent == *parent;
    record.layer().filter(|_| fits).cloned()
}

/// Reserves a step in every cache that does such things; `Err` says who has it.
fn reserve(world: &World, content: TreeDigest) -> Result<Reserved, String> {
    let mut claims = Vec::new();
    for cache in world.caches {
        match cache.claim(&content, world.maker) {
            Claim::Busy(owner) => return Err(owner),
            Claim::NotKept => {}
            held @ Claim::Held(_) => claims.push(held),
        }
    }
    Ok(Reserved(claims))
}

fn take_turn(world: &World, job: &Job, content: TreeDigest) -> Result<Turn, StepFailure> {
    job.leash.still_wanted()?;
    if !job.use_cache {
        return execute(world, job).map(|executed| Turn::Ran(executed, Reserved::default()));
    }
    let mut reserved = match reserve(world, content) {
        Ok(reserved) => reserved,
        Err(owner) => return Ok(Turn::Busy(owner)),
    };
    // Between our look and our claim somebody may have had the claim, and stored what we want.
    if !reserved.0.is_empty()
        && let Some(known) = remembered(world, content, &job.inputs[0]).hit
    {
        return Ok(Turn::Found(known));
    }
    if let Some(seat) = &job.seat {
        seat.take();
        reserved.0.push(Claim::Held(Box::new(seat.clone())));
    }
    let executed = execute(world, job);
    if let (Err(failure), Some(seat)) = (&executed, &job.seat) {
        seat.end(failure);
    }
    executed.map(|executed| Turn::Ran(executed, reserved))
}

fn probe(world: &World, job: &Job, content: TreeDigest) -> Turn {
    match reserve(world, content) {
        Err(owner) => Turn::Busy(owner),
        Ok(_reserved) => match remembered(world, content, &job.inputs[0]).hit {
            Some(known) => Turn::Found(known),
            None => Turn::Free,
        },
    }
}

/// What goes wrong here goes wrong again when the step runs, which then says it.
fn prepare(world: &World, job: &Job) {
    let is_missed = |keyed: Keyed| keyed.found.hit.is_none();
    if find(world, job).is_ok_and(is_missed) && job.leash.still_wanted().is_ok() {
        world.executor.prepare(step(world, job, &|_, _| {}));
    }
}

fn step<'a>(world: &World<'a>, job: &'a Job, log: &'a (dyn Fn(Stream, &[u8]) + Sync)) -> Step<'a> {
    let inputs = job.inputs.iter().map(|Ready { id, snapshot, digest: _, identity }| Input {
        vertex: world.graph.vertex(*id),
        snapshot,
        identity: *identity,
    });
    let (id, inputs, cancel) = (job.id, inputs.collect(), job.leash.cancel());
    Step { id, vertex: world.graph.vertex(id), inputs, log, cancel }
}

fn execute(world: &World, job: &Job) -> Result<Executed, StepFailure> {
    let (World { executor, events, .. }, Job { id, leash, .. }) = (world, job);
    let log = |stream: Stream, line: &[u8]| {
        let _ = leash.if_wanted(|| events(Event::Log(*id, stream, line.to_vec())));
    };
    leash.if_wanted(|| events(Event::Started(*id)))?;
    executor.execute(step(world, job, &log))
}

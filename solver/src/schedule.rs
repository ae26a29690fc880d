//! What runs, and when: asks the caches, runs what they do not answer, and gives back the images.
//!
//! A build goes through four phases, each a function of what the one before returned:
//!
//! 1. every source that the targets need is identified ([`Executor::identify`]), so that definition keys are known;
//! 2. all steps are looked up by definition key at once, and for a moment the distant caches are waited for
//!    (what the steps stand on that are open next is made ready meanwhile: `early`);
//! 3. `adopt` decides which of those answers stand together and which steps nobody needs any more;
//!    (what this machine cannot do is told now, before anything runs: `possible`);
//! 4. `run` does the rest as inputs become ready: content key, look-up, and only then the step itself; what distant
//!    caches answer meanwhile makes it less.
//!
//! One thread owns all state and is told by workers what happened, through a channel of a closed enum; workers share
//! nothing but the traits. What a build returns does not depend on the order in which they answer. Nothing here
//! recurses over the graph.

mod adopt;
mod distant;
mod early;
mod leash;
mod lookup;
mod pool;
mod possible;
mod run;
mod seat;
mod steps;
mod task;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, io, sync::Arc, thread, time::Duration};

use oci::{Snapshot, TreeDigest};

use crate::{
    Image,
    cache::Maker,
    event::{Event, EventSink},
    graph::{Graph, Target, VertexId},
    op::{Op, Source},
    traits::{
        Bulletin, CacheBackend, Cancel, DistantCache, Executor, FailureKind, RecordWriter, StepFailure,
    },
};
use distant::Distant;
use pool::{Pool, World};
use run::Rest;
use seat::Board;
use steps::Steps;
use task::{Message, Task};

/// How a build is run.
#[derive(Debug, Clone)]
pub struct SolveOptions {
    /// How many steps run at the same time, at least one.
    pub jobs: usize,
    /// Results that were made before this, in Unix seconds, are made again; 0 takes all.
    pub oldest: u64,
    /// Goes into the records.
    pub maker: Maker,
}

/// Everything that remembers results for a build.
#[derive(Clone, Copy)]
pub struct Caches<'a> {
    /// Asked first, each for what those before it lack, and waited for. Every record is stored in each of them.
    pub near: &'a [&'a dyn CacheBackend],
    /// Asked for what those lack, all at the same time, and hardly waited for: what they answer late still counts. A
    /// look-up that has not returned when the build ends is asked to, and left behind.
    pub distant: &'a [Arc<dyn DistantCache>],
    /// Get the records of all steps that ran, and of those cached whose record is known, each once.
    pub writers: &'a [&'a dyn RecordWriter],
    /// Where it is said which commands are run here, and which are elsewhere.
    pub bulletin: Option<&'a Arc<dyn Bulletin>>,
    /// Time since the distant caches were first asked for anything: steps wait for them a quarter of a second, of which
    /// what came before the schedule has used up its part.
    pub clock: &'a (dyn Fn() -> Duration + Sync),
}

impl<'a> Caches<'a> {
    /// Nothing is far away.
    pub fn near(near: &'a [&'a dyn CacheBackend]) -> Self {
        Self { near, distant: &[], writers: &[], bulletin: None, clock: &|| Duration::MAX }
    }
}

/// The step that failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct SolveError {
    /// The step; its label and span are in the graph.
    pub vertex: VertexId,
    /// Why.
    #[source]
    pub failure: StepFailure,
}

/// Makes the images that a graph asks for, in the order of its targets.
///
/// Every step and shown source of [`Event::Planned`] gets exactly one of `Ready`, `Cached`, `Done`, `Failed` and
/// `Cancelled`, unless the build ends before its turn. `Cached` may follow `Started`: a distant cache has answered late,
/// and the step has been stopped. So may `Waiting`: another builder runs the step, which has been stopped here; it may be
/// started again.
///
/// # Errors
/// The failure of the first step, in graph order, that failed by itself; the others have been stopped and waited for.
/// [`FailureKind::Cancelled`] when `cancel` was requested.
pub fn solve(
    graph: &Graph,
    executor: &dyn Executor,
    caches: &Caches<'_>,
    options: &SolveOptions,
    events: &EventSink,
    cancel: &Cancel,
) -> Result<Vec<Image>, SolveError> {
    let stop = cancel.child();
    let world = World {
        graph,
        executor,
        caches: caches.near,
        writers: caches.writers,
        events,
        stop: &stop,
        maker: &options.maker,
        oldest: options.oldest,
    };
    let needed = steps::needed(graph);
    events(Event::Planned(shown(graph, &needed)));
    thread::scope(|scope| {
        let mut pool = Pool::new(scope, &world, options.jobs).map_err(|error| no_thread(graph, error))?;
        let identities = identify(&world, &mut pool, &needed)?;
        let steps = Steps::new(graph, &needed, identities);
        let mut distant = Distant::new(caches, pool.outside());
        let (memories, adopted, early) = lookup::look_up(&world, &mut pool, &mut distant, &steps);
        let impossible = possible::check(&world, &steps, &distant, &adopted)?;
        let board = caches.bulletin.map(|bulletin| Board::new(bulletin, pool.outside()));
        let rest = Rest { adopted, memories, impossible, distant, early, board };
        let mut snapshots = run::run(&world, &mut pool, &steps, rest)?;
        Ok(graph.targets.iter().map(|target| image(&steps, &mut snapshots, target)).collect())
    })
}

/// Nothing can be begun.
fn no_thread(graph: &Graph, error: io::Error) -> SolveError {
    let failure = StepFailure::caused(FailureKind::Machine, "no further thread can be made", error);
    SolveError { vertex: graph.targets.first().map_or(VertexId(0), |target| target.vertex), failure }
}

fn image(steps: &Steps, snapshots: &mut BTreeMap<VertexId, Arc<Snapshot>>, target: &Target) -> Image {
    let snapshot =
        snapshots.get(&steps.same(target.vertex)).expect("every target is solved when the build is");
    Image { target: target.clone(), snapshot: Snapshot::clone(snapshot) }
}

/// What people are shown: all but what costs nothing and comes from nowhere.
fn shown(graph: &Graph, needed: &[VertexId]) -> Vec<(VertexId, String)> {
    let visible = |id: &&VertexId| is_shown(graph, **id);
    needed.iter().filter(visible).map(|id| (*id, graph.vertex(*id).label.clone())).collect()
}

fn is_shown(graph: &Graph, id: VertexId) -> bool {
    !matches!(graph.vertex(id).op, Op::Source(Source::Scratch | Source::Inline(_)))
}

/// Phase 1: the digest of every source that has files of its own.
fn identify(
    world: &World,
    pool: &mut Pool<'_>,
    needed: &[VertexId],
) -> Result<BTreeMap<VertexId, TreeDigest>, SolveError> {
    for id in needed {
        match &world.graph.vertex(*id).op {
            Op::Source(Source::Context(_) | Source::Inline(_)) => pool.submit(Task::Identify(*id)),
            Op::Source(Source::Image(_)) => (world.events)(Event::Ready(*id)),
            _ => {}
        }
    }
    let mut identities = BTreeMap::new();
    let mut failures = Vec::new();
    while let Some(message) = pool.next() {
        match message {
            Message::Identified(id, Ok(identity)) => {
                identities.insert(id, identity);
                tell(world, Event::Ready(id), id);
            }
            Message::Identified(id, Err(failure)) => failures.push(fail(world, id, failure)),
            Message::Skipped(id) => failures.push(skipped(id)),
            _ => unreachable!("only sources are worked on in this phase"),
        }
    }
    match first(failures) {
        Some(failure) => Err(failure),
        None => Ok(identities),
    }
}

/// Tells of a step, unless it is one that people are not shown.
fn tell(world: &World, event: Event, id: VertexId) {
    if is_shown(world.graph, id) {
        (world.events)(event);
    }
}

/// Stops the build for a failure and says whose it is.
fn fail(world: &World, id: VertexId, failure: StepFailure) -> SolveError {
    world.stop.request();
    let event = match failure.kind {
        FailureKind::Cancelled => Event::Cancelled(id),
        _ => Event::Failed(id, failure.message.clone()),
    };
    tell(world, event, id);
    SolveError { vertex: id, failure }
}

/// What a step that was not begun for a stop ends with.
fn skipped(id: VertexId) -> SolveError {
    SolveError { vertex: id, failure: StepFailure::new(FailureKind::Cancelled, "the build was stopped") }
}

/// The failure to report: of those that are not mere consequences of another, the first in graph order.
fn first(failures: Vec<SolveError>) -> Option<SolveError> {
    let consequence = |error: &SolveError| error.failure.kind == FailureKind::Cancelled;
    failures.into_iter().min_by_key(|error| (consequence(error), error.vertex))
}

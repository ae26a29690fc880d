//! What runs, and when: asks the caches, runs what they do not answer, and gives back the images.
//!
//! A build goes through four phases, each a function of what the one before returned:
//!
//! 1. every source that the targets need is identified ([`Executor::identify`]), so that definition keys are known;
//! 2. all steps are looked up by definition key at once;
//! 3. `adopt` decides which of those answers stand together and which steps nobody needs any more;
//! 4. `run` does the rest as inputs become ready: content key, look-up, and only then the step itself.
//!
//! One thread owns all state and is told by workers what happened, through a channel of a closed enum; workers share
//! nothing but the traits. What a build returns does not depend on the order in which they answer. Nothing here
//! recurses over the graph.

mod adopt;
mod pool;
mod run;
mod steps;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, thread};

use oci::{Snapshot, TreeDigest};

use crate::{
    Image,
    cache::{Key, Maker, Record},
    event::{Event, EventSink},
    graph::{Graph, Target, VertexId},
    op::{Op, Source},
    traits::{CacheBackend, Cancel, Executor, FailureKind, StepFailure},
};
use pool::{Message, Pool, Task, World};
use steps::Steps;

/// How a build is run.
#[derive(Debug, Clone)]
pub struct SolveOptions {
    /// How many things are done at the same time, at least one.
    pub jobs: usize,
    /// Goes into the records.
    pub maker: Maker,
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
/// `Cancelled`, unless the build ends before its turn.
///
/// # Errors
/// The failure of the first step, in graph order, that failed by itself; the others have been stopped and waited for.
/// [`FailureKind::Cancelled`] when `cancel` was requested.
pub fn solve(
    graph: &Graph,
    executor: &dyn Executor,
    caches: &[&dyn CacheBackend],
    options: &SolveOptions,
    events: &EventSink,
    cancel: &Cancel,
) -> Result<Vec<Image>, SolveError> {
    let stop = cancel.child();
    let world = World { graph, executor, caches, events, stop: &stop, maker: &options.maker };
    let needed = steps::needed(graph);
    events(Event::Planned(shown(graph, &needed)));
    thread::scope(|scope| {
        let mut pool = Pool::start(scope, &world, options.jobs);
        let identities = identify(&world, &mut pool, &needed)?;
        let steps = Steps::new(graph, &needed, identities);
        let adopted = adopt::adopt(&steps, look_up(&steps, caches));
        let mut snapshots = run::run(&world, &mut pool, &steps, adopted)?;
        Ok(graph.targets.iter().map(|target| image(&steps, &mut snapshots, target)).collect())
    })
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
    pool: &mut Pool,
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

/// Phase 2: what the caches, the first one first, have under the definition keys; only what can be a result of its
/// step.
fn look_up(steps: &Steps, caches: &[&dyn CacheBackend]) -> BTreeMap<VertexId, Snapshot> {
    let mut missing: Vec<VertexId> = steps.looked_up_by_definition().collect();
    let mut found = BTreeMap::new();
    for cache in caches {
        if missing.is_empty() {
            break;
        }
        let keys: Vec<Key> = missing.iter().map(|id| Key::Definition(steps.definition(*id))).collect();
        let mut records = cache.lookup(&keys).into_iter();
        missing.retain(|id| match records.next().flatten().and_then(|record| fitting(steps, *id, record)) {
            Some(snapshot) => found.insert(*id, snapshot).is_some(),
            None => true,
        });
    }
    found
}

/// The snapshot of a record, if it can be the result of a step: it has a layer for every step of the chain on top of
/// the very layers of the graph's base. Those are taken from the graph, since the same layer may now come from
/// another place or be compressed in another way.
fn fitting(steps: &Steps, id: VertexId, record: Record) -> Option<Snapshot> {
    let base = steps.base_layers(id);
    let layers = &record.snapshot.layers;
    let fits = record.definition == steps.definition(id)
        && record.layer().is_some()
        && layers.len() == steps.length(id)
        && layers.iter().zip(base).all(|(layer, base)| layer.tree() == base.tree())
        && layers[base.len()..].iter().all(|layer| matches!(layer, oci::Layer::Built(_)));
    let on_base = || Snapshot { layers: [base, &layers[base.len()..]].concat() };
    fits.then(on_base)
}

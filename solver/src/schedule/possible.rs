//! Before anything runs: open steps that this machine cannot do. One that is sure to be run fails the build here, and not
//! after an hour of others; of one that a look-up by content or a distant cache may still settle, people are warned.

use std::collections::BTreeSet;

use super::{
    SolveError,
    adopt::Adopted,
    distant::Distant,
    early, fail,
    leash::Leash,
    pool::World,
    steps::Steps,
    task::{self, Job},
};
use crate::{event::Event, graph::VertexId, op::Op};

/// Asks for every open step, and gives those that cannot be done.
pub(super) fn check(
    world: &World,
    steps: &Steps,
    distant: &Distant<'_>,
    adopted: &Adopted,
) -> Result<BTreeSet<VertexId>, SolveError> {
    let (mut impossible, mut told) = (BTreeSet::new(), BTreeSet::new());
    for id in adopted.open.iter().copied() {
        let vertex = world.graph.vertex(id);
        if matches!(vertex.op, Op::Source(_)) {
            continue;
        }
        let Err(failure) = world.executor.check(vertex) else { continue };
        if steps.is_forced(id) || !distant.is_there() && is_certain(world, steps, adopted, id) {
            return Err(fail(world, id, failure));
        }
        impossible.insert(id);
        if told.insert(vertex.platform.clone()) {
            let what = "this step will fail unless the cache knows the result of what comes before it";
            (world.events)(Event::Warning(format!("{}: {what}: {failure}", vertex.label)));
        }
    }
    Ok(impossible)
}

/// Whether the step will be run: its inputs are here already and the near caches do not know what comes of them.
fn is_certain(world: &World, steps: &Steps, adopted: &Adopted, id: VertexId) -> bool {
    let Some(inputs) = early::inputs(steps, adopted, id) else { return false };
    let leash = Leash::new(world.stop);
    task::find(world, &Job { id, inputs, use_cache: true, leash, seat: None })
        .is_ok_and(|keyed| keyed.found.hit.is_none())
}

//! What a step stands on is made ready while it is not known yet whether a distant cache has the step itself.
//!
//! Who waits for a cache loses nothing that way if it has nothing: a step that is open next would have its base pulled and
//! unpacked anyway. Nobody is shown a step for that, and no command runs. A cache that is near answers before
//! anything is begun (`GRACE` of [`super::distant`]); if one answers later, what is not needed is called back, and what has
//! come down by then is the price, at most that of the rest of its `PATIENCE`.

use std::{collections::HashMap, sync::Arc};

use super::{
    adopt::Adopted,
    leash::Leash,
    pool::{Pool, Ready, World},
    steps::Steps,
    task::{Job, Task},
};
use crate::{graph::VertexId, key};

/// Steps whose ground is made ready.
#[derive(Default)]
pub(super) struct Early {
    leashes: HashMap<VertexId, Leash>,
}

impl Early {
    /// Begins with what can run next, no more than could run at the same time, unless that has been begun.
    pub(super) fn begin(&mut self, world: &World, pool: &mut Pool<'_>, steps: &Steps, adopted: &Adopted) {
        if !self.leashes.is_empty() {
            return;
        }
        for id in adopted.open.iter().copied().filter(|id| steps.source(*id).is_none()) {
            if self.leashes.len() == pool.jobs() {
                return;
            }
            let Some(inputs) = inputs(steps, adopted, id) else { continue };
            let leash = Leash::new(world.stop);
            self.leashes.insert(id, leash.clone());
            pool.submit(Task::Prepare(Job {
                id,
                inputs,
                use_cache: !steps.is_forced(id),
                leash,
                seat: None,
            }));
        }
    }

    /// Calls back what nobody needs any more.
    pub(super) fn keep_open(&mut self, adopted: &Adopted) {
        let settled = self.leashes.extract_if(|id, _| adopted.open.binary_search(id).is_err());
        settled.for_each(|(_, leash)| leash.let_go());
    }

    /// By which the rest can be called back.
    pub(super) fn into_leashes(self) -> HashMap<VertexId, Leash> {
        self.leashes
    }
}

/// The inputs of a step, if all of them are sources or settled.
pub(super) fn inputs(steps: &Steps, adopted: &Adopted, id: VertexId) -> Option<Vec<Ready>> {
    let ready = |input: &VertexId| {
        let of_source = || steps.source(*input).map(key::source_snapshot);
        let snapshot = adopted.snapshots.get(input).cloned().or_else(of_source)?;
        let (digest, identity) = (snapshot.digest(), steps.identity(*input));
        Some(Ready { id: *input, snapshot: Arc::new(snapshot), digest, identity })
    };
    steps.inputs(id).iter().map(ready).collect()
}

//! Sealing while the build still runs: an executor that tells sealers of each layer an image will have.
//!
//! It changes nothing of what the executor behind it does. Only steps on a target's own chain of layers are offered;
//! those of stages that are merely copied from never become blobs.

use std::collections::BTreeSet;

use oci::{Snapshot, TreeDigest};
use solver::{
    Cancel, Executed, Executor, Graph, Step, StepFailure, VertexId,
    op::{Selector, Source},
};

use crate::seal::Sealer;

/// Runs steps as another executor does, and offers the layers of the targets to sealers.
pub struct SealAhead<'a, E> {
    executor: &'a E,
    sealers: &'a [Sealer],
    wanted: BTreeSet<VertexId>,
}

impl<'a, E: Executor> SealAhead<'a, E> {
    /// Offers to `sealers` what `executor` makes for the targets of `graph`.
    pub fn new(executor: &'a E, sealers: &'a [Sealer], graph: &Graph) -> Self {
        let chain =
            |vertex| std::iter::successors(Some(vertex), |id| graph.vertex(*id).inputs.first().copied());
        let wanted = graph.targets.iter().flat_map(|target| chain(target.vertex)).collect();
        Self { executor, sealers, wanted }
    }
}

impl<E: Executor> Executor for SealAhead<'_, E> {
    fn identify(&self, source: &Source, cancel: &Cancel) -> Result<TreeDigest, StepFailure> {
        self.executor.identify(source, cancel)
    }

    fn select(
        &self,
        snapshot: &Snapshot,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<TreeDigest, StepFailure> {
        self.executor.select(snapshot, selector, cancel)
    }

    fn execute(&self, step: Step<'_>) -> Result<Executed, StepFailure> {
        let parent =
            step.inputs.first().map(|input| input.snapshot).filter(|_| self.wanted.contains(&step.id));
        let executed = self.executor.execute(step)?;
        if let Some(parent) = parent {
            let snapshot = parent.with(executed.layer.clone());
            self.sealers.iter().for_each(|sealer| sealer.offer(&snapshot));
        }
        Ok(executed)
    }
}

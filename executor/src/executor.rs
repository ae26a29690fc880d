//! Joins the parts: one step from its inputs to its layer. Implements [`solver::Executor`].

use std::collections::BTreeMap;

use oci::{Layer, Snapshot, TreeDigest, fetch::Fetcher};
use solver::{Executor, FailureKind, Step, StepFailure, op::Selector, op::Source};

use crate::{
    context::ContextDirectory,
    snapshot::{Events, Snapshots},
};

/// What a [`LocalExecutor`] works with.
#[derive(Clone)]
pub struct ExecutorOptions {
    /// The store, and where base layers come from.
    pub fetcher: Fetcher,
    /// The directories that contexts name: the main one is `""`, the others are called as `--build-context` calls them.
    pub contexts: BTreeMap<String, ContextDirectory>,
    /// Takes pulls and warnings.
    pub events: Events,
}

/// Runs steps on this machine.
pub struct LocalExecutor {
    snapshots: Snapshots,
}

impl LocalExecutor {
    /// An executor; nothing is opened or started yet.
    pub fn new(options: ExecutorOptions) -> Self {
        Self { snapshots: Snapshots::new(options.fetcher, options.events) }
    }

    /// The snapshots it works on.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }
}

fn pending() -> StepFailure {
    StepFailure::new(FailureKind::Machine, "not there yet")
}

impl Executor for LocalExecutor {
    fn identify(&self, _source: &Source) -> Result<TreeDigest, StepFailure> {
        Err(pending())
    }

    fn select(&self, _snapshot: &Snapshot, _selector: &Selector) -> Result<TreeDigest, StepFailure> {
        Err(pending())
    }

    fn execute(&self, _step: Step<'_>) -> Result<Layer, StepFailure> {
        Err(pending())
    }
}

//! Joins the parts: one step from its inputs to its layer. Implements [`solver::Executor`].

use std::{collections::BTreeMap, sync::Arc};

use oci::{Layer, Snapshot, TreeDigest, fetch::Fetcher};
use solver::{Cancel, Executor, FailureKind, Step, StepFailure, op::Selector, op::Source};

use crate::{
    context::ContextDirectory,
    sandbox::Rung,
    snapshot::{Events, Snapshots},
};

/// What a [`LocalExecutor`] works with.
#[derive(Clone)]
pub struct ExecutorOptions {
    /// The store, and where base layers come from.
    pub fetcher: Fetcher,
    /// The directories that contexts name: the main one is `""`, the others are called as `--build-context` calls them.
    pub contexts: BTreeMap<String, ContextDirectory>,
    /// Whose ids this process has, from [`crate::sandbox::enter_builder`].
    pub rung: Rung,
    /// Takes pulls and warnings.
    pub events: Events,
    /// Stops pulls; the same that the solver is given.
    pub cancel: Arc<Cancel>,
}

/// Runs steps on this machine.
pub struct LocalExecutor {
    snapshots: Snapshots,
}

impl LocalExecutor {
    /// An executor; nothing is opened or started yet.
    pub fn new(options: ExecutorOptions) -> Self {
        Self {
            snapshots: Snapshots::new(options.fetcher, options.rung.into(), options.events, options.cancel),
        }
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

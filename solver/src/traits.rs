//! The traits through which a build touches the world. Implementations live in `executor`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oci::{BaseLayer, ImageConfig, Layer, Platform, Reference, Snapshot, TreeDigest};

use crate::{
    cache::{Claim, Key, Maker, Record},
    event::Stream,
    graph::{Vertex, VertexId},
    op::{Selector, Source},
};

/// Finds images. Called while planning, from one thread, once for each (image, platform) pair.
pub trait Resolver {
    /// The image behind a reference for a platform: pinned by digest, with its config and the descriptors of its
    /// layers. No layer is downloaded.
    ///
    /// # Errors
    /// A failure of kind [`FailureKind::Registry`] when it cannot be had, [`FailureKind::Unavailable`] when nobody can
    /// say, [`FailureKind::Build`] when it has no such platform.
    fn image(&self, image: &ImageName, platform: &Platform) -> Result<BaseImage, StepFailure>;
}

/// Where an image is looked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageName {
    /// In its registry.
    Registry(Reference),
    /// In an OCI layout directory, by tag or digest where one is given, else the only (or the `latest`) image in it.
    OciLayout {
        /// The directory.
        directory: std::path::PathBuf,
        /// Tag (`org.opencontainers.image.ref.name`) or digest.
        selector: Option<String>,
    },
}

/// An image to build on.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// How to call it with its digest: `docker.io/library/debian:bookworm@sha256:...`.
    pub pinned: String,
    /// Its config.
    pub config: ImageConfig,
    /// Its layers, the base first.
    pub layers: Vec<BaseLayer>,
}

/// Does the work of a step. Called from several threads at the same time, never twice at the same time for equal keys.
pub trait Executor: Sync {
    /// Digest of what a source holds, for sources that have content of their own ([`Source::Context`],
    /// [`Source::Inline`]): a function of paths, kinds, modes, link targets, content and those xattrs that reach a
    /// layer; never of time, owner or inode. Polls `cancel`.
    fn identify(&self, source: &Source, cancel: &Cancel) -> Result<TreeDigest, StepFailure>;

    /// Digest of what a selector picks of a file system: as above, and owner, layer time, hard-link group and
    /// device number too. Polls `cancel`.
    fn select(
        &self,
        snapshot: &Snapshot,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<TreeDigest, StepFailure>;

    /// Whether this machine can do a step at all, whatever it stands on. Asked before any step runs, of those that the
    /// cache does not answer by their definition; may make it so.
    ///
    /// # Errors
    /// What [`Executor::execute`] would say, of the machine's fault.
    fn check(&self, vertex: &Vertex) -> Result<(), StepFailure> {
        let _ = vertex;
        Ok(())
    }

    /// Makes ready what a step stands on, and does nothing of the step itself: nobody knows yet whether it will run, and it may
    /// be run at the same time. What goes wrong is said by [`Executor::execute`]. Polls `step.cancel`.
    fn prepare(&self, step: Step<'_>) {
        let _ = step;
    }

    /// Runs one step that is not a [`Source`] and returns the layer it adds to its first input: in the store, durable
    /// against a kill of the process. Polls `step.cancel` and gives up with [`FailureKind::Cancelled`].
    fn execute(&self, step: Step<'_>) -> Result<Executed, StepFailure>;
}

/// A step that has run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// The layer it adds to its first input.
    pub layer: Layer,
    /// How long it took, on the executor's clock.
    pub took: Duration,
}

/// One step to run.
#[derive(Clone)]
pub struct Step<'a> {
    /// Its place in the graph, for events.
    pub id: VertexId,
    /// What to do.
    pub vertex: &'a Vertex,
    /// What to do it to, in the order of `vertex.inputs`.
    pub inputs: Vec<Input<'a>>,
    /// Takes the step's output, line by line, without line ends.
    pub log: &'a (dyn Fn(Stream, &[u8]) + Sync),
    /// Says when to stop.
    pub cancel: &'a Cancel,
}

/// One input of a step.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The vertex it comes from; a [`Source::Context`] is read from its directory, not from a snapshot.
    pub vertex: &'a Vertex,
    /// Its file system. Empty for [`Source::Context`] and [`Source::Inline`].
    pub snapshot: &'a Snapshot,
    /// What was keyed for a context or inline source: what is copied must hash to this, or the step fails with
    /// "changed while reading".
    pub identity: Option<TreeDigest>,
}

/// Remembers results. Called from several threads at the same time. A cache never fails a build: an implementation
/// reports trouble as a warning of its own and answers with a miss.
pub trait CacheBackend: Sync {
    /// The record of each key, in order; `None` for those it does not have or whose layers cannot be had any more.
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>>;

    /// Remembers a record under both its keys. The layers it names are in the store already, or in a distant cache that
    /// the build reads: those may come, or never.
    fn store(&self, record: &Record);

    /// Tries to reserve the step with this content key among all builders that share the cache, so that only one of
    /// them runs it. Answers at once; whoever is told [`Claim::Busy`] asks again later. Whoever gets it looks the key up
    /// once more before running: the last holder may have stored it. `maker` is what others are told.
    fn claim(&self, content: &TreeDigest, maker: &Maker) -> Claim {
        let (_, _) = (content, maker);
        Claim::NotKept
    }
}

/// A cache that is far away: every question is a round trip, and may take forever. So nobody waits for it who has something
/// else to do; what it answers late still counts. Called from several threads at the same time. As any cache it never
/// fails a build: trouble is a warning of its own, and a miss.
pub trait DistantCache: Send + Sync {
    /// Looks keys up, all at the same time, those first that come first, and tells each answer as it comes: once for every
    /// key, from any thread, together what is known together, so that nobody begins what the next answer makes needless.
    /// Returns when all are told, or soon after `cancel` asks, with some untold; those are misses. A build ends without
    /// waiting for that.
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync));
}

/// Writes records where other machines find them. Called from several threads at the same time; never fails a build.
pub trait RecordWriter: Sync {
    /// Takes a record to be written in the background, and returns at once. Its layers are in the store, or in a distant
    /// cache that the build reads; it may be one that this very writer's cache has given. Called once for every step that
    /// ran, and for every step that a cache has answered and whose record is known.
    fn store(&self, record: &Record);
}

/// Where builders that share a distant cache, and no store, say which steps they run, so that hardly any runs twice. No step
/// waits for it to begin: who hears that somebody else runs it is called back. Called from several threads at the same
/// time; never fails a build, and who hears nothing goes on.
pub trait Bulletin: Send + Sync {
    /// Says in the background that this build runs the step with this content key, and listens to others, until what is
    /// returned is dropped: the step is over then, and its record, if there is one, with the writers. `tell` is told what
    /// to do about it, from any thread.
    fn attend(&self, content: &TreeDigest, tell: Box<dyn Fn(Notice) + Send>) -> Box<dyn Send + Sync>;

    /// The step with this content key, which is attended and was stopped, has a worker again ([`Notice::Free`]). Nobody else is
    /// to wait for it before.
    fn begin(&self, content: &TreeDigest);

    /// The step with this content key, which is attended, has failed by itself, and would elsewhere. One that is over without
    /// that and without a record was stopped, or this machine could not run it.
    fn fail(&self, content: &TreeDigest);
}

/// What is heard of a step that this build runs, or has stopped to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Another builder runs it: it is to be stopped here. One of the others follows, and nothing is waited for that this build
    /// would have to do first: whoever says that he runs a step has begun.
    Elsewhere,
    /// This is what came of it there.
    Found(Box<Found>),
    /// Nobody runs it any more, and nothing came of it: it is to be run here.
    Free,
}

/// A key, and what a distant cache has under it.
pub type Answer = (Key, Option<Found>);

/// A record of a distant cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What is remembered. All its layers can be had, as far as the cache knows.
    pub record: Record,
    /// What the cache is called, for people: `registry.example/app/cache:main`.
    pub cache: String,
}

/// Asks every step of a build to stop. A clone is the same request, not another one.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    requested: Arc<AtomicBool>,
    above: Vec<Arc<AtomicBool>>,
}

impl Cancel {
    /// Asks. Steps that run are ended (SIGTERM, then SIGKILL), none is started any more.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether somebody has asked.
    pub fn is_requested(&self) -> bool {
        self.above.iter().chain([&self.requested]).any(|flag| flag.load(Ordering::SeqCst))
    }

    /// One that is requested when this one is, and can be requested without it: a step that fails stops the others,
    /// and is not taken for the user's Ctrl-C.
    pub fn child(&self) -> Self {
        let above = self.above.iter().chain([&self.requested]).cloned().collect();
        Self { requested: Arc::default(), above }
    }
}

/// Whose fault a failure is; `cli` makes the exit code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The step's own: a command that exits non-zero, a file that is not there.
    Build,
    /// The Dockerfile asks for something that is wrong or not supported.
    Usage,
    /// A registry or the network.
    Registry,
    /// A registry that does not answer: nothing is known about what was asked for.
    Unavailable,
    /// The machine: store, disk, sandbox.
    Machine,
    /// The user stopped the build.
    Cancelled,
}

/// Why a step gave no layer.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StepFailure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What happened, in one line without a period.
    pub message: String,
    /// Exit code of the command, where one ran and exited.
    pub exit_code: Option<i32>,
    /// What to do about it, if we know.
    pub hint: Option<String>,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StepFailure {
    /// A failure with a message of its own.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), exit_code: None, hint: None, source: None }
    }

    /// A failure that says what was being done when something else went wrong.
    pub fn caused(
        kind: FailureKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(kind, message) }
    }

    /// The same failure with advice.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

//! Turns the layers of a snapshot into blobs, in the background while the build still runs.
//!
//! A built layer is *offered* as soon as it exists and *sealed* when an image needs it; whoever comes first does the
//! work, everybody else waits for it. What came out is remembered in the store under `sealed/TREE/ENCODER.TIMES.json`,
//! and such a record answers for the layer as long as its blob is in the store with the recorded size: neither the
//! tree nor a file is touched then. The blob is in place before its record is.
//!
//! A layer of which nothing is here, but that a remote cache has as the blob that is wanted, is sealed by that: nothing of it is
//! brought. Where another encoder or other times are wanted, it is brought and sealed like any other.
//!
//! Layers of base images pass through: their blobs are not made again and their descriptors stay as they are, but for
//! media types, which get their OCI names. Where `force-compression=true` asks for it, those in another format than the
//! built ones' are offered and sealed as these are ([`repack`]).

mod error;
mod progress;
mod repack;
mod turn;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, LayerContents, MediaType, Snapshot, Tree, TreeDigest,
    fetch::Fetcher,
    store::{Store, sealed::SealedRecord},
};
use solver::{Cancel, Event};

use self::work::Work;
use crate::{
    courtesy::{give_way, use_all_processors},
    encode::Encoder,
    layer::TimePolicy,
    monitor::Monitor,
    packing::{BaseLayers, Packing},
    pipeline::Pipeline,
};

pub use self::error::SealError;
pub use crate::courtesy::Courtesy;

/// Takes events, from several threads at the same time.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// Takes layers as their blobs can be had, from several threads at the same time, some of them more than once. Must not
/// block.
pub type OnSealed = Arc<dyn Fn(&SealedLayer) + Send + Sync>;

/// Layers whose serial parts (reading, hashing) are done at the same time; their chunks share the pipeline's threads.
const WORKERS: usize = 4;

/// A layer as an image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedLayer {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: DiffId,
    /// The blob.
    pub descriptor: Descriptor,
    /// Where the blob can be had if the store has not got it, and mounted from if it has: for layers of base images, and
    /// for built ones that a remote cache has. All others are in the store.
    pub origin: Option<BlobOrigin>,
}

/// What a sealer works with.
pub struct SealOptions {
    /// Where trees, snapshots and blobs are.
    pub store: Arc<Store>,
    /// What layers are made into.
    pub encoder: Encoder,
    /// What becomes of the layers of base images.
    pub base: BaseLayers,
    /// How times enter them.
    pub times: TimePolicy,
    /// Compressing threads.
    pub jobs: usize,
    /// How much its threads leave to others on busy processors.
    pub courtesy: Courtesy,
    /// Is told of layers that take a while.
    pub events: Events,
    /// Stops the work.
    pub cancel: Arc<Cancel>,
    /// Knows the bytes of layers that no directory holds.
    pub contents: Option<Arc<dyn LayerContents>>,
    /// Brings the layers of base images that are packed anew, and those of remote caches; knows which these have.
    pub fetcher: Fetcher,
    /// Is given every layer that has been offered, when its blob can be had.
    pub on_sealed: OnSealed,
}

/// Seals layers. Share it by reference; when it is dropped, work that nobody waits for is given up.
pub struct Sealer {
    shared: Arc<Shared>,
    /// As many as layers have been offered, up to a limit: a build that makes none starts none.
    workers: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    options: SealOptions,
    /// Made when the first layer must really be encoded: a build that is cached needs no threads.
    pipeline: OnceLock<Result<Pipeline, Arc<io::Error>>>,
    state: Monitor<State>,
    /// Set when the sealer is dropped: nobody waits any more for what still runs.
    abandoned: AtomicBool,
    /// Set when no step runs any more: there is nobody to give way to.
    is_urgent: AtomicBool,
}

#[derive(Default)]
struct State {
    layers: BTreeMap<TreeDigest, Slot>,
    /// Offered layers, in order; those that somebody has taken since are no longer [`Slot::Queued`].
    queue: VecDeque<Job>,
    /// Those that [`SealOptions::on_sealed`] hears of.
    announced: BTreeSet<TreeDigest>,
}

/// How far a built layer is.
enum Slot {
    Queued,
    Running,
    Done(Result<Box<SealedLayer>, Arc<SealError>>),
}

/// A layer whose blob must be made.
#[derive(Debug, Clone)]
struct Job {
    /// The layer's own identity.
    tree: TreeDigest,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    /// A step, and this is the snapshot that ends in the layer.
    Built(TreeDigest),
    /// An image.
    Base(Box<BaseLayer>),
}

/// A built layer and the snapshot that ends in it.
#[derive(Debug, Clone, Copy)]
struct Built {
    tree: TreeDigest,
    chain: TreeDigest,
}

impl Sealer {
    /// A sealer that nothing has been offered to.
    pub fn new(options: SealOptions) -> Self {
        let shared = Arc::new(Shared {
            options,
            pipeline: OnceLock::new(),
            state: Monitor::default(),
            abandoned: AtomicBool::new(false),
            is_urgent: AtomicBool::new(false),
        });
        Self { shared, workers: Mutex::default() }
    }

    /// No step runs any more: its threads, and those of other sealers, need not keep to half of the processors.
    pub fn hurry(&self) {
        self.shared.is_urgent.store(true, Ordering::SeqCst);
        use_all_processors();
    }

    /// Whether its layers are those of images that are packed in this way.
    pub fn packs(&self, packing: &Packing) -> bool {
        let SealOptions { encoder, base, .. } = &self.shared.options;
        (*encoder, *base) == (packing.encoder, packing.base)
    }

    /// Lets the built layers of a snapshot be sealed in the background; the earliest first. Costs nothing for layers
    /// that were offered before.
    pub fn offer(&self, snapshot: &Snapshot) {
        let mut state = self.shared.state.lock();
        let State { layers, queue, announced } = &mut *state;
        let (mut offered, mut late) = (0, Vec::new());
        for job in snapshot.chain().filter_map(|(chain, layer)| self.shared.job(chain, layer)) {
            if announced.insert(job.tree)
                && let Some(Slot::Done(Ok(sealed))) = layers.get(&job.tree)
            {
                late.push(sealed.clone());
            }
            layers.entry(job.tree).or_insert_with(|| {
                queue.push_back(job);
                offered += 1;
                Slot::Queued
            });
        }
        drop(state);
        self.shared.state.tell();
        self.hire(offered);
        late.iter().for_each(|sealed| (self.shared.options.on_sealed)(sealed));
        self.shared.announce_base(snapshot);
    }

    /// What built layers are made into.
    pub fn encoder(&self) -> Encoder {
        self.shared.options.encoder
    }

    /// How times enter them.
    pub fn times(&self) -> TimePolicy {
        self.shared.options.times
    }

    /// Whether a layer is one of an image.
    pub fn is_offered(&self, tree: &TreeDigest) -> bool {
        self.shared.state.lock().announced.contains(tree)
    }

    /// Whether the store has the blob that it would make of a built layer. `chain` is the digest of the snapshot that ends in it.
    pub fn has_sealed(&self, chain: TreeDigest, tree: &TreeDigest) -> bool {
        let (shared, job) = (&*self.shared, Built { tree: *tree, chain });
        Work { shared, options: &shared.options, job }.recorded().is_some()
    }

    /// Seals one layer for somebody who is not the image: [`SealOptions::on_sealed`] hears of it only if it is offered as
    /// well. `chain` is the digest of the snapshot that ends in the layer. Waits for its turn among the offered ones, and
    /// no longer than until `stop` asks.
    ///
    /// # Errors
    /// It could not be sealed.
    pub fn seal_aside(
        &self,
        chain: TreeDigest,
        layer: &Layer,
        stop: &Cancel,
    ) -> Result<SealedLayer, Arc<SealError>> {
        let job = Job::of(chain, layer);
        let tree = job.tree;
        let mut state = self.shared.state.lock();
        let State { layers, queue, .. } = &mut *state;
        let is_new = !layers.contains_key(&tree);
        if is_new {
            layers.insert(tree, Slot::Queued);
            queue.push_back(job);
        }
        drop(state);
        self.shared.state.tell();
        if !self.hire(usize::from(is_new)) {
            return self.shared.finish(Job::of(chain, layer));
        }
        let mut state = self.shared.state.lock();
        loop {
            match state.layers.get(&tree) {
                Some(Slot::Done(sealed)) => return sealed.clone().map(|sealed| *sealed),
                _ if stop.is_requested() || self.shared.is_unwanted() => {
                    return Err(Arc::new(SealError::Cancelled));
                }
                _ => state = self.shared.state.wait_briefly(state),
            }
        }
    }

    /// Starts workers for so many more layers; says whether there are any. What no thread can be had for is sealed by who
    /// needs it.
    fn hire(&self, layers: usize) -> bool {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.shared.options.jobs.clamp(1, WORKERS);
        for index in workers.len()..limit.min(workers.len() + layers) {
            let shared = Arc::clone(&self.shared);
            let worker = thread::Builder::new().name(format!("seal-{index}"));
            workers.extend(worker.spawn(move || shared.work()));
        }
        !workers.is_empty()
    }

    /// Seals the layers of a snapshot, the base first; empty layers are left out. Helps with what is still queued.
    ///
    /// # Errors
    /// That of the first layer that could not be sealed.
    pub fn seal(&self, snapshot: &Snapshot) -> Result<Vec<SealedLayer>, Arc<SealError>> {
        self.offer(snapshot);
        let seal = |(chain, layer): (TreeDigest, &Layer)| match layer {
            Layer::Base(base) if !self.shared.repacks(base) => pass_through(base).map_err(Arc::new),
            layer => self.shared.finish(Job::of(chain, layer)),
        };
        snapshot.chain().map(seal).collect()
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        {
            let _state = self.shared.state.lock();
            self.shared.abandoned.store(true, Ordering::SeqCst);
        }
        self.shared.state.tell();
        let workers = self.workers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for worker in workers.drain(..) {
            // A worker that panicked has said so already.
            worker.join().unwrap_or_default();
        }
    }
}

impl Job {
    fn of(chain: TreeDigest, layer: &Layer) -> Self {
        let origin = match layer {
            Layer::Base(base) => Origin::Base(base.clone()),
            Layer::Built(_) => Origin::Built(chain),
        };
        Self { tree: layer.tree(), origin }
    }
}

impl Shared {
    /// Whether a layer of a base image is made anew. What is in no format we know is not: its error is told elsewhere.
    fn repacks(&self, base: &BaseLayer) -> bool {
        let SealOptions { encoder, base: wanted, .. } = &self.options;
        *wanted == BaseLayers::Repacked
            && pass_through(base).is_ok_and(|kept| kept.descriptor.media_type != encoder.media_type())
    }

    /// What is to be done for a layer; nothing where it passes through.
    fn job(&self, chain: TreeDigest, layer: &Layer) -> Option<Job> {
        match layer {
            Layer::Base(base) if !self.repacks(base) => None,
            layer => Some(Job::of(chain, layer)),
        }
    }

    fn courtesy(&self) -> Courtesy {
        if self.is_urgent.load(Ordering::SeqCst) { Courtesy::ToSteps } else { self.options.courtesy }
    }

    fn is_unwanted(&self) -> bool {
        self.options.cancel.is_requested() || self.abandoned.load(Ordering::SeqCst)
    }

    /// What passes through can be had at once; what cannot is the error of whoever needs it.
    fn announce_base(&self, snapshot: &Snapshot) {
        let base = snapshot.layers.iter().filter_map(|layer| match layer {
            Layer::Base(base) if !self.repacks(base) => pass_through(base).ok(),
            _ => None,
        });
        base.for_each(|layer| (self.options.on_sealed)(&layer));
    }

    /// A worker's life: seals what is queued until the sealer is dropped.
    fn work(&self) {
        give_way(self.courtesy());
        while let Some(job) = self.next() {
            self.settle(&job);
        }
    }

    /// Takes the oldest layer that is still queued.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if self.is_unwanted() {
                return None;
            }
            match state.queue.pop_front() {
                None => state = self.state.wait(state),
                Some(job) if matches!(state.layers.get(&job.tree), Some(Slot::Queued)) => {
                    state.layers.insert(job.tree, Slot::Running);
                    return Some(job);
                }
                Some(_) => {}
            }
        }
    }

    /// The sealed layer: waits for whoever is at it, or does it here.
    fn finish(&self, job: Job) -> Result<SealedLayer, Arc<SealError>> {
        let mut state = self.state.lock();
        loop {
            match state.layers.get(&job.tree) {
                Some(Slot::Done(sealed)) => return sealed.clone().map(|sealed| *sealed),
                Some(Slot::Running) => state = self.state.wait(state),
                Some(Slot::Queued) | None => {
                    state.layers.insert(job.tree, Slot::Running);
                    drop(state);
                    self.settle(&job);
                    state = self.state.lock();
                }
            }
        }
    }

    /// Seals a layer that has been marked as running, and tells those who wait for it.
    fn settle(&self, job: &Job) {
        let sealed = self.run(job).map(Box::new).map_err(Arc::new);
        let mut state = self.state.lock();
        if let Ok(sealed) = &sealed
            && state.announced.contains(&job.tree)
        {
            drop(state);
            (self.options.on_sealed)(sealed);
            state = self.state.lock();
        }
        state.layers.insert(job.tree, Slot::Done(sealed));
        drop(state);
        self.state.tell();
    }

    fn run(&self, job: &Job) -> Result<SealedLayer, SealError> {
        match &job.origin {
            Origin::Base(base) => repack::repack(self, job.tree, base),
            Origin::Built(chain) => {
                let job = Built { tree: job.tree, chain: *chain };
                Work { shared: self, options: &self.options, job }.seal()
            }
        }
    }

    fn pipeline(&self) -> Result<&Pipeline, SealError> {
        let pipeline =
            self.pipeline.get_or_init(|| Pipeline::new(self.options.jobs, self.courtesy()).map_err(Arc::new));
        pipeline.as_ref().map_err(|error| SealError::Threads(Arc::clone(error)))
    }
}

/// Reads the tree of a built layer from the store; a tree file proves itself by its digest.
pub(crate) fn read_tree(store: &Store, digest: TreeDigest) -> Result<Tree, SealError> {
    let path = store.area("trees").join(digest.hex());
    let bytes = std::fs::read(&path).map_err(|source| SealError::Read { path: path.clone(), source })?;
    let damaged = |source| SealError::DamagedTree { path: path.clone(), source };
    let tree = Tree::from_bytes(&bytes).map_err(|error| damaged(Some(error)))?;
    if tree.digest() == digest { Ok(tree) } else { Err(damaged(None)) }
}

impl From<SealedRecord> for SealedLayer {
    fn from(record: SealedRecord) -> Self {
        Self { diff_id: record.diff_id, descriptor: record.descriptor, origin: None }
    }
}

fn pass_through(base: &BaseLayer) -> Result<SealedLayer, SealError> {
    let media_type = match base.descriptor.media_type.to_oci() {
        known @ (MediaType::OciLayer | MediaType::OciLayerGzip | MediaType::OciLayerZstd) => known,
        _ => return Err(SealError::MediaType(Box::new(base.descriptor.clone()))),
    };
    let descriptor = Descriptor { media_type, ..base.descriptor.clone() };
    Ok(SealedLayer { diff_id: base.diff_id, descriptor, origin: Some(base.origin.clone()) })
}

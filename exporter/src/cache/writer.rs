//! Writes a remote cache while the build runs, and costs it nothing.
//!
//! Records are *stored* as steps end; threads of ours, which let the steps go first, seal their layers (those of an image
//! through its own sealer, all others through one that takes less trouble), bring the blobs to the cache's place and put
//! each record there as soon as all that it names is there. So a build that fails or is killed has published what it
//! finished. [`Writer::finish`] waits for what is under way, and writes the bundle of all records that the build used.
//!
//! What other caches have is passed on as it is: records byte by byte, so that their signatures stay good, blobs mounted or
//! streamed through. What is at the place already, as far as is known, is not sent again.
//!
//! What goes wrong with the place is one warning, after which nothing more is tried; a build fails by it only if it is asked
//! to (`ignore-error=false`), and then in its end.

mod blobs;
mod bring;
mod bundle;
mod chain;
mod finish;
mod ledger;
mod packings;
mod store;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use oci::{Descriptor, Sha256Digest, TreeDigest, fetch::Fetcher};
use solver::{Cancel, Event, Record, RecordWriter, explain::Inventory, key::hidden};

pub use self::chain::OwnChain;
use self::{
    blobs::Blobs,
    bring::Brought,
    ledger::{Ledger, Need, Task},
};
use super::{
    bundle::SignedRecord,
    reader::RemoteCache,
    record::FormatError,
    seen::{Seen, SeenRecord},
    sign::SignKey,
    storage::{Storage, StorageError, told},
};
use crate::{
    courtesy::{Courtesy, give_way},
    monitor::Monitor,
    seal::{Events, SealError, Sealer},
    upload::Landings,
};

/// Threads that write one cache; all but a few wait for answers most of the time.
const WORKERS: usize = 8;

/// Finds the list of files that a digest of a pre-image stands for.
pub type FindInventory = Arc<dyn Fn(&TreeDigest) -> Option<Inventory> + Send + Sync>;

/// What a writer works with.
pub struct WriterOptions {
    /// Where the cache lies.
    pub storage: Arc<dyn Storage>,
    /// Which records are written.
    pub mode: Mode,
    /// The name of the bundle.
    pub bundle: String,
    /// Who reads this very bundle, if anybody does: then the writer waits for what he brings, and asks for nothing itself.
    pub reader: Option<Arc<RemoteCache>>,
    /// What becomes of an error.
    pub on_error: OnError,
    /// Signs what this build has made.
    pub sign: Option<Arc<SignKey>>,
    /// Which steps are on a target's own chain.
    pub chain: OwnChain,
    /// Makes blobs of layers that an image has: the image's, or one for the cache where no output has one that [`fits`].
    pub sealer: Arc<Sealer>,
    /// Makes those of all other layers, which are there for who builds next and cost this build as little as possible.
    pub aside: Arc<Sealer>,
    /// Where the image's blobs are on their way to.
    pub landings: Option<Landings>,
    /// What was read of remote caches.
    pub seen: Seen,
    /// Has the store, knows the layers of other caches, and brings their blobs.
    pub fetcher: Fetcher,
    /// Finds what goes with a record for who explains it.
    pub inventories: FindInventory,
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

/// What has been written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Records of steps that the place lacked.
    pub steps: usize,
    /// Bytes of blobs that it lacked, and that no other repository had.
    pub bytes: u64,
}

/// How the build went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildEnd {
    /// All steps are done.
    Made,
    /// One failed: what the build has not come to may be in the bundle that was read.
    Failed,
}

/// Why a cache was not written, or not whole; told only where it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the cache {cache}")]
pub struct WriteError {
    /// What it is called.
    pub cache: String,
    /// Why not; does not name the cache anew where a registry refuses.
    #[source]
    pub source: Arc<dyn std::error::Error + Send + Sync>,
}

/// Whether the blobs that a sealer makes may be in a cache: layers there have the times of their trees.
pub fn fits(sealer: &Sealer) -> bool {
    sealer.times().id() == oci::store::sealed::NORMAL
}

/// Writes one cache. When it is dropped, what is still under way is given up.
pub struct Writer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Why something did not get to the place.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The place does not take it, and is not tried again.
    #[error(transparent)]
    Place(#[from] StorageError),
    /// The registry does not let us; why, and what to do about it.
    #[error("{0}")]
    Refused(String),
    /// It cannot be had here; the place has nothing to do with it.
    #[error("cannot read blob {digest}")]
    Blob {
        digest: Sha256Digest,
        #[source]
        source: std::io::Error,
    },
    /// A layer could not be sealed.
    #[error(transparent)]
    Seal(#[from] Arc<SealError>),
    /// Nobody would read the record.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Nobody waits for it any more.
    #[error("cancelled")]
    Stopped,
}

impl Trouble {
    /// Why, for who has named the cache already.
    fn reason(&self) -> String {
        match self {
            Self::Place(error) => error.reason(),
            other => told(other),
        }
    }

    /// The same, with what caused it.
    fn cause(self: Arc<Self>) -> Arc<Self> {
        match &*self {
            Self::Place(error) if error.is_refusal() => Arc::new(Self::Refused(error.reason())),
            _ => self,
        }
    }
}

/// A record on its way.
struct Item {
    record: Record,
    /// What another cache has of it, to be passed on as it is.
    seen: Option<Arc<SeenRecord>>,
    /// Layers that it names by the image's blob as well.
    packings: BTreeSet<TreeDigest>,
    /// What is put at the place, and what that names; known once the document is written.
    put: OnceLock<(SignedRecord, Vec<Descriptor>)>,
}

struct Shared {
    options: WriterOptions,
    /// Requested with the user's, or when nobody waits any more.
    stop: Cancel,
    /// Requested with that, and when the place has failed: nothing more is begun there, and what is under way ends.
    trying: Cancel,
    blobs: Blobs,
    state: Monitor<State>,
    /// Counts whatever moves.
    moved: Arc<AtomicU64>,
    /// Layers that are being sealed.
    sealing: AtomicUsize,
    /// Records that were put at the place, and bytes of blobs that were sent there.
    put: AtomicUsize,
    sent: AtomicU64,
}

struct State {
    ledger: Ledger<Item>,
    brought: Brought,
    chain: OwnChain,
    /// Records of steps that are on no target's chain, as far as is known.
    held: Vec<Record>,
    look: Look,
    /// Why the place is not tried any more.
    failure: Option<Arc<Trouble>>,
    /// The first thing that could not be had here.
    lack: Option<Arc<Trouble>>,
    is_closed: bool,
}

/// The look at the bundle that is there, before anything is written.
enum Look {
    /// To be had, with the records that wait for it.
    Open(Vec<Record>),
    Running(Vec<Record>),
    Over,
}

impl State {
    /// Whether no record waits for the look.
    fn has_looked(&self) -> bool {
        match &self.look {
            Look::Open(waiting) => waiting.is_empty(),
            Look::Running(_) => false,
            Look::Over => true,
        }
    }

    /// Whether it is known what all records say.
    fn is_written(&self) -> bool {
        self.has_looked() && self.ledger.kept().all(|item| item.put.get().is_some())
    }

    /// Whether there is nothing under way and nothing to begin.
    fn is_idle(&self) -> bool {
        self.has_looked() && self.ledger.is_idle()
    }

    fn fate(&self, content: &TreeDigest) -> Fate {
        let waiting = match &self.look {
            Look::Open(waiting) | Look::Running(waiting) => &waiting[..],
            Look::Over => &[],
        };
        if waiting.iter().any(|record| record.content == *content) {
            return Fate::Coming;
        }
        self.ledger.progress(|item: &Item| item.record.content == *content)
    }
}

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is on its way to the place.
    Coming,
    /// It is there.
    There,
    /// It will not get there.
    Lost,
    /// Nobody has stored it.
    Unknown,
}

/// What a worker does next.
enum Work {
    Look,
    Task(Task<Item>),
}

impl Writer {
    /// Nothing is contacted and no thread started before something is stored.
    pub fn new(options: WriterOptions) -> Self {
        let is_known = options.seen.bundle(&options.storage.origin(), &options.bundle).is_some();
        let state = State {
            ledger: Ledger::default(),
            brought: Brought::default(),
            chain: options.chain.clone(),
            held: Vec::new(),
            look: if is_known { Look::Over } else { Look::Open(Vec::new()) },
            failure: None,
            lack: None,
            is_closed: false,
        };
        let stop = options.cancel.child();
        let shared = Shared {
            trying: stop.child(),
            stop,
            blobs: Blobs::default(),
            state: Monitor::new(state),
            moved: Arc::default(),
            sealing: AtomicUsize::new(0),
            put: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            options,
        };
        Self { shared: Arc::new(shared), threads: Mutex::default() }
    }

    /// What has been written so far.
    pub fn written(&self) -> Written {
        let Shared { put, sent, .. } = &*self.shared;
        Written { steps: put.load(Ordering::Relaxed), bytes: sent.load(Ordering::Relaxed) }
    }

    /// What the cache is called.
    pub fn name(&self) -> &str {
        self.shared.options.storage.name()
    }

    /// What becomes of the record under a content key, for who asks after the build has ended, too.
    pub fn fates(&self) -> impl Fn(&TreeDigest) -> Fate + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move |content| shared.state.lock().fate(content)
    }

    /// Hears of what the scheduler does, as [`crate::SealAhead::take`] does. Does not block.
    pub fn take(&self, event: &Event) {
        let Event::Settled(id, snapshot) = event else { return };
        let mut state = self.shared.state.lock();
        if state.chain.settle(*id, snapshot) {
            let digest = snapshot.digest();
            let own: Vec<_> = state.held.extract_if(.., |held| held.snapshot.digest() == digest).collect();
            let work = own.into_iter().map(|record| self.shared.want(&mut state, record)).sum();
            drop(state);
            self.hire(work);
        }
    }

    /// Starts threads for so many more things to do. What no thread can be had for is done by those that are there.
    fn hire(&self, work: usize) {
        self.shared.state.tell();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in threads.len()..WORKERS.min(threads.len() + work) {
            let shared = Arc::clone(&self.shared);
            let worker = thread::Builder::new().name("cache".to_owned());
            threads.extend(worker.spawn(move || shared.work()));
        }
    }
}

impl RecordWriter for Writer {
    fn store(&self, record: &Record) {
        // Who may read the cache need not know what the variables of this build hold.
        let record = Record { pre_image: hidden::hide(&record.pre_image), ..record.clone() };
        let mut state = self.shared.state.lock();
        let is_own = self.shared.options.mode == Mode::Max || state.chain.has(&record.snapshot);
        let work = match is_own {
            true => self.shared.want(&mut state, record),
            false => {
                state.held.push(record);
                0
            }
        };
        drop(state);
        self.hire(work);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.stop.request();
        self.shared.state.lock().is_closed = true;
        self.shared.state.tell();
        for thread in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A worker that panicked has said so already.
            thread.join().unwrap_or_default();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self) {
        give_way(Courtesy::ToAll);
        while let Some(work) = self.next() {
            match work {
                Work::Look => self.look(),
                Work::Task(Task::Bring(need)) => {
                    let brought = self.bring(need);
                    self.settle(brought, |state, is_there| state.ledger.brought(need, is_there));
                }
                Work::Task(Task::Write(index, item)) => {
                    let written = self.write(&item);
                    self.settle(written, |state, is_there| {
                        state.ledger.brought(Need::Document(index), is_there);
                    });
                }
                Work::Task(Task::Publish(index, item)) => {
                    let published = self.publish(&item);
                    self.settle(published, |state, is_there| state.ledger.published(index, is_there));
                }
            }
        }
    }

    fn next(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Look::Open(waiting) = &mut state.look {
                state.look = Look::Running(std::mem::take(waiting));
                return Some(Work::Look);
            }
            match state.ledger.take() {
                Some(task) => return Some(Work::Task(task)),
                None => state = self.state.wait(state),
            }
        }
    }

    /// What came of a piece of work; the first trouble with the place is the last.
    fn settle(&self, result: Result<(), Trouble>, note: impl FnOnce(&mut State, bool)) {
        let mut state = self.state.lock();
        note(&mut state, result.is_ok());
        match result {
            Ok(()) | Err(Trouble::Stopped) => {}
            Err(trouble @ Trouble::Place(_)) => self.give_up(&mut state, trouble),
            Err(trouble) => _ = state.lack.get_or_insert(Arc::new(trouble)),
        }
        drop(state);
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.state.tell();
    }

    /// Nothing more is tried, and that is said once.
    fn give_up(&self, state: &mut State, trouble: Trouble) {
        state.ledger.give_up();
        state.held.clear();
        if state.failure.is_some() || self.stop.is_requested() {
            return;
        }
        if self.options.on_error == OnError::Warn {
            let cache = self.options.storage.name();
            let warning = format!("the cache {cache} is not written any further: {}", trouble.reason());
            (self.options.events)(Event::Warning(warning));
        }
        state.failure = Some(Arc::new(trouble));
        self.trying.request();
    }
}

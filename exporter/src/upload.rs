//! Brings images to registries, and begins with that while the build still runs.
//!
//! A build of which nothing runs often makes what the registry has already. So until something runs ([`Uploads::begin`])
//! nothing is sent, and in the end the first question is what the names stand for, as far as they are likely to be the image's
//! already: where they are there is nothing to do. Else it is whether the image is there, and then it is named.
//!
//! Layers are *offered* as soon as it is certain that an image will have them and their blobs can be had; workers, some for
//! each registry, bring them: is it there, else can it be mounted, else it is sent. In the end [`Uploads::bring`] does what
//! is left, confirms what was moved and puts the documents that no tag names; [`Uploads::name`] puts what the tags name, and
//! looks whether they name it, unless the registry had it all before and has said so. So a tag never names what is not there,
//! nothing is named anywhere before everything is everywhere, and a push that is interrupted changes no tag.
//!
//! A blob that could not be brought early is tried again in the end, whose failure is the build's. Only where a registry
//! refuses us for good is that said at once (`refused`): what still runs would be for nothing.

mod finish;
mod found;
mod landings;
mod parcel;
mod progress;
mod queue;
mod rights;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use oci::{
    Reference,
    fetch::Fetcher,
    registry::{Registry, RegistryError},
};
use solver::Cancel;

pub use self::{
    finish::{Brought, Push, Tagging},
    found::FoundError,
    landings::Landings,
    parcel::{Blob, BlobSource, Document, Parcel, Place},
    rights::check_rights,
};
use self::{
    progress::Progress,
    queue::{Failed, Host, Job, Landed},
};
use crate::{
    courtesy::{Courtesy, give_way},
    monitor::Monitor,
    outputs::ExportError,
    seal::{Events, OnSealed},
};

/// Blobs that are brought to one registry at the same time.
const PARALLEL: usize = 4;

/// What uploads work with.
pub struct UploadOptions {
    /// The client.
    pub registry: Registry,
    /// Is told of stages and transfers.
    pub events: Events,
    /// Stops everything.
    pub cancel: Cancel,
    /// Is requested where a registry refuses what is brought early: there is no use in going on.
    pub refused: Cancel,
}

/// Blobs on their way to registries. When it is dropped, what is still under way is given up.
pub struct Uploads {
    shared: Arc<Shared>,
}

struct Shared {
    options: UploadOptions,
    /// Requested with the user's, or when nobody waits any more.
    stop: Cancel,
    /// All that will be pushed to.
    names: Vec<Reference>,
    /// Whether the repository must be told with each transfer.
    several: bool,
    state: Monitor<State>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Counts whatever moves.
    moved: AtomicU64,
}

#[derive(Default)]
struct State {
    /// By the registry's name.
    hosts: BTreeMap<String, Host>,
    /// The first refusal of what was brought early.
    refusal: Option<ExportError>,
    phase: Phase,
}

/// What workers live for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// Nobody knows yet whether any step runs.
    #[default]
    Waiting,
    /// Steps run.
    Early,
    /// Somebody waits for what is left.
    Finishing,
    /// Nobody wants anything any more.
    Closed,
}

impl Uploads {
    /// Nothing is contacted and no thread started before something is offered. `names` are all that will be pushed to.
    pub fn new(options: UploadOptions, names: &[Reference]) -> Self {
        let stop = options.cancel.child();
        let stopping = stop.clone();
        let registry = options.registry.until(move || stopping.is_requested());
        let first = names.first();
        let several = names.iter().any(|name| first.is_some_and(|first| !is_same_repository(first, name)));
        let shared = Shared {
            options: UploadOptions { registry, ..options },
            stop,
            names: names.to_vec(),
            several,
            state: Monitor::default(),
            threads: Mutex::default(),
            moved: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes the layers of a sealer and brings them to the repositories of `names`. Those that would have to be downloaded
    /// wait until they are announced again after a step has done that, or for the end.
    pub fn taker(&self, names: &[Reference], fetcher: &Fetcher) -> OnSealed {
        let shared = Arc::clone(&self.shared);
        let fetcher = shared.stopping(fetcher);
        let names = names.to_vec();
        Arc::new(move |layer| {
            let blob = Blob::of(layer, &fetcher);
            let now: Vec<_> = names.iter().filter(|name| blob.is_at_hand(name)).cloned().collect();
            shared.offer([&blob], &now, Failed::Final);
        })
    }

    /// A step is about to run: so the image is a new one, and what is certain to be part of it goes on its way. The right to push
    /// it is tested first, by opening an upload in each repository; without it `refused` is requested.
    pub fn begin(&self) {
        // It is said of every step that may run; a registry that has refused, or that does not answer, is asked once.
        let is_first = |state: &State| state.phase == Phase::Waiting && state.refusal.is_none();
        if !is_first(&self.shared.state.lock()) {
            return;
        }
        if let Err(refusal) = check_rights(&self.shared.options.registry, &self.shared.names) {
            self.shared.state.lock().refusal.get_or_insert(refusal);
            self.shared.options.refused.request();
            return;
        }
        self.shared.enter(Phase::Early, |phase| phase == Phase::Waiting);
    }

    /// There is no image: whoever waits for what is on its way waits in vain.
    pub fn give_up(&self) {
        self.shared.state.lock().phase = Phase::Closed;
        self.shared.state.tell();
    }

    /// The refusal for which `refused` was requested.
    pub fn take_refusal(&self) -> Option<ExportError> {
        self.shared.state.lock().refusal.take()
    }

    /// What a build has made, to be brought while these live.
    pub fn parcel(&self, assembled: &crate::Assembled, fetcher: &Fetcher) -> Parcel {
        Parcel::of(assembled, &self.shared.stopping(fetcher))
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.shared.stop.request();
        self.shared.state.lock().phase = Phase::Closed;
        self.shared.state.tell();
        let threads =
            std::mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A worker that panicked has said so already.
            thread.join().unwrap_or_default();
        }
    }
}

impl Shared {
    /// The same fetcher, stopping with us.
    fn stopping(&self, fetcher: &Fetcher) -> Fetcher {
        let stop = self.stop.clone();
        fetcher.until(move || stop.is_requested())
    }

    /// Wants blobs in the repositories of all these names.
    fn offer<'b>(
        self: &Arc<Self>,
        blobs: impl IntoIterator<Item = &'b Blob>,
        names: &[Reference],
        failed: Failed,
    ) {
        let mut state = self.state.lock();
        let mut work: BTreeMap<&str, usize> = BTreeMap::new();
        for blob in blobs {
            for name in names {
                let host = state.hosts.entry(name.registry.clone()).or_default();
                *work.entry(&name.registry).or_default() += usize::from(host.want(blob, name, failed));
            }
        }
        if work.values().all(|count| *count == 0) || state.phase == Phase::Waiting {
            return;
        }
        let hired: Vec<_> = work.into_iter().map(|(host, count)| (host, state.hire(host, count))).collect();
        drop(state);
        self.state.tell();
        hired.into_iter().for_each(|(host, count)| self.start(host, count));
    }

    /// Goes on to a phase in which there are workers, and hires them for what has waited; from those phases that it may follow.
    fn enter(self: &Arc<Self>, phase: Phase, may_follow: impl Fn(Phase) -> bool) {
        let mut state = self.state.lock();
        if !may_follow(state.phase) {
            return;
        }
        state.phase = phase;
        let work: Vec<_> = state.hosts.iter().map(|(name, host)| (name.clone(), host.queued())).collect();
        let hired: Vec<_> = work.into_iter().map(|(name, count)| (state.hire(&name, count), name)).collect();
        drop(state);
        hired.into_iter().for_each(|(count, host)| self.start(&host, count));
    }

    /// Starts workers for a registry. What no thread can be had for is brought by who waits for it.
    fn start(self: &Arc<Self>, host: &str, count: usize) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..count {
            let (shared, host) = (Arc::clone(self), host.to_owned());
            let worker = thread::Builder::new().name("upload".to_owned());
            threads.extend(worker.spawn(move || shared.work(&host)));
        }
    }

    /// A worker's life.
    fn work(&self, host: &str) {
        give_way(Courtesy::ToSteps);
        while let Some(job) = self.next(host) {
            self.perform(host, job);
        }
    }

    fn next(&self, host: &str) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Closed {
                return None;
            }
            match state.hosts.get_mut(host).and_then(Host::take) {
                Some(job) => return Some(job),
                None => state = self.state.wait(state),
            }
        }
    }

    fn perform(&self, host: &str, job: Job) {
        let digest = job.blob.descriptor.digest;
        let mut landed = Vec::new();
        let result = self.bring(host, &job, &mut landed);
        self.moved.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        let result = match result {
            Err(refusal) if state.phase == Phase::Early && is_refusal(&refusal) => {
                state.refusal.get_or_insert(refusal);
                self.options.refused.request();
                Err(ExportError::Cancelled)
            }
            result => result,
        };
        state.hosts.entry(host.to_owned()).or_default().settle(digest, landed, result);
        drop(state);
        self.state.tell();
    }

    /// Brings a blob to the repositories that need it, one after the other.
    fn bring(&self, host: &str, job: &Job, landed: &mut Vec<(String, Landed)>) -> Result<(), ExportError> {
        let mut from = job.from.clone();
        for repository in &job.to {
            let to = Reference { repository: repository.clone(), ..registry_of(host) };
            let sibling = from.as_ref().map(|name| Reference { repository: name.clone(), ..to.clone() });
            let home = job.blob.home().filter(|home| home.registry == host);
            // We have been there, so it has the blob and lets us read it; the base image's may do neither.
            let how = self.push(&job.blob, &to, sibling.as_ref().or(home))?;
            landed.push((repository.clone(), Landed { how, at: Instant::now() }));
            from.get_or_insert_with(|| repository.clone());
        }
        Ok(())
    }

    /// Makes sure that a repository has a blob. `other` is one of the same registry that it may be mounted from.
    fn push(
        &self,
        blob: &Blob,
        to: &Reference,
        other: Option<&Reference>,
    ) -> Result<oci::registry::Pushed, ExportError> {
        self.go_on()?;
        let progress = Progress::new(&self.options.events, &blob.descriptor, self.several.then_some(to));
        let advance = |bytes| {
            self.moved.fetch_add(1, Ordering::Relaxed);
            progress.add(bytes);
        };
        let open = || blob.open();
        let pushed = self.options.registry.push_blob(to, &blob.descriptor, other, &open, &advance);
        let pushed = pushed.map_err(|error| self.failed(to, error))?;
        progress.finish();
        Ok(pushed)
    }

    /// Fails once the user has asked for it.
    fn go_on(&self) -> Result<(), ExportError> {
        if self.stop.is_requested() { Err(ExportError::Cancelled) } else { Ok(()) }
    }

    fn failed(&self, name: &Reference, error: RegistryError) -> ExportError {
        match error {
            _ if self.stop.is_requested() => ExportError::Cancelled,
            RegistryError::Source { digest, source } => ExportError::Blob { digest, source },
            other => ExportError::Push { reference: Box::new(name.clone()), source: Box::new(other) },
        }
    }
}

impl State {
    /// How many workers to start for a registry that has so much more to do.
    fn hire(&mut self, host: &str, work: usize) -> usize {
        let host = self.hosts.entry(host.to_owned()).or_default();
        let more = work.min(PARALLEL.saturating_sub(host.workers));
        host.workers += more;
        more
    }
}

/// Whether the registry says that we may not, which will be so in the end as well.
fn is_refusal(error: &ExportError) -> bool {
    matches!(error, ExportError::Push { source, .. } if matches!(**source, RegistryError::Denied { .. }))
}

fn registry_of(host: &str) -> Reference {
    Reference { registry: host.to_owned(), repository: String::new(), tag: None, digest: None }
}

fn is_same_repository(one: &Reference, other: &Reference) -> bool {
    (&one.registry, &one.repository) == (&other.registry, &other.repository)
}

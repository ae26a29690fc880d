//! The end of a push: what is left, whether it is all there, and then the names.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use oci::{
    Reference, Sha256Digest,
    registry::{RegistryError, Taken},
};
use solver::Event;

use super::{
    Blob, Document, PARALLEL, Parcel, Phase, Shared, State, Uploads, is_same_repository,
    queue::{Failed, Outcome},
};
use crate::{outputs::ExportError, parallel::in_parallel};

/// How often documents are put into a registry that loses between two requests what they name, as long as each look for
/// what is lost finds something to bring again.
const ATTEMPTS: usize = 10;
/// How often they are put where such looks find nothing.
const IDLE_ATTEMPTS: usize = 3;
/// How often a blob is sent that is gone again right after.
const BLOB_ATTEMPTS: usize = 3;
/// How long a registry is left alone before documents are put a second time; twice as long before every further time.
const PAUSE: Duration = Duration::from_millis(40);
/// The longest of these pauses.
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// How often who pauses looks whether to go on.
const GLANCE: Duration = Duration::from_millis(20);
/// How often a name is put that does not name what it was put to.
const TAG_ATTEMPTS: usize = 2;

/// An image and where it goes.
pub struct Push {
    /// What.
    pub parcel: Parcel,
    /// Under which names.
    pub names: Vec<Reference>,
    /// What becomes of the names.
    pub tagging: Tagging,
}

/// By what an image can be found after a push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tagging {
    /// By the tags of its names.
    #[default]
    Tags,
    /// `push-by-digest=true`: by its digest only, in the repositories of its names.
    DigestOnly,
}

/// Images that are where they should be, but that nothing names yet.
#[must_use = "nothing is named yet"]
pub struct Brought<'a> {
    destinations: Vec<Destination<'a>>,
}

/// One repository that an image goes to.
struct Destination<'a> {
    parcel: &'a Parcel,
    /// The repository.
    place: &'a Reference,
    /// By which the image will be found there.
    names: Vec<Name>,
    /// Whether the repository has the image: a registry keeps all that its manifests name.
    is_there: AtomicBool,
}

/// A name of an image in a repository.
struct Name {
    reference: Reference,
    /// Whether it stands for the image already.
    is_right: AtomicBool,
}

impl Name {
    fn new(reference: Reference) -> Self {
        Self { reference, is_right: AtomicBool::default() }
    }
}

impl Push {
    /// By what the image will be found.
    pub fn final_names(&self) -> impl Iterator<Item = Reference> {
        let digest = self.parcel.root().descriptor.digest;
        self.names.iter().map(move |name| match self.tagging {
            Tagging::Tags => name.with_default_tag(),
            Tagging::DigestOnly => name.with_digest(digest),
        })
    }

    /// Where it went, in words.
    pub fn told(&self) -> String {
        let names: Vec<_> = self.final_names().map(|name| name.to_string()).collect();
        format!("pushed {}", names.join(", "))
    }

    fn destinations(&self) -> Vec<Destination<'_>> {
        let mut destinations: Vec<Destination<'_>> = Vec::new();
        for (place, name) in self.names.iter().zip(self.final_names()) {
            match destinations.iter_mut().find(|other| is_same_repository(other.place, place)) {
                Some(other) if other.names.iter().any(|known| known.reference == name) => {}
                Some(other) => other.names.push(Name::new(name)),
                None => {
                    let (parcel, names) = (&self.parcel, vec![Name::new(name)]);
                    destinations.push(Destination { parcel, place, names, is_there: AtomicBool::default() });
                }
            }
        }
        destinations
    }
}

impl Uploads {
    /// Brings what is left to all destinations at the same time, confirms what was moved, and puts the documents that no
    /// name will point at.
    ///
    /// # Errors
    /// [`ExportError`]; no name has changed then.
    pub fn bring<'p>(&self, pushes: &[&'p Push]) -> Result<Brought<'p>, ExportError> {
        let shared = &self.shared;
        for push in pushes {
            push.final_names().for_each(|name| shared.tell(Event::Stage(stage(&name))));
        }
        let destinations: Vec<_> = pushes.iter().flat_map(|push| push.destinations()).collect();
        if shared.state.lock().phase == Phase::Waiting {
            shared.find(&destinations);
        }
        shared.enter(Phase::Finishing, |_| true);
        for push in pushes {
            shared.offer(push.parcel.blobs.values(), &push.names, Failed::Again);
        }
        shared.land(pushes)?;
        in_parallel(&destinations, PARALLEL, |destination| {
            if destination.is_there.load(Ordering::Relaxed) {
                return Ok(());
            }
            if shared.is_doubtful(destination) {
                let _sent = shared.confirm(destination)?;
            }
            shared.putting(destination, || shared.put_below_root(destination))
        })?;
        Ok(Brought { destinations })
    }

    /// Lets the names point at what was brought, and looks whether they do. Those that were seen to do so before anything was
    /// sent are left alone.
    ///
    /// # Errors
    /// [`ExportError`]; some names may have changed by then.
    pub fn name(&self, brought: Brought<'_>) -> Result<(), ExportError> {
        in_parallel(&brought.destinations, PARALLEL, |destination| {
            destination.names.iter().try_for_each(|Name { reference, is_right }| {
                if !is_right.load(Ordering::Relaxed) {
                    self.shared.name(destination, reference)?;
                }
                self.shared.tell(Event::StageDone(stage(reference)));
                Ok(())
            })
        })
    }
}

impl Shared {
    fn tell(&self, event: Event) {
        (self.options.events)(event);
    }

    /// Looks where the images are already: nothing has been run for them, so perhaps somebody has made and pushed them
    /// before, most likely under the same names; but see [`Parcel::is_named_like`]. What cannot be asked is brought.
    fn find(&self, destinations: &[Destination<'_>]) {
        let _all_asked = in_parallel(destinations, PARALLEL, |destination| {
            if self.finds(destination) {
                let Destination { parcel, place, .. } = destination;
                destination.is_there.store(true, Ordering::Relaxed);
                let mut state = self.state.lock();
                let host = state.hosts.entry(place.registry.clone()).or_default();
                parcel.blobs.values().for_each(|blob| host.has(blob, &place.repository));
            }
            Ok::<_, ExportError>(())
        });
    }

    /// Whether the repository has the image; which names stand for it is noted.
    fn finds(&self, Destination { parcel, place, names, .. }: &Destination<'_>) -> bool {
        let digest = parcel.root().descriptor.digest;
        let is_here = |name: &Reference| {
            let found = self.options.registry.direct().resolve(name);
            matches!(found, Ok(Some(found)) if found.digest == digest)
        };
        let ask = |names: &[&Name]| {
            names.iter().fold(false, |is_named, name| {
                let is_right = is_here(&name.reference);
                name.is_right.store(is_right, Ordering::Relaxed);
                is_named | is_right
            })
        };
        let (likely, others): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| parcel.is_named_like(&name.reference));
        if ask(&likely) {
            ask(&others);
            return true;
        }
        let image = place.with_digest(digest);
        // It may have been asked for by that very name.
        names.iter().all(|name| name.reference != image) && is_here(&image)
    }

    /// Waits until all blobs are where they should be; helps with what is queued.
    fn land(&self, pushes: &[&Push]) -> Result<(), ExportError> {
        let mut state = self.state.lock();
        loop {
            match state.outcome(pushes) {
                Outcome::Done => return Ok(()),
                Outcome::Failed(error) => {
                    state.give_up();
                    return Err(error);
                }
                Outcome::Open => {}
            }
            state = match state.take_any() {
                None => self.state.wait(state),
                Some((host, job)) => {
                    drop(state);
                    self.perform(&host, job);
                    self.state.lock()
                }
            };
        }
    }

    fn is_doubtful(&self, Destination { parcel, place, .. }: &Destination<'_>) -> bool {
        let state = self.state.lock();
        let host = state.hosts.get(&place.registry);
        host.is_none_or(|host| host.is_doubtful(&place.repository, parcel.blobs.keys()))
    }

    /// Looks for every blob once more; what is not there after all is sent again. Says how many were.
    fn confirm(&self, Destination { parcel, place, .. }: &Destination<'_>) -> Result<usize, ExportError> {
        let (blobs, sent): (Vec<_>, _) = (parcel.blobs.values().collect(), AtomicUsize::new(0));
        in_parallel(&blobs, PARALLEL, |blob| {
            let is_sent = self.confirm_blob(blob, place)?;
            sent.fetch_add(is_sent.into(), Ordering::Relaxed);
            Ok::<_, ExportError>(())
        })?;
        Ok(sent.into_inner())
    }

    /// Says whether the blob had to be sent.
    fn confirm_blob(&self, blob: &Blob, place: &Reference) -> Result<bool, ExportError> {
        let digest = blob.descriptor.digest;
        for attempt in 0..BLOB_ATTEMPTS {
            if self.has_blob(place, &digest)? {
                return Ok(attempt > 0);
            }
            // Sent, not mounted: that another repository has it may be as wrong.
            self.push(blob, place, None)?;
        }
        match self.has_blob(place, &digest)? {
            true => Ok(true),
            false => Err(ExportError::Vanished { reference: Box::new(place.clone()), digest }),
        }
    }

    fn has_blob(&self, place: &Reference, digest: &Sha256Digest) -> Result<bool, ExportError> {
        self.go_on()?;
        self.options.registry.has_blob(place, digest).map_err(|error| self.failed(place, error))
    }

    /// Puts documents; when the registry says that it has lost what they name, that is brought once more, as often as there
    /// is something to bring.
    fn putting<Said>(
        &self,
        destination: &Destination<'_>,
        put: impl Fn() -> Result<Said, ExportError>,
    ) -> Result<Said, ExportError> {
        let (mut done, mut idle) = (put(), 1);
        for attempt in 1..ATTEMPTS {
            if idle == IDLE_ATTEMPTS || !done.as_ref().is_err_and(has_lost) {
                break;
            }
            destination.is_there.store(false, Ordering::Relaxed);
            self.pause((PAUSE * (1 << (attempt - 1))).min(PAUSE_MAX))?;
            idle = if self.confirm(destination)? == 0 { idle + 1 } else { 1 };
            done = self.put_below_root(destination).and_then(|()| put());
        }
        done
    }

    /// Leaves the registry alone.
    fn pause(&self, pause: Duration) -> Result<(), ExportError> {
        let begun = Instant::now();
        while let Some(left) = pause.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            self.go_on()?;
            thread::sleep(left.min(GLANCE));
        }
        self.go_on()
    }

    fn put_below_root(&self, Destination { parcel, place, .. }: &Destination<'_>) -> Result<(), ExportError> {
        let put = |document: &Document| {
            let name = place.with_digest(document.descriptor.digest);
            self.put(document, &name).map(drop)
        };
        parcel.below_root().iter().try_for_each(put)
    }

    fn put(&self, document: &Document, name: &Reference) -> Result<Taken, ExportError> {
        self.go_on()?;
        let Document { descriptor, bytes } = document;
        let put = self.options.registry.push_manifest(name, &descriptor.media_type, bytes);
        put.map_err(|error| self.failed(name, error))
    }

    /// Lets a name point at the image. One that points elsewhere right after is put once more: some registries forget.
    fn name(&self, destination: &Destination<'_>, name: &Reference) -> Result<(), ExportError> {
        let (root, mut found) = (destination.parcel.root(), None);
        let ours = root.descriptor.digest;
        for _ in 0..TAG_ATTEMPTS {
            let put = self.putting(destination, || self.put(root, name));
            let had_it = destination.is_there.load(Ordering::Relaxed);
            match &put {
                // A registry that has had the image all the time has nothing to forget: its word is enough.
                Ok(taken) if had_it && taken.is_confirmed => return Ok(()),
                Err(error) if !is_refused(error) => return put.map(drop),
                _ => {}
            }
            // Tags that may not change are refused also to what they stand for.
            let looked = self.named(name, ours);
            if matches!(looked, Ok(Some(digest)) if digest == ours) {
                return Ok(());
            }
            put?;
            found = looked?;
        }
        Err(ExportError::Overwritten { reference: Box::new(name.clone()), ours, found })
    }

    /// What a name points at. If that is not what is expected, the header that said so may be wrong: the bytes are hashed.
    fn named(&self, name: &Reference, expected: Sha256Digest) -> Result<Option<Sha256Digest>, ExportError> {
        let registry = self.options.registry.direct();
        let resolved = registry.resolve(name).map_err(|error| self.failed(name, error))?;
        match resolved.map(|descriptor| descriptor.digest) {
            Some(found) if found != expected => match registry.manifest(name) {
                Ok(fetched) => Ok(Some(fetched.digest)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(self.failed(name, error)),
            },
            found => Ok(found),
        }
    }
}

impl State {
    /// How far what is to be pushed is.
    fn outcome(&mut self, pushes: &[&Push]) -> Outcome {
        let mut all = Outcome::Done;
        for push in pushes {
            for name in &push.names {
                let host = self.hosts.entry(name.registry.clone()).or_default();
                match host.outcome(push.parcel.blobs.keys()) {
                    Outcome::Done => {}
                    Outcome::Open => all = Outcome::Open,
                    failed @ Outcome::Failed(_) => return failed,
                }
            }
        }
        all
    }

    /// A job of any registry.
    fn take_any(&mut self) -> Option<(String, super::Job)> {
        self.hosts.iter_mut().find_map(|(name, host)| Some((name.clone(), host.take()?)))
    }

    fn give_up(&mut self) {
        self.hosts.values_mut().for_each(super::Host::give_up);
    }
}

/// Whether the registry does not take a name, whatever it has of the image.
fn is_refused(error: &ExportError) -> bool {
    let says_no = |error: &RegistryError| match error {
        RegistryError::Status { status, .. } => (400..500).contains(status) && !error.is_unavailable(),
        RegistryError::Denied { .. } => true,
        _ => false,
    };
    matches!(error, ExportError::Push { source, .. } if says_no(source)) && !has_lost(error)
}

/// Whether the registry lacks what a document names.
fn has_lost(error: &ExportError) -> bool {
    matches!(error, ExportError::Push { source, .. } if source.is_blob_unknown())
}

fn stage(name: &Reference) -> String {
    format!("pushing {name}")
}

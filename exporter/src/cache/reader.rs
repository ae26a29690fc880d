//! Reading a remote cache: what the keys of a build are known to give.
//!
//! The bundle is asked for as soon as its name is known, in the background; the keys that it lacks, all at the same time, as they
//! are asked for, within a budget. What comes is verified before anybody hears of it, and what the layers are is noted where
//! those look who want one ([`oci::RemoteLayers`]); nothing else is downloaded. Whatever is wrong is a miss: a place that
//! fails some times in a row is not asked again, and people are told once.

mod answers;
mod trouble;

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use oci::{Descriptor, RemoteLayers, Sha256Digest, TreeDigest};
use solver::{
    Cancel, Record,
    cache::Key,
    traits::{Answer, DistantCache, Found},
};

use self::{
    answers::Answers,
    trouble::{Outcome, Trouble},
};
use super::{
    bundle::{Bundle, SignedRecord},
    names,
    record::FormatError,
    seen::{Seen, SeenBundle, SeenRecord},
    sign::TrustKeys,
    storage::{Artifact, ArtifactKind, Image, Named, Storage, StorageError},
};
use crate::seal::Events;

/// Keys that are asked for at the same time.
const PARALLEL: usize = 16;
/// Keys that are asked for in a build, besides those that the bundle has.
const BUDGET: usize = 256;
/// Platforms of an image that are looked at.
const PLATFORMS: usize = 16;
/// How often who waits looks whether anybody still wants to know.
const GLANCE: Duration = Duration::from_millis(20);

/// What a cache is read with.
pub struct Reading {
    /// Where it lies.
    pub storage: Arc<dyn Storage>,
    /// Whom to believe.
    pub trust: TrustKeys,
    /// Is told of the layers.
    pub layers: RemoteLayers,
    /// Is told of what was read, for who writes a cache.
    pub seen: Seen,
    /// Is told of trouble, once.
    pub events: Events,
    /// Stops what is under way.
    pub cancel: Cancel,
}

/// A remote cache to read from. When it is dropped, what is under way is given up.
pub struct RemoteCache {
    shared: Arc<Shared>,
}

struct Shared {
    reading: Reading,
    /// Requested with the build's, or when nobody reads any more.
    stop: Cancel,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bundle: Stage,
    answers: Answers,
    trouble: Trouble,
    /// Whether anything was to be had of it.
    is_asked: bool,
    /// Keys that are being asked for.
    running: usize,
    /// Keys that have been asked for.
    asked: usize,
}

/// What a cache is like that has given nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It has neither the bundle nor any record that was asked for.
    Nothing,
    /// It has not answered by now.
    NoAnswer,
}

/// How far the bundle is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// Its name is not known.
    #[default]
    Unnamed,
    /// It is on its way.
    Coming,
    /// It has come, or never will.
    Settled,
    /// There is none.
    Absent,
    /// What stands in its place is an image, which has no records but its own.
    Image,
}

impl RemoteCache {
    /// Begins to fetch the bundle of this name, if it is known by now; else [`RemoteCache::ask`] says it later.
    pub fn new(reading: Reading, bundle: Option<String>) -> Self {
        let stop = reading.cancel.child();
        let shared = Shared { reading, stop, state: Mutex::default(), changed: Condvar::new() };
        let cache = Self { shared: Arc::new(shared) };
        bundle.into_iter().for_each(|bundle| cache.ask(bundle, None));
        cache
    }

    /// Begins to fetch the bundle of this name; only the first name counts. Where there is none, an image called `image` may
    /// have what it was made of.
    pub fn ask(&self, bundle: String, image: Option<&'static str>) {
        {
            let mut state = self.shared.lock();
            if state.bundle != Stage::Unnamed {
                return;
            }
            state.bundle = Stage::Coming;
        }
        let shared = Arc::clone(&self.shared);
        let fetch = move || shared.fetch_bundle(&bundle, image);
        if thread::Builder::new().name("cache bundle".to_owned()).spawn(fetch).is_err() {
            self.shared.settle(Stage::Settled);
        }
    }

    /// What the cache is called.
    pub fn name(&self) -> &str {
        self.shared.reading.storage.name()
    }

    /// Waits until the bundle has come, or never will.
    pub fn wait(&self, is_over: &dyn Fn() -> bool) {
        drop(self.shared.wait_for_bundle(is_over));
    }

    /// The records that the bundle has brought, for `explain`.
    pub fn records(&self) -> Vec<Record> {
        self.shared.lock().answers.records()
    }

    /// Why nothing has come of a cache that was asked, where nobody has been told anything yet.
    pub fn silence(&self) -> Option<Silence> {
        let state = self.shared.lock();
        let is_news = state.is_asked && state.answers.is_empty() && !state.trouble.is_told();
        match state.bundle {
            Stage::Coming if is_news => Some(Silence::NoAnswer),
            Stage::Absent if is_news => Some(Silence::Nothing),
            _ => None,
        }
    }

    /// Whether anything that it has could be of use.
    pub fn has_given(&self) -> bool {
        !self.shared.lock().answers.is_empty()
    }

    /// Looks for a record that somebody else is making; the one that was known before, and has not been good enough, is none.
    /// That is no part of the budget, and it is for others to say when.
    ///
    /// # Errors
    /// It cannot be had just now, or is damaged.
    pub fn look_again(&self, content: &TreeDigest, cancel: &Cancel) -> Result<Option<Found>, StorageError> {
        let key = Key::Content(*content);
        let (name, known) = (names::of(&key), self.shared.lock().answers.get(&key));
        if let Some(Named::Artifact(artifact)) = self.shared.reading.storage.get(&name, cancel)? {
            self.shared.take(&name, Some(&key), artifact);
        }
        let found = self.shared.answer(&key);
        Ok(found.filter(|found| known.is_none_or(|known| known.remote.record != found.record)))
    }

    /// How many records were ignored because nobody who is trusted has signed them.
    pub fn ignored(&self) -> usize {
        self.shared.lock().answers.untrusted.len()
    }

    /// Content keys of the records that were ignored, as far as they are sound, for `explain`.
    pub fn distrusted(&self) -> Vec<TreeDigest> {
        self.shared.lock().answers.untrusted.values().flatten().copied().collect()
    }

    /// Whether it may have more than it has told: what it was asked failed, or is not answered yet.
    pub fn is_unknown(&self) -> bool {
        let state = self.shared.lock();
        state.trouble.has_failed() || state.is_asked && state.bundle == Stage::Coming
    }

    /// A manifest or config of a base image, if the bundle has it, and comes in time. It has this digest.
    pub fn document(&self, digest: &Sha256Digest, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        self.shared.wait_for_bundle(&|| Instant::now() >= deadline).answers.documents.get(digest).cloned()
    }
}

impl Drop for RemoteCache {
    fn drop(&mut self) {
        self.shared.stop.request();
    }
}

impl DistantCache for RemoteCache {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        let shared = &*self.shared;
        let is_over = || cancel.is_requested() || shared.stop.is_requested();
        shared.lock().is_asked = true;
        drop(shared.wait_for_bundle(&is_over));
        let (known, unknown): (Vec<&Key>, Vec<&Key>) =
            keys.iter().partition(|key| shared.lock().answers.has(key));
        // The most important last: it settles what is below, and nobody would look any more who made that.
        tell(known.into_iter().rev().map(|key| (*key, shared.answer(key))).collect());
        let queue = Mutex::new(VecDeque::from(unknown));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let work = || {
            while let Some(key) = next().filter(|_| !is_over()) {
                shared.look(key, cancel);
                tell(vec![(*key, shared.answer(key))]);
            }
        };
        let count = queue.lock().unwrap_or_else(PoisonError::into_inner).len().min(PARALLEL);
        thread::scope(|scope| {
            for _ in 1..count {
                // Where there are no threads, one does all of it.
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the bundle has come, or never will.
    fn wait_for_bundle(&self, is_over: &dyn Fn() -> bool) -> MutexGuard<'_, State> {
        self.wait(is_over, |state| state.bundle == Stage::Coming)
    }

    fn wait(&self, is_over: &dyn Fn() -> bool, is_waiting: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while is_waiting(&state) && !is_over() {
            let waited = self.changed.wait_timeout(state, GLANCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    fn settle(&self, bundle: Stage) {
        self.lock().bundle = bundle;
        self.changed.notify_all();
    }

    fn fetch_bundle(&self, name: &str, image: Option<&str>) {
        let settled = self.take_named(name).unwrap_or_else(|| {
            // There may be records beside this image: other builds' of the repository.
            match image.and_then(|image| self.take_named(image)) {
                Some(_) => Stage::Settled,
                None => Stage::Absent,
            }
        });
        self.settle(settled);
    }

    /// Takes what a name stands for, if that can be had.
    fn take_named(&self, name: &str) -> Option<Stage> {
        Some(match self.get(name, &self.stop)? {
            Named::Artifact(artifact) => {
                self.take(name, None, artifact);
                Stage::Settled
            }
            // Somebody has given the bundle the name of one.
            Named::Announcement(_) => Stage::Settled,
            Named::Image(image) => {
                self.take_image(&image);
                Stage::Image
            }
            Named::Index(manifests) => {
                self.take_index(&manifests);
                Stage::Image
            }
        })
    }

    /// What a name stands for; nothing where that cannot be had. Whether it can be used is noted by whoever takes it.
    fn get(&self, name: &str, cancel: &Cancel) -> Option<Named> {
        if self.lock().trouble.is_down() {
            return None;
        }
        let outcome = match self.reading.storage.get(name, cancel) {
            Ok(Some(named)) => return Some(named),
            Ok(None) => Outcome::Answered,
            Err(error) => Outcome::of(error),
        };
        self.note(outcome);
        None
    }

    fn note(&self, outcome: Outcome) {
        let told = self.lock().trouble.note(self.reading.storage.name(), outcome);
        told.into_iter().for_each(|warning| (self.reading.events)(solver::Event::Warning(warning)));
    }

    /// Takes what a cache has written under a name; with `asked` it must be the record of this key.
    fn take(&self, name: &str, asked: Option<&Key>, artifact: Artifact) {
        let Artifact { kind, document, signature, blobs: _ } = artifact;
        let origin = self.reading.storage.origin();
        let taken = match (kind, asked) {
            (ArtifactKind::Record, _) => {
                let seen = self.take_record(asked, SignedRecord { document, signature });
                seen.map(|seen| self.reading.seen.note(&origin, seen))
            }
            (ArtifactKind::Bundle, None) => self.take_bundle(name, document),
            (ArtifactKind::Bundle, Some(_)) => {
                return self.note(Outcome::Damaged(format!("{name} is a bundle where a record should be")));
            }
        };
        self.note(taken.map_or_else(|error| Outcome::unusable(name, &error), |()| Outcome::Answered));
    }

    /// Takes a bundle. What is wrong with the first bad record in it is as good as what is wrong with all of them.
    fn take_bundle(&self, name: &str, document: Vec<u8>) -> Result<(), FormatError> {
        let Bundle { records, documents } = Bundle::decode(&document)?;
        self.lock().answers.documents = documents;
        let (mut good, mut bad) = (Vec::new(), None);
        for signed in records {
            match self.take_record(None, signed) {
                Ok(seen) => good.push(seen),
                Err(error) if Outcome::is_quiet(&error) => {}
                Err(error) => bad = bad.or(Some(error)),
            }
        }
        let bundle = SeenBundle { document, records: good };
        self.reading.seen.note_bundle(&self.reading.storage.origin(), name, bundle);
        bad.map_or(Ok(()), Err)
    }

    /// Takes a record, if it can be believed.
    fn take_record(&self, asked: Option<&Key>, signed: SignedRecord) -> Result<Arc<SeenRecord>, FormatError> {
        let opened = signed.open(asked, &self.reading.trust, &self.reading.storage.origin());
        if matches!(opened, Err(FormatError::Untrusted)) {
            let digest = Sha256Digest::of(&signed.document);
            let sound = signed.open(asked, &TrustKeys::default(), &self.reading.storage.origin()).ok();
            self.lock().answers.untrusted.insert(digest, sound.map(|remote| remote.record.content));
        }
        let seen = Arc::new(SeenRecord { remote: opened?, signed });
        self.compare(&seen);
        self.lock().answers.add(Arc::clone(&seen));
        Ok(seen)
    }

    /// Compares what a record says of its layers with what others do: those of which two things are said are lost, and with
    /// them all records that name them.
    fn compare(&self, seen: &SeenRecord) {
        let origin = self.reading.storage.origin();
        let contradicted =
            seen.remote.layers_at(&origin).filter(|layer| !self.reading.layers.compare(layer)).last();
        if let Some(layer) = contradicted {
            self.note(Outcome::Damaged(format!(
                "its records contradict each other about layer {}",
                layer.tree
            )));
        }
    }

    /// Takes what images for several platforms say of their steps.
    fn take_index(&self, manifests: &[Descriptor]) {
        let is_image = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|own| own.os != "unknown");
        for entry in manifests.iter().filter(is_image).take(PLATFORMS) {
            if let Some(Named::Image(image)) = self.get(&entry.digest.to_string(), &self.stop) {
                self.take_image(&image);
            }
        }
    }

    /// Takes what an image says of its own steps. Nobody has signed it, so it is nothing to those who trust only some.
    fn take_image(&self, image: &Image) {
        let records = match answers::of_image(image, &self.reading.storage.origin()) {
            Ok(records) => records,
            Err(outcome) => return self.note(outcome),
        };
        self.note(Outcome::Answered);
        let mut state = self.lock();
        match self.reading.trust.is_empty() {
            true => records.into_iter().for_each(|seen| state.answers.add(seen)),
            false => {
                let told = |seen: Arc<SeenRecord>| {
                    (Sha256Digest::of(&seen.signed.document), Some(seen.remote.record.content))
                };
                state.answers.untrusted.extend(records.into_iter().map(told));
            }
        }
    }

    /// Asks for the record of a key that the bundle lacks.
    fn look(&self, key: &Key, cancel: &Cancel) {
        if !self.begin(cancel) {
            return;
        }
        let name = names::of(key);
        match self.get(&name, cancel) {
            None => {}
            Some(Named::Artifact(artifact)) => self.take(&name, Some(key), artifact),
            Some(Named::Announcement(_) | Named::Image(_) | Named::Index(_)) => {
                self.note(Outcome::Damaged(format!("{name} is no record, which it should be")));
            }
        }
        self.lock().running -= 1;
        self.changed.notify_all();
    }

    /// Waits for its turn; `false` where there is none.
    fn begin(&self, cancel: &Cancel) -> bool {
        let is_over = || cancel.is_requested() || self.stop.is_requested();
        let mut state = self.wait(&is_over, |state| state.running >= state.trouble.most_at_once(PARALLEL));
        if is_over() || state.bundle == Stage::Image || state.trouble.is_down() {
            return false;
        }
        if state.asked >= BUDGET {
            let is_news = state.trouble.note_spent();
            drop(state);
            if is_news {
                let name = self.reading.storage.name();
                let text = format!("the cache {name} was asked for {BUDGET} steps, and is asked for no more");
                (self.reading.events)(solver::Event::Warning(text));
            }
            return false;
        }
        state.asked += 1;
        state.running += 1;
        true
    }

    /// What is known of a key. Its layers are noted before anybody hears of it; where one is lost, there is nothing.
    fn answer(&self, key: &Key) -> Option<Found> {
        let seen = self.lock().answers.get(key)?;
        let (remote, layers) = (&seen.remote, &self.reading.layers);
        let is_lost = || remote.layers.keys().any(|tree| layers.is_lost(tree));
        if is_lost() {
            return None;
        }
        remote.layers_at(&self.reading.storage.origin()).for_each(|layer| layers.note(layer));
        // Those of a cache that has been given up are lost as they are noted.
        (!is_lost())
            .then(|| Found { record: remote.record.clone(), cache: self.reading.storage.name().to_owned() })
    }
}

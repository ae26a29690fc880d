//! Pulling from mirrors: each in its turn, and at last the registry itself.
//!
//! A mirror is a help, and never a hindrance: whatever it fails with, the next one is asked, after seconds and not after
//! minutes. One that cannot be reached, or that sends wrong bytes, is not asked again. What it sends is verified as
//! everything else is. Settings and credentials that cannot be read are the user's to mend, and no reason to go on.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    error::RegistryError,
    hosts::Wanted,
    http::Inner,
    retry::{Attempts, Limits},
};
use crate::reference::Reference;

/// A mirror is waited for by this part of the patience with errors that seldom go away.
const MIRRORS_SHARE: u32 = 3;

/// Something about a registry that a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A mirror does not have an image; told once for each mirror.
    MirrorLacks(String),
    /// A mirror is of no use; told once for each mirror.
    MirrorFails(String),
    /// A registry has failed and will be asked again, but not soon; told once for each such pause.
    PutOff(String),
}

/// Takes notes, from any thread; the default forgets them.
#[derive(Clone, Default)]
pub struct Notes(Option<Arc<dyn Fn(Note) + Send + Sync>>);

impl Notes {
    /// Told to this.
    pub fn to(sink: impl Fn(Note) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Notes(taken)" } else { "Notes(forgotten)" })
    }
}

/// Who waits longer than this is told what for.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// What is known of mirrors, by their registries.
#[derive(Debug)]
pub(super) struct Mirrors {
    /// How long they are waited for.
    pub limits: Limits,
    notes: Notes,
    given_up: Mutex<HashSet<String>>,
    told: Mutex<HashSet<(String, bool)>>,
}

impl Mirrors {
    pub fn new(limits: &Limits, notes: Notes) -> Self {
        let brief = limits.short_patience / MIRRORS_SHARE;
        let limits =
            Limits { patience: brief, short_patience: brief, longest_retry_after: brief, ..limits.clone() };
        Self { limits, notes, given_up: Mutex::default(), told: Mutex::default() }
    }

    /// Whether it makes sense to ask a mirror.
    pub fn is_usable(&self, mirror: &Reference) -> bool {
        !self.given_up.lock().unwrap_or_else(PoisonError::into_inner).contains(&mirror.registry)
    }

    /// Goes on without a mirror after an error; gives the error back where that would hide what the user must mend.
    pub fn pass_over(&self, mirror: &Reference, error: RegistryError) -> Result<(), RegistryError> {
        if error.is_ours() {
            return Err(error);
        }
        let registry = &mirror.registry;
        if error.is_not_found() {
            self.tell(registry, Note::MirrorLacks(format!("mirror {registry} does not have {mirror}")));
            return Ok(());
        }
        let text = format!("mirror {registry} is passed over: {}", told(&error));
        self.tell(registry, Note::MirrorFails(text));
        if !matches!(error, RegistryError::Denied { .. }) {
            self.give_up(registry);
        }
        Ok(())
    }

    /// Never asks a mirror again that has sent wrong bytes.
    pub fn blame(&self, registry: &str, what: &str) {
        let text = format!("mirror {registry} is passed over: it has sent wrong bytes for {what}");
        self.tell(registry, Note::MirrorFails(text));
        self.give_up(registry);
    }

    fn give_up(&self, registry: &str) {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(registry.to_owned());
    }

    fn tell(&self, registry: &str, note: Note) {
        let key = (registry.to_owned(), matches!(note, Note::MirrorFails(_)));
        let is_new = self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        if let Some(sink) = self.notes.0.as_ref().filter(|_| is_new) {
            sink(note);
        }
    }
}

/// An error and its causes, in one line.
fn told(error: &RegistryError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Inner {
    /// Takes note of an error after which there is another attempt; says so where people would wonder what is waited for.
    pub fn put_off(&self, registry: &str, error: &RegistryError, pause: Duration) {
        self.pauses.note(registry, error, pause);
        let is_long = pause + error.waited(&self.limits) >= LONG_WAIT;
        if let Some(sink) = self.mirrors.notes.0.as_ref()
            && is_long
            && self.pauses.is_news(registry, pause)
        {
            sink(Note::PutOff(format!("{}; trying again in {} s", told(error), pause.as_secs_f32().ceil())));
        }
    }

    /// What the first place gives that has it; the registry itself is the last.
    pub async fn pulling<T>(
        &self,
        reference: &Reference,
        wanted: Wanted,
        ask: impl AsyncFn(&Reference) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let sources = self.clients.hosts.sources(reference, wanted)?;
        for mirror in sources.mirrors.iter().filter(|mirror| self.mirrors.is_usable(mirror)) {
            match self.briefly(async || ask(mirror).await).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.mirrors.pass_over(mirror, error)?,
            }
        }
        self.retrying(&sources.own.registry, async || ask(&sources.own).await).await
    }

    /// Repeats an operation for seconds, and not where more is asked for.
    async fn briefly<T>(
        &self,
        operation: impl AsyncFn() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut attempts = Attempts::brief(&self.mirrors.limits);
        loop {
            let error = match operation().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(pause) = attempts.pause_after(&error) else { return Err(error) };
            tokio::time::sleep(pause).await;
        }
    }
}

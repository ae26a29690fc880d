//! The end of a build: what is under way is waited for as long as it moves, then the bundle is written.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use oci::Sha256Digest;
use solver::Event;

use super::{BuildEnd, OnError, Shared, State, Trouble, WriteError, Writer};
use crate::{
    cache::storage::{StorageError, StorageErrorKind},
    upload::Landings,
};

/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(30);

impl Writer {
    /// Waits for what is under way, as long as it moves, and writes the bundle. `documents` are the manifests and configs of
    /// base images that the build has resolved, as far as the store holds them. To be called once; what is stored after
    /// it is not written.
    ///
    /// # Errors
    /// [`WriteError`], with [`OnError::Fail`] only.
    pub fn finish(&self, end: BuildEnd, documents: &[Sha256Digest]) -> Result<(), WriteError> {
        self.shared.options.aside.hurry();
        if let Err(trouble) = self.write_rest(end, documents) {
            self.shared.settle(Err(trouble), |_, _| {});
        }
        self.shared.outcome()
    }

    /// What is left, each thing as soon as what it says is known, and each name as soon as what it stands for is there.
    fn write_rest(&self, end: BuildEnd, documents: &[Sha256Digest]) -> Result<(), Trouble> {
        let shared = &*self.shared;
        let looking = shared.stage();
        // Before that it is not known what the place has by another encoder than the image.
        shared.wait_until(State::has_looked)?;
        if end == BuildEnd::Made {
            self.hire(shared.want_packings());
        }
        let _stage = looking.or_else(|| shared.stage());
        shared.wait_until(State::is_written)?;
        shared.write_bundle_document(end, documents)?;
        shared.wait_until(|state| state.ledger.is_brought())?;
        let named = shared.write_bundle(end, documents);
        shared.wait_until(State::is_idle)?;
        named
    }
}

impl Shared {
    /// Shows that somebody waits for us, if there is anything to wait for.
    fn stage(&self) -> Option<Stage<'_>> {
        let is_idle = self.state.lock().is_idle();
        (!is_idle).then(|| Stage::begin(self))
    }

    /// Ends when something has come true, early when the user or the place says so, or when nothing moves any more.
    fn wait_until(&self, is_over: impl Fn(&State) -> bool) -> Result<(), Trouble> {
        let mut stillness = Stillness::new(self.moved());
        let mut state = self.state.lock();
        loop {
            if self.stop.is_requested() {
                return Err(Trouble::Stopped);
            }
            if state.failure.is_some() || is_over(&state) {
                return Ok(());
            }
            if self.sealing.load(Ordering::SeqCst) > 0 {
                stillness = Stillness::new(self.moved());
            } else if stillness.lasts(self.moved(), Instant::now()) {
                return Err(self.silence());
            }
            state = self.state.wait_briefly(state);
        }
    }

    /// Another number than before while anything moves: what we bring, and the image's uploads, which we wait for.
    fn moved(&self) -> u64 {
        let landings = self.options.landings.as_ref().map_or(0, Landings::moved);
        self.moved.load(Ordering::Relaxed).wrapping_add(landings)
    }

    fn silence(&self) -> Trouble {
        let what = format!("nothing has moved for {} s", PATIENCE.as_secs());
        let source = Some(Box::new(io::Error::from(io::ErrorKind::TimedOut)) as Box<_>);
        StorageError { kind: StorageErrorKind::Failed, what, source }.into()
    }

    /// What is told in the end: what was not written, and why.
    fn outcome(&self) -> Result<(), WriteError> {
        let mut state = self.state.lock();
        state.is_closed = true;
        let (lost, lack, failure) = (state.ledger.lost(), state.lack.take(), state.failure.clone());
        drop(state);
        self.state.tell();
        if self.stop.is_requested() {
            return Ok(());
        }
        // What is broken has been told, and what nothing lacks for is no trouble.
        let Some(trouble) = failure.clone().or(lack.filter(|_| lost > 0)) else { return Ok(()) };
        let cache = self.options.storage.name().to_owned();
        match self.options.on_error {
            OnError::Fail => Err(WriteError { cache, source: trouble.cause() as Arc<_> }),
            OnError::Warn if failure.is_some() => Ok(()),
            OnError::Warn => {
                let steps = if lost == 1 { "one step is".to_owned() } else { format!("{lost} steps are") };
                let warning = format!("{steps} not in the cache {cache}: {}", trouble.reason());
                (self.options.events)(Event::Warning(warning));
                Ok(())
            }
        }
    }
}

/// What people are shown while the end of a build waits for a cache. Ends when it is dropped.
struct Stage<'a> {
    shared: &'a Shared,
    name: String,
}

impl<'a> Stage<'a> {
    fn begin(shared: &'a Shared) -> Self {
        let name = format!("write the cache {}", shared.options.storage.name());
        (shared.options.events)(Event::Stage(name.clone()));
        Self { shared, name }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        (self.shared.options.events)(Event::StageDone(std::mem::take(&mut self.name)));
    }
}

/// For how long nothing has moved.
struct Stillness {
    moved: u64,
    since: Instant,
}

impl Stillness {
    fn new(moved: u64) -> Self {
        Self { moved, since: Instant::now() }
    }

    /// Whether it has lasted longer than anybody should wait.
    fn lasts(&mut self, moved: u64, now: Instant) -> bool {
        if moved != self.moved {
            *self = Self { moved, since: now };
        }
        now.duration_since(self.since) > PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_begins_anew_with_whatever_moves() {
        let mut stillness = Stillness::new(7);
        let begun = stillness.since;
        assert!(!stillness.lasts(7, begun + PATIENCE));
        assert!(!stillness.lasts(8, begun + 2 * PATIENCE));
        assert!(!stillness.lasts(8, begun + 3 * PATIENCE));
        assert!(stillness.lasts(8, begun + 3 * PATIENCE + Duration::from_millis(1)));
    }
}

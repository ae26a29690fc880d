//! The end of a build: what is under way is waited for as long as it moves, then the bundle is written.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use oci::Sha256Digest;
use solver::Event;

use super::{BuildEnd, OnError, Shared, State, Trouble, WriteError, Writer, told};
use crate::cache::storage::{StorageError, StorageErrorKind};

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
        let shared = &*self.shared;
        if end == BuildEnd::Made {
            self.hire(shared.want_packings());
        }
        let stage = format!("write the cache {}", shared.options.storage.name());
        let is_idle = shared.lock().is_idle();
        if !is_idle {
            (shared.options.events)(Event::Stage(stage.clone()));
        }
        let written = shared.write_rest(end, documents);
        if !is_idle {
            (shared.options.events)(Event::StageDone(stage));
        }
        if let Err(trouble) = written {
            shared.settle(Err(trouble), |_, _| {});
        }
        shared.outcome()
    }
}

impl Shared {
    /// What is left, each thing as soon as what it says is known, and each name as soon as what it stands for is there.
    fn write_rest(&self, end: BuildEnd, documents: &[Sha256Digest]) -> Result<(), Trouble> {
        self.wait_until(State::is_written)?;
        self.write_bundle_document(end, documents)?;
        self.wait_until(|state| state.has_looked() && state.ledger.is_brought())?;
        let named = self.write_bundle(end, documents);
        self.wait_until(State::is_idle)?;
        named
    }

    /// Ends when something has come true, early when the user or the place says so, or when nothing moves any more.
    fn wait_until(&self, is_over: impl Fn(&State) -> bool) -> Result<(), Trouble> {
        let (mut moved, mut since) = (self.moved.load(Ordering::Relaxed), Instant::now());
        let mut state = self.lock();
        loop {
            if self.stop.is_requested() {
                return Err(Trouble::Stopped);
            }
            if state.failure.is_some() || is_over(&state) {
                return Ok(());
            }
            let now = self.moved.load(Ordering::Relaxed);
            if now != moved || self.sealing.load(Ordering::SeqCst) > 0 {
                (moved, since) = (now, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                return Err(self.silence());
            }
            state = self.wait_briefly(state);
        }
    }

    fn silence(&self) -> Trouble {
        let what = format!("nothing has moved for {} s", PATIENCE.as_secs());
        let source = Some(Box::new(io::Error::from(io::ErrorKind::TimedOut)) as Box<_>);
        StorageError { kind: StorageErrorKind::Failed, what, source }.into()
    }

    /// What is told in the end: what was not written, and why.
    fn outcome(&self) -> Result<(), WriteError> {
        let mut state = self.lock();
        state.is_closed = true;
        let (lost, lack, failure) = (state.ledger.lost(), state.lack.take(), state.failure.clone());
        drop(state);
        self.changed.notify_all();
        if self.stop.is_requested() {
            return Ok(());
        }
        // What is broken has been told.
        let Some(trouble) = failure.clone().or(lack) else { return Ok(()) };
        let cache = self.options.storage.name().to_owned();
        match self.options.on_error {
            OnError::Fail => Err(WriteError { cache, source: trouble as Arc<_> }),
            OnError::Warn if failure.is_some() => Ok(()),
            OnError::Warn => {
                let steps = if lost == 1 { "one step is".to_owned() } else { format!("{lost} steps are") };
                let warning = format!("{steps} not in the cache {cache}: {}", told(&*trouble));
                (self.options.events)(Event::Warning(warning));
                Ok(())
            }
        }
    }
}

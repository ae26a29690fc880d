//! Waiting for a lock of the store that another step or build has: not past the end of this build, and not in silence.

use std::{
    fs::{File, TryLockError},
    io, thread,
    time::{Duration, Instant},
};

use solver::{Cancel, Event};

use crate::snapshot::Events;

/// How long to wait before the lock is tried again: the other one is downloading, or running a command.
const PAUSE: Duration = Duration::from_millis(20);

/// What takes longer than this is told. Steps of one build wait for each other shorter than this all the time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no lock.
#[derive(Debug)]
pub(crate) enum NotLocked {
    /// The build is to stop.
    Cancelled,
    /// The file cannot be locked.
    Io(io::Error),
}

/// Locks a file, exclusively. `what` says what the one who has it is doing, for people: "unpacks layer sha256:...".
///
/// # Errors
/// See [`NotLocked`].
pub(crate) fn wait_for(file: &File, what: &str, events: &Events, cancel: &Cancel) -> Result<(), NotLocked> {
    let mut told: Option<Told> = None;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(NotLocked::Io(error)),
            Err(TryLockError::WouldBlock) if cancel.is_requested() => return Err(NotLocked::Cancelled),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
        }
        if told.is_none() && since.elapsed() >= PATIENCE {
            told = Some(Told::new(events, format!("waiting for another step or build that {what}")));
        }
    }
}

/// A stage that ends when this value does.
pub(crate) struct Told<'a> {
    events: &'a Events,
    stage: String,
}

impl<'a> Told<'a> {
    /// Begins it.
    pub(crate) fn new(events: &'a Events, stage: String) -> Self {
        events(Event::Stage(stage.clone()));
        Self { events, stage }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        (self.events)(Event::StageDone(self.stage.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// Two descriptions of one file, the first of which is locked.
    fn locked() -> (tempfile::NamedTempFile, File, File) {
        let named = tempfile::NamedTempFile::new().expect("made");
        let [first, second] =
            [0, 1].map(|_| File::options().read(true).write(true).open(named.path()).expect("opened"));
        first.try_lock().expect("free");
        (named, first, second)
    }

    #[test]
    fn a_long_wait_is_told_and_ends() {
        let (_named, held, wanted) = locked();
        let (sender, told) = mpsc::channel();
        let events: Events = Arc::new(move |event| drop(sender.send(format!("{event:?}"))));
        thread::scope(|scope| {
            let waits = scope.spawn(|| wait_for(&wanted, "unpacks x", &events, &Cancel::default()));
            assert_eq!(
                told.recv().expect("told"),
                "Stage(\"waiting for another step or build that unpacks x\")"
            );
            drop(held);
            assert!(waits.join().expect("no panic").is_ok());
        });
        assert!(told.recv().expect("told").starts_with("StageDone("));
    }

    #[test]
    fn a_wait_ends_with_the_build() {
        let (_named, _held, wanted) = locked();
        let cancel = Cancel::default();
        thread::scope(|scope| {
            let events: Events = Arc::new(|_| {});
            let waits = scope.spawn(|| wait_for(&wanted, "unpacks x", &{ events }, &cancel));
            cancel.request();
            assert!(matches!(waits.join().expect("no panic"), Err(NotLocked::Cancelled)));
        });
    }
}

//! Each blob is brought to the place once, whoever needs it; who comes second waits.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use oci::Sha256Digest;
use solver::Cancel;

use super::{GLANCE, Trouble};

/// The blobs of a build on their way to a cache.
#[derive(Default)]
pub(super) struct Blobs {
    state: Mutex<BTreeMap<Sha256Digest, Turn>>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    UnderWay,
    There,
}

impl Blobs {
    /// Brings a blob, unless it has been brought. One that could not be may be tried by who waits for it.
    pub(super) fn once(
        &self,
        digest: Sha256Digest,
        stop: &Cancel,
        bring: impl FnOnce() -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match state.get(&digest) {
                Some(Turn::There) => return Ok(()),
                Some(Turn::UnderWay) if stop.is_requested() => return Err(Trouble::Stopped),
                Some(Turn::UnderWay) => state = self.wait(state, GLANCE),
                None => break,
            }
        }
        state.insert(digest, Turn::UnderWay);
        drop(state);
        let brought = bring();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &brought {
            Ok(()) => state.insert(digest, Turn::There),
            Err(_) => state.remove(&digest),
        };
        drop(state);
        self.changed.notify_all();
        brought
    }

    fn wait<'a, T>(
        &self,
        state: std::sync::MutexGuard<'a, T>,
        most: Duration,
    ) -> std::sync::MutexGuard<'a, T> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }
}

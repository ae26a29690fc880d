//! Each blob is brought to the place once, whoever needs it; who comes second waits.

use std::collections::BTreeMap;

use oci::Sha256Digest;
use solver::Cancel;

use super::Trouble;
use crate::monitor::Monitor;

/// The blobs of a build on their way to a cache.
#[derive(Default)]
pub(super) struct Blobs {
    state: Monitor<BTreeMap<Sha256Digest, Turn>>,
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
        let mut state = self.state.lock();
        loop {
            match state.get(&digest) {
                Some(Turn::There) => return Ok(()),
                Some(Turn::UnderWay) if stop.is_requested() => return Err(Trouble::Stopped),
                Some(Turn::UnderWay) => state = self.state.wait_briefly(state),
                None => break,
            }
        }
        state.insert(digest, Turn::UnderWay);
        drop(state);
        let brought = bring();
        let mut state = self.state.lock();
        match &brought {
            Ok(()) => state.insert(digest, Turn::There),
            Err(_) => state.remove(&digest),
        };
        drop(state);
        self.state.tell();
        brought
    }
}

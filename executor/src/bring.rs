//! Layers that a remote cache has and the store lacks: what of them somebody must read is brought, and nothing else.
//!
//! A tree is brought when somebody looks something up in it, a blob when the files of its layer must be on disk. What has
//! been brought is local from then on: the next build of this store finds it without asking a cache.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use oci::{
    Descriptor, TreeDigest,
    elsewhere::bring::{self, BringError},
    fetch::Fetcher,
    store::sealed::SealedRecord,
};
use solver::{Cancel, Event};

use crate::snapshot::{Events, SnapshotError, Snapshots, at_once};

/// Bytes between two progress events.
const PROGRESS_STEP: u64 = 1 << 20;

impl Snapshots {
    /// Makes sure that the store has the trees of these layers, as far as caches have those that it lacks.
    pub(crate) fn bring_trees(&self, layers: &[TreeDigest]) -> Result<(), SnapshotError> {
        let is_elsewhere = |layer: &&TreeDigest| self.fetcher().elsewhere().get(layer).is_some();
        let elsewhere: Vec<_> = layers.iter().filter(is_elsewhere).collect();
        let fetcher = self.bringer();
        at_once(&elsewhere, |layer| Ok(bring::tree(&fetcher, layer).map(drop)?)).map(drop)
    }

    /// Brings the trees and blobs of layers, those that a cache has.
    pub(crate) fn bring_layers(&self, layers: &[TreeDigest]) -> Result<(), SnapshotError> {
        at_once(layers, |layer| self.bring_layer(layer).map(drop)).map(drop)
    }

    /// Brings the tree and a blob of a layer; `None` where no cache has it.
    pub(crate) fn bring_layer(&self, layer: &TreeDigest) -> Result<Option<SealedRecord>, SnapshotError> {
        let Some(remote) = self.fetcher().elsewhere().get(layer) else { return Ok(None) };
        let Some((_, blob)) = bring::best(&remote, None) else { return Ok(None) };
        let fetcher = self.bringer();
        // The small thing first: it may tell that the large one is of no use.
        if !bring::tree(&fetcher, layer)? {
            return Ok(None);
        }
        let progress = Progress::new(blob, self.events(), self.cancel());
        Ok(bring::blob(&fetcher, layer, None, &|count| progress.add(count))?)
    }

    /// Stops when we are asked to.
    pub(crate) fn bringer(&self) -> Fetcher {
        let cancel = Cancel::clone(self.cancel());
        self.fetcher().until(move || cancel.is_requested())
    }
}

/// A blob on its way, counted.
struct Progress<'a> {
    task: String,
    total: u64,
    done: AtomicU64,
    events: &'a Events,
    cancel: &'a Cancel,
}

impl<'a> Progress<'a> {
    fn new(blob: &Descriptor, events: &'a Events, cancel: &'a Cancel) -> Self {
        let task = format!("pull {:.19}", blob.digest.to_string());
        Self { task, total: blob.size, done: AtomicU64::new(0), events, cancel }
    }

    /// Bytes have come; an attempt that begins anew counts on.
    fn add(&self, count: usize) -> io::Result<()> {
        if self.cancel.is_requested() {
            return Err(io::Error::other("the build is stopped"));
        }
        let before = self.done.fetch_add(count as u64, Ordering::Relaxed);
        let done = (before + count as u64).min(self.total);
        if count > 0 && (before / PROGRESS_STEP != done / PROGRESS_STEP || done == self.total) {
            let (task, total) = (self.task.clone(), self.total);
            (self.events)(Event::Transfer { task, done, total });
        }
        Ok(())
    }
}

impl From<BringError> for SnapshotError {
    fn from(error: BringError) -> Self {
        match error {
            BringError::Cancelled => Self::Cancelled,
            BringError::Store(error) => error.into(),
            error => Self::Elsewhere(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests;

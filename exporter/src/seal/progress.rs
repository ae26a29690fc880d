//! How far a layer is.

use std::sync::atomic::{AtomicU64, Ordering};

use oci::{Descriptor, Tree, TreeDigest};
use solver::Event;

use super::Events;
use crate::places::content_length;

/// Layers with at least this many bytes report how far they are, once for each of as many bytes.
const REPORT_STEP: u64 = 8 * 1024 * 1024;

/// Says how far a layer is: of a built one, by the bytes of its tar against the bytes of its files, of a base image's by
/// those of its blob.
pub(super) struct Progress<'a> {
    events: &'a Events,
    task: String,
    total: u64,
    done: AtomicU64,
}

impl<'a> Progress<'a> {
    pub(super) fn new(events: &'a Events, digest: TreeDigest, tree: &Tree) -> Self {
        let total = tree.entries().iter().map(content_length).sum();
        let task = format!("compress layer {}", &digest.hex()[..12]);
        Self { events, task, total, done: AtomicU64::new(0) }
    }

    pub(super) fn of_base(events: &'a Events, blob: &Descriptor) -> Self {
        let task = format!("repack sha256:{}", &blob.digest.hex()[..12]);
        Self { events, task, total: blob.size, done: AtomicU64::new(0) }
    }

    pub(super) fn of_cached(events: &'a Events, blob: &Descriptor) -> Self {
        let task = format!("pull sha256:{}", &blob.digest.hex()[..12]);
        Self { events, task, total: blob.size, done: AtomicU64::new(0) }
    }

    /// Counts bytes.
    pub(super) fn add(&self, bytes: usize) {
        let before = self.done.fetch_add(bytes as u64, Ordering::Relaxed);
        let after = before + bytes as u64;
        if before / REPORT_STEP != after / REPORT_STEP && after < self.total {
            self.report(after);
        }
    }

    /// Says that it is done.
    pub(super) fn finish(&self) {
        if self.total >= REPORT_STEP {
            self.report(self.total);
        }
    }

    fn report(&self, done: u64) {
        (self.events)(Event::Transfer { task: self.task.clone(), done, total: self.total });
    }
}

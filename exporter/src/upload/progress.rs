//! How much of a blob has been sent.

use std::sync::atomic::{AtomicU64, Ordering};

use oci::{Descriptor, Reference};
use solver::Event;

use crate::seal::Events;

/// Progress is told once for each of this many bytes.
const REPORT_STEP: u64 = 1024 * 1024;

/// Says how much of a blob has been sent to one repository.
pub(super) struct Progress<'a> {
    events: &'a Events,
    task: String,
    total: u64,
    done: AtomicU64,
}

impl<'a> Progress<'a> {
    /// Of a push to `repository`, which is named where there are others.
    pub(super) fn new(events: &'a Events, blob: &Descriptor, repository: Option<&Reference>) -> Self {
        let to = repository.map(|name| format!(" to {}/{}", name.registry, name.repository));
        let task = format!("push sha256:{}{}", &blob.digest.hex()[..12], to.unwrap_or_default());
        Self { events, task, total: blob.size, done: AtomicU64::new(0) }
    }

    /// So many more have been sent, which may be some for the second time.
    pub(super) fn add(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let after = (before + bytes).min(self.total);
        if before / REPORT_STEP != after / REPORT_STEP && after < self.total {
            self.report(after);
        }
    }

    /// Ends the task, if any of its bytes were sent.
    pub(super) fn finish(&self) {
        if self.done.load(Ordering::Relaxed) > 0 {
            self.report(self.total);
        }
    }

    fn report(&self, done: u64) {
        (self.events)(Event::Transfer { task: self.task.clone(), done, total: self.total });
    }
}

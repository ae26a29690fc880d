//! Where blobs are, or will be, in registries that images go to: whoever wants one elsewhere in the same registry waits for
//! it and mounts it, so its bytes are sent once.

use std::sync::{Arc, atomic::Ordering};

use oci::{Reference, Sha256Digest};
use solver::Cancel;

use super::{Phase, Shared, Uploads};

/// What is on its way to registries. Cheap to clone.
#[derive(Clone)]
pub struct Landings {
    shared: Arc<Shared>,
}

impl Uploads {
    /// Where its blobs are.
    pub fn landings(&self) -> Landings {
        Landings { shared: Arc::clone(&self.shared) }
    }
}

impl Landings {
    /// A repository of this registry that has a blob; waits where it is on its way there. `None` where it is not, or does
    /// not come.
    pub fn wait(&self, registry: &str, blob: &Sha256Digest, cancel: &Cancel) -> Option<Reference> {
        let mut state = self.shared.state.lock();
        loop {
            let host = state.hosts.get(registry)?;
            if let Some(repository) = host.landed(blob) {
                let (registry, repository) = (registry.to_owned(), repository.to_owned());
                return Some(Reference { registry, repository, tag: None, digest: None });
            }
            let is_over = state.phase == Phase::Closed || cancel.is_requested();
            if is_over || !host.is_coming(blob) {
                return None;
            }
            state = self.shared.state.wait_briefly(state);
        }
    }

    /// Another number than before while anything moves.
    pub fn moved(&self) -> u64 {
        self.shared.moved.load(Ordering::Relaxed)
    }
}

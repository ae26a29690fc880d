//! What is remembered of contexts for later builds: what their files hold ([`Index`]), and which files were behind a
//! digest of a key ([`inventory`]), which `explain` asks for. Written beside the build.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use oci::{TreeDigest, store::Store};

use super::glance::Glance;
use crate::{
    background::Background,
    context::Index,
    git::{Repository, known::Known},
    inventory,
    listing::Listing,
};

/// What contexts are remembered of. Dropping it waits until all is written.
pub(super) struct Memory {
    store: Arc<Store>,
    indices: Mutex<BTreeMap<PathBuf, Arc<Index>>>,
    blobs: Mutex<BTreeMap<PathBuf, Arc<Known>>>,
    background: Background,
}

impl Memory {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, indices: Mutex::default(), blobs: Mutex::default(), background: Background::default() }
    }

    /// What is remembered of the context in a directory, for all who look at it in this build.
    pub(super) fn index(&self, directory: &Path) -> Arc<Index> {
        let mut indices = self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || Arc::new(Index::load(&self.store, directory));
        Arc::clone(indices.entry(directory.to_owned()).or_insert_with(load))
    }

    /// Has what was learned written.
    pub(super) fn save(&self, index: &Arc<Index>) {
        let index = Arc::clone(index);
        if index.has_news() {
            self.background.run(move || index.save());
        }
    }

    /// What is remembered of the blobs of a repository, for all who read it in this build.
    pub(super) fn blobs(&self, repository: &Repository) -> Arc<Known> {
        let directory = repository.common_directory();
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || Arc::new(Known::load(&self.store, &directory));
        Arc::clone(blobs.entry(directory.clone()).or_insert_with(load))
    }

    /// Has what was learned of blobs written.
    pub(super) fn save_blobs(&self, blobs: &Arc<Known>) {
        if blobs.has_news() {
            let blobs = Arc::clone(blobs);
            self.background.run(move || blobs.save());
        }
    }

    /// Whether a directory is this build's own, and will not be seen again.
    pub(super) fn is_passing(&self, directory: &Path) -> bool {
        directory.starts_with(self.store.root().join("tmp"))
    }

    /// What a look came to when it last saw the same.
    pub(super) fn glance(&self, look: &TreeDigest, print: &TreeDigest) -> Option<Glance> {
        Glance::recall(&self.store, look, print)
    }

    /// Has it written down what a look came to.
    pub(super) fn keep(&self, look: TreeDigest, glance: Glance) {
        let store = Arc::clone(&self.store);
        self.background.run(move || glance.keep(&store, &look));
    }

    /// Whether it is written down what the files are that a digest stands for.
    pub(super) fn has_inventory(&self, files: &TreeDigest) -> bool {
        let path = inventory::path(files);
        let is_there = self.store.root().join(&path).exists();
        if is_there {
            self.store.touch(&path);
        }
        is_there
    }

    /// Has it written down what the files are that a digest stands for in keys, unless it is known.
    pub(super) fn take_inventory(&self, files: TreeDigest, listing: &Arc<Listing>) {
        if self.has_inventory(&files) {
            return;
        }
        let (store, listing) = (Arc::clone(&self.store), Arc::clone(listing));
        self.background.run(move || {
            // A store that does not take it costs an explanation, no build.
            let _ = listing.inventory().map(|inventory| inventory::write(&store, &files, &inventory));
        });
    }
}

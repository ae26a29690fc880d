//! What is remembered of contexts for later builds: what their files hold ([`Index`]), and which files were behind a
//! digest of a key ([`inventory`]), which `explain` asks for. Written beside the build.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use oci::{TreeDigest, store::Store};

use crate::{background::Background, context::Index, inventory, listing::Listing};

/// What contexts are remembered of. Dropping it waits until all is written.
pub(super) struct Memory {
    store: Arc<Store>,
    indices: Mutex<BTreeMap<PathBuf, Arc<Index>>>,
    background: Background,
}

impl Memory {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, indices: Mutex::default(), background: Background::default() }
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

    /// Has it written down what the files are that a digest stands for in keys, unless it is known.
    pub(super) fn take_inventory(&self, files: TreeDigest, listing: &Arc<Listing>) {
        let path = inventory::path(&files);
        if self.store.root().join(&path).exists() {
            return self.store.touch(&path);
        }
        let (store, listing) = (Arc::clone(&self.store), Arc::clone(listing));
        self.background.run(move || {
            // A store that does not take it costs an explanation, no build.
            let _ = listing.inventory().map(|inventory| inventory::write(&store, &files, &inventory));
        });
    }
}

//! What remote caches still have of the layers that a build counts on.
//!
//! A registry that has lost one blob has often lost more, and a build finds that out one after the other, each time by
//! failing. So once one turned out to be gone, all others are asked for at the same time, and the next attempt does without
//! any that is. Only what is known to be gone is lost: nobody is made to run a step by a registry that does not answer.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use oci::{
    BlobOrigin, Descriptor, Registry, RemoteLayer,
    fetch::Fetcher,
    layout::{self, LayoutError},
};
use solver::Cancel;

use crate::parallel::in_parallel;

/// Blobs that are asked for at the same time.
const PARALLEL: usize = 16;
/// How long all answers together may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Loses the layers of which a blob is gone that the store does not have.
pub fn lose_what_is_gone(fetcher: &Fetcher, cancel: &Cancel) {
    let (cancel, begun) = (cancel.clone(), Instant::now());
    let is_over = move || cancel.is_requested() || begun.elapsed() > DEADLINE;
    let registry = fetcher.registry().direct().briefly().until(is_over.clone());
    let layers = fetcher.elsewhere().all();
    let wanted: Vec<_> = layers.iter().flat_map(|layer| wanted(fetcher, layer)).collect();
    let look = |(layer, blob): &(&RemoteLayer, &Descriptor)| {
        if !is_over() && is_gone(&registry, blob, &layer.origin) {
            fetcher.elsewhere().lose(layer.tree);
        }
        Ok::<_, ()>(())
    };
    let _ = in_parallel(&wanted, PARALLEL, look);
}

/// The blobs of a layer that are not here in one form or another.
fn wanted<'a>(
    fetcher: &'a Fetcher,
    layer: &'a RemoteLayer,
) -> impl Iterator<Item = (&'a RemoteLayer, &'a Descriptor)> {
    let store = fetcher.store();
    let has_tree = store.root().join(Path::new("trees").join(layer.tree.hex())).is_file();
    let tree = Some(&layer.tree_blob).filter(|_| !has_tree);
    let blobs = layer.blobs.values().filter(|blob| !store.has_blob(&blob.digest, blob.size));
    blobs.chain(tree).map(move |blob| (layer, blob))
}

fn is_gone(registry: &Registry, blob: &Descriptor, origin: &BlobOrigin) -> bool {
    match origin {
        BlobOrigin::Registry(repository) => matches!(registry.has_blob(repository, &blob.digest), Ok(false)),
        BlobOrigin::OciLayout(directory) => {
            layout::open_blob(directory, &blob.digest).is_err_and(is_not_there)
        }
    }
}

/// Whether that is why a file cannot be opened. A file system may fail otherwise, and have it.
fn is_not_there(error: LayoutError) -> bool {
    matches!(error, LayoutError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

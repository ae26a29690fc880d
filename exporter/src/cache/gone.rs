//! What remote caches still have of the layers that a build counts on.
//!
//! A registry that has lost one blob has often lost more, and a build finds that out one after the other, each time by
//! failing. So once one turned out to be gone, all others are asked for at the same time, and the next attempt does without
//! any that is. What is lost by itself is what is known to be gone; a registry that fails, or does not answer at all, is given up
//! whole where others would give it up, too ([`RemoteLayers::failed`]).

use std::{
    collections::BTreeSet,
    error::Error,
    io,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use oci::{
    BlobOrigin, Descriptor, Registry, RemoteLayer, RemoteLayers,
    fetch::Fetcher,
    layout::{self, LayoutError},
    registry::RegistryError,
};
use solver::Cancel;

use crate::parallel::in_parallel;

/// Blobs that are asked for at the same time.
const PARALLEL: usize = 16;
/// How long all answers together may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// What is asked for: a layer, and one of its blobs.
type Wanted<'a> = (&'a RemoteLayer, &'a Descriptor);

/// Which places have answered, and what was asked for when the time was over.
#[derive(Default)]
struct Heard<'a> {
    answered: BTreeSet<&'a BlobOrigin>,
    unanswered: Vec<Wanted<'a>>,
}

/// Loses the layers of which a blob is gone that the store does not have.
pub fn lose_what_is_gone(fetcher: &Fetcher, cancel: &Cancel) {
    let (stop, begun) = (cancel.clone(), Instant::now());
    let is_over = move || stop.is_requested() || begun.elapsed() > DEADLINE;
    let registry = fetcher.registry().direct().briefly().until(is_over.clone());
    let layers = fetcher.elsewhere().all();
    let wanted: Vec<_> = layers.iter().flat_map(|layer| wanted(fetcher, layer)).collect();
    let heard = Mutex::new(Heard::default());
    let _ = in_parallel(&wanted, PARALLEL, |wanted| {
        if !is_over() && !fetcher.elsewhere().is_lost(&wanted.0.tree) {
            look(&registry, fetcher.elsewhere(), *wanted, &heard);
        }
        Ok::<_, ()>(())
    });
    if !cancel.is_requested() {
        give_up_silent(fetcher.elsewhere(), heard.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Asks for a blob.
fn look<'a>(
    registry: &Registry,
    elsewhere: &RemoteLayers,
    (layer, blob): Wanted<'a>,
    heard: &Mutex<Heard<'a>>,
) {
    let there = is_there(registry, blob, &layer.origin);
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    match there {
        Ok(is_there) => {
            heard.answered.insert(&layer.origin);
            elsewhere.answered(&layer.origin);
            if !is_there {
                elsewhere.lose(layer.tree);
            }
        }
        Err(error) if matches!(error.downcast_ref(), Some(RegistryError::Cancelled)) => {
            heard.unanswered.push((layer, blob));
        }
        Err(error) => elsewhere.failed(&layer.origin, &blob.digest, &*error),
    }
}

/// Registries that have answered nothing in all that time have failed with all that they were asked for.
fn give_up_silent(elsewhere: &RemoteLayers, Heard { answered, unanswered }: Heard<'_>) {
    for (layer, blob) in unanswered.into_iter().filter(|(layer, _)| !answered.contains(&layer.origin)) {
        let silence = RegistryError::Timeout { url: layer.origin.to_string(), waited: DEADLINE };
        elsewhere.failed(&layer.origin, &blob.digest, &silence);
    }
}

/// The blobs of a layer that are not here in one form or another.
fn wanted<'a>(fetcher: &'a Fetcher, layer: &'a RemoteLayer) -> impl Iterator<Item = Wanted<'a>> {
    let store = fetcher.store();
    let has_tree = store.root().join(Path::new("trees").join(layer.tree.hex())).is_file();
    let tree = Some(&layer.tree_blob).filter(|_| !has_tree);
    let blobs = layer.blobs.values().filter(|blob| !store.has_blob(&blob.digest, blob.size));
    blobs.chain(tree).map(move |blob| (layer, blob))
}

/// Whether a place has a blob.
fn is_there(
    registry: &Registry,
    blob: &Descriptor,
    origin: &BlobOrigin,
) -> Result<bool, Box<dyn Error + Send + Sync>> {
    match origin {
        BlobOrigin::Registry(repository) => Ok(registry.has_blob(repository, &blob.digest)?),
        BlobOrigin::OciLayout(directory) => match layout::open_blob(directory, &blob.digest) {
            Ok(_) => Ok(true),
            Err(error) if is_not_there(&error) => Ok(false),
            Err(error) => Err(error.into()),
        },
    }
}

/// Whether that is why a file cannot be opened. A file system may fail otherwise, and have it.
fn is_not_there(error: &LayoutError) -> bool {
    matches!(error, LayoutError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use oci::{MediaType, Sha256Digest, TreeDigest};

    use super::*;

    fn layer(number: u8, repository: &str) -> RemoteLayer {
        let blob = |what: &str| Descriptor::of(MediaType::OciLayerGzip, format!("{what}{number}").as_bytes());
        RemoteLayer {
            tree: TreeDigest::new([number; 32]),
            diff_id: Sha256Digest::of(&[number]).into(),
            blobs: [("gzip".to_owned(), blob("layer"))].into(),
            tree_blob: blob("tree"),
            origin: BlobOrigin::Registry(
                format!("localhost:5000/{repository}").parse().expect("a reference"),
            ),
        }
    }

    #[test]
    fn who_has_answered_nothing_is_given_up_and_who_was_only_late_is_not() {
        let layers: Vec<_> =
            (1..=3).flat_map(|number| [layer(number, "silent"), layer(number + 3, "late")]).collect();
        let elsewhere = RemoteLayers::default();
        layers.iter().for_each(|layer| elsewhere.note(layer.clone()));
        let unanswered = layers.iter().map(|layer| (layer, &layer.tree_blob)).collect();
        give_up_silent(&elsewhere, Heard { answered: [&layers[1].origin].into(), unanswered });
        let lost: Vec<_> = layers.iter().map(|layer| elsewhere.is_lost(&layer.tree)).collect();
        assert_eq!(lost, [true, false, true, false, true, false]);
    }
}

//! Built layers whose bytes are in a remote cache and, as far as this process knows, nowhere on this machine.
//!
//! Whoever reads a remote cache notes here what it says of each layer; whoever needs a layer's tree, or its blob, finds out
//! here where to get it. Nothing is downloaded before that. What turns out to be gone or wrong there is *lost*: from then on
//! nobody is told of it any more, and the records that name it are misses. Lives as long as the process.
//!
//! [`bring`] is how such a layer comes into the store.

pub mod bring;
mod large;
mod row;
pub(crate) mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::row::Rows;
use crate::{
    descriptor::Descriptor,
    digest::{DiffId, Sha256Digest, TreeDigest},
    layer::BlobOrigin,
};

/// What a remote cache says of a built layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLayer {
    /// Its own identity.
    pub tree: TreeDigest,
    /// SHA-256 of its tar, with the times of [`crate::tree`] as they are.
    pub diff_id: DiffId,
    /// Its blobs, by the id of the encoder that made them; at least one.
    pub blobs: BTreeMap<String, Descriptor>,
    /// The blob that holds the tree in its canonical encoding, packed ([`crate::packed`]).
    pub tree_blob: Descriptor,
    /// Where all these blobs can be had.
    pub origin: BlobOrigin,
}

/// The layers that remote caches have. Cheap to clone; a clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct RemoteLayers {
    state: Arc<Mutex<State>>,
    turns: Arc<large::Turns>,
    given_up: Sink,
}

/// A cache of which no layer is read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Which.
    pub cache: BlobOrigin,
    /// What it has failed with, in words.
    pub why: String,
}

/// Takes what is given up; the default forgets it.
#[derive(Clone, Default)]
struct Sink(Option<Arc<dyn Fn(GivenUp) + Send + Sync>>);

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Sink(taken)" } else { "Sink(forgotten)" })
    }
}

#[derive(Debug, Default)]
struct State {
    layers: BTreeMap<TreeDigest, RemoteLayer>,
    /// What was said of each layer first, whether anybody needs it or not.
    said: BTreeMap<TreeDigest, RemoteLayer>,
    lost: BTreeSet<TreeDigest>,
    /// Caches that nothing can be had from.
    shut: BTreeSet<BlobOrigin>,
    rows: Rows,
}

impl RemoteLayer {
    /// All its blobs.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.values().chain([&self.tree_blob])
    }

    /// Whether both can be true. A layer's tar follows from its tree, and a blob from the tar and the encoder; how a tree is
    /// packed is nobody's promise.
    fn agrees(&self, other: &Self) -> bool {
        let is_same = |(encoder, blob): (&String, &Descriptor)| {
            other
                .blobs
                .get(encoder)
                .is_none_or(|known| (known.digest, known.size) == (blob.digest, blob.size))
        };
        self.diff_id == other.diff_id && self.blobs.iter().all(is_same)
    }
}

impl RemoteLayers {
    /// None yet. Each cache that is given up is told of, once, from any thread.
    pub fn telling(given_up: impl Fn(GivenUp) + Send + Sync + 'static) -> Self {
        Self { given_up: Sink(Some(Arc::new(given_up))), ..Self::default() }
    }

    /// Compares what is said of a layer with all that was said of it before, whoever said that. Of two that contradict each
    /// other one is wrong, and nobody knows which: the layer is lost. Says whether it agrees.
    pub fn compare(&self, layer: &RemoteLayer) -> bool {
        let mut state = self.lock();
        let said = state.said.entry(layer.tree).or_insert_with(|| layer.clone());
        if said.agrees(layer) {
            said.blobs.extend(layer.blobs.clone());
            return true;
        }
        state.layers.remove(&layer.tree);
        state.lost.insert(layer.tree);
        false
    }

    /// Notes a layer; what was noted first stands, but for blobs of other encoders at the same place. Nothing happens to one that
    /// is lost, and one of a cache that has been given up is lost unless another has it.
    pub fn note(&self, layer: RemoteLayer) {
        let mut state = self.lock();
        if state.lost.contains(&layer.tree) {
            return;
        }
        if let Some(known) = state.layers.get_mut(&layer.tree) {
            if known.origin == layer.origin && known.agrees(&layer) {
                known.blobs.extend(layer.blobs);
            }
            return;
        }
        if state.shut.contains(&layer.origin) {
            state.lost.insert(layer.tree);
            return;
        }
        state.layers.insert(layer.tree, layer);
    }

    /// Where the layer with this tree can be had.
    pub fn get(&self, tree: &TreeDigest) -> Option<RemoteLayer> {
        self.lock().layers.get(tree).cloned()
    }

    /// All that are counted on: those that were noted, and not lost since.
    pub fn all(&self) -> Vec<RemoteLayer> {
        self.lock().layers.values().cloned().collect()
    }

    /// The same, if the layer has a blob by this encoder.
    pub fn sealed_by(&self, tree: &TreeDigest, encoder: &str) -> Option<(RemoteLayer, Descriptor)> {
        let layer = self.get(tree)?;
        let descriptor = layer.blobs.get(encoder)?.clone();
        Some((layer, descriptor))
    }

    /// The layer that this blob at this place is of.
    pub fn of_blob(&self, digest: &Sha256Digest, origin: &BlobOrigin) -> Option<RemoteLayer> {
        let is_it = |layer: &&RemoteLayer| {
            layer.origin == *origin && layer.descriptors().any(|blob| blob.digest == *digest)
        };
        self.lock().layers.values().find(is_it).cloned()
    }

    /// The layer is not to be had, or not what it should be.
    pub fn lose(&self, tree: TreeDigest) {
        let mut state = self.lock();
        state.layers.remove(&tree);
        state.lost.insert(tree);
    }

    /// This blob of a layer is not to be had, or not what it should be. Says where it should have been; `None` if it is of
    /// no layer here.
    pub fn lose_blob(&self, digest: &Sha256Digest) -> Option<BlobOrigin> {
        self.lose_all(|layer| layer.descriptors().any(|blob| blob.digest == *digest))
    }

    /// A place has answered: whatever has failed there before has failed alone.
    pub fn answered(&self, place: &BlobOrigin) {
        self.lock().rows.end(place);
    }

    /// A blob was not to be had of a place, which is given up with all its layers when that is so of several ([`row`]). What
    /// becomes of the blob's own layer is the caller's to say.
    pub fn failed(&self, place: &BlobOrigin, blob: &Sha256Digest, error: &(dyn Error + 'static)) {
        let why = self.lock().rows.note(place, blob, error);
        why.into_iter().for_each(|why| self.give_up(place, why));
    }

    fn give_up(&self, place: &BlobOrigin, why: String) {
        let is_news = self.lock().shut.insert(place.clone());
        self.lose_all(|layer| layer.origin == *place);
        if let Some(tell) = self.given_up.0.as_ref().filter(|_| is_news) {
            tell(GivenUp { cache: place.clone(), why });
        }
    }

    /// Says where one of them was.
    fn lose_all(&self, is_lost: impl Fn(&RemoteLayer) -> bool) -> Option<BlobOrigin> {
        let mut state = self.lock();
        let lost: Vec<_> = state.layers.extract_if(.., |_, layer| is_lost(layer)).collect();
        state.lost.extend(lost.iter().map(|(tree, _)| *tree));
        lost.into_iter().next().map(|(_, layer)| layer.origin)
    }

    /// How many layers have been lost: a build that fails is worth another try if more are than when it began.
    pub fn count_lost(&self) -> usize {
        self.lock().lost.len()
    }

    /// Whether the layer has been lost.
    pub fn is_lost(&self, tree: &TreeDigest) -> bool {
        self.lock().lost.contains(tree)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MediaType, Reference, registry::RegistryError};

    fn layer(name: u8, repository: &str) -> RemoteLayer {
        let blob = |what: &str| Descriptor::of(MediaType::OciLayerGzip, format!("{what}{name}").as_bytes());
        let reference: Reference = format!("localhost:5000/{repository}").parse().expect("a reference");
        RemoteLayer {
            tree: TreeDigest::new([name; 32]),
            diff_id: Sha256Digest::of(&[name]).into(),
            blobs: [("gzip".to_owned(), blob("layer"))].into(),
            tree_blob: blob("tree"),
            origin: BlobOrigin::Registry(reference),
        }
    }

    #[test]
    fn what_was_noted_first_stands_until_it_is_lost_and_then_nothing_brings_it_back() {
        let layers = RemoteLayers::default();
        layers.note(layer(1, "a"));
        layers.note(layer(1, "b"));
        let tree = layer(1, "a").tree;
        assert_eq!(layers.get(&tree), Some(layer(1, "a")));
        assert!(layers.sealed_by(&tree, "gzip").is_some() && layers.sealed_by(&tree, "zstd").is_none());
        layers.lose(tree);
        layers.note(layer(1, "b"));
        assert!(layers.get(&tree).is_none() && layers.is_lost(&tree));
        assert_eq!(layers.count_lost(), 1);
    }

    #[test]
    fn what_two_say_of_a_layer_at_one_place_counts_together() {
        let zstd = |repository| RemoteLayer {
            blobs: [("zstd".to_owned(), layer(9, "a").tree_blob)].into(),
            ..layer(1, repository)
        };
        for (other, encoders) in [(zstd("a"), vec!["gzip", "zstd"]), (zstd("b"), vec!["gzip"])] {
            let layers = RemoteLayers::default();
            layers.note(layer(1, "a"));
            layers.note(other);
            let known = layers.get(&layer(1, "a").tree).expect("noted");
            assert_eq!(known.blobs.into_keys().collect::<Vec<_>>(), encoders);
        }
    }

    #[test]
    fn of_two_that_contradict_each_other_about_a_layer_neither_is_believed() {
        let agreeing = RemoteLayer { tree_blob: layer(9, "a").tree_blob, ..layer(1, "b") };
        let more =
            RemoteLayer { blobs: [("zstd".to_owned(), layer(9, "a").tree_blob)].into(), ..layer(1, "a") };
        let other_tar = RemoteLayer { diff_id: layer(2, "a").diff_id, ..layer(1, "a") };
        let other_blob = RemoteLayer { blobs: layer(2, "a").blobs, ..layer(1, "a") };
        let mut other_size = layer(1, "a");
        other_size.blobs.values_mut().for_each(|blob| blob.size += 1);
        let cases =
            [(agreeing, true), (more, true), (other_tar, false), (other_blob, false), (other_size, false)];
        for (other, agrees) in cases {
            let layers = RemoteLayers::default();
            assert!(layers.compare(&layer(1, "a")) && layers.compare(&layer(2, "a")));
            layers.note(layer(1, "a"));
            assert_eq!(layers.compare(&other), agrees, "{other:?}");
            assert_eq!(layers.get(&other.tree).is_some(), agrees);
            assert_eq!(layers.is_lost(&other.tree), !agrees);
            assert!(!layers.is_lost(&layer(2, "a").tree));
        }
    }

    #[test]
    fn what_a_third_says_is_compared_with_both() {
        let zstd = |name: u8| [("zstd".to_owned(), layer(name, "a").tree_blob)].into();
        for (third, agrees) in [(8, true), (9, false)] {
            let layers = RemoteLayers::default();
            assert!(layers.compare(&layer(1, "a")));
            assert!(layers.compare(&RemoteLayer { blobs: zstd(8), ..layer(1, "a") }));
            assert_eq!(layers.compare(&RemoteLayer { blobs: zstd(third), ..layer(1, "a") }), agrees);
        }
    }

    #[test]
    fn a_blob_takes_its_layer_with_it_and_a_cache_all_of_its() {
        let layers = RemoteLayers::default();
        (1..=3).for_each(|name| layers.note(layer(name, "a")));
        layers.note(layer(4, "b"));
        assert_eq!(layers.lose_blob(&Sha256Digest::of(b"base")), None);
        for (name, blob) in [(1, layer(1, "a").tree_blob), (2, layer(2, "a").blobs["gzip"].clone())] {
            assert!(layers.lose_blob(&blob.digest).is_some() && layers.is_lost(&layer(name, "a").tree));
        }
        layers.give_up(&layer(3, "a").origin, "it is down".to_owned());
        layers.note(layer(5, "a"));
        assert!(layers.is_lost(&layer(3, "a").tree) && layers.is_lost(&layer(5, "a").tree));
        assert!(layers.get(&layer(4, "b").tree).is_some() && layers.count_lost() == 4);
    }

    #[test]
    fn a_cache_that_is_given_up_is_told_of_once() {
        let told = Arc::<Mutex<Vec<GivenUp>>>::default();
        let sink = Arc::clone(&told);
        let layers =
            RemoteLayers::telling(move |given_up| sink.lock().expect("no test panics in it").push(given_up));
        let place = layer(1, "a").origin;
        let silent = std::io::Error::other(RegistryError::Timeout {
            url: "http://localhost:5000".to_owned(),
            waited: std::time::Duration::from_secs(15),
        });
        for number in 1..=5 {
            layers.note(layer(number, "a"));
            layers.failed(&place, &layer(number, "a").tree_blob.digest, &silent);
        }
        let told = told.lock().expect("no test panics in it").clone();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].cache, place);
        assert!(told[0].why.contains("did not answer for 15 s"), "{}", told[0].why);
        assert_eq!(layers.count_lost(), 5, "what was noted before and after");
    }
}

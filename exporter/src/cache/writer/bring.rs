//! Brings to the place what a record names: blobs and trees of layers, lists of files.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use oci::{
    BlobOrigin, Descriptor, Layer, MediaType, Reference, Sha256Digest, TreeDigest,
    packed::{self, INVENTORY_MEDIA_TYPE, TREE_MEDIA_TYPE},
    threads::both,
};

use super::{Shared, Trouble, WriterOptions, ledger::Need};
use crate::{
    cache::record::{Described, RemoteRecord},
    encode::Encoder,
    parallel::in_parallel,
    seal::{SealedLayer, Sealer, read_tree},
    upload::Blob,
};

/// What has been brought, and what is known of the rest.
#[derive(Default)]
pub(super) struct Brought {
    layers: BTreeMap<TreeDigest, Described>,
    inventories: BTreeMap<TreeDigest, Descriptor>,
    /// For layers of this store, the digest of a snapshot that ends in it.
    chains: BTreeMap<TreeDigest, TreeDigest>,
    /// Of layers that are there, the image's blobs, which are not named by all records.
    packings: BTreeMap<TreeDigest, (String, Descriptor)>,
    /// Blobs of other caches.
    elsewhere: BTreeMap<Sha256Digest, (Descriptor, BlobOrigin)>,
}

impl Brought {
    /// A layer that may have to be sealed.
    pub(super) fn built(&mut self, tree: TreeDigest, chain: TreeDigest) {
        self.chains.entry(tree).or_insert(chain);
    }

    /// Blobs that a record of another cache names.
    pub(super) fn know(&mut self, place: &BlobOrigin, blobs: Vec<Descriptor>) {
        for blob in blobs {
            self.elsewhere.entry(blob.digest).or_insert_with(|| (blob, place.clone()));
        }
    }

    /// What is at the place of a layer.
    pub(super) fn layer(&self, tree: &TreeDigest) -> Option<&Described> {
        self.layers.get(tree)
    }

    /// The same, with the image's blob if that is wanted.
    pub(super) fn described(&self, tree: &TreeDigest, with_packing: bool) -> Option<Described> {
        let mut layer = self.layers.get(tree)?.clone();
        let packing = self.packings.get(tree).filter(|_| with_packing);
        layer.blobs.extend(packing.cloned());
        Some(layer)
    }

    /// What a record that is at the place names.
    pub(super) fn there(&mut self, remote: &RemoteRecord) {
        for (tree, layer) in &remote.layers {
            self.layers.entry(*tree).or_insert_with(|| layer.clone());
        }
        for (files, blob) in &remote.inventories {
            self.inventories.entry(*files).or_insert_with(|| blob.clone());
        }
    }

    /// A list of files that is at the place.
    pub(super) fn inventory(&self, files: &TreeDigest) -> Option<&Descriptor> {
        self.inventories.get(files)
    }
}

impl Shared {
    /// Makes sure that the place has what a record needs.
    pub(super) fn bring(&self, need: Need) -> Result<(), Trouble> {
        match need {
            Need::Layer(tree) => self.bring_layer(tree),
            Need::Packing(tree) => self.bring_packing(tree),
            Need::Inventory(files) => self.bring_inventory(files),
            Need::Blob(digest) => {
                let (blob, origin) = self
                    .state
                    .lock()
                    .brought
                    .elsewhere
                    .get(&digest)
                    .cloned()
                    .expect("a need is known before it is met");
                self.bring_from(&blob, &origin)
            }
            Need::Document(_) => unreachable!("it is written"),
        }
    }

    /// It is known what a need will be at the place; what names it can be written beside it.
    fn described(&self, need: Need, note: impl FnOnce(&mut Brought)) {
        let mut state = self.state.lock();
        note(&mut state.brought);
        state.ledger.described(need);
        drop(state);
        self.state.tell();
    }

    /// A layer: what another cache has, as it is; else what a sealer makes of it.
    fn bring_layer(&self, tree: TreeDigest) -> Result<(), Trouble> {
        let describe = |layer: Described| {
            self.described(Need::Layer(tree), |brought| _ = brought.layers.insert(tree, layer));
        };
        if let Some(layer) = self.options.fetcher.elsewhere().get(&tree) {
            let blobs: Vec<_> = layer.descriptors().cloned().collect();
            let origin = layer.origin.clone();
            describe(layer.into());
            return in_parallel(&blobs, blobs.len(), |blob| self.bring_from(blob, &origin));
        }
        let (encoder, sealed) = self.seal(tree)?;
        let packed = self.packed_tree(tree)?;
        let blobs = [(encoder.id(), plain(&sealed.descriptor))].into();
        describe(Described { diff_id: sealed.diff_id, blobs, tree_blob: packed.blob.clone() });
        let (tree, layer) = both(|| self.bring_packed(&packed), || self.bring_sealed(&sealed));
        tree.and(layer)
    }

    /// What the image has of a layer that the place has otherwise. Only what is said of the same tar goes beside that.
    fn bring_packing(&self, tree: TreeDigest) -> Result<(), Trouble> {
        let sealed = self.seal_by(&self.options.sealer, tree)?;
        let packing = (self.options.sealer.encoder().id(), plain(&sealed.descriptor));
        let mut is_same = false;
        self.described(Need::Packing(tree), |brought| {
            is_same = brought.layer(&tree).is_some_and(|layer| layer.diff_id == sealed.diff_id);
            brought.packings.extend(is_same.then_some((tree, packing)));
        });
        // What no record names, nobody looks for.
        if is_same { self.bring_sealed(&sealed) } else { Ok(()) }
    }

    /// A layer of an image by the image's sealer, and so is one that it has made before; any other by the cache's own.
    fn seal(&self, tree: TreeDigest) -> Result<(Encoder, SealedLayer), Trouble> {
        let state = self.state.lock();
        let chain = *state.brought.chains.get(&tree).expect("a need is known before it is met");
        let is_own = state.chain.has_layer(&tree);
        drop(state);
        let WriterOptions { sealer, aside, .. } = &self.options;
        let sealer = if is_own || sealer.has_sealed(chain, &tree) { sealer } else { aside };
        Ok((sealer.encoder(), self.seal_by(sealer, tree)?))
    }

    fn seal_by(&self, sealer: &Sealer, tree: TreeDigest) -> Result<SealedLayer, Trouble> {
        let chain = *self.state.lock().brought.chains.get(&tree).expect("a need is known before it is met");
        let built = Layer::Built(tree);
        self.sealing.fetch_add(1, Ordering::SeqCst);
        let sealed = sealer.seal_aside(chain, &built, &self.trying);
        self.sealing.fetch_sub(1, Ordering::SeqCst);
        sealed.map_err(|error| match self.trying.is_requested() {
            true => Trouble::Stopped,
            false => error.into(),
        })
    }

    /// The blob of a layer: mounted from where the image goes if that is in the same registry.
    fn bring_sealed(&self, sealed: &SealedLayer) -> Result<(), Trouble> {
        let digest = sealed.descriptor.digest;
        self.blobs.once(digest, &self.trying, || {
            let blob = Blob::of(sealed, &self.options.fetcher);
            let landed = self.landed(&digest);
            self.put(&sealed.descriptor, landed.as_ref().or(blob.home()), &|| blob.open())
        })
    }

    /// Where the image's uploads have brought a blob in the registry of the place. Waits where they are at it.
    fn landed(&self, blob: &Sha256Digest) -> Option<Reference> {
        let BlobOrigin::Registry(place) = self.options.storage.origin() else { return None };
        self.options.landings.as_ref()?.wait(&place.registry, blob, &self.trying)
    }

    fn packed_tree(&self, tree: TreeDigest) -> Result<Packed, Trouble> {
        let read = read_tree(self.options.fetcher.store(), tree).map_err(Arc::new)?;
        Ok(Packed::of(TREE_MEDIA_TYPE, &read.to_bytes()))
    }

    /// A list of files, if this store has it. One that cannot be written as JSON is not there either.
    fn bring_inventory(&self, files: TreeDigest) -> Result<(), Trouble> {
        let inventory = (self.options.inventories)(&files).and_then(|list| serde_json::to_vec(&list).ok());
        let packed = inventory.map(|bytes| Packed::of(INVENTORY_MEDIA_TYPE, &bytes));
        let blob = packed.as_ref().map(|packed| (files, packed.blob.clone()));
        self.described(Need::Inventory(files), |brought| brought.inventories.extend(blob));
        packed.map_or(Ok(()), |packed| self.bring_packed(&packed))
    }

    fn bring_packed(&self, Packed { blob, bytes }: &Packed) -> Result<(), Trouble> {
        let open = || Ok(Box::new(io::Cursor::new(Arc::clone(bytes))) as Box<dyn Read + Send>);
        self.blobs.once(blob.digest, &self.trying, || self.put(blob, None, &open))
    }

    /// A blob of another cache: mounted where that is in the same registry, else streamed through. At the place itself it
    /// is there.
    fn bring_from(&self, blob: &Descriptor, origin: &BlobOrigin) -> Result<(), Trouble> {
        if *origin == self.options.storage.origin() {
            return Ok(());
        }
        let fetcher = &self.options.fetcher;
        let home = match origin {
            BlobOrigin::Registry(reference) => Some(reference),
            BlobOrigin::OciLayout(_) => None,
        };
        let landed = || self.landed(&blob.digest);
        let bring = || self.put(blob, landed().as_ref().or(home), &|| fetcher.open(blob, origin));
        self.blobs.once(blob.digest, &self.trying, bring)
    }

    /// Makes sure that the place has a blob. `home` is a repository of any registry that it may be mounted from.
    pub(super) fn put(
        &self,
        blob: &Descriptor,
        home: Option<&Reference>,
        open: &(dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync),
    ) -> Result<(), Trouble> {
        if self.trying.is_requested() {
            return Err(Trouble::Stopped);
        }
        let place = self.options.storage.origin();
        let from =
            home.filter(|home| matches!(&place, BlobOrigin::Registry(to) if to.registry == home.registry));
        let source = Source::default();
        let opened = || {
            let reader = open().map_err(|error| source.fail(error))?;
            Ok(Box::new(Watched { reader, source: source.clone(), moved: Arc::clone(&self.moved) })
                as Box<dyn Read + Send>)
        };
        let put = self.options.storage.put_blob(blob, from, &opened, &self.trying);
        match (put, source.take()) {
            (Ok(is_sent), _) => {
                self.sent.fetch_add(if is_sent { blob.size } else { 0 }, Ordering::Relaxed);
                Ok(())
            }
            (Err(_), _) if self.trying.is_requested() => Err(Trouble::Stopped),
            (Err(_), Some(source)) => Err(Trouble::Blob { digest: blob.digest, source }),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// What a record says of a blob.
fn plain(blob: &Descriptor) -> Descriptor {
    Descriptor::new(blob.media_type.clone(), blob.digest, blob.size)
}

/// A small blob in memory.
struct Packed {
    blob: Descriptor,
    bytes: Arc<[u8]>,
}

impl Packed {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        let bytes: Arc<[u8]> = packed::pack(bytes).into();
        Self { blob: Descriptor::of(MediaType::Other(media_type.to_owned()), &bytes), bytes }
    }
}

/// Where the bytes of a blob come from, and why they did not.
#[derive(Clone, Default)]
struct Source(Arc<Mutex<Option<io::Error>>>);

impl Source {
    /// Remembers a failure, and gives one like it.
    fn fail(&self, error: io::Error) -> io::Error {
        let told = io::Error::new(error.kind(), error.to_string());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        told
    }

    fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A blob on its way: counts that it moves.
struct Watched {
    reader: Box<dyn Read + Send>,
    source: Source,
    moved: Arc<AtomicU64>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.reader.read(buffer).map_err(|error| self.source.fail(error))
    }
}

//! What a record that is stored needs, and the record itself.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock, atomic::Ordering},
};

use oci::{BlobOrigin, Descriptor, Layer, TreeDigest};
use solver::{Record, key::pre_image};

use super::{Item, Look, Shared, State, Trouble, ledger::Need};
use crate::cache::{
    bundle::SignedRecord,
    names,
    record::RemoteRecord,
    seen::SeenRecord,
    storage::{Artifact, ArtifactKind},
};

/// What there is to do for most records: a layer, what the record says, and its names. Which needs are new is not known before
/// the look is over, and threads that are missing then would do one thing after the other.
const WORK: usize = 3;

impl Item {
    /// A record that names what it has always named.
    pub(super) fn new(record: Record, seen: Option<Arc<SeenRecord>>) -> Self {
        Self { record, seen, packings: BTreeSet::new(), put: OnceLock::new() }
    }
}

impl Shared {
    /// Wants a record at the place; says how much more there is to do.
    pub(super) fn want(&self, state: &mut State, record: Record) -> usize {
        if state.is_closed || state.failure.is_some() {
            return 0;
        }
        match &mut state.look {
            Look::Open(waiting) | Look::Running(waiting) => {
                waiting.push(record);
                return WORK;
            }
            Look::Over => {}
        }
        if state.ledger.records().any(|item| item.record == record) {
            return 0;
        }
        match self.options.seen.record(&record) {
            Some((seen, places)) if self.is_whole(&seen) => self.pass_on(state, record, seen, &places),
            _ => self.make(state, record),
        }
    }

    /// Whether no layer of a record is known to be lost.
    pub(super) fn is_whole(&self, seen: &SeenRecord) -> bool {
        let layers = self.options.fetcher.elsewhere();
        !seen.remote.layers.keys().any(|tree| layers.is_lost(tree))
    }

    /// A record that some caches have: at this place there is nothing to do, another's goes on as it is.
    fn pass_on(
        &self,
        state: &mut State,
        record: Record,
        seen: Arc<SeenRecord>,
        places: &BTreeSet<BlobOrigin>,
    ) -> usize {
        let blobs = seen.remote.blobs();
        let Some(place) = places.first().filter(|_| !places.contains(&self.options.storage.origin())) else {
            let put = (seen.signed.clone(), blobs).into();
            state.ledger.know(Item { record, put, seen: Some(seen), packings: BTreeSet::new() });
            return 0;
        };
        let needs: Vec<_> = blobs.iter().map(|blob| Need::Blob(blob.digest)).collect();
        state.brought.know(place, blobs);
        state.ledger.want(Item::new(record, Some(seen)), needs)
    }

    /// A record of this store.
    fn make(&self, state: &mut State, record: Record) -> usize {
        let mut needs = Vec::new();
        for (chain, layer) in record.snapshot.chain() {
            if let Layer::Built(tree) = layer {
                state.brought.built(*tree, chain);
                needs.push(Need::Layer(*tree));
            }
        }
        needs.extend(inventories(&record).map(Need::Inventory));
        state.ledger.want(Item::new(record, None), needs)
    }

    /// Brings the document of a record, which is known by now, beside what it names.
    pub(super) fn write(&self, item: &Item) -> Result<(), Trouble> {
        if self.trying.is_requested() {
            return Err(Trouble::Stopped);
        }
        let written = match &item.seen {
            Some(seen) => (seen.signed.clone(), seen.remote.blobs()),
            None => self.written(item)?,
        };
        // It is written once.
        let (signed, _) = item.put.get_or_init(|| written);
        self.state.tell();
        self.options.storage.put_document(ArtifactKind::Record, &signed.document, &self.trying)?;
        Ok(())
    }

    /// Lets both its names stand for a record, of which all is at the place.
    pub(super) fn publish(&self, item: &Item) -> Result<(), Trouble> {
        if self.trying.is_requested() {
            return Err(Trouble::Stopped);
        }
        let (signed, blobs) = item.put.get().cloned().expect("its document is there");
        let SignedRecord { document, signature } = signed;
        let artifact = Artifact { kind: ArtifactKind::Record, document, signature, blobs };
        let Record { content, definition, .. } = &item.record;
        let names = [names::content(content), names::definition(definition)];
        self.options.storage.put_names(&names.each_ref().map(String::as_str), &artifact, &self.trying)?;
        // Where it names the image's blob as well, it has been there before.
        let is_new = item.packings.is_empty();
        self.put.fetch_add(usize::from(is_new), Ordering::Relaxed);
        Ok(())
    }

    /// The document of a record whose layers are all known.
    fn written(
        &self,
        Item { record, packings, .. }: &Item,
    ) -> Result<(SignedRecord, Vec<Descriptor>), Trouble> {
        let state = self.state.lock();
        let trees = record.snapshot.layers.iter().filter(|layer| !layer.is_empty());
        let trees = trees.filter_map(|layer| match layer {
            Layer::Built(tree) => Some((*tree, state.brought.described(tree, packings.contains(tree))?)),
            Layer::Base(_) => None,
        });
        let inventories =
            inventories(record).filter_map(|files| Some((files, state.brought.inventory(&files)?.clone())));
        let remote = RemoteRecord {
            record: record.clone(),
            layers: trees.collect(),
            inventories: inventories.collect(),
        };
        drop(state);
        let document = remote.to_document()?;
        let signature = self.options.sign.as_ref().map(|key| key.sign(ArtifactKind::Record, &document));
        Ok((SignedRecord { document, signature }, remote.blobs()))
    }
}

/// The digests of a pre-image that stand for files; some of them are of contexts, and have a list.
fn inventories(record: &Record) -> impl Iterator<Item = TreeDigest> {
    let files = record.pre_image.iter().filter(|(field, _)| field.starts_with(pre_image::FILES));
    files.filter_map(|(_, digest)| digest.parse().ok())
}

//! Layers that the place has by one encoder and the image by another.
//!
//! A layer that no image had when the cache was filled is packed with little trouble. When an image of a later build has it,
//! that build downloads it and packs it as images are, and so would every build after it. So the records that name it are told
//! anew, with the image's blob beside the other one: the next machine moves no byte of it.
//!
//! That is done in the end of a build, when it is known what the image has, for records that are at the place already; and
//! only for those that we may speak for: what somebody has signed stays as it is, unless the key is ours.

use std::collections::BTreeSet;

use oci::{Layer, TreeDigest};
use solver::Record;

use super::{Item, Shared, State, ledger::Need};
use crate::cache::{bundle::SignedRecord, record::check::BLOBS_MAX, storage::ArtifactKind};

impl Shared {
    /// Wants the image's blobs beside what the place has; says how much there is to do.
    pub(super) fn want_packings(&self) -> usize {
        let mut state = self.state.lock();
        let there: Vec<_> = state.ledger.there().map(|(index, item)| (index, item.clone())).collect();
        let mut work = 0;
        for (index, item) in there {
            if item.put.get().is_none_or(|(signed, _)| !self.is_ours_to_tell(signed)) {
                continue;
            }
            if let Some(seen) = &item.seen {
                state.brought.there(&seen.remote);
            }
            let packings = self.packings(&state, &item.record);
            if packings.is_empty() {
                continue;
            }
            for (chain, layer) in item.record.snapshot.chain() {
                state.brought.built(layer.tree(), chain);
            }
            let needs: Vec<_> = packings.iter().copied().map(Need::Packing).collect();
            let item = Item { packings, ..Item::new(item.record.clone(), None) };
            work += state.ledger.replace(index, item, needs);
        }
        work
    }

    /// The layers of a record of which the image has a blob that the place lacks.
    fn packings(&self, state: &State, record: &Record) -> BTreeSet<TreeDigest> {
        let sealer = &self.options.sealer;
        let encoder = sealer.encoder().id();
        let is_lacking = |tree: &TreeDigest| {
            let described = state.brought.layer(tree);
            described
                .is_some_and(|layer| !layer.blobs.contains_key(&encoder) && layer.blobs.len() < BLOBS_MAX)
        };
        let built = record.snapshot.layers.iter().filter_map(|layer| match layer {
            Layer::Built(tree) => Some(*tree),
            Layer::Base(_) => None,
        });
        built.filter(|tree| sealer.is_offered(tree) && is_lacking(tree)).collect()
    }

    /// Whether a record may be told in other words: nobody has signed it, or we have.
    fn is_ours_to_tell(&self, SignedRecord { document, signature }: &SignedRecord) -> bool {
        match &self.options.sign {
            Some(key) => key.trusted().verify(ArtifactKind::Record, document, signature.as_deref()),
            None => signature.is_none(),
        }
    }
}

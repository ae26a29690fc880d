//! What a cache has said, verified.

use std::{collections::BTreeMap, sync::Arc};

use oci::{BlobOrigin, Sha256Digest, TreeDigest, document};
use solver::{Record, cache::Key};

use super::trouble::Outcome;
use crate::cache::{
    bundle::SignedRecord, inline::Inline, record::RemoteRecord, seen::SeenRecord, storage::Image,
};

/// Records by their keys, and documents by their digests.
#[derive(Debug, Default)]
pub struct Answers {
    by_key: BTreeMap<Key, Arc<SeenRecord>>,
    /// Manifests and configs of base images.
    pub documents: BTreeMap<Sha256Digest, Vec<u8>>,
    /// Documents that nobody who is trusted has signed, and under which content key those are that are sound.
    pub untrusted: BTreeMap<Sha256Digest, Option<TreeDigest>>,
}

impl Answers {
    /// Whether there is a record of a key.
    pub fn has(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    /// Whether there is no record at all, and none that did not count.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.untrusted.is_empty()
    }

    /// The record of a key.
    pub fn get(&self, key: &Key) -> Option<Arc<SeenRecord>> {
        self.by_key.get(key).cloned()
    }

    /// All records, each once.
    pub fn records(&self) -> Vec<Record> {
        let of_content = self.by_key.iter().filter(|(key, _)| matches!(key, Key::Content(_)));
        of_content.map(|(_, seen)| seen.remote.record.clone()).collect()
    }

    /// Takes a verified record under both its keys. Of two that answer the same one, the newer one does.
    pub fn add(&mut self, seen: Arc<SeenRecord>) {
        let Record { definition, content, .. } = seen.remote.record;
        for key in [Key::Definition(definition), Key::Content(content)] {
            let known = self.by_key.entry(key).or_insert_with(|| Arc::clone(&seen));
            if known.remote.record.made.by.at < seen.remote.record.made.by.at {
                *known = Arc::clone(&seen);
            }
        }
    }
}

/// The records that an image brings; most images bring none.
pub fn of_image(image: &Image, origin: &BlobOrigin) -> Result<Vec<Arc<SeenRecord>>, Outcome> {
    let unusable = |error| Outcome::unusable("the image", &error);
    let Some(inline) = Inline::from_config(&image.config).map_err(unusable)? else { return Ok(Vec::new()) };
    let config = document::image_config(&image.manifest, &image.config)
        .map_err(|error| Outcome::Damaged(format!("the image: {error}")))?;
    let layers = config.rootfs.diff_ids.into_iter().zip(image.manifest.layers.iter().cloned());
    let records = inline.records(&layers.collect::<Vec<_>>(), origin).map_err(unusable)?;
    let seen = |remote: RemoteRecord| {
        let signed = SignedRecord { document: remote.to_document()?, signature: None };
        Ok(Arc::new(SeenRecord { remote, signed }))
    };
    records.into_iter().map(seen).collect::<Result<_, _>>().map_err(unusable)
}

//! The cache in an image itself (`type=inline`): what its own steps were, in its config.
//!
//! ```text
//! "layerwright.cache.v1": {"encoder":ID,"base":N,"steps":[{"definition":D,"layer":D},...],"trees":{D:BLOB,...}}
//! ```
//!
//! The first N layers of the image are its base's; the others are those of its steps, in order, without the steps that wrote
//! nothing. Blobs and diff IDs are the image's own, so they are not said again. Nothing here depends on who built the image
//! or when, so the image has the same digest whether its steps ran or not. It is not signed: for who trusts only some
//! keys it does not exist.

mod keys;

use std::collections::BTreeMap;

use oci::{BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, Snapshot, Tree, TreeDigest, canonical::Encoder};
use serde::{Deserialize, Serialize};
use solver::{Made, Record};

pub use self::keys::InlineKeys;
pub(crate) use self::keys::Inlined;
use super::record::{BlobForm, Described, FormatError, RemoteRecord};

/// The key of an image's config.
pub const CONFIG_KEY: &str = "layerwright.cache.v1";
/// How long an image's config may be that is looked at.
pub const CONFIG_MAX: usize = 8 << 20;
/// How many steps above its base an image may have: twice the layers that anything unpacks. One with more is no cache.
pub const STEPS_MAX: usize = 256;
const CALLED: &str = "the cache in an image";

/// What an image says of its own steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// What made its layers' blobs.
    pub encoder: String,
    /// How many of its layers are its base's.
    pub base: usize,
    /// The steps above, the lowest first.
    pub steps: Vec<InlineStep>,
    /// The packed trees of layers, by their digests.
    pub trees: BTreeMap<TreeDigest, Descriptor>,
}

/// A step of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InlineStep {
    /// Its definition key.
    pub definition: TreeDigest,
    /// The layer that it made.
    pub layer: TreeDigest,
}

impl Inline {
    /// What stands under [`CONFIG_KEY`]; nothing for an image of more than [`STEPS_MAX`] steps.
    pub fn to_value(&self) -> Option<serde_json::Value> {
        if self.steps.len() > STEPS_MAX {
            return None;
        }
        let form = Form {
            encoder: self.encoder.clone(),
            base: self.base,
            steps: self.steps.clone(),
            trees: self.trees.iter().map(|(tree, blob)| (*tree, blob.into())).collect(),
        };
        Some(serde_json::to_value(form).expect("keys of its maps are text"))
    }

    /// What the config of an image says of its steps; `None` for an image that says nothing.
    ///
    /// # Errors
    /// It says something else than this.
    pub fn from_config(config: &[u8]) -> Result<Option<Self>, FormatError> {
        if config.len() > CONFIG_MAX {
            let (bytes, limit) = (config.len() as u64, CONFIG_MAX as u64);
            return Err(FormatError::TooLong { what: CALLED, bytes, limit });
        }
        let config: Config =
            serde_json::from_slice(config).map_err(|error| inconsistent(error.to_string()))?;
        Ok(config.inline.map(|Form { encoder, base, steps, trees }| {
            let trees = trees.into_iter().map(|(tree, blob)| (tree, blob.into())).collect();
            Self { encoder, base, steps, trees }
        }))
    }

    /// The records of the steps of an image that has these layers.
    ///
    /// # Errors
    /// What the image says of its steps does not fit its layers.
    pub fn records(
        &self,
        layers: &[(DiffId, Descriptor)],
        origin: &BlobOrigin,
    ) -> Result<Vec<RemoteRecord>, FormatError> {
        // A record names all layers below its own: so many steps are so many layers, squared.
        if self.steps.len() > STEPS_MAX {
            return Err(inconsistent("it has too many steps"));
        }
        let (base, above) =
            layers.split_at_checked(self.base).ok_or_else(|| inconsistent("no such layers"))?;
        let base = base.iter().map(|(diff_id, descriptor)| {
            let (diff_id, descriptor, origin) = (*diff_id, descriptor.clone(), origin.clone());
            Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin }))
        });
        let mut chain = Snapshot { layers: base.collect() };
        let mut described = BTreeMap::new();
        let mut above = above.iter();
        let mut records = Vec::new();
        for step in &self.steps {
            if step.layer != Tree::empty_digest() {
                let layer = above.next().ok_or_else(|| inconsistent("it has more steps than layers"))?;
                described.insert(step.layer, self.described(step, layer)?);
            }
            let parent = chain.digest();
            chain = chain.with(Layer::Built(step.layer));
            let record = self.record(step, parent, &chain);
            records.push(RemoteRecord { record, layers: described.clone(), inventories: BTreeMap::new() });
        }
        match above.next() {
            Some(_) => Err(inconsistent("it has more layers than steps")),
            None => checked(records),
        }
    }

    fn described(
        &self,
        step: &InlineStep,
        (diff_id, blob): &(DiffId, Descriptor),
    ) -> Result<Described, FormatError> {
        let tree_blob = self.trees.get(&step.layer).cloned();
        let tree_blob = tree_blob.ok_or_else(|| inconsistent("a layer has no tree"))?;
        let blob = Descriptor::new(blob.media_type.to_oci(), blob.digest, blob.size);
        Ok(Described { diff_id: *diff_id, blobs: [(self.encoder.clone(), blob)].into(), tree_blob })
    }

    fn record(&self, step: &InlineStep, parent: TreeDigest, chain: &Snapshot) -> Record {
        let made = Made { by: solver::Maker::default(), took_ms: 0 };
        let InlineStep { definition, layer: _ } = *step;
        // Of another domain than content keys are: nobody will ever ask for it.
        let mut content = Encoder::new("inline step");
        content.field(1, &definition);
        let content = content.digest();
        Record { definition, content, parent, snapshot: chain.clone(), pre_image: BTreeMap::new(), made }
    }
}

/// The same records, if each is one that could be in a cache of its own.
fn checked(records: Vec<RemoteRecord>) -> Result<Vec<RemoteRecord>, FormatError> {
    records.iter().try_for_each(RemoteRecord::check)?;
    Ok(records)
}

fn inconsistent(why: impl Into<String>) -> FormatError {
    FormatError::Inconsistent { what: CALLED, why: why.into() }
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "layerwright.cache.v1")]
    inline: Option<Form>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    encoder: String,
    base: usize,
    steps: Vec<InlineStep>,
    trees: BTreeMap<TreeDigest, BlobForm>,
}

#[cfg(test)]
mod tests;

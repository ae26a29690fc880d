//! The record of one step, as a document: what its keys were made of, its whole chain of layers, and where their bytes are.
//!
//! A document is one line of JSON that holds its version and the BLAKE3 of what follows it ([`checked`]). It has exactly one
//! form: what is read is written again and must give the same bytes, so no two documents say the same thing, and nothing
//! in one is overlooked. Whoever can write the cache can write any of this; [`check`](mod@check) says what is never
//! believed, and docs/remote-cache.md what no check can find without a signature.

pub(super) mod check;

use std::{collections::BTreeMap, path::Path};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, MediaType, Sha256Digest, Snapshot, TreeDigest,
    elsewhere::RemoteLayer,
    store::checked::{self, CheckedError},
};
use serde::{Deserialize, Serialize};
use solver::{Key, Made, Record};

/// Version of the document. Another one is a miss.
pub const VERSION: u32 = 1;
/// How long a document may be: heredocs are in it, and chains of hundreds of layers.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// What an error calls a document.
const CALLED: &str = "a record of the cache";

/// A record, and where the bytes of its layers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRecord {
    /// What is remembered. Where its base layers can be had is in no document: whoever adopts a record takes them from
    /// its own graph.
    pub record: Record,
    /// What is said of each built layer of the chain that is not empty.
    pub layers: BTreeMap<TreeDigest, Described>,
    /// Packed lists of files, by the digest of the pre-image that stands for them; not every digest has one.
    pub inventories: BTreeMap<TreeDigest, Descriptor>,
}

/// What a record says of a built layer; a [`RemoteLayer`] but for its identity and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// SHA-256 of its tar, with the times of [`oci::tree`] as they are.
    pub diff_id: DiffId,
    /// Its blobs, by the id of the encoder that made them; at least one.
    pub blobs: BTreeMap<String, Descriptor>,
    /// The blob that holds the tree ([`oci::packed`]).
    pub tree_blob: Descriptor,
}

/// Why a document of a cache is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is not what somebody wrote, or was written by another version.
    #[error(transparent)]
    Document(#[from] CheckedError),
    /// Nothing of ours is so long.
    #[error("{what} has {bytes} bytes, and {limit} are read at most")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// What is read.
        limit: u64,
    },
    /// It contradicts itself, or holds what none of ours does.
    #[error("{what} is not consistent: {why}")]
    Inconsistent {
        /// What.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// No key that is trusted has signed it.
    #[error("a record of the cache is not signed by a key that is trusted")]
    Untrusted,
    /// It was written by another version of this program.
    #[error("{what} has version {found}, and this program reads version {wanted}")]
    Version {
        /// What.
        what: &'static str,
        /// Its version.
        found: u32,
        /// What is read.
        wanted: u32,
    },
}

impl FormatError {
    /// Whether this is another version's document: a miss that nobody needs to hear of.
    pub fn is_other_version(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Document(CheckedError::Version { .. }))
    }
}

impl RemoteRecord {
    /// The bytes that a cache keeps; [`RemoteRecord::from_document`] reads them.
    ///
    /// # Errors
    /// It is no record that anybody would read: too long, or not consistent.
    pub fn to_document(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let document = checked::encode(VERSION, &Form::of(self)).expect("keys of its maps are text");
        fits(&document)?;
        Ok(document)
    }

    /// Reads what somebody says to be a record, for `asked` if that is given. `origin` is where the blobs can be had that
    /// the document names.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn from_document(
        document: &[u8],
        asked: Option<&Key>,
        origin: &BlobOrigin,
    ) -> Result<Self, FormatError> {
        fits(document)?;
        let form: Form = checked::decode(document, Path::new(CALLED), VERSION)?;
        let record = form.into_record(origin)?;
        if asked.is_some_and(|key| !record.answers(key)) {
            return Err(inconsistent("it belongs to another key"));
        }
        // Checks it, too.
        match record.to_document()? == document {
            true => Ok(record),
            false => Err(inconsistent("it is not written as records are")),
        }
    }

    /// Whether it is one that a builder can have made.
    pub(super) fn check(&self) -> Result<(), FormatError> {
        check::check(self)
    }

    /// Whether this is the record of a key.
    pub fn answers(&self, key: &Key) -> bool {
        match key {
            Key::Definition(key) => *key == self.record.definition,
            Key::Content(key) => *key == self.record.content,
        }
    }

    /// Its layers, in a place.
    pub fn layers_at(&self, origin: &BlobOrigin) -> impl Iterator<Item = RemoteLayer> {
        self.layers.iter().map(|(tree, described)| described.clone().at(*tree, origin.clone()))
    }

    /// All blobs that it names, each once, in order of their digests: what must live as long as the record.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let of_layers = self.layers.values().flat_map(|layer| layer.blobs.values().chain([&layer.tree_blob]));
        let all = of_layers.chain(self.inventories.values());
        all.map(|blob| (blob.digest, blob.clone())).collect::<BTreeMap<_, _>>().into_values().collect()
    }
}

impl Described {
    /// The layer, in a place.
    pub fn at(self, tree: TreeDigest, origin: BlobOrigin) -> RemoteLayer {
        let Self { diff_id, blobs, tree_blob } = self;
        RemoteLayer { tree, diff_id, blobs, tree_blob, origin }
    }
}

impl From<RemoteLayer> for Described {
    fn from(layer: RemoteLayer) -> Self {
        let RemoteLayer { tree: _, diff_id, blobs, tree_blob, origin: _ } = layer;
        Self { diff_id, blobs, tree_blob }
    }
}

fn fits(document: &[u8]) -> Result<(), FormatError> {
    let bytes = document.len() as u64;
    let too_long = FormatError::TooLong { what: CALLED, bytes, limit: DOCUMENT_MAX };
    if bytes > DOCUMENT_MAX { Err(too_long) } else { Ok(()) }
}

fn inconsistent(why: impl Into<String>) -> FormatError {
    FormatError::Inconsistent { what: CALLED, why: why.into() }
}

/// The content of a document; the order of fields is that of the JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Form {
    definition: TreeDigest,
    content: TreeDigest,
    parent: TreeDigest,
    /// Layers of the base image, the lowest first.
    base: Vec<BaseForm>,
    /// One for each step on top of it; a step that wrote nothing has the digest of the empty tree.
    steps: Vec<TreeDigest>,
    layers: BTreeMap<TreeDigest, LayerForm>,
    pre_image: BTreeMap<String, String>,
    inventories: BTreeMap<TreeDigest, BlobForm>,
    made: Made,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BaseForm {
    diff_id: DiffId,
    blob: BlobForm,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LayerForm {
    diff_id: DiffId,
    blobs: BTreeMap<String, BlobForm>,
    tree: BlobForm,
}

/// A descriptor without what a cache has no use for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct BlobForm {
    media_type: MediaType,
    digest: Sha256Digest,
    size: u64,
}

impl From<&Descriptor> for BlobForm {
    fn from(descriptor: &Descriptor) -> Self {
        let Descriptor { media_type, digest, size, annotations: _, platform: _ } = descriptor;
        Self { media_type: media_type.clone(), digest: *digest, size: *size }
    }
}

impl From<BlobForm> for Descriptor {
    fn from(BlobForm { media_type, digest, size }: BlobForm) -> Self {
        Self::new(media_type, digest, size)
    }
}

impl Form {
    fn of(remote: &RemoteRecord) -> Self {
        let RemoteRecord { record, layers, inventories } = remote;
        let Record { definition, content, parent, snapshot, pre_image, made } = record;
        let base = snapshot.layers.iter().filter_map(|layer| match layer {
            Layer::Base(base) => {
                Some(BaseForm { diff_id: base.diff_id, blob: BlobForm::from(&base.descriptor) })
            }
            Layer::Built(_) => None,
        });
        let steps = snapshot.layers.iter().filter_map(|layer| match layer {
            Layer::Base(_) => None,
            Layer::Built(tree) => Some(*tree),
        });
        Self {
            definition: *definition,
            content: *content,
            parent: *parent,
            base: base.collect(),
            steps: steps.collect(),
            layers: layers.iter().map(|(tree, layer)| (*tree, LayerForm::from(layer))).collect(),
            pre_image: pre_image.clone(),
            inventories: inventories.iter().map(|(files, blob)| (*files, BlobForm::from(blob))).collect(),
            made: made.clone(),
        }
    }

    fn into_record(self, origin: &BlobOrigin) -> Result<RemoteRecord, FormatError> {
        let Self { definition, content, parent, base, steps, layers, pre_image, inventories, made } = self;
        if base.len() + steps.len() > check::CHAIN_MAX {
            return Err(inconsistent("its chain of layers is too long"));
        }
        let base = base.into_iter().map(|BaseForm { diff_id, blob }| {
            Layer::Base(Box::new(BaseLayer { diff_id, descriptor: blob.into(), origin: origin.clone() }))
        });
        let snapshot = Snapshot { layers: base.chain(steps.into_iter().map(Layer::Built)).collect() };
        Ok(RemoteRecord {
            record: Record { definition, content, parent, snapshot, pre_image, made },
            layers: layers.into_iter().map(|(tree, layer)| (tree, layer.into())).collect(),
            inventories: inventories.into_iter().map(|(files, blob)| (files, blob.into())).collect(),
        })
    }
}

impl From<&Described> for LayerForm {
    fn from(Described { diff_id, blobs, tree_blob }: &Described) -> Self {
        let blobs = blobs.iter().map(|(encoder, blob)| (encoder.clone(), blob.into())).collect();
        Self { diff_id: *diff_id, blobs, tree: tree_blob.into() }
    }
}

impl From<LayerForm> for Described {
    fn from(LayerForm { diff_id, blobs, tree }: LayerForm) -> Self {
        let blobs = blobs.into_iter().map(|(encoder, blob)| (encoder, blob.into())).collect();
        Self { diff_id, blobs, tree_blob: tree.into() }
    }
}

#[cfg(test)]
mod tests;

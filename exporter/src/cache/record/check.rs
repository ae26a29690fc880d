//! What a record must be, whoever wrote it.
//!
//! Digests have their form by their types. Here: the chain is one that a step can have made, every layer of it is described
//! and nothing else is, every blob is of a kind that we read, and nothing is without a bound. All of it holds for
//! what we write, too, so a record that nobody would read is never written.

use std::collections::BTreeSet;

use oci::{
    Descriptor, DiffId, Layer, MediaType, Tree, TreeDigest,
    packed::{INVENTORY_MAX, INVENTORY_MEDIA_TYPE, TREE_MAX, TREE_MEDIA_TYPE},
};
use solver::{Made, Maker, Record};

use super::{Described, FormatError, RemoteRecord, inconsistent};

/// Layers of a chain.
pub(super) const CHAIN_MAX: usize = 4096;
/// Fields of a pre-image.
const FIELDS_MAX: usize = 16_384;
/// Blobs of one layer.
pub(in crate::cache) const BLOBS_MAX: usize = 16;
/// Bytes of a layer's blob: 1 TiB.
const BLOB_MAX: u64 = 1 << 40;
/// Bytes of what names an encoder; it becomes part of a file's name.
const ENCODER_MAX: usize = 100;
/// Bytes of what names a builder, a machine or a build.
const NAME_MAX: usize = 255;

/// Whether a record is one that a builder can have made.
pub(super) fn check(remote: &RemoteRecord) -> Result<(), FormatError> {
    let RemoteRecord { record, layers, inventories } = remote;
    chain(record)?;
    let described: BTreeSet<&TreeDigest> = layers.keys().collect();
    if described != built(record) {
        return Err(inconsistent("it does not describe just the layers of its chain"));
    }
    layers.values().try_for_each(layer)?;
    if record.pre_image.len() > FIELDS_MAX {
        return Err(inconsistent("too many fields"));
    }
    let digests: BTreeSet<&str> = record.pre_image.values().map(String::as_str).collect();
    for (files, blob) in inventories {
        if !digests.contains(files.to_string().as_str()) {
            return Err(inconsistent("it lists the files of a digest that it does not name"));
        }
        own_blob(blob, INVENTORY_MEDIA_TYPE, INVENTORY_MAX)?;
    }
    made(&record.made)
}

/// The layers of a base image, then at least one that a step made, on the very file system that the step ran on.
fn chain(record: &Record) -> Result<(), FormatError> {
    let layers = &record.snapshot.layers;
    if layers.len() > CHAIN_MAX {
        return Err(inconsistent("its chain of layers is too long"));
    }
    let is_base = |layer: &&Layer| matches!(layer, Layer::Base(_));
    let above = layers.iter().skip_while(is_base);
    if above.filter(is_base).count() > 0 {
        return Err(inconsistent("a layer of the base image stands on one that a step made"));
    }
    if record.layer().is_none() {
        return Err(inconsistent("its layers are not those of a step"));
    }
    let has_room = layers.iter().all(|layer| match layer {
        Layer::Base(base) => base.descriptor.size <= BLOB_MAX,
        Layer::Built(_) => true,
    });
    if has_room { Ok(()) } else { Err(inconsistent("a layer of the base image is too large")) }
}

/// The layers of the chain that must be described: an empty one has no bytes.
fn built(record: &Record) -> BTreeSet<&TreeDigest> {
    let empty = Tree::empty_digest();
    let trees = record.snapshot.layers.iter().filter_map(|layer| match layer {
        Layer::Built(tree) => Some(tree),
        Layer::Base(_) => None,
    });
    trees.filter(|tree| **tree != empty).collect()
}

fn layer(Described { diff_id, blobs, tree_blob }: &Described) -> Result<(), FormatError> {
    if blobs.is_empty() || blobs.len() > BLOBS_MAX {
        return Err(inconsistent(format!("a layer has {} blobs", blobs.len())));
    }
    blobs.iter().try_for_each(|(encoder, blob)| layer_blob(encoder, blob, diff_id))?;
    own_blob(tree_blob, TREE_MEDIA_TYPE, TREE_MAX)
}

/// The id of an encoder begins with its format.
fn layer_blob(encoder: &str, blob: &Descriptor, diff_id: &DiffId) -> Result<(), FormatError> {
    let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
    if encoder.len() > ENCODER_MAX || !encoder.bytes().all(is_plain) {
        return Err(inconsistent("the name of an encoder is malformed"));
    }
    let fits = match blob.media_type {
        MediaType::OciLayerGzip => encoder.starts_with("gzip-"),
        MediaType::OciLayerZstd => encoder.starts_with("zstd-"),
        MediaType::OciLayer => encoder == "uncompressed" && DiffId::from(blob.digest) == *diff_id,
        _ => false,
    };
    if !fits {
        let what = format!("a blob of encoder {encoder} cannot be of type {:?}", blob.media_type.as_str());
        return Err(inconsistent(what));
    }
    plain(blob, BLOB_MAX)
}

/// A blob that only caches have.
fn own_blob(blob: &Descriptor, media_type: &str, limit: u64) -> Result<(), FormatError> {
    if blob.media_type.as_str() != media_type {
        return Err(inconsistent(format!("a blob of type {media_type} is called something else")));
    }
    plain(blob, limit)
}

/// Nothing has no bytes, and no descriptor of a cache says more than it must.
fn plain(blob: &Descriptor, limit: u64) -> Result<(), FormatError> {
    if blob.size == 0 || blob.size > limit {
        return Err(inconsistent(format!("a blob has {} bytes", blob.size)));
    }
    match blob.annotations.is_empty() && blob.platform.is_none() {
        true => Ok(()),
        false => Err(inconsistent("a blob has annotations or a platform")),
    }
}

/// It is shown to people.
fn made(Made { by: Maker { builder, host, build, at: _ }, took_ms: _ }: &Made) -> Result<(), FormatError> {
    let is_shown = |text: &&String| text.len() <= NAME_MAX && !text.chars().any(char::is_control);
    match [builder, host, build].iter().all(is_shown) {
        true => Ok(()),
        false => Err(inconsistent("who made it is no text")),
    }
}

//! Records as a builder writes them.

use std::collections::BTreeMap;

use exporter::cache::{Described, RemoteRecord, SignedRecord};
use oci::{Descriptor, Layer, MediaType, Sha256Digest, Snapshot, Tree, TreeDigest, packed::TREE_MEDIA_TYPE};
use solver::{Made, Maker, Record, cache::Key};

fn digest(kind: &str, number: u8) -> TreeDigest {
    TreeDigest::new(*Sha256Digest::of(format!("{kind} {number}").as_bytes()).as_bytes())
}

/// The definition key of a record.
pub fn key(number: u8) -> Key {
    Key::Definition(digest("definition", number))
}

/// The record of a step that wrote nothing.
pub fn record(number: u8) -> RemoteRecord {
    with(number, Tree::empty_digest(), BTreeMap::new())
}

/// The record of a step that wrote a layer.
pub fn with_layer(number: u8) -> RemoteRecord {
    let tree = digest("tree", number);
    let blob = |media_type, text: &str| Descriptor::of(media_type, format!("{text} {number}").as_bytes());
    let described = Described {
        diff_id: Sha256Digest::of(&[number]).into(),
        blobs: [("gzip-test".to_owned(), blob(MediaType::OciLayerGzip, "layer"))].into(),
        tree_blob: blob(MediaType::Other(TREE_MEDIA_TYPE.to_owned()), "tree"),
    };
    with(number, tree, [(tree, described)].into())
}

fn with(number: u8, tree: TreeDigest, layers: BTreeMap<TreeDigest, Described>) -> RemoteRecord {
    let parent = Snapshot::default();
    let by = Maker { builder: "test".to_owned(), at: 1_700_000_000, ..Maker::default() };
    let record = Record {
        definition: digest("definition", number),
        content: digest("content", number),
        parent: parent.digest(),
        snapshot: parent.with(Layer::Built(tree)),
        pre_image: BTreeMap::new(),
        made: Made { by, took_ms: 1 },
    };
    RemoteRecord { record, layers, inventories: BTreeMap::new() }
}

/// A record as it lies in a bundle, by nobody.
pub fn signed(remote: &RemoteRecord) -> SignedRecord {
    SignedRecord { document: remote.to_document().expect("a good record"), signature: None }
}

//! What a fuzzer runs: each function takes any bytes, reads them as somebody's cache, and panics where a promise of the
//! format is broken. `fuzz/` gives them to libFuzzer; the tests beside, mutations of good documents.
//!
//! Bytes are read twice: as they are, and with the right checksum put around them, as a forger would do.

use std::path::PathBuf;

use oci::{BlobOrigin, ContentDigest, Descriptor, DiffId, MediaType, Sha256Digest, packed};

use super::{
    bundle::{self, Bundle},
    inline::Inline,
    record::{self, RemoteRecord},
    sign::{self, TrustKeys},
};

/// Where the blobs of a hostile cache are.
fn origin() -> BlobOrigin {
    BlobOrigin::OciLayout(PathBuf::from("cache"))
}

/// A record, or what one holds.
pub fn record(bytes: &[u8]) {
    read_record(bytes);
    if let Ok(content) = str::from_utf8(bytes) {
        read_record(&forged(content));
    }
}

/// A bundle, or what one holds.
pub fn bundle(bytes: &[u8]) {
    read_bundle(bytes);
    let head =
        [b"lwbundle", &bundle::VERSION.to_le_bytes()[..], ContentDigest::of(bytes).as_bytes()].concat();
    read_bundle(&[&head[..], &packed::pack(bytes)].concat());
}

/// The config of an image with three layers.
pub fn inline(bytes: &[u8]) {
    let Ok(Some(inline)) = Inline::from_config(bytes) else { return };
    let layer = |number: u8| {
        let digest = Sha256Digest::of(&[number]);
        (DiffId::from(digest), Descriptor::new(MediaType::OciLayerGzip, digest, 1))
    };
    let Ok(records) = inline.records(&[0, 1, 2].map(layer), &origin()) else { return };
    for record in records {
        let document = record.to_document().expect("what is read can be written");
        assert_eq!(RemoteRecord::from_document(&document, None, &origin()).expect("and read"), record);
    }
}

/// A file with a key.
pub fn key(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = (sign::public(text), sign::private(text));
    }
}

/// A document that holds this content and is not damaged.
pub fn forged(content: &str) -> Vec<u8> {
    let covered = format!("\"version\":{},\"content\":{content}}}", record::VERSION);
    format!("{{\"digest\":\"{}\",{covered}\n", ContentDigest::of(covered.as_bytes())).into_bytes()
}

fn read_record(document: &[u8]) {
    let Ok(read) = RemoteRecord::from_document(document, None, &origin()) else { return };
    assert_eq!(read.to_document().expect("what is read can be written"), document, "there is one form");
    let own = read.record.layer().expect("the layer of a step");
    assert!(own.is_empty() || read.layers.contains_key(&own.tree()), "its layer is described");
}

fn read_bundle(bytes: &[u8]) {
    let Ok(read) = Bundle::decode(bytes) else { return };
    assert_eq!(Bundle::decode(&read.encode()).expect("what is read can be written"), read);
    for record in &read.records {
        let _ = record.open(None, &TrustKeys::default(), &origin());
    }
    for (digest, document) in &read.documents {
        assert_eq!(Sha256Digest::of(document), *digest);
    }
}

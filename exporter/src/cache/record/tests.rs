use oci::{Layer, MediaType, Snapshot, Tree, packed::TREE_MEDIA_TYPE};
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::cache::{
    fuzz::{self, forged},
    samples::{base, blob, build, copy, digest, origin},
};

fn read(document: &[u8]) -> Result<RemoteRecord, FormatError> {
    RemoteRecord::from_document(document, None, &origin())
}

/// The content of the sample's document.
fn content() -> String {
    let document = String::from_utf8(copy().to_document().expect("a record")).expect("text");
    let (_, content) = document.split_once("\"content\":").expect("its form");
    content.strip_suffix("}\n").expect("its form").to_owned()
}

#[test]
fn what_is_written_is_read() {
    let mut records = build(4);
    records.push(copy());
    for record in records {
        let document = record.to_document().expect("a record");
        assert_eq!(read(&document).expect("readable"), record);
        assert!(document.ends_with(b"}\n") && document.starts_with(b"{\"digest\":\"blake3:"));
    }
}

#[test]
fn a_record_answers_its_two_keys_only() {
    let document = copy().to_document().expect("a record");
    let key = |text| digest(text);
    let asked = |key| RemoteRecord::from_document(&document, Some(&key), &origin());
    assert!(asked(Key::Definition(key("definition"))).is_ok());
    assert!(asked(Key::Content(key("content"))).is_ok());
    for other in [Key::Definition(key("content")), Key::Content(key("definition")), Key::Content(key("x"))] {
        let error = asked(other).expect_err("another key");
        assert_eq!(error.to_string(), "a record of the cache is not consistent: it belongs to another key");
    }
}

#[test]
fn its_blobs_are_all_that_it_names_each_once() {
    let blobs = copy().blobs();
    let types: Vec<&str> = blobs.iter().map(|blob| blob.media_type.as_str()).collect();
    assert_eq!(types.len(), 3, "{types:?}");
    assert!(blobs.is_sorted_by_key(|blob| blob.digest));
    let places: Vec<RemoteLayer> = copy().layers_at(&origin()).collect();
    assert_eq!(places.len(), 1);
    assert_eq!(Described::from(places[0].clone()), copy().layers[&places[0].tree]);
}

#[test]
fn what_no_builder_makes_is_not_written() {
    type Change = fn(&mut RemoteRecord);
    let empty = |record: &mut RemoteRecord| record.record.snapshot.layers.clear();
    let cases: [(Change, &str); 24] = [
        (empty, "its layers are not those of a step"),
        (
            |record| record.record.snapshot = Snapshot { layers: vec![base()] },
            "its layers are not those of a step",
        ),
        (|record| record.record.parent = digest("another"), "its layers are not those of a step"),
        (
            |record| record.record.snapshot.layers.reverse(),
            "a layer of the base image stands on one that a step made",
        ),
        (
            |record| {
                let built = Layer::Built(digest("built"));
                let below = Snapshot { layers: vec![built, base()] };
                record.record.parent = below.digest();
                record.record.snapshot = below.with(Layer::Built(digest("copied")));
            },
            "a layer of the base image stands on one that a step made",
        ),
        (|record| record.layers.clear(), "it does not describe just the layers of its chain"),
        (
            |record| {
                let layer = record.layers.values().next().expect("one").clone();
                record.layers.insert(digest("more"), layer);
            },
            "it does not describe just the layers of its chain",
        ),
        (
            |record| {
                let layer = record.layers.pop_first().expect("one").1;
                record.layers.insert(digest("other"), layer);
            },
            "it does not describe just the layers of its chain",
        ),
        (|record| the_layer(record).blobs.clear(), "a layer has 0 blobs"),
        (
            |record| {
                let layer = the_layer(record);
                let blob = layer.blobs.values().next().expect("one").clone();
                layer.blobs = (0..17).map(|number| (format!("gzip-{number}"), blob.clone())).collect();
            },
            "a layer has 17 blobs",
        ),
        (
            |record| named(record, ""),
            "a blob of encoder  cannot be of type \"application/vnd.oci.image.layer.v1.tar+gzip\"",
        ),
        (|record| named(record, "../gzip-"), "the name of an encoder is malformed"),
        (|record| named(record, &"gzip-".repeat(50)), "the name of an encoder is malformed"),
        (
            |record| named(record, "zstd-x"),
            "a blob of encoder zstd-x cannot be of type \"application/vnd.oci.image.layer.v1.tar+gzip\"",
        ),
        (
            |record| the_blob(record).media_type = MediaType::OciManifest,
            "a blob of encoder ENCODER cannot be of type \"application/vnd.oci.image.manifest.v1+json\"",
        ),
        (
            |record| {
                named(record, "uncompressed");
                the_blob(record).media_type = MediaType::OciLayer;
            },
            "a blob of encoder uncompressed cannot be of type \"application/vnd.oci.image.layer.v1.tar\"",
        ),
        (|record| the_blob(record).size = 0, "a blob has 0 bytes"),
        (|record| the_blob(record).size = u64::MAX, "a blob has 18446744073709551615 bytes"),
        (
            |record| drop(the_blob(record).annotations.insert("a".to_owned(), "b".to_owned())),
            "a blob has annotations or a platform",
        ),
        (
            |record| the_layer(record).tree_blob = blob("text/plain", "tree", 5),
            "a blob of type application/vnd.layerwright.cache.tree.v1+zstd is called something else",
        ),
        (
            |record| record.inventories = [(digest("files"), blob(TREE_MEDIA_TYPE, "tree", 5))].into(),
            "a blob of type application/vnd.layerwright.cache.inventory.v1+zstd is called something else",
        ),
        (
            |record| drop(record.record.pre_image.remove("files **")),
            "it lists the files of a digest that it does not name",
        ),
        (|record| record.record.made.by.host = "\u{1b}[2J".to_owned(), "who made it is no text"),
        (
            |record| {
                let layers = (0..5000).map(|_| Layer::Built(Tree::empty_digest())).collect();
                record.record.snapshot = Snapshot { layers };
            },
            "its chain of layers is too long",
        ),
    ];
    for (change, wanted) in cases {
        let mut record = copy();
        change(&mut record);
        let error = record.to_document().expect_err(wanted);
        let wanted = wanted.replace("ENCODER", &crate::Encoder::GZIP.id());
        assert_eq!(error.to_string(), format!("a record of the cache is not consistent: {wanted}"));
    }
}

fn the_layer(record: &mut RemoteRecord) -> &mut Described {
    record.layers.values_mut().next().expect("one")
}

fn the_blob(record: &mut RemoteRecord) -> &mut Descriptor {
    the_layer(record).blobs.values_mut().next().expect("one")
}

fn named(record: &mut RemoteRecord, encoder: &str) {
    let layer = the_layer(record);
    layer.blobs = layer.blobs.values().map(|blob| (encoder.to_owned(), blob.clone())).collect();
}

#[test]
fn what_a_forger_writes_with_the_right_checksum_is_refused_where_it_contradicts_itself() {
    let other = digest("other").to_string();
    let tree = digest("copied").to_string();
    let parent = copy().record.parent.to_string();
    let cases = [
        (",\"steps\":[", ",\"steps\": [", "it is not written as records are"),
        ("{\"definition\":", "{\"new\":1,\"definition\":", "unknown field `new`"),
        ("{\"definition\":", "{\"content\":\"\",\"definition\":", "unsupported digest algorithm"),
        ("\"op\":\"copy\"", "\"op\":\"copy\",\"op\":\"run\"", "it is not written as records are"),
        (&*parent, &*other, "its layers are not those of a step"),
        (&*tree, &*other, "it does not describe just the layers of its chain"),
        ("blake3:", "blake3:../", "malformed digest"),
        ("\"size\":310", "\"size\":-1", "invalid value"),
        ("\"size\":310", "\"size\":1e99", "invalid type"),
        ("\"base\":[{", "\"base\":[[[[{", "invalid type"),
    ];
    for (from, to, wanted) in cases {
        let good = content();
        assert!(good.contains(from), "{from}");
        let error = read(&forged(&good.replacen(from, to, 1))).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{from}: {error}");
    }
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read(&forged(&nested)).is_err());
}

#[test]
fn another_version_is_told_apart_whatever_it_holds() {
    let other = checked::encode(VERSION + 1, &"another shape").expect("text");
    let error = read(&other).expect_err("another version");
    assert!(error.is_other_version(), "{error}");
    assert!(!read(&forged("[]")).expect_err("another shape").is_other_version());
}

#[test]
fn what_is_too_long_is_not_looked_at() {
    let error = read(&vec![b' '; DOCUMENT_MAX as usize + 1]).expect_err("too long");
    assert_eq!(error.to_string(), "a record of the cache has 4194305 bytes, and 4194304 are read at most");
    let mut record = copy();
    record.record.pre_image.insert("~heredoc x".to_owned(), "x".repeat(DOCUMENT_MAX as usize));
    assert!(matches!(record.to_document(), Err(FormatError::TooLong { .. })));
}

#[test]
fn no_flipped_bit_and_no_cut_gives_another_record() {
    let document = copy().to_document().expect("a record");
    for at in 0..document.len() {
        let mut damaged = document.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(read(&damaged).is_err(), "byte {at}");
        assert!(read(&document[..at]).is_err(), "{at} bytes");
    }
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Cut(Index, Index),
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let words = prop::sample::select(vec![
        "0",
        "-1",
        "1e400",
        "null",
        "{}",
        "[]",
        "\"",
        ",",
        "\\u0000",
        "blake3:",
        "../",
        "99999999999999999999",
    ]);
    prop_oneof![
        (any::<Index>(), 1_u8..).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Cut(from, to)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        (any::<Index>(), words).prop_map(|(at, word)| Mutation::Insert(at, word.into())),
    ]
}

fn mutated(bytes: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    mutations.iter().fold(bytes.to_vec(), |mut bytes, mutation| {
        if bytes.is_empty() {
            return bytes;
        }
        let range = |from: &Index, to: &Index| {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            from.min(to)..from.max(to)
        };
        match mutation {
            Mutation::Flip(at, bits) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Mutation::Cut(from, to) => drop(bytes.drain(range(from, to))),
            Mutation::Repeat(from, to) => {
                let again = bytes[range(from, to)].to_vec();
                let at = from.index(bytes.len());
                bytes.splice(at..at, again);
            }
            Mutation::Insert(at, word) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, word.clone());
            }
        }
        bytes
    })
}

fn cases() -> ProptestConfig {
    let nightly = std::env::var_os("LAYERWRIGHT_NIGHTLY").is_some();
    ProptestConfig {
        cases: if nightly { 50_000 } else { 2_000 },
        failure_persistence: None,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_mutated_document_is_an_error_or_the_same_record(mutations in prop::collection::vec(mutation(), 1..4)) {
        let good = copy();
        let document = mutated(&good.to_document().expect("a record"), &mutations);
        if let Ok(read) = read(&document) {
            prop_assert_eq!(read, good);
        }
    }

    #[test]
    fn a_forged_document_is_an_error_or_a_good_record(mutations in prop::collection::vec(mutation(), 1..4)) {
        fuzz::record(&mutated(content().as_bytes(), &mutations));
    }
}

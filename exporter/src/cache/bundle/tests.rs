use super::*;
use crate::cache::{
    fuzz,
    samples::{build, copy, origin},
    sign::SignKey,
};

fn signed(record: &RemoteRecord, signature: Option<Vec<u8>>) -> SignedRecord {
    SignedRecord { document: record.to_document().expect("a record"), signature }
}

fn bundle(steps: usize) -> Bundle {
    let records = build(steps).iter().map(|record| signed(record, None)).collect();
    let document = b"{\"schemaVersion\":2}".to_vec();
    Bundle { records, documents: [(Sha256Digest::of(&document), document)].into() }
}

/// The bytes of a bundle with this content.
fn forged(content: &[u8]) -> Vec<u8> {
    let digest = ContentDigest::of(content);
    [MAGIC, &VERSION.to_le_bytes()[..], digest.as_bytes(), &packed::pack(content)].concat()
}

#[test]
fn what_is_written_is_read() {
    for bundle in [Bundle::default(), bundle(0), bundle(1), bundle(20)] {
        assert_eq!(Bundle::decode(&bundle.encode()).expect("readable"), bundle);
    }
    let mut signed_one = bundle(2);
    signed_one.records.insert(signed(&copy(), Some(vec![7; 64])));
    assert_eq!(Bundle::decode(&signed_one.encode()).expect("readable"), signed_one);
}

#[test]
fn a_bundle_is_small() {
    for (steps, most) in [(20, 16 << 10), (100, 80 << 10)] {
        let bundle = bundle(steps);
        let unpacked: usize = bundle.records.iter().map(|record| record.document.len()).sum();
        let packed = bundle.encode().len();
        println!("{steps} steps: {packed} bytes, {unpacked} unpacked");
        assert!(packed < most, "{steps} steps: {packed} bytes");
    }
}

#[test]
fn a_record_is_opened_by_who_trusts_its_writer() {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("key");
    std::fs::write(&path, crate::cache::sign::tests::PRIVATE).expect("written");
    let key = SignKey::read(&path).expect("a key");
    let (record, nobody) = (copy(), TrustKeys::default());
    let unsigned = signed(&record, None);
    let signature = key.sign(ArtifactKind::Record, &unsigned.document);
    let good = signed(&record, Some(signature.clone()));
    let moved = signed(&build(1)[0], Some(signature));
    let open = |record: &SignedRecord, keys: &TrustKeys| record.open(None, keys, &origin());
    assert_eq!(open(&good, &key.trusted()).expect("signed"), record);
    assert_eq!(open(&good, &nobody).expect("believed"), record);
    assert_eq!(open(&unsigned, &nobody).expect("believed"), record);
    for bad in [&unsigned, &moved] {
        assert!(matches!(open(bad, &key.trusted()), Err(FormatError::Untrusted)));
    }
    let other = Key::Content(record.record.definition);
    assert!(matches!(good.open(Some(&other), &nobody, &origin()), Err(FormatError::Inconsistent { .. })));
}

#[test]
fn every_flipped_bit_and_every_cut_is_an_error() {
    let bytes = bundle(1).encode();
    for at in 0..bytes.len() {
        assert!(Bundle::decode(&bytes[..at]).is_err(), "{at} bytes");
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        // What is left of zstd's own header may change without changing what it unpacks to.
        assert!(Bundle::decode(&damaged).is_err() || at > 44, "byte {at}");
        assert!(Bundle::decode(&damaged).map_or(true, |read| read == bundle(1)), "byte {at}");
    }
}

#[test]
fn another_version_is_told_apart() {
    let mut bytes = bundle(1).encode();
    bytes[8] = 2;
    let error = Bundle::decode(&bytes).expect_err("another version");
    assert!(error.is_other_version());
    assert_eq!(error.to_string(), "a bundle of the cache has version 2, and this program reads version 1");
}

#[test]
fn what_no_builder_writes_is_an_error() {
    let good = bundle(2).content();
    let first = 1 + 4 + 1 + bundle(2).records.first().expect("one").document.len();
    let one = &good[..first];
    let long = [&[RECORD][..], &u32::MAX.to_le_bytes(), &[0]].concat();
    let cases: [(Vec<u8>, &str); 8] = [
        (vec![3], "it is cut"),
        (vec![3, 0, 0, 0, 0], "it has an entry of no known kind"),
        (long, "it is cut"),
        ([one, one].concat(), "it is not written as bundles are"),
        ([&good[first..], one].concat(), "it is not written as bundles are"),
        (vec![RECORD, 0, 0, 0, 0, 1, 7], "a signature has another length"),
        ([&[DOCUMENT, 1, 0, 0, 0][..], &[0; 32], b"x"].concat(), "a document has another digest"),
        ([RECORD, 0, 0, 0, 0, 0].repeat(ENTRIES_MAX + 1), "it is not written as bundles are"),
    ];
    for (content, wanted) in cases {
        let error = Bundle::decode(&forged(&content)).expect_err(wanted);
        assert_eq!(error.to_string(), format!("a bundle of the cache is not consistent: {wanted}"));
    }
}

#[test]
fn a_bomb_costs_its_limit() {
    let bomb = packed::pack(&vec![0; UNPACKED_MAX as usize + 1]);
    let bytes = [MAGIC, &VERSION.to_le_bytes()[..], &[0; 32], &bomb].concat();
    assert!(bytes.len() < 64 << 10);
    let error = Bundle::decode(&bytes).expect_err("too long").to_string();
    assert!(error.ends_with("it unpacks to more than 67108864 bytes"), "{error}");
    let error = Bundle::decode(&vec![0; PACKED_MAX as usize + 1]).expect_err("too long");
    assert!(matches!(error, FormatError::TooLong { .. }));
}

#[test]
fn what_there_is_no_room_for_is_left_out() {
    let record = |number: u8| {
        let document = [vec![number], vec![b' '; DOCUMENT_MAX as usize - 1]].concat();
        SignedRecord { document, signature: None }
    };
    let bundle = Bundle { records: (0..17).map(record).collect(), ..Bundle::default() };
    let read = Bundle::decode(&bundle.encode()).expect("readable");
    assert_eq!(read.records.len(), 15, "there is a head before each");
    let too_long = SignedRecord { document: vec![0; DOCUMENT_MAX as usize + 1], signature: None };
    let bundle = Bundle { records: [too_long].into(), ..Bundle::default() };
    assert_eq!(Bundle::decode(&bundle.encode()).expect("readable"), Bundle::default());
}

#[test]
fn mutations_do_no_harm() {
    let content = bundle(2).content();
    let seed = std::env::var_os("LAYERWRIGHT_NIGHTLY").map_or(1_000, |_| 10_000);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..seed {
        let mut bytes = content.clone();
        for _ in 0..=next(3) {
            match next(3) {
                0 => bytes.truncate(next(content.len())),
                1 if !bytes.is_empty() => {
                    let at = next(bytes.len());
                    bytes[at] ^= 1 << next(8);
                }
                _ => bytes.extend_from_within(..next(bytes.len() + 1)),
            }
        }
        fuzz::bundle(&bytes);
    }
}

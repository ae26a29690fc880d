//! What stands where a record should be, and is none.

use exporter::cache::{Artifact, ArtifactKind, Bundle, RemoteRecord, TrustKeys, artifact, names};
use oci::{Descriptor, MediaType, Sha256Digest};

use super::{Bench, MANIFEST, Reader, artifact, keys};
use super::{
    common::fault::{Reply, Server, status},
    records::{key, record, signed, with_layer},
};

/// A registry that has this document for the first key, and one blob for whoever asks.
fn server(manifest: Vec<u8>, blob: Vec<u8>) -> Server {
    let name = names::of(&key(0));
    Server::start(move |request| match () {
        () if request.is("GET", &name) => status(200, &[("content-type", MANIFEST)], &manifest),
        () if request.is("GET", "/blobs/") => status(200, &[], &blob),
        () => status(404, &[], r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
    })
}

fn good() -> Artifact {
    artifact(ArtifactKind::Record, record(0).to_document().expect("good"))
}

/// The manifest of the first record, with something in its text replaced.
fn bent(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(artifact::manifest(&good())).expect("JSON");
    let bent = text.replace(from, to);
    assert_ne!(bent, text, "{from} is in {text}");
    bent.into_bytes()
}

#[test]
fn what_is_not_the_record_that_was_asked_for_is_a_miss() {
    let good = good();
    let document = String::from_utf8(good.document.clone()).expect("JSON");
    let digest = Sha256Digest::of(&good.document).to_string();
    let other = record(1).to_document().expect("good");
    let longer = artifact(ArtifactKind::Record, [&good.document[..], b" "].concat());
    let of = |document: &[u8]| artifact::manifest(&artifact(ArtifactKind::Record, document.to_vec()));
    let apart = {
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&artifact::manifest(&good)).expect("JSON");
        manifest["config"].as_object_mut().expect("an object").remove("data");
        serde_json::to_vec(&manifest).expect("JSON")
    };
    let cases: Vec<(&str, Vec<u8>, &[u8])> = vec![
        ("nothing", Vec::new(), b""),
        ("half a manifest", artifact::manifest(&good)[..200].to_vec(), b""),
        ("a document with other bytes", bent("\"data\":\"", "\"data\":\"AAAA"), b""),
        ("no base64", bent("\"data\":\"", "\"data\":\"!"), b""),
        ("a document with another digest", bent(&digest, &Sha256Digest::of(b"x").to_string()), b""),
        ("a digest of another algorithm", bent("sha256:", "sha512:"), b""),
        ("a digest that is a path", bent(&digest, "sha256:../../../etc/passwd"), b""),
        ("another size", bent("\"size\":", "\"size\":1"), b""),
        ("a size beyond all bounds", bent("\"size\":", "\"size\":99999999999"), b""),
        ("a negative size", bent("\"size\":", "\"size\":-"), b""),
        ("another kind", bent("record.v1+json", "bundle.v1+zstd"), b""),
        ("another version's", bent("record.v1+json", "record.v9+json"), b""),
        ("a blob with other bytes", apart.clone(), b"something else"),
        ("a blob that is cut", apart.clone(), &good.document[..good.document.len() / 2]),
        ("an empty blob", apart, b""),
        ("the record of another key", of(&other), b""),
        ("a record with a byte more", artifact::manifest(&longer), b""),
        ("a record of another version", of(document.replacen('1', "9", 1).as_bytes()), b""),
        ("a record of nothing", of(b"{}"), b""),
        ("a document deep beyond measure", of("[".repeat(100_000).as_bytes()), b""),
        ("an index", br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(), b""),
        ("both", br#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#.to_vec(), b""),
    ];
    for (what, manifest, blob) in cases {
        let server = server(manifest, blob.to_vec());
        let reader = Reader::of(&server.address, TrustKeys::default());
        assert_eq!(reader.hits(&keys(3)), 0, "{what}");
        // The bundle, three keys, and what may have been damaged on its way a few times more.
        assert!(server.requests().len() <= 12, "{what}: {:?}", server.lines());
        assert!(reader.warnings().len() <= 1, "{what}: {:?}", reader.warnings());
    }
    let server = server(artifact::manifest(&good), Vec::new());
    assert_eq!(Reader::of(&server.address, TrustKeys::default()).hits(&keys(3)), 1, "the good one is a hit");
}

/// An image, and an index with it, where a bundle should be: most images bring no records.
#[test]
fn an_image_that_is_no_cache_is_not_taken_for_one() {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let described = |media_type, bytes: &[u8]| {
        serde_json::to_value(Descriptor::of(media_type, bytes)).expect("plain data with string keys")
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described(MediaType::OciConfig, config), "layers": [],
    });
    let manifest = serde_json::to_vec(&manifest).expect("JSON");
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(),
        "manifests": [described(MediaType::OciManifest, &manifest)],
    });
    let index = serde_json::to_vec(&index).expect("JSON");
    for (root, media_type, requests) in [(&manifest, MANIFEST, 2), (&index, MediaType::OciIndex.as_str(), 3)]
    {
        let (root, manifest, digest) =
            (root.clone(), manifest.clone(), Sha256Digest::of(&manifest).to_string());
        let media_type = media_type.to_owned();
        let server = Server::start(move |request| -> Reply {
            match () {
                () if request.is("GET", "/manifests/main") => {
                    status(200, &[("content-type", &media_type)], &root)
                }
                () if request.is("GET", &digest) => status(200, &[("content-type", MANIFEST)], &manifest),
                () if request.is("GET", "/blobs/") => status(200, &[], config),
                () => status(404, &[], ""),
            }
        });
        let reader = Reader::of(&server.address, TrustKeys::default());
        assert_eq!(reader.hits(&keys(20)), 0);
        assert_eq!(server.requests().len(), requests, "an image's repository is not asked for keys");
        assert_eq!(reader.warnings(), Vec::<String>::new());
    }
}

/// Everything is right in each of two records, but what one says of a layer the other denies.
#[test]
fn records_that_contradict_each_other_about_a_layer_are_not_believed() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    let (good, mut denying) = (with_layer(1), record(2));
    let tree = *good.layers.keys().next().expect("one");
    denying.layers = good.layers.clone();
    denying.record.snapshot = good.record.snapshot.clone();
    let hits = |denying: &RemoteRecord| {
        bench.put_bundle(&Bundle {
            records: [&good, denying, &record(3)].map(signed).into(),
            ..Bundle::default()
        });
        let reader = bench.reader();
        (reader.hits(&[key(1), key(2), key(3)]), reader.layers.is_lost(&tree), reader.warnings().len())
    };
    assert_eq!(hits(&denying), (3, false, 0));
    denying.layers.values_mut().for_each(|layer| layer.diff_id = Sha256Digest::of(b"another").into());
    assert_eq!(hits(&denying), (1, true, 1));
}

use oci::{MediaType, Sha256Digest, packed::TREE_MEDIA_TYPE};
use serde_json::json;

use super::*;
use crate::cache::samples::{blob, digest, origin};

fn layer(name: &str) -> (DiffId, Descriptor) {
    let media_type = MediaType::DockerLayerGzip.as_str();
    (Sha256Digest::of(format!("{name} tar").as_bytes()).into(), blob(media_type, name, 512))
}

fn step(name: &str) -> InlineStep {
    let layer = if name == "nothing" { Tree::empty_digest() } else { digest(name) };
    InlineStep { definition: digest(&format!("{name} d")), layer }
}

/// `FROM base`, and three steps of which the second wrote nothing.
fn inline() -> Inline {
    Inline {
        encoder: "gzip-x".to_owned(),
        base: 1,
        steps: vec![step("one"), step("nothing"), step("two")],
        trees: ["one", "two"].map(|name| (digest(name), blob(TREE_MEDIA_TYPE, name, 9))).into(),
    }
}

fn config(value: &serde_json::Value) -> Vec<u8> {
    json!({ "architecture": "amd64", "config": {}, CONFIG_KEY: value }).to_string().into_bytes()
}

#[test]
fn an_image_is_its_own_cache() {
    let read = Inline::from_config(&config(&inline().to_value().expect("few steps")))
        .expect("readable")
        .expect("there");
    assert_eq!(read, inline());
    let records = read.records(&["base", "one", "two"].map(layer), &origin()).expect("fitting");
    assert_eq!(records.len(), 3);
    for (record, step) in records.iter().zip(&inline().steps) {
        let own = record.record.layer().expect("its own layer");
        assert_eq!((record.record.definition, own.tree()), (step.definition, step.layer));
        let document = record.to_document().expect("a record");
        assert_eq!(RemoteRecord::from_document(&document, None, &origin()).expect("readable"), *record);
    }
    let last = &records[2];
    assert_eq!(last.layers.len(), 2);
    assert_eq!(last.record.snapshot.layers.len(), 4);
    assert_eq!(last.layers[&digest("two")].diff_id, layer("two").0);
    assert_eq!(last.layers[&digest("two")].blobs["gzip-x"].media_type, MediaType::OciLayerGzip);
}

#[test]
fn an_image_without_is_no_cache() {
    assert_eq!(Inline::from_config(b"{\"architecture\":\"amd64\"}").expect("readable"), None);
    let newer = json!({ "layerwright.cache.v2": {} }).to_string();
    assert_eq!(Inline::from_config(newer.as_bytes()).expect("readable"), None);
}

#[test]
fn an_image_of_very_many_steps_is_no_cache() {
    let mut inline = inline();
    inline.steps = vec![step("nothing"); STEPS_MAX + 1];
    assert_eq!(inline.to_value(), None);
    assert!(inline.records(&[layer("base")], &origin()).is_err());
    inline.steps.pop();
    assert!(inline.to_value().is_some());
    assert_eq!(inline.records(&[layer("base")], &origin()).expect("fitting").len(), STEPS_MAX);
}

#[test]
fn what_does_not_fit_the_image_is_an_error() {
    type Change = fn(&mut Inline);
    let cases: [(Change, &str); 7] = [
        (|inline| inline.base = 4, "no such layers"),
        (|inline| inline.base = 2, "it has more steps than layers"),
        (|inline| inline.base = 0, "it has more layers than steps"),
        (|inline| inline.trees.clear(), "a layer has no tree"),
        (|inline| inline.steps.push(step("two")), "it has more steps than layers"),
        (|inline| inline.steps.truncate(2), "it has more layers than steps"),
        (|inline| inline.encoder = "zstd-x".to_owned(), "a blob of encoder zstd-x cannot be of type"),
    ];
    for (change, wanted) in cases {
        let mut inline = inline();
        change(&mut inline);
        let error = inline.records(&["base", "one", "two"].map(layer), &origin()).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "{error}");
    }
    for bad in
        [json!([]), json!({ "encoder": 1 }), json!({ "encoder": "a", "base": -1, "steps": [], "trees": {} })]
    {
        assert!(Inline::from_config(&config(&bad)).is_err(), "{bad}");
    }
    assert!(
        Inline::from_config(&vec![b' '; CONFIG_MAX + 1])
            .is_err_and(|error| error.to_string().contains("at most"))
    );
}

//! Looking for all layers once one turned out to be gone.

use std::sync::Arc;

use exporter::cache::lose_what_is_gone;
use oci::{BlobOrigin, RemoteLayer, fetch::Fetcher, store::Store};
use solver::Cancel;

use super::{records::with_layer, *};
use crate::common::{fault::status, reference};

/// What becomes of some layers when this is answered for the tree of the first one, or for any tree, and how often the
/// registry was asked for a blob.
fn lost(answer: fn(&Request, &str) -> Reply) -> (Vec<bool>, Vec<usize>) {
    let layers: Vec<_> = (0..6)
        .flat_map(|n| with_layer(n).layers_at(&BlobOrigin::OciLayout("".into())).collect::<Vec<_>>())
        .collect();
    let first = layers[0].tree_blob.digest.to_string();
    let server = Server::start(move |request| answer(request, &first));
    let (root, elsewhere) = (tempfile::tempdir().expect("made"), RemoteLayers::default());
    let at = |layer: &RemoteLayer| RemoteLayer {
        origin: BlobOrigin::Registry(reference(&server.address, REPOSITORY)),
        ..layer.clone()
    };
    layers.iter().for_each(|layer| elsewhere.note(at(layer)));
    let fetcher = Fetcher::new(Arc::new(Store::open(root.path()).expect("a store")), client(vec![]))
        .with_elsewhere(elsewhere);
    lose_what_is_gone(&fetcher, &Cancel::default());
    let asked = |layer: &RemoteLayer| {
        layer.descriptors().map(|blob| server.count("HEAD", &blob.digest.to_string())).max()
    };
    let is_lost = |layer: &RemoteLayer| fetcher.elsewhere().is_lost(&layer.tree);
    (layers.iter().map(is_lost).collect(), layers.iter().filter_map(asked).collect())
}

#[test]
fn what_is_gone_is_lost_and_a_place_that_fails_with_all_is_given_up() {
    type Answer = fn(&Request, &str) -> Reply;
    const ONE: [bool; 6] = [true, false, false, false, false, false];
    let cases: [(&str, Answer, [bool; 6]); 5] = [
        ("all there", |_, _| status(200, &[], ""), [false; 6]),
        (
            "one gone",
            |request, first| status(if request.path.ends_with(first) { 404 } else { 200 }, &[], ""),
            ONE,
        ),
        (
            "one fails",
            |request, first| status(if request.path.ends_with(first) { 500 } else { 200 }, &[], ""),
            [false; 6],
        ),
        ("all fail", |request, _| status(if request.path == "/v2/" { 200 } else { 500 }, &[], ""), [true; 6]),
        ("refused", |request, _| status(if request.path == "/v2/" { 200 } else { 403 }, &[], ""), [true; 6]),
    ];
    for (name, answer, expected) in cases {
        let (lost, asked) = lost(answer);
        assert_eq!(lost, expected, "{name}");
        // A failure is tried again for a moment.
        let most = if name.contains("fail") { 8 } else { 1 };
        assert!(asked.iter().all(|count| *count <= most), "{name}: {asked:?}");
    }
}

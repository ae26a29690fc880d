//! Sealing while steps run: what the targets will have is offered and announced, what other stages make is not.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use exporter::{Encoder, SealAhead, TimePolicy};
use oci::{BaseLayer, BlobOrigin, Descriptor, DiffId, ImageConfig, MediaType, Sha256Digest, Snapshot};
use solver::{Event, Graph, Op, Target, VertexId, key::source_snapshot, op::Source};

use crate::support::{
    Described, Workshop,
    graph::{directory, platform, vertex},
};

fn base() -> Source {
    let descriptor = Descriptor::of(MediaType::DockerLayerGzip, b"base");
    let diff_id: DiffId = Sha256Digest::of(b"base tar").to_string().parse().expect("a digest");
    Source::Image(vec![BaseLayer { diff_id, descriptor, origin: BlobOrigin::OciLayout("/nowhere".into()) }])
}

#[test]
fn the_layers_of_the_target_are_sealed_while_the_build_runs() {
    let workshop = Workshop::new();
    let mut graph = Graph::default();
    let image = graph.add(vertex(Op::Source(base()), vec![]));
    let scratch = graph.add(vertex(Op::Source(Source::Scratch), vec![]));
    let other = graph.add(vertex(directory(), vec![scratch]));
    let below = graph.add(vertex(directory(), vec![image, other]));
    let linked = graph.add(vertex(directory(), vec![scratch]));
    let target = graph.add(vertex(Op::Merge, vec![below, linked]));
    let config = ImageConfig::empty(&platform());
    let wanted = Target { platform: platform(), vertex: target, config, base_layers: 1, history: Vec::new() };
    graph.targets.push(wanted);

    let announced = Arc::new(Mutex::new(BTreeSet::new()));
    let taking = Arc::clone(&announced);
    let on_sealed = move |layer: &exporter::SealedLayer| {
        taking.lock().expect("no panic").insert(layer.descriptor.digest);
    };
    let sealer = workshop.sealer_telling(Encoder::GZIP, TimePolicy::Default, 1, Arc::new(on_sealed));
    let sealers = [Arc::new(sealer)];
    let ahead = SealAhead::new(&sealers, &graph);
    let has = |digest| announced.lock().expect("no panic").contains(&digest);
    assert!(has(Sha256Digest::of(b"base")), "a base layer is known from the beginning");

    let settle = |id: VertexId, parent: &Snapshot, file: &str| {
        let snapshot = workshop.step(parent, &Described::parse(&format!("file {file} 0644 0:0 epoch x")));
        let sealed = workshop.store.area("sealed").join(snapshot.layers.last().expect("one").tree().hex());
        ahead.take(&Event::Settled(id, Arc::new(snapshot)));
        sealed
    };
    let base = source_snapshot(&base());
    let of_other = settle(other, &Snapshot::default(), "other");
    let of_linked = settle(linked, &Snapshot::default(), "linked");
    let of_below = settle(below, &base, "below");
    let deadline = Instant::now() + Duration::from_secs(30);
    // The only worker takes layers in the order of their offers.
    while !of_below.exists() {
        assert!(Instant::now() < deadline, "nobody seals the target's layer");
        std::thread::yield_now();
    }
    assert!(of_linked.exists(), "the layer of COPY --link is the target's before what it is laid on");
    assert!(!of_other.exists(), "a stage's layer was sealed");
    drop(ahead);
    drop(sealers);
    assert_eq!(announced.lock().expect("no panic").len(), 3);
}

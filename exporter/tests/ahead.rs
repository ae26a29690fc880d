//! Sealing while steps run: what the targets will have is offered, what other stages make is not.

mod support;

use std::time::{Duration, Instant};

use exporter::{Encoder, SealAhead, TimePolicy};
use oci::{ImageConfig, Platform, Snapshot, TreeDigest};
use solver::{
    Cancel, Executed, Executor, Graph, Input, Op, Step, StepFailure, Target, Vertex, VertexId,
    op::{Selector, Source},
};
use support::{Described, Workshop};

/// Writes one file, called as the step is labelled.
struct OneFile<'a>(&'a Workshop);

impl Executor for OneFile<'_> {
    fn identify(&self, _: &Source, _: &Cancel) -> Result<TreeDigest, StepFailure> {
        unreachable!("no sources here")
    }

    fn select(&self, _: &Snapshot, _: &Selector, _: &Cancel) -> Result<TreeDigest, StepFailure> {
        unreachable!("no copies here")
    }

    fn execute(&self, step: Step<'_>) -> Result<Executed, StepFailure> {
        let layer = Described::parse(&format!("file {} 0644 0:0 epoch x", step.vertex.label));
        let snapshot = self.0.step(step.inputs[0].snapshot, &layer);
        let layer = snapshot.layers.last().expect("just added").clone();
        Ok(Executed { layer, took: Duration::ZERO })
    }
}

fn vertex(label: &str, inputs: Vec<VertexId>) -> Vertex {
    Vertex {
        op: Op::Source(Source::Scratch),
        inputs,
        platform: platform(),
        label: label.to_owned(),
        span: None,
        ambient_env: Vec::new(),
        use_cache: true,
        written: Default::default(),
    }
}

fn platform() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

#[test]
fn the_layers_of_the_target_are_sealed_while_the_build_runs() {
    let workshop = Workshop::new();
    let mut graph = Graph::default();
    let scratch = graph.add(vertex("scratch", vec![]));
    let stage = graph.add(vertex("stage", vec![scratch]));
    let target = graph.add(vertex("target", vec![scratch, stage]));
    let config = ImageConfig::empty(&platform());
    let wanted = Target { platform: platform(), vertex: target, config, base_layers: 0, history: Vec::new() };
    graph.targets.push(wanted);
    let (sealers, executor) = ([workshop.sealer(Encoder::Gzip, TimePolicy::Default, 1)], OneFile(&workshop));
    let ahead = SealAhead::new(&executor, &sealers, &graph);
    let run = |id: VertexId| {
        let (below, cancel) = (Snapshot::default(), Cancel::default());
        let input = Input { vertex: graph.vertex(scratch), snapshot: &below, identity: None };
        let step =
            Step { id, vertex: graph.vertex(id), inputs: vec![input], log: &|_, _| (), cancel: &cancel };
        workshop.store.area("sealed").join(ahead.execute(step).expect("runs").layer.tree().hex())
    };
    let (of_stage, of_target) = (run(stage), run(target));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !of_target.exists() {
        assert!(Instant::now() < deadline, "nobody seals the target's layer");
        std::thread::yield_now();
    }
    // The only worker takes layers in the order of their offers.
    assert!(!of_stage.exists(), "a stage's layer was sealed");
}

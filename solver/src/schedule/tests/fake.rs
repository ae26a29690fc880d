//! A world in memory: layers are maps from path to text, commands are three words, the cache is a map.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, MediaType, Platform, Sha256Digest, Snapshot, Tree,
    TreeDigest, canonical::Encoder,
};

use crate::{
    cache::{Key, Maker, Record},
    event::{Event, EventSink, Stream},
    graph::{Graph, Target, Vertex, VertexId},
    op::{BindMount, ContextSource, Copy, CopyItem, Exec, Mount, Op, Place, Selector, Source, Timestamps},
    schedule::{Caches, SolveError, SolveOptions, solve},
    traits::{CacheBackend, Cancel, Executed, Executor, FailureKind, Step, StepFailure},
};

type Files = BTreeMap<String, String>;

/// Runs `write PATH TEXT`, `fixed PATH`, `nothing`, `random PATH`, `fail`, `panic` and `wait` (until the build is stopped).
#[derive(Default)]
pub struct World {
    pub context: Mutex<Files>,
    layers: Mutex<HashMap<TreeDigest, Files>>,
    ran: Mutex<Vec<String>>,
    selected: Mutex<usize>,
    events: Mutex<Vec<Event>>,
    /// Commands that this machine cannot run.
    pub impossible: Mutex<Vec<String>>,
    /// Seed of the disorder in which steps end.
    seed: u64,
    /// Whether `wait` waits for nothing.
    pub is_hasty: AtomicBool,
    /// Commands that were made ready for.
    pub prepared: Arc<Mutex<Vec<String>>>,
    /// Whether that takes until it is called back.
    pub is_slow_ground: bool,
}

fn digest(files: &Files) -> TreeDigest {
    let mut encoder = Encoder::new("fake");
    encoder.field(1, files);
    encoder.digest()
}

fn picked(files: &Files, selector: &Selector) -> Files {
    let wanted = |path: &String| selector.include.iter().any(|include| path.starts_with(include.as_str()));
    files.iter().filter(|(path, _)| wanted(path)).map(|(path, text)| (path.clone(), text.clone())).collect()
}

impl World {
    /// The same world, its steps ending in another order.
    pub fn disorder(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The commands that ran since the last call, sorted.
    pub fn ran(&self) -> Vec<String> {
        let mut ran = std::mem::take(&mut *self.ran.lock().expect("no panic"));
        ran.sort();
        ran
    }

    pub fn selections(&self) -> usize {
        std::mem::take(&mut *self.selected.lock().expect("no panic"))
    }

    pub fn events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().expect("no panic"))
    }

    pub fn files(&self, snapshot: &Snapshot) -> Files {
        let layers = self.layers.lock().expect("no panic");
        let files = |layer: &Layer| layers.get(&layer.tree()).cloned().unwrap_or_default();
        snapshot.layers.iter().flat_map(files).collect()
    }

    fn layer(&self, files: Files) -> Layer {
        let tree = if files.is_empty() { Tree::empty_digest() } else { digest(&files) };
        self.layers.lock().expect("no panic").insert(tree, files);
        Layer::Built(tree)
    }

    /// Lets other threads pass, more or fewer of them by the seed.
    fn dawdle(&self, id: VertexId) {
        let mixed = (self.seed ^ id.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..(mixed >> 56) * u64::from(self.seed != 0)).for_each(|_| thread::yield_now());
    }

    fn command(&self, args: &[String], step: &Step<'_>) -> Result<Files, StepFailure> {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        match words[..] {
            ["write", path, text, ..] => Ok(Files::from([(path.to_owned(), text.to_owned())])),
            ["random", path] => {
                let text = self.layers.lock().expect("no panic").len().to_string();
                Ok(Files::from([(path.to_owned(), text)]))
            }
            ["fixed", path] => Ok(Files::from([(path.to_owned(), step.inputs[0].snapshot.digest().hex())])),
            // Leaves its file on one platform only.
            ["native", path] => Ok(Files::from([(path.to_owned(), step.vertex.platform.to_string())])),
            ["nothing", ..] => Ok(Files::new()),
            ["wait"] if self.is_hasty.load(Ordering::SeqCst) => {
                Ok(Files::from([("waited".to_owned(), "1".to_owned())]))
            }
            ["wait"] => {
                while !step.cancel.is_requested() {
                    if self.is_hasty.load(Ordering::SeqCst) {
                        return self.command(args, step);
                    }
                    thread::yield_now();
                }
                Err(StepFailure::new(FailureKind::Cancelled, "stopped"))
            }
            ["fail", "beside", other] => {
                while !self.ran.lock().expect("no panic").iter().any(|ran| ran == other) {
                    thread::yield_now();
                }
                Err(StepFailure::new(FailureKind::Build, format!("{words:?} failed")))
            }
            ["panic"] => panic!("a bug in the executor"),
            _ => Err(StepFailure::new(FailureKind::Build, format!("{words:?} failed"))),
        }
    }
}

impl Executor for World {
    fn identify(&self, source: &Source, _: &Cancel) -> Result<TreeDigest, StepFailure> {
        let Source::Context(context) = source else { panic!("only contexts in these tests") };
        let files = picked(&self.context.lock().expect("no panic"), &context.selector);
        let missing = StepFailure::new(FailureKind::Build, "not found");
        if files.is_empty() { Err(missing) } else { Ok(digest(&files)) }
    }

    fn select(
        &self,
        snapshot: &Snapshot,
        selector: &Selector,
        _: &Cancel,
    ) -> Result<TreeDigest, StepFailure> {
        *self.selected.lock().expect("no panic") += 1;
        Ok(digest(&picked(&self.files(snapshot), selector)))
    }

    fn check(&self, vertex: &Vertex) -> Result<(), StepFailure> {
        let Op::Exec(exec) = &vertex.op else { return Ok(()) };
        match self.impossible.lock().expect("no panic").contains(&exec.args.join(" ")) {
            true => Err(StepFailure::new(FailureKind::Machine, "not on this machine")),
            false => Ok(()),
        }
    }

    fn prepare(&self, step: Step<'_>) {
        let Op::Exec(exec) = &step.vertex.op else { return };
        self.prepared.lock().expect("no panic").push(exec.args.join(" "));
        while self.is_slow_ground && !step.cancel.is_requested() {
            thread::yield_now();
        }
    }

    fn execute(&self, step: Step<'_>) -> Result<Executed, StepFailure> {
        let files = match &step.vertex.op {
            Op::Exec(exec) => {
                self.ran.lock().expect("no panic").push(exec.args.join(" "));
                (step.log)(Stream::Stdout, b"running");
                self.command(&exec.args, &step)?
            }
            Op::Copy(copy) => {
                self.ran.lock().expect("no panic").push(format!("copy to {}", copy.destination));
                let mut files = Files::new();
                for item in &copy.items {
                    let from = step.inputs[item.input];
                    let all = match from.identity {
                        Some(_) => self.context.lock().expect("no panic").clone(),
                        None => self.files(from.snapshot),
                    };
                    let placed = picked(&all, &item.selector).into_iter();
                    files.extend(placed.map(|(path, text)| (format!("{}/{path}", copy.destination), text)));
                }
                files
            }
            Op::Merge => {
                self.ran.lock().expect("no panic").push("merge".to_owned());
                let layer = step.inputs[1].snapshot.layers.last().expect("a copy has a layer");
                return Ok(Executed { layer: layer.clone(), took: Duration::ZERO });
            }
            other => panic!("not in these tests: {other:?}"),
        };
        self.dawdle(step.id);
        Ok(Executed { layer: self.layer(files), took: Duration::ZERO })
    }
}

/// A cache that keeps records as it got them.
#[derive(Default)]
pub struct Memory(pub Mutex<HashMap<Key, Record>>);

impl CacheBackend for Memory {
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>> {
        let records = self.0.lock().expect("no panic");
        keys.iter().map(|key| records.get(key).cloned()).collect()
    }

    fn store(&self, record: &Record) {
        let mut records = self.0.lock().expect("no panic");
        records.insert(Key::Definition(record.definition), record.clone());
        records.insert(Key::Content(record.content), record.clone());
    }
}

/// A graph under construction.
#[derive(Default)]
pub struct Dockerfile(pub Graph);

impl Dockerfile {
    fn add(&mut self, op: Op, inputs: &[VertexId]) -> VertexId {
        let label = format!("step {}", self.0.vertices().len());
        self.0.add(Vertex {
            op,
            inputs: inputs.to_vec(),
            platform: Platform::new("linux", "amd64", None),
            label,
            span: None,
            ambient_env: Vec::new(),
            use_cache: true,
            written: Default::default(),
        })
    }

    pub fn image(&mut self, name: &str, repository: &str) -> VertexId {
        let digest = Sha256Digest::of(name.as_bytes());
        let origin = BlobOrigin::OciLayout(repository.into());
        let descriptor = Descriptor::new(MediaType::OciLayer, Sha256Digest::of(repository.as_bytes()), 1);
        let layer = BaseLayer { diff_id: DiffId::from(digest), descriptor, origin };
        self.add(Op::Source(Source::Image(vec![layer])), &[])
    }

    pub fn scratch(&mut self) -> VertexId {
        self.add(Op::Source(Source::Scratch), &[])
    }

    pub fn context(&mut self, path: &str) -> VertexId {
        let selector = Selector { include: vec![path.to_owned()], ..Selector::default() };
        self.add(
            Op::Source(Source::Context(ContextSource { place: Place::Context(String::new()), selector })),
            &[],
        )
    }

    pub fn run(&mut self, parent: VertexId, command: &str) -> VertexId {
        let exec = Exec::new(command.split(' '));
        self.add(Op::Exec(exec), &[parent])
    }

    pub fn run_uncached(&mut self, parent: VertexId, command: &str) -> VertexId {
        let mut graph = Graph::default();
        let id = self.run(parent, command);
        for (at, vertex) in self.0.vertices() {
            graph.add(Vertex { use_cache: at != id && vertex.use_cache, ..vertex.clone() });
        }
        graph.targets = std::mem::take(&mut self.0.targets);
        self.0 = graph;
        id
    }

    /// The same vertex for another platform.
    pub fn on(&mut self, id: VertexId, architecture: &str) -> VertexId {
        let vertex = self.0.vertex(id).clone();
        self.0.add(Vertex { platform: Platform::new("linux", architecture, None), ..vertex })
    }

    pub fn copy(&mut self, parent: VertexId, from: VertexId, path: &str) -> VertexId {
        let selector = Selector { include: vec![path.to_owned()], ..Selector::default() };
        let copy = Copy {
            items: vec![CopyItem { input: 1, selector, unpack: false }],
            destination: "/to".to_owned(),
            into_directory: false,
            chown: None,
            chmod: None,
            timestamps: Timestamps::Auto,
        };
        self.add(Op::Copy(copy), &[parent, from])
    }

    /// COPY --link
    pub fn link(&mut self, parent: VertexId, from: VertexId, path: &str) -> VertexId {
        let nothing = self.scratch();
        let copied = self.copy(nothing, from, path);
        self.add(Op::Merge, &[parent, copied])
    }

    /// RUN --mount=from=
    pub fn mount(&mut self, parent: VertexId, from: VertexId, source: &str, command: &str) -> VertexId {
        let run = self.run(parent, command);
        let Op::Exec(exec) = self.0.vertex(run).op.clone() else { panic!("a command") };
        let bind = BindMount { target: "/m".into(), input: 1, source: source.into(), writable: false };
        self.add(Op::Exec(Exec { mounts: vec![Mount::Bind(bind)], ..exec }), &[parent, from])
    }

    pub fn target(&mut self, vertex: VertexId) -> &mut Self {
        let platform = Platform::new("linux", "amd64", None);
        let config = oci::ImageConfig::empty(&platform);
        self.0.targets.push(Target { platform, vertex, config, base_layers: 0, history: Vec::new() });
        self
    }

    /// Solves it in a world and gives the snapshots of its targets.
    pub fn solve(&self, world: &World, cache: &dyn CacheBackend) -> Result<Vec<Snapshot>, SolveError> {
        self.solve_with(world, &[cache], 4, &Cancel::default())
    }

    pub fn solve_with(
        &self,
        world: &World,
        caches: &[&dyn CacheBackend],
        jobs: usize,
        cancel: &Cancel,
    ) -> Result<Vec<Snapshot>, SolveError> {
        let events = |event| match event {
            // Who keeps one makes the scheduler copy its chain for the next step.
            Event::Settled(..) => {}
            event => world.events.lock().expect("no panic").push(event),
        };
        let options = SolveOptions { jobs, oldest: 0, maker: Maker::default() };
        self.solve_as(world, caches, &options, &events, cancel)
    }

    pub fn solve_as(
        &self,
        world: &World,
        caches: &[&dyn CacheBackend],
        options: &SolveOptions,
        events: &EventSink<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<Snapshot>, SolveError> {
        self.solve_far(world, &Caches::near(caches), options, events, cancel)
    }

    pub fn solve_far(
        &self,
        world: &World,
        caches: &Caches<'_>,
        options: &SolveOptions,
        events: &EventSink<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<Snapshot>, SolveError> {
        let images = solve(&self.0, world, caches, options, events, cancel)?;
        Ok(images.into_iter().map(|image| image.snapshot).collect())
    }
}

//! The threads that do the work, and what they are told and tell. They hold no state: a task carries all it needs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, Scope},
};

use oci::{Layer, Snapshot, TreeDigest};

use crate::{
    cache::{Key, Made, Maker, Record},
    event::{Event, EventSink, Stream},
    graph::{Graph, VertexId},
    key::{self, Reading},
    op::{Op, Selector, Source},
    traits::{CacheBackend, Cancel, Executed, Executor, Input, Step, StepFailure},
};

/// Everything outside the scheduler, for the time of one build.
pub(super) struct World<'a> {
    pub(super) graph: &'a Graph,
    pub(super) executor: &'a dyn Executor,
    pub(super) caches: &'a [&'a dyn CacheBackend],
    pub(super) events: &'a EventSink<'a>,
    /// Requested by the user or by the first failure.
    pub(super) stop: &'a Cancel,
    pub(super) maker: &'a Maker,
}

/// What a worker is asked to do.
pub(super) enum Task {
    /// Hash the files of a source.
    Identify(VertexId),
    /// Compute a step's content key and ask the caches for it.
    Key(Job),
    /// Run a step.
    Execute(Job),
    /// Write a record to every cache.
    Remember(Box<Record>),
}

/// A step whose inputs are there.
pub(super) struct Job {
    pub(super) id: VertexId,
    pub(super) inputs: Vec<Ready>,
    /// Whether the caches may answer.
    pub(super) use_cache: bool,
}

/// An input that is there.
#[derive(Clone)]
pub(super) struct Ready {
    pub(super) id: VertexId,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) digest: TreeDigest,
    pub(super) identity: Option<TreeDigest>,
}

/// What a worker answers: one message a task, except for [`Task::Remember`], which needs none.
pub(super) enum Message {
    Identified(VertexId, Result<TreeDigest, StepFailure>),
    Keyed(VertexId, Result<Keyed, StepFailure>),
    Executed(VertexId, Result<Executed, StepFailure>),
    /// The build was stopped before the task was begun.
    Skipped(VertexId),
    /// A worker is gone: it panicked, and its scope will say so.
    Lost,
}

/// A step's content key and what is known under it.
pub(super) struct Keyed {
    pub(super) content: TreeDigest,
    /// What the key was made of.
    pub(super) read: Vec<TreeDigest>,
    /// The layer that a cache remembers, and who made it.
    pub(super) hit: Option<(Layer, Made)>,
}

/// Workers and the tasks they have not answered yet.
pub(super) struct Pool {
    tasks: Sender<Task>,
    messages: Receiver<Message>,
    unanswered: usize,
}

impl Pool {
    /// Starts `jobs` workers, which end when the pool is dropped and its last task is done.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        world: &'scope World<'scope>,
        jobs: usize,
    ) -> Self {
        let (tasks, queue) = mpsc::channel();
        let (answers, messages) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..jobs.max(1) {
            let (queue, answers) = (Arc::clone(&queue), answers.clone());
            scope.spawn(move || work(world, &queue, &answers));
        }
        Self { tasks, messages, unanswered: 0 }
    }

    pub(super) fn submit(&mut self, task: Task) {
        self.unanswered += usize::from(!matches!(task, Task::Remember(_)));
        // Fails only when every worker has panicked, which the next message says.
        let _ = self.tasks.send(task);
    }

    /// The next answer, or `None` when there is none to wait for.
    ///
    /// # Panics
    /// If a worker has.
    pub(super) fn next(&mut self) -> Option<Message> {
        if self.unanswered == 0 {
            return None;
        }
        self.unanswered -= 1;
        match self.messages.recv() {
            Ok(Message::Lost) | Err(_) => panic!("a worker of the scheduler panicked"),
            Ok(message) => Some(message),
        }
    }
}

/// Says so when its thread panics: nobody may wait for its answer.
struct LastWords<'a>(&'a Sender<Message>);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(Message::Lost);
        }
    }
}

fn work(world: &World, queue: &Mutex<Receiver<Task>>, answers: &Sender<Message>) {
    let last_words = LastWords(answers);
    loop {
        let task = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        if let Some(message) = perform(world, task)
            && last_words.0.send(message).is_err()
        {
            return;
        }
    }
}

fn perform(world: &World, task: Task) -> Option<Message> {
    let stopped = world.stop.is_requested();
    Some(match task {
        Task::Remember(record) => {
            world.caches.iter().for_each(|cache| cache.store(&record));
            return None;
        }
        Task::Identify(id) | Task::Key(Job { id, .. }) | Task::Execute(Job { id, .. }) if stopped => {
            Message::Skipped(id)
        }
        Task::Identify(id) => Message::Identified(id, identify(world, id)),
        Task::Key(job) => Message::Keyed(job.id, find(world, &job)),
        Task::Execute(job) => Message::Executed(job.id, execute(world, &job)),
    })
}

fn identify(world: &World, id: VertexId) -> Result<TreeDigest, StepFailure> {
    match &world.graph.vertex(id).op {
        Op::Source(source) => world.executor.identify(source, world.stop),
        _ => unreachable!("only sources are identified"),
    }
}

fn find(world: &World, job: &Job) -> Result<Keyed, StepFailure> {
    let vertex = world.graph.vertex(job.id);
    let read = key::readings(&vertex.op).into_iter().map(|reading| match reading {
        Reading::Whole(input) => Ok(job.inputs[input].digest),
        Reading::Selected(input, selector) => selected(world, &job.inputs[input], &selector),
    });
    let read = read.collect::<Result<Vec<_>, _>>()?;
    let content = key::content_key(vertex, &read);
    let parent = &job.inputs[0];
    let hit = if job.use_cache { remembered(world, content, parent) } else { None };
    Ok(Keyed { content, read, hit })
}

/// Digest of what a copy takes of one of its sources.
fn selected(world: &World, input: &Ready, selector: &Selector) -> Result<TreeDigest, StepFailure> {
    match &world.graph.vertex(input.id).op {
        Op::Source(source @ (Source::Context(_) | Source::Inline(_))) => {
            Ok(key::source_key(source, input.identity.as_ref()))
        }
        _ => world.executor.select(&input.snapshot, selector, world.stop),
    }
}

/// The layer that the first cache to know it has under a content key. A record that was not made on this parent is
/// none of ours.
fn remembered(world: &World, content: TreeDigest, parent: &Ready) -> Option<(Layer, Made)> {
    let layer = |record: Record| {
        let fits = record.content == content && record.parent == parent.digest;
        record.layer().filter(|_| fits).cloned().map(|layer| (layer, record.made.clone()))
    };
    world.caches.iter().find_map(|cache| {
        let record = cache.lookup(&[Key::Content(content)]).pop().flatten();
        record.and_then(layer)
    })
}

fn execute(world: &World, job: &Job) -> Result<Executed, StepFailure> {
    let World { graph, executor, caches: _, events, stop, maker: _ } = world;
    let id = job.id;
    let inputs = job.inputs.iter().map(|Ready { id, snapshot, digest: _, identity }| Input {
        vertex: graph.vertex(*id),
        snapshot,
        identity: *identity,
    });
    let log = |stream: Stream, line: &[u8]| events(Event::Log(id, stream, line.to_vec()));
    events(Event::Started(id));
    executor.execute(Step { id, vertex: graph.vertex(id), inputs: inputs.collect(), log: &log, cancel: stop })
}

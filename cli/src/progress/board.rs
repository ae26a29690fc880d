//! What is known of a build: its steps, transfers and stages, in the order in which they were first heard of.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    time::Duration,
};

use solver::{Event, VertexId};

use super::{spool::Spool, text};
use crate::{failure::harmless, redact::redact};

/// How many of its last lines are kept of a step that runs or has failed.
pub const TAIL_LINES: usize = 200;

/// What labels of vertices begin with that no line of the Dockerfile stands for.
const INTERNAL: &str = "[internal] ";

/// A build as far as it has come.
#[derive(Debug, Default)]
pub struct Board {
    steps: Vec<Step>,
    /// Where the steps of the last plan begin: a build that is made once more plans again.
    current: usize,
    by_vertex: BTreeMap<VertexId, usize>,
    tasks: Vec<Task>,
    by_name: BTreeMap<String, usize>,
    rows: Vec<Row>,
    /// Places in `rows`, from 1.
    numbers: BTreeMap<Row, usize>,
    /// Steps that no line asks for, by label.
    internal: BTreeMap<String, usize>,
    warnings: Vec<String>,
    notes: Vec<String>,
    spool_directory: Option<PathBuf>,
}

/// A step of the graph.
#[derive(Debug)]
pub struct Step {
    /// `[build 2/4] RUN make`
    pub label: String,
    /// How far it is.
    pub state: State,
    /// What it waits for, as long as somebody else has it.
    pub waits_for: Option<String>,
    /// The end of its output; kept while it runs and when it has failed.
    pub tail: VecDeque<Line>,
    /// How many vertices it stands for that are not over.
    open: usize,
    /// The lines before the tail, for views that do not show every line.
    pub earlier: Earlier,
}

/// What has become of the lines before the tail.
#[derive(Debug)]
pub enum Earlier {
    /// The view has shown them; this many.
    Shown(u64),
    /// They are kept, as far as there is room.
    Kept(Spool),
}

/// How far a step is. Times without a name are how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has not begun.
    Waiting,
    /// It runs.
    Running {
        /// Since when, after the start of the build.
        since: Duration,
    },
    /// A source whose content is known; sources are not counted among the steps that ran or were cached.
    Ready(Duration),
    /// The cache had it.
    Cached {
        /// What the remote cache is called that had it; `None` for the store's.
        from: Option<String>,
    },
    /// It has run.
    Done(Duration),
    /// It has failed, and why.
    Failed(Duration, String),
    /// It was stopped because the build ended.
    Cancelled(Duration),
}

/// A line of a step's output.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it came, after the start of the step.
    pub at: Duration,
    /// The line without its end.
    pub text: Vec<u8>,
}

impl Step {
    fn new(label: String) -> Self {
        let (state, tail, earlier) = (State::Waiting, VecDeque::new(), Earlier::Shown(0));
        Self { label, state, waits_for: None, tail, open: 1, earlier }
    }

    /// Whether no line of the Dockerfile asks for it.
    pub fn is_internal(&self) -> bool {
        self.label.starts_with(INTERNAL)
    }

    /// Whether it is over, one way or the other.
    pub fn is_over(&self) -> bool {
        !matches!(self.state, State::Waiting | State::Running { .. })
    }
}

impl Earlier {
    /// Takes the line that the tail has no room for.
    fn push(&mut self, line: &Line, directory: Option<&Path>) {
        match (&mut *self, directory) {
            (Self::Kept(spool), _) => spool.push(line),
            (Self::Shown(0), Some(directory)) => {
                let mut spool = Spool::new(directory);
                spool.push(line);
                *self = Self::Kept(spool);
            }
            (Self::Shown(lines), _) => *lines += 1,
        }
    }
}

impl Line {
    /// The line as a terminal may have it: colours are all that is left of control sequences.
    pub fn harmless(&self) -> String {
        text::harmless(&self.text, usize::MAX, text::Colour::Kept)
    }
}

/// A transfer, or a stage of the export.
#[derive(Debug)]
pub struct Task {
    /// How people call it.
    pub name: String,
    /// When it began.
    pub since: Duration,
    /// How long it took, once it is over.
    pub took: Option<Duration>,
    /// Bytes moved and bytes in all (0 while unknown), where bytes move.
    pub bytes: Option<(u64, u64)>,
}

/// What a line of the view, or a group of lines in a log, is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// A step, by its place in [`Board::steps`].
    Step(usize),
    /// A task, by its place in [`Board::tasks`].
    Task(usize),
}

impl Board {
    /// A board that keeps every line of steps that run, on the file system of this directory, which must be there when
    /// the first step writes more than its tail holds.
    pub fn keeping_lines(directory: PathBuf) -> Self {
        Self { spool_directory: Some(directory), ..Self::default() }
    }

    /// Takes a step out of the board, to tell everything about it.
    pub fn take_step(&mut self, vertex: VertexId) -> Option<Step> {
        let index = self.by_vertex.remove(&vertex)?;
        let empty = Step::new(String::new());
        self.steps.get_mut(index).map(|step| std::mem::replace(step, empty))
    }

    /// Takes note of an event that came `at` after the start.
    pub fn apply(&mut self, at: Duration, event: &Event) {
        match event {
            Event::Planned(steps) => {
                self.current = self.steps.len();
                self.internal.clear();
                for (vertex, label) in steps {
                    self.plan(*vertex, redact(label).into_owned());
                }
            }
            Event::Missed(..) | Event::Settled(..) => {}
            Event::Waiting(vertex, what) => {
                self.begun(*vertex).waits_for = Some(harmless(&redact(what)));
            }
            Event::Started(vertex) => self.start(at, *vertex),
            Event::Ready(vertex) => self.ready(at, *vertex),
            Event::Cached(vertex, hit) => {
                let from = hit.from.as_deref().map(|cache| harmless(&redact(cache)));
                self.change(*vertex, |_| State::Cached { from });
            }
            Event::Done(vertex, _) => self.change(*vertex, |since| State::Done(at.saturating_sub(since))),
            Event::Failed(vertex, why) => {
                let why = redact(why).into_owned();
                self.change(*vertex, |since| State::Failed(at.saturating_sub(since), why));
            }
            Event::Cancelled(vertex) => {
                self.change(*vertex, |since| State::Cancelled(at.saturating_sub(since)));
            }
            Event::Log(vertex, _, text) => self.log(at, *vertex, text),
            Event::Transfer { task, done, total } => self.transfer(at, task, *done, *total),
            Event::Stage(name) => drop(self.task(at, name)),
            Event::StageDone(name) => {
                let task = self.task(at, name);
                task.took.get_or_insert(at.saturating_sub(task.since));
            }
            Event::Warning(text) => self.warnings.push(harmless(&redact(text))),
            Event::Sandbox(rung) => self.notes.push(harmless(&format!("sandbox: {rung}"))),
            Event::Note(text) => self.notes.push(harmless(&redact(text))),
        }
    }

    /// All steps, in graph order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// All tasks, in order of appearance.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Everything that has begun, in order of appearance.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row of a vertex, and its number in the order of appearance, from 1.
    pub fn row_of_vertex(&self, vertex: VertexId) -> Option<(Row, usize)> {
        self.by_vertex.get(&vertex).and_then(|step| self.numbered(Row::Step(*step)))
    }

    /// The row of a task, and its number in the order of appearance, from 1.
    pub fn row_of_task(&self, name: &str) -> Option<(Row, usize)> {
        self.by_name.get(redact(name).as_ref()).and_then(|task| self.numbered(Row::Task(*task)))
    }

    /// A step by its vertex.
    pub fn step(&self, vertex: VertexId) -> Option<&Step> {
        self.by_vertex.get(&vertex).map(|step| &self.steps[*step])
    }

    /// Whether a vertex's step is over, one way or the other.
    pub fn is_over(&self, vertex: VertexId) -> bool {
        self.step(vertex).is_some_and(Step::is_over)
    }

    /// What must be seen though it does not stop the build.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What else there is to say of the build in its end.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How many steps there are in the last plan, sources left out.
    pub fn steps_but_sources(&self) -> usize {
        self.steps[self.current..].iter().filter(|step| !matches!(step.state, State::Ready(_))).count()
    }

    /// How many of these the cache had.
    pub fn cached(&self) -> usize {
        self.steps[self.current..].iter().filter(|step| matches!(step.state, State::Cached { .. })).count()
    }

    /// How many steps are over, one way or the other.
    pub fn finished(&self) -> usize {
        self.steps.iter().filter(|step| step.is_over()).count()
    }

    fn add_row(&mut self, row: Row) {
        self.rows.push(row);
        self.numbers.insert(row, self.rows.len());
    }

    fn numbered(&self, row: Row) -> Option<(Row, usize)> {
        self.numbers.get(&row).map(|number| (row, *number))
    }

    /// Adds a step. Vertices that the planner has put in by itself under one name (the parts of a context that several
    /// COPYs read) are one step to people.
    fn plan(&mut self, vertex: VertexId, label: String) -> usize {
        if let Some(index) = self.internal.get(&label).copied() {
            self.steps[index].open += 1;
            self.by_vertex.insert(vertex, index);
            return index;
        }
        let index = self.steps.len();
        let step = Step::new(label);
        if step.is_internal() {
            self.internal.insert(step.label.clone(), index);
        }
        self.steps.push(step);
        self.by_vertex.insert(vertex, index);
        index
    }

    /// The step of a vertex, which has a row from now on.
    fn begun(&mut self, vertex: VertexId) -> &mut Step {
        let index = match self.by_vertex.get(&vertex) {
            Some(index) => *index,
            None => self.plan(vertex, format!("step {}", vertex.0)),
        };
        if self.steps[index].state == State::Waiting && !self.numbers.contains_key(&Row::Step(index)) {
            self.add_row(Row::Step(index));
        }
        &mut self.steps[index]
    }

    fn start(&mut self, at: Duration, vertex: VertexId) {
        let runs = |step: &Step| matches!(step.state, State::Running { .. });
        if self.step(vertex).is_some_and(runs) {
            // It has waited for another builder, and begins anew.
            self.begun(vertex).waits_for = None;
        } else {
            self.change(vertex, |_| State::Running { since: at });
        }
    }

    /// A step that stands for several vertices is ready when the last one is.
    fn ready(&mut self, at: Duration, vertex: VertexId) {
        let step = self.begun(vertex);
        step.open = step.open.saturating_sub(1);
        match step.open {
            0 => self.change(vertex, |since| State::Ready(at.saturating_sub(since))),
            _ => self.start(at, vertex),
        }
    }

    fn change(&mut self, vertex: VertexId, next: impl FnOnce(Duration) -> State) {
        let step = self.begun(vertex);
        let since = match step.state {
            State::Running { since } => since,
            _ => Duration::MAX,
        };
        step.state = next(since);
        step.waits_for = None;
        if !matches!(step.state, State::Running { .. } | State::Failed(..)) {
            (step.tail, step.earlier) = (VecDeque::new(), Earlier::Shown(0));
        }
    }

    fn log(&mut self, at: Duration, vertex: VertexId, text: &[u8]) {
        let directory = self.spool_directory.clone();
        let step = self.begun(vertex);
        let since = match step.state {
            State::Running { since } => since,
            _ => at,
        };
        let evicted = if step.tail.len() == TAIL_LINES { step.tail.pop_front() } else { None };
        step.tail.push_back(Line { at: at.saturating_sub(since), text: text.to_vec() });
        if let Some(line) = evicted {
            step.earlier.push(&line, directory.as_deref());
        }
    }

    fn transfer(&mut self, at: Duration, name: &str, done: u64, total: u64) {
        let task = self.task(at, name);
        task.bytes = Some((done, total));
        if done == total {
            task.took.get_or_insert(at.saturating_sub(task.since));
        }
    }

    /// The task of a name, which begins now unless it has begun before.
    fn task(&mut self, at: Duration, name: &str) -> &mut Task {
        let name = redact(name);
        let index = match self.by_name.get(name.as_ref()) {
            Some(index) => *index,
            None => {
                let name = name.into_owned();
                self.by_name.insert(name.clone(), self.tasks.len());
                self.add_row(Row::Task(self.tasks.len()));
                self.tasks.push(Task { name, since: at, took: None, bytes: None });
                self.tasks.len() - 1
            }
        };
        &mut self.tasks[index]
    }
}

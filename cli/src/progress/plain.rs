//! Lines for logs: every event is a line, prefixed by the number of the step it belongs to, as BuildKit's plain
//! progress has it. A group of lines begins with the step's name; groups are separated by an empty line.

use std::{borrow::Cow, collections::BTreeSet, io::Write, time::Duration};

use solver::{Event, VertexId};

use super::{
    Board, End, View,
    board::{Row, State, Step, Task},
    shown, summary, text,
};

/// A transfer that is over sooner than this is one line.
const QUICK: Duration = Duration::from_secs(2);
/// Time between two lines about one transfer.
const EVERY: Duration = Duration::from_secs(5);

/// How long nothing is written before it is told what has not ended.
const SILENCE: Duration = Duration::from_secs(30);

/// Plain lines.
pub struct Plain<W> {
    out: W,
    /// Whether it is a terminal, which obeys what a step's output tells it.
    terminal: bool,
    /// The group whose lines are being written.
    open: Option<Row>,
    /// Whether anything has been written that the next group must be set off from.
    separate: bool,
    /// Tasks whose end has been written.
    ended: BTreeSet<Row>,
    last_transfer: Duration,
    /// When the last line was written, or when it will have been: the time of what is being shown.
    last_line: Duration,
    now: Duration,
}

impl<W: Write + Send> Plain<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            terminal: false,
            open: None,
            separate: false,
            ended: BTreeSet::new(),
            last_transfer: Duration::ZERO,
            last_line: Duration::ZERO,
            now: Duration::ZERO,
        }
    }

    /// Of what steps say, lets through only what cannot hurt a terminal.
    pub fn harmless(self, terminal: bool) -> Self {
        Self { terminal, ..self }
    }

    /// Where the lines go.
    pub fn out(&self) -> &W {
        &self.out
    }

    /// Where the lines went.
    pub fn into_out(self) -> W {
        self.out
    }

    fn step(&mut self, board: &Board, vertex: VertexId, line: &[u8]) {
        let (Some((row, number)), Some(step)) = (board.row_of_vertex(vertex), board.step(vertex)) else {
            return;
        };
        self.enter(row, number, &step.label);
        self.line(number, line);
    }

    /// The last line of a group.
    fn close(&mut self, board: &Board, vertex: VertexId, line: &str) {
        self.step(board, vertex, line.as_bytes());
        self.open = None;
    }

    fn enter(&mut self, row: Row, number: usize, title: &str) {
        if self.open == Some(row) {
            return;
        }
        if self.separate {
            let _ = writeln!(self.out);
        }
        self.separate = true;
        self.open = Some(row);
        self.line(number, title.as_bytes());
    }

    /// What others have written, as this output may have it.
    fn tamed<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        match self.terminal {
            true => Cow::Owned(shown(line).into_bytes()),
            false => Cow::Borrowed(line),
        }
    }

    fn line(&mut self, number: usize, text: &[u8]) {
        // In one piece: other processes may write to the same pipe.
        let mut line = format!("#{number} ").into_bytes();
        line.extend_from_slice(&self.tamed(text));
        line.push(b'\n');
        let _ = self.out.write_all(&line);
        self.last_line = self.now;
    }

    fn task(&mut self, board: &Board, at: Duration, name: &str) {
        let Some((row @ Row::Task(index), number)) = board.row_of_task(name) else { return };
        let task = &board.tasks()[index];
        match (task.took, task.bytes) {
            (Some(took), _) if self.ended.insert(row) => {
                self.enter(row, number, &title(task));
                self.line(number, format!("DONE {}", text::seconds(took)).as_bytes());
                self.open = None;
            }
            (Some(_), _) => {}
            (None, None) => self.enter(row, number, &task.name),
            (None, Some(moved)) => {
                let due =
                    at.saturating_sub(task.since) >= QUICK && at.saturating_sub(self.last_transfer) >= EVERY;
                if due {
                    self.enter(row, number, &task.name);
                    self.line(number, text::progress(moved).as_bytes());
                    self.last_transfer = at;
                }
            }
        }
    }

    /// What has begun and is not over: a build that says nothing says at least what it waits for.
    fn tell_open(&mut self, board: &Board) {
        self.last_line = self.now;
        for (index, row) in board.rows().iter().enumerate() {
            let (title, text) = match row {
                Row::Step(step) => (&board.steps()[*step].label, still_step(&board.steps()[*step], self.now)),
                Row::Task(task) => (&board.tasks()[*task].name, still_task(&board.tasks()[*task], self.now)),
            };
            if let Some(text) = text {
                self.enter(*row, index + 1, title);
                self.line(index + 1, text.as_bytes());
            }
        }
    }

    /// The stage of the export that has begun and not ended is what failed: steps say so themselves.
    fn fail_stage(&mut self, board: &Board, message: &str) {
        let open = |task: &&Task| task.took.is_none() && task.bytes.is_none();
        let Some(stage) = board.tasks().iter().rfind(open) else { return };
        if let Some((row, number)) = board.row_of_task(&stage.name) {
            self.enter(row, number, &stage.name);
            self.line(number, format!("ERROR: {message}").as_bytes());
        }
    }
}

/// What a step does, or waits for, after a time of silence.
fn still_step(step: &Step, now: Duration) -> Option<String> {
    match (&step.waits_for, &step.state) {
        (Some(what), _) => Some(format!("still {what}")),
        (None, State::Running { since }) => {
            Some(format!("still running after {}", text::seconds(now.saturating_sub(*since))))
        }
        _ => None,
    }
}

/// The same of a transfer or stage.
fn still_task(task: &Task, now: Duration) -> Option<String> {
    let since = text::seconds(now.saturating_sub(task.since));
    let moved = task.bytes.map(|moved| format!(", {}", text::progress(moved))).unwrap_or_default();
    task.took.is_none().then(|| format!("not done after {since}{moved}"))
}

fn title(task: &Task) -> String {
    match task.bytes {
        Some((done, _)) => format!("{} {}", task.name, text::bytes(done)),
        None => task.name.clone(),
    }
}

impl<W: Write + Send> View for Plain<W> {
    fn event(&mut self, board: &Board, at: Duration, event: &Event) {
        self.now = at;
        match event {
            Event::Planned(_)
            | Event::Missed(..)
            | Event::Settled(..)
            | Event::Sandbox(_)
            | Event::Note(_) => {}
            // What nobody asked for is not announced: it is over at once, as a rule.
            Event::Started(vertex) if board.step(*vertex).is_some_and(Step::is_internal) => {}
            Event::Started(vertex) => {
                if let (Some((row, number)), Some(step)) = (board.row_of_vertex(*vertex), board.step(*vertex))
                {
                    self.enter(row, number, &step.label);
                }
            }
            Event::Log(vertex, _, line) => {
                let at = board.step(*vertex).and_then(|step| step.tail.back()).map(|line| line.at);
                let mut text = format!("{:.3} ", at.unwrap_or_default().as_secs_f64()).into_bytes();
                // By itself: what it overwrites of a terminal's line is its own.
                text.extend_from_slice(&self.tamed(line));
                self.step(board, *vertex, &text);
            }
            Event::Waiting(vertex, _) => {
                let what = board.step(*vertex).and_then(|step| step.waits_for.clone()).unwrap_or_default();
                self.step(board, *vertex, what.as_bytes());
            }
            Event::Ready(vertex) if !board.is_over(*vertex) => {}
            Event::Ready(vertex)
            | Event::Cached(vertex, _)
            | Event::Done(vertex, _)
            | Event::Failed(vertex, _)
            | Event::Cancelled(vertex) => {
                let line = match board.step(*vertex).map(|step| &step.state) {
                    Some(State::Cached { from: None }) => "CACHED".to_owned(),
                    Some(State::Cached { from: Some(cache) }) => format!("CACHED from {cache}"),
                    Some(State::Done(took) | State::Ready(took)) => format!("DONE {}", text::seconds(*took)),
                    Some(State::Failed(_, why)) => format!("ERROR: {why}"),
                    _ => "CANCELED".to_owned(),
                };
                self.close(board, *vertex, &line);
            }
            Event::Transfer { task, .. } => self.task(board, at, task),
            Event::Stage(name) | Event::StageDone(name) => self.task(board, at, name),
            Event::Warning(_) => {
                if let Some(text) = board.warnings().last() {
                    if self.separate {
                        let _ = writeln!(self.out);
                    }
                    let _ = self.out.write_all(format!("warning: {text}\n").as_bytes());
                    (self.open, self.separate) = (None, true);
                }
            }
        }
    }

    fn tick(&mut self, board: &Board, at: Duration) {
        self.now = at;
        if at.saturating_sub(self.last_line) >= SILENCE {
            self.tell_open(board);
        }
    }

    fn flush(&mut self) {
        let _ = self.out.flush();
    }

    fn end(&mut self, board: &Board, at: Duration, end: &End) {
        if let End::Failed { message, .. } = end {
            self.fail_stage(board, message);
        }
        if self.separate {
            let _ = writeln!(self.out);
        }
        summary(&mut self.out, board, at, end);
    }
}

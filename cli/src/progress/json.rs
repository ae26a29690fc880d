//! JSON lines for tools: one object an event, each with the time it came. `docs/progress.md` describes them; fields
//! are added, never renamed or removed.

use std::{
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oci::{Layer, Sha256Digest};
use serde::Serialize;
use solver::{Event, Stream, VertexId};

use super::{
    Board, End, View,
    board::{State, Step},
    text,
};
use crate::redact::redact;

/// JSON lines.
pub struct Json<W> {
    out: W,
    start: SystemTime,
}

/// A line.
#[derive(Serialize)]
struct Record<'a> {
    time: String,
    #[serde(flatten)]
    event: Kind<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Kind<'a> {
    Planned {
        steps: Vec<Planned<'a>>,
    },
    Started {
        step: usize,
    },
    Log {
        step: usize,
        stream: &'static str,
        text: std::borrow::Cow<'a, str>,
    },
    Ready {
        step: usize,
        seconds: f64,
    },
    Cached {
        step: usize,
    },
    Done {
        step: usize,
        seconds: f64,
        layer: String,
    },
    Failed {
        step: usize,
        seconds: f64,
        message: &'a str,
    },
    Cancelled {
        step: usize,
        seconds: f64,
    },
    Transfer {
        task: std::borrow::Cow<'a, str>,
        done: u64,
        total: u64,
    },
    Stage {
        name: std::borrow::Cow<'a, str>,
    },
    StageDone {
        name: std::borrow::Cow<'a, str>,
    },
    Warning {
        message: &'a str,
    },
    Result {
        digest: Option<&'a Sha256Digest>,
        destinations: &'a [String],
        seconds: f64,
        steps: usize,
        cached: usize,
    },
    Error {
        message: &'a str,
        exit_code: u8,
        seconds: f64,
    },
}

#[derive(Serialize)]
struct Planned<'a> {
    step: usize,
    label: &'a str,
}

impl<W: Write + Send> Json<W> {
    /// Writes to `out`; the build began at `start`.
    pub fn new(out: W, start: SystemTime) -> Self {
        Self { out, start }
    }

    fn write(&mut self, at: Duration, event: Kind<'_>) {
        let since_epoch = self.start.duration_since(UNIX_EPOCH).unwrap_or_default() + at;
        let record = Record { time: text::rfc3339(since_epoch), event };
        let mut line = serde_json::to_vec(&record).expect("plain data with string keys");
        line.push(b'\n');
        let _ = self.out.write_all(&line);
    }
}

impl<W: Write + Send> View for Json<W> {
    fn event(&mut self, board: &Board, at: Duration, event: &Event) {
        let step = |vertex: &VertexId| board.step(*vertex);
        let kind = match event {
            Event::Planned(_) => {
                let planned = |step: &'_ Step| (step.vertex.0, step.label.clone());
                let steps: Vec<(usize, String)> = board.steps().iter().map(planned).collect();
                let steps = steps.iter().map(|(step, label)| Planned { step: *step, label }).collect();
                return self.write(at, Kind::Planned { steps });
            }
            Event::Started(vertex) => Kind::Started { step: vertex.0 },
            Event::Log(vertex, stream, line) => Kind::Log {
                step: vertex.0,
                stream: match stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                },
                text: text::lossy(line),
            },
            Event::Ready(vertex) => Kind::Ready { step: vertex.0, seconds: took(step(vertex)) },
            Event::Cached(vertex) => Kind::Cached { step: vertex.0 },
            Event::Done(vertex, layer) => {
                Kind::Done { step: vertex.0, seconds: took(step(vertex)), layer: layer_name(layer) }
            }
            Event::Failed(vertex, _) => {
                let message = match step(vertex).map(|step| &step.state) {
                    Some(State::Failed(_, why)) => why.as_str(),
                    _ => "",
                };
                Kind::Failed { step: vertex.0, seconds: took(step(vertex)), message }
            }
            Event::Cancelled(vertex) => Kind::Cancelled { step: vertex.0, seconds: took(step(vertex)) },
            Event::Transfer { task, done, total } => {
                Kind::Transfer { task: redact(task), done: *done, total: *total }
            }
            Event::Stage(name) => Kind::Stage { name: redact(name) },
            Event::StageDone(name) => Kind::StageDone { name: redact(name) },
            Event::Warning(_) => {
                Kind::Warning { message: board.warnings().last().map_or("", String::as_str) }
            }
        };
        self.write(at, kind);
    }

    fn tick(&mut self, _board: &Board, _at: Duration) {}

    fn end(&mut self, board: &Board, at: Duration, end: &End) {
        let seconds = round(at);
        let kind = match end {
            End::Built { digest, destinations } => Kind::Result {
                digest: digest.as_ref(),
                destinations,
                seconds,
                steps: board.steps_but_sources(),
                cached: board.cached(),
            },
            End::Failed { message, exit_code } => Kind::Error { message, exit_code: *exit_code, seconds },
        };
        self.write(at, kind);
    }
}

/// Seconds with milliseconds.
fn round(time: Duration) -> f64 {
    time.as_millis() as f64 / 1e3
}

fn took(step: Option<&Step>) -> f64 {
    match step.map(|step| &step.state) {
        Some(State::Ready(took) | State::Done(took) | State::Failed(took, _) | State::Cancelled(took)) => {
            round(*took)
        }
        _ => 0.0,
    }
}

/// The tree of a layer that was built, the diff ID of one that came with an image.
fn layer_name(layer: &Layer) -> String {
    match layer {
        Layer::Base(base) => base.diff_id.to_string(),
        Layer::Built(tree) => tree.to_string(),
    }
}

//! JSON lines for tools: one object an event, each with the time it came. `docs/progress.md` describes them; fields
//! are added, never renamed or removed.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oci::{Layer, Sha256Digest};
use serde::Serialize;
use solver::{Event, Stream, VertexId};

use super::{Board, Delivered, End, View, text};
use crate::{
    explain::{Explained, Explanation},
    redact::redact,
};

/// JSON lines.
pub struct Json<W> {
    out: W,
    start: SystemTime,
    /// When each step that runs has begun.
    since: BTreeMap<VertexId, Duration>,
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
    Waiting {
        step: usize,
        message: Cow<'a, str>,
    },
    Log {
        step: usize,
        stream: &'static str,
        text: Cow<'a, str>,
    },
    Ready {
        step: usize,
        seconds: f64,
    },
    Cached {
        step: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<Cow<'a, str>>,
    },
    Done {
        step: usize,
        seconds: f64,
        layer: String,
    },
    Failed {
        step: usize,
        seconds: f64,
        message: Cow<'a, str>,
    },
    Cancelled {
        step: usize,
        seconds: f64,
    },
    Transfer {
        task: Cow<'a, str>,
        done: u64,
        total: u64,
    },
    Stage {
        name: Cow<'a, str>,
    },
    StageDone {
        name: Cow<'a, str>,
    },
    Sandbox {
        rung: &'a str,
    },
    Warning {
        message: Cow<'a, str>,
    },
    Note {
        message: Cow<'a, str>,
    },
    Explained(&'a Explained),
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
        report: &'a str,
        seconds: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        delivered: Option<&'a Delivered>,
    },
}

#[derive(Serialize)]
struct Planned<'a> {
    step: usize,
    label: Cow<'a, str>,
}

impl<W: Write + Send> Json<W> {
    /// Writes to `out`; the build began at `start`.
    pub fn new(out: W, start: SystemTime) -> Self {
        Self { out, start, since: BTreeMap::new() }
    }

    /// Seconds since a step has begun; 0 for one that never ran.
    fn took(&mut self, vertex: VertexId, at: Duration) -> f64 {
        self.since.remove(&vertex).map_or(0.0, |since| round(at.saturating_sub(since)))
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
    fn event(&mut self, _board: &Board, at: Duration, event: &Event) {
        let kind = match event {
            Event::Missed(..) | Event::Settled(..) => return,
            Event::Planned(steps) => Kind::Planned {
                steps: steps
                    .iter()
                    .map(|(step, label)| Planned { step: step.0, label: redact(label) })
                    .collect(),
            },
            Event::Started(vertex) => {
                self.since.insert(*vertex, at);
                Kind::Started { step: vertex.0 }
            }
            Event::Waiting(vertex, what) => Kind::Waiting { step: vertex.0, message: redact(what) },
            Event::Log(vertex, stream, line) => Kind::Log {
                step: vertex.0,
                stream: match stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                },
                text: String::from_utf8_lossy(line),
            },
            Event::Ready(vertex) => Kind::Ready { step: vertex.0, seconds: self.took(*vertex, at) },
            Event::Cached(vertex, hit) => {
                Kind::Cached { step: vertex.0, from: hit.from.as_deref().map(redact) }
            }
            Event::Done(vertex, layer) => {
                Kind::Done { step: vertex.0, seconds: self.took(*vertex, at), layer: layer_name(layer) }
            }
            Event::Failed(vertex, message) => {
                Kind::Failed { step: vertex.0, seconds: self.took(*vertex, at), message: redact(message) }
            }
            Event::Cancelled(vertex) => Kind::Cancelled { step: vertex.0, seconds: self.took(*vertex, at) },
            Event::Transfer { task, done, total } => {
                Kind::Transfer { task: redact(task), done: *done, total: *total }
            }
            Event::Stage(name) => Kind::Stage { name: redact(name) },
            Event::StageDone(name) => Kind::StageDone { name: redact(name) },
            Event::Sandbox(rung) => Kind::Sandbox { rung },
            Event::Warning(message) => Kind::Warning { message: redact(message) },
            Event::Note(message) => Kind::Note { message: redact(message) },
        };
        self.write(at, kind);
    }

    fn tick(&mut self, _board: &Board, _at: Duration) {}

    fn explain(&mut self, at: Duration, explanation: &Explanation) {
        explanation.steps.iter().for_each(|step| self.write(at, Kind::Explained(step)));
    }

    fn flush(&mut self) {
        let _ = self.out.flush();
    }

    fn end(&mut self, board: &Board, at: Duration, end: &End) {
        let seconds = round(at);
        let kind = match end {
            End::Built(Delivered { digest, destinations }) => Kind::Result {
                digest: digest.as_ref(),
                destinations,
                seconds,
                steps: board.steps_but_sources(),
                cached: board.cached(),
            },
            End::Pushed { digest, destinations } => {
                Kind::Result { digest: Some(digest), destinations, seconds, steps: 0, cached: 0 }
            }
            End::Answered => return,
            End::Failed { message, exit_code, report, delivered } => {
                Kind::Error { message, exit_code: *exit_code, report, seconds, delivered: delivered.as_ref() }
            }
        };
        self.write(at, kind);
    }
}

/// Seconds with milliseconds.
fn round(time: Duration) -> f64 {
    time.as_millis() as f64 / 1e3
}

/// The tree of a layer that was built, the diff ID of one that came with an image.
fn layer_name(layer: &Layer) -> String {
    match layer {
        Layer::Base(base) => base.diff_id.to_string(),
        Layer::Built(tree) => tree.to_string(),
    }
}

//! Makes an [`Entry`] and a log from what a build says of itself.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use solver::{Event, Miss, VertexId};

use super::{
    entry::{Asked, BuildId, Ending, Entry, Outcome, Step},
    log::KeptLog,
};
use crate::{
    progress::{Board, Delivered, End, Plain, View},
    redact::redact,
};

/// Listens to one build.
pub struct Recorder {
    entry: Entry,
    /// Steps by their place in the entry.
    places: BTreeMap<VertexId, usize>,
    since: BTreeMap<VertexId, Duration>,
    plain: Plain<KeptLog>,
}

/// What a build leaves in the history.
pub struct Record {
    /// What it did.
    pub entry: Entry,
    /// What it said.
    pub log: Vec<u8>,
}

impl Recorder {
    /// Nothing has happened yet.
    pub fn new(id: BuildId, asked: Asked, log: KeptLog) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let result = Ending::Canceled { exit_code: 0 };
        let (steps, sandbox, elsewhere, distrusted, unanswered) = Default::default();
        let entry =
            Entry { id, at, took_ms: 0, asked, result, steps, sandbox, elsewhere, distrusted, unanswered };
        Self { entry, places: BTreeMap::new(), since: BTreeMap::new(), plain: Plain::new(log) }
    }

    /// Takes note of an event that came `at` after the start, and that the board knows already.
    pub fn event(&mut self, board: &Board, at: Duration, event: &Event) {
        self.plain.event(board, at, event);
        match event {
            Event::Planned(steps) => steps.iter().for_each(|(vertex, label)| self.plan(*vertex, label)),
            Event::Started(vertex) => drop(self.since.entry(*vertex).or_insert(at)),
            Event::Ready(vertex) => self.over(at, *vertex, Outcome::Source),
            // A build that is made once more finds what it has made.
            Event::Cached(vertex, _)
                if self.step(*vertex).is_some_and(|step| step.outcome == Outcome::Ran) => {}
            Event::Cached(vertex, hit) => {
                self.over(at, *vertex, Outcome::Cached);
                if let Some(step) = self.step(*vertex) {
                    (step.definition, step.made) = (Some(hit.definition), hit.made.clone());
                    step.from = hit.from.clone();
                }
            }
            Event::Missed(vertex, miss) => {
                if let Some(step) = self.step(*vertex) {
                    (step.definition, step.miss) = (Some(miss.definition), Some(clean(miss)));
                    (step.made, step.from) = (None, None);
                }
            }
            Event::Done(vertex, _) => self.over(at, *vertex, Outcome::Ran),
            Event::Failed(vertex, why) => {
                let why = self.plain.out().clean(why);
                self.over(at, *vertex, Outcome::Failed(why));
            }
            Event::Cancelled(vertex) => self.over(at, *vertex, Outcome::Canceled),
            Event::Sandbox(rung) => self.entry.sandbox = Some(rung.clone()),
            Event::Log(..)
            | Event::Settled(..)
            | Event::Transfer { .. }
            | Event::Stage(_)
            | Event::StageDone(_)
            | Event::Waiting(..)
            | Event::Warning(_)
            | Event::Note(_) => {}
        }
    }

    /// The build has ended, `at` after the start.
    pub fn end(mut self, board: &Board, at: Duration, end: &End) -> Record {
        self.plain.end(board, at, end);
        self.entry.took_ms = milliseconds(at);
        self.entry.result = match end {
            End::Built(Delivered { digest, destinations }) => Ending::Completed {
                digest: digest.map(|digest| digest.to_string()),
                destinations: destinations.iter().map(|place| redact(place).into_owned()).collect(),
            },
            End::Answered | End::Pushed { .. } => {
                Ending::Completed { digest: None, destinations: Vec::new() }
            }
            End::Failed { exit_code, .. } if *exit_code > 128 => Ending::Canceled { exit_code: *exit_code },
            End::Failed { message, exit_code, .. } => {
                Ending::Error { exit_code: *exit_code, message: self.plain.out().clean(message) }
            }
        };
        Record { entry: self.entry, log: self.plain.into_out().into_bytes() }
    }

    fn plan(&mut self, vertex: VertexId, label: &str) {
        let label = redact(label).into_owned();
        self.since.remove(&vertex);
        if self.step(vertex).is_some_and(|step| step.label == label) {
            return;
        }
        self.places.insert(vertex, self.entry.steps.len());
        self.entry.steps.push(Step {
            vertex: vertex.0,
            stage: stage(&label).to_owned(),
            label,
            outcome: Outcome::Waiting,
            took_ms: 0,
            definition: None,
            made: None,
            from: None,
            miss: None,
        });
    }

    fn step(&mut self, vertex: VertexId) -> Option<&mut Step> {
        self.places.get(&vertex).map(|place| &mut self.entry.steps[*place])
    }

    fn over(&mut self, at: Duration, vertex: VertexId, outcome: Outcome) {
        let took = self.since.get(&vertex).map_or(Duration::ZERO, |since| at.saturating_sub(*since));
        if let Some(step) = self.step(vertex) {
            (step.outcome, step.took_ms) = (outcome, milliseconds(took));
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The stage in `[linux/amd64 build 2/4] RUN make`: alone in having no slash.
fn stage(label: &str) -> &str {
    let prefix = label.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match prefix {
        Some(("internal", _)) | None => "",
        Some((prefix, _)) => {
            prefix.split(' ').find(|word| !word.is_empty() && !word.contains('/')).unwrap_or("")
        }
    }
}

/// What the cache was asked, without the credentials that addresses in arguments may hold.
fn clean(miss: &Miss) -> Miss {
    let pre_image = miss.pre_image.iter().map(|(name, value)| (name.clone(), redact(value).into_owned()));
    Miss { pre_image: pre_image.collect(), ..miss.clone() }
}

//! `layerwright explain`, and `build --explain`: why each step of a build ran, and where those come from that did not.
//!
//! What a build did is read from the [history](crate::history), what is remembered of others from there and from the cache's
//! records; [`solver::explain`] compares. Everything that is compared has gone through [`redact`], as the history has.

mod elsewhere;
mod text;

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use solver::{
    Made, Miss,
    explain::{Fate, Inventories, Known, Origin, Project, Reason, Step, Why},
};

use crate::{
    args::ExplainArgs,
    call::pretty,
    failure::Failure,
    history::{self, Asked, BuildId, Entry, Outcome},
    redact::redact,
    request::{self, Environment},
    spec::call::Format,
};
pub use elsewhere::{Elsewhere, Read};
pub use text::tell;

/// What became of each step of a build, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The build.
    pub id: BuildId,
    /// When it began, Unix seconds.
    pub at: u64,
    /// What it was asked for.
    #[serde(flatten)]
    pub asked: Asked,
    /// Its steps that are no sources, in graph order.
    pub steps: Vec<Explained>,
}

/// What became of a step, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// Its place in the graph.
    pub step: usize,
    /// `[build 2/4] RUN make`
    pub label: String,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it ran in this build, in milliseconds.
    pub duration_ms: u64,
    /// Why it ran, if it did.
    #[serde(flatten)]
    pub why: Option<Why>,
    /// Who made its result, where the cache had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// What the remote cache is called that had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// Looks back at a build when it has ended: completes what the history keeps of it, and explains it if that was asked for.
pub type Explainer = Box<dyn FnOnce(&mut Entry) -> Option<Explanation> + Send>;

/// `layerwright explain`: the text for standard output.
///
/// # Errors
/// There is no such build, or what is kept of it cannot be read.
pub fn run(args: ExplainArgs) -> Result<String, Failure> {
    let ExplainArgs { build, format, root } = args;
    let root = request::store_root(root, &Environment::of_process())?;
    let entry = history::read(&root, &history::find(&root, &build)?)?;
    let explanation = explain(&root, &entry, &|files| executor::inventory::read(&root, files));
    Ok(match format {
        Format::Text => tell(&explanation, history::now()),
        Format::Json => pretty(&explanation),
    })
}

/// What can be said of a build by what its store remembers of it and of those before it, and what remote caches told it.
pub fn explain(root: &Path, entry: &Entry, inventories: &Inventories<'_>) -> Explanation {
    let (earlier, known) = match entry.steps.iter().any(has_run) {
        true => {
            let earlier = earlier(root, entry);
            let known = known(root, entry, &earlier);
            (earlier, known)
        }
        false => (Vec::new(), Vec::new()),
    };
    let mut why = solver::explain::explain(&steps(entry), &known, inventories);
    for (step, why) in entry.steps.iter().zip(&mut why) {
        if is_distrusted(step, entry) {
            why.iter_mut()
                .for_each(|why| *why = Why { reasons: vec![Reason::Distrusted], compared_with: None });
        }
        let reasons = why.iter_mut().flat_map(|why| &mut why.reasons);
        reasons
            .filter(|reason| **reason == Reason::New)
            .for_each(|reason| *reason = new(step, entry, &earlier));
    }
    let told = entry.steps.iter().zip(why).filter(|(step, _)| step.outcome != Outcome::Source);
    let told = told.map(|(step, why)| Explained {
        step: step.vertex,
        label: step.label.clone(),
        outcome: step.outcome.clone(),
        duration_ms: step.took_ms,
        why,
        made: step.made.clone(),
        from: step.from.clone(),
    });
    Explanation { id: entry.id.clone(), at: entry.at, asked: entry.asked.clone(), steps: told.collect() }
}

/// The steps of a build as they are compared.
fn steps(entry: &Entry) -> Vec<Step<'_>> {
    let steps = entry.steps.iter();
    steps
        .map(|step| Step { label: &step.label, miss: step.miss.as_ref().filter(|_| has_run(step)) })
        .collect()
}

fn has_run(step: &history::Step) -> bool {
    fate(step).is_some()
}

fn fate(step: &history::Step) -> Option<Fate> {
    match step.outcome {
        Outcome::Ran => Some(Fate::Ran),
        Outcome::Failed(_) => Some(Fate::Failed),
        Outcome::Canceled => Some(Fate::Stopped),
        Outcome::Waiting | Outcome::Source | Outcome::Cached => None,
    }
}

/// Whether its result is remembered, and nobody who is trusted says so.
fn is_distrusted(step: &history::Step, entry: &Entry) -> bool {
    let counts = |miss: &Miss| !miss.forced && miss.expired.is_none();
    step.miss.as_ref().is_some_and(|miss| counts(miss) && entry.distrusted.contains(&miss.content))
}

/// What is known of a step that is like none that ran.
fn new(step: &history::Step, entry: &Entry, earlier: &[Entry]) -> Reason {
    if !entry.unanswered.is_empty() {
        return Reason::Unknown { caches: entry.unanswered.clone() };
    }
    let borrowed = earlier.iter().find_map(|old| borrowed(old, step.miss.as_ref()?));
    borrowed.unwrap_or(Reason::New)
}

/// Whether a remote cache had the result of a step when it was wanted before. That of several steps in a row it tells at once.
fn borrowed(old: &Entry, miss: &Miss) -> Option<Reason> {
    let had =
        |step: &&history::Step| step.outcome == Outcome::Cached && step.definition == Some(miss.definition);
    let step = old.steps.iter().find(had)?;
    let cache = step.from.as_ref().or_else(|| old.steps.iter().find_map(|step| step.from.as_ref()))?.clone();
    let origin = Origin { at: old.at, build: old.id.to_string(), host: String::new() };
    Some(Reason::Borrowed { cache, origin })
}

/// The builds before one, the newest first. What cannot be read is not known.
fn earlier(root: &Path, entry: &Entry) -> Vec<Entry> {
    let ids = history::list(root).unwrap_or_default();
    let earlier = ids.iter().filter(|id| **id < entry.id);
    earlier.filter_map(|id| history::read(root, id).ok()).collect()
}

/// The steps that ran before a build, by the history and by the records that are left.
fn known(root: &Path, entry: &Entry, earlier: &[Entry]) -> Vec<Known> {
    let asked: BTreeMap<&str, &Asked> = earlier.iter().map(|old| (old.id.as_str(), &old.asked)).collect();
    let project = |build: &str| asked.get(build).map_or(Project::Other, |old| project(old, &entry.asked));
    let remembered = earlier.iter().flat_map(|old| old.steps.iter().filter_map(|step| remembered(old, step)));
    let recorded = executor::cache::records(root).filter_map(|record| {
        let Made { by, took_ms: _ } = record.made;
        let is_earlier = match by.build.parse::<BuildId>() {
            Ok(build) => build < entry.id,
            Err(_) => by.at < entry.at,
        };
        let origin = Origin { at: by.at, build: by.build, host: by.host };
        is_earlier.then(|| Known {
            content: record.content,
            pre_image: shown(&record.pre_image),
            origin,
            fate: Fate::Ran,
            project: Project::Other,
        })
    });
    let all = remembered.chain(recorded);
    let here = all.map(|known| Known { project: project(&known.origin.build), ..known });
    here.chain(entry.elsewhere.iter().cloned()).collect()
}

/// A pre-image as the history has it.
fn shown(pre_image: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    pre_image.iter().map(|(name, value)| (name.clone(), redact(value).into_owned())).collect()
}

fn remembered(entry: &Entry, step: &history::Step) -> Option<Known> {
    let (fate, miss) = (fate(step)?, step.miss.as_ref()?);
    let origin = Origin { at: entry.at, build: entry.id.to_string(), host: String::new() };
    Some(Known {
        content: miss.content,
        pre_image: miss.pre_image.clone(),
        origin,
        fate,
        project: Project::Other,
    })
}

/// What comes on standard input may be anything.
fn project(one: &Asked, other: &Asked) -> Project {
    let is_same = one.dockerfile == other.dockerfile && one.context == other.context;
    if is_same && one.context != "-" { Project::Same } else { Project::Other }
}

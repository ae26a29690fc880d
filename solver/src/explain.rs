//! Why a step ran: what differs between what it was made of and what is remembered.
//!
//! Pure: records, what the history knows of earlier steps, and the inventories that pre-images name come from the caller.
//! A step is compared with the [`Known`] one that is most like it ([`nearest`]), and what differs is told in the words of
//! whoever wrote the Dockerfile: a file, an ARG, the base, the text of the instruction, or the earlier step it began with.

mod differences;
mod files;
mod nearest;

use std::collections::{BTreeMap, BTreeSet};

use oci::{ContentDigest, TreeDigest};
use serde::{Deserialize, Serialize};

use crate::{
    cache::{Made, Miss},
    key::{
        hidden::{hide, seen_beside},
        pre_image::INPUT,
    },
};
pub use files::{Change, FileChange, changes};

/// The files behind one digest of a pre-image, by path from the source's root, without a leading slash. Paths that are
/// not text are shown as people read them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory(pub BTreeMap<String, Item>);

/// One thing of an [`Inventory`], as far as it is part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Permission bits, as they enter the key.
    pub mode: u32,
}

/// What an [`Item`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    /// A directory.
    Directory,
    /// A regular file and its content.
    File(ContentDigest),
    /// A symbolic link and where it points.
    Link(String),
    /// Anything else, in words.
    Other(String),
}

/// Finds the inventory that a digest of a pre-image names, if it is kept.
pub type Inventories<'a> = dyn Fn(&TreeDigest) -> Option<Inventory> + 'a;

/// The steps of the build that is explained, in graph order.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// `[build 2/4] RUN make`
    pub label: &'a str,
    /// What the cache was asked in vain; `None` for a step that it answered, and for sources.
    pub miss: Option<&'a Miss>,
}

/// A step of an earlier build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its content key.
    pub content: TreeDigest,
    /// See [`Record::pre_image`](crate::cache::Record::pre_image).
    pub pre_image: BTreeMap<String, String>,
    /// The build that ran it.
    pub origin: Origin,
    /// What became of it.
    pub fate: Fate,
    /// Whether it is of the same Dockerfile and context.
    pub project: Project,
}

/// The build that a step is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// When it began, Unix seconds.
    pub at: u64,
    /// Its ID in the history of its store; may be empty.
    pub build: String,
    /// The machine it ran on; empty where only the history of this store knows it.
    pub host: String,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It ran; whether its result is still kept is another matter.
    Ran,
    /// It ran, and a remote cache has its result.
    Elsewhere,
    /// It failed.
    Failed,
    /// It was stopped.
    Stopped,
}

/// Whether two builds are of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Project {
    /// Of something else, or nobody knows.
    Other,
    /// The same Dockerfile and context.
    Same,
}

/// Why a step ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// All that differs, at least one thing.
    pub reasons: Vec<Reason>,
    /// The build whose step it was compared with; `None` where it was compared with none.
    pub compared_with: Option<Origin>,
}

/// One thing that differs, or another reason to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Reason {
    /// The cache was not asked: `--no-cache`, `--no-cache-filter`.
    Forced,
    /// What is remembered is older than `--cache-ttl` allows.
    Expired {
        /// Who made it.
        made: Made,
    },
    /// The same step has run before, and its result is not in the store any more.
    Removed {
        /// When it ran last.
        #[serde(flatten)]
        origin: Origin,
    },
    /// A remote cache has its result, but the step ran before that was known, or the result could not be had.
    Late {
        /// When it ran.
        #[serde(flatten)]
        origin: Origin,
    },
    /// Its result is remembered on the word of nobody who is trusted, here or by a remote cache: what else they say of it is
    /// not told.
    Distrusted,
    /// The same step has failed before, and what fails is not kept.
    FailedBefore {
        /// When.
        #[serde(flatten)]
        origin: Origin,
    },
    /// The same step was stopped before.
    StoppedBefore {
        /// When.
        #[serde(flatten)]
        origin: Origin,
    },
    /// Nothing like it has ever run here, and nothing was heard of anything like it.
    New,
    /// Nothing like it has ever run here, but a remote cache had its result for an earlier build.
    Borrowed {
        /// What the cache is called.
        cache: String,
        /// Which build.
        #[serde(flatten)]
        origin: Origin,
    },
    /// The same as far as is known, which is not all: remote caches have not answered.
    Unknown {
        /// What they are called.
        caches: Vec<String>,
    },
    /// The text of the instruction.
    Instruction {
        /// As it was.
        from: String,
        /// As it is.
        to: String,
    },
    /// The text of a heredoc.
    Heredoc {
        /// Its name.
        name: String,
    },
    /// The value of an ARG; `None` where there is none. What another machine had is [hidden](crate::key::hidden).
    Arg {
        /// Its name.
        name: String,
        /// As it was.
        from: Option<String>,
        /// As it is.
        to: Option<String>,
    },
    /// The value of an ENV, as of an ARG.
    Env {
        /// Its name.
        name: String,
        /// As it was.
        from: Option<String>,
        /// As it is.
        to: Option<String>,
    },
    /// Something else that another instruction or the command line says; `None` where nothing is said.
    Setting {
        /// What.
        name: String,
        /// As it was.
        from: Option<String>,
        /// As it is.
        to: Option<String>,
    },
    /// An image that it works on, or takes files from.
    Base {
        /// What it was called, with its digest.
        from: String,
        /// What it is called.
        to: String,
    },
    /// An earlier step of the same build has another result, or one that it was not yet seen with.
    Step {
        /// The first one with a reason of its own.
        label: String,
    },
    /// It comes after another step than before.
    Place {
        /// What it came after.
        from: String,
        /// What it comes after.
        to: String,
    },
    /// Files that are copied.
    Files {
        /// All that differ, by path.
        changes: Vec<FileChange>,
    },
    /// Files that are copied differ, but which is not known: what they were is not remembered, or only what no list has
    /// (which of them are one file, capabilities, and of files of a stage owners and times).
    SomeFiles {
        /// What is picked.
        picked: String,
        /// Why nothing more is known.
        unknown: Unknown,
    },
}

/// Why it is not known which files differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unknown {
    /// There is no list of what there was, or of what there is.
    NoList,
    /// The lists are the same: hard links or capabilities differ.
    SameList,
}

/// Says of each step that ran why it did, in the order of `steps`; `None` for the others.
pub fn explain(steps: &[Step<'_>], known: &[Known], inventories: &Inventories<'_>) -> Vec<Option<Why>> {
    let mut explained = Explained { steps, roots: BTreeMap::new() };
    let mut answers = Vec::new();
    for step in steps {
        let why = step.miss.map(|miss| explained.why(miss, known, inventories));
        if let Some(why) = &why {
            explained.note(step.label, why);
        }
        answers.push(why);
    }
    answers
}

/// Of all steps that are known, those that some of a build's are compared with: [`explain`] says the same when it is given
/// these and no others.
pub fn compared<'k>(steps: &[Step<'_>], known: &'k [Known]) -> Vec<&'k Known> {
    let mut compared: Vec<&Known> = Vec::new();
    for miss in steps.iter().filter_map(|step| step.miss) {
        let found = same(miss, known).or_else(|| nearest::nearest(miss, steps, known));
        compared.extend(found.filter(|found| !compared.contains(found)));
    }
    compared
}

/// The very same step.
fn same<'k>(miss: &Miss, known: &'k [Known]) -> Option<&'k Known> {
    known.iter().filter(|known| known.content == miss.content).max_by_key(|known| &known.origin)
}

/// What has been explained so far.
struct Explained<'a> {
    steps: &'a [Step<'a>],
    /// Of each step that ran, by its label, the steps that the change began with.
    roots: BTreeMap<&'a str, BTreeSet<String>>,
}

impl<'a> Explained<'a> {
    fn why(&self, miss: &Miss, known: &[Known], inventories: &Inventories<'_>) -> Why {
        let alone = |reason| Why { reasons: vec![reason], compared_with: None };
        if miss.forced {
            return alone(Reason::Forced);
        }
        if let Some(made) = &miss.expired {
            return alone(Reason::Expired { made: made.clone() });
        }
        if let Some(same) = same(miss, known) {
            let origin = same.origin.clone();
            return alone(match same.fate {
                Fate::Ran => Reason::Removed { origin },
                Fate::Elsewhere => Reason::Late { origin },
                Fate::Failed => Reason::FailedBefore { origin },
                Fate::Stopped => Reason::StoppedBefore { origin },
            });
        }
        let Some(nearest) = nearest::nearest(miss, self.steps, known) else {
            return self.merged(miss).unwrap_or_else(|| alone(Reason::New));
        };
        let new = &miss.pre_image;
        let old = seen_beside(&nearest.pre_image, new, &hide(new));
        let reasons = differences::differences(&old, new, &self.roots, inventories);
        Why { reasons, compared_with: Some(nearest.origin.clone()) }
    }

    /// A merge has nothing of its own: it is new where the copy that it lays on top is.
    fn merged(&self, miss: &Miss) -> Option<Why> {
        let is_merge = miss.pre_image.get("op").is_some_and(|op| op == "merge");
        let copied = miss.pre_image.get(&format!("{INPUT}1")).filter(|_| is_merge)?;
        let step = |label: &String| Reason::Step { label: label.clone() };
        let reasons = self.roots.get(copied.as_str())?.iter().map(step).collect();
        Some(Why { reasons, compared_with: None })
    }

    /// Remembers what a step's change began with: the steps before it, where nothing else differs, or itself.
    fn note(&mut self, label: &'a str, why: &Why) {
        let before = |reason: &Reason| match reason {
            Reason::Step { label } => Some(label.clone()),
            _ => None,
        };
        let roots: Option<BTreeSet<String>> = why.reasons.iter().map(before).collect();
        self.roots.insert(label, roots.unwrap_or_else(|| BTreeSet::from([label.to_owned()])));
    }
}

/// What a label says without the place in its stage: `[build 2/4] RUN make` is `RUN make`.
pub fn text_of(label: &str) -> &str {
    split(label).1
}

/// A label's place, if it has one, and its text.
fn split(label: &str) -> (&str, &str) {
    let rest = label.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    rest.unwrap_or(("", label))
}

#[cfg(test)]
mod tests;

//! What is remembered of a build.
//!
//! An ID is the time at which the build began, to the microsecond, and three random digits: names sort by age, and builds
//! that begin at once do not meet. An entry is written once, when its build has ended, and never changed. It holds no
//! secret and no credentials: [`super::Recorder`] takes them out of every text.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use oci::TreeDigest;
use serde::{Deserialize, Serialize};
use solver::{Made, Miss, explain::Known};

/// Names a build of a store: `20261121T140501Z-3f9c21ab`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(String);

/// A text that names no build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no ID of a build: expected one like 20261121T140501Z-3f9c21ab")]
pub struct BuildIdError(String);

impl BuildId {
    /// A new ID for a build that begins now.
    pub fn now() -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Keyed by the kernel's random bytes, anew in every process.
        let mut random = RandomState::new().build_hasher();
        random.write_u32(std::process::id());
        let (micros, random) = (at.subsec_micros(), random.finish() & 0xfff);
        Self(format!("{}-{micros:05x}{random:03x}", compact(at.as_secs())))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether somebody who writes this means this build: the beginning of the ID, or of what follows the second.
    pub fn is_meant_by(&self, text: &str) -> bool {
        let fraction = self.0.split_once('-').map_or("", |(_, fraction)| fraction);
        !text.is_empty() && (self.0.starts_with(text) || fraction.starts_with(text))
    }
}

impl FromStr for BuildId {
    type Err = BuildIdError;

    fn from_str(text: &str) -> Result<Self, BuildIdError> {
        let is_hex =
            |part: &str| part.len() == 8 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_time = |part: &str| {
            let bytes = part.as_bytes();
            let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
            bytes.len() == 16 && digits(0..8) && bytes[8] == b'T' && digits(9..15) && bytes[15] == b'Z'
        };
        match text.split_once('-') {
            Some((time, random)) if is_time(time) && is_hex(random) => Ok(Self(text.to_owned())),
            _ => Err(BuildIdError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for BuildId {
    type Error = BuildIdError;

    fn try_from(text: String) -> Result<Self, BuildIdError> {
        text.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A build that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its ID; records it made are signed with it.
    pub id: BuildId,
    /// When it began, Unix seconds.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What it was asked for.
    pub asked: Asked,
    /// How it ended.
    pub result: Ending,
    /// Its steps, in graph order; none where it ended before it was planned.
    pub steps: Vec<Step>,
    /// What its commands ran in; none where none ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Steps of builds on other machines that those that ran are compared with, as far as remote caches have told of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Known>,
    /// Content keys of steps that ran though somebody remembers them who is not trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distrusted: Vec<TreeDigest>,
    /// What the remote caches are called that have not answered all that they were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<String>,
}

/// What a build was asked for, as far as people tell builds from each other by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The Dockerfile.
    pub dockerfile: String,
    /// The main context.
    pub context: String,
    /// `--target`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `--platform`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Names that the image was to have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "status")]
pub enum Ending {
    /// Well.
    Completed {
        /// Digest of the manifest or index; `None` where only files were wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        /// Where it went, in words.
        destinations: Vec<String>,
    },
    /// With an error.
    Error {
        /// The exit code.
        exit_code: u8,
        /// Why, in one line.
        message: String,
    },
    /// By a signal.
    Canceled {
        /// The exit code.
        exit_code: u8,
    },
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its place in the graph.
    pub vertex: usize,
    /// `[build 2/4] RUN make`
    pub label: String,
    /// The stage in the label; empty where it names none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it ran, in milliseconds; 0 for what did not run.
    pub took_ms: u64,
    /// Its definition key, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<TreeDigest>,
    /// Who made the result that the cache had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// What the remote cache is called that had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the cache was asked in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<Miss>,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "why")]
pub enum Outcome {
    /// The build ended before it.
    Waiting,
    /// A source: its content became known.
    Source,
    /// The cache had it.
    Cached,
    /// It ran.
    Ran,
    /// It failed, and why.
    Failed(String),
    /// It was stopped.
    Canceled,
}

impl Entry {
    /// Steps that are no sources.
    pub fn counted(&self) -> impl Iterator<Item = &Step> {
        // A context that could not be read was a source, too.
        let is_source =
            |step: &Step| step.outcome == Outcome::Source || step.label.starts_with("[internal] ");
        self.steps.iter().filter(move |step| !is_source(step))
    }

    /// How many steps the cache had.
    pub fn cached(&self) -> usize {
        self.steps.iter().filter(|step| step.outcome == Outcome::Cached).count()
    }

    /// How long the steps that the cache had took when they ran, in milliseconds.
    pub fn saved_ms(&self) -> u64 {
        self.steps.iter().filter_map(|step| step.made.as_ref()).map(|made| made.took_ms).sum()
    }
}

/// A time of Unix seconds as `20261121T140501Z`.
fn compact(at: u64) -> String {
    let text = exporter::assemble::rfc3339(i64::try_from(at).unwrap_or(i64::MAX));
    text.replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_age_and_do_not_meet() {
        let ids: Vec<BuildId> = (0..1000).map(|_| BuildId::now()).collect();
        let mut sorted = ids.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), ids.len());
        let micros = |id: &BuildId| id.0[..id.0.len() - 3].to_owned();
        assert!(ids.windows(2).all(|pair| micros(&pair[0]) <= micros(&pair[1])));
        assert!(ids.iter().all(|id| id.as_str().parse().as_ref() == Ok(id)));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in
            ["", "last", "20261121T140501Z", "20261121T140501Z-3f9c21aG", "../20261121T140501Z-3f9c21ab"]
        {
            assert!(text.parse::<BuildId>().is_err(), "{text}");
        }
    }
}

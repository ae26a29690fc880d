//! What has to be in which repository, and how far that is. Pure bookkeeping: nothing is sent here.
//!
//! All repositories of one registry share its blobs: one of them is brought a blob, the others mount it from there, one
//! worker after the other repository, so nothing is sent twice.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use oci::{Reference, Sha256Digest, registry::Pushed};

use super::{ExportError, parcel::Blob};

/// How long a registry is believed to have what it said it has, without being asked again.
const FRESH: Duration = Duration::from_secs(10);

/// Everything about one registry.
#[derive(Default)]
pub(super) struct Host {
    /// Blobs to be brought, in order.
    queue: VecDeque<Sha256Digest>,
    blobs: BTreeMap<Sha256Digest, Task>,
    /// Workers that have been hired.
    pub(super) workers: usize,
}

/// A blob and where it has to be.
struct Task {
    blob: Blob,
    /// Repositories, by their names.
    wanted: BTreeSet<String>,
    /// Those that have it.
    landed: BTreeMap<String, Landed>,
    turn: Turn,
}

/// How a blob came into a repository, and when that was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Landed {
    pub(super) how: Pushed,
    pub(super) at: Instant,
}

/// Whose turn it is.
enum Turn {
    Queued,
    Running,
    Over(Result<(), ExportError>),
}

/// What a worker is to do.
pub(super) struct Job {
    pub(super) blob: Blob,
    /// Repositories that need it.
    pub(super) to: Vec<String>,
    /// One that has it already.
    pub(super) from: Option<String>,
}

/// What becomes of a blob that could not be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// It stays so.
    Final,
    /// It is tried again, if that may help.
    Again,
}

impl Host {
    /// Wants a blob in a repository. Says whether there is work.
    pub(super) fn want(&mut self, blob: &Blob, name: &Reference, failed: Failed) -> bool {
        let digest = blob.descriptor.digest;
        let task = self.blobs.entry(digest).or_insert_with(|| Task {
            blob: blob.clone(),
            wanted: BTreeSet::new(),
            landed: BTreeMap::new(),
            turn: Turn::Over(Ok(())),
        });
        task.wanted.insert(name.repository.clone());
        let is_open = match &task.turn {
            Turn::Queued | Turn::Running => false,
            Turn::Over(Ok(())) => task.is_wanted(),
            Turn::Over(Err(error)) => failed == Failed::Again && blob.is_worth_another_try(error),
        };
        if is_open {
            task.turn = Turn::Queued;
            self.queue.push_back(digest);
        }
        is_open
    }

    /// The next blob in line.
    pub(super) fn take(&mut self) -> Option<Job> {
        let task = self.blobs.get_mut(&self.queue.pop_front()?).expect("what is queued is known");
        task.turn = Turn::Running;
        let missing = task.wanted.iter().filter(|name| !task.landed.contains_key(*name));
        Some(Job {
            blob: task.blob.clone(),
            to: missing.cloned().collect(),
            from: task.landed.keys().next().cloned(),
        })
    }

    /// What came of it.
    pub(super) fn settle(
        &mut self,
        digest: Sha256Digest,
        landed: Vec<(String, Landed)>,
        result: Result<(), ExportError>,
    ) {
        let task = self.blobs.get_mut(&digest).expect("what has run is known");
        task.landed.extend(landed);
        task.turn = Turn::Over(result);
        if matches!(task.turn, Turn::Over(Ok(()))) && task.is_wanted() {
            task.turn = Turn::Queued;
            self.queue.push_back(digest);
        }
    }

    /// Begins nothing more.
    pub(super) fn give_up(&mut self) {
        self.queue.clear();
    }

    /// Whether all of these blobs are over, and the first failure among them.
    pub(super) fn outcome<'a>(&mut self, blobs: impl Iterator<Item = &'a Sha256Digest>) -> Outcome {
        let mut outcome = Outcome::Done;
        for digest in blobs {
            let task = self.blobs.get_mut(digest).expect("it was wanted");
            match &mut task.turn {
                Turn::Over(Ok(())) => {}
                Turn::Over(failed) => {
                    let Err(error) = std::mem::replace(failed, Err(ExportError::Cancelled)) else { continue };
                    return Outcome::Failed(error);
                }
                Turn::Queued | Turn::Running => outcome = Outcome::Open,
            }
        }
        outcome
    }

    /// Whether a repository must be asked again for these blobs: something was moved, or it was asked too long ago.
    pub(super) fn is_doubtful<'a>(
        &self,
        repository: &str,
        mut blobs: impl Iterator<Item = &'a Sha256Digest>,
    ) -> bool {
        blobs.any(|digest| {
            let landed = self.blobs.get(digest).and_then(|task| task.landed.get(repository));
            landed.is_none_or(|landed| landed.how != Pushed::Existed || landed.at.elapsed() > FRESH)
        })
    }
}

/// How far some blobs are.
pub(super) enum Outcome {
    /// There is something left to do.
    Open,
    /// All are where they should be.
    Done,
    /// One of them is not.
    Failed(ExportError),
}

impl Task {
    /// Whether a repository waits for it.
    fn is_wanted(&self) -> bool {
        self.wanted.iter().any(|name| !self.landed.contains_key(name))
    }
}

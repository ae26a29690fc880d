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
        let task = self.task(blob);
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

    /// A repository has a blob already.
    pub(super) fn has(&mut self, blob: &Blob, repository: &str) {
        let landed = Landed { how: Pushed::Existed, at: Instant::now() };
        self.task(blob).landed.insert(repository.to_owned(), landed);
    }

    /// How many wait in line.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    fn task(&mut self, blob: &Blob) -> &mut Task {
        self.blobs.entry(blob.descriptor.digest).or_insert_with(|| Task {
            blob: blob.clone(),
            wanted: BTreeSet::new(),
            landed: BTreeMap::new(),
            turn: Turn::Over(Ok(())),
        })
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

    /// A repository that a blob has come into.
    pub(super) fn landed(&self, blob: &Sha256Digest) -> Option<&str> {
        self.blobs.get(blob).and_then(|task| task.landed.keys().next()).map(String::as_str)
    }

    /// Whether a blob is on its way: what was given up is not.
    pub(super) fn is_coming(&self, blob: &Sha256Digest) -> bool {
        self.blobs.get(blob).is_some_and(|task| match task.turn {
            Turn::Running => true,
            Turn::Queued => self.queue.contains(blob),
            Turn::Over(_) => false,
        })
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

#[cfg(test)]
mod tests {
    use oci::{Descriptor, MediaType};

    use super::*;
    use crate::upload::Place;

    fn blob(bytes: &[u8]) -> Blob {
        Blob { descriptor: Descriptor::of(MediaType::OciLayer, bytes), place: Place::Memory(bytes.into()) }
    }

    fn name(repository: &str) -> Reference {
        format!("localhost:5000/{repository}").parse().expect("a reference")
    }

    fn landed(repository: &str, how: Pushed) -> Vec<(String, Landed)> {
        vec![(repository.to_owned(), Landed { how, at: Instant::now() })]
    }

    fn is_done(host: &mut Host, blob: &Blob) -> bool {
        matches!(host.outcome([&blob.descriptor.digest].into_iter()), Outcome::Done)
    }

    #[test]
    fn a_blob_is_brought_once_to_each_repository_that_wants_it() {
        let (mut host, blob) = (Host::default(), blob(b"layer"));
        let digest = blob.descriptor.digest;
        assert!(host.want(&blob, &name("a"), Failed::Final));
        assert!(!host.want(&blob, &name("a"), Failed::Final) && !host.want(&blob, &name("b"), Failed::Final));
        let job = host.take().expect("wanted");
        assert_eq!((job.to, job.from), (vec!["a".to_owned(), "b".to_owned()], None));
        assert!(host.take().is_none() && !is_done(&mut host, &blob));
        // Meanwhile a third one, and the second one fails to get it.
        assert!(!host.want(&blob, &name("c"), Failed::Final));
        host.settle(digest, landed("a", Pushed::Uploaded), Err(ExportError::Cancelled));
        assert!(host.take().is_none());
        assert!(host.want(&blob, &name("c"), Failed::Again));
        let job = host.take().expect("tried again");
        assert_eq!((job.to, job.from), (vec!["b".to_owned(), "c".to_owned()], Some("a".to_owned())));
        host.settle(digest, landed("b", Pushed::Mounted), Ok(()));
        assert_eq!(host.take().expect("one is left").to, ["c"]);
        host.settle(digest, landed("c", Pushed::Mounted), Ok(()));
        assert!(is_done(&mut host, &blob) && !host.want(&blob, &name("a"), Failed::Again));
    }

    #[test]
    fn who_waits_for_a_blob_knows_whether_it_comes() {
        let (mut host, blob) = (Host::default(), blob(b"layer"));
        let digest = blob.descriptor.digest;
        assert!(!host.is_coming(&digest) && host.landed(&digest).is_none());
        host.want(&blob, &name("a"), Failed::Final);
        assert!(host.is_coming(&digest));
        host.take().expect("wanted");
        assert!(host.is_coming(&digest));
        host.settle(digest, landed("a", Pushed::Uploaded), Ok(()));
        assert!(!host.is_coming(&digest) && host.landed(&digest) == Some("a"));
        host.want(&blob, &name("b"), Failed::Final);
        host.give_up();
        assert!(!host.is_coming(&digest), "nobody will bring it there");
    }

    #[test]
    fn what_cannot_be_read_here_stays_a_failure() {
        let blob = blob(b"layer");
        let digest = blob.descriptor.digest;
        let unreadable = ExportError::Blob { digest, source: std::io::ErrorKind::NotFound.into() };
        let vanished = ExportError::Vanished { reference: Box::new(name("a")), digest };
        for (failure, is_tried_again) in [(unreadable, false), (vanished, true)] {
            let mut host = Host::default();
            host.want(&blob, &name("a"), Failed::Final);
            host.take().expect("wanted");
            host.settle(digest, Vec::new(), Err(failure));
            assert!(!host.want(&blob, &name("a"), Failed::Final), "nothing is tried again early");
            assert_eq!(host.want(&blob, &name("a"), Failed::Again), is_tried_again);
            assert_eq!(host.take().is_some(), is_tried_again);
        }
    }

    #[test]
    fn a_repository_is_asked_again_if_anything_was_moved() {
        let blobs = [blob(b"one"), blob(b"two")];
        for (how, is_doubtful) in
            [(Pushed::Existed, false), (Pushed::Mounted, true), (Pushed::Uploaded, true)]
        {
            let mut host = Host::default();
            for (blob, how) in blobs.iter().zip([Pushed::Existed, how]) {
                host.want(blob, &name("a"), Failed::Final);
                host.take().expect("wanted");
                host.settle(blob.descriptor.digest, landed("a", how), Ok(()));
            }
            let digests = || blobs.iter().map(|blob| &blob.descriptor.digest);
            assert_eq!(host.is_doubtful("a", digests()), is_doubtful);
            assert!(host.is_doubtful("b", digests()), "nothing is known of it");
        }
    }
}

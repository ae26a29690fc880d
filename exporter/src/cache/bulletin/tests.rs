//! One builder on a cache in a directory, where the test says what others say.

use oci::RemoteLayers;
use tempfile::TempDir;

use super::*;
use crate::cache::{Artifact, ArtifactKind, DirectoryStorage, Reading, Seen, samples};

/// Ten times what anything here takes.
const WATCHDOG: Duration = Duration::from_secs(60);

struct Ground {
    storage: Arc<DirectoryStorage>,
    cancel: Cancel,
    fate: Arc<Mutex<Fate>>,
    content: TreeDigest,
    reader: Arc<RemoteCache>,
    bulletin: CacheBulletin,
    _directory: TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let storage = Arc::new(DirectoryStorage::new(directory.path()));
        let (cancel, fate) = (Cancel::default(), Arc::new(Mutex::new(Fate::Unknown)));
        let reading = Reading {
            storage: Arc::clone(&storage) as _,
            trust: TrustKeys::default(),
            layers: RemoteLayers::default(),
            seen: Seen::default(),
            events: Arc::new(|_| {}),
            cancel: cancel.clone(),
        };
        let reader = Arc::new(RemoteCache::new(reading, None));
        let known = Arc::clone(&fate);
        let joining = Joining {
            storage: Arc::clone(&storage) as _,
            reader: Arc::clone(&reader),
            fates: Box::new(move |_| *known.lock().expect("no panic")),
            trust: TrustKeys::default(),
            sign: None,
            cancel: cancel.clone(),
        };
        let bulletin = CacheBulletin::new(joining).expect("this machine has random numbers");
        let content = samples::copy().record.content;
        Self { storage, cancel, fate, content, reader, bulletin, _directory: directory }
    }

    /// What is said of the step.
    fn said(&self) -> Option<Said> {
        let named = self.storage.get(&names::running(&self.content), &Cancel::default());
        match named.expect("a directory can be read") {
            Some(Named::Announcement(announcement)) => Some(announcement.said),
            None => None,
            Some(other) => panic!("{other:?}"),
        }
    }

    /// The sample's record is there.
    fn put_record(&self) {
        let document = samples::copy().to_document().expect("a record");
        let artifact = Artifact { kind: ArtifactKind::Record, document, signature: None, blobs: Vec::new() };
        let put = self.storage.put(&[&names::content(&self.content)], &artifact, &Cancel::default());
        put.expect("a directory can be written");
    }

    /// Another builder says this.
    fn say(&self, count: u64, state: State) {
        let announcement = Announcement::new(Said { builder: Builder(7), count, state }, "", None);
        let said = self.storage.announce(&names::running(&self.content), &announcement, &Cancel::default());
        said.expect("a directory can be written");
    }

    fn wait_for(&self, state: State) {
        let is_said = || self.said().is_some_and(|said| said.state == state);
        wait_until(is_said, &format!("{state}, and not {:?}", self.said()));
    }
}

fn wait_until(is_so: impl Fn() -> bool, what: &str) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WATCHDOG, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_hears_of_another_stops_and_gets_what_comes_of_it() {
    let (ground, (sender, notices)) = (Ground::new(), mpsc::channel());
    let tell = move |notice| sender.send(notice).expect("the test waits for it");
    let guard = ground.bulletin.attend(&ground.content, Box::new(tell));
    let elsewhere = (1..).find_map(|count| {
        ground.say(count, State::Running);
        notices.recv_timeout(Duration::from_millis(20)).ok()
    });
    assert_eq!(elsewhere, Some(Notice::Elsewhere));
    ground.put_record();
    ground.say(1 << 32, State::Done);
    match notices.recv_timeout(WATCHDOG) {
        Ok(Notice::Found(found)) => assert_eq!(found.record.content, ground.content),
        other => panic!("{other:?}"),
    }
    drop(guard);
    assert_eq!(ground.said().map(|said| said.builder), Some(Builder(7)), "it has nothing to add");
}

#[test]
fn what_is_free_is_announced_when_it_has_begun_again() {
    let (ground, (sender, notices)) = (Ground::new(), mpsc::channel());
    let tell = move |notice| sender.send(notice).expect("the test waits for it");
    let _guard = ground.bulletin.attend(&ground.content, Box::new(tell));
    let elsewhere = (1..).find_map(|count| {
        ground.say(count, State::Running);
        notices.recv_timeout(Duration::from_millis(20)).ok()
    });
    assert_eq!(elsewhere, Some(Notice::Elsewhere));
    ground.say(1 << 32, State::Left);
    assert_eq!(notices.recv_timeout(WATCHDOG), Ok(Notice::Free));
    assert_eq!(ground.said().map(|said| said.state), Some(State::Left));
    ground.bulletin.begin(&ground.content);
    ground.wait_for(State::Running);
}

#[test]
fn a_record_that_was_not_good_enough_is_no_news() {
    let ground = Ground::new();
    ground.put_record();
    ground.say(1, State::Done);
    let key = solver::cache::Key::Content(ground.content);
    solver::DistantCache::lookup(&*ground.reader, &[key], &Cancel::default(), &|answers| {
        assert!(answers.iter().all(|(_, found)| found.is_some()), "it may be too old");
    });
    let _guard = ground.bulletin.attend(&ground.content, Box::new(|notice| panic!("{notice:?}")));
    ground.wait_for(State::Running);
}

#[test]
fn nothing_is_announced_for_a_build_that_is_over() {
    let ground = Ground::new();
    let guard = ground.bulletin.attend(&ground.content, Box::new(|notice| panic!("{notice:?}")));
    ground.wait_for(State::Running);
    *ground.fate.lock().expect("no panic") = Fate::Coming;
    drop(guard);
    let Ground { bulletin, .. } = ground;
    let shared = Arc::downgrade(&bulletin.shared);
    drop(bulletin);
    wait_until(|| shared.strong_count() == 0, "its thread to end");
}

#[test]
fn how_a_step_has_ended_is_told_as_it_was() {
    thread::scope(|scope| {
        for (fate, has_failed, is_cancelled, state) in [
            (Fate::There, false, false, State::Done),
            (Fate::There, false, true, State::Done),
            (Fate::Coming, false, true, State::Left),
            (Fate::Lost, false, false, State::Failed),
            (Fate::Unknown, true, false, State::Failed),
            (Fate::Unknown, false, false, State::Left),
        ] {
            scope.spawn(move || {
                let ground = Ground::new();
                let guard = ground.bulletin.attend(&ground.content, Box::new(|notice| panic!("{notice:?}")));
                ground.wait_for(State::Running);
                *ground.fate.lock().expect("no panic") = fate;
                if has_failed {
                    ground.bulletin.fail(&ground.content);
                }
                if is_cancelled {
                    ground.cancel.request();
                }
                drop(guard);
                ground.wait_for(state);
            });
        }
    });
}

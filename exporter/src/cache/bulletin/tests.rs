//! One builder on a cache in a directory, where the test says what others say.

use oci::RemoteLayers;
use tempfile::TempDir;

use super::*;
use crate::cache::{DirectoryStorage, Reading, Seen};

/// Ten times what anything here takes.
const WATCHDOG: Duration = Duration::from_secs(60);

struct Ground {
    storage: Arc<DirectoryStorage>,
    cancel: Cancel,
    fate: Arc<Mutex<Fate>>,
    content: TreeDigest,
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
        let known = Arc::clone(&fate);
        let joining = Joining {
            storage: Arc::clone(&storage) as _,
            reader: Arc::new(RemoteCache::new(reading, None)),
            fates: Box::new(move |_| *known.lock().expect("no panic")),
            trust: TrustKeys::default(),
            sign: None,
            cancel: cancel.clone(),
        };
        let bulletin = CacheBulletin::new(joining).expect("this machine has random numbers");
        let content = TreeDigest::from(blake3::hash(b"a step"));
        Self { storage, cancel, fate, content, bulletin, _directory: directory }
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

//! What is made ready while a distant cache is waited for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    chain,
    distant::{Ground, from_far, records_of},
    fake::{Dockerfile, World},
};
use crate::{
    cache::{Key, Record},
    event::Event,
    traits::{Answer, Cancel, DistantCache, Found},
};

/// A distant cache that lets time pass when it is asked for something, and answers when something has been made ready.
struct Tardy {
    records: HashMap<Key, Record>,
    /// Definition keys are answered at once.
    only_content: bool,
    /// So many steps are made ready before it goes on.
    waits_for: usize,
    /// What time it is when it is asked, and when it goes on, in milliseconds.
    times: [u64; 2],
    clock: Arc<AtomicU64>,
    prepared: Arc<Mutex<Vec<String>>>,
}

impl Tardy {
    fn on(world: &World, records: HashMap<Key, Record>) -> Self {
        let (clock, prepared) = (Arc::default(), Arc::clone(&world.prepared));
        Self { records, only_content: false, waits_for: 1, times: [50, 100], clock, prepared }
    }
}

impl DistantCache for Tardy {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        let found = |record: &Record| Found { record: record.clone(), cache: "far".to_owned() };
        let answer = || tell(keys.iter().map(|key| (*key, self.records.get(key).map(found))).collect());
        if self.only_content && matches!(keys, [Key::Definition(_), ..]) {
            return answer();
        }
        self.clock.store(self.times[0], Ordering::SeqCst);
        while self.prepared.lock().expect("no panic").len() < self.waits_for {
            if cancel.is_requested() {
                return;
            }
            thread::yield_now();
        }
        self.clock.store(self.times[1], Ordering::SeqCst);
        answer();
    }
}

fn run(file: &Dockerfile, mut ground: Ground, cache: Tardy) -> (Ground, Vec<oci::Snapshot>) {
    ground.clock = Some(Arc::clone(&cache.clock));
    let images = ground.build(file, &[Arc::new(cache)], &|_| ()).expect("builds");
    (ground, images)
}

fn prepared(ground: &Ground) -> Vec<String> {
    let mut prepared = ground.world.prepared.lock().expect("no panic").clone();
    prepared.sort();
    prepared
}

#[test]
fn what_a_cache_answers_later_is_called_back_before_anybody_has_seen_it() {
    let file = chain(&["write a 1", "wait"]);
    let (records, expected) = records_of(&file);
    let mut ground = Ground::new(true);
    ground.world.is_slow_ground = true;
    let cache = Tardy::on(&ground.world, records);
    let (ground, images) = run(&file, ground, cache);
    assert_eq!((images, ground.hits()), (expected, from_far(&[1, 2])));
    assert_eq!(prepared(&ground), ["write a 1"], "the one that could run next");
    assert_eq!(ground.world.ran(), [""; 0]);
    let events = ground.events.lock().expect("no panic");
    assert!(!events.iter().any(|event| matches!(event, Event::Started(_) | Event::Missed(..))), "{events:?}");
}

#[test]
fn what_no_cache_has_stands_ready_when_nobody_waits_any_more() {
    let file = chain(&["write a 1", "write b 1"]);
    let ground = Ground::new(true);
    // It has nothing, and says so when nobody listens any more.
    let cache = Tardy { times: [50, 1000], ..Tardy::on(&ground.world, HashMap::new()) };
    let (ground, _) = run(&file, ground, cache);
    assert_eq!(prepared(&ground), ["write a 1"]);
    assert_eq!(ground.world.ran(), ["write a 1", "write b 1"]);
}

#[test]
fn no_more_is_made_ready_than_could_run() {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    for command in ["write a 1", "write b 1", "write c 1"] {
        let step = file.run(base, command);
        file.target(step);
    }
    for (jobs, expected) in [(1, 1), (2, 2), (8, 3)] {
        let ground = Ground { jobs, ..Ground::new(true) };
        let cache =
            Tardy { waits_for: expected, times: [50, 1000], ..Tardy::on(&ground.world, HashMap::new()) };
        let (ground, _) = run(&file, ground, cache);
        assert_eq!((prepared(&ground).len(), ground.world.ran().len()), (expected, 3));
    }
}

#[test]
fn who_waits_for_a_content_key_is_made_ready_for_too() {
    let (records, expected) = records_of(&chain(&["write a 1", "wait"]));
    let file = chain(&["write a 1 # other", "wait"]);
    let ground = Ground::new(true);
    let cache = Tardy { only_content: true, ..Tardy::on(&ground.world, records) };
    let (ground, images) = run(&file, ground, cache);
    assert_eq!((images, ground.hits()), (expected, from_far(&[2])));
    assert_eq!(ground.world.ran(), ["write a 1 # other"]);
    assert_eq!(prepared(&ground)[0], "write a 1 # other");
}

#[test]
fn what_a_near_cache_has_by_its_content_is_not_made_ready() {
    let file = chain(&["write a 1"]);
    let (mut records, expected) = records_of(&file);
    records.retain(|key, _| matches!(key, Key::Content(_)));
    let ground = Ground { near: super::fake::Memory(records.into()), ..Ground::new(true) };
    let clock = Arc::new(AtomicU64::new(0));
    let (told, prepared_for) = (Arc::clone(&clock), Arc::clone(&ground.world.prepared));
    let silent = Silent { clock: told };
    let ground = Ground { clock: Some(clock), ..ground };
    assert_eq!(ground.build(&file, &[Arc::new(silent)], &|_| ()).expect("builds"), expected);
    assert_eq!(*prepared_for.lock().expect("no panic"), [""; 0]);
    assert_eq!(ground.world.ran(), [""; 0]);
}

/// Says nothing while time passes, a little with every look.
struct Silent {
    clock: Arc<AtomicU64>,
}

impl DistantCache for Silent {
    fn lookup(&self, _: &[Key], cancel: &Cancel, _: &(dyn Fn(Vec<Answer>) + Sync)) {
        while !cancel.is_requested() {
            self.clock.fetch_add(1, Ordering::SeqCst);
            thread::sleep(std::time::Duration::from_micros(100));
        }
    }
}

#[test]
fn nothing_is_made_ready_a_second_time_when_its_content_key_is_waited_for_too() {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    for command in ["write a 1", "write b 1"] {
        let step = file.run(base, command);
        file.target(step);
    }
    // With one worker what is begun ends in that order, and only the first is begun before there are content keys.
    let mut ground = Ground { jobs: 1, ..Ground::new(true) };
    let clock = Arc::new(AtomicU64::new(0));
    ground.clock = Some(Arc::clone(&clock));
    let cache =
        Twice { clock, content_keys: AtomicUsize::new(0), prepared: Arc::clone(&ground.world.prepared) };
    ground.build(&file, &[Arc::new(cache)], &|_| ()).expect("builds");
    assert_eq!(*ground.world.prepared.lock().expect("no panic"), ["write a 1", "write b 1"]);
    assert_eq!(ground.world.ran().len(), 2);
}

/// Has nothing, and lets time pass before it says so: of definition keys until the first step stands ready, and of content
/// keys, once it has been asked for those of both steps, until the second one does.
struct Twice {
    clock: Arc<AtomicU64>,
    content_keys: AtomicUsize,
    prepared: Arc<Mutex<Vec<String>>>,
}

impl DistantCache for Twice {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        let wait_until = |holds: &dyn Fn() -> bool| {
            while !holds() && !cancel.is_requested() {
                thread::yield_now();
            }
        };
        let is_ready =
            |command: &str| self.prepared.lock().expect("no panic").iter().any(|ready| ready == command);
        if matches!(keys, [Key::Definition(_), ..]) {
            self.clock.store(50, Ordering::SeqCst);
            wait_until(&|| is_ready("write a 1"));
        } else {
            self.content_keys.fetch_add(keys.len(), Ordering::SeqCst);
            wait_until(&|| self.content_keys.load(Ordering::SeqCst) == 2);
            self.clock.store(100, Ordering::SeqCst);
            wait_until(&|| is_ready("write b 1"));
        }
        tell(keys.iter().map(|key| (*key, None)).collect());
    }
}

//! Distant caches, one case at a time: what they answer before, while and after steps run.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use oci::Snapshot;

use super::{
    chain,
    fake::{Dockerfile, Memory, World},
    solved,
    told::{check_events, check_settled},
};
use crate::{
    cache::{Key, Maker, Record},
    event::Event,
    graph::VertexId,
    schedule::{Caches, SolveError, SolveOptions},
    traits::{Answer, Bulletin, CacheBackend, Cancel, DistantCache, Found, RecordWriter},
};

/// A distant cache that answers when a gate is open.
#[derive(Default)]
pub struct Far {
    pub name: &'static str,
    pub records: HashMap<Key, Record>,
    /// Definition keys are answered before it is open.
    pub only_content: bool,
    pub gate: Arc<AtomicBool>,
    pub asked: Mutex<Vec<Key>>,
    pub was_cancelled: AtomicBool,
}

impl DistantCache for Far {
    fn lookup(&self, keys: &[Key], cancel: &Cancel, tell: &(dyn Fn(Vec<Answer>) + Sync)) {
        self.asked.lock().expect("no panic").extend(keys);
        for key in keys {
            let is_free = self.only_content && matches!(key, Key::Definition(_));
            while !is_free && !self.gate.load(Ordering::SeqCst) {
                if cancel.is_requested() {
                    return self.was_cancelled.store(true, Ordering::SeqCst);
                }
                thread::yield_now();
            }
            let found = |record: &Record| Found { record: record.clone(), cache: self.name.to_owned() };
            tell(vec![(*key, self.records.get(key).map(found))]);
        }
    }
}

/// Everything that it was given.
#[derive(Default)]
pub struct Ledger(pub Mutex<Vec<Record>>);

impl RecordWriter for Ledger {
    fn store(&self, record: &Record) {
        self.0.lock().expect("no panic").push(record.clone());
    }
}

/// How a build with distant caches is run, and what came of it.
pub struct Ground {
    pub world: World,
    pub near: Memory,
    pub ledger: Ledger,
    pub events: Mutex<Vec<Event>>,
    pub oldest: u64,
    pub jobs: usize,
    /// Whether distant caches are waited for until they answer, or not at all.
    pub is_patient: bool,
    /// The time that passes between two looks at the clock where they are not.
    pub tick: Duration,
    /// Tells the time instead, in milliseconds.
    pub clock: Option<Arc<AtomicU64>>,
    pub bulletin: Option<Arc<dyn Bulletin>>,
}

impl Ground {
    pub fn new(is_patient: bool) -> Self {
        Self {
            world: World::default(),
            near: Memory::default(),
            ledger: Ledger::default(),
            events: Mutex::default(),
            oldest: 0,
            jobs: 4,
            is_patient,
            tick: Duration::from_secs(1),
            clock: None,
            bulletin: None,
        }
    }

    /// Builds; `on_event` is told of everything after it was noted. What was told is checked.
    pub fn build(
        &self,
        file: &Dockerfile,
        distant: &[Arc<dyn DistantCache>],
        on_event: &(dyn Fn(&Event) + Sync),
    ) -> Result<Vec<Snapshot>, SolveError> {
        let looks = AtomicU32::new(0);
        let clock = || match &self.clock {
            Some(clock) => Duration::from_millis(clock.load(Ordering::SeqCst)),
            None if self.is_patient => Duration::ZERO,
            None => self.tick * (looks.fetch_add(1, Ordering::SeqCst) + 1),
        };
        let near: [&dyn CacheBackend; 1] = [&self.near];
        let caches = Caches {
            near: &near,
            distant,
            writers: &[&self.ledger],
            bulletin: self.bulletin.as_ref(),
            clock: &clock,
        };
        let options = SolveOptions { jobs: self.jobs, oldest: self.oldest, maker: Maker::default() };
        let sink = |event: Event| {
            self.events.lock().expect("no panic").push(event.clone());
            on_event(&event);
        };
        let images = file.solve_far(&self.world, &caches, &options, &sink, &Cancel::default());
        let events = self.events.lock().expect("no panic");
        check_events(file, &events, images.is_ok());
        self.check_ledger(&events, images.is_ok());
        if let Ok(images) = &images {
            check_settled(file, &events, images);
        }
        images
    }

    /// The writers have the record of every step that ran, and of all cached ones that have one, each once.
    fn check_ledger(&self, events: &[Event], is_built: bool) {
        let written: Vec<_> =
            self.ledger.0.lock().expect("no panic").iter().map(|record| record.definition).collect();
        let distinct: BTreeSet<_> = written.iter().copied().collect();
        assert_eq!(written.len(), distinct.len(), "each once");
        let (mut missed, mut expected) = (HashMap::new(), BTreeSet::new());
        for event in events {
            match event {
                Event::Missed(id, miss) => drop(missed.insert(*id, miss.definition)),
                Event::Done(id, _) => drop(expected.insert(missed[id])),
                Event::Cached(_, hit) if hit.made.is_some() => drop(expected.insert(hit.definition)),
                _ => {}
            }
        }
        assert!(expected.is_subset(&distinct), "all of them");
        assert!(!is_built || expected == distinct, "and no others");
    }

    /// Steps that were told as cached, and where from.
    pub fn hits(&self) -> Vec<(usize, Option<String>)> {
        let of = |event: &Event| match event {
            Event::Cached(id, hit) => Some((id.0, hit.from.clone())),
            _ => None,
        };
        self.events.lock().expect("no panic").iter().filter_map(of).collect()
    }
}

/// What a machine remembers that has built this; `wait` ends at once there.
pub fn records_of(file: &Dockerfile) -> (HashMap<Key, Record>, Vec<Snapshot>) {
    let (world, memory) = (World::default(), Memory::default());
    world.is_hasty.store(true, Ordering::SeqCst);
    let images = solved(file, &world, &memory);
    (memory.0.into_inner().expect("no panic"), images)
}

fn far(records: HashMap<Key, Record>, gate: &Arc<AtomicBool>) -> Far {
    Far { name: "far", records, gate: Arc::clone(gate), ..Far::default() }
}

fn only(cache: &Arc<Far>) -> [Arc<dyn DistantCache>; 1] {
    [Arc::clone(cache) as _]
}

fn open() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

fn shut() -> Arc<AtomicBool> {
    Arc::default()
}

fn started(event: &Event, step: VertexId) -> bool {
    matches!(event, Event::Started(id) if *id == step)
}

pub fn from_far(steps: &[usize]) -> Vec<(usize, Option<String>)> {
    steps.iter().map(|step| (*step, Some("far".to_owned()))).collect()
}

#[test]
fn what_a_distant_cache_has_need_not_run() {
    let file = chain(&["write a 1", "wait"]);
    let (records, expected) = records_of(&file);
    let (ground, cache) = (Ground::new(true), Arc::new(far(records.clone(), &open())));
    assert_eq!(ground.build(&file, &only(&cache), &|_| ()).expect("builds"), expected);
    assert_eq!((ground.world.ran(), ground.hits()), (vec![], from_far(&[1, 2])));
    assert_eq!(*ground.world.prepared.lock().expect("no panic"), [""; 0], "it was near enough");
    let first = cache.asked.lock().expect("no panic")[0];
    assert_eq!(records[&first].snapshot, expected[0], "the last step is asked for first");
    // Near caches learn it, and are asked first the next time.
    let again = Ground { near: ground.near, ..Ground::new(true) };
    let silent = Arc::new(far(HashMap::new(), &shut()));
    assert_eq!(again.build(&file, &only(&silent), &|_| ()).expect("builds"), expected);
    assert_eq!(again.hits(), [(1, None), (2, None)]);
    assert!(silent.asked.lock().expect("no panic").is_empty(), "there was nothing to ask for");
}

#[test]
fn a_step_in_the_chain_of_a_distant_hit_says_where_it_is_from() {
    let file = chain(&["write a 1", "write b 1"]);
    let (mut records, expected) = records_of(&file);
    records.retain(|_, record| record.snapshot == expected[0]);
    let ground = Ground::new(true);
    ground.build(&file, &[Arc::new(far(records, &open()))], &|_| ()).expect("builds");
    assert_eq!(ground.hits(), from_far(&[1, 2]));
}

/// A chain of which a distant cache knows the result only once its last step, which never ends by itself, has begun.
fn build_late(
    file: &Dockerfile,
    cache: impl FnOnce(&Arc<AtomicBool>) -> Far,
    waits: VertexId,
) -> (Ground, Vec<Snapshot>) {
    let (ground, gate) = (Ground::new(false), shut());
    let on_event = |event: &Event| {
        if started(event, waits) {
            gate.store(true, Ordering::SeqCst);
        }
    };
    let images = ground.build(file, &[Arc::new(cache(&gate))], &on_event).expect("builds");
    (ground, images)
}

#[test]
fn an_answer_for_a_definition_ends_the_step_that_runs() {
    let file = chain(&["write a 1", "wait"]);
    let (records, expected) = records_of(&file);
    let (ground, images) = build_late(&file, |gate| far(records, gate), VertexId(2));
    assert_eq!((images, ground.hits()), (expected, from_far(&[2])));
    assert_eq!(ground.world.ran(), ["wait", "write a 1"]);
}

#[test]
fn an_answer_for_content_ends_the_step_that_runs() {
    let (records, expected) = records_of(&chain(&["write a 1", "wait"]));
    let file = chain(&["write a 1 # other", "wait"]);
    let cache = |gate: &_| Far { only_content: true, ..far(records, gate) };
    let (ground, images) = build_late(&file, cache, VertexId(2));
    assert_eq!((images, ground.hits()), (expected, from_far(&[2])));
    let near = ground.near.0.lock().expect("no panic");
    assert_eq!(
        near.values().filter(|record| record.snapshot.layers.len() == 3).count(),
        2,
        "under both its keys"
    );
}

#[test]
fn an_answer_further_up_ends_what_is_needed_for_nothing_else() {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let builder = file.run(base, "wait");
    let copied = file.copy(base, builder, "waited");
    file.target(copied);
    let (mut records, expected) = records_of(&file);
    records.retain(|_, record| record.snapshot == expected[0]);
    let (ground, images) = build_late(&file, |gate| far(records, gate), builder);
    assert_eq!(images, expected);
    assert_eq!(ground.hits(), [(builder.0, None), (copied.0, Some("far".to_owned()))]);
}

#[test]
fn an_answer_that_disagrees_with_what_ran_counts_for_nothing() {
    let file = chain(&["write noise 1 # x", "random a", "write b 1"]);
    let (records, other) = records_of(&chain(&["write noise 1 # x", "random a", "write b 1"]));
    let (ground, gate) = (Ground::new(false), shut());
    // The layers have other names here.
    solved(&chain(&["write z 1", "write y 1"]), &ground.world, &Memory::default());
    let ran = |event: &Event| matches!(event, Event::Done(id, _) if id.0 == 2);
    let told = |event: &Event| {
        if ran(event) {
            gate.store(true, Ordering::SeqCst);
        }
    };
    let images = ground.build(&file, &[Arc::new(far(records, &gate))], &told).expect("builds");
    assert_ne!(images, other);
    assert!(ground.world.ran().contains(&"write b 1".to_owned()), "{:?}", ground.hits());
}

#[test]
fn what_was_answered_while_its_input_ran_is_not_begun() {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let builder = file.run(base, "wait");
    let copied = file.copy(base, builder, "waited");
    file.target(builder).target(copied);
    let (mut records, expected) = records_of(&file);
    records.retain(|_, record| record.snapshot == expected[1]);
    let (ground, gate) = (Ground::new(false), shut());
    let on_event = |event: &Event| match event {
        Event::Started(_) => gate.store(true, Ordering::SeqCst),
        Event::Cached(_, _) => ground.world.is_hasty.store(true, Ordering::SeqCst),
        _ => {}
    };
    let images = ground.build(&file, &[Arc::new(far(records, &gate))], &on_event).expect("builds");
    assert_eq!((images, ground.world.ran()), (expected, vec!["wait".to_owned()]));
}

/// Two steps that are known to be equal when what is below them has run, wait for each other; and a distant cache knows the
/// definition of the first, which waits forever.
fn build_equal(is_same_content: bool) -> Vec<String> {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let (noop, other) = (file.run(base, "nothing"), file.run(base, "nothing much"));
    let (first, second) = (file.run(noop, "wait"), file.run(other, "wait"));
    let (mut records, _) = records_of(file.target(first));
    let (_, expected) = records_of(file.target(second));
    records.retain(|key, record| matches!(key, Key::Definition(_)) && record.snapshot == expected[0]);
    if !is_same_content {
        records.values_mut().for_each(|record| record.content = record.parent);
    }
    let (ground, gate, told) = (Ground::new(false), shut(), AtomicU64::new(0));
    let on_event = |event: &Event| match event {
        // Both are missed, and one is begun.
        Event::Missed(id, _) | Event::Started(id) if *id == first || *id == second => {
            gate.store(told.fetch_add(1, Ordering::SeqCst) == 2, Ordering::SeqCst);
        }
        // The second time it ends by itself.
        Event::Cached(..) => ground.world.is_hasty.store(true, Ordering::SeqCst),
        _ => {}
    };
    let images = ground.build(&file, &[Arc::new(far(records, &gate))], &on_event).expect("builds");
    assert_eq!(images, expected);
    ground.world.ran()
}

#[test]
fn equal_steps_have_what_the_first_of_them_was_answered() {
    assert_eq!(build_equal(true), ["nothing", "nothing much", "wait"]);
}

#[test]
fn equal_steps_go_on_when_the_first_of_them_has_become_needless() {
    let ran = build_equal(false);
    // Where the second was keyed first, it is the one that runs.
    assert!(ran.len() == 4 || ran.len() == 3, "{ran:?}");
}

/// Never comes back before it is dropped, whoever asks.
struct Stuck(Mutex<mpsc::Receiver<()>>);

impl DistantCache for Stuck {
    fn lookup(&self, _: &[Key], _: &Cancel, _: &(dyn Fn(Vec<Answer>) + Sync)) {
        let _ = self.0.lock().expect("no panic").recv();
    }
}

#[test]
fn a_cache_that_never_comes_back_holds_nothing_up() {
    let (_end, receiver) = mpsc::channel();
    let stuck: Arc<dyn DistantCache> = Arc::new(Stuck(receiver.into()));
    let file = chain(&["write a 1", "write b 1", "write c 1", "write d 1", "write e 1", "write f 1"]);
    let ground = Ground::new(false);
    ground.build(&file, &[stuck], &|_| ()).expect("builds");
    assert_eq!(ground.world.ran().len(), 6);
}

/// Panics.
struct Broken;

impl DistantCache for Broken {
    fn lookup(&self, _: &[Key], _: &Cancel, _: &(dyn Fn(Vec<Answer>) + Sync)) {
        panic!("a bug in a cache")
    }
}

#[test]
fn a_cache_that_breaks_has_nothing() {
    let ground = Ground::new(true);
    ground.build(&chain(&["write a 1", "write b 1"]), &[Arc::new(Broken)], &|_| ()).expect("builds");
    assert_eq!(ground.world.ran().len(), 2);
}

#[test]
fn a_failure_ends_the_asking() {
    let (ground, cache) = (Ground::new(false), Arc::new(far(HashMap::new(), &shut())));
    ground.build(&chain(&["fail"]), &only(&cache), &|_| ()).expect_err("it fails");
    while !cache.was_cancelled.load(Ordering::SeqCst) {
        thread::yield_now();
    }
}

#[test]
fn all_caches_are_asked_and_one_is_enough() {
    let file = chain(&["random a", "wait"]);
    let (records, expected) = records_of(&file);
    let silent = Arc::new(far(HashMap::new(), &shut()));
    let empty = Arc::new(far(HashMap::new(), &open()));
    let ground = Ground::new(true);
    let caches: [Arc<dyn DistantCache>; 3] = [silent, empty, Arc::new(far(records, &open()))];
    assert_eq!(ground.build(&file, &caches, &|_| ()).expect("builds"), expected);
    assert_eq!(ground.world.ran(), [""; 0]);
}

#[test]
fn a_forced_step_is_asked_for_by_nobody_and_those_on_it_by_content() {
    let file = |is_forced: bool| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let first =
            if is_forced { file.run_uncached(base, "write a 1") } else { file.run(base, "write a 1") };
        let last = file.run(first, "wait");
        file.target(last);
        file
    };
    let (records, expected) = records_of(&file(false));
    let (ground, cache) = (Ground::new(true), Arc::new(far(records, &open())));
    assert_eq!(ground.build(&file(true), &only(&cache), &|_| ()).expect("builds"), expected);
    assert_eq!((ground.world.ran(), ground.hits()), (vec!["write a 1".to_owned()], from_far(&[2])));
    let asked = cache.asked.lock().expect("no panic");
    assert!(matches!(asked[..], [Key::Content(_)]), "{asked:?}");
}

#[test]
fn what_is_too_old_counts_neither_early_nor_late() {
    let file = chain(&["write a 1", "write b 1"]);
    let (mut records, expected) = records_of(&file);
    let is_last = |record: &Record| record.snapshot == expected[0];
    for (age_of_first, age_of_last, runs) in [(20, 20, 0), (5, 20, 1), (20, 5, 1), (5, 5, 2)] {
        records.values_mut().for_each(|record| {
            record.made.by.at = if is_last(record) { age_of_last } else { age_of_first };
        });
        for is_patient in [true, false] {
            let ground = Ground { oldest: 10, ..Ground::new(is_patient) };
            let cache = Arc::new(far(records.clone(), &open()));
            assert_eq!(ground.build(&file, &[cache], &|_| ()).expect("builds"), expected);
            let ran = ground.world.ran().len();
            assert!(ran == runs || (!is_patient && ran > runs), "{age_of_first} {age_of_last} {ran}");
        }
    }
}

#[test]
fn a_forced_step_does_not_take_what_an_equal_one_is_answered() {
    let file = |is_forced: bool| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let (noop, other) = (file.run(base, "nothing"), file.run(base, "nothing much"));
        let equal = file.run(noop, "write a 1");
        let last =
            if is_forced { file.run_uncached(other, "write a 1") } else { file.run(other, "write a 1") };
        file.target(equal).target(last);
        file
    };
    let (mut records, expected) = records_of(&file(false));
    records.retain(|key, _| matches!(key, Key::Content(_)));
    let ground = Ground::new(true);
    let cache = Arc::new(far(records, &open()));
    assert_eq!(ground.build(&file(true), &[cache], &|_| ()).expect("builds"), expected);
    assert_eq!(ground.world.ran().iter().filter(|ran| *ran == "write a 1").count(), 1);
}

#[test]
fn what_this_machine_cannot_run_waits_for_the_answer() {
    let file = chain(&["write a 1", "write b 1"]);
    let (records, expected) = records_of(&file);
    let (ground, gate) = (Ground::new(false), shut());
    ground.world.impossible.lock().expect("no panic").push("write a 1".to_owned());
    let on_event = |event: &Event| {
        if matches!(event, Event::Warning(text) if text.contains("will fail unless the cache knows")) {
            gate.store(true, Ordering::SeqCst);
        }
    };
    let images = ground.build(&file, &[Arc::new(far(records, &gate))], &on_event);
    assert_eq!(images.expect("builds"), expected);
    assert!(!ground.world.ran().contains(&"write a 1".to_owned()));
}

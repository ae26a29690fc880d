//! Several builders that share a cache: each step runs in one of them.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use oci::TreeDigest;
use proptest::prelude::*;

use super::{
    chain,
    fake::{Dockerfile, Memory, World},
    orders::{build, random_file},
    solved,
    told::hits,
};
use crate::{
    cache::{Claim, Key, Maker, Record},
    event::Event,
    schedule::SolveOptions,
    traits::{CacheBackend, Cancel, FailureKind},
};

/// A cache in which steps can be reserved.
#[derive(Default)]
pub struct Shared {
    records: Memory,
    held: Arc<Mutex<HashSet<TreeDigest>>>,
    claims: AtomicUsize,
    busy: AtomicUsize,
}

struct Held {
    content: TreeDigest,
    held: Arc<Mutex<HashSet<TreeDigest>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.lock().expect("no panic").remove(&self.content);
    }
}

impl Shared {
    /// Reserves everything that is not remembered: what `claim` says when `busy` is not answered yet.
    fn hold(&self, content: TreeDigest) -> Option<Held> {
        let is_new = self.held.lock().expect("no panic").insert(content);
        is_new.then(|| Held { content, held: Arc::clone(&self.held) })
    }

    fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }
}

impl CacheBackend for Shared {
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>> {
        self.records.lookup(keys)
    }

    fn store(&self, record: &Record) {
        let key = Key::Content(record.content);
        let is_known = self.records.lookup(&[key])[0].is_some();
        let is_held = self.held.lock().expect("no panic").contains(&record.content);
        assert!(is_known || is_held, "what ran is remembered before it is let go");
        self.records.store(record);
    }

    fn claim(&self, content: &TreeDigest, _: &Maker) -> Claim {
        self.claims.fetch_add(1, Ordering::SeqCst);
        match self.hold(*content) {
            Some(held) => Claim::Held(Box::new(held)),
            None => {
                self.busy.fetch_add(1, Ordering::SeqCst);
                Claim::Busy("b1".to_owned())
            }
        }
    }
}

/// The one record of a build of a chain of one step.
fn record_of(file: &Dockerfile, world: &World) -> Record {
    let alone = Memory::default();
    solved(file, world, &alone);
    alone.0.into_inner().expect("no panic").into_values().next().expect("one step")
}

/// Waits until somebody has been told that a step is taken.
fn wait_until_busy(shared: &Shared) {
    while shared.busy() == 0 {
        thread::yield_now();
    }
}

#[test]
fn what_another_builder_runs_is_waited_for_and_taken_from_it() {
    let (world, shared, file) = (World::default(), Shared::default(), chain(&["random a"]));
    let record = record_of(&file, &world);
    world.ran();
    world.events();
    let held = shared.hold(record.content).expect("free");
    let snapshots = thread::scope(|scope| {
        let builds = scope.spawn(|| solved(&file, &world, &shared));
        wait_until_busy(&shared);
        shared.store(&record);
        drop(held);
        builds.join().expect("no panic")
    });
    assert_eq!((snapshots[0].clone(), world.ran().len()), (record.snapshot, 0));
    let events = world.events();
    let waited =
        |event: &&Event| matches!(event, Event::Waiting(id, who) if id.0 == 1 && who.contains("(b1)"));
    assert_eq!(events.iter().filter(waited).count(), 1, "told once, however often it is looked at");
    assert_eq!(hits(&events), [(1, Some(record.made))]);
}

#[test]
fn what_another_builder_gives_up_is_run() {
    let (world, shared, file) = (World::default(), Shared::default(), chain(&["random a"]));
    let held = shared.hold(record_of(&file, &world).content).expect("free");
    world.ran();
    thread::scope(|scope| {
        let builds = scope.spawn(|| solved(&file, &world, &shared));
        wait_until_busy(&shared);
        drop(held);
        builds.join().expect("no panic")
    });
    assert_eq!(world.ran(), ["random a"]);
    assert!(shared.held.lock().expect("no panic").is_empty());
}

#[test]
fn whoever_waits_keeps_working_and_can_be_stopped() {
    let (world, shared) = (World::default(), Shared::default());
    let _held = shared.hold(record_of(&chain(&["random a"]), &world).content).expect("free");
    world.ran();
    let mut file = chain(&["random a"]);
    let base = file.image("base", "here");
    let beside = ["write x 1", "write y 1", "write z 1"].iter().fold(base, |tip, run| file.run(tip, run));
    file.target(beside);
    let cancel = Cancel::default();
    let error = thread::scope(|scope| {
        // With one worker: what is waited for takes none.
        let builds = scope.spawn(|| file.solve_with(&world, &[&shared], 1, &cancel));
        let is_last = |event: &Event| matches!(event, Event::Done(id, _) if *id == beside);
        while !world.events().iter().any(is_last) {
            thread::yield_now();
        }
        wait_until_busy(&shared);
        cancel.request();
        builds.join().expect("no panic").expect_err("it was stopped")
    });
    assert_eq!(error.failure.kind, FailureKind::Cancelled);
    assert_eq!(world.ran(), ["write x 1", "write y 1", "write z 1"]);
}

#[test]
fn a_failure_elsewhere_ends_the_waiting() {
    let (world, shared) = (World::default(), Shared::default());
    let _held = shared.hold(record_of(&chain(&["random a"]), &world).content).expect("free");
    let mut file = chain(&["random a"]);
    let base = file.image("base", "here");
    let fails = file.run(base, "fail");
    file.target(fails);
    assert_eq!(file.solve(&world, &shared).expect_err("it fails").vertex, fails);
}

#[test]
fn a_forced_step_reserves_nothing_and_waits_for_nobody() {
    let (world, shared) = (World::default(), Shared::default());
    let _held = shared.hold(record_of(&chain(&["random a"]), &world).content).expect("free");
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let forced = file.run_uncached(base, "random a");
    file.target(forced);
    solved(&file, &world, &Forced(Memory::default()));
}

/// Nobody may claim anything in it.
struct Forced(Memory);

impl CacheBackend for Forced {
    fn lookup(&self, keys: &[Key]) -> Vec<Option<Record>> {
        self.0.lookup(keys)
    }

    fn store(&self, record: &Record) {
        self.0.store(record);
    }

    fn claim(&self, _: &TreeDigest, _: &Maker) -> Claim {
        panic!("a forced step is not shared")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Eight builders of one graph, some of which are stopped on their way: every step runs once, but for those that ran
    /// where they were stopped, and all who reach the end have the same images.
    #[test]
    fn eight_builders_run_each_step_once(
        steps in random_file(),
        seed in 1..u64::MAX,
        stopped in prop::collection::vec(0..60_usize, 0..4),
    ) {
        let (mut file, chains) = build(&steps, "fixed");
        chains.iter().for_each(|(id, _)| { file.target(*id); });
        let alone = World::default();
        let expected = solved(&file, &alone, &Memory::default());
        let (runs, world, shared) = (alone.ran(), World::default().disorder(seed), Shared::default());
        let results = thread::scope(|scope| {
            let builder = |number: usize| {
                let (file, world, shared) = (&file, &world, &shared);
                let last_event = stopped.get(number).copied();
                scope.spawn(move || one_of_many(file, world, shared, last_event))
            };
            let builders: Vec<_> = (0..8).map(builder).collect();
            builders.into_iter().map(|one| one.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Ok(snapshots) => prop_assert_eq!(&snapshots, &expected),
                Err(kind) => prop_assert!(number < stopped.len() && kind == FailureKind::Cancelled),
            }
        }
        prop_assert_eq!(world.ran(), runs);
        prop_assert!(shared.held.lock().expect("no panic").is_empty());
    }
}

/// A builder that is stopped when it has told so many events.
fn one_of_many(
    file: &Dockerfile,
    world: &World,
    shared: &Shared,
    last_event: Option<usize>,
) -> Result<Vec<oci::Snapshot>, FailureKind> {
    let (cancel, told) = (Cancel::default(), AtomicUsize::new(0));
    let events = |_| {
        if last_event.is_some_and(|last| told.fetch_add(1, Ordering::SeqCst) >= last) {
            cancel.request();
        }
    };
    let options = SolveOptions { jobs: 3, oldest: 0, maker: Maker::default() };
    let solved = file.solve_as(world, &[shared], &options, &events, &cancel);
    solved.map_err(|error| error.failure.kind)
}

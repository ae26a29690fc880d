//! Builders that share a distant cache and no store: what one hears of the others, and whenever, changes no image; a step that
//! runs elsewhere is stopped here, followed, and run again where nothing comes of it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use oci::TreeDigest;
use proptest::prelude::*;

use super::{
    chain,
    distant::{Ground, records_of},
    fake::{Dockerfile, Memory, World},
    orders::{build, random_file},
    solved,
};
use crate::{
    cache::{Key, Record},
    event::Event,
    graph::VertexId,
    traits::{Bulletin, Found, Notice},
};

/// Says of what begins first in a build that it runs elsewhere.
#[derive(Default)]
struct Others {
    /// How often that is left to say.
    first: Arc<AtomicUsize>,
    /// What comes of it; of what is not here nothing comes.
    records: HashMap<Key, Record>,
    attended: Mutex<Vec<TreeDigest>>,
    begun_again: Mutex<Vec<TreeDigest>>,
    failed: Mutex<Vec<TreeDigest>>,
    /// Steps that are not over.
    open: Arc<AtomicUsize>,
    /// All has been said but the last word.
    is_told: Arc<AtomicBool>,
    seed: u64,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Others {
    fn new(first: usize, records: HashMap<Key, Record>) -> Self {
        Self { first: Arc::new(first.into()), records, ..Self::default() }
    }
}

impl Bulletin for Others {
    fn attend(&self, content: &TreeDigest, tell: Box<dyn Fn(Notice) + Send>) -> Box<dyn Send + Sync> {
        self.attended.lock().expect("no panic").push(*content);
        let found = |record: &Record| Box::new(Found { record: record.clone(), cache: "far".to_owned() });
        let found = self.records.get(&Key::Content(*content)).map(found);
        let (first, is_told, turns) = (Arc::clone(&self.first), Arc::clone(&self.is_told), self.seed % 300);
        let dawdle = move || (0..turns).for_each(|_| thread::yield_now());
        thread::spawn(move || {
            let take = || first.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            while let Ok(left) = take() {
                dawdle();
                tell(Notice::Elsewhere);
                dawdle();
                is_told.fetch_or(left == 1, Ordering::SeqCst);
                tell(found.clone().map_or(Notice::Free, Notice::Found));
            }
        });
        self.open.fetch_add(1, Ordering::SeqCst);
        Box::new(Guard(Arc::clone(&self.open)))
    }

    fn begin(&self, content: &TreeDigest) {
        self.begun_again.lock().expect("no panic").push(*content);
    }

    fn fail(&self, content: &TreeDigest) {
        self.failed.lock().expect("no panic").push(*content);
    }
}

fn ground(others: &Arc<Others>) -> Ground {
    Ground { bulletin: Some(Arc::clone(others) as _), ..Ground::new(true) }
}

fn waited(event: &Event) -> bool {
    matches!(event, Event::Waiting(_, what) if what == "waiting for another builder that runs this step")
}

#[test]
fn what_runs_elsewhere_is_stopped_and_taken_from_there() {
    let file = chain(&["wait"]);
    let (records, expected) = records_of(&file);
    let others = Arc::new(Others::new(1, records));
    let ground = ground(&others);
    assert_eq!(ground.build(&file, &[], &|_| ()).expect("builds"), expected);
    assert_eq!(ground.hits(), [(1, Some("far".to_owned()))]);
    assert_eq!(ground.events.lock().expect("no panic").iter().filter(|event| waited(event)).count(), 1);
    assert_eq!(others.open.load(Ordering::SeqCst), 0, "nothing is announced or followed any longer");
    assert_eq!(*others.begun_again.lock().expect("no panic"), []);
}

#[test]
fn what_came_to_nothing_elsewhere_is_run_here() {
    let file = chain(&["wait"]);
    let (mut records, expected) = records_of(&file);
    for is_damaged in [false, true] {
        records.values_mut().for_each(|record| record.parent = record.content);
        let others = Arc::new(Others::new(2, if is_damaged { records.clone() } else { HashMap::new() }));
        let ground = ground(&others);
        // It never ends by itself before others have had their say.
        let on_event = |_: &Event| {
            ground.world.is_hasty.fetch_or(others.is_told.load(Ordering::SeqCst), Ordering::SeqCst);
        };
        assert_eq!(ground.build(&file, &[], &on_event).expect("builds"), expected);
        assert_eq!((ground.hits(), others.open.load(Ordering::SeqCst)), (vec![], 0));
        let attended = others.attended.lock().expect("no panic");
        assert_eq!(attended.len(), 1, "its place is kept");
        // It may have ended before it was stopped, or been stopped before it had run.
        let runs = ground.world.ran().iter().filter(|ran| *ran == "wait").count();
        let begun_again = others.begun_again.lock().expect("no panic");
        assert!((runs - 1..=2).contains(&begun_again.len()), "{runs} runs: {begun_again:?}");
        assert!(begun_again.iter().all(|content| attended.contains(content)));
    }
}

#[test]
fn a_failure_beside_ends_the_following() {
    let mut file = chain(&["wait"]);
    let base = file.image("base", "here");
    let fails = file.run(base, "fail beside wait");
    file.target(fails);
    let others = Arc::new(Others::new(1, HashMap::new()));
    let error = ground(&others).build(&file, &[], &|_| ()).expect_err("it fails");
    assert_eq!(error.vertex, fails);
    assert_eq!(others.open.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_stopped_by_a_failure_beside_has_not_failed() {
    let mut file = chain(&["wait"]);
    let base = file.image("base", "here");
    let fails = file.run(base, "fail beside wait");
    file.target(fails);
    let others = Arc::new(Others::default());
    let ground = ground(&others);
    assert_eq!(ground.build(&file, &[], &|_| ()).expect_err("it fails").vertex, fails);
    let missed = |event: &Event| match event {
        Event::Missed(id, miss) if *id == fails => Some(miss.content),
        _ => None,
    };
    let content: Vec<_> = ground.events.lock().expect("no panic").iter().filter_map(missed).collect();
    assert_eq!(*others.failed.lock().expect("no panic"), content);
    assert_eq!(others.attended.lock().expect("no panic").len(), 2);
}

#[test]
fn only_commands_that_are_not_forced_are_announced() {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let forced = file.run_uncached(base, "write a 1");
    let run = file.run(forced, "write b 1");
    let copied = file.copy(run, forced, "a");
    file.target(copied);
    let others = Arc::new(Others::default());
    ground(&others).build(&file, &[], &|_| ()).expect("builds");
    assert_eq!(others.attended.lock().expect("no panic").len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_others_say_changes_no_image(
        steps in random_file(),
        seed in 1..u64::MAX,
        first in 0..20_usize,
        jobs in 1..5_usize,
    ) {
        let (mut file, chains) = build(&steps, "fixed");
        chains.iter().rev().step_by(2).for_each(|(id, _): &(VertexId, VertexId)| { file.target(*id); });
        let (world, whole) = (World::default(), Memory::default());
        let expected = solved(&file, &world, &whole);
        let mut records = whole.0.into_inner().expect("no panic");
        records.retain(|key, _| match key {
            Key::Content(digest) => (u64::from(digest.as_bytes()[0]) ^ seed).is_multiple_of(2),
            Key::Definition(_) => false,
        });
        let others = Arc::new(Others { seed, ..Others::new(first, records) });
        let ground = Ground { world: world.disorder(seed), jobs, ..ground(&others) };
        prop_assert_eq!(ground.build(&file, &[], &|_| ()).expect("builds"), expected);
        prop_assert_eq!(others.open.load(Ordering::SeqCst), 0);
    }
}

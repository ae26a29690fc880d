//! What is told of every step, and what is known of who made a result and when.

use std::collections::BTreeMap;

use super::{
    chain,
    fake::{Dockerfile, Memory, World},
};
use crate::{
    cache::{Made, Maker},
    event::Event,
    graph::VertexId,
    op::Op,
    schedule::SolveOptions,
    traits::{CacheBackend, Cancel},
};

/// The steps that were answered for, and who made what they were given.
pub fn hits(events: &[Event]) -> Vec<(usize, Option<Made>)> {
    let of = |event: &Event| match event {
        Event::Cached(id, hit) => Some((id.0, hit.made.clone())),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

/// How a step's events must follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Told {
    #[default]
    Planned,
    Missed,
    Started,
    /// Told to stop, since another builder runs it.
    CalledBack,
    Over,
}

/// Every step that the targets need is told of once, in the right order; all of them, if the build was successful.
pub fn check_events(file: &Dockerfile, events: &[Event], is_built: bool) {
    let mut told: BTreeMap<VertexId, Told> = BTreeMap::new();
    for event in events {
        let (id, next, before): (_, _, &[Told]) = match event {
            Event::Planned(steps) => {
                told.extend(steps.iter().map(|(id, _)| (*id, Told::Planned)));
                continue;
            }
            Event::Missed(id, _) => (id, Told::Missed, &[Told::Planned]),
            Event::Started(id) => (id, Told::Started, &[Told::Missed, Told::CalledBack]),
            // A distant cache may answer while the step runs.
            Event::Cached(id, _) => {
                (id, Told::Over, &[Told::Planned, Told::Missed, Told::Started, Told::CalledBack])
            }
            Event::Ready(id) => (id, Told::Over, &[Told::Planned]),
            Event::Done(id, _) => (id, Told::Over, &[Told::Started, Told::CalledBack]),
            Event::Failed(id, _) => (id, Told::Over, &[Told::Started]),
            Event::Cancelled(id) => (id, Told::Over, &[Told::Started]),
            Event::Waiting(id, _) => {
                match told[id] {
                    Told::Started => drop(told.insert(*id, Told::CalledBack)),
                    // It may be called back again before it has a worker.
                    Told::CalledBack => {}
                    other => assert_eq!(other, Told::Missed, "{id:?} waits"),
                }
                continue;
            }
            Event::Log(id, ..) => {
                assert_eq!(told[id], Told::Started, "{id:?} writes");
                continue;
            }
            _ => continue,
        };
        let last = told.get_mut(id).unwrap_or_else(|| panic!("{id:?} was not planned"));
        assert!(before.contains(last), "{id:?} is {last:?}, now {event:?}");
        *last = next;
    }
    let open: Vec<_> = told.iter().filter(|(_, told)| **told != Told::Over).collect();
    assert!(!is_built || open.is_empty(), "nothing more was told of {open:?}");
    let of_steps = |id: &VertexId| !matches!(file.0.vertex(*id).op, Op::Source(_));
    assert!(told.keys().any(of_steps));
}

/// What is settled on a target's own chain is the lower part of its image, whoever made it; in the end it is all of it.
pub fn check_settled(file: &Dockerfile, events: &[Event], images: &[oci::Snapshot]) {
    for (target, image) in file.0.targets.iter().zip(images) {
        let parent = |id: &VertexId| file.0.vertex(*id).inputs.first().copied();
        let chain: Vec<_> = std::iter::successors(Some(target.vertex), parent).collect();
        let settled = events.iter().filter_map(|event| match event {
            Event::Settled(id, snapshot) if chain.contains(id) => Some((*id, snapshot)),
            _ => None,
        });
        let settled: BTreeMap<_, _> = settled.collect();
        assert_eq!(**settled[&target.vertex], *image);
        assert!(settled.values().all(|snapshot| image.layers.starts_with(&snapshot.layers)));
    }
}

/// A build that signs as `name`, begun `at`, and takes nothing older than `oldest`. What ran, who made what was cached.
fn build(
    file: &Dockerfile,
    (world, cache): (&World, &dyn CacheBackend),
    (name, at, oldest): (&str, u64, u64),
) -> (Vec<String>, Vec<(usize, String)>) {
    let maker = Maker { build: name.to_owned(), at, ..Maker::default() };
    let events = std::sync::Mutex::new(Vec::new());
    let sink = |event| events.lock().expect("no panic").push(event);
    let options = SolveOptions { jobs: 2, oldest, maker };
    let images = file.solve_as(world, &[cache], &options, &sink, &Cancel::default()).expect("builds");
    let events = events.into_inner().expect("no panic");
    check_events(file, &events, true);
    check_settled(file, &events, &images);
    let by = |(id, made): (usize, Option<Made>)| (id, made.map_or("?".to_owned(), |made| made.by.build));
    (world.ran(), hits(&events).into_iter().map(by).collect())
}

fn named(hits: &[(usize, &str)]) -> Vec<(usize, String)> {
    hits.iter().map(|(id, name)| (*id, (*name).to_owned())).collect()
}

#[test]
fn a_hit_says_who_made_it_however_it_was_found() {
    let (world, cache) = (World::default(), Memory::default());
    let ground = (&world, &cache as &dyn CacheBackend);
    build(&chain(&["random a"]), ground, ("b1", 1, 0));
    // By definition, in the chain of a later step.
    let (_, hits) = build(&chain(&["random a", "write b 1"]), ground, ("b2", 2, 0));
    assert_eq!(hits, named(&[(1, "b1")]));
    let (_, hits) = build(&chain(&["random a", "write b 1"]), ground, ("b3", 3, 0));
    assert_eq!(hits, named(&[(1, "b1"), (2, "b2")]));
    // By content: what is below has another definition, and gives the same.
    let (ran, hits) = build(&chain(&["random a", "write b 1 # same", "write c 1"]), ground, ("b4", 4, 0));
    assert_eq!((ran.len(), hits), (2, named(&[(1, "b1")])));
    let (ran, hits) = build(&chain(&["random a", "write b 1 # other", "write c 1"]), ground, ("b5", 5, 0));
    assert_eq!((ran.len(), hits), (1, named(&[(1, "b1"), (3, "b4")])));
    // And what was found by content is known by definition since, as what it was.
    let (_, hits) = build(&chain(&["random a", "write b 1 # other", "write c 1"]), ground, ("b6", 6, 0));
    assert_eq!(hits, named(&[(1, "b1"), (2, "b5"), (3, "b4")]));
}

#[test]
fn of_a_chain_whose_lower_records_are_gone_only_the_top_has_a_maker() {
    let (world, cache) = (World::default(), Memory::default());
    let ground = (&world, &cache as &dyn CacheBackend);
    build(&chain(&["random a", "write b 1"]), ground, ("b1", 1, 0));
    cache.0.lock().expect("no panic").retain(|_, record| record.snapshot.layers.len() == 3);
    let (ran, hits) = build(&chain(&["random a", "write b 1"]), ground, ("b2", 2, 0));
    assert_eq!((ran.len(), hits), (0, named(&[(1, "?"), (2, "b1")])));
}

#[test]
fn the_maker_of_another_layer_is_not_the_maker_of_this_one() {
    let (world, cache, other) = (World::default(), Memory::default(), Memory::default());
    build(&chain(&["random a", "write b 1"]), (&world, &cache), ("b1", 1, 0));
    build(&chain(&["random a"]), (&world, &other), ("b2", 2, 0));
    // The lower step's record is replaced by one of another run; the upper one's chain stands.
    other.0.into_inner().expect("no panic").into_values().for_each(|record| cache.store(&record));
    let (_, hits) = build(&chain(&["random a", "write b 1"]), (&world, &cache), ("b3", 3, 0));
    assert_eq!(hits, named(&[(1, "?"), (2, "b1")]));
}

#[test]
fn steps_that_are_written_twice_are_both_told() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let (a, b) = (file.run(base, "random x"), file.run(base, "random x"));
    let (noop, other) = (file.run(base, "nothing"), file.run(base, "nothing much"));
    let (c, d) = (file.run(noop, "random y"), file.run(other, "random y"));
    file.target(a).target(b).target(c).target(d);
    let (ran, hits) = build(&file, (&world, &cache), ("b1", 1, 0));
    assert_eq!((ran.len(), hits.len()), (4, 2), "{hits:?}");
    assert!(hits.iter().all(|(_, by)| by == "b1"), "{hits:?}");
    let (_, hits) = build(&file, (&world, &cache), ("b2", 2, 0));
    assert_eq!(hits.len(), 6, "{hits:?}");
}

#[test]
fn steps_are_shared_by_what_they_read_and_never_across_platforms() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    // Two stages that differ, and hold the same where it is copied from.
    let stages = ["1", "2"].map(|noise| {
        let noisy = file.run(base, &format!("write log {noise}"));
        file.run(noisy, "write out 1")
    });
    for stage in stages {
        let copied = file.copy(base, stage, "out");
        file.target(copied);
    }
    let here = file.run(base, "native arch");
    let there = file.on(here, "arm64");
    file.target(here).target(there);
    let options = (&world, &cache as &dyn CacheBackend);
    let (ran, _) = build(&file, options, ("b1", 1, 0));
    let expected = [
        "copy to /to",
        "native arch",
        "native arch",
        "write log 1",
        "write log 2",
        "write out 1",
        "write out 1",
    ];
    assert_eq!(ran, expected, "one copy, each platform's own command");
    let images = file.solve(&world, &cache).expect("builds");
    assert_eq!(images[0], images[1]);
    assert_ne!(world.files(&images[2]), world.files(&images[3]));
}

#[test]
fn old_results_are_made_again_wherever_they_stand_in_a_chain() {
    let (world, cache) = (World::default(), Memory::default());
    let ground = (&world, &cache as &dyn CacheBackend);
    build(&chain(&["write a 1"]), ground, ("b1", 10, 0));
    build(&chain(&["write a 1", "write b 1"]), ground, ("b2", 20, 0));
    let file = chain(&["write a 1", "write b 1"]);
    assert_eq!(build(&file, ground, ("b3", 30, 10)), (vec![], named(&[(1, "b1"), (2, "b2")])));
    // The lower one is too old, gives the same, and is young again.
    assert_eq!(build(&file, ground, ("b4", 40, 15)), (vec!["write a 1".to_owned()], named(&[(2, "b2")])));
    assert_eq!(build(&file, ground, ("b5", 50, 20)), (vec![], named(&[(1, "b4"), (2, "b2")])));
    assert_eq!(build(&file, ground, ("b6", 60, 60)).0.len(), 2);
}

#[test]
fn what_stands_on_a_result_of_unknown_age_does_not_count() {
    let (world, cache) = (World::default(), Memory::default());
    let ground = (&world, &cache as &dyn CacheBackend);
    let file = chain(&["random a", "write b 1"]);
    build(&file, ground, ("b1", 10, 0));
    cache.0.lock().expect("no panic").retain(|_, record| record.snapshot.layers.len() == 3);
    assert_eq!(build(&file, ground, ("b2", 20, 0)).0.len(), 0);
    assert_eq!(build(&file, ground, ("b3", 30, 5)).0, ["random a", "write b 1"]);
}

#[test]
fn a_step_whose_result_is_too_old_says_whose_it_was() {
    let (world, cache) = (World::default(), Memory::default());
    let file = chain(&["write a 1"]);
    build(&file, (&world, &cache), ("b1", 10, 0));
    let expired = std::sync::Mutex::new(Vec::new());
    let sink = |event| {
        if let Event::Missed(_, miss) = event {
            expired.lock().expect("no panic").push(miss.expired.map(|made| made.by.build));
        }
    };
    let options = SolveOptions { jobs: 1, oldest: 11, maker: Maker::default() };
    file.solve_as(&world, &[&cache], &options, &sink, &Cancel::default()).expect("builds");
    assert_eq!(expired.into_inner().expect("no panic"), [Some("b1".to_owned())]);
}

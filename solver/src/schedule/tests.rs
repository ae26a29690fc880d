//! The scheduler against a world in memory.

mod bulletin;
mod distant;
mod early;
pub(super) mod fake;
mod lateness;
mod orders;
mod possible;
mod reading;
mod shared;
mod threads;
mod told;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    cache::{Key, Record},
    event::Event,
    graph::VertexId,
    traits::{CacheBackend, Cancel, FailureKind},
};
use fake::{Dockerfile, Memory, World};
use oci::Layer;

/// A chain of commands on one image.
fn chain(commands: &[&str]) -> Dockerfile {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let last = commands.iter().fold(base, |parent, command| file.run(parent, command));
    file.target(last);
    file
}

fn solved(file: &Dockerfile, world: &World, cache: &dyn CacheBackend) -> Vec<oci::Snapshot> {
    file.solve(world, cache).unwrap_or_else(|error| panic!("{error}"))
}

fn cached(events: &[Event]) -> Vec<usize> {
    let of = |event: &Event| if let Event::Cached(id, _) = event { Some(id.0) } else { None };
    events.iter().filter_map(of).collect()
}

#[test]
fn a_second_build_runs_nothing_and_gives_the_same() {
    let (world, cache) = (World::default(), Memory::default());
    let file = chain(&["random a", "write b 1"]);
    let first = solved(&file, &world, &cache);
    assert_eq!(world.ran(), ["random a", "write b 1"]);
    world.events();
    assert_eq!(solved(&file, &world, &cache), first);
    assert_eq!(world.ran(), [""; 0]);
    assert_eq!(cached(&world.events()), [1, 2]);
    assert_eq!(first[0].layers.len(), 3);
}

#[test]
fn a_hit_makes_its_inputs_unneeded() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let builder = file.run(base, "random out");
    let copied = file.copy(base, builder, "out");
    file.target(copied);
    let first = solved(&file, &world, &cache);
    cache.0.lock().expect("no panic").retain(|_, record| record.snapshot == first[0]);
    assert_eq!(world.selections(), 1);
    assert_eq!(solved(&file, &world, &cache), first);
    assert_eq!((world.ran().len(), world.selections()), (2, 0));
}

#[test]
fn a_step_that_gives_the_same_again_stops_the_rest_from_running() {
    let (world, cache) = (World::default(), Memory::default());
    solved(&chain(&["write a 1", "random b"]), &world, &cache);
    world.ran();
    solved(&chain(&["write a 1 # changed", "random b"]), &world, &cache);
    assert_eq!(world.ran(), ["write a 1 # changed"]);
    solved(&chain(&["write a 1 # changed", "random b"]), &world, &cache);
    assert_eq!(world.ran(), [""; 0], "the new definition is remembered too");
}

#[test]
fn a_copy_depends_only_on_what_it_picks() {
    let (world, cache) = (World::default(), Memory::default());
    let file = |noise: &str| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let out = file.run(base, "write out 1");
        let builder = file.run(out, noise);
        let copied = file.copy(base, builder, "out");
        file.target(copied);
        file
    };
    let first = solved(&file("write log 1"), &world, &cache);
    world.ran();
    assert_eq!(solved(&file("write log 2"), &world, &cache), first);
    assert_eq!(world.ran(), ["write log 2"]);
    assert_eq!(world.files(&first[0]), BTreeMap::from([("/to/out".to_owned(), "1".to_owned())]));
}

#[test]
fn context_files_are_keyed_by_what_the_selector_picks() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.scratch();
    let context = file.context("src");
    let copied = file.copy(base, context, "src");
    file.target(copied);
    let set = |path: &str, text: &str| {
        world.context.lock().expect("no panic").insert(path.to_owned(), text.to_owned());
    };
    set("src/main", "1");
    solved(&file, &world, &cache);
    assert_eq!(world.ran(), ["copy to /to"]);
    set("README", "1");
    solved(&file, &world, &cache);
    assert_eq!(world.ran(), [""; 0]);
    set("src/main", "2");
    let last = solved(&file, &world, &cache);
    assert_eq!(world.ran(), ["copy to /to"]);
    assert_eq!(world.files(&last[0])["/to/src/main"], "2");
    let shown = world.events().into_iter().find(|event| matches!(event, Event::Planned(_)));
    let Some(Event::Planned(shown)) = shown else { panic!("Planned comes first") };
    assert_eq!(shown.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 2], "scratch is not shown");
}

#[test]
fn equal_steps_run_once() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let (a, b) = (file.run(base, "random x"), file.run(base, "random x"));
    let (noop, other) = (file.run(base, "nothing"), file.run(base, "nothing much"));
    // Not known to be equal before their parents have run.
    let (c, d) = (file.run(noop, "random y"), file.run(other, "random y"));
    file.target(a).target(b).target(c).target(d);
    let images = solved(&file, &world, &cache);
    assert_eq!(world.ran(), ["nothing", "nothing much", "random x", "random y"]);
    assert_eq!((&images[0], &images[2].digest()), (&images[1], &images[3].digest()));
}

/// Two images that share their first step.
fn fork() -> (Dockerfile, [VertexId; 3]) {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let shared = file.run(base, "random shared");
    let (left, right) = (file.run(shared, "write left 1"), file.run(shared, "write right 1"));
    file.target(left).target(right);
    (file, [shared, left, right])
}

/// The records of two builders that knew nothing of each other: of the first all but those of `right`, of the second
/// only that.
fn disagreeing_caches(world: &World) -> Memory {
    let (left, right) = (Memory::default(), Memory::default());
    solved(&fork().0, world, &left);
    solved(&fork().0, world, &right);
    let of_right = |record: &Record| matches!(record.snapshot.layers.last(), Some(Layer::Built(tree)) if *tree == right_tree());
    let mut records = left.0.into_inner().expect("no panic");
    records.retain(|_, record| !of_right(record));
    records
        .extend(right.0.into_inner().expect("no panic").into_iter().filter(|(_, record)| of_right(record)));
    world.ran();
    Memory(records.into())
}

fn right_tree() -> oci::TreeDigest {
    let world = World::default();
    let file = chain(&["write right 1"]);
    let snapshot = solved(&file, &world, &Memory::default()).remove(0);
    snapshot.layers.last().expect("one step").tree()
}

#[test]
fn of_hits_that_disagree_the_first_stands_and_the_other_goes_by_content() {
    let world = World::default();
    let cache = disagreeing_caches(&world);
    let images = solved(&fork().0, &world, &cache);
    assert_eq!(images[0].layers[1], images[1].layers[1], "one build has one shared step");
    assert_eq!(world.ran(), ["write right 1"], "left is adopted with its chain");
}

#[test]
fn a_hit_is_adopted_with_its_chain_although_a_newer_parent_is_known() {
    let (world, cache) = (World::default(), Memory::default());
    let first = solved(&chain(&["random a", "write b 1"]), &world, &cache);
    let definition = |record: &Record| record.snapshot.layers.len() == 2;
    let other = Memory::default();
    solved(&chain(&["random a"]), &world, &other);
    let newer = other.0.into_inner().expect("no panic").into_values().find(definition).expect("a record");
    cache.store(&newer);
    world.ran();
    assert_eq!(solved(&chain(&["random a", "write b 1"]), &world, &cache), first);
    assert_eq!(world.ran(), [""; 0]);
}

#[test]
fn below_a_forced_step_only_content_counts() {
    let (world, cache) = (World::default(), Memory::default());
    let file = |command: &str, forced: bool| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let first = if forced { file.run_uncached(base, command) } else { file.run(base, command) };
        let last = file.run(first, "write b 1");
        file.target(last);
        file
    };
    let old = solved(&file("random a", false), &world, &cache);
    world.ran();
    let new = solved(&file("random a", true), &world, &cache);
    assert_eq!(world.ran(), ["random a", "write b 1"]);
    assert_ne!(old, new);
    assert_eq!(solved(&file("random a", false), &world, &cache), new, "the forced run is what is remembered");
    solved(&file("write a 1", false), &world, &cache);
    world.ran();
    solved(&file("write a 1", true), &world, &cache);
    assert_eq!(world.ran(), ["write a 1"], "the same came out, so the step below is cached");
}

#[test]
fn a_step_in_the_chain_of_a_hit_is_there_for_those_who_copy_from_it() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let shared = file.run(base, "random shared");
    let left = file.run(shared, "write left 1");
    let copied = file.copy(base, shared, "shared");
    file.target(left).target(copied);
    let first = solved(&file, &world, &cache);
    cache.0.lock().expect("no panic").retain(|_, record| record.snapshot == first[0]);
    world.ran();
    assert_eq!(solved(&file, &world, &cache), first);
    assert_eq!(world.ran(), ["copy to /to"]);
}

#[test]
fn a_step_that_is_forced_anywhere_is_forced_everywhere() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let left = file.run(base, "random a");
    let right = file.run_uncached(base, "random a");
    file.target(left).target(right);
    solved(&file, &world, &cache);
    world.ran();
    let images = solved(&file, &world, &cache);
    assert_eq!(world.ran(), ["random a"]);
    assert_eq!(images[0], images[1]);
}

#[test]
fn a_forced_step_does_not_take_what_an_equal_one_has_of_a_cache() {
    let file = |is_forced: bool| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let (noop, other) = (file.run(base, "nothing"), file.run(base, "nothing much"));
        let equal = file.run(noop, "random y");
        let forced =
            if is_forced { file.run_uncached(other, "random y") } else { file.run(other, "random y") };
        file.target(equal).target(forced);
        file
    };
    let (world, cache) = (World::default(), Memory::default());
    let old = solved(&file(false), &world, &cache);
    // So the cache is asked when it is known that they are equal.
    cache.0.lock().expect("no panic").retain(|key, _| matches!(key, Key::Content(_)));
    world.ran();
    let new = solved(&file(true), &world, &cache);
    assert_eq!(world.ran(), ["random y"]);
    assert_ne!(new[1], old[1]);
}

#[test]
fn base_layers_are_those_of_the_graph_and_not_of_the_record() {
    let (world, cache) = (World::default(), Memory::default());
    let file = |repository: &str| {
        let mut file = Dockerfile::default();
        let base = file.image("base", repository);
        let last = file.run(base, "write a 1");
        file.target(last);
        file
    };
    let here = solved(&file("here"), &world, &cache);
    let there = solved(&file("there"), &world, &cache);
    assert_eq!(world.ran(), ["write a 1"], "the same layer is the same base, wherever it lies");
    assert_ne!(here, there);
    assert_eq!(there, solved(&file("there"), &World::default(), &Memory::default()));
}

#[test]
fn a_record_that_does_not_fit_is_a_miss() {
    type Damage = fn(&mut Record);
    let damages: [(&str, Damage); 4] = [
        ("a layer too many", |record| record.snapshot.layers.push(Layer::Built(record.parent))),
        ("no layers", |record| record.snapshot.layers.clear()),
        ("another base", |record| drop(record.snapshot.layers.remove(0))),
        ("another parent", |record| record.parent = record.content),
    ];
    for (name, damage) in damages {
        let (world, cache) = (World::default(), Memory::default());
        let file = chain(&["write a 1", "write b 1"]);
        let first = solved(&file, &world, &cache);
        world.ran();
        cache.0.lock().expect("no panic").values_mut().for_each(damage);
        assert_eq!(solved(&file, &world, &cache), first, "{name}");
        assert!(!world.ran().is_empty(), "{name}");
    }
}

/// Answers with fewer records than it was asked for.
struct Mute;

impl CacheBackend for Mute {
    fn lookup(&self, _: &[Key]) -> Vec<Option<Record>> {
        Vec::new()
    }

    fn store(&self, _: &Record) {}
}

#[test]
fn caches_are_asked_in_order_and_never_fail_a_build() {
    let (world, cache) = (World::default(), Memory::default());
    let file = chain(&["random a"]);
    let first = solved(&file, &world, &Mute);
    assert_eq!(world.ran().len(), 1);
    let second = file.solve_with(&world, &[&Mute, &cache], 1, &Cancel::default()).expect("builds");
    assert_ne!(first, second);
    assert_eq!(file.solve_with(&world, &[&Mute, &cache], 1, &Cancel::default()).expect("builds"), second);
}

#[test]
fn a_failure_stops_the_others_and_is_the_one_reported() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let waits = file.run(base, "wait");
    let fails = file.run(base, "fail beside wait");
    let after = file.run(fails, "write never 1");
    file.target(waits).target(after);
    let cancel = Cancel::default();
    let error = file.solve_with(&world, &[&cache], 2, &cancel).expect_err("it fails");
    assert_eq!((error.vertex, error.failure.kind), (fails, FailureKind::Build));
    assert!(!cancel.is_requested(), "the user's own is left alone");
    assert_eq!(world.ran(), ["fail beside wait", "wait"]);
    let events = world.events();
    assert!(events.iter().any(|event| matches!(event, Event::Cancelled(id) if *id == waits)));
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Failed(id, why) if *id == fails && why.contains("fail")))
    );
}

#[test]
fn a_missing_context_file_fails_before_anything_runs() {
    let mut file = Dockerfile::default();
    let base = file.image("base", "here");
    let ran = file.run(base, "write a 1");
    let context = file.context("nowhere");
    let copied = file.copy(ran, context, "nowhere");
    file.target(copied);
    let world = World::default();
    let error = file.solve(&world, &Memory::default()).expect_err("it fails");
    assert_eq!((error.vertex, world.ran().len()), (context, 0));
}

#[test]
fn a_build_that_is_stopped_says_so() {
    let world = World::default();
    let cancel = Cancel::default();
    cancel.request();
    let error = chain(&["write a 1"]).solve_with(&world, &[], 1, &cancel).expect_err("it was stopped");
    assert_eq!((error.failure.kind, world.ran().len()), (FailureKind::Cancelled, 0));
}

#[test]
fn steps_that_finished_before_a_failure_are_remembered() {
    let (world, cache) = (World::default(), Memory::default());
    chain(&["random a", "fail"]).solve(&world, &cache).expect_err("it fails");
    world.ran();
    chain(&["random a", "fail"]).solve(&world, &cache).expect_err("it fails again");
    assert_eq!(world.ran(), ["fail"]);
}

#[test]
fn a_bug_in_a_worker_is_not_waited_for() {
    let world = World::default();
    let result = catch_unwind(AssertUnwindSafe(|| drop(chain(&["panic"]).solve(&world, &Memory::default()))));
    assert!(result.is_err());
}

#[test]
fn a_chain_of_20000_steps_needs_no_stack_and_little_time() {
    let world = World::default();
    let commands: Vec<String> = (0..20_000).map(|number| format!("write f {number}")).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let file = chain(&commands);
    let images = file.solve_with(&world, &[], 2, &Cancel::default()).expect("builds");
    assert_eq!(images[0].layers.len(), 20_001);
    assert_eq!(world.files(&images[0])["f"], "19999");
}

#[test]
fn a_diamond_of_2000_vertices_is_solved() {
    let (world, cache) = (World::default(), Memory::default());
    let mut file = Dockerfile::default();
    let mut tip = file.image("base", "here");
    for number in 0..500 {
        let sides = [0, 1].map(|side| file.run(tip, &format!("write f{side} {number}")));
        tip = file.copy(sides[0], sides[1], "f1");
        tip = file.run(tip, &format!("write g {number}"));
    }
    file.target(tip);
    let first = solved(&file, &world, &cache);
    assert_eq!(world.ran().len(), 2000);
    assert_eq!(solved(&file, &world, &cache), first);
    assert_eq!(world.ran().len(), 0);
}

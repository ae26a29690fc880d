//! What this machine cannot do is told before anything runs.

use super::{
    chain,
    fake::{Memory, World},
    solved,
};
use crate::{event::Event, traits::FailureKind};

fn without(command: &str) -> World {
    let world = World::default();
    world.impossible.lock().expect("no panic").push(command.to_owned());
    world
}

fn warnings(world: &World) -> Vec<String> {
    let text = |event| if let Event::Warning(text) = event { Some(text) } else { None };
    world.events().into_iter().filter_map(text).collect()
}

#[test]
fn a_step_that_is_sure_to_be_run_fails_before_any_other() {
    let world = without("write b 1");
    let mut file = chain(&["write a 1", "write c 1"]);
    let base = file.image("base", "here");
    let impossible = file.run(base, "write b 1");
    file.target(impossible);
    let error = file.solve(&world, &Memory::default()).expect_err("it cannot be run");
    assert_eq!((error.vertex, error.failure.kind), (impossible, FailureKind::Machine));
    assert_eq!(world.ran(), [""; 0]);
}

#[test]
fn what_the_cache_knows_need_not_be_possible() {
    let (world, cache) = (World::default(), Memory::default());
    let file = chain(&["write a 1", "write b 1"]);
    let first = solved(&file, &world, &cache);
    world.impossible.lock().expect("no panic").push("write b 1".to_owned());
    assert_eq!(solved(&file, &world, &cache), first, "by definition");
    // What comes before has changed, and gives the same.
    world.ran();
    world.events();
    assert_eq!(solved(&chain(&["write a 1 # changed", "write b 1"]), &world, &cache), first, "by content");
    assert_eq!(world.ran(), ["write a 1 # changed"]);
    let told = warnings(&world);
    assert!(told.len() == 1 && told[0].contains("will fail unless the cache knows"), "{told:?}");
}

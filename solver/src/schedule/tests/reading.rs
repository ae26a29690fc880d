//! What makes a step run again that reads more than the file system it stands on.

use std::collections::BTreeMap;

use super::{
    fake::{Dockerfile, Memory, World},
    solved,
};

#[test]
fn a_linked_copy_is_not_made_again_on_another_base() {
    let (world, cache) = (World::default(), Memory::default());
    world.context.lock().expect("no panic").insert("src".to_owned(), "1".to_owned());
    let file = |base: &str| {
        let mut file = Dockerfile::default();
        let base = file.image(base, "here");
        let context = file.context("src");
        let linked = file.link(base, context, "src");
        file.target(linked);
        file
    };
    let first = solved(&file("one"), &world, &cache);
    assert_eq!(world.ran(), ["copy to /to", "merge"]);
    let second = solved(&file("two"), &world, &cache);
    assert_eq!(world.ran(), ["merge"]);
    assert_eq!(first[0].layers[1], second[0].layers[1]);
    assert_ne!(first[0].layers[0], second[0].layers[0]);
    assert_eq!(world.files(&second[0]), BTreeMap::from([("/to/src".to_owned(), "1".to_owned())]));
    solved(&file("two"), &world, &cache);
    assert_eq!(world.ran(), [""; 0]);
    world.context.lock().expect("no panic").insert("src".to_owned(), "2".to_owned());
    solved(&file("two"), &world, &cache);
    assert_eq!(world.ran(), ["copy to /to", "merge"]);
}

#[test]
fn a_mount_is_read_at_its_source_only() {
    let (world, cache) = (World::default(), Memory::default());
    let file = |source: &str, text: &str, noise: &str| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let tool = file.run(base, &format!("write tool {text}"));
        let tools = file.run(tool, noise);
        let ran = file.mount(base, tools, source, "write out 1");
        file.target(ran);
        file
    };
    solved(&file("/tool", "1", "write log 1"), &world, &cache);
    world.ran();
    solved(&file("/tool", "1", "write log 2"), &world, &cache);
    assert_eq!(world.ran(), ["write log 2"], "the log is not in the mount");
    solved(&file("/tool", "2", "write log 2"), &world, &cache);
    assert_eq!(world.ran(), ["write log 2", "write out 1", "write tool 2"], "the tool is");
}

#[test]
fn a_mount_of_everything_is_known_without_looking() {
    let (world, cache) = (World::default(), Memory::default());
    let file = |noise: &str| {
        let mut file = Dockerfile::default();
        let base = file.image("base", "here");
        let tools = file.run(base, noise);
        let ran = file.mount(base, tools, "/", "write out 1");
        file.target(ran);
        file
    };
    solved(&file("write log 1"), &world, &cache);
    world.ran();
    solved(&file("write log 2"), &world, &cache);
    assert_eq!(world.ran(), ["write log 2", "write out 1"]);
    assert_eq!(world.selections(), 0);
}

//! What a step has changed in a copy is what it would have changed in an overlay, and so is what it leaves on disk: random
//! changes of one file system, made to both.
//!
//! Left out is what an overlay does otherwise than any other file system: files with several names, which it parts when one of
//! them is written through, are replaced, removed and copied here, and moved with all their names.

use std::{collections::BTreeSet, path::Path};

use oci::Tree;
use proptest::prelude::*;

use super::tests::{rules, scan_of, scan_of_copy, shown_tree};
use crate::{
    listing::Owners,
    testing::{Copied, Overlaid, show},
};

const LOWER: &[&str] = &[
    "a = one ; @1000",
    "b = two",
    "d/ ; 0750 @2000",
    "d/a = three ; 0600 1:2",
    "d/b -> elsewhere",
    "d/e/ ; 1777",
    "d/e/a = four ; user.a=b",
    "d/e/b | ; 0600",
    "e/a = five ; 4755 @3000",
    "e/n c1,3",
    "h/ @2000",
    "h/x = linked ; @1000",
    "h/y => h/x",
    "h/z => h/x",
    "s = ",
];

/// Places that things come from and go to; what is not there makes a command fail, which is as good.
const PLACES: &[&str] =
    &["a", "b", "c", "d", "d/a", "d/b", "d/c", "d/e", "d/e/a", "d/e/b", "e", "e/a", "e/n", "h", "s", "n/m"];
/// Names of one file.
const LINKED: &[&str] = &["h/x", "h/y", "h/z"];

/// What cp makes of a directory inside itself depends on the order in which the file system lists names.
const INTO_ITSELF: &str = "a directory copied into itself";

fn is_apart((from, to): &(&str, &str)) -> bool {
    !Path::new(to).starts_with(from)
}

/// A command of a step.
fn command() -> impl Strategy<Value = String> {
    let place = || prop::sample::select(PLACES);
    let linked = || prop::sample::select(LINKED);
    let any = || prop_oneof![place(), linked()];
    let time = || prop::sample::select(&["@1000", "@1000.5", "@2000", "@1900000000", "@1900000001.25"][..]);
    let mode = || prop::sample::select(&["600", "644", "755", "4755", "1777", "750"][..]);
    let text = || prop::sample::select(&["one", "two", "three", "linked", "", "long text"][..]);
    prop_oneof![
        4 => (place(), text()).prop_map(|(at, text)| format!("test ! -d {at} && test ! -p {at} && printf '{text}' > {at}")),
        2 => (place(), text()).prop_map(|(at, text)| format!("test -f {at} && printf '{text}' >> {at}")),
        2 => (any(), text()).prop_map(|(at, text)| format!("rm -rf t; printf '{text}' > t && mv -T t {at}")),
        2 => any().prop_map(|at| format!("test ! -d {at} && rm -rf t && cp -a {at} t && mv -T t {at}")),
        4 => any().prop_map(|at| format!("rm -r {at}")),
        2 => place().prop_map(|at| format!("mkdir -p {at}")),
        2 => place().prop_map(|at| format!("rm -r {at}; mkdir {at}")),
        3 => (place(), place()).prop_map(|(from, to)| format!("mv -T {from} {to}")),
        2 => (place(), place()).prop_map(|(one, other)| format!("rm -rf t; mv -T {one} t && mv -T {other} {one} && mv -T t {other}")),
        3 => (any(), place()).prop_filter(INTO_ITSELF, is_apart).prop_map(|(from, to)| format!("cp -aT --remove-destination {from} {to}")),
        2 => (place(), place()).prop_map(|(from, to)| format!("test ! -d {from} && ln -PT {from} {to}")),
        1 => place().prop_map(|at| format!("ln -sfn elsewhere {at}")),
        1 => place().prop_map(|at| format!("mkfifo {at}")),
        1 => place().prop_map(|at| format!("mknod {at} c 1 5")),
        2 => (place(), mode()).prop_map(|(at, mode)| format!("chmod {mode} {at}")),
        1 => (place(), mode()).prop_map(|(at, mode)| format!("chmod {mode} {at}; chmod 644 {at}")),
        1 => place().prop_map(|at| format!("chown -h 3:4 {at}")),
        1 => place().prop_map(|at| format!("chown -h 0:0 {at}")),
        2 => place().prop_map(|at| format!("touch -h {at}")),
        2 => (place(), time()).prop_map(|(at, time)| format!("touch -h -d {time} {at}")),
        1 => place().prop_map(|at| format!("setfattr -n user.a -v c {at}")),
        1 => place().prop_map(|at| format!("setfattr -x user.a {at}")),
        1 => Just("find . -type f | sort > list; rm list".to_owned()),
    ]
}

fn script(commands: &[String]) -> String {
    commands.iter().map(|command| format!("{{ {command}; }} 2>/dev/null || true\n")).collect()
}

/// Names of one file that hold a file together on the copy and are parted on an overlay.
fn parts_names(overlay: &Overlaid, copied: &Copied) -> bool {
    let links = |root: &std::os::fd::OwnedFd| {
        show(root).into_iter().filter(|line| line.contains(" => ")).collect::<Vec<_>>()
    };
    links(&overlay.root) != links(&copied.root)
}

fn check(commands: &[String]) -> Result<(), TestCaseError> {
    let Some(mut overlay) = Overlaid::new(LOWER) else { return Ok(()) };
    let copied = Copied::new(LOWER);
    let script = script(commands);
    overlay.run(&script);
    copied.run(&script);
    prop_assume!(!parts_names(&overlay, &copied));
    let nothing = BTreeSet::new();
    let of_overlay = scan_of(&mut overlay, rules(&nothing), &Owners::new()).expect("a layer");
    let of_copy = scan_of_copy(&copied, rules(&nothing)).expect("a layer");
    let upper = overlay.upper();
    prop_assert_eq!(
        shown_tree(&of_copy.tree, &copied.path()),
        shown_tree(&of_overlay.tree, &upper),
        "{}",
        script
    );
    prop_assert_eq!(Tree::digest(&of_copy.tree), Tree::digest(&of_overlay.tree));
    overlay.stack();
    prop_assert_eq!(show(&copied.root), show(&overlay.root), "on disk: {}", script);
    Ok(())
}

/// A copied-up file that was moved away, and a new one in its place that turns out to be what was there.
#[test]
fn what_shows_again_is_not_what_was_moved() {
    let moves =
        [("b", "two", "c"), ("b", "two", "d/a"), ("s", "", "a"), ("s", "", "d/a"), ("d/a", "three", "e/a")];
    for (moved, text, place) in moves {
        let anew =
            format!("mv -T {moved} {place}; printf '{text}' > {moved}; chmod --reference={place} {moved}");
        let owned = format!("chown --reference={place} {moved}");
        check(&[anew, owned, format!("printf more >> {place}")]).expect("alike");
    }
}

fn cases() -> u32 {
    if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_some() { 3000 } else { 48 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_says_what_an_overlay_says(commands in prop::collection::vec(command(), 1..12)) {
        check(&commands)?;
    }
}

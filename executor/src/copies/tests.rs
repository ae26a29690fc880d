use super::*;
use crate::testing::Copied;

/// What the file system knows of a copy, and whether we have changed times in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ground {
    Plain,
    /// Nobody knows when anything was made.
    Ageless,
    Restamped,
}

/// Two names of one file, after a script that keeps the first if it keeps any.
fn after(ground: Ground, script: &str) -> Copied {
    let mut copied = Copied::new(&["a = text", "b => a"]);
    if ground == Ground::Ageless {
        copied.twins.originals.values_mut().for_each(|original| original.born = None);
    }
    if ground == Ground::Restamped {
        let times = Copied::new(&["a = ; @1000000", "b => a"]);
        restamp(&copied.root, &times.root, &mut copied.twins).expect("other times");
    }
    copied.run(script);
    copied
}

#[test]
fn what_has_become_of_one_of_several_names_is_told_by_its_file() {
    use Bond::{Changed, Kept, Loosened, None, Touched};
    // Written, and as large and as old as before.
    let alike = "touch -r a r; printf TEXT >a; touch -r r a; rm r b";
    for (script, expected) in [
        ("true", Kept),
        ("rm b", Loosened),
        ("echo longer >a", Touched),
        ("ln a c", Touched),
        ("chmod 600 a; rm b", Changed),
        ("echo longer >b; rm b", Changed),
        ("printf TEXT >b; rm b", Changed),
        (alike, Loosened),
        ("cp a n; mv n a", None),
    ] {
        for ground in [Ground::Plain, Ground::Ageless, Ground::Restamped] {
            let copied = after(ground, script);
            let stat = lstat(&copied.root, b"a").expect("looked at").expect("it is there");
            let bond = copied.twins.bond(&stat, || born(&copied.root, b"a")).expect("looked at");
            assert_eq!(bond, expected, "{ground:?}: {script}");
        }
    }
}

#[test]
fn what_was_changed_is_missed_when_all_its_names_are_gone() {
    for ground in [Ground::Plain, Ground::Ageless, Ground::Restamped] {
        for (script, expected) in
            [("rm a b", false), ("echo longer >a; rm a b", true), ("chmod 600 a; rm a b", true)]
        {
            let lost = after(ground, script).twins.has_lost_a_changed_one().expect("looked at");
            assert_eq!(lost, expected, "{ground:?}: {script}");
        }
    }
}

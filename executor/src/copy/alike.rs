//! What is planned is what would have been written: every case of the other tests, and random ones.

use std::{os::fd::AsFd, path::Path};

use oci::Tree;
use proptest::prelude::*;

use super::{
    tests::{listed, told},
    *,
};
use crate::{
    beneath::Beneath,
    diff::{Brought, Lower, TimeRules, Upper, UpperKind, scan},
    testing::{Overlaid, draw},
};

/// The layer that a step has written into an overlay.
fn scanned(overlay: &mut Overlaid, below: &Owners, owners: &Owners) -> Tree {
    overlay.unmount();
    let lower = Lower { root: overlay.lower.as_fd(), owners: below };
    let rules = TimeRules { timestamps: Timestamps::Auto, brought: Brought::All };
    let upper = Upper { path: &overlay.upper(), kind: UpperKind::Overlay(overlay.marks()), owners };
    scan(upper, lower, rules, &Cancel::default()).expect("a layer").tree
}

fn below(overlay: &Overlaid, owners: &Owners) -> Beneath {
    Beneath::on_disk(overlay.lower.try_clone().expect("a descriptor"), owners.clone())
}

/// Says where the plan of a step differs from what the step has written into an overlay, or from how it failed.
pub(super) fn planned_is_written(
    source: &Path,
    mut overlay: Overlaid,
    step: &str,
    owners: &Owners,
    failed: Option<&str>,
) -> Result<(), String> {
    let Ok((step, listings)) = listed(source, step) else { return Ok(()) };
    let below = below(&overlay, &Owners::new());
    match (plan(&step, &listings, &below, &Cancel::default()), failed) {
        (Ok(None), _) => Ok(()),
        (Ok(Some(_)), Some(failed)) => Err(format!("was planned, but not written: {failed}")),
        (Ok(Some(planned)), None) => {
            let written = scanned(&mut overlay, &Owners::new(), owners);
            difference(&planned.tree, &written)
        }
        (Err(error), Some(failed)) if told(&error) == failed => Ok(()),
        (Err(error), failed) => Err(format!("was not planned: {error}, and {failed:?}")),
    }
}

fn difference(planned: &Tree, written: &Tree) -> Result<(), String> {
    let line = |entry: &oci::Entry| format!("{} {:?} {:?}", shown(&entry.path), entry.kind, entry.metadata);
    let lines = |tree: &Tree| tree.entries().iter().map(line).collect::<Vec<_>>();
    let (planned, written) = (lines(planned), lines(written));
    let only = |some: &[String], others: &[String]| {
        some.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>().join("\n  ")
    };
    match planned == written {
        true => Ok(()),
        false => {
            Err(format!("planned\n  {}\nwritten\n  {}", only(&planned, &written), only(&written, &planned)))
        }
    }
}

/// Lines of a small drawing: names from a small set, so that things meet.
fn drawing() -> impl Strategy<Value = Vec<String>> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/f", "l"]);
    let what = prop::sample::select(vec![
        " = x",
        " = y",
        " = x ; 0600",
        " = x ; @1000",
        " = x ; 0640 5:6",
        "/",
        "/ 0700",
        "/ @2000",
        "/ 0750 7:8",
        " -> d",
        " -> /d/e",
        " -> a",
        " | ; 0644",
        " = z ; user.k=v",
    ]);
    let line = (name, what).prop_map(|(name, what)| (name.to_owned(), what.to_owned()));
    prop::collection::vec(line, 0..8).prop_map(|lines| {
        let mut drawn: BTreeMap<String, String> = BTreeMap::new();
        for (name, what) in lines {
            // What lies in something must lie in a directory, and nothing stands twice.
            let inside = format!("{name}/");
            let is_directory = what.starts_with('/');
            let parents = name.match_indices('/').map(|(end, _)| &name[..end]);
            let fits =
                parents.into_iter().all(|parent| drawn.get(parent).is_none_or(|what| what.starts_with('/')))
                    && (is_directory || !drawn.keys().any(|other| other.starts_with(&inside)));
            if fits {
                drawn.insert(name, what);
            }
        }
        drawn.into_iter().map(|(name, what)| name + &what).collect()
    })
}

fn step() -> impl Strategy<Value = String> {
    let flags = prop::sample::select(vec![
        "",
        "--from ",
        "--chown=5:6 ",
        "--chmod=750 ",
        "--from --chmod=go-w ",
        "--exclude=**/a ",
        "--parents ",
        "--from --parents ",
    ]);
    let source = prop::sample::select(vec![".", "a", "d", "d/e", "*", "d/*", "a b", "d a", "d d/e ."]);
    let destination = prop::sample::select(vec!["/", "/t", "/t/", "/d", "/d/e/", "/l/", "/a", "/x/y/"]);
    (flags, source, destination).prop_map(|(flags, source, destination)| {
        let source = if source == "." { "" } else { source };
        format!("COPY {flags}{source} {destination}")
    })
}

fn as_strs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_planned_is_what_would_be_written(source in drawing(), image in drawing(), step in step()) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let Some(overlay) = Overlaid::new(&as_strs(&image)) else { return Ok(()) };
        draw(temp.path(), &as_strs(&source));
        let copied = tests::run(temp.path(), &overlay, &step);
        let (owners, failed) = match copied {
            Ok(owners) => (owners, None),
            Err(error) => (Owners::new(), Some(error)),
        };
        let alike = planned_is_written(temp.path(), overlay, &step, &owners, failed.as_deref());
        prop_assert!(alike.is_ok(), "{}", alike.unwrap_err());
    }

    /// The second of two steps, planned on the plan of the first, and written on what that has written.
    #[test]
    fn a_plan_can_stand_on_a_plan(
        source in drawing(), image in drawing(), first in step(), second in step(),
    ) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let Some(mut overlay) = Overlaid::new(&as_strs(&image)) else { return Ok(()) };
        draw(temp.path(), &as_strs(&source));
        let cancel = Cancel::default();
        let (Ok((one, from_one)), Ok((two, from_two))) = (listed(temp.path(), &first), listed(temp.path(), &second))
        else { return Ok(()) };
        let Ok(Some(planned)) = plan(&one, &from_one, &below(&overlay, &Owners::new()), &cancel) else {
            return Ok(());
        };
        prop_assert!(tests::run(temp.path(), &overlay, &first).is_ok());
        scanned(&mut overlay, &Owners::new(), &Owners::new());
        let on_plan = below(&overlay, &Owners::new()).with(planned.tree, planned.origins);
        overlay.stack();
        let on_disk = Beneath::on_disk(overlay.root.try_clone().expect("a descriptor"), Owners::new());
        let planned = plan(&two, &from_two, &on_plan, &cancel);
        let expected = plan(&two, &from_two, &on_disk, &cancel);
        match (planned, expected) {
            (Ok(Some(planned)), Ok(Some(expected))) => {
                let alike = difference(&planned.tree, &expected.tree);
                prop_assert!(alike.is_ok(), "{}", alike.unwrap_err());
            }
            (Ok(None), Ok(None)) => {}
            (Err(planned), Err(expected)) => prop_assert_eq!(planned.to_string(), expected.to_string()),
            (planned, expected) => prop_assert!(false, "{planned:?} but {expected:?}"),
        }
    }
}

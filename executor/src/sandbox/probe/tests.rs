//! How trials become the table.

use super::*;

fn reached(rung: Rung) -> Reached {
    let footing =
        Footing { rung, processes: Processes::Own, files: Files::Merged, relaxed: Relaxations::default() };
    Reached { footing, id_map: "ids".to_owned(), refusals: Vec::new(), note: None }
}

#[test]
fn a_limit_of_open_files_stands_beside_what_lifts_it() {
    assert!(matches!(open_files(None), Outcome::Works(how) if how.contains("524288")));
    let Outcome::Fails { reason, remedy } = open_files(Some(20_000)) else { panic!("it is too low") };
    assert!(reason.contains("20000 files, not 524288"), "{reason}");
    assert!(remedy.expect("there is one").contains("LimitNOFILE=524288"));
}

#[test]
fn root_of_a_namespace_stands_on_the_rung_of_its_ids() {
    let tried = |rung, found| Trial { rung, mode: Mode::Auto, result: Ok(reached(found)) };
    let failed = |rung| Trial {
        rung,
        mode: Mode::SubordinateIds,
        result: Err(SandboxError::step("/etc/subuid", "no range", Some("usermod".to_owned()))),
    };
    let one = Rung::SingleId;
    let trials = distinct(vec![tried(Rung::Root, one), failed(Rung::SubordinateIds), tried(one, one)]);
    let found: Vec<_> = trials.iter().map(|trial| (trial.rung, trial.result.is_ok())).collect();
    assert_eq!(found, [(Rung::SubordinateIds, false), (one, true)]);
    assert_eq!(trials[1].mode, Mode::Auto, "what a build would take");
}

#[test]
fn root_hears_what_a_user_namespace_lacks_for_it() {
    let refused = SandboxError::step("/etc/subuid", "no range", Some("usermod".to_owned()));
    let trials = vec![
        Trial { rung: Rung::Root, mode: Mode::Auto, result: Ok(reached(Rung::Root)) },
        Trial { rung: Rung::SubordinateIds, mode: Mode::SubordinateIds, result: Err(refused) },
    ];
    let Outcome::NotNeeded(told) = &rungs(&trials)[1].outcome else { panic!("no build needs it") };
    assert!(told.contains("--sandbox=userns is refused: sandbox: /etc/subuid: no range (usermod)"), "{told}");
}

#[test]
fn below_a_rung_that_works_nothing_is_missed() {
    let trial = |rung, works: bool| Trial {
        rung,
        mode: Mode::Auto,
        result: if works { Ok(reached(rung)) } else { Err(SandboxError::step("x", "no", None)) },
    };
    let of = |outcomes: [bool; 3]| {
        let rungs_in_order = [Rung::Root, Rung::SubordinateIds, Rung::SingleId];
        let trials: Vec<Trial> =
            rungs_in_order.into_iter().zip(outcomes).map(|(rung, works)| trial(rung, works)).collect();
        let mark = |probe: Probe| match probe.outcome {
            Outcome::Works(_) => "ok",
            Outcome::Fails { .. } => "no",
            Outcome::NotNeeded(_) => "-",
        };
        rungs(&trials).into_iter().map(mark).collect::<Vec<_>>()
    };
    assert_eq!(of([true, false, true]), ["ok", "-", "ok"]);
    assert_eq!(of([false, true, false]), ["no", "ok", "-"]);
    assert_eq!(of([false, false, true]), ["no", "no", "ok"]);
}

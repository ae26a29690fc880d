//! The sandbox, for real: every test runs on every rung this machine and this user can take.
//!
//! There is no test harness of Rust's here, since this binary is also the init of its own sandboxes, the program that
//! looks around inside of them, and the builder that gets killed. As root it starts itself anew as `lw-sub` (with
//! subordinate ids) and `lw-one` (without) where these users exist; as an ordinary user it tests his own rungs.
//! `cargo test --test sandbox -- NAME` runs the tests whose name contains NAME.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics has failed")]

mod confinement;
mod fixture;
mod inside;
mod life;
mod limits;
mod mounts;
mod output;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, ExitCode},
};

use executor::sandbox::{self, Mode, Rung};

use crate::fixture::Fixture;

/// A test and its name.
type Test = (&'static str, fn(&Fixture));

fn main() -> ExitCode {
    if sandbox::is_init_call() {
        sandbox::init_main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["inside", what] => inside::main(what),
        // A #! line has one argument, and the script follows.
        ["inside program", _script] => inside::main("program"),
        ["builder", directory, command] => life::builder(Path::new(directory), command),
        ["rung", mode, expected, filter] => run_rung(mode, expected, filter),
        words => {
            let filter = words.iter().find(|word| !word.starts_with('-')).unwrap_or(&"");
            drive(filter)
        }
    }
}

/// A way to a rung: as whom, which mode, and where that leads.
struct Way {
    user: Option<(u32, u32)>,
    mode: &'static str,
    rung: Rung,
}

fn drive(filter: &str) -> ExitCode {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("sandbox-test");
    fs::copy("/proc/self/exe", &program).unwrap();
    let mut failed = false;
    for way in ways() {
        let mut command = Command::new(&program);
        command.args(["rung", way.mode, &format!("{:?}", way.rung), filter]).current_dir("/");
        if let Some((uid, gid)) = way.user {
            command.uid(uid).gid(gid);
        }
        failed |= !command.status().unwrap().success();
    }
    ExitCode::from(u8::from(failed))
}

fn ways() -> Vec<Way> {
    let own = |mode, rung| Way { user: None, mode, rung };
    if !rustix::process::geteuid().is_root() {
        let has_ranges = fixture::subordinate_ids_of_this_user();
        let best = if has_ranges { Rung::SubordinateIds } else { Rung::SingleId };
        return vec![own("auto", best), own("single", Rung::SingleId)];
    }
    let mut ways = vec![own("auto", Rung::Root), own("single", Rung::SingleId)];
    for (name, rung) in [("lw-sub", Rung::SubordinateIds), ("lw-one", Rung::SingleId)] {
        match fixture::ids_of(name) {
            Some(user) => ways.push(Way { user: Some(user), mode: "auto", rung }),
            None => println!("SKIPPED: everything as {name}: there is no such user (`make test` makes it)"),
        }
    }
    ways
}

fn run_rung(mode: &str, expected: &str, filter: &str) -> ExitCode {
    let mode = if mode == "single" { Mode::SingleId } else { Mode::Auto };
    let entered = sandbox::enter_builder(mode).unwrap_or_else(|error| panic!("{error}: {:?}", error.hint()));
    assert_eq!(format!("{:?}", entered.rung), expected, "{:?}", entered.notes);
    let Some(fixture) = Fixture::new(&entered) else {
        println!("SKIPPED: the sandbox tests: no static busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    };
    let tests = [confinement::TESTS, mounts::TESTS, life::TESTS, limits::TESTS, output::TESTS].concat();
    let mut failed = 0;
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(filter)) {
        let passed = catch_unwind(AssertUnwindSafe(|| test(&fixture))).is_ok();
        println!("test {}: {name} ... {}", entered.rung, if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}

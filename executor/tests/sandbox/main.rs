//! The sandbox, for real: every test runs on every rung this machine and this user can take.
//!
//! There is no test harness of Rust's here, since this binary is also the init of its own sandboxes, the program that
//! looks around inside of them, and the builder that gets killed. As root it starts itself anew as `lw-sub` (with
//! subordinate ids) and `lw-one` (without) where these users exist; as an ordinary user it tests his own rungs.
//! `cargo test --test sandbox -- NAME` runs the tests whose name contains NAME.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics has failed")]

mod chroot;
mod confinement;
mod fixture;
mod inside;
mod life;
mod limits;
mod mounts;
mod outer;
mod output;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, ExitCode},
};

use executor::sandbox::{self, Footing, Mode, Processes, Rung};

use solver::op::Relaxations;

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

/// A way to a rung: as whom, which mode, what the machine forbids, and where that leads.
struct Way {
    user: Option<(u32, u32)>,
    mode: &'static str,
    rung: Rung,
    machine: Machine,
}

/// What is taken away before a builder begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    AsItIs,
    /// A part of `/proc` is covered, as in a container.
    MaskedProc,
    /// The user may have no PID namespaces.
    NoPidNamespaces,
}

impl Machine {
    fn processes(self) -> Processes {
        match self {
            Machine::AsItIs => Processes::Own,
            Machine::MaskedProc => Processes::OuterProc,
            Machine::NoPidNamespaces => Processes::Shared,
        }
    }

    /// A command on such a machine, which only root can make one.
    fn command(self, program: &Path, user: Option<(u32, u32)>) -> Command {
        const MASKED: &str = "mount -t tmpfs none /proc/fs && exec setpriv --reuid $1 --regid $2 --clear-groups -- \
                              \"$3\" \"$4\" \"$5\" \"$6\" \"$7\"";
        const NO_PIDS: &str = "echo 0 >/proc/sys/user/max_pid_namespaces && exec \"$@\"";
        let Some((uid, gid)) = user else { return Command::new(program) };
        let mut command = match self {
            Machine::AsItIs => Command::new(program),
            Machine::MaskedProc => Command::new("unshare"),
            Machine::NoPidNamespaces => Command::new("unshare"),
        };
        match self {
            Machine::AsItIs => drop(command.uid(uid).gid(gid)),
            Machine::MaskedProc => {
                command.args(["--mount", "--", "sh", "-c", MASKED, "sh"]);
                command.args([uid.to_string(), gid.to_string()]).arg(program);
            }
            Machine::NoPidNamespaces => {
                command.uid(uid).gid(gid).args(["--user", "--map-root-user", "--map-auto", "--"]);
                command.args(["sh", "-c", NO_PIDS, "sh"]).arg(program);
            }
        }
        command
    }
}

fn drive(filter: &str) -> ExitCode {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("sandbox-test");
    fs::copy("/proc/self/exe", &program).unwrap();
    let mut failed = false;
    for way in ways() {
        if (way.machine == Machine::NoPidNamespaces || way.rung == Rung::Chroot) && !has_scopes() {
            println!("SKIPPED: steps that share the machine's processes: this kernel has no Landlock scopes");
            continue;
        }
        let mut command = way.machine.command(&program, way.user);
        let processes = match way.rung {
            Rung::Chroot => Processes::Shared,
            _ => way.machine.processes(),
        };
        let expected = format!("{:?} {processes:?}", way.rung);
        command.args(["rung", way.mode, &expected, filter]).current_dir("/");
        failed |= !command.status().unwrap().success();
    }
    ExitCode::from(u8::from(failed))
}

/// Linux 6.12; before, whoever can have no PID namespaces is refused.
fn has_scopes() -> bool {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

fn ways() -> Vec<Way> {
    let machine = Machine::AsItIs;
    let own = |mode, rung| Way { user: None, mode, rung, machine };
    if !rustix::process::geteuid().is_root() {
        let has_ranges = fixture::subordinate_ids_of_this_user();
        let best = if has_ranges { Rung::SubordinateIds } else { Rung::SingleId };
        return vec![own("auto", best), own("single", Rung::SingleId)];
    }
    let mut ways = vec![own("auto", Rung::Root), own("single", Rung::SingleId), own("chroot", Rung::Chroot)];
    for (name, rung) in [("lw-sub", Rung::SubordinateIds), ("lw-one", Rung::SingleId)] {
        match fixture::ids_of(name) {
            Some(user) => {
                let way = |machine| Way { user: Some(user), mode: "auto", rung, machine };
                ways.push(way(Machine::AsItIs));
                // What a machine forbids it forbids to either.
                let weaker = [Machine::MaskedProc, Machine::NoPidNamespaces].map(way);
                ways.extend(weaker.into_iter().filter(|_| rung == Rung::SubordinateIds));
            }
            None => println!("SKIPPED: everything as {name}: there is no such user (`make test` makes it)"),
        }
    }
    ways
}

fn run_rung(mode: &str, expected: &str, filter: &str) -> ExitCode {
    let mode = match mode {
        "single" => Mode::SingleId,
        "chroot" => Mode::Chroot,
        _ => Mode::Auto,
    };
    let entered = sandbox::enter_builder(mode, Relaxations::default())
        .unwrap_or_else(|error| panic!("{error}: {:?}", error.hint()));
    let Footing { rung, processes, .. } = entered.footing;
    assert_eq!(format!("{rung:?} {processes:?}"), expected, "{:?}", entered.notes);
    let Some(fixture) = Fixture::new(&entered) else {
        println!("SKIPPED: the sandbox tests: no static busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    };
    let tests = match processes {
        _ if rung == Rung::Chroot => [chroot::TESTS, output::TESTS].concat(),
        Processes::Own => {
            [confinement::TESTS, mounts::TESTS, life::TESTS, limits::TESTS, output::TESTS].concat()
        }
        _ => [outer::TESTS, life::TESTS, limits::TESTS, output::TESTS].concat(),
    };
    let mut failed = 0;
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(filter)) {
        let passed = catch_unwind(AssertUnwindSafe(|| test(&fixture))).is_ok();
        println!("test {}: {name} ... {}", entered.footing, if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}

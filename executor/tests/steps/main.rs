//! Steps, for real: base layers from an OCI layout, COPY, RUN and WORKDIR, on every rung this machine and this user can take.
//!
//! Every rung must make the same trees, so the expected ones stand in the tests. There is no test harness of Rust's
//! here, since this binary is also the init of the sandboxes. As root it starts itself anew as `lw-sub` (with
//! subordinate ids) and `lw-one` (without) where these users exist; as an ordinary user it tests his own rung.
//! `cargo test --test steps -- NAME` runs the tests whose name contains NAME.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics has failed")]

mod cache_mounts;
mod cases;
mod ground;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode},
};

use executor::sandbox;
use solver::op::Relaxations;

use crate::ground::Ground;

fn main() -> ExitCode {
    if sandbox::is_init_call() {
        sandbox::init_main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["on-this-rung", filter] => run(filter),
        words => drive(words.iter().find(|word| !word.starts_with('-')).unwrap_or(&"")),
    }
}

fn drive(filter: &str) -> ExitCode {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("steps-test");
    fs::copy("/proc/self/exe", &program).unwrap();
    // Everybody at once, since a step waits more than it works; what each has printed is shown in one piece.
    let running: Vec<_> = users()
        .into_iter()
        .enumerate()
        .map(|(number, user)| {
            let output = directory.path().join(number.to_string());
            let file = fs::File::create(&output).unwrap();
            let mut command = Command::new(&program);
            command.args(["on-this-rung", filter]).current_dir("/");
            command.stdout(file.try_clone().unwrap()).stderr(file);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            (command.spawn().unwrap(), output)
        })
        .collect();
    let mut failed = false;
    for (mut process, output) in running {
        failed |= !process.wait().unwrap().success();
        print!("{}", String::from_utf8_lossy(&fs::read(output).unwrap()));
    }
    ExitCode::from(u8::from(failed))
}

/// As whom the tests run; `None` is whoever runs them.
fn users() -> Vec<Option<(u32, u32)>> {
    let mut users = vec![None];
    if rustix::process::geteuid().is_root() {
        for name in ["lw-sub", "lw-one"] {
            match ids_of(name) {
                Some(ids) => users.push(Some(ids)),
                None => {
                    println!("SKIPPED: the steps as {name}: there is no such user (`make test` makes it)")
                }
            }
        }
    }
    users
}

fn ids_of(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next()?, ids.next()?))
}

fn run(filter: &str) -> ExitCode {
    let entered = sandbox::enter_builder(sandbox::Mode::Auto, Relaxations::default())
        .unwrap_or_else(|error| panic!("{error}: {:?}", error.hint()));
    let Some(busybox) = ground::static_busybox() else {
        println!("SKIPPED: the steps: no static busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    };
    let mut failed = 0;
    for (name, test) in
        cases::TESTS.iter().chain(cache_mounts::TESTS).filter(|(name, _)| name.contains(filter))
    {
        let ground = Ground::new(entered.footing.rung, &busybox);
        let passed = catch_unwind(AssertUnwindSafe(|| test(&ground))).is_ok();
        println!("test {}: {name} ... {}", entered.footing.rung, if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}

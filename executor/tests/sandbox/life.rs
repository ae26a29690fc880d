//! Nothing outlives its step, and no step its builder.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use executor::sandbox::{
    self, Connection, Exit, Mode, Network, PlanInputs, Processes, Root, Rung, SandboxError, SandboxPlan,
    Spares, StepLimits, User,
};
use rustix::process::{Pid, Signal, kill_process};
use solver::{
    Cancel,
    op::{self, Relaxations},
};

use crate::{Test, fixture::Fixture};

pub const TESTS: &[Test] = &[
    ("orphans", orphans),
    ("chains", chains),
    ("cancel", cancel),
    ("cancel_ignored", cancel_ignored),
    ("kill_the_builder", kill_the_builder),
    ("kill_the_init", kill_the_init),
    ("spares", spares),
];

/// What a process is found by that has this number of seconds to sleep.
fn marker(test: u32) -> String {
    format!("{}{test}", 1_000_000 + std::process::id())
}

fn processes_with(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        if words.contains(&marker.as_bytes()) {
            found.push(format!("{} {:?}", entry.file_name().display(), String::from_utf8_lossy(&command)));
        }
    }
    found
}

/// Waits for something that another process brings about.
fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::yield_now();
    }
}

fn assert_all_gone(marker: &str) {
    wait_until(&format!("processes with {marker} end"), Duration::from_secs(2), || {
        processes_with(marker).is_empty()
    });
}

/// Daemons of every kind: in a session of their own, deaf to SIGTERM, holding standard output.
pub fn orphans(fixture: &Fixture) {
    let marker = marker(1);
    let begun = Instant::now();
    let command = format!(
        "for i in $(seq 1 50); do setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' & done; sleep {marker} & echo started"
    );
    assert_eq!(fixture.output(&command), "started\n");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(processes_with(&marker), Vec::<String>::new());
}

/// Processes that live no longer than it takes to begin the next one, when a step ends and when it is cancelled. Shells notice
/// that they have begun their last one, in whatever way.
fn chains(fixture: &Fixture) {
    let marker = marker(5);
    let begin =
        format!("next() {{ next & }}; sleep {marker} & for i in $(seq 1 40); do (next) & done; echo ready");
    for (end, never) in [("", false), ("; wait", true)] {
        let cancel = Cancel::default();
        let watch = |_: &str| {
            if never {
                cancel.request()
            }
        };
        let ran = fixture.shell(&format!("{begin}{end}")).run_watched(&cancel, &watch);
        assert!(matches!(ran.exit, Ok(Exit::Code(_)) | Err(SandboxError::Cancelled)), "{ran:?}");
        assert_all_gone(&marker);
    }
}

pub fn cancel(fixture: &Fixture) {
    let marker = marker(2);
    let (cancel, begun) = (Cancel::default(), Instant::now());
    let command = format!("trap 'echo told; exit 0' TERM; echo ready; sleep {marker} & wait");
    let ran = fixture.shell(&command).run_watched(&cancel, &|line| {
        if line == "ready" {
            cancel.request();
        }
    });
    assert!(matches!(ran.exit, Err(SandboxError::Cancelled)), "{ran:?}");
    assert_eq!(ran.text(), "ready\ntold\n");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(processes_with(&marker), Vec::<String>::new());
}

/// Takes its ten seconds, so it runs on one rung for each way to end processes.
fn cancel_ignored(fixture: &Fixture) {
    if fixture.rung != Rung::Root && fixture.footing.processes != Processes::Shared {
        return;
    }
    let marker = marker(3);
    let (cancel, begun) = (Cancel::default(), Instant::now());
    let command = format!("trap '' TERM; echo ready; sleep {marker}; sleep {marker}; sleep {marker}");
    let ran = fixture.shell(&command).run_watched(&cancel, &|_| cancel.request());
    assert!(matches!(ran.exit, Err(SandboxError::Cancelled)), "{ran:?}");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(13), "{took:?}");
    assert_eq!(processes_with(&marker), Vec::<String>::new());
}

/// A builder that runs one step in a directory that has `lower`, `upper` and `work`, and says what the step says.
pub fn builder(directory: &Path, command: &str) -> ExitCode {
    let entered = sandbox::enter_builder(Mode::Auto, Relaxations::default()).unwrap();
    let exec = op::Exec {
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        ..op::Exec::new(["/bin/sh", "-c", command])
    };
    let at = |name: &str| directory.join(name);
    let plan = SandboxPlan::new(PlanInputs {
        exec: &exec,
        ambient_env: &[],
        footing: entered.footing,
        root: Root::Overlay { lowers: vec![at("lower")], upper: at("upper"), work: at("work") },
        mounts: Vec::new(),
        device_env: Vec::new(),
        secret_env: Vec::new(),
        user: User::default(),
        home: None,
        connection: Connection::resolved_by(Network::Default, String::new()),
        limits: &StepLimits::default(),
    })
    .unwrap();
    let exit =
        sandbox::run(&plan, &|_, line| println!("{}", String::from_utf8_lossy(line)), &Cancel::default());
    ExitCode::from(u8::from(exit.unwrap() != Exit::Code(0)))
}

fn start_builder(fixture: &Fixture, directory: &Path, command: &str) -> Child {
    for name in ["upper", "work"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(fixture.lower(), directory.join("lower")).unwrap();
    Command::new("/proc/self/exe")
        .args(["builder", directory.to_str().unwrap(), command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Twenty times: ten at an ever later moment of the set-up, ten while the command runs.
fn kill_the_builder(fixture: &Fixture) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for round in 0..20_u32 {
        let marker = marker(100 + round);
        let directory = tempfile::tempdir().unwrap();
        let command = format!("setsid sleep {marker} & sleep {marker} & echo ready; sleep {marker}");
        let mut builder = start_builder(fixture, directory.path(), &command);
        if round < 10 {
            let moment = Instant::now() + Duration::from_millis(2) * round;
            wait_until("the moment", Duration::from_secs(1), || Instant::now() >= moment);
        } else {
            let mut line = String::new();
            BufReader::new(builder.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
        }
        builder.kill().unwrap();
        builder.wait().unwrap();
        assert_all_gone(&marker);
        assert_all_gone(directory.path().to_str().unwrap());
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
}

/// The children of this process that are inits.
fn own_inits() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let mut inits = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if parent == Some(own.as_str()) && command.contains("sandbox-init") {
            inits.extend(entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw));
        }
    }
    inits
}

pub fn kill_the_init(fixture: &Fixture) {
    let marker = marker(4);
    let command = format!("setsid sleep {marker} & echo ready; sleep {marker}");
    let ran = fixture.shell(&command).run_watched(&Cancel::default(), &|_| {
        for init in own_inits() {
            kill_process(init, Signal::KILL).unwrap();
        }
    });
    assert!(matches!(ran.exit, Err(SandboxError::InitDied(_))), "{ran:?}");
    assert_all_gone(&marker);
}

/// From the second step on an init waits for the next one, which takes that, or its own where somebody has killed it; with
/// the last step it goes.
fn spares(fixture: &Fixture) {
    let spares = Spares::default();
    // It is still there while it is looked at: it ends when it is told to.
    let command = format!("echo ready; exec sleep {}", marker(6));
    let run = |watch: &(dyn Fn() + Sync)| {
        let cancel = Cancel::default();
        let seen = |_, _: &[u8]| {
            watch();
            cancel.request();
        };
        let exit = spares.run(&fixture.shell(&command).plan(), &seen, &cancel);
        assert!(matches!(exit, Err(SandboxError::Cancelled)), "{exit:?}");
    };
    run(&|| {});
    assert_eq!(own_inits(), []);
    run(&|| {});
    for is_killed in [false, true, false] {
        wait_until("a spare is there", Duration::from_secs(10), || !own_inits().is_empty());
        let waiting = own_inits();
        assert_eq!(waiting.len(), 1);
        if is_killed {
            kill_process(waiting[0], Signal::KILL).unwrap();
            let path = format!("/proc/{}/stat", waiting[0].as_raw_nonzero());
            let has_ended = || fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z "));
            wait_until("it has ended", Duration::from_secs(10), has_ended);
        }
        run(&|| assert_eq!(own_inits().contains(&waiting[0]), !is_killed));
    }
    drop(spares);
    assert_eq!(own_inits(), []);
}

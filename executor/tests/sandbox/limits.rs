//! What a step may use: of files and memory by process, of everything as a group, and of time.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use executor::sandbox::{self, Amount, Excess, Exit, GroupLimits, Rung, StepLimits};
use solver::{
    Cancel,
    op::{Resource, Ulimit},
};

use crate::{Test, fixture::Fixture};

pub const TESTS: &[Test] = &[
    ("ulimits", ulimits),
    ("ulimits_above_ours", ulimits_above_ours),
    ("next_to_no_memory", next_to_no_memory),
    ("shared_memory", shared_memory),
    ("first_to_go", first_to_go),
    ("timeout", timeout),
    ("timeout_of_a_flood", timeout_of_a_flood),
    ("room", room),
    ("group", group),
    ("groups_that_cannot_be_had", groups_that_cannot_be_had),
];

const fn exactly(amount: u64) -> Ulimit {
    Ulimit { soft: Some(amount), hard: Some(amount) }
}

/// Every limit there is, below what anybody has.
fn ulimits(fixture: &Fixture) {
    let rows: [(Resource, &str, Ulimit, &str); 16] = [
        (Resource::As, "Max address space", exactly(1 << 36), "68719476736 68719476736"),
        (Resource::Core, "Max core file size", exactly(0), "0 0"),
        (Resource::Cpu, "Max cpu time", Ulimit { soft: Some(600), hard: Some(700) }, "600 700"),
        (Resource::Data, "Max data size", exactly(1 << 35), "34359738368 34359738368"),
        (Resource::Fsize, "Max file size", exactly(1 << 20), "1048576 1048576"),
        (Resource::Locks, "Max file locks", exactly(10), "10 10"),
        (Resource::Memlock, "Max locked memory", exactly(4096), "4096 4096"),
        (Resource::Msgqueue, "Max msgqueue size", exactly(1000), "1000 1000"),
        (Resource::Nice, "Max nice priority", exactly(0), "0 0"),
        (Resource::Nofile, "Max open files", Ulimit { soft: Some(60), hard: Some(61) }, "60 61"),
        (Resource::Nproc, "Max processes", exactly(2000), "2000 2000"),
        (Resource::Rss, "Max resident set", exactly(1 << 30), "1073741824 1073741824"),
        (Resource::Rtprio, "Max realtime priority", exactly(0), "0 0"),
        (Resource::Rttime, "Max realtime timeout", exactly(1000), "1000 1000"),
        (Resource::Sigpending, "Max pending signals", exactly(50), "50 50"),
        (
            Resource::Stack,
            "Max stack size",
            Ulimit { soft: Some(1 << 20), hard: Some(1 << 21) },
            "1048576 2097152",
        ),
    ];
    assert_eq!(BTreeMap::from(rows.map(|(resource, ..)| (resource, ()))).len(), Resource::ALL.len());
    let mut step = fixture.shell("cat /proc/self/limits");
    step.exec.ulimits = rows.iter().map(|(resource, _, limit, _)| (*resource, *limit)).collect();
    let found = step.run().success();
    for (_, name, _, expected) in rows {
        let line = found.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields[..2].join(" "), expected, "{name}");
    }
}

fn ulimits_above_ours(fixture: &Fixture) {
    let mut step = fixture.shell("cat /proc/self/limits");
    let too_many = u64::from(u32::MAX);
    step.exec.ulimits = BTreeMap::from([(Resource::Nofile, exactly(too_many))]);
    let error = step.run().exit.unwrap_err();
    assert!(error.to_string().contains("--ulimit nofile=4294967295:4294967295: it is above"), "{error}");
    assert!(error.hint().unwrap().contains("LimitNOFILE="), "{error:?}");
    let early = sandbox::check_ulimits(&step.exec.ulimits);
    // Root may raise its limits, where it has the capability for that, though not above what the kernel takes.
    assert!(early.is_err() || fixture.rung == Rung::Root, "{early:?}");
}

/// Whatever is left for a command, what became of it is told.
fn next_to_no_memory(fixture: &Fixture) {
    let mut step = fixture.step(&["/bin/busybox", "true"]);
    step.exec.ulimits = BTreeMap::from([(Resource::As, exactly(4096)), (Resource::Nofile, exactly(0))]);
    let exit = step.run().exit.unwrap();
    assert!(matches!(exit, Exit::Signal(_) | Exit::NotExecuted { .. }), "{exit:?}");
}

fn shared_memory(fixture: &Fixture) {
    for (size, expected) in [(None, "size=65536k"), (Some(128 << 20), "size=131072k")] {
        let mut step = fixture.shell("grep ' /dev/shm ' /proc/mounts");
        step.exec.shared_memory = size;
        let found = step.run().success();
        assert!(found.contains(expected), "{found}");
    }
    let mut small = fixture.shell("dd if=/dev/zero of=/dev/shm/x bs=1048576 count=2 2>&1 || true");
    small.exec.shared_memory = Some(1 << 20);
    let found = small.run().success();
    assert!(found.contains("No space left on device"), "{found}");
}

/// When the machine's memory runs out, the step goes before the builder.
fn first_to_go(fixture: &Fixture) {
    let ours: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let theirs: i32 = fixture.output("cat /proc/self/oom_score_adj").trim().parse().unwrap();
    assert_eq!(theirs, (ours + 500).min(1000));
}

fn timeout(fixture: &Fixture) {
    let limit = Duration::from_millis(300);
    let mut step = fixture.shell("trap 'echo asked; exit 3' TERM; echo began; while :; do sleep 0.05; done");
    step.limits.time = Some(limit);
    let began = Instant::now();
    let ran = step.run();
    assert_eq!(ran.exit.as_ref().ok(), Some(&Exit::TimedOut { limit }), "{ran:?}");
    // On a busy machine its time may be over before the shell has come that far.
    assert_eq!(ran.text().contains("began\n"), ran.text().contains("asked\n"), "{ran:?}");
    assert!(began.elapsed() < Duration::from_secs(9), "it was asked, and ended");
    let mut quick = fixture.shell("exit 3");
    quick.limits.time = Some(Duration::from_secs(60));
    assert_eq!(quick.run().exit.unwrap(), Exit::Code(3));
}

/// A step that never stops writing, whatever it is told, ends ten seconds after its time.
fn timeout_of_a_flood(fixture: &Fixture) {
    if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_none() {
        println!("SKIPPED: timeout_of_a_flood takes ten seconds: LAYERWRIGHT_NIGHTLY=1");
        return;
    }
    let mut step = fixture.shell("trap '' TERM; while :; do echo y; done");
    let limit = Duration::from_millis(300);
    step.limits.time = Some(limit);
    let (plan, began) = (step.plan(), Instant::now());
    let exit = sandbox::run(&plan, &|_, _| {}, &Cancel::default());
    assert_eq!(exit.ok(), Some(Exit::TimedOut { limit }));
    assert!(began.elapsed() > Duration::from_secs(9) && began.elapsed() < Duration::from_secs(20));
}

/// A step that has written too much is ended if it does not end, and fails if it does.
fn room(fixture: &Fixture) {
    const MEBIBYTE: u64 = 1 << 20;
    let write = |count: u32, then: &str| {
        let mut step = fixture
            .shell(&format!("dd if=/dev/zero of=/tmp/large bs=1048576 count={count} 2>/dev/null && {then}"));
        step.limits.room = Some(16 * MEBIBYTE);
        step.run()
    };
    // Whether it is seen to write, or measured when it has ended, is a matter of time.
    for ran in [write(64, "exec sleep 1000000"), write(32, "true")] {
        let Ok(Exit::TookTooMuchRoom(Excess { limit, written, most })) = ran.exit else { panic!("{ran:?}") };
        assert!(limit == 16 * MEBIBYTE && written > limit, "{written}");
        // Of a copy nobody knows what was there before.
        let is_named = most.is_some_and(|(path, bytes)| path == "/tmp/large" && bytes > limit / 2);
        assert_eq!(is_named, fixture.rung != Rung::Chroot);
    }
    assert_eq!(write(8, "true").exit.ok(), Some(Exit::Code(0)));
    assert_eq!(write(8, "exit 3").exit.ok(), Some(Exit::Code(3)));
}

/// Where the unified hierarchy is mounted, if it is.
fn unified() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

fn groups_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    entries
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("layerwright-"))
        .collect()
}

/// A group needs no controller to be made, joined and taken away.
fn group(fixture: &Fixture) {
    let Some(mount) = unified().filter(|_| fixture.rung == Rung::Root) else {
        println!("SKIPPED: group: no unified hierarchy that this user may make groups in");
        return;
    };
    let name = format!("layerwright-test-{}", std::process::id());
    let directory = mount.join(&name);
    let found = sandbox::find_group(&GroupLimits::default(), Some(Path::new(&name))).unwrap();
    assert_eq!(found.group().parent, directory);
    fs::create_dir(directory.join("layerwright-stray")).unwrap();
    let mut step = fixture.shell("grep ^0 /proc/self/cgroup; (echo ready; sleep 0.3); true");
    step.limits = StepLimits { group: Some(found.group().clone()), time: None, room: None };
    let ran = step.run_watched(&Cancel::default(), &|line| {
        if line == "ready" {
            let groups = groups_in(&directory);
            assert_eq!(groups.len(), 1, "the stray went: {groups:?}");
            let members = fs::read_to_string(directory.join(&groups[0]).join("cgroup.procs")).unwrap();
            assert_eq!(members.lines().count(), 2, "the shell and sleep: {members}");
        }
    });
    assert_eq!(ran.success(), "0::/\nready\n");
    assert_eq!(groups_in(&directory), Vec::<String>::new());
    drop(found);
    assert!(!directory.exists(), "who has made it takes it away");
}

/// What cannot be limited is refused by its flag.
fn groups_that_cannot_be_had(fixture: &Fixture) {
    let limits =
        GroupLimits { memory: Some(64 << 20), processes: Some(Amount::AtMost(10)), ..GroupLimits::default() };
    match sandbox::find_group(&limits, None) {
        Ok(lease) => limited(fixture, &limits, lease.group().clone()),
        Err(error) => {
            println!("SKIPPED: limits of memory and processes: {error}");
            assert!(error.to_string().starts_with("sandbox: --memory, --pids-limit: "), "{error}");
            assert!(error.hint().is_some(), "{error}");
        }
    }
}

/// They hold where they can be had.
fn limited(fixture: &Fixture, limits: &GroupLimits, group: sandbox::Group) {
    let limits_of =
        |group: &sandbox::Group| StepLimits { group: Some(group.clone()), time: None, room: None };
    let mut hog = fixture.shell("dd if=/dev/zero of=/dev/null bs=256M count=1");
    hog.limits = limits_of(&group);
    let exit = hog.run().exit.unwrap();
    assert_eq!(exit, Exit::OutOfMemory { code: 137 }, "{limits:?}");
    let mut many = fixture.shell("for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait");
    many.limits = limits_of(&group);
    let ran = many.run();
    assert!(ran.text().contains("can't fork"), "{ran:?}");
    assert_eq!(groups_in(&group.parent), Vec::<String>::new());
}

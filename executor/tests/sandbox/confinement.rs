//! What a step sees and may do, against a table; and what of its surroundings stays out of the layer.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{MetadataExt, PermissionsExt, symlink},
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use executor::sandbox::{self, Exit, PlanError, Root, Rung, User};
use solver::{Cancel, op};

use crate::{
    Test,
    fixture::{Fixture, Step},
};

pub const TESTS: &[Test] = &[
    ("conformance", conformance),
    ("plan", plan_is_as_written),
    ("attempts", attempts),
    ("own_program", own_program),
    ("root_directory", root_directory),
    ("masks", masks),
    ("devices_work", devices_work),
    ("environment_of_the_builder", environment_of_the_builder),
    ("ordinary_user", ordinary_user),
    ("output_is_the_users", output_is_the_users),
    ("no_network", no_network),
    ("lent_files", lent_files),
    ("script", script),
    ("nothing_left_in_the_layer", nothing_left_in_the_layer),
    ("dangling_resolv_conf", dangling_resolv_conf),
    ("what_the_step_made_stays", what_the_step_made_stays),
    ("false_directories", false_directories),
    ("working_directory", working_directory),
];

/// The golden files, compiled in: the users who run these tests need not be able to read the repository.
const GOLDEN: &[(&str, &str)] = &[
    ("attempts", include_str!("golden/attempts.txt")),
    ("conformance-root", include_str!("golden/conformance-root.txt")),
    ("conformance-single", include_str!("golden/conformance-single.txt")),
    ("conformance-subordinate", include_str!("golden/conformance-subordinate.txt")),
    ("plan-chroot", include_str!("golden/plan-chroot.txt")),
    ("plan-root", include_str!("golden/plan-root.txt")),
    ("plan-single", include_str!("golden/plan-single.txt")),
    ("plan-subordinate", include_str!("golden/plan-subordinate.txt")),
];

/// Compares with `golden/NAME.txt`; `UPDATE_EXPECT=1` writes it instead, where this user can.
pub(crate) fn compare(name: &str, found: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sandbox/golden/{name}.txt"));
        return fs::write(&path, found).unwrap();
    }
    let (_, expected) = GOLDEN.iter().find(|(known, _)| *known == name).unwrap();
    let only_in = |this: &str, other: &str| -> Vec<String> {
        this.lines().filter(|line| !other.lines().any(|known| known == *line)).map(str::to_owned).collect()
    };
    let (missing, unexpected) = (only_in(expected, found), only_in(found, expected));
    assert!(found == *expected, "{name}: missing: {missing:#?}\nunexpected: {unexpected:#?}");
}

fn rung_name(fixture: &Fixture) -> &'static str {
    match fixture.rung {
        Rung::Root => "root",
        Rung::SubordinateIds => "subordinate",
        Rung::SingleId => "single",
        Rung::Chroot => "chroot",
    }
}

fn conformance(fixture: &Fixture) {
    let mut found = fixture.inside("conformance").run().success();
    if fixture.rung == Rung::SingleId {
        // Nobody may drop groups there; which ones there are depends on who runs the tests.
        found = found
            .lines()
            .filter(|line| !line.starts_with("Groups:"))
            .map(|line| format!("{line}\n"))
            .collect();
    }
    compare(&format!("conformance-{}", rung_name(fixture)), &found);
}

pub(crate) fn plan_is_as_written(fixture: &Fixture) {
    let mut step = fixture.shell("true");
    step.exec.script = Some(op::Script { name: "EOF".to_owned(), content: "#!/bin/sh\n".to_owned() });
    let mut plan = step.plan();
    plan.root = match fixture.rung {
        Rung::Chroot => Root::Chroot { directory: "/".into(), aside: "/aside".into() },
        _ => Root::Directory("/".into()),
    };
    let json = serde_json::to_string_pretty(&plan).unwrap();
    let read_back = serde_json::from_str(&json).unwrap();
    assert_eq!(plan, read_back);
    compare(&format!("plan-{}", rung_name(fixture)), &(json + "\n"));
}

fn attempts(fixture: &Fixture) {
    let name = format!("layerwright-test-{}-{:?}", std::process::id(), fixture.rung);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let mut step = fixture.inside("attempts");
    step.exec.env.push(("ABSTRACT_NAME".to_owned(), name));
    let mut told = step.run().success();
    if !fixture.has_scopes {
        println!("SKIPPED: reaching the host's abstract sockets: this kernel has no Landlock scopes");
        told = told.replace("abstract sockets: done", "abstract sockets: refused");
    }
    compare("attempts", &told);
}

/// A script can name the init as its interpreter (CVE-2019-5736). What it gets is a copy that nobody can write.
fn own_program(fixture: &Fixture) {
    let mut step = fixture.step(&["/script"]);
    layer(&mut step, |layer| {
        fs::write(layer.join("script"), "#!/proc/self/exe inside program\n").unwrap();
        fs::set_permissions(layer.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    });
    assert_eq!(step.run().success(), "/memfd:layerwright (deleted)\n");
}

fn root_directory(fixture: &Fixture) {
    let step = fixture.shell("echo made > /made");
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("bin")).unwrap();
    fs::copy(fixture.lower().join("bin/busybox"), directory.path().join("bin/sh")).unwrap();
    let mut plan = step.plan();
    plan.root = Root::Directory(directory.path().to_path_buf());
    let exit = sandbox::run(&plan, &|_, line| panic!("{line:?}"), &Cancel::default()).unwrap();
    assert_eq!(exit, Exit::Code(0));
    let mut names: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bin", "made"]);
}

/// What is masked reads as empty, whether it is a file or a directory.
fn masks(fixture: &Fixture) {
    let masked = [
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kallsyms",
        "/proc/kcore",
        "/proc/key-users",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ];
    let paths = masked.join(" ");
    let look = format!(
        "for p in {paths}; do [ -d $p ] && ls -A $p; [ -f $p ] && echo file $p; [ -c $p ] && cat $p; done; true"
    );
    assert_eq!(fixture.output(&look), "");
    let read_only = "for p in /proc/bus /proc/fs /proc/irq /proc/sys; do grep -c \"$p $p ro,\" /proc/self/mountinfo; done";
    assert_eq!(fixture.output(&read_only.replace("$p $p", "${p#/proc} $p")), "1\n1\n1\n1\n");
}

fn devices_work(fixture: &Fixture) {
    let use_all = "echo x > /dev/null && dd if=/dev/zero bs=7 count=1 2>/dev/null | tr '\\0' z && echo \
                   && dd if=/dev/urandom bs=8 count=1 2>/dev/null | dd of=/dev/null 2>/dev/null \
                   && ! echo x 2>/dev/null > /dev/full; echo $?; cat /dev/tty 2>&1; ls /dev/pts; echo shm > /dev/shm/a && cat /dev/shm/a";
    let output = fixture.output(use_all);
    assert_eq!(output.lines().next(), Some("zzzzzzz"), "{output}");
    assert!(output.contains("No such device or address"), "a terminal is there: {output}");
    assert!(output.ends_with("ptmx\nshm\n"), "{output}");
}

fn environment_of_the_builder(fixture: &Fixture) {
    // Cargo sets this for the test.
    assert!(std::env::vars().any(|(name, _)| name == "CARGO_MANIFEST_DIR" || name == "PATH"));
    let all = fixture.output("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; true");
    assert!(!all.contains("CARGO"), "{all}");
}

fn ordinary_user(fixture: &Fixture) {
    let mut step = fixture.shell("id; grep ^Cap /proc/self/status; touch /tmp/x /bin/x");
    step.exec.args =
        ["/bin/sh", "-c", "id -u; id -g; cat /proc/self/status; touch /bin/x"].map(str::to_owned).into();
    step.user = User { uid: 1000, gid: 1001, groups: vec![1002, 1003] };
    if fixture.rung == Rung::SingleId {
        let refused = step.try_plan().unwrap_err();
        return assert_eq!(refused, PlanError::OneIdOnly { uid: 1000, gid: 1001 });
    }
    let ran = step.run();
    let text = ran.text();
    assert_eq!(ran.exit.as_ref().ok(), Some(&Exit::Code(1)), "{ran:#?}");
    assert!(text.starts_with("1000\n1001\n"), "{text}");
    for expected in [
        "Groups:\t1002 1003",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(text.contains("/bin/x: Permission denied"), "{text}");
}

/// Scripts write to `/dev/stdout`, whoever they run as.
fn output_is_the_users(fixture: &Fixture) {
    let ids: &[u32] = if fixture.rung == Rung::SingleId { &[0] } else { &[0, 1000] };
    for id in ids {
        let mut step = fixture.shell("echo out > /dev/stdout; echo err > /dev/stderr");
        step.user = User { uid: *id, gid: *id, groups: vec![] };
        let mut lines: Vec<String> = step.run().success().lines().map(str::to_owned).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"], "user {id}");
    }
}

fn no_network(fixture: &Fixture) {
    let mut step = fixture.shell("ip -o link; cat /etc/resolv.conf");
    step.exec.network = op::Network::None;
    let text = step.run().success();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("lo: <LOOPBACK,UP"), "{text}");
}

fn lent_files(fixture: &Fixture) {
    let text = fixture
        .output("cat /etc/resolv.conf /etc/hosts; echo x 2>/dev/null >> /etc/hosts && echo written; true");
    let expected = "nameserver 192.0.2.1\n127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    assert_eq!(text, expected);
}

fn script(fixture: &Fixture) {
    let mut step = fixture.step(&["/dev/pipes/PY", "argument"]);
    step.exec.script =
        Some(op::Script { name: "PY".to_owned(), content: "#!/bin/sh\necho \"$0 $1\"\n".to_owned() });
    assert_eq!(step.run().success(), "/dev/pipes/PY argument\n");
}

/// Everything a layer could hold: path, mode, owner, size, link, time.
pub fn listing(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(directory).sort_by_file_name() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let size = if metadata.is_dir() { 0 } else { metadata.size() };
        let link =
            fs::read_link(entry.path()).map(|target| format!(" -> {}", target.display())).unwrap_or_default();
        let path = entry.path().strip_prefix(directory).unwrap().display();
        found.push(format!(
            "/{path} {:o} {}:{} {size} {}.{}{link}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec()
        ));
    }
    found
}

/// A layer on top of the fixture's own.
pub fn layer(step: &mut Step<'_>, fill: impl FnOnce(&Path)) -> PathBuf {
    let layer = step.upper().with_file_name("layer");
    fs::create_dir(&layer).unwrap();
    fill(&layer);
    step.lowers.insert(0, layer.clone());
    layer
}

/// Directories may have been copied up for a mount point that was made in them, but must then be as they were below.
pub fn assert_nothing_changed(step: &Step<'_>, below: &[PathBuf], root_before: &[String]) {
    let below: Vec<String> = below.iter().flat_map(|layer| listing(layer)).collect();
    let changed: Vec<String> = listing(&step.upper())
        .into_iter()
        .filter(|line| !below.contains(line) && !root_before.contains(line))
        .collect();
    assert_eq!(changed, Vec::<String>::new());
}

fn nothing_left_in_the_layer(fixture: &Fixture) {
    let step = fixture.shell("true");
    let before = listing(&step.upper());
    step.run().success();
    assert_nothing_changed(&step, &step.lowers, &before);

    let mut step = fixture.shell("cat /etc/resolv.conf /etc/passwd");
    let before = listing(&step.upper());
    layer(&mut step, |layer| {
        fs::create_dir_all(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    });
    step.run().success();
    assert_nothing_changed(&step, &step.lowers, &before);
}

fn dangling_resolv_conf(fixture: &Fixture) {
    let mut step = fixture.shell("cat /etc/resolv.conf; ls /run/resolve");
    let before = listing(&step.upper());
    layer(&mut step, |layer| {
        fs::create_dir_all(layer.join("etc")).unwrap();
        symlink("../run/resolve/stub.conf", layer.join("etc/resolv.conf")).unwrap();
    });
    assert_eq!(step.run().success(), "nameserver 192.0.2.1\nstub.conf\n");
    assert_nothing_changed(&step, &step.lowers, &before);
}

fn what_the_step_made_stays(fixture: &Fixture) {
    let step = fixture.shell(
        "echo a > /etc/made; mv /etc /elsewhere; mkdir /etc; echo b > /etc/resolv.conf; ls /dev > /list",
    );
    step.run().success();
    let paths: Vec<String> =
        listing(&step.upper()).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/", "/elsewhere", "/elsewhere/made", "/etc", "/etc/resolv.conf", "/list"]);
}

fn false_directories(fixture: &Fixture) {
    for name in ["proc", "sys", "dev"] {
        let mut step = fixture.shell("true");
        layer(&mut step, |layer| symlink("/tmp", layer.join(name)).unwrap());
        let error = step.run().exit.expect_err("a link is no mount point").to_string();
        assert!(error.contains(&format!("find a real directory /{name}")), "{error}");
    }
}

fn working_directory(fixture: &Fixture) {
    let mut step = fixture.shell("pwd; stat -c %a:%u:%g .");
    step.exec.workdir = "/a/b".to_owned();
    assert_eq!(step.run().success(), "/a/b\n755:0:0\n");
    for hostile in ["/proc/self/fd/3", "/proc/1/cwd", "/bin/sh", "/loop"] {
        let mut step = fixture.shell("pwd");
        layer(&mut step, |layer| symlink("loop", layer.join("loop")).unwrap());
        step.exec.workdir = hostile.to_owned();
        let error = step.run().exit.expect_err(hostile).to_string();
        assert!(error.contains("enter working directory"), "{hostile}: {error}");
    }
}

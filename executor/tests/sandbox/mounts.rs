//! What mounts show, what may be done with them, and that nothing of them is left.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    thread,
};

use executor::sandbox::{Access, Exit, FileTree, MountSource, PlanError, PlannedMount, Rung, SecretBytes};
use solver::op;

use crate::{
    Test,
    confinement::{assert_nothing_changed, layer, listing},
    fixture::{Fixture, Step},
};

pub const TESTS: &[Test] = &[
    ("mount_read_only", read_only),
    ("mount_source_links", source_links),
    ("mount_thrown_away", thrown_away),
    ("mount_directory", directory),
    ("mount_tmpfs", tmpfs),
    ("mount_secret", secret),
    ("mount_secret_in_environment", secret_in_environment),
    ("mount_socket", socket),
    ("mount_device", device),
    ("mount_host", host),
    ("mount_over_the_null_device", null_device),
    ("mount_nested", nested),
    ("mount_leaves_nothing", leaves_nothing),
    ("mount_beside_what_a_step_writes", beside_what_a_step_writes),
    ("mount_targets_refused", targets_refused),
    ("mount_cannot_be_changed", cannot_be_changed),
    ("insecure", insecure),
    ("insecure_bind_stays_read_only", insecure_bind_stays_read_only),
    ("hosts", hosts),
];

fn mount(target: &str, source: MountSource) -> PlannedMount {
    PlannedMount { target: target.to_owned(), source }
}

fn files(target: &str, tree: FileTree, path: &str, access: Access) -> PlannedMount {
    mount(target, MountSource::Files { tree, path: path.to_owned(), access })
}

/// A file system of two layers: `/d/f` is hidden by the upper one, `/d/gone` is removed there, links lead about.
struct Tree {
    directory: tempfile::TempDir,
}

impl Tree {
    fn new(fixture: &Fixture) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["lower/d/deep", "upper/d", "scratch", "work"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("lower/d/f"), "old\n").unwrap();
        fs::write(at("lower/d/deep/g"), "deep\n").unwrap();
        fs::write(at("lower/d/gone"), "gone\n").unwrap();
        fs::write(at("upper/d/f"), "new\n").unwrap();
        whiteout(fixture, &at("upper/d/gone"));
        for (link, target) in [
            ("absolute", "/d/deep"),
            ("climbing", "../../../../../d/deep"),
            ("file", "d/f"),
            ("dangling", "/nothing"),
            ("loop", "loop"),
        ] {
            symlink(target, at("upper").join(link)).unwrap();
        }
        Self { directory }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn lowers(&self) -> Vec<PathBuf> {
        vec![self.at("upper"), self.at("lower")]
    }

    fn bind(&self, target: &str, path: &str) -> PlannedMount {
        files(target, FileTree::Merged(self.lowers()), path, Access::Read)
    }

    fn scratch(&self, target: &str, path: &str) -> PlannedMount {
        let tree =
            FileTree::Scratch { lowers: self.lowers(), upper: self.at("scratch"), work: self.at("work") };
        files(target, tree, path, Access::Write)
    }
}

/// What overlay takes for a removed file, made by an overlay: an ordinary user can make none himself.
fn whiteout(fixture: &Fixture, path: &Path) {
    let mut step = fixture.shell("rm /x");
    layer(&mut step, |layer| fs::write(layer.join("x"), "").unwrap());
    step.run().success();
    fs::rename(step.upper().join("x"), path).unwrap();
}

fn with_mounts<'a>(fixture: &'a Fixture, command: &str, mounts: Vec<PlannedMount>) -> Step<'a> {
    let mut step = fixture.shell(command);
    step.mounts = mounts;
    step
}

/// Output of a command line with mounts; it must succeed and leave nothing.
fn output(fixture: &Fixture, command: &str, mounts: Vec<PlannedMount>) -> String {
    let step = with_mounts(fixture, command, mounts);
    let before = listing(&step.upper());
    let text = step.run().success();
    assert_nothing_changed(&step, &step.lowers, &before);
    text
}

fn failure(fixture: &Fixture, mounts: Vec<PlannedMount>) -> String {
    with_mounts(fixture, "true", mounts).run().exit.expect_err("it cannot be mounted").to_string()
}

fn read_only(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let command = "ls /m/d; cat /m/d/f; (echo x > /m/d/f) 2>&1; rm /m/d/f 2>&1; mkdir /m/new 2>&1; true";
    let text = output(fixture, command, vec![tree.bind("/m", "/")]);
    assert!(text.starts_with("deep\nf\nnew\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
    let text = output(fixture, "cat /m; (echo x > /m) 2>&1; true", vec![tree.bind("/m", "/d/f")]);
    assert!(text.starts_with("new\n") && text.contains("Read-only file system"), "{text}");
    let place = FileTree::Place(tree.at("lower/d/f"));
    assert_eq!(output(fixture, "cat /m", vec![files("/m", place, "/", Access::Read)]), "old\n");
}

fn source_links(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    for (path, expected) in [("/absolute", "deep\n"), ("/climbing", "deep\n"), ("/../../d/deep", "deep\n")] {
        assert_eq!(output(fixture, "cat /m/g", vec![tree.bind("/m", path)]), expected, "{path}");
    }
    assert_eq!(output(fixture, "cat /m", vec![tree.bind("/m", "/file")]), "new\n");
    // What the link of the same name in the root would be.
    for (path, errno) in
        [("/dangling", "No such file"), ("/d/gone", "No such file"), ("/loop", "symbolic links")]
    {
        let error = failure(fixture, vec![tree.bind("/m", path)]);
        assert!(error.contains(&format!("mount /m: find {path}")) && error.contains(errno), "{error}");
    }
}

fn thrown_away(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let before = [listing(&tree.at("upper")), listing(&tree.at("lower"))];
    let command = "echo x > /m/f; rm -r /m/deep; mkdir /m/new; ls /m; cat /m/f";
    assert_eq!(output(fixture, command, vec![tree.scratch("/m", "/d")]), "f\nnew\nx\n");
    assert_eq!([listing(&tree.at("upper")), listing(&tree.at("lower"))], before);
}

/// A cache mount.
fn directory(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let cache = |access| vec![files("/c/m", FileTree::Place(tree.at("work")), "/", access)];
    output(fixture, "echo kept > /c/m/file", cache(Access::Write));
    assert_eq!(output(fixture, "cat /c/m/file", cache(Access::Write)), "kept\n");
    let text = output(fixture, "cat /c/m/file; (echo x > /c/m/file) 2>&1; true", cache(Access::Read));
    assert!(text.starts_with("kept\n") && text.contains("Read-only file system"), "{text}");
    assert_eq!(fs::read_to_string(tree.at("work/file")).unwrap(), "kept\n");
}

fn tmpfs(fixture: &Fixture) {
    let sized = |size| vec![mount("/t/m", MountSource::Tmpfs { size })];
    let fill = "dd if=/dev/zero of=/t/m/f bs=1048576 count=3 2>/dev/null; echo $?; stat -c %s /t/m/f";
    assert_eq!(output(fixture, fill, sized(Some(2 << 20))), "1\n2097152\n");
    assert_eq!(output(fixture, fill, sized(None)), "0\n3145728\n");
    assert_eq!(output(fixture, "stat -c %a:%u:%g /t/m; ls -a /t/m", sized(None)), "1777:0:0\n.\n..\n");
    let mut step = with_mounts(fixture, "stat -c %a /t/m; ls /t/m; echo x > /t/m/new", sized(None));
    let below = layer(&mut step, |layer| {
        fs::create_dir_all(layer.join("t/m")).unwrap();
        fs::write(layer.join("t/m/file"), "").unwrap();
        fs::set_permissions(layer.join("t/m"), fs::Permissions::from_mode(0o710)).unwrap();
    });
    let before = listing(&below);
    assert_eq!(step.run().success(), "710\n");
    assert_eq!(listing(&below), before);
}

fn secret_file(target: &str, content: &[u8], mode: u32, (uid, gid): (u32, u32)) -> PlannedMount {
    mount(target, MountSource::Secret { content: SecretBytes(content.to_vec()), mode, uid, gid })
}

fn secret(fixture: &Fixture) {
    let look = "stat -c %a:%u:%g:%s /run/secrets/s; cat /run/secrets/s; (echo x > /run/secrets/s) 2>&1; true";
    let text = output(fixture, look, vec![secret_file("/run/secrets/s", b"hush\n", 0o400, (0, 0))]);
    assert!(text.starts_with("400:0:0:5\nhush\n") && text.contains("Read-only file system"), "{text}");
    let large = vec![secret_file("/s", &[0xfe; 500 << 10], 0o444, (0, 0))];
    assert_eq!(output(fixture, "stat -c %a:%s /s", large), "444:512000\n");
    let program = vec![secret_file("/s", b"#!/bin/sh\necho ran\n", 0o500, (0, 0))];
    assert_eq!(output(fixture, "/s", program), "ran\n");
    let foreign = secret_file("/s", b"x", 0o400, (1000, 1001));
    let mut step = with_mounts(fixture, "stat -c %u:%g /s", vec![foreign]);
    if fixture.rung == Rung::SingleId {
        let expected = PlanError::MountOwner { target: "/s".to_owned(), uid: 1000, gid: 1001 };
        return assert_eq!(step.try_plan(), Err(expected));
    }
    assert_eq!(step.run().success(), "1000:1001\n");
    step = with_mounts(fixture, "cat /s 2>&1", vec![secret_file("/s", b"hush", 0o400, (0, 0))]);
    (step.user.uid, step.user.gid) = (1000, 1000);
    let ran = step.run();
    assert!(ran.text().contains("Permission denied"), "{ran:?}");
}

fn secret_in_environment(fixture: &Fixture) {
    let mut step = fixture.shell("echo \"$TOKEN $OTHER\"; env | grep -c TOKEN");
    step.exec.env.push(("TOKEN".to_owned(), "from the image".to_owned()));
    step.secret_env = vec![
        ("TOKEN".to_owned(), SecretBytes(b"hush".to_vec())),
        ("OTHER".to_owned(), SecretBytes(Vec::new())),
    ];
    assert_eq!(step.plan().env.iter().filter(|(name, _)| name == "TOKEN").count(), 0);
    assert!(!format!("{:?}", step.plan()).contains("hush"));
    assert_eq!(step.run().success(), "hush \n1\n");
    step.secret_env[0].1.0.push(0);
    assert!(matches!(step.try_plan(), Err(PlanError::Nul { .. })));
}

fn socket(fixture: &Fixture) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || listener.accept().unwrap().0.write_all(b"answer\n").unwrap());
    let mut step = fixture.inside("connect");
    step.mounts = vec![mount("/run/buildkit/ssh_agent.0", MountSource::Socket(path.clone()))];
    step.exec.env.push(("SOCKET".to_owned(), "/run/buildkit/ssh_agent.0".to_owned()));
    if fixture.rung != Rung::SingleId {
        (step.user.uid, step.user.gid) = (1000, 1000);
        rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(1000)), Some(rustix::fs::Gid::from_raw(0)))
            .unwrap();
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let before = listing(&step.upper());
    assert_eq!(step.run().success(), "answer\n");
    server.join().unwrap();
    assert_nothing_changed(&step, &step.lowers, &before);
}

fn device(fixture: &Fixture) {
    let node = |path: &str| vec![mount("/dev/sub/node", MountSource::Device(path.into()))];
    let command =
        "stat -c %F:%t:%T /dev/sub/node; echo x > /dev/sub/node; chmod 777 /dev/sub/node 2>&1; true";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("null");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let kind = rustix::fs::FileType::CharacterDevice;
    let made = rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, rustix::fs::makedev(1, 3));
    // Nobody else may make one; and nobody else could change the machine's.
    let path = if made.is_ok() { path } else { "/dev/null".into() };
    let text = output(fixture, command, node(path.to_str().unwrap()));
    assert!(text.starts_with("character special file:1:3\n") && text.contains("Read-only"), "{text}");
    let error = failure(fixture, node("/etc/passwd"));
    assert!(error.contains("a device node") && error.contains("No such device"), "{error}");
}

/// What the inits open must be the device, and not what never opens.
fn null_device(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.at("lower/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let error = failure(fixture, vec![tree.bind("/dev/null", "/fifo")]);
    assert!(error.contains("open /dev/null: a mount covers it"), "{error}");
}

/// A device's own library.
fn host(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let host = |access| vec![mount("/lib/x", MountSource::Host { path: tree.at("lower/d"), access })];
    let text = output(fixture, "cat /lib/x/f; (echo x > /lib/x/f) 2>&1; true", host(Access::Read));
    assert!(text.starts_with("old\n") && text.contains("Read-only file system"), "{text}");
    output(fixture, "echo x > /lib/x/f", host(Access::Write));
    assert_eq!(fs::read_to_string(tree.at("lower/d/f")).unwrap(), "x\n");
}

/// Whatever order they are written in, what is inside of another one is mounted after it.
fn nested(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let tmpfs = |target: &str| mount(target, MountSource::Tmpfs { size: None });
    let cache = files("/a/t/cache", FileTree::Place(tree.at("work")), "/", Access::Write);
    let mounts = vec![
        cache,
        secret_file("/a/t/s", b"hush\n", 0o400, (0, 0)),
        tmpfs("/a/t"),
        tree.bind("/a/t/b", "/d"),
    ];
    let command = "ls /a/t; cat /a/t/b/f /a/t/s; echo kept > /a/t/cache/file";
    assert_eq!(output(fixture, command, mounts), "b\ncache\ns\nnew\nhush\n");
    assert_eq!(fs::read_to_string(tree.at("work/file")).unwrap(), "kept\n");
    // In a directory that stays, a mount point does, too: another step may have something there now, and would lose it.
    let inside = vec![files("/c", FileTree::Place(tree.at("work")), "/", Access::Write), tmpfs("/c/x/y")];
    output(fixture, "echo x > /c/x/y/z", inside);
    assert_eq!(fs::read_dir(tree.at("work/x/y")).unwrap().count(), 0);
    // Where it exists, it can be inside of one that cannot be written.
    let inside = vec![tree.bind("/m", "/"), tmpfs("/m/d/deep")];
    assert_eq!(output(fixture, "ls /m/d /m/d/deep", inside), "/m/d:\ndeep\nf\n\n/m/d/deep:\n");
    let error = failure(fixture, vec![tree.bind("/m", "/"), tmpfs("/m/none")]);
    assert!(error.contains("make /m/none") && error.contains("Read-only"), "{error}");
    // Of two at one place, the last.
    let twice = vec![tree.bind("/m", "/d/f"), tree.bind("/m", "/d/deep/g")];
    assert_eq!(output(fixture, "cat /m", twice), "deep\n");
}

/// Every kind of source at every kind of target, on a base that has some of them.
fn leaves_nothing(fixture: &Fixture) {
    let targets = [
        "/new",
        "/new/of/several/levels",
        "/old/new",
        "/old/new/level",
        "/link/new",
        "/dangling",
        "/old/link/x",
    ];
    let commands = ["true", "exit 3", "ls -lR /old /new; true", "kill -9 $$"];
    for target in targets {
        for number in 0..4 {
            for command in commands {
                let tree = Tree::new(fixture);
                let source = match number {
                    0 => tree.bind(target, "/d"),
                    1 => tree.bind(target, "/d/f"),
                    2 => mount(target, MountSource::Tmpfs { size: None }),
                    _ => secret_file(target, b"x", 0o400, (0, 0)),
                };
                let mut step = with_mounts(fixture, command, vec![source]);
                let before = listing(&step.upper());
                let below = layer(&mut step, |layer| {
                    fs::create_dir_all(layer.join("old/sub")).unwrap();
                    fs::create_dir_all(layer.join("t")).unwrap();
                    fs::write(layer.join("old/file"), "text").unwrap();
                    symlink("old", layer.join("link")).unwrap();
                    symlink("/somewhere/else", layer.join("dangling")).unwrap();
                    symlink("../t", layer.join("old/link")).unwrap();
                });
                let base = listing(&below);
                step.run().exit.unwrap();
                assert_nothing_changed(&step, &step.lowers, &before);
                assert_eq!(listing(&below), base, "{target} {command}");
            }
        }
    }
}

/// What a step leaves is its own, and no more; a mount point that it has moved is.
fn beside_what_a_step_writes(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let paths = |step: &Step<'_>| -> Vec<String> {
        let listing = listing(&step.upper());
        listing.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let cases: [(&str, &[&str]); 5] = [
        ("echo x > /a/b/beside", &["/", "/a", "/a/b", "/a/b/beside"]),
        ("mkdir /a/x; rm -rf /a 2>/dev/null; true", &["/"]),
        ("mv /a /c", &["/", "/c"]),
        ("mv /a /c; echo x > /c/y", &["/", "/c", "/c/y"]),
        (
            "mv /a /c; mkdir -p /a/b/m; echo x > /a/b/m/own",
            &["/", "/a", "/a/b", "/a/b/m", "/a/b/m/own", "/c"],
        ),
    ];
    for (command, expected) in cases {
        let step = with_mounts(fixture, command, vec![tree.bind("/a/b/m", "/d")]);
        let Ok(Exit::Code(0)) = step.run().exit else { panic!("{command}") };
        let left: Vec<String> = paths(&step).into_iter().filter(|path| path != "/etc").collect();
        assert_eq!(left, expected, "{command}");
    }
}

fn targets_refused(fixture: &Fixture) {
    let tmpfs = |target: &str| vec![mount(target, MountSource::Tmpfs { size: None })];
    for target in ["/", "//", "", "relative", "/a\0b"] {
        let refused = with_mounts(fixture, "true", tmpfs(target)).try_plan();
        assert_eq!(refused, Err(PlanError::MountTarget(target.to_owned())));
    }
    let error = with_mounts(fixture, "true", tmpfs("/dev")).run().exit.expect_err("/dev").to_string();
    assert!(error.contains("mount /dev: it cannot be mounted because it covers the devices"), "{error}");
    for target in ["/proc", "/proc/sys", "/proc/x", "/fake/self"] {
        let mut step = with_mounts(fixture, "true", tmpfs(target));
        layer(&mut step, |layer| symlink("/proc", layer.join("fake")).unwrap());
        let error = step.run().exit.expect_err(target).to_string();
        assert!(error.contains("inside /proc") || error.contains("Read-only"), "{target}: {error}");
    }
    let tree = Tree::new(fixture);
    let mut step = with_mounts(fixture, "true", vec![tree.bind("/t/file", "/d")]);
    layer(&mut step, |layer| {
        fs::create_dir(layer.join("t")).unwrap();
        fs::write(layer.join("t/file"), "").unwrap();
    });
    let error = step.run().exit.expect_err("a directory on a file").to_string();
    assert!(error.contains("make /t/file"), "{error}");
    assert!(error.contains("is a directory, and /t/file in the image is none"), "{error}");
}

/// Root inside, with every way to mount that busybox has.
fn cannot_be_changed(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let mounts = vec![tree.bind("/m", "/"), secret_file("/s", b"hush\n", 0o400, (0, 0))];
    let command = "for m in /m /s; do mount -o remount,rw,bind $m; mount -o remount,rw $m; umount $m; done; \
                   echo x > /m/x; echo x > /s; cat /s; ls /m/x";
    let ran = with_mounts(fixture, command, mounts).run();
    let text = ran.text();
    assert!(text.contains("hush\n") && text.contains("/m/x: No such file"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}

fn insecure(fixture: &Fixture) {
    let command = "mkdir /n; mount -t tmpfs none /n && echo mounted; grep -E '^(Seccomp|CapInh|CapAmb):' /proc/self/status; \
                   grep CapEff /proc/self/status; stat -c %F /proc/interrupts";
    let mut step = fixture.shell(command);
    step.exec.security = op::Security::Insecure;
    let text = step.run().success();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let effective = own.lines().find(|line| line.starts_with("CapEff")).unwrap();
    for line in [
        "mounted",
        "Seccomp:\t0",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        effective,
        "regular empty file",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let mut step = fixture.shell("grep CapEff /proc/self/status");
    step.exec.security = op::Security::Insecure;
    (step.user.uid, step.user.gid) = (1000, 1000);
    if fixture.rung != Rung::SingleId {
        assert_eq!(step.run().success(), "CapEff:\t0000000000000000\n");
    }
}

fn insecure_bind_stays_read_only(fixture: &Fixture) {
    let tree = Tree::new(fixture);
    let command = "mount -o remount,rw,bind /m; mount -o remount,rw /m; echo x > /m/x";
    let mut step = with_mounts(fixture, command, vec![tree.bind("/m", "/")]);
    step.exec.security = op::Security::Insecure;
    let ran = step.run();
    assert!(ran.text().contains("/m/x: Read-only file system"), "{ran:?}");
}

fn hosts(fixture: &Fixture) {
    let mut step = fixture.shell("cat /etc/hosts; cat /proc/sys/kernel/hostname");
    step.exec.hostname = Some("builder".to_owned());
    step.exec.hosts = [("a", "192.0.2.7"), ("six", "2001:db8::1"), ("gate", "host-gateway")]
        .map(|(name, address)| (name.to_owned(), address.to_owned()))
        .into();
    let expected = "127.0.0.1\tlocalhost builder\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    192.0.2.7\ta\n2001:db8::1\tsix\n127.0.0.1\tgate\nbuilder\n";
    assert_eq!(step.run().success(), expected);
    for (name, address) in
        [("a", "nowhere"), ("a", ""), ("a", "1.2.3.4\n6.6.6.6"), ("a b", "1.2.3.4"), ("", "1.2.3.4")]
    {
        step.exec.hosts = vec![(name.to_owned(), address.to_owned())];
        assert!(step.try_plan().is_err(), "{name:?} {address:?}");
    }
    step.exec.hosts.clear();
    for name in ["a\nb", "a b", &"x".repeat(65)] {
        step.exec.hostname = Some(name.to_owned());
        assert_eq!(step.try_plan(), Err(PlanError::HostName(name.to_owned())));
    }
}

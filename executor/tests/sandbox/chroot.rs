//! A chroot: what stands in it in the place of the image's own, that this comes back, and what a step cannot do there.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::Command,
};

use executor::sandbox::{PlanError, Root};
use solver::op;

use crate::{
    Test,
    confinement::plan_is_as_written,
    fixture::{Fixture, Step},
    life::{cancel, kill_the_init, orphans},
};

pub const TESTS: &[Test] = &[
    ("plan", plan_is_as_written),
    ("chroot_orphans", orphans),
    ("chroot_cancel", cancel),
    ("chroot_kill_the_init", kill_the_init),
    ("chroot_puts_back_what_is_the_images", puts_back),
    ("chroot_makes_nothing_where_nothing_was", makes_nothing),
    ("chroot_follows_links_inside", follows_links),
    ("chroot_refuses_false_directories", false_directories),
    ("chroot_takes_no_mounts", takes_no_mounts),
    ("chroot_keeps_a_step_inside", keeps_inside),
    ("chroot_keeps_others_from_a_step", keeps_others),
];

/// Everything in a directory: names, kinds, owners, times, contents and inodes.
fn listing(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_path_buf()];
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let text = if stat.is_file() && stat.len() < 1000 {
            fs::read_to_string(&path).unwrap()
        } else {
            String::new()
        };
        let numbers = (stat.mode(), stat.ino(), stat.uid(), stat.mtime(), stat.mtime_nsec(), stat.rdev());
        found.push(format!("{} {numbers:?} {text}", path.display()));
        if stat.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found.sort();
    found
}

fn runs(step: &Step<'_>, before: impl Fn(&Path)) -> (Vec<String>, Vec<String>, String) {
    let Root::Chroot { directory, .. } = step.plan().root else { panic!("it is a chroot") };
    before(&directory);
    let was = listing(&directory);
    let ran = step.run();
    (was, listing(&directory), ran.text())
}

/// Of all that a step does to what stands there nothing remains; a second run finds the same again.
fn puts_back(fixture: &Fixture) {
    let step = fixture.shell(
        "cat /etc/hosts /etc/resolv.conf | grep -c .; ls /dev | tr '\\n' ' '; echo x > /dev/mine; rm -rf /proc; mkdir -p /sys/a/b; \
         rm /etc/hosts; echo x > /etc/resolv.conf; mkdir /dev/shm/a; dd if=/dev/zero of=/dev/null bs=1 count=1 2>&1 | grep -c out; \
         mv /dev /gone; rm -r /gone; echo end",
    );
    let root = step.upper().display().to_string();
    let prepare = |root: &Path| {
        for name in ["dev", "proc", "etc"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["dev/own", "proc/own", "etc/hosts", "etc/resolv.conf"] {
            fs::write(root.join(name), "the image's").unwrap();
        }
    };
    for _ in 0..2 {
        let (was, is, told) = runs(&step, prepare);
        assert_eq!(told, "3\nfd full null random shm stderr stdin stdout tty urandom zero 1\nend\n");
        // The step has taken names out of these two.
        let changed = [root.clone(), format!("{root}/etc")];
        let unchanged = |line: &&String| !changed.iter().any(|path| line.starts_with(&format!("{path} (")));
        assert_eq!(
            was.iter().filter(unchanged).collect::<Vec<_>>(),
            is.iter().filter(unchanged).collect::<Vec<_>>()
        );
    }
}

fn makes_nothing(fixture: &Fixture) {
    let step = fixture
        .shell("test -f /etc/hosts && test -c /dev/null && test -d /proc && test -d /sys && echo there");
    let (was, is, told) = runs(&step, |_| {});
    assert_eq!(told, "there\n");
    assert_eq!(was, is);
}

fn follows_links(fixture: &Fixture) {
    let outside = tempfile::tempdir().unwrap();
    let at = outside.path().display().to_string();
    let step = fixture.shell("cat /etc/resolv.conf; test -f /run/resolve/conf && echo inside");
    let (was, is, told) = runs(&step, |root| {
        fs::create_dir_all(root.join("etc")).unwrap();
        symlink("../../run/resolve/conf", root.join("etc/resolv.conf")).unwrap();
        symlink(format!("{at}/hosts"), root.join("etc/hosts")).unwrap();
    });
    assert_eq!(told, "nameserver 192.0.2.1\ninside\n");
    assert_eq!(was, is);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

fn false_directories(fixture: &Fixture) {
    for name in ["proc", "sys", "dev"] {
        let step = fixture.shell("true");
        let Root::Chroot { directory, .. } = step.plan().root else { panic!("it is a chroot") };
        symlink("/tmp", directory.join(name)).unwrap();
        let error = step.run().exit.unwrap_err();
        assert!(error.to_string().contains(&format!("cover /{name}")), "{error}");
    }
}

fn takes_no_mounts(fixture: &Fixture) {
    let refused = |change: fn(&mut op::Exec), what: &str| {
        let mut step = fixture.shell("true");
        change(&mut step.exec);
        match step.try_plan() {
            Err(PlanError::BeyondChroot { what: named }) => assert!(named.contains(what), "{named}"),
            other => panic!("{what}: {other:?}"),
        }
    };
    refused(|exec| exec.network = op::Network::None, "--network=none");
    refused(|exec| exec.security = op::Security::Insecure, "--security=insecure");
    refused(|exec| exec.shared_memory = Some(1 << 20), "--shm-size");
    let tmpfs = |exec: &mut op::Exec| {
        exec.mounts = vec![op::Mount::Tmpfs { target: "/t".to_owned(), size: None }];
    };
    refused(tmpfs, "--mount=type=tmpfs (/t)");
    let mut named = fixture.shell("true");
    named.exec.hostname = Some("box".to_owned());
    let error = named.run().exit.unwrap_err();
    assert!(error.to_string().contains("shares this machine's name"), "{error}");
    let read_only = fixture.shell("true").plan().with_read_only_root();
    assert!(matches!(read_only, Err(PlanError::BeyondChroot { .. })), "{read_only:?}");
}

/// No capability for another chroot or for devices, and none to be gained.
fn keeps_inside(fixture: &Fixture) {
    let told = fixture.inside("chroot").run().success();
    assert_eq!(told, "chroot: EPERM\nmknod: EPERM\nno new privileges: true\n");
}

/// A process of the same user outside: it is neither signalled nor limited (the probes try the rest).
fn keeps_others(fixture: &Fixture) {
    let mut outside = Command::new("sleep").arg("1000000").spawn().unwrap();
    let pid = outside.id();
    let mut step = fixture.inside("others");
    step.exec.env.push(("PID".to_owned(), pid.to_string()));
    let told = step.run().text();
    assert!(outside.try_wait().unwrap().is_none(), "{told}");
    outside.kill().unwrap();
    outside.wait().unwrap();
    assert_eq!(told, "kill: EPERM\nlimit: EPERM\n");
}

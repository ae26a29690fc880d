//! The tests. What they expect is the same on every rung, except where one id is not enough.

use executor::sandbox::Rung;
use oci::{
    ContentDigest, Snapshot,
    tree::{NORMAL_TIME, content_time},
};
use rustix::fs::{AtFlags, OFlags};
use solver::{FailureKind, Op, StepFailure, op::MakeDir};

use crate::ground::{Base, FILE, Ground, NOTE};

/// A name and what it does.
pub type Test = (&'static str, fn(&Ground));

/// All tests.
pub const TESTS: &[Test] = &[
    ("run_changes_become_a_layer", run_changes_become_a_layer),
    ("run_leaves_nothing_when_it_fails", run_leaves_nothing_when_it_fails),
    ("a_full_disk_is_told", a_full_disk_is_told),
    ("run_that_changes_nothing_is_an_empty_layer", run_that_changes_nothing_is_an_empty_layer),
    ("copied_files_keep_content_times", copied_files_keep_content_times),
    ("a_base_s_content_times_are_known_again", a_base_s_content_times_are_known_again),
    ("a_base_with_other_owners", a_base_with_other_owners),
    ("a_base_with_devices", a_base_with_devices),
    ("whiteouts_of_a_base", whiteouts_of_a_base),
    ("directories_are_made_where_missing", directories_are_made_where_missing),
    (
        "notes_of_the_sandbox_are_told_once_and_by_run_only",
        notes_of_the_sandbox_are_told_once_and_by_run_only,
    ),
    ("context_changes_after_the_key_are_noticed", context_changes_after_the_key_are_noticed),
    ("a_linked_copy_asks_for_nothing_below", a_linked_copy_asks_for_nothing_below),
    ("a_linked_copy_replaces_what_is_below", a_linked_copy_replaces_what_is_below),
    ("linked_copies_stand_on_each_other", linked_copies_stand_on_each_other),
];

fn base(ground: &Ground, entries: &[Base<'_>]) -> Snapshot {
    Snapshot { layers: vec![ground.shell(), ground.files(entries)] }
}

fn run_changes_become_a_layer(ground: &Ground) {
    let base = base(ground, &[Base { path: "etc/", mode: 0o755, ..FILE }, Base { path: "etc/old", ..FILE }]);
    let command =
        "echo hi > /etc/new; rm /etc/old; mkdir -m 1777 /t; chmod 4755 /bin/busybox; touch -d @5 /t/5";
    let first = ground.run(&base, command).unwrap();
    let busybox = ground.tree(&first).remove(0);
    assert!(
        busybox.starts_with("bin/busybox file ") && busybox.ends_with(" 4755 0:0 1000000000"),
        "{busybox}"
    );
    let rest = [
        "etc/new file 3 644 0:0 epoch",
        "etc/old gone",
        "t directory 1777 0:0 epoch",
        "t/5 file 0 644 0:0 5",
    ];
    assert_eq!(ground.tree(&first)[1..], rest);
    assert_eq!(ground.run(&base, command).unwrap(), first);
    let second = ground.run(&first, "ls /etc/old || cat /etc/new > /copy").unwrap();
    assert_eq!(ground.tree(&second), ["copy file 3 644 0:0 epoch"]);
    assert_eq!(ground.temporaries(), 0);
}

fn run_leaves_nothing_when_it_fails(ground: &Ground) {
    let base = base(ground, &[]);
    let failure = ground.run(&base, "touch /x; exit 7").unwrap_err();
    assert_eq!((failure.kind, failure.exit_code), (FailureKind::Build, Some(7)));
    let message = "process \"/bin/sh -c touch /x; exit 7\" did not complete successfully: exit code: 7";
    assert_eq!((failure.message.as_str(), ground.temporaries()), (message, 0));
}

fn a_full_disk_is_told(ground: &Ground) {
    let small = ground.with_small_disk(6 << 20);
    let told = |failure: StepFailure| failure.hint.unwrap_or_default();
    let failure = small.run(&base(&small, &[]), "cat /dev/zero > /big").unwrap_err();
    assert!(told(failure).contains("is full (0 bytes free)"));
    let large = small.files(&[Base { path: "large", content: &vec![1; 16 << 20], ..FILE }]);
    let failure = small.run(&Snapshot { layers: vec![large] }, "true").unwrap_err();
    assert!(failure.message.ends_with(" of the base image"), "{failure}");
    let hint = told(failure);
    assert!(hint.contains(" is full (") && hint.contains(": make room"), "{hint}");
    small.detach_disk();
}

fn run_that_changes_nothing_is_an_empty_layer(ground: &Ground) {
    let base =
        base(ground, &[Base { path: "f", ..FILE }, Base { path: "new", time: NORMAL_TIME as u64, ..FILE }]);
    for command in
        ["cat /f", "touch /x && rm /x", "touch /f /new", "mkdir /d && rm -r /d", "chmod 600 /f; chmod 644 /f"]
    {
        let snapshot = ground.run(&base, command).unwrap();
        assert_eq!(ground.tree(&snapshot), [""; 0], "{command}");
    }
}

fn copied_files_keep_content_times(ground: &Ground) {
    let base = base(ground, &[]);
    ground.put("page.html", "<p>");
    let copied = ground.copy(&base, "page.html", "/srv/", None).unwrap();
    assert_eq!(ground.tree(&copied), ["srv directory 755 0:0 epoch", "srv/page.html file 3 644 0:0 content"]);
    let moved =
        ground.run(&copied, "chmod 600 /srv/page.html; mv /srv/page.html /x; echo > /srv/own").unwrap();
    let want = ["srv/own file 1 644 0:0 epoch", "srv/page.html gone", "x file 3 600 0:0 content"];
    assert_eq!(ground.tree(&moved), want);
}

fn a_base_s_content_times_are_known_again(ground: &Ground) {
    let content = b"brought";
    let time = content_time(&ContentDigest::of(content)) as u64;
    let base = base(ground, &[Base { path: "f", content, time, ..FILE }, Base { path: "g", time, ..FILE }]);
    let changed = ground.run(&base, "mv /f /h; mv /g /i").unwrap();
    let want = ["f gone", "g gone", "h file 7 644 0:0 content", &format!("i file 0 644 0:0 {time}")];
    assert_eq!(ground.tree(&changed), want);
}

fn a_base_with_other_owners(ground: &Ground) {
    let shadow = Base { path: "etc/shadow", mode: 0o640, owner: (0, 42), ..FILE };
    let base = base(ground, &[Base { path: "etc/", mode: 0o755, ..FILE }, shadow]);
    ground.put("f", "text");
    let copied = ground.copy(&base, "f", "/etc/f", Some("7:8")).unwrap();
    assert_eq!(ground.tree(&copied), ["etc/f file 4 644 7:8 content"]);
    let elsewhere = ground.copy_from(&Snapshot::default(), &copied, "etc", "/etc").unwrap();
    let want = [
        "etc directory 755 0:0 1000000000",
        "etc/f file 4 644 7:8 content",
        "etc/shadow file 0 640 0:42 1000000000",
    ];
    assert_eq!(ground.tree(&elsewhere)[1..], want[1..]);
    let replaced = ground.copy(&copied, "f", "/etc/shadow", None).unwrap();
    assert_eq!(ground.tree(&replaced), ["etc/shadow file 4 644 0:0 content"]);

    let run = ground.run(&copied, "stat -c %u:%g /etc/shadow /etc/f > /seen; cat /seen");
    match ground.rung {
        Rung::Root | Rung::SubordinateIds | Rung::Chroot => {
            assert_eq!(ground.tree(&run.unwrap()), ["seen file 9 644 0:0 epoch"]);
        }
        Rung::SingleId => {
            let failure = run.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Machine);
            assert!(failure.message.contains("(/etc/f is 7:8)"), "{failure}");
            assert!(failure.hint.is_some_and(|hint| !hint.contains("USER")));
        }
    }
    assert_eq!(ground.temporaries(), 0);
}

fn a_base_with_devices(ground: &Ground) {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Char);
    header.set_mode(0o600);
    header.set_size(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    archive.append_data(&mut header, "null", &b""[..]).unwrap();
    let base = Snapshot { layers: vec![ground.shell(), ground.layer(archive)] };
    let view = ground.executor.snapshots().view(&base).unwrap();
    let found = rustix::fs::statat(view.root(), "null", AtFlags::SYMLINK_NOFOLLOW);
    let warnings = ground.warnings();
    if ground.rung == Rung::Root {
        assert_eq!(found.unwrap().st_rdev, rustix::fs::makedev(1, 3));
        assert!(warnings.is_empty(), "{warnings:?}");
    } else {
        assert!(found.is_err());
        assert!(warnings.iter().any(|text| text.contains("the first is null")), "{warnings:?}");
    }
}

fn notes_of_the_sandbox_are_told_once_and_by_run_only(ground: &Ground) {
    let base = base(ground, &[]);
    let told = || ground.warnings().iter().filter(|text| *text == NOTE).count();
    ground.put("file", "x");
    ground.copy(&base, "file", "/", None).unwrap();
    assert_eq!(told(), 0);
    for command in ["true", "echo again"] {
        ground.run(&base, command).unwrap();
        assert_eq!(told(), 1);
    }
}

fn whiteouts_of_a_base(ground: &Ground) {
    let entries =
        [Base { path: "d/", mode: 0o755, ..FILE }, Base { path: "d/f", ..FILE }, Base { path: "g", ..FILE }];
    let whiteouts = [
        Base { path: "d/.wh..wh..opq", ..FILE },
        Base { path: "d/h", ..FILE },
        Base { path: ".wh.g", ..FILE },
    ];
    let mut snapshot = base(ground, &entries);
    snapshot.layers.push(ground.files(&whiteouts));
    let view = ground.executor.snapshots().view(&snapshot).unwrap();
    for (path, is_there) in [("d/f", false), ("d/h", true), ("g", false), ("bin/sh", true)] {
        assert_eq!(view.open(path.as_bytes(), OFlags::PATH).is_ok(), is_there, "{path}");
    }
    let listed = ground.run(&snapshot, "echo /d/* /g* > /seen; test \"$(cat /seen)\" = '/d/h /g*'").unwrap();
    assert_eq!(ground.tree(&listed), ["seen file 9 644 0:0 epoch"]);
}

fn directories_are_made_where_missing(ground: &Ground) {
    let base = base(ground, &[Base { path: "a/", mode: 0o700, ..FILE }]);
    let make = |path: &str| {
        let (path, owner) = (path.to_owned(), String::new());
        Op::MakeDir(MakeDir { path, owner, timestamps: Default::default() })
    };
    let made = ground.execute(make("/a/b/c"), &base, &[]).unwrap();
    assert_eq!(ground.tree(&made), ["a/b directory 755 0:0 epoch", "a/b/c directory 755 0:0 epoch"]);
    assert!(ground.execute(make("/a/b"), &made, &[]).unwrap().layers.last().unwrap().is_empty());
}

fn context_changes_after_the_key_are_noticed(ground: &Ground) {
    let base = Snapshot::default();
    ground.put("f", "keyed");
    ground.copy(&base, "f", "/", None).unwrap();
    ground.put("f", "later");
    // The look that was keyed is the one that is copied from, so the other bytes must not pass for it.
    let failure = ground.copy(&base, "f", "/g", None).unwrap_err();
    assert!(failure.message.contains("changed while reading"), "{failure}");
    assert_eq!((failure.kind, ground.temporaries()), (FailureKind::Build, 0));
}

/// The layer of a linked copy on top of another file system.
fn link(ground: &Ground, parent: &Snapshot, copied: &Snapshot) -> Snapshot {
    ground.merge(parent, copied).unwrap()
}

fn a_linked_copy_asks_for_nothing_below(ground: &Ground) {
    ground.put("d/f", "x");
    let copied = ground.copy(&Snapshot::default(), "d", "/srv/", None).unwrap();
    let unreachable = Snapshot { layers: vec![ground.absent()] };
    let linked = link(ground, &unreachable, &copied);
    assert_eq!(linked.layers.last(), copied.layers.last());
    assert_eq!(ground.tree(&linked), ["srv directory 755 0:0 epoch", "srv/f file 1 644 0:0 content"]);
    assert!(ground.executor.snapshots().view(&linked).is_err(), "now the base is needed");
    assert_eq!(ground.temporaries(), 0);
}

fn a_linked_copy_replaces_what_is_below(ground: &Ground) {
    let entries = [
        Base { path: "srv/", mode: 0o700, ..FILE },
        Base { path: "srv/old", ..FILE },
        Base { path: "srv/f", content: b"below", ..FILE },
        Base { path: "file", ..FILE },
        Base { path: "dir/", mode: 0o755, ..FILE },
        Base { path: "dir/gone", ..FILE },
    ];
    let base = base(ground, &entries);
    let base = ground.run(&base, "mkdir /real; echo a > /real/a; ln -s /real /link").unwrap();
    for (path, content) in [("s/srv/f", "above"), ("s/file/in", "x"), ("s/dir", "y"), ("s/link/b", "z")] {
        ground.put(path, content);
    }
    let copied = ground.copy(&Snapshot::default(), "s", "/", None).unwrap();
    let linked = link(ground, &base, &copied);
    let look = "for path in srv/* file/* dir link/* real/*; do echo $path $(cat $path); done; \
                test -d /link -a ! -L /link; stat -c %a:%u /srv";
    let seen = ground.run(&linked, &format!("({look}) > /seen; mv /seen /bin/seen")).unwrap();
    let seen = ground.text(&seen, "bin/seen");
    let want = "srv/f above\nsrv/old\nfile/in x\ndir y\nlink/b z\nreal/a a\n755:0\n";
    assert_eq!(seen, want);
    let changed = ground.run(&linked, "rm /srv/old /file/in; echo new > /srv/f").unwrap();
    let want = ["file/in gone", "srv/f file 4 644 0:0 epoch", "srv/old gone"];
    assert_eq!(ground.tree(&changed), want);
}

fn linked_copies_stand_on_each_other(ground: &Ground) {
    let base = base(ground, &[]);
    ground.put("a/f", "1");
    ground.put("b/g", "2");
    let alone = |source, owner| ground.copy(&Snapshot::default(), source, "/t/", owner).unwrap();
    let (a, b) = (alone("a", None), alone("b", Some("0:0")));
    // The same layer may stand twice in a chain.
    let chain = [&a, &b, &a].iter().fold(base.clone(), |below, copied| link(ground, &below, copied));
    let listed = ground.run(&chain, "cat /t/f /t/g > /seen; stat -c %h /t/f >> /seen").unwrap();
    assert_eq!(ground.text(&listed, "seen"), "121\n");
    let owned = ground.copy(&Snapshot::default(), "a", "/o/", Some("7:8")).unwrap();
    let linked = link(ground, &base, &owned);
    let elsewhere = ground.copy_from(&Snapshot::default(), &linked, "o", "/p").unwrap();
    assert_eq!(ground.tree(&elsewhere), ["p directory 755 0:0 epoch", "p/f file 1 644 7:8 content"]);
    assert_eq!(ground.temporaries(), 0);
}

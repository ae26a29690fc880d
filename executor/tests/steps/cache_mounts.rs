//! Cache mounts: what stays, who shares it, and with which times a step sees its sources. `build` is a make of four
//! lines of shell: it makes what is missing or older than its source, and says what it made.

use std::{
    slice::from_ref,
    sync::{Barrier, mpsc},
    thread,
    time::{Duration, SystemTime},
};

use executor::sandbox::Rung;
use oci::Snapshot;
use solver::{
    Cancel, FailureKind,
    op::{BindMount, CacheMount, Mount, Sharing},
};

use crate::{
    cases::Test,
    ground::{Base, FILE, Ground, UseCache},
};

/// All tests.
pub const TESTS: &[Test] = &[
    ("a_cache_mount_stays_and_is_in_no_layer", a_cache_mount_stays_and_is_in_no_layer),
    ("a_new_cache_mount_is_made_as_asked", a_new_cache_mount_is_made_as_asked),
    ("a_cache_mount_begins_with_a_copy", a_cache_mount_begins_with_a_copy),
    ("whatever_a_command_leaves_is_there_again", whatever_a_command_leaves_is_there_again),
    ("without_cache_it_begins_anew_once", without_cache_it_begins_anew_once),
    ("shared_private_and_locked", shared_private_and_locked),
    ("a_wait_can_be_cancelled", a_wait_can_be_cancelled),
    ("changed_sources_are_built_and_no_others", changed_sources_are_built_and_no_others),
    ("sources_of_a_bind_mount_too", sources_of_a_bind_mount_too),
    ("a_source_that_nobody_built_is_built_later", a_source_that_nobody_built_is_built_later),
    ("a_source_that_comes_back_counts_as_changed", a_source_that_comes_back_counts_as_changed),
    ("sources_of_another_base_are_built", sources_of_another_base_are_built),
    ("what_two_builds_see_differently_is_built_again", what_two_builds_see_differently_is_built_again),
    ("who_comes_at_once_is_written_down", who_comes_at_once_is_written_down),
    ("what_another_link_leads_to_is_built", what_another_link_leads_to_is_built),
    ("generated_files_stay_newer", generated_files_stay_newer),
    ("fresh_times_reach_no_layer", fresh_times_reach_no_layer),
];

fn cache(id: &str, target: &str) -> CacheMount {
    CacheMount {
        target: target.to_owned(),
        id: id.to_owned(),
        sharing: Sharing::Shared,
        seed: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
        read_only: false,
    }
}

fn mounted(id: &str) -> Mount {
    Mount::Cache(cache(id, "/c"))
}

fn base(ground: &Ground) -> Snapshot {
    Snapshot { layers: vec![ground.shell()] }
}

/// What a command printed, by way of a layer.
fn output(ground: &Ground, parent: &Snapshot, command: &str, mounts: &[Mount]) -> String {
    let snapshot = ground.run_mounted(parent, &format!("{{ {command}; }} > /out"), mounts, &[]).unwrap();
    assert!(ground.tree(&snapshot).iter().all(|line| line.starts_with("out ")), "only the output is new");
    ground.text(&snapshot, "out")
}

fn a_cache_mount_stays_and_is_in_no_layer(ground: &Ground) {
    let base = base(ground);
    let id = "any/thing ../\n'\"\u{fffd} of any length ".repeat(20);
    let made = ground.run_mounted(&base, "echo kept > /c/file", &[mounted(&id)], &[]).unwrap();
    assert_eq!(ground.tree(&made), [""; 0]);
    assert_eq!(output(ground, &base, "cat /c/file", &[mounted(&id)]), "kept\n");
    assert_eq!(output(ground, &base, "ls /c", &[mounted("other")]), "");
    let failure =
        ground.run_mounted(&base, "echo more >> /c/file; exit 3", &[mounted(&id)], &[]).unwrap_err();
    assert_eq!(failure.exit_code, Some(3));
    let twice = [mounted(&id), Mount::Cache(CacheMount { read_only: true, ..cache(&id, "/d/e") })];
    let script = "cat /d/e/file; touch /d/e/x 2> /dev/null || echo read-only; touch /c/y; ls /d/e";
    assert_eq!(output(ground, &base, script, &twice), "kept\nmore\nread-only\nfile\ny\n");
    assert_eq!(ground.temporaries(), 0);
}

fn a_new_cache_mount_is_made_as_asked(ground: &Ground) {
    let base = base(ground);
    let private = Mount::Cache(CacheMount { mode: 0o1770, ..cache("x", "/c") });
    assert_eq!(output(ground, &base, "touch /c/f; stat -c '%a %u:%g' /c", from_ref(&private)), "1770 0:0\n");
    // As with BuildKit, another start is another mount; the same one is used as it is.
    assert_eq!(output(ground, &base, "stat -c %a /c; ls /c; chmod 700 /c", &[mounted("x")]), "755\n");
    assert_eq!(output(ground, &base, "stat -c %a /c", &[mounted("x")]), "700\n");
    assert_eq!(output(ground, &base, "ls /c", &[private]), "f\n");

    let owned = Mount::Cache(CacheMount { uid: 33, gid: 44, ..cache("y", "/c") });
    let run = ground.run_mounted(&base, "stat -c %u:%g /c > /out", &[owned], &[]);
    match ground.rung {
        Rung::Root | Rung::SubordinateIds | Rung::Chroot => {
            assert_eq!(ground.text(&run.unwrap(), "out"), "33:44\n")
        }
        Rung::SingleId => {
            let failure = run.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Machine);
            assert!(failure.message.contains("/c cannot be given to 33:44"), "{failure}");
        }
    }
}

fn a_cache_mount_begins_with_a_copy(ground: &Ground) {
    let base = base(ground);
    let tree = [
        Base { path: "seed/", mode: 0o750, ..FILE },
        Base { path: "seed/sub/", mode: 0o700, ..FILE },
        Base { path: "seed/sub/file", content: b"text", mode: 0o4755, ..FILE },
    ];
    let from = Snapshot { layers: vec![ground.files(&tree)] };
    let from = ground.run(&base.with(from.layers[0].clone()), "busybox ln -s ../out /seed/link").unwrap();
    let seeded = |source: &str| {
        Mount::Cache(CacheMount { seed: Some((1, source.to_owned())), ..cache("seeded", "/c") })
    };
    let look = "stat -c '%a %Y' /c/sub/file > /out; stat -c %a /c /c/sub >> /out; cat /c/sub/file >> /out;
        busybox readlink /c/link >> /out; rm /c/sub/file";
    let first = ground.run_mounted(&base, look, &[seeded("/seed")], &[&from]).unwrap();
    assert_eq!(ground.text(&first, "out"), "4755 1000000000\n750\n700\ntext../out\n");
    let second = ground.run_mounted(&base, "ls /c/sub > /out", &[seeded("/seed")], &[&from]).unwrap();
    assert_eq!(ground.text(&second, "out"), "", "it is filled once");
    for (source, what) in [("/none", "it is not there"), ("/seed/sub/file", "it is no directory")] {
        let failure = ground.run_mounted(&base, "true", &[seeded(source)], &[&from]).unwrap_err();
        assert!(failure.message.ends_with(what), "{failure}");
    }
}

fn whatever_a_command_leaves_is_there_again(ground: &Ground) {
    let base = base(ground);
    let mess =
        "mkdir -p /c/a/b; touch /c/a/b/f; chmod 000 /c/a/b /c/a; busybox ln -s / /c/fs; busybox mkfifo /c/p
        busybox ln -s /etc /c/use; echo x > /c/seen; chmod 000 /c";
    ground.run_mounted(&base, mess, &[mounted("mess")], &[]).unwrap();
    let found =
        output(ground, &base, "stat -c %a /c; chmod 700 /c; ls /c; rm -rf /c/*; ls /c", &[mounted("mess")]);
    assert_eq!(found, "0\na\nfs\np\nseen\nuse\n");
    ground.run_mounted(&base, mess, &[mounted("mess")], &[]).unwrap();
    let (log, cancel) = (|_, _: &[u8]| (), Cancel::default());
    let anew = ground.in_same_store();
    anew.run_watched(&base, "test -z \"$(ls /c)\"", &[mounted("mess")], &[], UseCache::No, (&log, &cancel))
        .unwrap();
    assert_eq!(ground.temporaries(), 0);
}

fn without_cache_it_begins_anew_once(ground: &Ground) {
    let base = base(ground);
    ground.run_mounted(&base, "touch /c/old", &[mounted("id")], &[]).unwrap();
    let (log, cancel) = (|_, _: &[u8]| (), Cancel::default());
    let build = ground.in_same_store();
    for command in ["test ! -e /c/old; touch /c/new", "test -e /c/new"] {
        build.run_watched(&base, command, &[mounted("id")], &[], UseCache::No, (&log, &cancel)).unwrap();
    }
    assert_eq!(output(ground, &base, "ls /c", &[mounted("id")]), "new\n");
}

/// The first step holds the mount until the second one says so, through a pipe in a mount that they share.
fn shared_private_and_locked(ground: &Ground) {
    let base = base(ground);
    let gate = || Mount::Cache(cache("gate", "/gate"));
    let with = |sharing, id: &str| [Mount::Cache(CacheMount { sharing, ..cache(id, "/c") }), gate()];
    let holds = "rm -f /gate/p /gate/q; echo first > /c/first; busybox mkfifo /gate/p; busybox mkfifo /gate/q
        cat /gate/q > /dev/null; rm /gate/q; cat /gate/p > /dev/null; echo end > /c/end";
    let frees = "ls /c > /out; echo > /gate/p";
    use Sharing::{Locked, Private, Shared};
    for (first, second, saw) in [
        (Shared, Shared, "first\n"),
        (Private, Private, ""),
        (Private, Shared, ""),
        (Shared, Private, ""),
        (Locked, Shared, ""),
        (Locked, Private, ""),
    ] {
        let id = format!("{first:?} {second:?}");
        let seen = thread::scope(|scope| {
            let holder = scope.spawn(|| ground.run_mounted(&base, holds, &with(first, &id), &[]).unwrap());
            ground
                .run_mounted(
                    &base,
                    "until busybox test -p /gate/q; do :; done; echo > /gate/q",
                    &[gate()],
                    &[],
                )
                .unwrap();
            let seen = ground.run_mounted(&base, frees, &with(second, &id), &[]).unwrap();
            holder.join().unwrap();
            seen
        });
        assert_eq!(ground.text(&seen, "out"), saw, "{id}");
    }
    // A locked one waits for whoever is there; what it waits for is told, and only then the other is let go.
    for first in [Shared, Private, Locked] {
        let id = format!("wait for {first:?}");
        let (told, hear) = mpsc::sync_channel(1);
        let seen = thread::scope(|scope| {
            let holder = scope.spawn(|| ground.run_mounted(&base, holds, &with(first, &id), &[]).unwrap());
            ground
                .run_mounted(
                    &base,
                    "until busybox test -p /gate/q; do :; done; echo > /gate/q",
                    &[gate()],
                    &[],
                )
                .unwrap();
            let waiter = scope.spawn(|| {
                let log = move |_, line: &[u8]| {
                    let line = String::from_utf8_lossy(line);
                    assert!(line.contains("waiting for the cache mount at /c"), "{line}");
                    told.try_send(()).unwrap();
                };
                let watch = (&log as _, &Cancel::default());
                let wanted = with(Locked, &id);
                ground.run_watched(&base, "ls /c > /out", &wanted[..1], &[], UseCache::Yes, watch).unwrap()
            });
            hear.recv().unwrap();
            ground.run_mounted(&base, "echo > /gate/p", &[gate()], &[]).unwrap();
            holder.join().unwrap();
            waiter.join().unwrap()
        });
        assert_eq!(ground.text(&seen, "out"), "end\nfirst\n", "{id}");
    }
    assert_eq!(ground.temporaries(), 0);
}

fn a_wait_can_be_cancelled(ground: &Ground) {
    let base = base(ground);
    let gate = Mount::Cache(cache("gate", "/gate"));
    let locked = Mount::Cache(CacheMount { sharing: Sharing::Locked, ..cache("id", "/c") });
    let holds = "busybox mkfifo /gate/p; cat /gate/p > /dev/null; cat /gate/p > /dev/null";
    thread::scope(|scope| {
        let holder = scope.spawn(|| ground.run_mounted(&base, holds, &[locked.clone(), gate.clone()], &[]));
        let go = "until busybox test -p /gate/p; do :; done; echo > /gate/p";
        ground.run_mounted(&base, go, from_ref(&gate), &[]).unwrap();
        let cancel = Cancel::default();
        let log = |_, _: &[u8]| cancel.request();
        let waited =
            ground.run_watched(&base, "true", from_ref(&locked), &[], UseCache::Yes, (&log, &cancel));
        assert_eq!(waited.unwrap_err().kind, FailureKind::Cancelled);
        ground.run_mounted(&base, "echo > /gate/p", from_ref(&gate), &[]).unwrap();
        holder.join().unwrap().unwrap();
    });
}

/// Makes /c/NAME of /src/NAME where it must, and says what it made.
const BUILD: &str = "for f in /src/*; do t=/c/${f#/src/}
    if [ ! -e $t ] || [ $f -nt $t ]; then cat $f > $t; echo ${f#/src/}; fi; done";

/// `COPY version /src`, from files with times of their own, `age` seconds old.
fn source(ground: &Ground, parent: &Snapshot, version: &str, files: &[(&str, &str, u64)]) -> Snapshot {
    for (name, text, age) in files {
        let path = format!("{version}/{name}");
        ground.put(&path, text);
        ground.touch(&path, SystemTime::now() - Duration::from_secs(*age));
    }
    ground.copy(parent, version, "/src", None).unwrap()
}

fn built(ground: &Ground, parent: &Snapshot) -> String {
    output(ground, parent, BUILD, &[mounted("target")]).replace('\n', " ")
}

fn changed_sources_are_built_and_no_others(ground: &Ground) {
    let base = base(ground);
    let one = source(ground, &base, "1", &[("a", "a1", 100), ("b", "b1", 90)]);
    // Edited, with an older time than before; and all of the layer is checked out anew.
    let two = source(ground, &base, "2", &[("a", "a2", 1000), ("b", "b1", 0)]);
    let three = source(ground, &base, "3", &[("a", "a2", 50), ("b", "b1", 50), ("c", "c", 5000)]);
    let unrelated = ground.copy(&three, "1/a", "/etc/unrelated", None).unwrap();
    for (snapshot, expected) in [
        (&one, "a b "),
        (&one, ""),
        (&two, "a "),
        (&two, ""),
        (&one, "a "),
        (&three, "a c "),
        (&unrelated, ""),
        (&two, ""),
        (&three, "c "),
        (&one, "a "),
        (&one, ""),
    ] {
        let found = built(ground, snapshot);
        assert_eq!(found, expected, "{:?}", snapshot.layers.len());
    }
    assert_eq!(output(ground, &one, "cat /c/a /c/b", &[mounted("target")]), "a1b1");
    assert_eq!(ground.temporaries(), 0);
}

fn sources_of_a_bind_mount_too(ground: &Ground) {
    let base = base(ground);
    let empty = Snapshot::default();
    let one = source(ground, &empty, "1", &[("a", "a1", 100), ("b", "b1", 90)]);
    let two = source(ground, &empty, "2", &[("a", "a2", 1000), ("b", "b1", 0)]);
    let bind = |target: &str, source: &str| {
        let (target, source) = (target.to_owned(), source.to_owned());
        Mount::Bind(BindMount { target, input: 1, source, writable: false })
    };
    let build = |from: &Snapshot| {
        let command = format!("{{ {BUILD}; }} > /out; rmdir /src 2> /dev/null; true");
        let made = ground.run_mounted(&base, &command, &[bind("/src", "/src"), mounted("t")], &[from]);
        ground.text(&made.unwrap(), "out").replace('\n', " ")
    };
    for (from, expected) in [(&one, "a b "), (&one, ""), (&two, "a "), (&two, ""), (&one, "a "), (&one, "")] {
        assert_eq!(build(from), expected);
    }
    // A file alone.
    let build = |from: &Snapshot| {
        let command = format!("{{ {BUILD}; }} > /out");
        let made = ground.run_mounted(&base, &command, &[bind("/src/a", "/src/a"), mounted("u")], &[from]);
        ground.text(&made.unwrap(), "out").replace('\n', " ")
    };
    for (from, expected) in [(&one, "a "), (&one, ""), (&two, "a "), (&two, ""), (&one, "a ")] {
        assert_eq!(build(from), expected);
    }
}

/// The step that saw the change first did not look at the source.
fn a_source_that_nobody_built_is_built_later(ground: &Ground) {
    let base = base(ground);
    let one = source(ground, &base, "1", &[("a", "a1", 100)]);
    let two = source(ground, &base, "2", &[("a", "a2", 1000)]);
    assert_eq!(built(ground, &one), "a ");
    assert_eq!(output(ground, &two, "true", &[mounted("target")]), "");
    let failure = ground.run_mounted(&two, "exit 1", &[mounted("target")], &[]).unwrap_err();
    assert_eq!(failure.exit_code, Some(1));
    assert_eq!(built(ground, &two), "a ");
}

fn a_source_that_comes_back_counts_as_changed(ground: &Ground) {
    let base = base(ground);
    let one = source(ground, &base, "1", &[("a", "a1", 100), ("b", "b1", 90)]);
    let less = ground.run(&one, "rm /src/a").unwrap();
    let all = "cat /src/* > /c/all; echo all";
    let script = format!(
        "[ -e /c/all ] || new=1; for f in /src /src/*; do [ $f -nt /c/all ] && new=1; done; [ -z $new ] || {{ {all}; }}"
    );
    let build = |snapshot: &Snapshot| output(ground, snapshot, &script, &[mounted("x")]);
    for (snapshot, expected) in
        [(&one, "all\n"), (&one, ""), (&less, "all\n"), (&less, ""), (&one, "all\n"), (&one, "")]
    {
        assert_eq!(build(snapshot), expected);
    }
    assert_eq!(output(ground, &one, "cat /c/all", &[mounted("x")]), "a1b1");
}

fn sources_of_another_base_are_built(ground: &Ground) {
    let with = |content: &[u8], time| {
        let file = ground.files(&[Base { path: "src/a", content, time, ..FILE }]);
        Snapshot { layers: vec![ground.shell(), file] }
    };
    // Reproducible builds give all files one time, which is that of unpacking on disk: the older base is unpacked first.
    let normal = oci::tree::NORMAL_TIME as u64;
    let (one, two) = (with(b"a1", normal), with(b"a2", normal));
    for snapshot in [&one, &two] {
        ground.executor.snapshots().ensure(snapshot).unwrap();
    }
    for (snapshot, expected) in
        [(&one, "a "), (&two, "a "), (&two, ""), (&one, "a "), (&one, ""), (&two, "a ")]
    {
        assert_eq!(built(ground, snapshot), expected);
    }
    // What the base has comes to light again, and goes.
    let changed = ground.run(&two, "echo a3 > /src/a").unwrap();
    let gone = ground.run(&two, "rm /src/a; echo b > /src/b").unwrap();
    for (snapshot, expected) in [(&changed, "a "), (&two, "a "), (&two, ""), (&gone, "b "), (&two, "a ")] {
        assert_eq!(built(ground, snapshot), expected);
    }
}

/// A tool looks through links: what one leads to is new, however old it is.
fn what_another_link_leads_to_is_built(ground: &Ground) {
    let base = base(ground).with(ground.files(&[Base { path: "base", content: b"base", ..FILE }]));
    let base = source(ground, &base, "1", &[("a", "a", 100)]);
    let base =
        ground.run(&base, "mkdir /v1 /v2; echo 1 > /v1/f; echo 2 > /v2/f; touch -d @5 /v1/f /v2/f").unwrap();
    let link = |file: &str, directory: &str| {
        let command =
            format!("busybox ln -s {file} /src/b; busybox ln -s {directory} /v; busybox ln -s ../v/f /src/c");
        ground.run(&base, &command).unwrap()
    };
    let (one, two, three) = (link("/v1/f", "v1"), link("/v2/f", "v2"), link("/base", "v2"));
    for (snapshot, expected) in [
        (&one, "a b c "),
        (&one, ""),
        (&two, "b c "),
        (&two, ""),
        (&three, "b "),
        (&three, ""),
        (&one, "b c "),
        (&two, "b c "),
    ] {
        assert_eq!(built(ground, snapshot), expected);
    }
    assert_eq!(output(ground, &two, "cat /c/b /c/c", &[mounted("target")]), "2\n2\n");
}

/// Two steps see different sources while they write to the same place: whose result is there afterwards nobody knows.
fn what_two_builds_see_differently_is_built_again(ground: &Ground) {
    let base = base(ground);
    let one = source(ground, &base, "1", &[("a", "a1", 100), ("b", "b1", 90)]);
    let two = source(ground, &base, "2", &[("a", "a2", 1000), ("b", "b1", 0)]);
    let gate = || Mount::Cache(cache("gate", "/gate"));
    let first = format!(
        "busybox mkfifo /gate/p; cat /gate/p > /dev/null; cat /gate/p > /dev/null; rm -f /c/a; {BUILD}"
    );
    thread::scope(|scope| {
        let mounts = [mounted("target"), gate()];
        let first = scope.spawn(move || ground.run_mounted(&one, &first, &mounts, &[]).unwrap());
        let go = "until busybox test -p /gate/p; do :; done; echo > /gate/p";
        ground.run_mounted(&base, go, &[gate()], &[]).unwrap();
        assert_eq!(built(ground, &two), "a b ");
        // It builds version 1 now, later than the other has built version 2.
        ground.run_mounted(&base, "echo > /gate/p", &[gate()], &[]).unwrap();
        first.join().unwrap();
    });
    assert!(built(ground, &two).contains("a "));
    assert_eq!(output(ground, &two, "cat /c/a", &[mounted("target")]), "a2");
    assert_eq!(built(ground, &two), "");
}

/// Two steps that begin in the same moment, with different files under one path: whoever's results are there at the
/// end, neither is taken for the other's.
fn who_comes_at_once_is_written_down(ground: &Ground) {
    let base = base(ground);
    let one = source(ground, &base, "1", &[("a", "a1", 100)]);
    let two = source(ground, &base, "2", &[("a", "a2", 1000)]);
    let before = source(ground, &base, "0", &[("a", "a0", 5000)]);
    for round in 0..4 {
        let mount = [mounted(&format!("round {round}"))];
        // Both find the same written down, and that theirs is another file.
        ground.run_mounted(&before, BUILD, &mount, &[]).unwrap();
        let start = Barrier::new(2);
        let start_with = |snapshot| {
            start.wait();
            ground.run_mounted(snapshot, BUILD, &mount, &[]).unwrap()
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| start_with(&two));
            start_with(&one);
            other.join().unwrap();
        });
        for (snapshot, content) in [(&one, "a1"), (&two, "a2"), (&one, "a1")] {
            let made = output(ground, snapshot, &format!("{{ {BUILD} }} > /dev/null; cat /c/a"), &mount);
            assert_eq!(made, content, "round {round}");
        }
    }
}

fn generated_files_stay_newer(ground: &Ground) {
    let base = base(ground);
    let one = source(ground, &base, "1", &[("a", "a1", 100)]);
    let one = ground.run(&one, "cat /src/a > /src/gen").unwrap();
    let two = source(ground, &base, "2", &[("a", "a2", 1000)]);
    let two = ground.run(&two, "cat /src/a > /src/gen").unwrap();
    let newer = "[ /src/a -nt /src/gen ] || echo newer; busybox stat -c %Y /src/a /src/gen | busybox sort -c && echo order";
    for snapshot in [&one, &two, &one, &two] {
        assert_eq!(output(ground, snapshot, newer, &[mounted("target")]), "newer\norder\n");
        built(ground, snapshot);
    }
}

fn fresh_times_reach_no_layer(ground: &Ground) {
    let base = base(ground);
    let old = |path, content| Base { path, content, mode: 0o755, time: 5, ..FILE };
    let more = [old("old/", b""), old("old/x", b"x"), old("old/y", b"y"), old("old/z", b"z")];
    let base = base.with(ground.files(&more));
    let base =
        ground.run(&base, "echo one > /old/x; touch -d @7 /old/x /old/y; busybox ln /old/x /old/x2").unwrap();
    let one = source(ground, &base, "1", &[("a", "a1", 100), ("b", "b1", 90), ("c", "c", 1)]);
    let other = ground.run(&base, "echo three > /old/x; touch -d @9 /old/x /old/y /old").unwrap();
    let two = source(ground, &other, "2", &[("a", "a2", 1000), ("b", "b2", 900), ("c", "c", 2000)]);
    let command = "chmod 700 /src/a /old/x; mv /old/y /moved; busybox cp -a /old/x /kept; rm /src/b; echo >> /src/c
        mv /src /dst; touch /old/z; chmod 711 /old; busybox ln /old/x2 /name 2> /dev/null; cat /dst/a > /dst/a; true";
    let twin = |snapshot: &Snapshot| ground.tree(&ground.run(snapshot, command).unwrap());
    for snapshot in [&one, &two, &one, &two] {
        let mount = [mounted("target")];
        let shown = output(ground, snapshot, "stat -c %Y /src/a /old/x", &mount);
        let made = ground.run_mounted(snapshot, command, &mount, &[]).unwrap();
        assert_eq!(ground.tree(&made), twin(snapshot), "{shown}");
        let touched =
            ground.run_mounted(snapshot, "touch /src/* /old/z; chmod 700 /src; chmod 755 /src", &mount, &[]);
        assert_eq!(ground.tree(&touched.unwrap()), [""; 0]);
        built(ground, snapshot);
    }
}

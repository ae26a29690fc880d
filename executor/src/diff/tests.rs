use super::*;
use crate::{
    rootfs::{lstat, shown},
    testing::{Copied, Overlaid, run_in_namespace_with_one_id, suffix},
};

/// A tree in the notation of [`crate::testing`], with `- path` for whiteouts and `*` for content-derived times.
pub(super) fn shown_tree(tree: &Tree, upper: &Path) -> Vec<String> {
    let line = |entry: &Entry| {
        let path = shown(&entry.path);
        let (line, usual) = match &entry.kind {
            EntryKind::Whiteout => return format!("- {path}"),
            EntryKind::Opaque => return format!("-- {path}"),
            EntryKind::HardLink { target } => return format!("{path} => {}", shown(target)),
            EntryKind::Directory => (format!("{path}/"), 0o755),
            EntryKind::Symlink { target } => (format!("{path} -> {}", shown(target)), 0o777),
            EntryKind::Fifo => (format!("{path} |"), 0o644),
            EntryKind::CharDevice { major, minor } => (format!("{path} c{major},{minor}"), 0o644),
            EntryKind::BlockDevice { major, minor } => (format!("{path} b{major},{minor}"), 0o644),
            EntryKind::File { size, content } => {
                let bytes = std::fs::read(upper.join(&path)).expect("it is in the upper directory");
                assert_eq!((*size, *content), (bytes.len() as u64, ContentDigest::of(&bytes)), "{path}");
                (format!("{path} = {}", shown(&bytes)), 0o644)
            }
        };
        let metadata = &entry.metadata;
        let kept = match metadata.time {
            EntryTime::Kept(time) => Some(time),
            EntryTime::Epoch | EntryTime::Content => None,
        };
        let mark = if metadata.time == EntryTime::Content { " *" } else { "" };
        line + mark + &suffix(metadata.mode, usual, (metadata.uid, metadata.gid), kept, &metadata.xattrs)
    };
    tree.entries().iter().map(line).collect()
}

const BROUGHT: &str = "brought";

pub(super) fn rules(brought: &BTreeSet<ContentDigest>) -> TimeRules<'_> {
    TimeRules { timestamps: Timestamps::Auto, brought: Brought::Contents(brought) }
}

pub(super) fn scan_of(
    overlay: &mut Overlaid,
    rules: TimeRules<'_>,
    owners: &Owners,
) -> Result<Changes, DiffError> {
    let below = Owners::new();
    overlay.unmount();
    let lower = Lower { root: overlay.lower.as_fd(), owners: &below };
    scan(
        Upper { path: &overlay.upper(), kind: UpperKind::Overlay(overlay.marks()), owners },
        lower,
        rules,
        &Cancel::default(),
    )
}

/// What an overlay does otherwise than a file system that is whole: it parts the names of a file that is written through one.
const PARTED: &[(&str, &[&str])] = &[("chmod 600 a", &["a = x ; 0600", "b => a"])];

pub(super) fn scan_of_copy(copied: &Copied, rules: TimeRules<'_>) -> Result<Changes, DiffError> {
    let owners = Owners::new();
    let lower = Lower { root: copied.lower.as_fd(), owners: &owners };
    let kind = UpperKind::Copy(&copied.twins);
    scan(Upper { path: &copied.path(), kind, owners: &owners }, lower, rules, &Cancel::default())
}

#[test]
fn a_scan_can_be_cancelled() {
    let Some(mut overlay) = Overlaid::anywhere(&["d/f = x"]) else { return };
    overlay.run("echo y > d/g");
    overlay.unmount();
    let (owners, brought, cancel) = (Owners::new(), BTreeSet::new(), Cancel::default());
    cancel.request();
    let lower = Lower { root: overlay.lower.as_fd(), owners: &owners };
    let upper = Upper { path: &overlay.upper(), kind: UpperKind::Overlay(overlay.marks()), owners: &owners };
    let stopped = scan(upper, lower, rules(&brought), &cancel);
    assert!(matches!(stopped, Err(DiffError::Cancelled)), "{stopped:?}");
}

#[test]
fn the_root_directory_is_no_change() {
    check(&["f = x"], "chmod 711 .; echo y > g", &["g = y\n"]);
}

/// What a script leaves behind when RUN on top of a drawn file system.
fn check(lower: &[&str], script: &str, expected: &[&str]) {
    let needs_root = ["mknod", "chown"].iter().any(|command| script.contains(command));
    let overlay = if needs_root { Overlaid::new(lower) } else { Overlaid::anywhere(lower) };
    let Some(mut overlay) = overlay else { return };
    overlay.run(script);
    let brought = BTreeSet::from([ContentDigest::of(BROUGHT.as_bytes())]);
    let changes = scan_of(&mut overlay, rules(&brought), &Owners::new()).expect(script);
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), expected, "{script}");
    let copied = Copied::new(lower);
    copied.run(script);
    let parted = PARTED.iter().find(|(parting, _)| *parting == script).map(|(_, expected)| *expected);
    let of_copy = scan_of_copy(&copied, rules(&brought)).expect(script);
    assert_eq!(shown_tree(&of_copy.tree, &copied.path()), parted.unwrap_or(expected), "a copy: {script}");
    assert_eq!(Tree::from_bytes(&changes.tree.to_bytes()).as_ref(), Ok(&changes.tree), "{script}");
}

#[test]
fn what_a_step_changed() {
    let rows: &[(&[&str], &str, &[&str])] = &[
        // Nothing
        (&["d/f = x"], "true", &[]),
        (&["d/f = x"], "touch d/f d", &[]),
        (&["d/f = x"], "chmod 644 d/f", &[]),
        (&["d/f = x"], "printf x > d/f", &[]),
        (&["d/f = x"], "cat d/f > t; cat t > d/f; rm t", &[]),
        (&["d/f = x"], "mkdir d/n; rmdir d/n; touch n; rm n", &[]),
        (&["d/f = x ; @1000", "d/ @2000"], "touch d/f; touch d", &[]),
        (&["l -> x"], "rm l; ln -s x l", &[]),
        (&["p |"], "rm p; mkfifo p", &[]),
        (&["a = x", "b => a"], "touch a", &[]),
        (&["d/f = x", "d/g = y"], "rm -r d; mkdir d; printf x > d/f; printf y > d/g", &[]),
        (&["d/f = x ; user.a=b"], "touch d/f", &[]),
        // Additions
        (&[], "printf x > f", &["f = x"]),
        (&[], "mkdir -m 1777 t; mkdir -p a/b", &["a/", "a/b/", "t/ ; 1777"]),
        (&["d/f = x"], "printf y > d/g", &["d/g = y"]),
        (&[], "ln -s /x l; mkfifo -m 600 p; mknod n c 1 3", &["l -> /x", "n c1,3", "p | ; 0600"]),
        (&[], "printf x > b; ln b a; ln b c", &["a = x", "b => a", "c => a"]),
        (&[], "mkfifo p; ln p q; ln -s x l; ln -P l m", &["l -> x", "m => l", "p |", "q => p"]),
        (&[], "printf x > f; chown 5:6 f; chmod 4750 f", &["f = x ; 4750 5:6"]),
        (&[], "printf x > a.b; mkdir a; printf y > a/c", &["a/", "a.b = x", "a/c = y"]),
        // Changes
        (&["d/f = x"], "printf y > d/f", &["d/f = y"]),
        (&["d/f = x"], "chmod 600 d/f", &["d/f = x ; 0600"]),
        (&["d/f = x"], "chown 1:2 d", &["d/ ; 1:2"]),
        (&["d/f = x"], "chmod 700 d", &["d/ ; 0700"]),
        (&["f = x"], "touch -d @1000 f", &["f = x ; @1000"]),
        (&["f = x ; @1000"], "touch -d @2000 f", &["f = x ; @2000"]),
        (&["f = x ; @1000"], "printf x >> f", &["f = xx"]),
        (&["l -> x"], "ln -sfn y l", &["l -> y"]),
        (&["f = x"], "ln f g", &["f = x", "g => f"]),
        (&["a = x", "b => a"], "chmod 600 a", &["a = x ; 0600"]),
        (&["a = x", "b = x"], "ln -f a b", &["a = x", "b => a"]),
        (&["f = x"], "mv f g", &["- f", "g = x"]),
        (&["d/f = x", "d/e/g = y"], "mv d n", &["- d", "n/", "n/e/", "n/e/g = y", "n/f = x"]),
        // Names of one file, in a directory that was made anew
        (&["d/a = x", "d/b => d/a"], "rm -r d; mkdir d; printf x > d/a; ln d/a d/b", &[]),
        (
            &["d/a = x", "d/b => d/a"],
            "rm -r d; mkdir d; printf x > d/a; printf x > d/b",
            &["d/a = x", "d/b = x"],
        ),
        (&["d/a = x", "b => d/a"], "rm -r d; mkdir d; printf x > d/a", &["d/a = x"]),
        (&["d/a = x", "b => d/a"], "rm -r d; mkdir d; ln b d/a", &["b = x", "d/a => b"]),
        (&["d/a |", "d/b => d/a"], "rm -r d; mkdir d; mkfifo d/a d/b", &["d/a |", "d/b |"]),
        // The file below shows again, with both its names.
        (&["a = x", "b => a"], "rm a b; printf x > a; printf x > b", &[]),
        // Other kinds
        (&["f = x"], "rm f; mkdir f; printf y > f/g", &["f/", "f/g = y"]),
        (&["d/f = x"], "rm -r d; printf y > d", &["d = y"]),
        (&["d/f = x"], "rm -r d; ln -s e d", &["d -> e"]),
        (&["f = x"], "rm f; mkfifo f", &["f |"]),
        (&["n c1,3"], "rm n; mknod n c 1 5", &["n c1,5"]),
        // Removals
        (&["d/f = x"], "rm d/f", &["- d/f"]),
        (&["d/f = x"], "rm -r d", &["- d"]),
        (&["f = x", "g => f"], "rm f g", &["- f", "- g"]),
        (&["a = 1", "b = 2", "c = 3"], "rm a b c", &["- a", "- b", "- c"]),
        (&["d/f = x"], "printf y > d/n; rm d/n", &[]),
        // Directories made anew
        (&["d/f = x", "d/s/g = y"], "rm -r d; mkdir d", &["- d/f", "- d/s"]),
        (
            &["d/f = x", "d/s/g = y"],
            "rm -r d; mkdir -m 700 d; mkdir d/s; printf n > d/s/n",
            &["d/ ; 0700", "- d/f", "- d/s/g", "d/s/n = n"],
        ),
        (&["d/"], "rmdir d; mkdir d", &[]),
        (&["d/"], "rmdir d; mkdir d; printf x > d/f", &["d/f = x"]),
        (&["d/s/t/f = x"], "rm -r d; mkdir -p d/s/t; printf y > d/s/t/g", &["- d/s/t/f", "d/s/t/g = y"]),
        (&["d/f = x"], "rm -r d; printf y > d; rm d; mkdir d", &["- d/f"]),
        // Content that COPY brought
        (&[], "printf brought > f; printf other > g", &["f = brought *", "g = other"]),
        (&["f = brought"], "cp -a f g", &["g = brought *"]),
        (&["f = brought"], "chmod 600 f", &["f = brought * ; 0600"]),
        (&[], "printf brought > f; touch -d @1000 f", &["f = brought ; @1000"]),
        (&[], "printf brought > f; ln f g", &["f = brought *", "g => f"]),
    ];
    assert!(rows.len() >= 40);
    for (lower, script, expected) in rows {
        check(lower, script, expected);
    }
}

#[test]
fn overlays_of_user_namespaces_say_the_same() {
    run_in_namespace_with_one_id("diff::tests::what_a_step_changed");
    run_in_namespace_with_one_id("diff::tests::what_is_no_change_leaves_no_trace_on_disk");
}

#[test]
fn what_is_no_change_leaves_no_trace_on_disk() {
    let drawn = &[
        "a = x ; @1000",
        "b => a",
        "d/ @2000",
        "d/f = y ; @3000",
        "e/ @2000",
        "e/f = z ; @3000",
        "s = w ; @1000",
    ];
    let rows: &[(&str, &[&str])] = &[
        ("touch a d d/f e/f", drawn),
        ("rm -r d; mkdir d; printf y > d/f", drawn),
        (
            "chmod 600 d/f; touch e/f",
            &[
                "a = x ; @1000",
                "b => a",
                "d/ ; @2000",
                "d/f = y ; 0600 @3000",
                "e/ ; @2000",
                "e/f = z ; @3000",
                "s = w ; @1000",
            ],
        ),
        (
            "chmod 700 d; touch d/f; touch -d @5000 d",
            &[
                "a = x ; @1000",
                "b => a",
                "d/ ; 0700 @5000",
                "d/f = y ; @3000",
                "e/ ; @2000",
                "e/f = z ; @3000",
                "s = w ; @1000",
            ],
        ),
    ];
    for (script, expected) in rows {
        let Some(mut overlay) = Overlaid::anywhere(drawn) else { return };
        overlay.run(script);
        scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect(script);
        overlay.stack();
        let expected: Vec<_> = expected.iter().map(|line| line.replace("/ @", "/ ; @")).collect();
        assert_eq!(crate::testing::show(&overlay.root), expected, "{script}");
        let copied = Copied::new(drawn);
        copied.run(script);
        scan_of_copy(&copied, rules(&BTreeSet::new())).expect(script);
        assert_eq!(crate::testing::show(&copied.root), expected, "a copy: {script}");
    }
}

#[test]
fn a_copy_brings_all_its_files() {
    let Some(mut overlay) = Overlaid::new(&[]) else { return };
    overlay.run("printf x > f; ln -s x l; mkdir d; printf x > old; touch -d @1000 old");
    let all = TimeRules { timestamps: Timestamps::Auto, brought: Brought::All };
    let changes = scan_of(&mut overlay, all, &Owners::new()).expect("a layer");
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), ["d/", "f = x *", "l -> x", "old = x ; @1000"]);
    assert_eq!(changes.brought, BTreeSet::from([ContentDigest::of(b"x")]));
}

#[test]
fn all_times_can_be_kept() {
    let Some(mut overlay) = Overlaid::new(&["f = x ; @1000"]) else { return };
    overlay.run("touch -d @1900000000 f");
    let preserve = TimeRules { timestamps: Timestamps::Preserve, brought: Brought::All };
    let changes = scan_of(&mut overlay, preserve, &Owners::new()).expect("a layer");
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), ["f = x ; @1900000000"]);
    assert!(changes.brought.is_empty());
}

#[test]
fn owners_that_the_disk_could_not_hold_reach_the_layer() {
    let Some(mut overlay) = Overlaid::new(&["d/f = x"]) else { return };
    overlay.run("printf y > d/g; ln d/g d/h; touch d");
    let owners = Owners::from([(b"d/g".to_vec(), (7, 8)), (b"d/h".to_vec(), (7, 8))]);
    let changes = scan_of(&mut overlay, rules(&BTreeSet::new()), &owners).expect("a layer");
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), ["d/g = y ; 7:8", "d/h => d/g"]);

    let Some(mut overlay) = Overlaid::new(&["d/f = x"]) else { return };
    overlay.run("printf y > d/g; ln d/g d/h; touch d");
    overlay.unmount();
    let below = Owners::from([(b"d".to_vec(), (7, 8))]);
    let lower = Lower { root: overlay.lower.as_fd(), owners: &below };
    let brought = BTreeSet::new();
    let upper = Upper { path: &overlay.upper(), kind: UpperKind::Overlay(overlay.marks()), owners: &owners };
    let changes = scan(upper, lower, rules(&brought), &Cancel::default()).expect("a layer");
    assert_eq!(
        shown_tree(&changes.tree, &overlay.upper()),
        ["d/g = y ; 7:8", "d/h => d/g"],
        "d is as it was"
    );
}

#[test]
fn attributes_of_images_are_kept() {
    let Some(mut overlay) = Overlaid::new(&["d/f = x ; user.a=b", "g = y"]) else { return };
    let file = crate::view::open_in_root(&overlay.root, b"d/f", OFlags::RDONLY).expect("opened");
    crate::rootfs::set_xattr(&file, b"user.a", b"c\n").expect("set");
    crate::rootfs::set_xattr(&file, b"trusted.note", b"z").expect("set");
    let other = crate::view::open_in_root(&overlay.root, b"g", OFlags::RDONLY).expect("opened");
    crate::rootfs::set_xattr(&other, b"trusted.note", b"z").expect("set");
    let changes = scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect("a layer");
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), ["d/f = x ; user.a=c\n"]);
}

/// `user::rwx, user:1:rwx, group::r-x, mask::rwx, other::r-x`, as acl(5) is kept.
const ACCESS_LIST: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 1, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16,
    0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255,
];

#[test]
fn whatever_can_have_an_access_list_keeps_it() {
    let Some(mut overlay) = Overlaid::new(&["n c1,3", "old |", "gains |"]) else { return };
    overlay.run("mkfifo p; mknod b b 7 9; ln p q; ln -s x l; touch old");
    let set = |name: &[u8], attribute: &[u8]| {
        crate::rootfs::set_xattr_at(&overlay.root, name, attribute, ACCESS_LIST)
            .map_err(|errno| errno.to_string())
    };
    for name in ["n", "p", "b", "gains"] {
        set(name.as_bytes(), b"system.posix_acl_access").expect("set");
        set(name.as_bytes(), b"user.a").expect_err("the kernel has none on it");
    }
    set(b"l", b"system.posix_acl_access").expect_err("a link has none");
    let changes = scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect("a layer");
    let told: Vec<_> = changes
        .tree
        .entries()
        .iter()
        .map(|entry| (shown(&entry.path), entry.metadata.xattrs.len()))
        .collect();
    let wanted = [("b", 1), ("gains", 1), ("l", 0), ("n", 1), ("p", 1), ("q", 1)];
    assert_eq!(told, wanted.map(|(path, count)| (path.to_owned(), count)));
    let of_a_pipe = &changes.tree.get(b"p").expect("there").metadata;
    assert_eq!(of_a_pipe.xattrs[&b"system.posix_acl_access"[..]], ACCESS_LIST);
    assert_eq!(of_a_pipe.mode, 0o775, "the mask is the group's mode");
}

#[test]
fn a_mark_of_the_other_family_hides_nothing() {
    let Some(mut overlay) = Overlaid::new(&["d/f = x"]) else { return };
    let directory = crate::view::open_in_root(&overlay.root, b"d", OFlags::RDONLY).expect("opened");
    crate::rootfs::set_xattr(&directory, b"user.overlay.opaque", b"y").expect("set");
    overlay.run("printf y > d/g");
    let changes = scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect("a layer");
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), ["d/g = y"]);
    overlay.stack();
    assert!(overlay.has(b"d/f"));
}

#[test]
fn no_time_that_is_kept_has_a_fraction_on_disk() {
    let Some(mut overlay) = Overlaid::anywhere(&["e/f = x ; @1000", "g = y"]) else { return };
    overlay.run(
        "mkdir d; touch -d @1000.5 d/f; ln d/f d/h; ln -s x l; touch -hd @-7.25 l; touch -d @8.25 d
         chmod 600 e/f; touch -d @1000.75 e/f; touch -d @1900000000.5 n; touch -d @9.5 g; rm g; printf y > g",
    );
    let changes = scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect("a layer");
    let wanted = ["d/ ; @8", "d/f =  ; @1000", "d/h => d/f", "e/f = x ; 0600 @1000", "l -> x ; @-8", "n = "];
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), wanted);
    overlay.stack();
    let time = |path: &str| {
        let stat = lstat(&overlay.root, path.as_bytes()).expect("looked").expect("there");
        (stat.st_mtime, stat.st_mtime_nsec)
    };
    let whole = [("d", 8), ("d/f", 1000), ("d/h", 1000), ("e/f", 1000), ("l", -8)];
    assert_eq!(whole.map(|(path, _)| time(path)), whole.map(|(_, seconds)| (seconds, 0)));
    assert_eq!(time("n"), (1_900_000_000, 500_000_000), "the layer has another one");
}

#[test]
fn sockets_are_left_out() {
    let Some(mut overlay) = Overlaid::new(&["f = x"]) else { return };
    overlay.run("rm f");
    let root = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&overlay.root));
    for name in ["f", "s"] {
        std::os::unix::net::UnixListener::bind(format!("{root}/{name}")).expect("a socket");
    }
    let changes = scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect("a layer");
    assert_eq!(shown_tree(&changes.tree, &overlay.upper()), ["- f"]);
    overlay.stack();
    assert!(crate::testing::show(&overlay.root).is_empty());
}

#[test]
fn a_name_that_would_be_a_whiteout_is_refused() {
    let Some(mut overlay) = Overlaid::new(&[]) else { return };
    overlay.run("mkdir d; touch d/.wh.x");
    let error = scan_of(&mut overlay, rules(&BTreeSet::new()), &Owners::new()).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "/d/.wh.x cannot be part of a layer: names that begin with .wh. stand for removed files"
    );
}

use std::{path::Path, process::Command};

use super::*;
use crate::testing::{draw, is_host_root};

fn all() -> Selector {
    selector(&["."])
}

fn selector(include: &[&str]) -> Selector {
    let include = include.iter().map(|source| (*source).to_owned()).collect();
    Selector { include, follow_links: true, ..Selector::default() }
}

fn context(path: &Path, ignore: Option<&str>) -> ContextDirectory {
    let ignore = ignore.map(|text| IgnoreFile { name: ".dockerignore".to_owned(), text: text.to_owned() });
    ContextDirectory::new(path.to_owned(), ignore, ContextModes::Normalise).expect("good patterns")
}

fn digest(path: &Path, selector: &Selector) -> oci::TreeDigest {
    context(path, None)
        .files(selector, &Cancel::default())
        .expect("listed")
        .listing
        .digest(&Cancel::default())
        .expect("known already")
}

fn sh(path: &Path, script: &str) {
    let status = Command::new("sh").args(["-euc", script]).current_dir(path).status().expect("a shell");
    assert!(status.success(), "{script}");
}

#[test]
fn what_identity_is_made_of() {
    let drawn = ["d/f = x", "d/g = y ; 0755", "d/l -> f", "o = z", "d/e/"];
    let rows: &[(&str, bool)] = &[
        // (script, whether the identity of `d` changes)
        ("true", false),
        ("touch -d @1000000000 d/f d/g d d/e", false),
        ("touch -d 2035-01-01 d/f d", false),
        ("touch -h -d @1000000000 d/l", false),
        ("chmod 664 d/f; chmod 775 d/g d/e", false),
        ("cp d/f t; rm d/f; mv t d/f", false),
        ("rm d/f d/g; printf y > d/g; chmod 755 d/g; printf x > d/f", false),
        ("ln d/f hard", false),
        ("printf w > o; rm o; mkdir new", false),
        ("chmod 700 d", false),
        ("[ $(id -u) != 0 ] || chown -Rh 5:6 .", false),
        ("printf y > d/f", true),
        ("printf xx > d/f", true),
        (": > d/f", true),
        ("chmod 600 d/f", true),
        ("chmod 755 d/f", true),
        ("chmod 700 d/e", true),
        ("mv d/f d/ff", true),
        ("ln -sfn g d/l", true),
        ("rm d/l; cp d/f d/l", true),
        ("rm d/e/../f; mkdir d/f", true),
        ("touch d/new", true),
        ("mkdir d/new", true),
        ("rm d/g", true),
        ("rmdir d/e", true),
    ];
    for (script, changes) in rows {
        let temp = tempfile::tempdir().expect("a temporary directory");
        draw(temp.path(), &drawn);
        let before = digest(temp.path(), &selector(&["d"]));
        sh(temp.path(), script);
        assert_eq!(before != digest(temp.path(), &selector(&["d"])), *changes, "{script}");
    }
}

#[test]
fn a_context_is_the_same_wherever_it_lies() {
    let digests = [["a", "b", "c"], ["c", "b", "a"]].map(|order| {
        let temp = tempfile::tempdir().expect("a temporary directory");
        order.iter().for_each(|name| draw(temp.path(), &[&format!("{name} = {name}")]));
        digest(temp.path(), &all())
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn capabilities_count_and_other_attributes_do_not() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    draw(temp.path(), &["f = x"]);
    let before = digest(temp.path(), &all());
    draw(temp.path(), &["f = x ; user.origin=somewhere"]);
    assert_eq!(digest(temp.path(), &all()), before);
    if !is_host_root() {
        eprintln!("SKIPPED: setting a capability needs root");
        return;
    }
    let file = std::fs::File::open(temp.path().join("f")).expect("opened");
    // Version 2, permitted and effective: cap_net_raw.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    crate::rootfs::set_xattr(&file, CAPABILITY, &capability).expect("set");
    assert_ne!(digest(temp.path(), &all()), before);
}

/// The paths that a selector picks of a drawn context.
fn picked(drawn: &[&str], ignore: &str, selector: &Selector) -> Vec<String> {
    let temp = tempfile::tempdir().expect("a temporary directory");
    draw(temp.path(), drawn);
    match context(temp.path(), Some(ignore)).files(selector, &Cancel::default()) {
        Ok(files) => files.listing.nodes.keys().map(|path| shown(path)).collect(),
        Err(ContextError::NotFound { path, hint }) => {
            vec![format!("! no {path}")].into_iter().chain(hint.map(|hint| format!("! {hint}"))).collect()
        }
        Err(error) => vec![format!("! {error}")],
    }
}

#[test]
fn what_a_selector_picks() {
    let drawn: &[&str] = &[
        ".dockerignore = x",
        "Dockerfile = x",
        "README.md = x",
        "build/keep/x = 1",
        "build/keep/y.o = 2",
        "build/out = 3",
        "docs/a.md = 4",
        "src/m.c = 5",
        "src/deep/x.tmp = 6",
        "l -> src/m.c",
        "gone -> build/out",
        "empty/",
    ];
    let rows: &[(&str, &[&str], &[&str])] = &[
        // (ignore file, sources, what is listed)
        ("", &["src"], &["src", "src/deep", "src/deep/x.tmp", "src/m.c"]),
        ("**/*.tmp", &["src"], &["src", "src/deep", "src/m.c"]),
        ("src/deep", &["src"], &["src", "src/m.c"]),
        ("build\n!build/keep\n**/*.o", &["build"], &["build", "build/keep", "build/keep/x"]),
        ("build\n!build/keep", &["build/keep/*"], &["build/keep/x", "build/keep/y.o"]),
        ("build\n!build/none", &["build*", "src/m.c"], &["src/m.c"]),
        ("*\n!src/m.c", &["."], &["src", "src/m.c"]),
        ("**\n!src/none", &["."], &[]),
        ("*.md", &["*.md", "docs"], &["docs", "docs/a.md"]),
        ("Dockerfile\n.dockerignore", &["*ocker*"], &[]),
        ("# comment\n\n  src  ", &["s*"], &[]),
        ("", &["l"], &["l", "src/m.c"]),
        ("", &["empty"], &["empty"]),
        ("src", &["l"], &["! no l", "! it is excluded by .dockerignore line 1: src"]),
        (
            "# why\n\nbuild\n!build/keep",
            &["build/out"],
            &["! no build/out", "! it is excluded by .dockerignore line 3: build"],
        ),
        (
            "build",
            &["build/keep/x"],
            &["! no build/keep/x", "! it is excluded by .dockerignore line 1: build"],
        ),
        ("", &["readme.md"], &["! no readme.md", "! did you mean \"README.md\"?"]),
        ("", &["docs/a.dm"], &["! no docs/a.dm", "! did you mean \"docs/a.md\"?"]),
        ("", &["src/n.c"], &["! no src/n.c", "! did you mean \"src/m.c\"?"]),
        ("", &["nothing/like/it"], &["! no nothing/like/it"]),
        ("", &["zzz"], &["! no zzz"]),
        ("build/out", &["gone"], &["! no gone", "! it is excluded by .dockerignore line 1: build/out"]),
    ];
    for (ignore, sources, expected) in rows {
        assert_eq!(picked(drawn, ignore, &selector(sources)), *expected, "{sources:?} without {ignore:?}");
    }
    assert_eq!(
        picked(&["l -> /etc/passwd"], "", &selector(&["l"])),
        ["! no l", "! it is a link that leads to nothing in the context"]
    );
}

#[test]
fn a_bad_ignore_file_is_named() {
    let ignore = IgnoreFile { name: "Dockerfile.dockerignore".to_owned(), text: "[".to_owned() };
    let error = ContextDirectory::new(PathBuf::from("/"), Some(ignore), ContextModes::Normalise);
    assert_eq!(error.expect_err("refused").to_string(), "Dockerfile.dockerignore");
}

#[test]
fn the_first_normalised_path_is_told() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    draw(temp.path(), &["a = x", "d/b = x ; 0664", "d/ 0775", "z = x ; 0664"]);
    let files = context(temp.path(), None).files(&all(), &Cancel::default()).expect("listed");
    assert_eq!(files.normalised.as_deref(), Some("d"));
    assert_eq!(files.listing.nodes[&b"d/b"[..]].mode, 0o644);
}

#[test]
fn modes_are_kept_or_those_of_git_where_that_is_asked_for() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    draw(temp.path(), &["a = x ; 0600", "b = x ; 0664", "c = x ; 0700", "d = x ; 0654", "e/ 0711"]);
    for (modes, expected) in [
        (ContextModes::Preserve, [0o600, 0o664, 0o700, 0o654, 0o711]),
        (ContextModes::Git, [0o644, 0o644, 0o755, 0o644, 0o755]),
    ] {
        let context = ContextDirectory::new(temp.path().into(), None, modes).expect("no patterns");
        let files = context.files(&all(), &Cancel::default()).expect("listed");
        assert_eq!(
            files.listing.nodes.values().map(|node| node.mode).collect::<Vec<_>>(),
            expected,
            "{modes:?}"
        );
        assert_eq!(files.normalised, None);
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error =
        context(Path::new("/nowhere/at/all"), None).files(&all(), &Cancel::default()).expect_err("not there");
    assert_eq!(error.to_string(), "opening the build context /nowhere/at/all");
}

#[test]
fn what_cannot_be_read_is_named_with_the_way_out() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    draw(temp.path(), &["a = x", "d/secret = x ; 0"]);
    let context = context(temp.path(), Some("none"));
    // Root may read everything, so for root the answer of the system is made up.
    let failure: solver::StepFailure = match is_host_root() {
        true => {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            let path = "d/secret".to_owned();
            context.told(PathError { action: "reading", path, source }.into()).into()
        }
        false => context.files(&all(), &Cancel::default()).expect_err("not ours").into(),
    };
    assert_eq!(failure.message, "cannot read \"d/secret\" in the build context");
    assert!(failure.hint.is_some_and(|hint| hint.ends_with("with a line in .dockerignore")));
}

#[test]
fn a_walk_can_be_cancelled() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    draw(temp.path(), &["d/f = x"]);
    let cancel = Cancel::default();
    cancel.request();
    for selector in [all(), selector(&["d/f"]), selector(&["*"])] {
        let stopped = context(temp.path(), None).files(&selector, &cancel);
        assert!(matches!(stopped, Err(ContextError::Cancelled)), "{stopped:?}");
    }
}

#[test]
fn names_are_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let temp = tempfile::tempdir().expect("a temporary directory");
    let names: [&[u8]; 4] = [b"caf\xe9", b"new\nline", &[b'n'; 255], b"a b"];
    for name in names {
        std::fs::write(temp.path().join(std::ffi::OsStr::from_bytes(name)), "x").expect("written");
    }
    let files = context(temp.path(), Some("none")).files(&all(), &Cancel::default()).expect("listed");
    assert!(names.iter().all(|name| files.listing.nodes.contains_key(*name)));
}

#[test]
fn a_directory_that_is_swapped_for_a_link_never_leads_outside() {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    let (outside, temp) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    draw(outside.path(), &["s/f = canary"]);
    draw(temp.path(), &["c/d/s/f = inside", &format!("evil -> {}", outside.path().display())]);
    let (swapped, done) = ((temp.path().join("c/d"), temp.path().join("evil")), AtomicBool::new(false));
    let swap = || renameat_with(CWD, &swapped.0, CWD, &swapped.1, RenameFlags::EXCHANGE).expect("swapped");
    let expected = Some(oci::ContentDigest::of(b"inside"));
    let look = |source: &str| {
        let files = context(&temp.path().join("c"), None).files(&selector(&[source]), &Cancel::default())?;
        for node in files.listing.nodes.values() {
            if let NodeKind::File { content, .. } = &node.kind {
                assert_eq!(*content, expected, "{source}");
            }
        }
        Ok::<usize, ContextError>(files.listing.nodes.len())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap();
            }
        });
        for source in ["d/s/f", "d", ".", "*/s"].into_iter().cycle().take(400) {
            // Most looks fail, for one reason or another.
            let _ = look(source);
        }
        done.store(true, Ordering::Relaxed);
    });
    if swapped.0.is_symlink() {
        swap();
    }
    assert_eq!(look("d").expect("nobody swaps any more"), 3);
}

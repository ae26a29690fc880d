//! Work trees in which a path is of another kind than in the commit: a directory, a file, a submodule.

use std::{fs, sync::Arc};

use gix::objs::tree::EntryKind;
use solver::Cancel;

use super::{changes, ignore, selector, told};
use crate::{
    context::CommitContext,
    git::{
        GitError, Revision, WorkTree,
        known::Known,
        overlay::Change,
        status::Now,
        testing::{Scratch, git},
        tree::Entry,
    },
};

/// HEAD under what the work tree has otherwise.
fn laid(scratch: &Scratch) -> Result<Revision, GitError> {
    let revision = Revision::open(&scratch.top(), "HEAD").expect("there");
    revision.against(WorkTree::IsLaidOver, &[], &Cancel::default())
}

/// All that a revision holds, and its identity.
fn held(revision: &Revision) -> (Vec<String>, oci::TreeDigest) {
    let context = CommitContext::new(Arc::clone(revision.context()), ignore(".gitmodules")).expect("sound");
    told(context.files(&selector(""), &Known::default(), &Cancel::default())).expect("listed")
}

/// A commit of files, directories, and a submodule `ext`.
fn scratch() -> Scratch {
    let module = Scratch::new();
    module.write(&[("in/module", "m"), ("x", "m")]);
    module.commit();
    let scratch = Scratch::new();
    scratch.write(&[("conf/x", "1"), ("conf/y", "1"), ("deep/conf/x", "1"), ("deep/kept", "1")]);
    scratch.write(&[("file", "1"), ("deep/file", "1")]);
    scratch.git(&["submodule", "--quiet", "add", &module.top().display().to_string(), "ext"]);
    scratch.commit();
    scratch
}

/// Puts a file where there is a directory, or the other way round.
fn turn(scratch: &Scratch, name: &str) {
    let path = scratch.top().join(name);
    match path.is_dir() {
        true => {
            fs::remove_dir_all(&path).expect("removed");
            scratch.write(&[(name, "now a file")]);
        }
        false => {
            fs::remove_file(&path).expect("removed");
            scratch.write(&[(&format!("{name}/x"), "now in a directory")]);
        }
    }
}

#[test]
fn a_file_that_replaces_a_directory_is_laid_over_it_and_so_the_other_way_round() {
    for (name, expected) in [
        ("conf", ["conf", "conf/x gone", "conf/y gone"].as_slice()),
        ("deep/conf", &["deep/conf", "deep/conf/x gone"]),
        ("deep", &["deep", "deep/conf/x gone", "deep/file gone", "deep/kept gone"]),
        ("file", &["file gone", "file/x"]),
        ("deep/file", &["deep/file gone", "deep/file/x"]),
    ] {
        let scratch = scratch();
        turn(&scratch, name);
        // What is not tracked is in no build, so there is only what is gone.
        let gone: Vec<&&str> = expected.iter().filter(|line| line.ends_with(" gone")).collect();
        assert_eq!(changes(&scratch, &[""]).iter().collect::<Vec<_>>(), gone, "{name}");
        let (unstaged, _) = held(&laid(&scratch).expect("laid"));
        assert!(!unstaged.iter().any(|path| path == name), "{name}: {unstaged:?}");
        scratch.git(&["add", "-A", name]);
        assert_eq!(changes(&scratch, &[""]), expected);
        let staged = held(&laid(&scratch).expect("laid"));
        assert!(staged.0.iter().any(|path| path == name), "{name}: {:?}", staged.0);
        scratch.commit();
        assert_eq!(staged, held(&Revision::open(&scratch.top(), "HEAD").expect("there")), "{name}");
    }
}

#[test]
fn what_replaces_a_submodule_in_the_index_takes_its_whole_place() {
    for (files, is_here) in
        [(&[("ext", "f")][..], true), (&[("ext/x", "f")], true), (&[("ext/x", "f")], false)]
    {
        let scratch = scratch();
        scratch.git(&["rm", "-q", "--cached", "ext"]);
        fs::remove_dir_all(scratch.top().join("ext")).expect("removed");
        if !is_here {
            fs::remove_dir_all(scratch.top().join(".git/modules")).expect("removed");
        }
        scratch.write(files);
        scratch.git(&["add", "ext"]);
        let staged = held(&laid(&scratch).expect("laid"));
        assert!(!staged.0.iter().any(|path| path == "ext/in"), "{:?}", staged.0);
        scratch.commit();
        assert_eq!(staged, held(&Revision::open(&scratch.top(), "HEAD").expect("there")));
    }
}

#[test]
fn a_submodule_whose_directory_is_gone_or_another_thing_has_changed() {
    for (place, now, told) in [
        ("", None, "ext gone"),
        ("", Some("ext"), "ext"),
        ("", Some("ext*"), "ext BlobExecutable"),
        ("", Some("ext@"), "ext Link"),
        ("ext/in", Some("ext"), "ext"),
    ] {
        let scratch = scratch();
        fs::remove_dir_all(scratch.top().join("ext")).expect("removed");
        now.inspect(|now| scratch.write(&[(now, "file")]));
        assert_eq!(changes(&scratch, &[place]), [told]);
        let laid = laid(&scratch).expect("laid");
        assert!(laid.is_dirty());
        let (paths, _) = held(&laid);
        assert_eq!(paths.iter().any(|path| path == "ext"), now.is_some(), "{paths:?}");
        assert!(!paths.iter().any(|path| path.starts_with("ext/")), "{paths:?}");
    }
    // A clone makes the directory, and looks into it no further.
    let scratch = scratch();
    for is_there in [true, false] {
        fs::remove_dir_all(scratch.top().join("ext")).expect("removed");
        match is_there {
            true => fs::create_dir(scratch.top().join("ext")).expect("made"),
            false => _ = scratch.git(&["update-index", "--skip-worktree", "ext"]),
        }
        assert_eq!(changes(&scratch, &[""]), [""; 0], "{is_there}");
    }
}

#[test]
fn a_directory_of_a_submodule_is_compared_where_it_is_what_is_built() {
    let scratch = scratch();
    scratch.write(&[("ext/in/module", "edited"), ("ext/x", "edited")]);
    assert_eq!(changes(&scratch, &["ext/in"]), ["ext/in/module"]);
    assert_eq!(changes(&scratch, &["extra"]), [""; 0]);
}

#[test]
fn a_submodule_that_is_new_or_on_another_commit_cannot_be_laid_over_one() {
    let refused = |scratch: &Scratch| {
        let error = laid(scratch).expect_err("no files stand for it");
        assert_eq!(error.blame(), solver::FailureKind::Usage);
        (error.to_string(), error.hint().expect("there is a way out"))
    };
    let scratch = scratch();
    let ext = scratch.top().join("ext");
    git(&ext, &["commit", "-q", "--allow-empty", "-m", "x"]);
    let other = refused(&scratch);
    assert!(
        other.0.starts_with("the submodule \"ext\" is on another commit than the one that is committed,"),
        "{other:?}"
    );
    scratch.git(&["add", "ext"]);
    assert_eq!(refused(&scratch), other);
    // The way out that the hint tells.
    scratch.git(&["restore", "--staged", "ext"]);
    scratch.git(&["submodule", "--quiet", "update", "ext"]);
    assert!(!laid(&scratch).expect("nothing differs").is_dirty());
    for (is_tree, place) in [(false, "new"), (true, "conf")] {
        if is_tree {
            scratch.git(&["rm", "-q", "-r", place]);
        }
        git(&scratch.top(), &["clone", "-q", "ext", place]);
        scratch.git(&["add", place]);
        let (told, hint) = refused(&scratch);
        assert!(
            told.starts_with(&format!("the submodule {place:?} is in the index and not in the commit,")),
            "{told}"
        );
        assert!(hint.starts_with("commit it,"), "{hint}");
        scratch.git(&["restore", "--staged", place]);
        fs::remove_dir_all(scratch.top().join(place)).expect("removed");
        laid(&scratch).expect("nothing is in the index that has no files");
    }
}

#[test]
fn what_becomes_of_a_name_follows_from_what_changes_of_it_and_below_it() {
    let entry = |kind| Entry { name: b"n".to_vec(), kind, id: None };
    let now = |kind| Now { kind, staged: None };
    let (tree, blob, module) = (EntryKind::Tree, EntryKind::Blob, EntryKind::Commit);
    let nothing = Change::default();
    let turned = Change { itself: Some(Some(now(blob))), removes: true, ..nothing };
    let gone = Change { itself: Some(None), ..nothing };
    let filled = Change { adds: true, ..gone };
    for (was, change, expected) in [
        (Some(tree), turned, Some(blob)),
        (Some(tree), Change { itself: Some(None), removes: true, ..nothing }, None),
        (Some(tree), Change { removes: true, ..nothing }, None),
        (Some(tree), Change { adds: true, removes: true, ..nothing }, Some(tree)),
        (Some(blob), filled, Some(tree)),
        (Some(module), filled, Some(tree)),
        (Some(module), gone, None),
        (Some(module), Change { adds: true, ..nothing }, Some(module)),
        (None, Change { adds: true, ..nothing }, Some(tree)),
    ] {
        let is = change.apply(b"n", was.map(entry), || Ok(true)).expect("applied");
        assert_eq!(is.map(|entry| entry.kind), expected, "{was:?} {change:?}");
    }
}

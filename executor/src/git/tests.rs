use std::{fs, io::Read, path::Path, sync::Arc};

use gix::objs::tree::EntryKind;
use oci::TreeDigest;
use solver::{Cancel, op::Selector};

use super::{
    CommitTree, GitError, Repository, Revision, WorkTree,
    known::Known,
    status::Now,
    testing::{Scratch, git},
};
use crate::{
    context::{CommitContext, ContextDirectory, ContextError, ContextModes, IgnoreFile},
    listing::{Listing, NodeKind},
    rootfs::shown,
};

mod replaced;

fn selector(include: &str) -> Selector {
    Selector { include: vec![include.to_owned()], ..Selector::default() }
}

/// What the work tree has otherwise than HEAD: paths with what is there now.
fn changes(scratch: &Scratch, wanted: &[&str]) -> Vec<String> {
    let repository = scratch.open();
    let commit = repository.commit("HEAD").expect("there");
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|path| path.as_bytes().to_vec()).collect();
    let changed =
        super::status::changed(&repository, commit, &wanted, WorkTree::MustBeClean, &Cancel::default())
            .expect("compared");
    let told = |(path, now): (Vec<u8>, Option<Now>)| match now {
        None => format!("{} gone", shown(&path)),
        Some(Now { staged: Some(_), .. }) => format!("{} staged", shown(&path)),
        Some(Now { kind: EntryKind::Blob, .. }) => shown(&path),
        Some(Now { kind, .. }) => format!("{} {kind:?}", shown(&path)),
    };
    changed.into_iter().map(told).collect()
}

fn ignore(text: &str) -> Option<IgnoreFile> {
    Some(IgnoreFile { name: ".dockerignore".to_owned(), text: text.to_owned() })
}

fn files(tree: CommitTree, lines: &str, include: &str, known: &Known) -> Result<Listing, ContextError> {
    let context = CommitContext::new(Arc::new(tree), ignore(lines)).expect("sound");
    context.files(&selector(include), known, &Cancel::default())
}

fn listed(tree: CommitTree, known: &Known) -> Listing {
    files(tree, "", "", known).expect("listed")
}

fn checked_out(place: &Path, lines: &str, include: &str) -> Result<Listing, ContextError> {
    let context = ContextDirectory::new(place.to_owned(), ignore(lines), ContextModes::Git).expect("sound");
    Ok(context.files(&selector(include), &Cancel::default())?.listing)
}

/// What is listed, and its identity; or why there is nothing.
fn told(listing: Result<Listing, ContextError>) -> Result<(Vec<String>, TreeDigest), String> {
    let listing = listing.map_err(|error| error.to_string())?;
    let digest = listing.digest(&Cancel::default()).expect("hashed");
    Ok((listing.nodes.keys().map(|path| shown(path)).collect(), digest))
}

/// Files of all kinds, a submodule among them.
fn motley() -> Scratch {
    let scratch = Scratch::new();
    scratch.write(&[("in/module", "m"), ("run*", "m")]);
    scratch.commit();
    git(&scratch.beside(""), &["clone", "-q", "--bare", "work", "module"]);
    scratch.git(&["rm", "-q", "-r", "."]);
    scratch.write(&[
        ("a/one", "1"),
        ("a/two*", "2"),
        ("a-b", "between"),
        ("a/deep/er/three", "3"),
        ("b/link@", "../a/one"),
        ("to@", "a"),
        ("dangling@", "nowhere"),
        ("skip/x.o", "o"),
        ("skip/keep", "k"),
        (".dockerignore", ""),
    ]);
    let from = scratch.beside("module").display().to_string();
    scratch.git(&["submodule", "--quiet", "add", &from, "sub/m"]);
    scratch.commit();
    scratch
}

#[test]
fn a_commit_has_the_identity_of_its_checkout() {
    let scratch = motley();
    let clean = scratch.beside("clean");
    let arguments = ["clone", "-q", "--recurse-submodules", "work", "clean"];
    git(&scratch.beside(""), &arguments);
    for lines in
        ["**/.git", "**/.git\n**/*.o", "**/.git\nskip\n!skip/keep\nsub/m/in", "**/.git\n*\n!a/deep/**"]
    {
        for include in ["", "a", "a/*", "to", "to/deep", "b/link", "dangling", "s*", "none"] {
            let here = told(files(scratch.tree("HEAD"), lines, include, &Known::default()));
            assert_eq!(here, told(checked_out(&clean, lines, include)), "{lines:?} {include:?}");
            assert!(here.is_ok() || !include.is_empty(), "{here:?}");
        }
    }
}

#[test]
fn what_is_known_is_not_read() {
    let scratch = Scratch::new();
    scratch.write(&[("a", "1"), ("b/c", "2"), ("l@", "a")]);
    scratch.commit();
    let known = Known::default();
    let before = listed(scratch.tree("HEAD"), &known);
    for (name, is_blob) in [("a", true), ("b/c", true), ("l", false)] {
        let id = scratch.git(&["rev-parse", &format!("HEAD:{name}")]);
        let object = scratch.top().join(".git/objects").join(&id[..2]).join(&id[2..]);
        if is_blob {
            fs::remove_file(object).expect("removed");
        }
    }
    let after = listed(scratch.tree("HEAD"), &known);
    assert_eq!(before.nodes, after.nodes);
    let error = CommitContext::new(Arc::new(scratch.tree("HEAD")), None).expect("sound");
    let error = error.files(&selector("a"), &Known::default(), &Cancel::default()).expect_err("it is gone");
    assert!(error.to_string().contains("is not in the repository"), "{error}");
}

#[test]
fn repositories_are_found_from_within() {
    let scratch = Scratch::new();
    scratch.write(&[("a/b/file", "1")]);
    scratch.commit();
    let top = scratch.top();
    scratch.git(&["worktree", "add", "-q", "../linked"]);
    git(&scratch.beside(""), &["clone", "-q", "--bare", "work", "bare"]);
    for (place, way, has_files) in [
        (top.clone(), "", true),
        (top.join("a/b"), "a/b", true),
        (top.join("a/gone/by"), "a/gone/by", true),
        (scratch.beside("linked/a"), "a", true),
        (scratch.beside("bare"), "", false),
        (top.join(".git"), "", true),
    ] {
        let (repository, found) = Repository::discover(&place).expect("found");
        assert_eq!(String::from_utf8(found).expect("text"), way, "{place:?}");
        assert_eq!(repository.work_tree().is_some(), has_files, "{place:?}");
        assert_eq!(repository.commit("HEAD").expect("there").time, 1_700_000_000);
    }
    let outside = tempfile::tempdir().expect("made");
    assert!(matches!(Repository::discover(outside.path()), Err(GitError::NoRepository { .. })));
}

#[test]
fn objects_are_verified() {
    let scratch = Scratch::new();
    scratch.write(&[("file", "right"), ("other", "wrong")]);
    scratch.commit();
    let object = |name: &str| {
        let id = scratch.git(&["rev-parse", &format!("HEAD:{name}")]);
        scratch.top().join(".git/objects").join(&id[..2]).join(&id[2..])
    };
    let tree = scratch.tree("HEAD");
    fs::rename(object("other"), object("file")).expect("replaced");
    let error = tree.file(b"file").expect_err("it is another one");
    assert!(matches!(error, GitError::Damaged { .. }), "{error}");
}

#[test]
fn hostile_trees_are_refused() {
    let scratch = Scratch::new();
    scratch.write(&[("file", "1")]);
    scratch.commit();
    let blob = scratch.git(&["rev-parse", "HEAD:file"]);
    let id = gix::ObjectId::from_hex(blob.as_bytes()).expect("an id");
    let entry = |name: &str| [format!("100644 {name}\0").as_bytes(), id.as_slice()].concat();
    for (names, reason) in [
        (vec![".."], "no name"),
        (vec!["."], "no name"),
        (vec!["a/b"], "slash"),
        (vec![".GIT"], "git's own"),
        (vec!["a", "a"], "twice"),
    ] {
        let raw = names.iter().flat_map(|name| entry(name)).collect::<Vec<u8>>();
        fs::write(scratch.beside("raw"), raw).expect("written");
        let tree = scratch.git(&["hash-object", "-t", "tree", "-w", "--literally", "../raw"]);
        let commit = scratch.git(&["commit-tree", "-m", "x", &tree]);
        let repository = scratch.open();
        let commit = repository.commit(&commit).expect("there");
        let error = CommitTree::new(repository, commit).expect_err("refused").to_string();
        assert!(error.contains(reason), "{names:?}: {error}");
    }
}

#[test]
fn a_few_trees_that_stand_for_millions_of_files_are_refused() {
    let scratch = Scratch::new();
    scratch.write(&[("file", "1")]);
    scratch.commit();
    let mut tree = scratch.git(&["rev-parse", "HEAD^{tree}"]);
    for _ in 0..3 {
        let lines: String = (0..10).map(|name| format!("040000 tree {tree}\td{name}\n")).collect();
        fs::write(scratch.beside("lines"), lines).expect("written");
        tree = git(&scratch.top(), &["-c", "alias.mk=!git mktree < ../lines", "mk"]);
    }
    let commit = scratch.git(&["commit-tree", "-m", "x", &tree]);
    let repository = scratch.open();
    let commit = repository.commit(&commit).expect("there");
    for (most, is_good) in [(1110 + 1000, true), (1110 + 999, false)] {
        let tree = CommitTree::limited(Arc::clone(&repository), commit, most).expect("read");
        let context = CommitContext::new(Arc::new(tree), None).expect("sound");
        let files = context.files(&selector(""), &Known::default(), &Cancel::default());
        assert_eq!(files.map(|files| files.nodes.len()).ok(), is_good.then_some(most));
    }
}

#[test]
fn a_submodule_that_is_not_here_is_named_where_it_is_needed() {
    let scratch = motley();
    git(&scratch.beside(""), &["clone", "-q", "work", "clean"]);
    let (repository, _) = Repository::discover(&scratch.beside("clean")).expect("found");
    let repository = Arc::new(repository);
    let commit = repository.commit("HEAD").expect("there");
    let tree = Arc::new(CommitTree::new(repository, commit).expect("read"));
    let files = |include: &str, lines| {
        let context = CommitContext::new(Arc::clone(&tree), ignore(lines)).expect("sound");
        context.files(&selector(include), &Known::default(), &Cancel::default())
    };
    assert!(files("a", "").is_ok() && files("", "sub").is_ok());
    let error = files("", "").expect_err("it is not here").to_string();
    assert!(error.contains("submodule \"sub/m\"") && error.contains("not initialised"), "{error}");
}

#[test]
fn files_of_lfs_are_taken_where_they_are_and_named_where_they_are_not() {
    let scratch = Scratch::new();
    let large = "large".repeat(1000);
    let name = oci::Sha256Digest::of(large.as_bytes()).hex();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 5000\n");
    let gone = pointer.replace(&name, &"0".repeat(64));
    scratch.write(&[
        ("deep/er/large", &pointer),
        ("deep/.gitattributes", "*.x text\nlarge* filter=lfs -text\n"),
    ]);
    scratch.write(&[("text", &pointer), ("deep/large-2", &gone)]);
    scratch.commit();
    let place = scratch.top().join(".git/lfs/objects").join(&name[..2]).join(&name[2..4]);
    fs::create_dir_all(&place).expect("made");
    fs::write(place.join(&name), &large).expect("written");
    let known = Known::default();
    let listing = files(scratch.tree("HEAD"), "deep/large-2", "", &known).expect("all is here");
    for (path, text) in [("deep/er/large", &large), ("text", &pointer)] {
        let mut bytes = String::new();
        listing.open(path.as_bytes()).expect("opened").read_to_string(&mut bytes).expect("read");
        assert!(bytes == *text, "{path}");
        let content = Some(oci::ContentDigest::of(text.as_bytes()));
        assert_eq!(listing.nodes[path.as_bytes()].kind, NodeKind::File { size: text.len() as u64, content });
    }
    let below = scratch.tree("HEAD").below(b"deep/er").expect("there");
    assert!(below.file(b"large").expect("read").is_some());
    let error = files(scratch.tree("HEAD"), "", "", &known).expect_err("one is not here").to_string();
    assert_eq!(error, "a file of Git LFS is not on this machine: deep/large-2");
    fs::write(place.join(&name), large.replace('l', "L")).expect("written");
    let error =
        files(scratch.tree("HEAD"), "deep/large-2", "", &Known::default()).expect_err("it is another one");
    assert!(error.to_string().contains("cannot use"), "{error}");
}

#[test]
fn what_git_finds_changed_is_found_changed() {
    let scratch = motley();
    scratch.write(&[("z/1", "1"), ("z/2", "2"), ("z/3", "3"), ("z/4", "4"), ("z/5", "5"), ("y/only", "y")]);
    scratch.commit();
    assert_eq!(changes(&scratch, &[""]), [""; 0]);
    let top = scratch.top();
    // Other times, same bytes; a file that nobody tracks.
    scratch.write(&[("a/one", "1"), ("untracked", "u"), ("a/untracked", "u")]);
    assert_eq!(changes(&scratch, &[""]), [""; 0]);
    scratch.write(&[("a/one", "I"), ("a/two", "2"), ("z/1*", "1"), ("z/new", "n"), ("w/new", "n")]);
    fs::remove_file(top.join("to")).expect("removed");
    scratch.write(&[("to@", "b")]);
    fs::remove_file(top.join("z/2")).expect("removed");
    fs::remove_file(top.join("z/3")).expect("removed");
    scratch.write(&[("z/3/in", "untracked")]);
    fs::remove_file(top.join("y/only")).expect("removed");
    scratch.git(&["add", "z/new", "w/new", "z/2"]);
    scratch.git(&["rm", "-q", "--cached", "z/4"]);
    scratch.write(&[("sub/m/run*", "another"), ("z/5", "staged")]);
    scratch.git(&["add", "z/5"]);
    scratch.write(&[("z/5", "5")]);
    let expected = [
        "a/one",
        "a/two",
        "sub/m/run BlobExecutable",
        "to Link",
        "w/new",
        "y/only gone",
        "z/1 BlobExecutable",
        "z/2 gone",
        "z/3 gone",
        "z/4 gone",
        "z/5",
        "z/new",
    ];
    assert_eq!(changes(&scratch, &[""]), expected);
    assert_eq!(changes(&scratch, &["y", "a/two"]), ["a/two", "y/only gone"]);
    assert_eq!(changes(&scratch, &["b", "sub/other"]), [""; 0]);
    let said = scratch.git(&["status", "--porcelain", "-uno"]);
    assert_eq!(said.lines().count() - 1, expected.len() - 1, "{said}");
    // Laid over the commit, they are what a directory of the tracked files is.
    let revision = Revision::open(&top, "HEAD").expect("there");
    let refused = revision.clone().against(WorkTree::MustBeClean, &[], &Cancel::default());
    let refused = refused.expect_err("it is not clean").to_string();
    assert_eq!(refused, "the work tree differs from HEAD: a/one, a/two, sub/m/run and 9 more");
    let laid = revision.against(WorkTree::IsLaidOver, &[], &Cancel::default()).expect("laid");
    assert!(laid.is_dirty());
    for path in ["untracked", "a/untracked", "z/4", "z/3"] {
        let path = top.join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).expect("removed")
        } else {
            fs::remove_file(path).expect("removed")
        }
    }
    fs::remove_dir(top.join("y")).expect("removed");
    let context = CommitContext::new(Arc::clone(laid.context()), ignore("**/.git")).expect("sound");
    let here = told(context.files(&selector(""), &Known::default(), &Cancel::default()));
    assert_eq!(here, told(checked_out(&top, "**/.git", "")));
    assert!(here.is_ok());
}

#[test]
fn what_git_is_told_not_to_look_at_is_looked_at() {
    let scratch = Scratch::new();
    scratch.write(&[("assumed", "1"), ("kept/skipped", "1"), ("left/out", "1"), ("same", "1")]);
    scratch.commit();
    scratch.git(&["update-index", "--assume-unchanged", "assumed", "same"]);
    scratch.git(&["update-index", "--skip-worktree", "kept/skipped", "left/out"]);
    fs::remove_dir_all(scratch.top().join("left")).expect("removed");
    assert_eq!(changes(&scratch, &[""]), [""; 0]);
    scratch.write(&[("assumed", "2"), ("kept/skipped*", "2"), ("same", "1")]);
    assert_eq!(scratch.git(&["status", "--porcelain"]), "", "git does not look");
    assert_eq!(changes(&scratch, &[""]), ["assumed", "kept/skipped BlobExecutable"]);
    fs::remove_file(scratch.top().join("assumed")).expect("removed");
    assert_eq!(changes(&scratch, &["assumed"]), ["assumed gone"]);
}

#[test]
fn what_is_staged_and_left_out_of_the_work_tree_is_as_the_index_has_it() {
    let scratch = Scratch::new();
    scratch.write(&[("left/out", "1"), ("left/gone", "1"), ("left/same", "1"), ("kept", "1")]);
    scratch.commit();
    scratch.write(&[("left/out", "2"), ("left/new*", "2")]);
    scratch.git(&["add", "left"]);
    scratch.git(&["update-index", "--skip-worktree", "left/out", "left/new", "left/same"]);
    scratch.git(&["rm", "-q", "--cached", "left/gone"]);
    fs::remove_dir_all(scratch.top().join("left")).expect("removed");
    assert_eq!(scratch.git(&["status", "--porcelain"]), "D  left/gone\nA  left/new\nM  left/out");
    assert_eq!(changes(&scratch, &[""]), ["left/gone gone", "left/new staged", "left/out staged"]);
    let revision = Revision::open(&scratch.top(), "HEAD").expect("there");
    let laid = revision.against(WorkTree::IsLaidOver, &[], &Cancel::default()).expect("laid");
    let read = |path: &str| laid.read(Path::new(path)).expect("read").map(|bytes| shown(&bytes));
    for (path, text) in [("out", Some("2")), ("new", Some("2")), ("same", Some("1")), ("gone", None)] {
        assert_eq!(read(&format!("left/{path}")).as_deref(), text, "{path}");
    }
    let context = CommitContext::new(Arc::clone(laid.context()), None).expect("sound");
    let laid = told(context.files(&selector(""), &Known::default(), &Cancel::default()));
    // What the index would leave behind.
    scratch.git(&["commit", "-q", "-m", "x"]);
    let revision = Revision::open(&scratch.top(), "HEAD").expect("there");
    let context = CommitContext::new(Arc::clone(revision.context()), None).expect("sound");
    assert_eq!(laid, told(context.files(&selector(""), &Known::default(), &Cancel::default())));
    assert!(laid.is_ok());
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_neither_that_nor_gone() {
    let scratch = Scratch::new();
    scratch.write(&[("sub/file", "1"), ("kept", "1")]);
    scratch.commit();
    let path = scratch.top().join("sub/file");
    fs::remove_file(&path).expect("removed");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("run").success());
    assert_eq!(changes(&scratch, &[""]), ["sub/file gone"]);
    let laid = |context: &str| {
        let revision = Revision::open(&scratch.top(), context).expect("there");
        revision.against(WorkTree::IsLaidOver, &[], &Cancel::default())
    };
    let error = laid("HEAD").expect_err("it can be laid over nothing");
    let expected = format!("{} is a pipe in the work tree, where a file is tracked", path.display());
    assert_eq!(error.to_string(), expected);
    scratch.git(&["rm", "-q", "--cached", "sub/file"]);
    assert!(laid("HEAD").is_ok(), "it is tracked no more");
}

#[test]
fn only_the_commit_that_is_checked_out_is_compared() {
    let scratch = Scratch::new();
    scratch.write(&[("file", "1"), ("sub/file", "1")]);
    scratch.commit();
    scratch.write(&[("file", "2")]);
    scratch.commit();
    scratch.write(&[("file", "3")]);
    for (place, revision, is_clean) in [
        ("", "HEAD", false),
        ("", "main", false),
        ("", "HEAD~1", true),
        ("sub", "HEAD", true),
        ("sub", "HEAD:", false),
    ] {
        let revision = Revision::open(&scratch.top().join(place), revision).expect("there");
        let compared = revision.against(WorkTree::MustBeClean, &[], &Cancel::default());
        assert_eq!(compared.is_ok(), is_clean, "{place} {compared:?}");
    }
    let revision = Revision::open(&scratch.top().join("sub"), "HEAD").expect("there");
    assert!(revision.against(WorkTree::MustBeClean, &["file".into()], &Cancel::default()).is_err());
}

#[test]
fn a_file_as_old_as_the_index_is_looked_into() {
    let scratch = Scratch::new();
    scratch.write(&[("file", "1")]);
    scratch.commit();
    let index = scratch.top().join(".git/index");
    let file = scratch.top().join("file");
    let times = fs::metadata(&file).expect("there").modified().expect("known");
    // Another content of the same length, at the time that the index has: only its time of change tells.
    fs::write(&file, "2").expect("written");
    fs::File::open(&file).and_then(|file| file.set_modified(times)).expect("set");
    fs::File::open(&index).and_then(|index| index.set_modified(times)).expect("set");
    assert_eq!(changes(&scratch, &[""]), ["file"]);
}

#[test]
fn a_pointer_is_a_file_of_lfs_only_where_that_is_used() {
    let scratch = Scratch::new();
    let name = oci::Sha256Digest::of(b"large").hex();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 5\n");
    scratch.write(&[("sub/file", &pointer), (".gitattributes", "* text\n")]);
    let without = scratch.commit();
    scratch.write(&[(".gitattributes", "* filter=lfs\n")]);
    let with = scratch.commit();
    let place = scratch.top().join(".git/lfs/objects").join(&name[..2]).join(&name[2..4]);
    fs::create_dir_all(&place).expect("made");
    fs::write(place.join(&name), "large").expect("written");
    let known = Known::default();
    let mut looks = Vec::new();
    for (commit, content) in
        [(&without, pointer.as_str()), (&with, "large"), (&without, &pointer), (&with, "large")]
    {
        let tree = Arc::new(scratch.tree(commit).below(b"sub").expect("there"));
        let context = CommitContext::new(tree, None).expect("sound");
        looks.push(context.name_of_look(&selector(""), &Cancel::default()).expect("known"));
        let listing = context.files(&selector(""), &known, &Cancel::default()).expect("listed");
        let content = Some(oci::ContentDigest::of(content.as_bytes()));
        assert!(
            matches!(listing.nodes[&b"file"[..]].kind, NodeKind::File { content: found, .. } if found == content)
        );
    }
    assert!(looks[0] == looks[2] && looks[1] == looks[3] && looks[0] != looks[1]);
}

#[test]
fn line_ends_of_a_checkout_are_no_change_and_what_lies_there_is_laid_over() {
    let scratch = Scratch::new();
    let attributes = "*.bat text eol=crlf\n";
    scratch.write(&[
        (".gitattributes", attributes),
        ("a.bat", "one\r\ntwo\r\n"),
        ("b.bat", "\r\n"),
        ("c", "text"),
    ]);
    scratch.commit();
    for time in 0..5 {
        let clone = scratch.beside(&format!("clone-{time}"));
        git(&scratch.beside(""), &["clone", "-q", "work", &clone.display().to_string()]);
        let revision = || Revision::open(&clone, "HEAD").expect("there");
        let compared = |work_tree| revision().against(work_tree, &[], &Cancel::default());
        assert!(!compared(WorkTree::MustBeClean).expect("clean").is_dirty());
        // Whatever the index says of its times, the file is read.
        let file = fs::File::open(clone.join("a.bat")).expect("there");
        file.set_modified(std::time::UNIX_EPOCH).expect("set");
        assert!(!compared(WorkTree::MustBeClean).expect("clean").is_dirty());
        let laid = compared(WorkTree::IsLaidOver).expect("laid over");
        assert_eq!(laid.read(Path::new("a.bat")).expect("read").as_deref(), Some(&b"one\r\ntwo\r\n"[..]));
        fs::write(clone.join("a.bat"), "one\r\ntwo\r").expect("written");
        assert!(matches!(compared(WorkTree::MustBeClean), Err(GitError::Dirty { .. })));
    }
}

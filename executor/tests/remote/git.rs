//! Commits of repositories behind real git servers.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use oci::registry::FILE_MAX;
use solver::{FailureKind, remote::GitAddress};
use tempfile::TempDir;

use crate::{
    ground::{Ground, Repo, address, directory, file, refusal, show_files},
    server::{Server, answer, git_backend},
};

/// A repository with two commits, a branch, tags of both kinds, a link and a program.
struct Site {
    root: TempDir,
    server: Server,
    repo: Repo,
    first: String,
    second: String,
}

fn site() -> Site {
    let root = tempfile::tempdir().unwrap();
    let repo = Repo::new(root.path().join("a.git"));
    repo.write("file", "one\n").write("sub/run.sh", "#!/bin/sh\n");
    fs::set_permissions(repo.path.join("sub/run.sh"), fs::Permissions::from_mode(0o770)).unwrap();
    std::os::unix::fs::symlink("sub", repo.path.join("link")).unwrap();
    let first = repo.commit();
    repo.git(&["tag", "-a", "-m", "t", "v1"]);
    repo.git(&["branch", "old/v1"]);
    let second = repo.write("file", "two\n").commit();
    repo.git(&["tag", "light"]);
    let server = Server::git(root.path());
    Site { root, server, repo, first, second }
}

impl Site {
    fn url(&self) -> String {
        self.server.url("a.git")
    }

    fn fetches(&self) -> usize {
        self.server.seen().iter().filter(|request| request.method == "POST").count()
    }
}

#[test]
fn every_kind_of_reference_finds_its_commit() {
    let site = site();
    let ground = Ground::new();
    for (reference, expected) in [
        (None, "two\n"),
        (Some("main"), "two\n"),
        (Some("refs/heads/main"), "two\n"),
        (Some("heads/main"), "two\n"),
        (Some("old/v1"), "one\n"),
        (Some("v1"), "one\n"),
        (Some("refs/tags/v1"), "one\n"),
        (Some("light"), "two\n"),
        (Some(site.first.as_str()), "one\n"),
        (Some(&site.first[..9]), "one\n"),
    ] {
        let fetched = ground.remotes().git(&address(&site.url(), reference)).unwrap();
        assert_eq!(file(&fetched, "file"), expected, "{reference:?}");
        let commit = if expected == "one\n" { &site.first } else { &site.second };
        assert_eq!((&fetched.commit, fetched.time), (commit, 1_600_000_001), "{reference:?}");
    }
    let error = ground.remotes().git(&address(&site.url(), Some("nobody"))).unwrap_err();
    assert_eq!(error.message, format!("repository {} does not contain ref nobody", site.url()));
    assert_eq!(error.kind, FailureKind::Build);
}

#[test]
fn modes_and_links_are_git_s_and_nothing_else_is_there() {
    let site = site();
    let ground = Ground::new();
    let fetched = ground.remotes().git(&address(&site.url(), None)).unwrap();
    let expected = ["file 644 two\n", "link -> sub", "sub/ 755", "sub/run.sh 755 #!/bin/sh\n"];
    assert_eq!(show_files(&fetched), expected);
    let checkouts = fs::read_dir(ground.store.area("git/checkouts")).unwrap();
    assert_eq!(checkouts.count(), 0, "nothing is written but the repository");
}

#[test]
fn what_the_store_has_is_not_fetched_again() {
    let site = site();
    let ground = Ground::new();
    let by_hash = address(&site.url(), Some(&site.second));
    ground.remotes().git(&by_hash).unwrap();
    let before = site.server.seen().len();
    ground.remotes().git(&by_hash).unwrap();
    assert_eq!(site.server.seen().len(), before, "a hash says all there is to say");
    let fetched = ground.remotes().git(&address(&site.url(), None)).unwrap();
    assert_eq!(fetched.commit, site.second);
    let third = site.repo.write("file", "three\n").commit();
    let fetched = ground.remotes().git(&address(&site.url(), None)).unwrap();
    assert_eq!((fetched.commit.clone(), file(&fetched, "file")), (third, "three\n".to_owned()));
}

/// The first file of `git/remotes` below a directory of this name, but for those that another name is in.
fn object(store: &Path, area: &str, but: &str) -> PathBuf {
    let files = walkdir::WalkDir::new(store.join(area)).sort_by_file_name();
    let mut files = files.into_iter().map(|entry| entry.unwrap().into_path());
    files
        .find(|path| {
            path.is_file()
                && path.to_str().is_some_and(|path| path.contains("/objects/") && !path.contains(but))
        })
        .unwrap()
}

#[test]
fn a_damaged_repository_is_fetched_again_unless_another_build_uses_it() {
    let site = site();
    for is_used in [false, true] {
        let ground = Ground::new();
        ground.remotes().git(&address(&site.url(), None)).unwrap();
        let repository = object(ground.store.root(), "git/remotes", "never");
        fs::set_permissions(&repository, fs::Permissions::from_mode(0o644)).unwrap();
        let length = fs::metadata(&repository).unwrap().len();
        fs::write(&repository, vec![7; usize::try_from(length).unwrap()]).unwrap();
        let other = oci::store::Store::open(ground.store.root()).unwrap();
        if is_used {
            other.pin(&["git/remotes"]).unwrap();
            let error = ground.remotes().git(&address(&site.url(), None)).unwrap_err();
            assert!(error.message.contains("is damaged, and another build uses it"), "{error}");
            continue;
        }
        let fetched = ground.remotes().git(&address(&site.url(), None)).unwrap();
        assert_eq!(
            (fetched.commit.clone(), file(&fetched, "file")),
            (site.second.clone(), "two\n".to_owned())
        );
    }
}

#[test]
fn one_build_sees_one_commit_and_fetches_it_once() {
    let site = site();
    let ground = Ground::new();
    let remotes = ground.remotes();
    let wanted = address(&site.url(), None);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..6).map(|_| scope.spawn(|| remotes.git(&wanted).unwrap())).collect();
        all.into_iter().for_each(|one| assert_eq!(one.join().unwrap().commit, site.second));
    });
    // One for ls-remote, one for the fetch (protocol 2).
    assert!(site.fetches() <= 2, "{}", site.fetches());
    site.repo.write("file", "three\n").commit();
    assert_eq!(remotes.git(&wanted).unwrap().commit, site.second);
    let builds = [ground.remotes(), ground.remotes()];
    let other = GitAddress { submodules: false, ..wanted };
    std::thread::scope(|scope| {
        builds.iter().for_each(|build| _ = scope.spawn(|| build.git(&other).unwrap()));
    });
}

#[test]
fn commits_are_checked_and_subdirectories_stay_inside() {
    let site = site();
    let ground = Ground::new();
    let with = |reference: &str, checksum: &str| GitAddress {
        checksum: Some(checksum.to_owned()),
        ..address(&site.url(), Some(reference))
    };
    for (reference, checksum) in
        [("main", &site.second[..7]), ("v1", &site.first), (site.first.as_str(), &site.first[..8])]
    {
        ground.remotes().git(&with(reference, checksum)).unwrap();
    }
    let error = ground.remotes().git(&with("main", &site.first)).unwrap_err();
    assert_eq!(error.message, format!("expected checksum to match {}, got {}", site.first, site.second));
    let by_commit = GitAddress { fetch_by_commit: true, ..with("gone", &site.first) };
    assert_eq!(file(&ground.remotes().git(&by_commit).unwrap(), "file"), "one\n");

    let below = |subdir: &str| GitAddress { subdir: Some(subdir.to_owned()), ..address(&site.url(), None) };
    for subdir in ["sub", "link", "../../sub"] {
        let fetched = ground.remotes().git(&below(subdir)).unwrap();
        assert_eq!(show_files(&fetched), ["run.sh 755 #!/bin/sh\n"], "{subdir}");
    }
    for subdir in ["absent", "file"] {
        let error = ground.remotes().git(&below(subdir)).unwrap_err();
        assert!(error.message.ends_with("is not a directory in it"), "{error}");
    }
}

#[test]
fn servers_that_refuse_single_commits_are_asked_for_names() {
    let site = site();
    // Protocol 0, in which servers may refuse what no name leads to.
    let root = site.root.path().to_owned();
    let server = Server::start(move |request, stream| {
        let mut request = request.clone();
        request.headers.remove("git-protocol");
        git_backend(&root, &request, stream);
    });
    site.repo.write("file", "three\n").commit();
    for reference in ["main", "v1", &site.first, &site.second] {
        let ground = Ground::new();
        let fetched = ground.remotes().git(&address(&server.url("a.git"), Some(reference))).unwrap();
        assert!(!file(&fetched, "file").is_empty(), "{reference}");
    }
    let lost = "1".repeat(40);
    let error = Ground::new().remotes().git(&address(&server.url("a.git"), Some(&lost))).unwrap_err();
    assert!(error.message.contains(&format!("does not contain ref {lost}")), "{error}");
}

#[test]
fn submodules_come_along_and_only_from_the_network() {
    let site = site();
    let root = site.root.path();
    let inner = Repo::new(root.join("deep/inner.git"));
    inner.write("inner", "i\n").commit();
    let middle = Repo::new(root.join("deep/middle.git"));
    middle.write("middle", "m\n");
    middle.git(&["submodule", "add", "-q", "../inner.git", "in"]);
    middle.git(&["config", "-f", ".gitmodules", "submodule.in.url", "../inner.git"]);
    middle.commit();
    site.repo.git(&["submodule", "add", "-q", "./../deep/middle.git", "libs/middle"]);
    site.repo.git(&["config", "-f", ".gitmodules", "submodule.libs/middle.url", "../deep/middle.git"]);
    site.repo.commit();
    let ground = Ground::new();
    let fetched = ground.remotes().git(&address(&site.url(), None)).unwrap();
    let shown = show_files(&fetched);
    for line in ["libs/middle/middle 644 m\n", "libs/middle/in/inner 644 i\n"] {
        assert!(shown.iter().any(|shown| shown == line), "{shown:#?}");
    }
    assert!(!shown.iter().any(|line| line.contains(".git/") || line.contains("/.git ")), "{shown:#?}");
    let without = GitAddress { submodules: false, ..address(&site.url(), None) };
    let shown = show_files(&ground.remotes().git(&without).unwrap());
    assert!(
        shown.contains(&"libs/middle/ 755".to_owned()) && !shown.iter().any(|line| line.contains("inner"))
    );

    for url in
        [root.join("deep/inner.git").to_str().unwrap(), "file:///etc", "ext::sh -c true", "--upload-pack=x"]
    {
        site.repo.git(&["config", "-f", ".gitmodules", "submodule.libs/middle.url", url]);
        site.repo.commit();
        let error = refusal(&ground.remotes().git(&address(&site.url(), None)).unwrap());
        assert!(error.message.contains("its url is no http, https, ssh or git address"), "{url}: {error}");
    }
    fs::remove_file(site.repo.path.join(".gitmodules")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", site.repo.path.join(".gitmodules")).unwrap();
    site.repo.commit();
    let error = refusal(&ground.remotes().git(&address(&site.url(), None)).unwrap());
    assert!(error.message.contains("no submodule mapping found in .gitmodules"), "a link is none: {error}");
    site.repo.git(&["rm", "-q", "--cached", "-f", ".gitmodules"]);
    fs::remove_file(site.repo.path.join(".gitmodules")).unwrap();
    site.repo.commit();
    let error = refusal(&ground.remotes().git(&address(&site.url(), None)).unwrap());
    assert!(error.message.contains("no submodule mapping found in .gitmodules"), "{error}");
}

#[test]
fn a_kept_git_directory_is_a_repository_and_the_same_everywhere() {
    let site = site();
    let keep = |reference| GitAddress { keep_git_dir: true, ..address(&site.url(), Some(reference)) };
    let ground = Ground::new();
    let fetched = ground.remotes().git(&keep("v1")).unwrap();
    let kept = Repo { path: directory(&fetched).to_owned() };
    assert_eq!(kept.git(&["rev-parse", "HEAD"]), site.first);
    assert_eq!(kept.git(&["describe", "--tags"]), "v1");
    assert_eq!(kept.git(&["remote", "get-url", "origin"]), site.url());
    let other = Ground::new();
    // Another way to the same commit: its history is in the store's repository already.
    other.remotes().git(&address(&site.url(), Some(&site.first[..8]))).unwrap();
    let again = other.remotes().git(&keep("v1")).unwrap();
    assert_eq!(show_files(&fetched), show_files(&again));
    assert_eq!(kept.git(&["status", "--porcelain"]), "");
    kept.git(&["fsck", "--strict"]);
    let branch = ground.remotes().git(&keep("main")).unwrap();
    let branch = Repo { path: directory(&branch).to_owned() };
    assert_eq!(branch.git(&["log", "--format=%H"]), site.second);
    assert_eq!(branch.git(&["rev-parse", "refs/heads/main"]), site.second);
}

#[test]
fn credentials_reach_their_server_and_nothing_else() {
    let site = site();
    let root = site.root.path().to_owned();
    let guarded = Server::start(move |request, stream| {
        match request.headers.get("authorization").map(String::as_str) {
            // x-access-token:hush, and u:p
            Some("basic eC1hY2Nlc3MtdG9rZW46aHVzaA==" | "basic dTpw" | "Bearer abc") => {
                git_backend(&root, request, stream)
            }
            _ => answer(stream, "401 Unauthorized", &[("WWW-Authenticate", "Basic realm=x")], b""),
        }
    });
    let url = guarded.url("a.git");
    let error = Ground::new().remotes().git(&address(&url, None)).unwrap_err();
    assert_eq!(error.kind, FailureKind::Registry);
    assert!(error.hint.unwrap().contains("GIT_AUTH_TOKEN"));
    for (id, value) in [
        ("GIT_AUTH_TOKEN", "hush"),
        ("GIT_AUTH_TOKEN", "hush\n"),
        ("GIT_AUTH_TOKEN.127.0.0.1", "hush"),
        ("GIT_AUTH_HEADER", "Bearer abc"),
        ("GIT_AUTH_HEADER.127.0.0.1", "Bearer abc"),
    ] {
        let ground = Ground::new().secret(id, value);
        let fetched = ground.remotes().git(&address(&url, None)).unwrap();
        assert_eq!(fetched.commit, site.second, "{id}");
        assert!(!holds(ground.root.path(), "hush") && !holds(ground.root.path(), "eC1hY2Nl"), "{id}");
    }
    let with_login = url.replace("http://", "http://u:p@");
    let keep = GitAddress { keep_git_dir: true, ..address(&with_login, None) };
    let ground = Ground::new();
    let fetched = ground.remotes().git(&keep).unwrap();
    assert!(!holds(ground.root.path(), "u:p@") && !holds(ground.root.path(), "dTpw"));
    assert!(fs::read_to_string(directory(&fetched).join(".git/config")).unwrap().contains("127.0.0.1"));
    let error =
        Ground::new().secret("GIT_AUTH_HEADER", "a\nb").remotes().git(&address(&url, None)).unwrap_err();
    assert!(error.message.contains("line break"), "{error}");
}

#[test]
fn credentials_do_not_follow_redirects() {
    let site = site();
    let target = site.url();
    let redirecting = Server::start(move |request, stream| {
        let (_, rest) = request.target.split_once(".git").unwrap();
        answer(stream, "302 Found", &[("Location", &format!("{target}{rest}"))], b"");
    });
    let url = redirecting.url("a.git");
    assert_eq!(Ground::new().remotes().git(&address(&url, None)).unwrap().commit, site.second);
    let before = site.server.seen().len();
    let error =
        Ground::new().secret("GIT_AUTH_TOKEN", "hush").remotes().git(&address(&url, None)).unwrap_err();
    assert_eq!(site.server.seen().len(), before, "{error}");
    assert!(site.server.seen().iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn hostile_addresses_start_nothing() {
    let ground = Ground::new();
    let mark = ground.root.path().join("mark");
    let touch = format!("touch {}", mark.display());
    for remote in [
        format!("ext::sh -c '{touch}'"),
        format!("--upload-pack={touch}"),
        format!("ssh://-oProxyCommand={touch}/x"),
        "file:///etc".to_owned(),
        "/etc".to_owned(),
    ] {
        let error = ground.remotes().git(&address(&remote, None)).unwrap_err();
        assert!(
            error.message.contains("is no git repository of an http, https, ssh or git address"),
            "{error}"
        );
    }
    let site = site();
    for reference in ["--upload-pack=x", "-x", "a b", "refs/heads/../x", "main:evil", "^main"] {
        assert!(ground.remotes().git(&address(&site.url(), Some(reference))).is_err(), "{reference}");
    }
    assert!(!mark.exists());
}

#[test]
fn a_store_survives_a_killed_git() {
    let site = site();
    let ground = Ground::new();
    ground.remotes().git(&address(&site.url(), None)).unwrap();
    let repositories = ground.root.path().join("git/remotes");
    for entry in fs::read_dir(&repositories).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::write(path.join("shallow.lock"), "").unwrap();
            fs::create_dir_all(path.join("refs/layerwright")).unwrap();
            fs::write(path.join("refs/layerwright/x.lock"), "").unwrap();
        }
    }
    assert_eq!(ground.remotes().git(&address(&site.url(), Some("v1"))).unwrap().commit, site.first);
}

#[test]
fn a_fetch_can_be_cancelled() {
    let ground = Ground::new();
    let cancel = std::sync::Arc::clone(&ground.cancel);
    let (asked, heard) = std::sync::mpsc::channel();
    let server = Server::start(move |_, _| {
        asked.send(()).unwrap();
        // Says nothing until the test is over.
        loop {
            std::thread::park();
        }
    });
    let remotes = ground.remotes();
    let failure = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| remotes.git(&address(&server.url("a.git"), None)).unwrap_err());
        heard.recv().unwrap();
        cancel.request();
        fetching.join().unwrap()
    });
    assert_eq!(failure.kind, FailureKind::Cancelled);
}

/// Whether any file below a directory holds a text.
fn holds(directory: &Path, text: &str) -> bool {
    let output = std::process::Command::new("grep").args(["-rqF", text]).arg(directory).status().unwrap();
    output.success()
}

#[test]
fn a_server_that_sends_too_much_is_given_up_and_leaves_nothing() {
    let site = site();
    let small = site.second.clone();
    // Each of them would be taken; and nothing makes them shorter.
    let mut noise = 1_u64;
    for name in ["a", "b", "c", "d"] {
        let bytes = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (noise >> 56) as u8
        });
        fs::write(site.repo.path.join(name), bytes.take(50_000).collect::<Vec<u8>>()).unwrap();
    }
    site.repo.commit();
    // All files come at once; with the commit, since this server leaves nothing out, or by themselves.
    for keep_git_dir in [false, true] {
        let mut ground = Ground::new();
        ground.pack_max = 100_000;
        let fetch = |ground: &Ground, reference: &str| {
            let address = GitAddress { keep_git_dir, ..address(&site.url(), Some(reference)) };
            ground.remotes().git(&address).map(drop)
        };
        assert!(fetch(&ground, &small).is_ok());
        let failure = fetch(&ground, "main").expect_err("it is not small");
        let told =
            format!("{} sends more than 100000 bytes, which is the most that is fetched at once", site.url());
        assert_eq!((failure.kind, failure.message), (FailureKind::Build, told));
        let store = ground.root.path().to_owned();
        let left = || {
            let names = walkdir::WalkDir::new(&store).into_iter().map(|entry| entry.unwrap().into_path());
            names.filter(|path| path.to_string_lossy().contains("/objects/pack/tmp_")).count()
        };
        assert_eq!(left(), 0);
        // What somebody was killed over goes with the next fetch.
        let repositories =
            fs::read_dir(store.join("git/remotes")).unwrap().map(|entry| entry.unwrap().path());
        let packs = repositories.filter(|path| path.is_dir()).map(|path| path.join("objects/pack"));
        packs.for_each(|packs| fs::write(packs.join("tmp_pack_x"), "half").unwrap());
        assert_eq!(left(), 1);
        ground.pack_max = FILE_MAX;
        assert!(fetch(&ground, "main").is_ok());
        assert_eq!(left(), 0);
    }
}

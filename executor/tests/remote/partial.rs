//! Files that are fetched when somebody needs them, many at once, from servers that can leave them out.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use executor::{
    context::CommitContext,
    git::known::Known,
    listing::{NodeKind, Opened},
    remote::Fetched,
};
use oci::ContentDigest;
use solver::{Event, FailureKind, StepFailure, op::Selector, remote::GitAddress};
use tempfile::TempDir;

use crate::{
    ground::{Ground, Repo, address, directory, file, pick, revision, show_files},
    server::{Server, answer, git_backend},
};

/// A repository with twenty files in one directory and large ones in another, behind a server that leaves files out and
/// can be told to refuse.
struct Site {
    root: TempDir,
    server: Server,
    repo: Repo,
    refuses: Arc<AtomicBool>,
}

const PICKED: usize = 20;

/// `protocol`: what it speaks at most.
fn site(protocol: u8) -> Site {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("config"), "[uploadpack]\nallowFilter = true\n").unwrap();
    let repo = Repo::new(root.path().join("a.git"));
    for number in 0..PICKED {
        repo.write(&format!("picked/{number}"), &format!("{number}\n"));
    }
    for number in 0..3 {
        repo.write(&format!("other/{number}"), &noise(number));
    }
    repo.write("Dockerfile", "FROM scratch\n").write(".dockerignore", "ignored\n");
    std::os::unix::fs::symlink("picked", repo.path.join("link")).unwrap();
    repo.commit();
    let refuses = Arc::new(AtomicBool::new(false));
    let (root_path, asked) = (root.path().to_owned(), Arc::clone(&refuses));
    let server = Server::start(move |request, stream| {
        let mut request = request.clone();
        if protocol < 2 {
            request.headers.remove("git-protocol");
        }
        match asked.load(Ordering::SeqCst) {
            true => answer(stream, "503 Service Unavailable", &[], b""),
            false => git_backend(&root_path, &request, stream),
        }
    });
    Site { root, server, repo, refuses }
}

/// A megabyte that no compression makes smaller.
fn noise(seed: u64) -> String {
    let words =
        (0..16 << 10).map(|number: u64| blake3::hash(&[seed.to_le_bytes(), number.to_le_bytes()].concat()));
    words.map(|hash| hash.to_hex().to_string()).collect()
}

impl Site {
    fn url(&self) -> String {
        self.server.url("a.git")
    }

    fn fetched(&self, ground: &Ground) -> Fetched {
        ground.remotes().git(&address(&self.url(), Some("main"))).unwrap()
    }

    /// How often files or commits were asked for: each time is one request over protocol 2.
    fn fetches(&self) -> usize {
        let lists_names = |body: &[u8]| body.windows(15).any(|window| window == b"command=ls-refs");
        let seen = self.server.seen();
        seen.iter().filter(|request| request.method == "POST" && !lists_names(&request.body)).count()
    }
}

/// The store's repository.
fn repository(ground: &Ground) -> PathBuf {
    let all = fs::read_dir(ground.root.path().join("git/remotes")).unwrap();
    all.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap()
}

/// Paths of the files of all commits that are not in the store.
fn lacking(ground: &Ground) -> usize {
    let said = Repo { path: repository(ground) }.git(&["rev-list", "--objects", "--all", "--missing=print"]);
    said.lines().filter(|line| line.starts_with('?')).count()
}

fn size(ground: &Ground) -> u64 {
    let files = walkdir::WalkDir::new(repository(ground)).into_iter();
    files.map(|entry| entry.unwrap().metadata().unwrap()).filter(|it| it.is_file()).map(|it| it.len()).sum()
}

#[test]
fn what_is_picked_is_fetched_at_once_and_nothing_else_ever() {
    let site = site(2);
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    assert_eq!((site.fetches(), lacking(&ground)), (1, PICKED + 3 + 3));
    let listing = pick(revision(&fetched), "picked").unwrap();
    assert_eq!((site.fetches(), lacking(&ground)), (2, 3 + 3), "all at once");
    assert!(listing.open(b"picked/7").is_ok());
    // The first link brings all of them, and what says how names are read.
    let listing = pick(revision(&fetched), "link/3").unwrap();
    assert!(listing.nodes.contains_key(&b"picked/3"[..]));
    assert_eq!((site.fetches(), lacking(&ground)), (3, 3 + 1));
    assert!(size(&ground) < 100_000, "{}", size(&ground));

    // Another build has all of it.
    let again = site.fetched(&ground);
    pick(revision(&again), "picked").unwrap();
    assert_eq!(site.fetches(), 3);
    // Of another commit, what has changed.
    site.repo.write("picked/5", "changed\n").commit();
    let changed = site.fetched(&ground);
    assert_eq!((site.fetches(), lacking(&ground)), (4, 3 + 1 + 1));
    pick(revision(&changed), "picked").unwrap();
    assert_eq!((site.fetches(), lacking(&ground)), (5, 3 + 1));
    assert_eq!(show_files(&changed).len(), PICKED + 3 + 3 + 2);
    assert_eq!((site.fetches(), lacking(&ground)), (6, 0));
    Repo { path: repository(&ground) }.git(&["fsck", "--full", "--strict"]);
}

#[test]
fn what_is_known_but_gone_comes_at_once_when_it_is_read() {
    let site = site(2);
    let ground = Ground::new();
    let listing = pick(revision(&site.fetched(&ground)), "picked").unwrap();
    // The same listing of another store, where a layer has to be made of what was never read.
    let other = Ground::new();
    let fetched = site.fetched(&other);
    let before = site.fetches();
    let content = executor::listing::Content::Commit(Arc::clone(revision(&fetched).context()));
    let there = executor::listing::Listing { nodes: listing.nodes, content };
    std::thread::scope(|scope| {
        for number in 0..PICKED {
            let there = &there;
            scope.spawn(move || there.open(format!("picked/{number}").as_bytes()).unwrap());
        }
    });
    assert_eq!((site.fetches() - before, lacking(&other)), (1, 3 + 3));
}

#[test]
fn a_server_that_gives_out_no_single_files_gives_all() {
    // Protocol 0 leaves files out, and refuses what no name leads to.
    let site = site(0);
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    assert!(lacking(&ground) > 0);
    assert_eq!(file(&fetched, "picked/7"), "7\n");
    assert_eq!(lacking(&ground), 0);
    let events = ground.events.lock().unwrap();
    let is_told = |event: &Event| matches!(event, Event::Warning(text) if text.contains("no single files"));
    assert!(events.iter().any(is_told), "{events:?}");
}

#[test]
fn a_server_that_goes_away_leaves_nothing_half() {
    let site = site(2);
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    site.refuses.store(true, Ordering::SeqCst);
    let error = StepFailure::from(pick(revision(&fetched), "picked").unwrap_err());
    assert_eq!(error.kind, FailureKind::Registry);
    assert!(error.message.starts_with("git fetch of http://127.0.0.1:"), "{error}");
    assert!(error.message.contains("503"), "{error}");
    assert_eq!(lacking(&ground), PICKED + 3 + 3);
    site.refuses.store(false, Ordering::SeqCst);
    assert_eq!(pick(revision(&fetched), "picked").unwrap().nodes.len(), PICKED + 1);
}

#[test]
fn a_checkout_has_all_its_files_whatever_was_fetched_before() {
    let site = site(2);
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    pick(revision(&fetched), "picked").unwrap();
    let keep = GitAddress { keep_git_dir: true, ..address(&site.url(), Some("main")) };
    let kept = ground.remotes().git(&keep).unwrap();
    let other = Ground::new();
    let alone = other.remotes().git(&keep).unwrap();
    assert!(show_files(&kept) == show_files(&alone), "another way to the same files makes no difference");
    let kept = Repo { path: directory(&kept).to_owned() };
    assert_eq!(kept.git(&["status", "--porcelain"]), "");
    assert_eq!(kept.git(&["fsck", "--strict"]), "");
    assert_eq!(kept.git(&["config", "--get-regexp", "promisor|partial|core.bare"]), "core.bare false");
    assert_eq!(lacking(&ground), 0);
}

#[test]
fn builds_at_once_fetch_each_file_once() {
    let site = site(2);
    let ground = Ground::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pick(revision(&site.fetched(&ground)), "picked").unwrap());
        }
    });
    assert_eq!((site.fetches(), lacking(&ground)), (2, 3 + 3));
}

#[test]
fn files_of_submodules_are_fetched_when_they_are_picked() {
    let site = site(2);
    let inner = Repo::new(site.root.path().join("inner.git"));
    inner.write("small", "s\n").write("large", &noise(9)).commit();
    site.repo.git(&["submodule", "add", "-q", "../inner.git", "in"]);
    site.repo.git(&["config", "-f", ".gitmodules", "submodule.in.url", "../inner.git"]);
    site.repo.commit();
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    pick(revision(&fetched), "picked").unwrap();
    let remotes = || fs::read_dir(ground.root.path().join("git/remotes")).unwrap().count();
    assert_eq!(remotes(), 2, "a repository and its lock");
    let listing = pick(revision(&fetched), "in/small").unwrap();
    assert!(listing.open(b"in/small").is_ok());
    assert_eq!(remotes(), 4);
    let stored: u64 = walkdir::WalkDir::new(ground.root.path().join("git/remotes"))
        .into_iter()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .map(|metadata| if metadata.is_file() { metadata.len() } else { 0 })
        .sum();
    assert!(stored < 100_000, "{stored}");
}

#[test]
fn a_repository_of_sha256_is_read_as_any_other() {
    let site = site(2);
    let path = site.root.path().join("b.git");
    fs::create_dir(&path).unwrap();
    let repo = Repo { path };
    repo.git(&["init", "-q", "-b", "main", "--object-format=sha256"]);
    let commit = repo.write("file", "256\n").commit();
    let ground = Ground::new();
    let fetched = ground.remotes().git(&address(&site.server.url("b.git"), None)).unwrap();
    assert_eq!((fetched.commit.clone(), file(&fetched, "file")), (commit, "256\n".to_owned()));
}

#[test]
fn many_packs_have_an_index_in_common() {
    let site = site(2);
    let ground = Ground::new();
    let first = site.fetched(&ground);
    pick(revision(&first), "picked").unwrap();
    let packs = || {
        let all = fs::read_dir(repository(&ground).join("objects/pack")).unwrap();
        all.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "pack"))
            .count()
    };
    let mut number = 0;
    while packs() < 40 {
        number += 1;
        site.repo.write("picked/5", &format!("changed {number}\n")).commit();
        let fetched = site.fetched(&ground);
        let listing = pick(revision(&fetched), "picked").unwrap();
        assert!(listing.open(b"picked/5").is_ok());
    }
    assert!(repository(&ground).join("objects/pack/multi-pack-index").exists());
    // What was opened before, and what is opened now, find everything.
    assert!(pick(revision(&first), "picked").is_ok());
    assert!(pick(revision(&site.fetched(&ground)), "picked").is_ok());
    Repo { path: repository(&ground) }.git(&["fsck", "--full", "--strict"]);
}

#[test]
fn damaged_files_are_thrown_away_and_fetched_by_the_next_build() {
    let site = site(2);
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    let packs = || {
        let all = fs::read_dir(repository(&ground).join("objects/pack")).unwrap();
        let paths = all.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "pack")).collect::<BTreeSet<_>>()
    };
    let before = packs();
    pick(revision(&fetched), "picked").unwrap();
    for pack in packs().difference(&before) {
        let mut bytes = fs::read(pack).unwrap();
        bytes[12..].fill(7);
        fs::set_permissions(pack, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(pack, bytes).unwrap();
    }
    let error = StepFailure::from(pick(revision(&site.fetched(&ground)), "picked").unwrap_err());
    assert_eq!(error.kind, FailureKind::Machine);
    assert!(error.message.contains("is damaged"), "{error}");
    assert!(error.hint.unwrap().contains("the next build fetches it again"));
    assert!(pick(revision(&site.fetched(&ground)), "picked").is_ok());
}

#[test]
fn a_large_file_is_streamed() {
    let site = site(2);
    let large = "a line of a large file\n".repeat(1_500_000);
    site.repo.write("large/file", &large).commit();
    let ground = Ground::new();
    let fetched = site.fetched(&ground);
    let listing = pick(revision(&fetched), "large").unwrap();
    let mut opened = listing.open(b"large/file").unwrap();
    assert!(matches!(opened, Opened::File(_)), "it is in no memory");
    let mut text = String::new();
    opened.read_to_string(&mut text).unwrap();
    assert!(text == large);
    assert_eq!(listing.open(b"large/file").map(drop).ok(), Some(()));
    let NodeKind::File { size, content } = listing.nodes[&b"large/file"[..]].kind else { panic!("a file") };
    assert_eq!((size, content), (large.len() as u64, Some(ContentDigest::of(large.as_bytes()))));
}

#[test]
fn files_are_asked_for_with_the_same_credentials() {
    let site = site(2);
    let root = site.root.path().to_owned();
    let guarded = Server::start(move |request, stream| {
        match request.headers.get("authorization").map(String::as_str) {
            // x-access-token:hush
            Some("basic eC1hY2Nlc3MtdG9rZW46aHVzaA==") => git_backend(&root, request, stream),
            _ => answer(stream, "401 Unauthorized", &[("WWW-Authenticate", "Basic realm=x")], b""),
        }
    });
    let ground = Ground::new().secret("GIT_AUTH_TOKEN", "hush");
    let fetched = ground.remotes().git(&address(&guarded.url("a.git"), Some("main"))).unwrap();
    assert!(lacking(&ground) > PICKED);
    assert_eq!(pick(revision(&fetched), "picked").unwrap().nodes.len(), PICKED + 1);
    let mut search = std::process::Command::new("grep");
    let found = search.args(["-rqE", "hush|eC1hY2Nl"]).arg(ground.root.path()).status().unwrap();
    assert!(!found.success(), "nothing of them is kept");
}

#[test]
fn a_build_that_ends_does_not_wait_for_files() {
    let site = site(2);
    let root = site.root.path().to_owned();
    let (asked, heard) = std::sync::mpsc::channel();
    let is_silent = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_silent);
    let server = Server::start(move |request, stream| match told.load(Ordering::SeqCst) {
        false => git_backend(&root, request, stream),
        true => {
            asked.send(()).unwrap();
            // Says nothing until the test is over.
            loop {
                std::thread::park();
            }
        }
    });
    let ground = Ground::new();
    let fetched = ground.remotes().git(&address(&server.url("a.git"), Some("main"))).unwrap();
    is_silent.store(true, Ordering::SeqCst);
    let failure = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let context = CommitContext::new(Arc::clone(revision(&fetched).context()), None).unwrap();
            let selector = Selector { include: vec!["picked".to_owned()], ..Selector::default() };
            StepFailure::from(context.files(&selector, &Known::default(), &ground.cancel).unwrap_err())
        });
        heard.recv().unwrap();
        ground.cancel.request();
        waiting.join().unwrap()
    });
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert_eq!(lacking(&ground), PICKED + 3 + 3);
}

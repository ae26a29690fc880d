//! A store, and repositories to fetch from.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use executor::{
    Retry, SecretSource, Secrets,
    agents::Agents,
    context::{CommitContext, ContextError},
    git::{Revision, known::Known},
    listing::{Listing, Node, NodeKind},
    remote::{Fetched, FetchedFiles, RemoteOptions, Remotes},
};
use oci::{
    fetch::Fetcher,
    registry::{FILE_MAX, Limits, Registry, RegistryOptions},
    store::Store,
};
use solver::{Cancel, Event, StepFailure, op::Selector, remote::GitAddress};
use tempfile::TempDir;

/// A store of its own.
pub struct Ground {
    pub store: Arc<Store>,
    pub events: Arc<Mutex<Vec<Event>>>,
    pub cancel: Arc<Cancel>,
    pub secrets: BTreeMap<String, SecretSource>,
    pub agents: Agents,
    pub retry: Retry,
    pub pack_max: u64,
    pub root: TempDir,
}

impl Ground {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(root.path()).unwrap());
        Self {
            store,
            root,
            events: Arc::default(),
            cancel: Arc::default(),
            secrets: BTreeMap::new(),
            agents: Agents::default(),
            retry: Retry { pause: Duration::ZERO, ..Retry::default() },
            pack_max: FILE_MAX,
        }
    }

    /// With a secret.
    pub fn secret(mut self, id: &str, value: &str) -> Self {
        self.secrets.insert(id.to_owned(), SecretSource::Env(value.to_owned()));
        self
    }

    /// A build of its own on the store.
    pub fn remotes(&self) -> Remotes {
        let limits = Limits {
            idle: Duration::from_millis(500),
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(20),
            patience: Duration::from_millis(200),
            short_patience: Duration::from_millis(50),
            ..Limits::default()
        };
        let registry = Registry::new(RegistryOptions { limits, ..RegistryOptions::default() }).unwrap();
        let events = Arc::clone(&self.events);
        Remotes::new(RemoteOptions {
            retry: self.retry,
            fetcher: Fetcher::new(Arc::clone(&self.store), registry),
            secrets: Secrets::new(self.secrets.clone()).unwrap(),
            agents: self.agents.clone(),
            events: Arc::new(move |event| events.lock().unwrap().push(event)),
            cancel: Arc::clone(&self.cancel),
            pack_max: self.pack_max,
        })
    }
}

/// An address with nothing special about it.
pub fn address(remote: &str, reference: Option<&str>) -> GitAddress {
    GitAddress {
        remote: remote.to_owned(),
        reference: reference.map(str::to_owned),
        subdir: None,
        checksum: None,
        keep_git_dir: false,
        submodules: true,
        times: Default::default(),
        fetch_by_commit: false,
    }
}

/// A repository with a work tree.
pub struct Repo {
    pub path: PathBuf,
}

impl Repo {
    pub fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let repo = Self { path };
        repo.git(&["init", "-q", "-b", "main"]);
        repo
    }

    /// Runs git as somebody, at a time that never changes.
    pub fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "protocol.file.allow=always"])
            .args(arguments)
            .env("GIT_AUTHOR_DATE", "1600000000 +0000")
            .env("GIT_COMMITTER_DATE", "1600000001 +0000")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .current_dir(&self.path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Commits everything, and returns the hash.
    pub fn commit(&self) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "a"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

/// Everything that was fetched, as [`show`] tells it of a directory.
pub fn show_files(fetched: &Fetched) -> Vec<String> {
    let revision = match &fetched.files {
        FetchedFiles::Commit(revision) => revision,
        FetchedFiles::Checkout(directory) => return show(directory),
    };
    let listing = pick(revision, "").unwrap();
    let shown = |(path, node): (&Vec<u8>, &Node)| {
        let (path, mode) = (String::from_utf8(path.clone()).unwrap(), node.mode);
        match &node.kind {
            NodeKind::Directory => format!("{path}/ {mode:o}"),
            NodeKind::Symlink { target } => format!("{path} -> {}", String::from_utf8_lossy(target)),
            _ => {
                let mut text = String::new();
                listing.open(path.as_bytes()).unwrap().read_to_string(&mut text).unwrap();
                format!("{path} {mode:o} {text}")
            }
        }
    };
    let mut lines: Vec<String> = listing.nodes.iter().map(shown).collect();
    lines.sort();
    lines
}

/// Why not everything that was fetched can be listed.
pub fn refusal(fetched: &Fetched) -> StepFailure {
    pick(revision(fetched), "").unwrap_err().into()
}

/// What a COPY of a path would pick, with nothing known of it.
pub fn pick(revision: &Revision, path: &str) -> Result<Listing, ContextError> {
    let context = CommitContext::new(Arc::clone(revision.context()), None).unwrap();
    let selector = Selector { include: vec![path.to_owned()], ..Selector::default() };
    context.files(&selector, &Known::default(), &Cancel::default())
}

/// The files of a commit that is not checked out.
pub fn revision(fetched: &Fetched) -> &Revision {
    match &fetched.files {
        FetchedFiles::Commit(revision) => revision,
        FetchedFiles::Checkout(directory) => panic!("it is in {}", directory.display()),
    }
}

/// What a file of that name holds.
pub fn file(fetched: &Fetched, name: &str) -> String {
    let lines = show_files(fetched);
    let found = lines.iter().find_map(|line| line.strip_prefix(&format!("{name} 644 ")));
    found.unwrap_or_else(|| panic!("{name}: {lines:#?}")).to_owned()
}

/// The directory of a commit that was fetched with `.git`.
pub fn directory(fetched: &Fetched) -> &Path {
    match &fetched.files {
        FetchedFiles::Checkout(directory) => directory,
        FetchedFiles::Commit(_) => panic!("it is not checked out"),
    }
}

/// Everything below a directory: `path mode`, and what files hold and links lead to.
pub fn show(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let mut lines = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let shown = path.strip_prefix(directory).unwrap().display().to_string();
            let metadata = path.symlink_metadata().unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                lines.push(format!("{shown}/ {mode:o}"));
                todo.push(path);
            } else if metadata.is_symlink() {
                lines.push(format!("{shown} -> {}", fs::read_link(&path).unwrap().display()));
            } else {
                let bytes = fs::read(&path).unwrap();
                let text =
                    String::from_utf8(bytes.clone()).unwrap_or_else(|_| blake3::hash(&bytes).to_string());
                lines.push(format!("{shown} {mode:o} {text}"));
            }
        }
    }
    lines.sort();
    lines
}

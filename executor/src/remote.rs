//! Files that come from elsewhere: commits of git repositories, files behind URLs, archives on a pipe.
//!
//! Everything arrives below the store's `tmp/` and is renamed to a place named after what it is, so that a download that
//! breaks or a builder that is killed leaves nothing half. What comes is hostile until it is checked: nothing that
//! a remote, a repository or an archive says chooses a path of ours, an option of a program, or whom credentials go to.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci::{ContentDigest, Sha256Digest, fetch::Fetcher, store::TempDir};
use solver::{
    Cancel, Event, StepFailure,
    op::HttpFile,
    remote::{GitAddress, redacted},
};

use crate::{
    agents::Agents, error::in_store, git::Revision, once::OnceMap, retry::Retry, secrets::Secrets,
    snapshot::Events,
};

mod archive;
mod git;
mod http;

/// What is kept beside files that came from elsewhere, for who verifies the store.
pub(crate) mod kept {
    pub(crate) use super::{
        git::{META as CHECKOUT_META, META_VERSION as CHECKOUT_VERSION, Meta as CheckoutMeta},
        http::{RECORD_VERSION as DOWNLOAD_VERSION, Record as DownloadRecord},
    };
}
pub(crate) use http::place_of;

/// What [`Remotes`] works with.
#[derive(Clone)]
pub struct RemoteOptions {
    /// The store that things arrive in, and the HTTP client.
    pub fetcher: Fetcher,
    /// Where credentials of git and HTTP servers are looked for.
    pub secrets: Secrets,
    /// Who answers for us over SSH.
    pub agents: Agents,
    /// Takes progress.
    pub events: Events,
    /// Stops transfers.
    pub cancel: Arc<Cancel>,
    /// What becomes of what cannot be had at once.
    pub retry: Retry,
    /// The most bytes that one fetch may bring of a git repository: [`FILE_MAX`](oci::registry::FILE_MAX), as of a file.
    pub pack_max: u64,
}

/// Brings things from elsewhere. May be called from any number of threads; equal things are brought once.
pub struct Remotes {
    options: RemoteOptions,
    /// Stops what outlives the step that asks for it first: commits, of which every step may need something else.
    lasting: Arc<Cancel>,
    commits: Arc<OnceMap<GitAddress, Fetched>>,
    downloads: Arc<OnceMap<HttpFile, Download>>,
}

/// A commit of a repository elsewhere.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its files.
    pub files: FetchedFiles,
    /// Which commit it is, as 40 or 64 hex digits.
    pub commit: String,
    /// When it was committed, Unix seconds.
    pub time: i64,
}

/// Where the files of a commit are.
#[derive(Debug, Clone)]
pub enum FetchedFiles {
    /// In a repository of the store, as far as somebody has needed them; the others are fetched when somebody does.
    Commit(Revision),
    /// In a directory of the store, with `.git`: that of the whole, or the subdirectory that was asked for.
    Checkout(PathBuf),
}

/// A file that was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// A directory that holds nothing but the file, by its name.
    pub directory: PathBuf,
    /// What it is called.
    pub name: String,
    /// The SHA-256 of its bytes.
    pub digest: Sha256Digest,
    /// The same of our own kind.
    pub content: ContentDigest,
    /// `Last-Modified`, Unix seconds.
    pub modified: Option<i64>,
}

/// What a main context on a pipe or behind a URL turns out to be, as BuildKit tells them apart.
#[derive(Debug)]
pub enum Received {
    /// An archive, unpacked into this directory of the store, which lives as long as the value does.
    Files(UnpackedContext),
    /// No archive: a Dockerfile, with no context.
    Dockerfile(Vec<u8>),
}

/// The files of an archive, below the store's `tmp/` until it is dropped.
#[derive(Debug)]
pub struct UnpackedContext {
    directory: PathBuf,
    /// Removes them.
    _temp: TempDir,
}

impl UnpackedContext {
    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.directory
    }
}

impl Remotes {
    /// Nothing is contacted and no program started yet.
    pub fn new(options: RemoteOptions) -> Self {
        let lasting = Arc::clone(&options.cancel);
        Self { options, lasting, commits: Arc::default(), downloads: Arc::default() }
    }

    /// The same for somebody who stops waiting when `cancel` asks.
    pub(crate) fn until(&self, cancel: &Cancel) -> Self {
        Self {
            options: RemoteOptions { cancel: Arc::new(cancel.clone()), ..self.options.clone() },
            lasting: Arc::clone(&self.lasting),
            commits: Arc::clone(&self.commits),
            downloads: Arc::clone(&self.downloads),
        }
    }

    /// Brings something, called `name`, in as many attempts as it may take.
    fn trying<T>(&self, name: &str, bring: impl Fn() -> Result<T, StepFailure>) -> Result<T, StepFailure> {
        let RemoteOptions { retry, events, cancel, .. } = &self.options;
        retry.make(cancel, |text| events(Event::Warning(format!("{name}: {text}"))), bring)
    }

    /// The files of a commit, fetched where the store does not have them.
    ///
    /// # Errors
    /// There is no `git`, no such repository, reference or directory, or the commit is not the one that was asked for.
    pub fn git(&self, address: &GitAddress) -> Result<Fetched, StepFailure> {
        let name = redacted(&address.remote);
        let fetch = || self.trying(&name, || Ok(git::fetch(&self.options, &self.lasting, address)?));
        self.hinting(self.commits.get_or_make(address, fetch))
    }

    /// The file behind a URL, downloaded where the store does not have it or the server has another one by now.
    ///
    /// # Errors
    /// The server does not give it, or it is not the one that was asked for.
    pub fn http(&self, file: &HttpFile) -> Result<Download, StepFailure> {
        let name = redacted(&file.url);
        let download = || self.trying(&name, || Ok(http::download(&self.options, file)?));
        self.hinting(self.downloads.get_or_make(file, download))
    }

    /// A main context behind a URL: an archive, or a Dockerfile.
    ///
    /// # Errors
    /// As those of [`Remotes::http`] and [`Remotes::tar_context`].
    pub fn url_context(&self, url: &str) -> Result<Received, StepFailure> {
        let file = HttpFile { url: url.to_owned(), name: "context".to_owned(), checksum: None };
        let Download { directory, name, .. } = self.http(&file)?;
        self.hinting(archive::open(self.options.fetcher.store(), &directory, &name, &self.options.cancel))
    }

    /// A main context on a pipe: a tar archive (plain, gzip, bzip2, xz or zstd), or a Dockerfile.
    ///
    /// # Errors
    /// The archive is malformed, leads out of the context, or holds too much.
    pub fn tar_context(&self, stream: impl Read) -> Result<Received, StepFailure> {
        self.hinting(archive::receive(self.options.fetcher.store(), stream, &self.options.cancel))
    }

    /// All of this writes nowhere but into the store.
    fn hinting<T>(&self, done: Result<T, StepFailure>) -> Result<T, StepFailure> {
        done.map_err(|failure| in_store(failure, self.options.fetcher.store().root()))
    }
}

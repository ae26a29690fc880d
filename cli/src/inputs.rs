//! What a build reads before it is planned: the Dockerfile, the main context and the ignore files, wherever they are.
//!
//! This comes after the builder has entered its namespaces, since what arrives from elsewhere is put into the store; and
//! after everything in [`crate::request`], so that no mistake in a flag costs a download. Contexts that are not needed
//! for this, the named ones, are fetched by the executor when a step looks at them.

mod clean;
mod dockerfile;
mod place;
mod source;
mod stdin;
mod text;
mod waiting;

pub use clean::Clean;
pub use dockerfile::ignore_file_here;
pub use place::{ContextPlace, opened};
pub use stdin::Stdin;

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use executor::{
    ContextOrigin, ImageResolver, Retry, Secrets,
    agents::Agents,
    context::{CommitContext, ContextDirectory, ContextError, ContextModes, DEFAULT_IGNORE_FILE, IgnoreFile},
    git::{Commit, GitError},
    listing::ListError,
    remote::{Fetched, FetchedFiles, Received, RemoteOptions, Remotes, UnpackedContext},
};
use oci::{
    RemoteLayers,
    elsewhere::GivenUp,
    fetch::Fetcher,
    registry::{FILE_MAX, Hosts, Limits, Registry},
    store::{Store, TempDir},
};
use solver::{Cancel, Event, Resolver, StepFailure, remote::GitAddress};

use crate::{
    build::Events,
    client,
    failure::Failure,
    redact::redact,
    request::{DockerfilePlace, Places},
    spec::context::{ContextSpec, FilesSource, NamedSource},
};
use dockerfile::Found;
pub use source::Source;

/// What a build reads.
pub struct Inputs {
    /// What is built.
    pub dockerfile: Source,
    /// The main context.
    pub context: MainContext,
    /// The named contexts that hold files, by name.
    pub named: BTreeMap<String, ContextOrigin>,
    /// The Dockerfile and the ignore files, as far as they lie on this machine.
    pub read_here: Vec<PathBuf>,
    /// Whether the work tree is as the commit that is built: to be waited for before anything is run, written or sent.
    pub clean: Clean,
}

/// The files of the main context.
pub struct MainContext {
    /// Where they are.
    pub place: ContextPlace,
    /// The ignore file that applies to them.
    pub ignore: Option<IgnoreFile>,
    /// The commit that they are of.
    pub commit: Option<BuiltFrom>,
    /// What becomes of their modes.
    modes: ContextModes,
    /// Keeps a directory of the store that belongs to this build alone.
    _held: Option<Held>,
}

/// A commit that is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltFrom {
    /// Its hash, in hexadecimal digits.
    pub sha: String,
    /// When it was committed, Unix seconds.
    pub time: i64,
    /// Whether files of a work tree are laid over it.
    pub is_dirty: bool,
}

/// Directories that go when the build ends.
enum Held {
    Unpacked(UnpackedContext),
    Empty(TempDir),
}

impl Held {
    fn path(&self) -> &Path {
        match self {
            Self::Unpacked(unpacked) => unpacked.path(),
            Self::Empty(directory) => directory.path(),
        }
    }
}

impl MainContext {
    /// As the executor takes it.
    ///
    /// # Errors
    /// A pattern of the ignore file is malformed.
    pub fn origin(&self) -> Result<ContextOrigin, ContextError> {
        Ok(match &self.place {
            ContextPlace::Directory(path) => ContextOrigin::Directory(self.directory(path)?),
            ContextPlace::Commit(commit) => {
                ContextOrigin::Commit(CommitContext::new(Arc::clone(commit.context()), self.ignore.clone())?)
            }
        })
    }

    fn directory(&self, path: &Path) -> Result<ContextDirectory, ContextError> {
        ContextDirectory::new(path.to_owned(), self.ignore.clone(), self.modes)
    }
}

/// Why the inputs cannot be read. All of these are the command line's to mend.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A file that is named, or that must be there, cannot be read.
    #[error("cannot read {what} {name}")]
    Read {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        name: String,
        /// What to do about it.
        hint: Option<String>,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Two Dockerfiles.
    #[error("{0} is a Dockerfile itself: leave out -f, or give a tar archive")]
    TwoDockerfiles(String),
    /// A Dockerfile where files were expected.
    #[error("{0} is no tar archive, so there is nothing to list")]
    NoArchive(String),
}

impl InputError {
    /// What could not be brought from elsewhere, if that is why.
    pub fn elsewhere(&self) -> Option<&StepFailure> {
        let Self::Read { source, .. } = self else { return None };
        match source.get_ref()?.downcast_ref()? {
            ListError::Git(error) => match &**error {
                GitError::Elsewhere(failure) => Some(failure),
                _ => None,
            },
            _ => None,
        }
    }

    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Read { hint, .. } => {
                hint.as_deref().or_else(|| self.elsewhere().and_then(|failure| failure.hint.as_deref()))
            }
            Self::TwoDockerfiles(_) | Self::NoArchive(_) => None,
        }
    }
}

/// Where [`Outside`] keeps things, and whom it trusts.
#[derive(Debug, Clone)]
pub struct OutsideOptions {
    /// The store's directory.
    pub root: PathBuf,
    /// How registries are reached.
    pub hosts: Hosts,
    /// How long registries are waited for.
    pub limits: Limits,
    /// Credentials of servers.
    pub secrets: Secrets,
    /// Credentials of git servers.
    pub agents: Agents,
    /// What becomes of what cannot be had at once.
    pub retry: Retry,
}

/// The store and what fills it from elsewhere; opened when it is first needed, so that a mistake in a Dockerfile leaves
/// no store behind.
pub struct Outside {
    options: OutsideOptions,
    events: Events,
    cancel: Arc<Cancel>,
    registry: OnceCell<Registry>,
    fetcher: OnceCell<Fetcher>,
    elsewhere: RemoteLayers,
}

impl Outside {
    /// Nothing is opened yet.
    pub fn new(options: OutsideOptions, events: Events, cancel: Arc<Cancel>) -> Self {
        let (registry, fetcher) = (OnceCell::new(), OnceCell::new());
        let tell = Arc::clone(&events);
        let elsewhere = RemoteLayers::telling(move |GivenUp { cache, why }| {
            let text = format!("no more layers are read of the cache {cache}, and their steps run: {why}");
            tell(Event::Warning(redact(&text).into_owned()));
        });
        Self { options, events, cancel, registry, fetcher, elsewhere }
    }

    /// The registry client.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn registry(&self) -> Result<Registry, Failure> {
        if let Some(registry) = self.registry.get() {
            return Ok(registry.clone());
        }
        let (hosts, limits) = (self.options.hosts.clone(), self.options.limits.clone());
        let registry = client::with_events(hosts, limits, &self.events)?;
        Ok(self.registry.get_or_init(|| registry).clone())
    }

    /// The registry client that gives up when the build is stopped.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn asking(&self) -> Result<Registry, Failure> {
        let cancel = Arc::clone(&self.cancel);
        Ok(self.registry()?.until(move || cancel.is_requested()))
    }

    /// Finds base images, and says so where that takes long. What it learns is kept if the store is open.
    ///
    /// # Errors
    /// The registry client cannot be made.
    pub fn resolver(&self) -> Result<impl Resolver + '_, Failure> {
        let registry = self.asking()?;
        let resolver = match self.fetcher.get() {
            Some(fetcher) => ImageResolver::with_store(registry, Arc::clone(fetcher.store())),
            None => ImageResolver::new(registry),
        };
        Ok(self.announcing(resolver))
    }

    /// The same of one that is there.
    pub fn announcing(&self, resolver: ImageResolver) -> impl Resolver + '_ {
        waiting::Announcing { resolver, events: &self.events }
    }

    /// The store with the registry client.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub fn fetcher(&self) -> Result<&Fetcher, Failure> {
        if let Some(fetcher) = self.fetcher.get() {
            return Ok(fetcher);
        }
        let store = Arc::new(Store::open(&self.options.root)?);
        let fetcher = Fetcher::new(store, self.asking()?).with_elsewhere(self.elsewhere.clone());
        Ok(self.fetcher.get_or_init(|| fetcher))
    }

    /// The built layers that remote caches have, as far as these were asked. The store need not be open for that.
    pub fn elsewhere(&self) -> &RemoteLayers {
        &self.elsewhere
    }

    /// The store with the registry client, if somebody has opened it.
    pub fn opened(&self) -> Option<&Fetcher> {
        self.fetcher.get()
    }

    /// The store if it is open, or is there to be opened: a build that failed before it needed one makes none.
    pub fn store(&self) -> Option<Arc<Store>> {
        if let Some(fetcher) = self.fetcher.get() {
            return Some(Arc::clone(fetcher.store()));
        }
        let is_there = self.options.root.join("format").exists();
        is_there.then(|| Store::open(&self.options.root)).and_then(Result::ok).map(Arc::new)
    }

    fn remotes(&self) -> Result<Remotes, Failure> {
        Ok(Remotes::new(RemoteOptions {
            fetcher: self.fetcher()?.clone(),
            secrets: self.options.secrets.clone(),
            agents: self.options.agents.clone(),
            events: Arc::clone(&self.events),
            cancel: Arc::clone(&self.cancel),
            retry: self.options.retry,
            pack_max: FILE_MAX,
        }))
    }
}

/// Reads everything; what lies on this machine comes first.
///
/// # Errors
/// Something is not there, is no text, or cannot be fetched.
pub fn load(places: &Places, outside: &Outside, stdin: &mut dyn Read) -> Result<Inputs, Failure> {
    let clean = Clean::begin(places, &outside.cancel)?;
    let read = read(places, outside, stdin, &clean);
    if read.is_err() { clean.unless_refused(read) } else { read }
}

fn read(places: &Places, outside: &Outside, stdin: &mut dyn Read, clean: &Clean) -> Result<Inputs, Failure> {
    let named = named(places)?;
    let found = dockerfile::outside_of_context(places, outside, stdin)?;
    let arrived = main_context(places, outside, stdin)?;
    let found = match (found, &arrived.dockerfile) {
        (Some(found), None) => found,
        (None, None) => dockerfile::in_context(&places.dockerfile, &arrived)?,
        (None, Some(bytes)) if places.dockerfile == DockerfilePlace::Default => {
            Found::alone(bytes.clone(), &arrived.name)?
        }
        (_, Some(_)) => return Err(InputError::TwoDockerfiles(arrived.name).into()),
    };
    let ignore = found.ignore_file(&arrived)?;
    let read_here = found.read_here(&arrived).into_iter().chain(named_ignore_files(places)).collect();
    let (context, clean) = (arrived.context(ignore, places), clean.clone());
    Ok(Inputs { dockerfile: found.source, context, named, read_here, clean })
}

/// The main context by itself, with or without a Dockerfile in it.
///
/// # Errors
/// It cannot be had, or is a Dockerfile and no context.
pub fn context(places: &Places, outside: &Outside, stdin: &mut dyn Read) -> Result<MainContext, Failure> {
    let arrived = main_context(places, outside, stdin)?;
    if arrived.dockerfile.is_some() {
        return Err(InputError::NoArchive(arrived.name).into());
    }
    let ignore = dockerfile::ignore_file_without(&places.dockerfile, &arrived)?;
    Ok(arrived.context(ignore, places))
}

/// A Dockerfile of this machine, by itself; `-` is standard input.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn read_dockerfile(path: &Path, stdin: &mut dyn Read) -> Result<Source, InputError> {
    dockerfile::alone(path, stdin)
}

/// The main context, here by now.
struct Arrived {
    /// Where its files are.
    place: ContextPlace,
    /// How messages call it.
    name: String,
    /// Whether its files were put there by somebody else, whose links must not lead out of it.
    foreign: bool,
    /// The Dockerfile that came instead of files.
    dockerfile: Option<Vec<u8>>,
    /// The commit that it is.
    commit: Option<BuiltFrom>,
    held: Option<Held>,
}

impl Arrived {
    fn foreign(directory: PathBuf, name: String) -> Self {
        let place = ContextPlace::Directory(directory);
        Self { place, name, foreign: true, dockerfile: None, commit: None, held: None }
    }

    fn context(self, ignore: Option<IgnoreFile>, places: &Places) -> MainContext {
        let Self { place, commit, held, .. } = self;
        MainContext { place, ignore, commit, modes: places.modes, _held: held }
    }
}

fn main_context(places: &Places, outside: &Outside, stdin: &mut dyn Read) -> Result<Arrived, Failure> {
    match &places.context {
        ContextSpec::Files(FilesSource::Directory(path)) => {
            let name = path.display().to_string();
            Ok(Arrived { foreign: false, ..Arrived::foreign(path.clone(), name) })
        }
        ContextSpec::Commit(commit) => {
            let opened = places.commit.clone().expect("a commit is opened where it is asked for");
            let Commit { id, time, .. } = opened.commit();
            let built = BuiltFrom { sha: id.to_string(), time, is_dirty: opened.is_dirty() };
            let (place, name) = (ContextPlace::Commit(opened), commit.revision.clone());
            Ok(Arrived { place, name, foreign: true, dockerfile: None, commit: Some(built), held: None })
        }
        ContextSpec::Files(FilesSource::Git(address)) => {
            let remotes = outside.remotes()?;
            let name = format!("[internal] load git source {}", git_name(address));
            let fetched = waiting::announced(&outside.events, &name, || remotes.git(address));
            let Fetched { files, commit: sha, time } = fetched.map_err(Failure::remote)?;
            let place = match files {
                FetchedFiles::Commit(revision) => ContextPlace::Commit(revision),
                FetchedFiles::Checkout(directory) => ContextPlace::Directory(directory),
            };
            let (name, commit) = (git_name(address), Some(BuiltFrom { sha, time, is_dirty: false }));
            Ok(Arrived { place, name, foreign: true, dockerfile: None, commit, held: None })
        }
        ContextSpec::Files(FilesSource::Url(url)) => {
            let received = outside.remotes()?.url_context(url).map_err(Failure::remote)?;
            arrived(received, url.clone(), outside)
        }
        ContextSpec::Stdin => {
            let received = outside.remotes()?.tar_context(stdin).map_err(Failure::remote)?;
            arrived(received, dockerfile::STDIN.to_owned(), outside)
        }
    }
}

/// An archive's files, or nothing but a Dockerfile.
fn arrived(received: Received, name: String, outside: &Outside) -> Result<Arrived, Failure> {
    let (held, dockerfile) = match received {
        Received::Files(unpacked) => (Held::Unpacked(unpacked), None),
        Received::Dockerfile(bytes) => {
            (Held::Empty(outside.fetcher()?.store().temp_dir("empty-context")?), Some(bytes))
        }
    };
    let arrived = Arrived::foreign(held.path().to_owned(), name);
    Ok(Arrived { dockerfile, held: Some(held), ..arrived })
}

/// An address as people write it: `REMOTE#REF:SUBDIR`.
pub fn git_name(address: &GitAddress) -> String {
    let GitAddress { remote, reference, subdir, .. } = address;
    match (reference, subdir) {
        (None, None) => remote.clone(),
        (reference, None) => format!("{remote}#{}", reference.as_deref().unwrap_or_default()),
        (reference, Some(subdir)) => {
            format!("{remote}#{}:{subdir}", reference.as_deref().unwrap_or_default())
        }
    }
}

/// Where the executor finds the named contexts that hold files.
fn named(places: &Places) -> Result<BTreeMap<String, ContextOrigin>, Failure> {
    let mut origins = BTreeMap::new();
    for (name, source) in &places.named {
        let NamedSource::Files(source) = source else { continue };
        let origin = match source {
            FilesSource::Directory(path) => ContextOrigin::Directory(named_directory(path, places.modes)?),
            FilesSource::Git(address) => ContextOrigin::Git(address.clone()),
            FilesSource::Url(url) => ContextOrigin::Url(url.clone()),
        };
        origins.insert(name.clone(), origin);
    }
    Ok(origins)
}

/// The ignore files of the named directories.
fn named_ignore_files(places: &Places) -> impl Iterator<Item = PathBuf> {
    let directories = places.named.values().filter_map(|source| match source {
        NamedSource::Files(FilesSource::Directory(path)) => Some(path.join(DEFAULT_IGNORE_FILE)),
        _ => None,
    });
    directories.filter(|path| path.exists())
}

fn named_directory(path: &Path, modes: ContextModes) -> Result<ContextDirectory, Failure> {
    Ok(ContextDirectory::new(path.to_owned(), ignore_file_of_named(path)?, modes)?)
}

/// The ignore file of a named directory.
///
/// # Errors
/// It cannot be read.
pub fn ignore_file_of_named(path: &Path) -> Result<Option<IgnoreFile>, InputError> {
    text::first_ignore_file(path, [path.join(DEFAULT_IGNORE_FILE)])
}

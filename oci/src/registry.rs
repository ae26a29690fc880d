//! The registry client (OCI distribution-spec 1.1): blocking functions over one small runtime.
//!
//! - Every body that has a digest is hashed before anything is made of it; manifests and configs are at most 4 MiB.
//! - Blobs stream in both directions with bounded memory.
//! - Credentials are bound to scheme, host and port, and shown to token services of the same owner only.
//! - What servers recover from is tried again; a pause that a registry asks for holds for all who talk to it.
//! - Every wait has a deadline ([`Limits`]).
//!
//! How: [`http`] is one authorised exchange, [`hosts`] says where to look and [`scheme`] by which protocol, [`mirrors`]
//! comes before the registry itself, [`auth`] answers challenges from [`credentials`], [`login`] tries new ones, [`retry`]
//! says when to try again, [`tls`] whom to trust; [`manifest`], [`pull`], [`push`] and [`tags`] are the calls of the
//! protocol. [`download`] is for files that have nothing to do with a registry.

mod address;
mod auth;
mod challenge;
mod clock;
mod credentials;
mod distrust;
mod download;
mod error;
mod flow;
mod hosts;
mod http;
mod login;
mod manifest;
mod mirrors;
mod pull;
mod push;
mod retry;
mod scheme;
mod tags;
mod tls;

use std::{fmt, future::Future, io::Read, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

pub(crate) use self::error::find;
use self::{
    auth::{Access, Auth, Wish},
    credentials::CredentialStore,
    hosts::{Sources, Wanted},
    http::{Inner, first},
    tls::Clients,
};
pub use self::{
    credentials::{CredentialError, Keeper, Login, LoginFile, Proof, Secret},
    download::{Downloaded, FILE_MAX, FileRequest, Watch},
    error::RegistryError,
    hosts::{HostOptions, Hosts, HostsError, Identity, Location},
    login::{KeptLogin, LoginName, Welcome, verify, verify_kept},
    manifest::Taken,
    mirrors::{Note, Notes},
    push::{OnProgress, OpenBlob},
    retry::Limits,
};
use crate::{
    descriptor::{Descriptor, MediaType},
    digest::Sha256Digest,
    reference::Reference,
};

/// How to talk to registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// `host` or `host:port` of registries that may be spoken to with an unverified certificate, or by plain HTTP.
    pub insecure: Vec<String>,
    /// PEM files of further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// What holds for single registries.
    pub hosts: Hosts,
    /// Credential files (Docker's `config.json` format), looked at before the usual places. They must exist.
    pub auth_files: Vec<PathBuf>,
    /// Hosts of token services that may see credentials though they are not below the registry's own domain.
    pub trusted_realms: Vec<String>,
    /// `User-Agent`; empty means `layerwright/VERSION`.
    pub user_agent: String,
    /// Deadlines and pauses.
    pub limits: Limits,
    /// Takes what people may want to know of a pull.
    pub notes: Notes,
}

/// A manifest as the registry gave it, verified.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// What they are: header and body agree.
    pub media_type: MediaType,
    /// Their SHA-256.
    pub digest: Sha256Digest,
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// The client: cheap to clone, to be called from any number of threads that are not themselves asynchronous.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    runtime: Arc<Runtime>,
    stop: Stop,
    way: Way,
}

/// Where what is pulled comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From mirrors, and from wherever settings say that a registry is.
    Mirrored,
    /// From the registry that is named.
    Direct,
}

/// How often those who wait look whether they should go on.
const CANCEL_PAUSE: Duration = Duration::from_millis(50);

/// Whether a client should give up what it waits for.
#[derive(Clone, Default)]
struct Stop(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Stop(asked)" } else { "Stop(never)" })
    }
}

impl Stop {
    /// Ends when it is time to give up.
    async fn requested(&self) {
        match &self.0 {
            Some(is_requested) => wait_until(&**is_requested).await,
            None => std::future::pending().await,
        }
    }
}

/// Ends when this says so.
async fn wait_until(is_requested: &(dyn Fn() -> bool + Sync)) {
    while !is_requested() {
        tokio::time::sleep(CANCEL_PAUSE).await;
    }
}

impl Registry {
    /// Sets up the client; nothing is contacted and no credential file read.
    ///
    /// # Errors
    /// [`RegistryError::Setup`] when its threads cannot be started.
    pub fn new(options: RegistryOptions) -> Result<Registry, RegistryError> {
        let named = [options.hosts.auth_files(), &options.auth_files].concat();
        let credentials = CredentialStore::new(&named, &|name| std::env::var_os(name));
        Self::with_credentials(options, credentials, Wish::Access)
    }

    fn with_credentials(
        options: RegistryOptions,
        credentials: CredentialStore,
        wish: Wish,
    ) -> Result<Registry, RegistryError> {
        let RegistryOptions { insecure, ca_files, hosts, trusted_realms, user_agent, limits, notes, .. } =
            options;
        let trusted_realms = [hosts.trusted_realms(), &trusted_realms].concat();
        let auth = Auth::new(credentials, trusted_realms, wish);
        let default_agent = || concat!("layerwright/", env!("CARGO_PKG_VERSION")).to_owned();
        let user_agent = Some(user_agent).filter(|agent| !agent.is_empty()).unwrap_or_else(default_agent);
        let clients = Clients::new(insecure, ca_files, hosts, user_agent, limits.clone());
        let inner = Arc::new(Inner::new(clients, auth, limits, notes));
        Ok(Self { inner, runtime: Arc::new(Runtime::start()?), stop: Stop::default(), way: Way::Mirrored })
    }

    /// The same client, all of whose waiting ends with [`RegistryError::Cancelled`] once this says so, however long the
    /// registry would still have.
    pub fn until(&self, is_cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Registry {
        Self { stop: Stop(Some(Arc::new(is_cancelled))), ..self.clone() }
    }

    /// The same client for what has been pushed: it asks the registry that is named, and no mirror of it.
    pub fn direct(&self) -> Registry {
        Self { way: Way::Direct, ..self.clone() }
    }

    /// The same client for what need not be had: what fails is tried again for seconds, not for minutes.
    pub fn briefly(&self) -> Registry {
        Self { inner: Arc::new(self.inner.with_limits(self.inner.limits.brief())), ..self.clone() }
    }

    /// Gets a manifest or index.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when it does not exist, [`RegistryError::Digest`] and [`RegistryError::Document`]
    /// when what came is not it.
    pub fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        self.pulling(reference, async |place| manifest::get(&self.inner, place).await)
    }

    /// What a tag or digest points at; `None` when it does not exist.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Descriptor>, RegistryError> {
        let missing = |place: &Reference| RegistryError::NotFound { name: place.to_string(), reason: None };
        let ask =
            async |place: &Reference| manifest::head(&self.inner, place).await?.ok_or_else(|| missing(place));
        match self.pulling(reference, ask) {
            Err(RegistryError::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Streams a blob of the reference's repository. The reader verifies: where size or digest are wrong it fails with
    /// [`RegistryError::Damaged`] instead of handing out the last bytes. A break is mended behind its back.
    ///
    /// # Errors
    /// [`RegistryError`] when the transfer cannot begin; later ones come inside the reader's [`std::io::Error`].
    pub fn pull_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn Read + Send>, RegistryError> {
        let sources = match self.way {
            Way::Mirrored => self.inner.clients.hosts.sources(reference, Wanted::Blob)?,
            Way::Direct => Sources { mirrors: Vec::new(), own: reference.clone() },
        };
        pull::pull_blob(&self.runtime, &self.inner, &self.stop, sources, descriptor)
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn has_blob(&self, reference: &Reference, digest: &Sha256Digest) -> Result<bool, RegistryError> {
        let access = Access::pull(&reference.registry, &reference.repository);
        self.retrying(reference, async || push::has_blob(&self.inner, &access, digest).await)
    }

    /// Makes sure the repository has a blob: it is there, or it is mounted from `mount_from` (a repository of the same
    /// registry, any other is passed over), or it is sent. `open` begins the blob anew each time it has to be sent;
    /// `progress` is told of bytes as they go, those that are sent twice included.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Source`] when the blob could not be read.
    pub fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        mount_from: Option<&Reference>,
        open: OpenBlob<'_>,
        progress: OnProgress<'_>,
    ) -> Result<Pushed, RegistryError> {
        self.inner.clients.hosts.permit(reference)?;
        let client = push::Client { runtime: &self.runtime, inner: &self.inner, stop: &self.stop };
        push::push_blob(client, reference, descriptor, mount_from, open, progress)
    }

    /// Checks that we may push to the repository, by opening an upload session and ending it.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] when we may not.
    pub fn check_push(&self, reference: &Reference) -> Result<(), RegistryError> {
        let access = Access::push(&reference.registry, &reference.repository);
        self.retrying(reference, async || push::check(&self.inner, &access).await)
    }

    /// Puts a manifest under the reference's tag or, without one, under its digest. All that it names must be there.
    ///
    /// # Errors
    /// [`RegistryError`], for which [`RegistryError::is_blob_unknown`] says whether the registry has lost a blob.
    pub fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &MediaType,
        bytes: &[u8],
    ) -> Result<Taken, RegistryError> {
        let bytes = Bytes::copy_from_slice(bytes);
        self.retrying(reference, async || manifest::put(&self.inner, reference, media_type, &bytes).await)
    }

    /// All tags of the reference's repository, sorted.
    ///
    /// # Errors
    /// [`RegistryError`]; of a repository that the registry does not know [`RegistryError::NotFound`].
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        self.retrying(reference, async || tags::list(&self.inner, reference).await)
    }

    /// Takes a manifest out of the reference's repository, and with it the tags that stand for it; `false` where there was
    /// none. Blobs go when the registry collects its garbage.
    ///
    /// # Errors
    /// [`RegistryError`], for which [`RegistryError::is_unsupported`] says whether the registry deletes nothing.
    pub fn delete(&self, reference: &Reference, digest: &Sha256Digest) -> Result<bool, RegistryError> {
        self.retrying(reference, async || tags::delete(&self.inner, reference, digest).await)
    }

    /// Asks for a document wherever it may be.
    fn pulling<T>(
        &self,
        reference: &Reference,
        ask: impl AsyncFn(&Reference) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        match self.way {
            Way::Mirrored => self.answered(self.inner.pulling(reference, Wanted::Manifest, ask)),
            Way::Direct => self.retrying(reference, async || ask(reference).await),
        }
    }

    /// Asks the registry that is named.
    fn retrying<T>(
        &self,
        reference: &Reference,
        operation: impl AsyncFn() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.inner.clients.hosts.permit(reference)?;
        self.answered(self.inner.retrying(&reference.registry, operation))
    }

    fn answered<T>(&self, asked: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let answered = async { first(asked, self.stop.requested()).await };
        self.runtime.block_on(answered).unwrap_or(Err(RegistryError::Cancelled))
    }
}

/// The threads that wait on sockets. Ends without waiting for what is still under way.
#[derive(Debug)]
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn start() -> Result<Self, RegistryError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(2).thread_name("registry").enable_all().build();
        let runtime =
            built.map_err(|source| RegistryError::Setup { what: "threads", source: source.into() })?;
        Ok(Self(Some(runtime)))
    }

    fn get(&self) -> &tokio::runtime::Runtime {
        self.0.as_ref().expect("it is taken by drop only")
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.get().block_on(future)
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.get().spawn(future));
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

//! The registry client (OCI distribution-spec 1.1).

use std::{
    io::{self, Read},
    path::PathBuf,
};

use crate::{
    descriptor::{Descriptor, MediaType},
    digest::Sha256Digest,
    reference::Reference,
};

/// Why the registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The client could not be set up.
    #[error("cannot set up the registry client: {0}")]
    Setup(String),
}

/// How to talk to registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// `host[:port]` of registries that may be spoken to by plain HTTP, or with an unverified certificate.
    pub insecure: Vec<String>,
    /// PEM files of further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// Credential files (Docker's `config.json` format), looked at before the usual places.
    pub auth_files: Vec<PathBuf>,
    /// `User-Agent`; empty means `layerwright/VERSION`.
    pub user_agent: String,
}

/// A manifest as the registry gave it, verified.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// What they are.
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

/// The client: cheap to clone, blocking, to be called from any number of threads.
#[derive(Debug, Clone)]
pub struct Registry {}

impl Registry {
    /// Sets up the client; no connection is made.
    pub fn new(_options: RegistryOptions) -> Result<Registry, RegistryError> {
        Ok(Self {})
    }
    /// Gets a manifest or index.
    pub fn manifest(&self, _reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        Err(pending())
    }
    /// What a tag or digest points at; `None` when it does not exist.
    pub fn resolve(&self, _reference: &Reference) -> Result<Option<Descriptor>, RegistryError> {
        Err(pending())
    }
    /// Streams a blob; the reader fails at the end when size or digest differ.
    pub fn pull_blob(
        &self,
        _reference: &Reference,
        _descriptor: &Descriptor,
    ) -> Result<Box<dyn Read + Send>, RegistryError> {
        Err(pending())
    }
    /// Whether the repository has a blob.
    pub fn has_blob(&self, _reference: &Reference, _digest: &Sha256Digest) -> Result<bool, RegistryError> {
        Err(pending())
    }
    /// Makes sure the repository has a blob. `open` may be called several times; `progress` is told of the bytes
    /// sent since it was last called.
    pub fn push_blob(
        &self,
        _reference: &Reference,
        _descriptor: &Descriptor,
        _mount_from: Option<&Reference>,
        _open: &(dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync),
        _progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Pushed, RegistryError> {
        Err(pending())
    }
    /// Checks that we may push to the repository.
    pub fn check_push(&self, _reference: &Reference) -> Result<(), RegistryError> {
        Err(pending())
    }
    /// Puts a manifest under the reference's tag or, without one, under its digest.
    pub fn push_manifest(
        &self,
        _reference: &Reference,
        _media_type: &MediaType,
        _bytes: &[u8],
    ) -> Result<Sha256Digest, RegistryError> {
        Err(pending())
    }
}

fn pending() -> RegistryError {
    RegistryError::Setup("not there yet".to_owned())
}

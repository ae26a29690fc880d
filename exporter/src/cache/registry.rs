//! A cache in a repository of a registry: artifacts are manifests under tags, blobs are blobs.
//!
//! What lies there need not be had, so nobody is patient with it: what fails is tried again for a second or two, and every
//! look-up has a deadline. No mirror is asked: it would not have what was written a moment ago. One client is shared with
//! the rest of the build, and with it connections, tokens, and what has been found out of the registry.

use std::{
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use oci::{
    BlobOrigin, Descriptor, Reference, Registry,
    registry::{FetchedManifest, Pushed, RegistryError},
};
use solver::Cancel;

use super::{
    announcement::Announcement,
    artifact::{self, ArtifactError, Parsed},
    storage::{Artifact, ArtifactKind, Image, Named, Storage, StorageError, StorageErrorKind},
};
use crate::parallel::in_parallel;

/// How long a look-up may take, new attempts and a token included: a registry that takes ten seconds for each answer is still
/// heard.
const DEADLINE: Duration = Duration::from_secs(45);

/// A cache in a repository.
#[derive(Debug, Clone)]
pub struct RegistryStorage {
    registry: Registry,
    repository: Reference,
    name: String,
}

impl RegistryStorage {
    /// In the repository of `reference`, whose tag means nothing here. Nothing is contacted.
    pub fn new(registry: &Registry, reference: &Reference) -> Self {
        let repository = Reference { tag: None, digest: None, ..reference.clone() };
        let name = repository.to_string();
        Self { registry: registry.direct().briefly(), repository, name }
    }

    pub(super) fn repository(&self) -> &Reference {
        &self.repository
    }

    /// A client that gives up when it is asked to, or at the deadline.
    pub(super) fn asking(&self, cancel: &Cancel) -> Registry {
        let (cancel, begun) = (cancel.clone(), Instant::now());
        self.registry.until(move || cancel.is_requested() || begun.elapsed() > DEADLINE)
    }

    /// A client that gives up when it is asked to.
    pub(super) fn bringing(&self, cancel: &Cancel) -> Registry {
        let cancel = cancel.clone();
        self.registry.until(move || cancel.is_requested())
    }

    /// What a tag or a digest is called in the repository.
    pub(super) fn named(&self, name: &str) -> Reference {
        match artifact::as_digest(name) {
            Some(digest) => self.repository.with_digest(digest),
            None => Reference { tag: Some(name.to_owned()), ..self.repository.clone() },
        }
    }

    fn read(&self, registry: &Registry, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let read = registry.pull_blob(&self.repository, blob)?.take(blob.size).read_to_end(&mut bytes);
        match read {
            Ok(_) => Ok(bytes),
            Err(source) => Err(RegistryError::Source { digest: blob.digest, source }),
        }
    }
}

impl Storage for RegistryStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn origin(&self) -> BlobOrigin {
        BlobOrigin::Registry(self.repository.clone())
    }

    fn get(&self, name: &str, cancel: &Cancel) -> Result<Option<Named>, StorageError> {
        let fetched = self.fetch(name, cancel)?;
        fetched.map(|fetched| self.understand(name, &fetched, cancel)).transpose()
    }

    fn put_document(&self, kind: ArtifactKind, document: &[u8], cancel: &Cancel) -> Result<(), StorageError> {
        let bytes: Arc<[u8]> = document.into();
        let open = || Ok(Box::new(std::io::Cursor::new(Arc::clone(&bytes))) as Box<dyn Read + Send>);
        let config = artifact::config(kind, document);
        let put = self.bringing(cancel).push_blob(&self.repository, &config, None, &open, &|_| {});
        put.map(drop).map_err(|error| self.not_written(error, cancel))
    }

    fn put_names(&self, names: &[&str], artifact: &Artifact, cancel: &Cancel) -> Result<(), StorageError> {
        let (registry, manifest) = (self.bringing(cancel), artifact::manifest(artifact));
        in_parallel(names, names.len(), |name| {
            let put = registry.push_manifest(&self.named(name), &oci::MediaType::OciManifest, &manifest);
            put.map(drop).map_err(|error| self.not_written(error, cancel))
        })
    }

    fn announce(&self, name: &str, said: &Announcement, cancel: &Cancel) -> Result<(), StorageError> {
        let manifest = artifact::announcement(said);
        let put =
            self.asking(cancel).push_manifest(&self.named(name), &oci::MediaType::OciManifest, &manifest);
        put.map(drop).map_err(|error| self.not_written(error, cancel))
    }

    fn put_blob(
        &self,
        blob: &Descriptor,
        from: Option<&Reference>,
        open: &(dyn Fn() -> std::io::Result<Box<dyn Read + Send>> + Sync),
        cancel: &Cancel,
    ) -> Result<bool, StorageError> {
        let pushed = self.bringing(cancel).push_blob(&self.repository, blob, from, open, &|_| {});
        let failed =
            |error| self.failed(format!("cannot write blob {} to {}", blob.digest, self.name), error, cancel);
        pushed.map(|pushed| pushed == Pushed::Uploaded).map_err(failed)
    }
}

impl RegistryStorage {
    /// The manifest that a name stands for.
    pub(super) fn fetch(&self, name: &str, cancel: &Cancel) -> Result<Option<FetchedManifest>, StorageError> {
        let reference = self.named(name);
        match self.asking(cancel).manifest(&reference) {
            Err(error) if error.is_not_found() => Ok(None),
            fetched => fetched
                .map(Some)
                .map_err(|error| self.failed(format!("cannot read {reference}"), error, cancel)),
        }
    }

    /// What a manifest says, and the document that it may name.
    pub(super) fn understand(
        &self,
        name: &str,
        fetched: &FetchedManifest,
        cancel: &Cancel,
    ) -> Result<Named, StorageError> {
        let what = || format!("cannot read {}", self.named(name));
        let failed = |error: RegistryError| self.failed(what(), error, cancel);
        let damaged = |error: ArtifactError| StorageError {
            kind: StorageErrorKind::Damaged,
            what: what(),
            source: Some(error.into()),
        };
        let read = |blob: &Descriptor| self.read(&self.asking(cancel), blob).map_err(failed);
        Ok(match artifact::parse(&fetched.media_type, &fetched.bytes).map_err(damaged)? {
            Parsed::Whole(artifact) => Named::Artifact(artifact),
            Parsed::Apart(config, apart) => {
                Named::Artifact(apart.with(&config, read(&config)?).map_err(damaged)?)
            }
            Parsed::Announcement(said) => Named::Announcement(said),
            Parsed::Image(manifest) => {
                let config = read(&manifest.config)?;
                Named::Image(Box::new(Image { manifest, config }))
            }
            Parsed::Index(manifests) => Named::Index(manifests),
        })
    }

    fn not_written(&self, error: RegistryError, cancel: &Cancel) -> StorageError {
        self.failed(format!("cannot write to {}", self.name), error, cancel)
    }

    pub(super) fn failed(&self, what: String, error: RegistryError, cancel: &Cancel) -> StorageError {
        let is_late = matches!(error, RegistryError::Cancelled) && !cancel.is_requested();
        let what = if is_late { format!("{what} within {} s", DEADLINE.as_secs()) } else { what };
        let kind = match &error {
            RegistryError::Cancelled if !is_late => StorageErrorKind::Cancelled,
            RegistryError::Denied { .. } => StorageErrorKind::Denied,
            RegistryError::Document { .. } | RegistryError::Digest { .. } | RegistryError::Damaged { .. } => {
                StorageErrorKind::Damaged
            }
            _ => StorageErrorKind::Failed,
        };
        StorageError { kind, what, source: Some(error.into()) }
    }
}

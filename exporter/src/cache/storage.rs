//! Where a cache lies: a place for blobs, and for small artifacts under names.
//!
//! An implementation is one small file: a registry's repository ([`super::registry`]), or a directory
//! ([`super::directory`]). An object store would be one more: all it has to do is to keep bytes under names; what the bytes of
//! an artifact are, [`super::artifact`] says.

use std::io::{self, Read};

use oci::{BlobOrigin, Descriptor, MediaType, Reference, manifest::Manifest, registry::RegistryError};
use solver::Cancel;

use super::announcement::Announcement;

/// What an artifact is; decides its media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArtifactKind {
    /// The record of one step, under the names of its keys.
    Record,
    /// All records that a build has used.
    Bundle,
}

impl ArtifactKind {
    /// The type of its document, which is that of the artifact too.
    pub fn media_type(self) -> MediaType {
        let name = match self {
            Self::Record => "application/vnd.layerwright.cache.record.v1+json",
            Self::Bundle => "application/vnd.layerwright.cache.bundle.v1+zstd",
        };
        MediaType::Other(name.to_owned())
    }

    /// The kind with documents of a type.
    pub fn of(media_type: &MediaType) -> Option<Self> {
        [Self::Record, Self::Bundle].into_iter().find(|kind| kind.media_type() == *media_type)
    }
}

/// A small document with a name, and the blobs that must live as long as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// What it is.
    pub kind: ArtifactKind,
    /// Its content.
    pub document: Vec<u8>,
    /// Ed25519 signature of the document, where whoever wrote it has a key.
    pub signature: Option<Vec<u8>>,
    /// The blobs it keeps alive.
    pub blobs: Vec<Descriptor>,
}

/// What a name stands for: whoever gives a cache's name may mean an image, which can be its own cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Something a cache has written.
    Artifact(Artifact),
    /// What a builder says of a step that it runs.
    Announcement(Announcement),
    /// An image.
    Image(Box<Image>),
    /// Images for several platforms, to be had by their digests.
    Index(Vec<Descriptor>),
}

impl Named {
    /// What a cache has written under the name.
    pub fn artifact(self) -> Option<Artifact> {
        match self {
            Self::Artifact(artifact) => Some(artifact),
            Self::Announcement(_) | Self::Image(_) | Self::Index(_) => None,
        }
    }
}

/// An image as it lies in a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its manifest.
    pub manifest: Manifest,
    /// The bytes of its config, verified.
    pub config: Vec<u8>,
}

/// Why a place for a cache gave or took nothing.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StorageError {
    /// What it means for the next call.
    pub kind: StorageErrorKind,
    /// What was tried, and where.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StorageError {
    /// Why, in one line for who has named the place already: where it is a registry that does not let us, what that says and
    /// what to do about it.
    pub fn reason(&self) -> String {
        match self.of_registry() {
            Some(RegistryError::Denied { reason: Some(reason), hint, .. }) => format!("{reason}; {hint}"),
            Some(RegistryError::Denied { reason: None, hint, .. }) => format!("access is denied; {hint}"),
            _ => told(self),
        }
    }

    /// Whether a registry does not let us.
    pub fn is_refusal(&self) -> bool {
        matches!(self.of_registry(), Some(RegistryError::Denied { .. }))
    }

    fn of_registry(&self) -> Option<&RegistryError> {
        self.source.as_deref()?.downcast_ref()
    }
}

/// An error and its causes, in one line.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What a failure says of the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageErrorKind {
    /// It did not do what was asked, and may not do the next thing either.
    Failed,
    /// It does not let us.
    Denied,
    /// It has a thing of that name, but not one that can be used.
    Damaged,
    /// Nobody wants an answer any more.
    Cancelled,
}

/// A place for a cache. Called from several threads at the same time. Every call ends soon after `cancel` asks.
pub trait Storage: Send + Sync {
    /// What people call it: `registry.example/app/cache`, `./cache`.
    fn name(&self) -> &str;

    /// Where its blobs can be had.
    fn origin(&self) -> BlobOrigin;

    /// What a name, or the digest of what a name stands for (`sha256:...`), stands for: in one round trip where it is small;
    /// `None` where there is nothing. What is damaged or of no known form is an error.
    ///
    /// # Errors
    /// It cannot be had, or is damaged.
    fn get(&self, name: &str, cancel: &Cancel) -> Result<Option<Named>, StorageError>;

    /// Puts an artifact under some names, the last writer's stays. Its blobs are there already.
    ///
    /// # Errors
    /// It cannot be written.
    fn put(&self, names: &[&str], artifact: &Artifact, cancel: &Cancel) -> Result<(), StorageError> {
        self.put_document(artifact.kind, &artifact.document, cancel)?;
        self.put_names(names, artifact, cancel)
    }

    /// The first half of that, which needs no blobs yet: brings the document.
    ///
    /// # Errors
    /// It cannot be written.
    fn put_document(&self, kind: ArtifactKind, document: &[u8], cancel: &Cancel) -> Result<(), StorageError>;

    /// The second half: lets the names stand for an artifact whose document is there, all at the same time.
    ///
    /// # Errors
    /// It cannot be written.
    fn put_names(&self, names: &[&str], artifact: &Artifact, cancel: &Cancel) -> Result<(), StorageError>;

    /// Puts an announcement under a name, in one round trip; the last writer's stays. [`super::artifact::EMPTY`] is there
    /// already.
    ///
    /// # Errors
    /// It cannot be written.
    fn announce(&self, name: &str, said: &Announcement, cancel: &Cancel) -> Result<(), StorageError>;

    /// Makes sure that a blob is there, and says whether its bytes had to be sent. `from` is another repository that may
    /// have it; `open` begins the blob anew each time it is sent.
    ///
    /// # Errors
    /// It cannot be written, or `open` fails.
    fn put_blob(
        &self,
        blob: &Descriptor,
        from: Option<&Reference>,
        open: &(dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync),
        cancel: &Cancel,
    ) -> Result<bool, StorageError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_named_the_place_hears_what_a_registry_says_and_what_to_do() {
        let failed = |kind, error: RegistryError| StorageError {
            kind,
            what: "cannot write to h/c".to_owned(),
            source: Some(error.into()),
        };
        let denied = |reason: Option<&str>| RegistryError::Denied {
            name: "repository h/c".to_owned(),
            reason: reason.map(str::to_owned),
            hint: "log in".to_owned(),
        };
        let missing = RegistryError::NotFound { name: "h/c".to_owned(), reason: None };
        for (error, reason, is_refusal) in [
            (failed(StorageErrorKind::Denied, denied(Some("DENIED no"))), "DENIED no; log in", true),
            (failed(StorageErrorKind::Denied, denied(None)), "access is denied; log in", true),
            (failed(StorageErrorKind::Failed, missing), "cannot write to h/c: h/c does not exist", false),
        ] {
            assert_eq!((error.reason().as_str(), error.is_refusal()), (reason, is_refusal));
        }
    }
}

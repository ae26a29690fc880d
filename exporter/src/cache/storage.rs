//! Where a cache lies: a place for blobs, and for small artifacts under names.
//!
//! An implementation is one small file: a registry's repository, or a directory. An object store would be one more.

use std::io::{self, Read};

use oci::{BlobOrigin, Descriptor, Reference};
use solver::Cancel;

/// What an artifact is; decides its media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArtifactKind {
    /// The record of one step, under the names of its keys.
    Record,
    /// All records that a build has used.
    Bundle,
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

/// Why a place for a cache gave or took nothing.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StorageError {
    /// What was tried, and where.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A place for a cache. Called from several threads at the same time. Every call ends soon after `cancel` asks.
pub trait Storage: Send + Sync {
    /// What people call it: `registry.example/app/cache`, `./cache`.
    fn name(&self) -> &str;

    /// Where its blobs can be had.
    fn origin(&self) -> BlobOrigin;

    /// The artifact under a name, in one round trip where it is small; `None` where there is none. What is damaged or of no
    /// known form is an error.
    ///
    /// # Errors
    /// It cannot be had, or is damaged.
    fn get(&self, name: &str, cancel: &Cancel) -> Result<Option<Artifact>, StorageError>;

    /// Puts an artifact under some names, the last writer's stays. Its blobs are there already.
    ///
    /// # Errors
    /// It cannot be written.
    fn put(&self, names: &[&str], artifact: &Artifact, cancel: &Cancel) -> Result<(), StorageError>;

    /// Makes sure that a blob is there, and says whether its bytes had to be sent. `from` is another repository that may
    /// have it.
    ///
    /// # Errors
    /// It cannot be written, or `open` fails.
    fn put_blob(
        &self,
        blob: &Descriptor,
        from: Option<&Reference>,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send>>,
        cancel: &Cancel,
    ) -> Result<bool, StorageError>;
}

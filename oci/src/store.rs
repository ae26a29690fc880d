//! The store: one directory of one user and one id map, shared by any number of processes.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::digest::Sha256Digest;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done: "create", "read", ...
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// An open store. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens or creates the store.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        Err(pending(root))
    }
    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `ROOT/name`, one of the areas made by `open`.
    pub fn area(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
    /// A new private directory for temporaries, removed on drop.
    pub fn temp_dir(&self, _purpose: &str) -> Result<TempDir, StoreError> {
        Err(pending(&self.root))
    }
    /// Whether a blob of this digest and size is there.
    pub fn has_blob(&self, _digest: &Sha256Digest, _size: u64) -> bool {
        false
    }
    /// Opens a blob.
    pub fn open_blob(&self, _digest: &Sha256Digest) -> Result<File, StoreError> {
        Err(pending(&self.root))
    }
    /// Where a blob lies, whether or not it is there.
    pub fn blob_path(&self, digest: &Sha256Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }
    /// Stores bytes.
    pub fn put_blob(&self, _bytes: &[u8]) -> Result<Sha256Digest, StoreError> {
        Err(pending(&self.root))
    }
    /// Starts writing a blob of unknown digest.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        Err(pending(&self.root))
    }
    /// Writes a file of the store: the old or the new content, never half.
    pub fn write_atomic(&self, _path_in_root: &Path, _bytes: &[u8]) -> Result<(), StoreError> {
        Err(pending(&self.root))
    }
    /// Moves a temporary directory to its place; `false` when somebody was faster.
    pub fn rename_into(&self, _temp: TempDir, _target_in_root: &Path) -> Result<bool, StoreError> {
        Err(pending(&self.root))
    }
    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        Err(pending(&self.root))
    }
}

fn pending(root: &Path) -> StoreError {
    StoreError::Io { action: "open", path: root.to_owned(), source: io::ErrorKind::Unsupported.into() }
}

/// A private directory inside the store's temporaries, removed on drop.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Keeps the directory beyond the value's life; the next sweep still removes it.
    pub fn into_path(self) -> PathBuf {
        self.path.clone()
    }
}

/// A blob being written.
#[derive(Debug)]
pub struct BlobWriter {
    path: PathBuf,
}

impl BlobWriter {
    /// Puts the blob in place under the digest of what was written.
    pub fn commit(self) -> Result<(Sha256Digest, u64), StoreError> {
        Err(pending(&self.path))
    }
    /// Puts the blob in place if it is the expected one.
    pub fn commit_as(self, _digest: &Sha256Digest, _size: u64) -> Result<(), StoreError> {
        Err(pending(&self.path))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

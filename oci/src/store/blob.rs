//! Writing a blob whose bytes come one after the other.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{StoreError, create_new, space, temp::Run};
use crate::digest::{Sha256Digest, Sha256Hasher};

/// Bytes gathered before they go to the file.
const BUFFER: usize = 128 << 10;

/// Where a blob lies, from the root of the store on.
pub(super) fn path(digest: &Sha256Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

/// What tells a file from all others: inodes are used again, but not born again.
pub(super) type Identity = (u64, SystemTime);

/// The identity of a file; `None` where the file system cannot say.
pub(super) fn identity(file: &File) -> Option<Identity> {
    let metadata = file.metadata().ok()?;
    Some((metadata.ino(), metadata.created().ok()?))
}

/// A blob being written; it is hashed on the way. Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    copy: BlobCopy,
    hash: Sha256Hasher,
}

/// A blob being written by somebody who knows its digest, since what he writes has been verified on its way to him.
/// Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub struct BlobCopy {
    file: BufWriter<File>,
    temporary: Temporary,
    /// The store's.
    root: PathBuf,
    size: u64,
    /// What all of it takes at most, for the error.
    wanted: Option<u64>,
    /// Keeps the directory of the temporary from being swept.
    run: Arc<Run>,
}

/// A file that is removed unless it has been renamed.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; what cannot be removed is swept with the run.
        let _ = fs::remove_file(&self.0);
    }
}

impl BlobWriter {
    pub(super) fn new(run: &Arc<Run>, root: &Path) -> Result<Self, StoreError> {
        Ok(Self { copy: BlobCopy::new(run, root)?, hash: Sha256Hasher::default() })
    }

    /// Says how many bytes there will be at most, for the error that tells that the disk is full.
    #[must_use]
    pub fn expecting(self, bytes: u64) -> Self {
        Self { copy: self.copy.expecting(bytes), ..self }
    }

    /// Puts the blob in place under the digest of what was written, and tells digest and size.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn commit(self) -> Result<(Sha256Digest, u64), StoreError> {
        let found = (self.hash.finish(), self.copy.size);
        self.copy.place(&found.0)?;
        Ok(found)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.copy.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.copy.flush()
    }
}

impl BlobCopy {
    pub(super) fn new(run: &Arc<Run>, root: &Path) -> Result<Self, StoreError> {
        let path = run.new_path("blob");
        let file = create_new(&path).map_err(StoreError::io("create", &path))?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER, file),
            temporary: Temporary(path),
            root: root.to_owned(),
            size: 0,
            wanted: None,
            run: run.clone(),
        })
    }

    /// Says how many bytes there will be at most, for the error that tells that the disk is full.
    #[must_use]
    pub fn expecting(self, bytes: u64) -> Self {
        Self { wanted: Some(bytes), ..self }
    }

    fn explained(&self, error: io::Error) -> io::Error {
        if space::is_full(&error) {
            self.run.note_full();
        }
        space::explained(error, self.file.get_ref(), self.wanted)
    }

    /// Puts the blob in place if all of it has been written.
    ///
    /// # Errors
    /// [`StoreError::IncompleteBlob`], or [`StoreError::Io`].
    pub fn commit_verified(self, digest: &Sha256Digest, size: u64) -> Result<(), StoreError> {
        if self.size != size {
            return Err(StoreError::IncompleteBlob { digest: *digest, size, found: self.size });
        }
        self.place(digest)
    }

    fn place(mut self, digest: &Sha256Digest) -> Result<(), StoreError> {
        let path = path(digest);
        self.run.pin([path.as_path()])?;
        let target = self.root.join(path);
        self.flush().map_err(StoreError::io("write", &target))?;
        fs::rename(&self.temporary.0, &target).map_err(StoreError::io("create", &target))?;
        self.run.note_growth();
        if let Some(identity) = identity(self.file.get_ref()) {
            self.run.note_blob(*digest, identity);
        }
        Ok(())
    }
}

impl Write for BlobCopy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).map_err(|error| self.explained(error))?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|error| self.explained(error))
    }
}

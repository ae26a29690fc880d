//! A cache in a directory: blobs in `blobs/sha256/HEX`, as in an OCI layout, and manifests in `names/NAME.json`.
//!
//! Several builds may write at the same time, and one may read while others write: every file is written beside its place and
//! renamed into it, so it is there whole or not at all, and the last writer of a name stays. What a directory has lost or what
//! somebody has changed in it is found out by its digest. Reading needs no right to write.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use oci::{BlobOrigin, Descriptor, Reference, Sha256Digest, document, layout, verify::Verified};
use rustix::{fs::Timestamps, io::Errno};
use solver::Cancel;

use super::{
    announcement::Announcement,
    artifact::{self, Parsed},
    storage::{Artifact, ArtifactKind, Image, Named, Storage, StorageError, StorageErrorKind},
};
use crate::outputs::file::{NewFile, open_directory};

/// Bytes that are copied between two looks at whether somebody wants them.
const PIECE: usize = 256 << 10;

/// A cache in a directory.
#[derive(Debug, Clone)]
pub struct DirectoryStorage {
    directory: PathBuf,
    name: String,
}

impl DirectoryStorage {
    /// In this directory, which is made when something is written to it.
    pub fn new(directory: &Path) -> Self {
        // What is remembered of a blob's place must lead there from any working directory.
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        Self { directory: absolute, name: directory.display().to_string() }
    }

    pub(super) fn names_directory(&self) -> PathBuf {
        self.directory.join("names")
    }

    pub(super) fn blobs_directory(&self) -> PathBuf {
        self.directory.join("blobs/sha256")
    }

    /// The file of a name; `None` for what can be no name.
    pub(super) fn name_path(&self, name: &str) -> Option<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let is_name =
            !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(plain);
        is_name.then(|| self.names_directory().join(format!("{name}.json")))
    }

    fn blob_path(&self, digest: &Sha256Digest) -> PathBuf {
        self.blobs_directory().join(digest.hex())
    }
}

impl Storage for DirectoryStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn origin(&self) -> BlobOrigin {
        BlobOrigin::OciLayout(self.directory.clone())
    }

    fn get(&self, name: &str, _cancel: &Cancel) -> Result<Option<Named>, StorageError> {
        let manifest = match artifact::as_digest(name) {
            Some(digest) => read(&self.blob_path(&digest), document::MAX_SIZE),
            None => self.name_path(name).map_or(Ok(None), |path| read(&path, document::MAX_SIZE)),
        };
        let named = manifest.and_then(|bytes| bytes.map(|bytes| self.named(name, &bytes)).transpose());
        named.map_err(|source| failed(format!("cannot read {name} in {}", self.name), source))
    }

    fn put_document(&self, kind: ArtifactKind, document: &[u8], cancel: &Cancel) -> Result<(), StorageError> {
        let written = self.write_document(kind, document, cancel);
        written.map_err(|source| failed(format!("cannot write to {}", self.name), source))
    }

    fn put_names(&self, names: &[&str], artifact: &Artifact, _cancel: &Cancel) -> Result<(), StorageError> {
        let manifest = artifact::manifest(artifact);
        let written = names.iter().try_for_each(|name| self.write_name(name, &manifest));
        written
            .map_err(|source| failed(format!("cannot write {} to {}", names.join(", "), self.name), source))
    }

    fn announce(&self, name: &str, said: &Announcement, _cancel: &Cancel) -> Result<(), StorageError> {
        let written = self.write_name(name, &artifact::announcement(said));
        written.map_err(|source| failed(format!("cannot write {name} to {}", self.name), source))
    }

    fn put_blob(
        &self,
        blob: &Descriptor,
        _from: Option<&Reference>,
        open: &(dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync),
        cancel: &Cancel,
    ) -> Result<bool, StorageError> {
        let put = self.write_blob(blob, open, cancel);
        put.map_err(|source| failed(format!("cannot write blob {} to {}", blob.digest, self.name), source))
    }
}

impl DirectoryStorage {
    /// What a manifest stands for.
    pub(super) fn named(&self, name: &str, manifest: &[u8]) -> io::Result<Named> {
        if let Some(digest) = artifact::as_digest(name)
            && Sha256Digest::of(manifest) != digest
        {
            return Err(invalid("its bytes have another digest"));
        }
        let media_type = document::media_type(None, manifest).map_err(invalid)?;
        Ok(match artifact::parse(&media_type, manifest).map_err(invalid)? {
            Parsed::Whole(artifact) => Named::Artifact(artifact),
            Parsed::Apart(config, apart) => {
                let document = self.document(&config)?;
                Named::Artifact(apart.with(&config, document).map_err(invalid)?)
            }
            Parsed::Announcement(said) => Named::Announcement(said),
            Parsed::Image(manifest) => {
                let config = self.document(&manifest.config)?;
                Named::Image(Box::new(Image { manifest, config }))
            }
            Parsed::Index(manifests) => Named::Index(manifests),
        })
    }

    /// The verified bytes of a document.
    fn document(&self, descriptor: &Descriptor) -> io::Result<Vec<u8>> {
        let bytes = read(&self.blob_path(&descriptor.digest), artifact::MAX_DOCUMENT)?;
        let bytes = bytes.ok_or_else(|| invalid(format!("blob {} is gone", descriptor.digest)))?;
        document::verify(descriptor, &bytes).map_err(invalid)?;
        Ok(bytes)
    }

    fn write_document(&self, kind: ArtifactKind, document: &[u8], cancel: &Cancel) -> io::Result<()> {
        let bytes: Arc<[u8]> = document.into();
        let open = || Ok(Box::new(io::Cursor::new(Arc::clone(&bytes))) as Box<dyn Read + Send>);
        self.write_blob(&artifact::config(kind, document), &open, cancel).map(drop)
    }

    fn write_name(&self, name: &str, manifest: &[u8]) -> io::Result<()> {
        let path = self.name_path(name).ok_or_else(|| invalid("not a name"))?;
        let (mut bytes, parent) = (manifest, made_directory(&self.names_directory())?);
        new_file(&parent, &path, |new| io::copy(&mut bytes, new).map(drop))
    }

    /// Whether the bytes had to be written. A blob that is there is read once, so that a damaged one is mended.
    fn write_blob(
        &self,
        blob: &Descriptor,
        open: &(dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync),
        cancel: &Cancel,
    ) -> io::Result<bool> {
        let path = self.blob_path(&blob.digest);
        if let Ok(file) = layout::open_blob(&self.directory, &blob.digest)
            && copy(&mut Verified::new(&file, blob), &mut io::sink(), cancel).is_ok()
            && keep_young(&file, &path).is_ok()
        {
            return Ok(false);
        }
        let parent = made_directory(&self.blobs_directory())?;
        new_file(&parent, &path, |new| copy(&mut Verified::new(open()?, blob), new, cancel))?;
        Ok(true)
    }
}

/// Keeps a blob from whoever removes what nothing names ([`super::care`]), until it is named. Another user's, which we may
/// not touch, stays as it is: to write it anew would make it ours, with our umask's rights. At worst somebody removes it
/// just now, which makes a miss of what names it.
///
/// # Errors
/// It is going already: it has to be written anew.
fn keep_young(file: &File, path: &Path) -> io::Result<()> {
    // Who may write a file may do this, whoever owns it; not so with any other time.
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    match rustix::fs::futimens(file, &Timestamps { last_access: now, last_modification: now }) {
        Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::ROFS) => {}
        Err(error) => return Err(error.into()),
    }
    let (held, there) = (file.metadata()?, path.symlink_metadata()?);
    match (held.dev(), held.ino()) == (there.dev(), there.ino()) {
        true => Ok(()),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn made_directory(path: &Path) -> io::Result<OwnedFd> {
    fs::create_dir_all(path)?;
    open_directory(path)
}

/// Writes a file that is there whole or not at all. It may be torn where the machine goes down soon after: then it is damaged,
/// which is found out, and not worth the time to wait for the disk.
fn new_file(
    parent: &OwnedFd,
    path: &Path,
    write: impl FnOnce(&mut NewFile<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = NewFile::create(parent, path.file_name().expect("it ends in a name"))?;
    write(&mut file)?;
    file.commit()
}

/// The bytes of a small regular file; `None` where there is none.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // Without O_NONBLOCK, to open a FIFO would wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match File::options().read(true).custom_flags(nonblocking).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(invalid(format!("longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

fn copy(from: &mut impl Read, to: &mut impl Write, cancel: &Cancel) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        if cancel.is_requested() {
            return Err(io::Error::other(Cancelled));
        }
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The user has stopped it. No kind of [`io::Error`] says that: file systems fail with all of them.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Cancelled;

pub(super) fn failed(what: String, source: io::Error) -> StorageError {
    let kind = match source.kind() {
        _ if source.get_ref().is_some_and(|inner| inner.is::<Cancelled>()) => StorageErrorKind::Cancelled,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StorageErrorKind::Denied,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => StorageErrorKind::Damaged,
        _ => StorageErrorKind::Failed,
    };
    StorageError { kind, what, source: Some(source.into()) }
}

#[cfg(test)]
mod tests;

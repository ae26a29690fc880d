//! An OCI layout in a tar, read where it lies: its members are found once, and their bytes taken from the file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Failure, LayoutError, candidates, check_marker, described, not_found, open_regular, parse_index,
    read_limited, tags,
};
use crate::{
    descriptor::Descriptor,
    digest::Sha256Digest,
    document::{self, DocumentError, Found},
    manifest::Index,
};

/// An OCI layout in a tar.
#[derive(Debug, Clone)]
pub struct LayoutArchive {
    path: PathBuf,
    file: Arc<File>,
    /// Where the bytes of each regular file are, by its path: offset and size.
    members: Arc<BTreeMap<PathBuf, (u64, u64)>>,
}

impl LayoutArchive {
    /// Looks through the tar. A compressed one is none.
    ///
    /// # Errors
    /// [`LayoutError::Io`] and [`LayoutError::NotALayout`].
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let file = open_regular(path)?;
        let failed = |source| LayoutError::Io { path: path.to_owned(), source };
        let refuse =
            |reason: &str| LayoutError::NotALayout { directory: path.to_owned(), reason: reason.to_owned() };
        let length = file.metadata().map_err(failed)?.len();
        let (mut members, mut end) = (BTreeMap::new(), 0);
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().map_err(failed)? {
            // The crate's own words have the bytes of a header in them.
            let entry = entry.map_err(|_| refuse(&no_header(end)))?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            end = offset.saturating_add(size);
            if end > length {
                return Err(refuse(&format!("it breaks off after {length} bytes")));
            }
            if entry.header().entry_type().is_file() {
                let name = entry.path().map_err(failed)?;
                let name = name.strip_prefix(".").unwrap_or(&name).to_owned();
                members.insert(name, (offset, size));
            }
        }
        let archive = Self { path: path.to_owned(), file: Arc::new(file), members: Arc::new(members) };
        match archive.read(Path::new("oci-layout"))? {
            Some(marker) => check_marker(path, &marker)?,
            None if archive.members.contains_key(Path::new("manifest.json")) => {
                return Err(refuse("it is a docker archive, of the form before Docker 25"));
            }
            None => return Err(refuse("it has no file oci-layout")),
        }
        Ok(archive)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a tag or digest stands for; see [`super::find_root`].
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn find_root(&self, selector: Option<&str>) -> Result<Found, LayoutError> {
        let index =
            self.read(Path::new("index.json"))?.ok_or_else(|| self.missing(Path::new("index.json")))?;
        let index = parse_index(&self.path, &index)?;
        let descriptor = match candidates(&index, selector).as_slice() {
            [only] => (*only).clone(),
            [] => self.unlisted(&index, selector)?,
            _ => {
                let (directory, tags) = (self.path.clone(), tags(&index));
                return Err(LayoutError::Ambiguous { directory, tags });
            }
        };
        let bytes = self.read_document(&descriptor)?;
        Ok(Found { descriptor, bytes })
    }

    /// What a digest stands for that `index.json` does not list.
    fn unlisted(&self, index: &Index, selector: Option<&str>) -> Result<Descriptor, LayoutError> {
        let digest = selector.and_then(|text| text.parse().ok());
        let named = digest.and_then(|digest| Some((digest, self.member(&blob_name(&digest))?)));
        let Some((digest, blob)) = named else { return Err(not_found(&self.path, index, selector)) };
        described(&self.path, digest, &read_limited(blob, &self.path)?)
    }

    /// Reads and verifies a small document.
    ///
    /// # Errors
    /// [`LayoutError::Io`] or [`LayoutError::Document`].
    pub fn read_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
        let wrong = |error: DocumentError| Failure::Document(error).at(&self.path);
        document::check_size(descriptor.size).map_err(wrong)?;
        let blob = self.open_blob(&descriptor.digest)?;
        let bytes = read_limited(blob, &self.path)?;
        document::verify(descriptor, &bytes).map_err(wrong)?;
        Ok(bytes)
    }

    /// Opens a blob; its bytes are not verified.
    ///
    /// # Errors
    /// [`LayoutError::Io`].
    pub fn open_blob(&self, digest: &Sha256Digest) -> Result<impl Read + Send + use<>, LayoutError> {
        let name = blob_name(digest);
        self.member(&name).ok_or_else(|| self.missing(&name))
    }

    fn read(&self, name: &Path) -> Result<Option<Vec<u8>>, LayoutError> {
        self.member(name).map(|member| read_limited(member, &self.path)).transpose()
    }

    fn member(&self, name: &Path) -> Option<Member> {
        let (offset, size) = *self.members.get(name)?;
        Some(Member { file: Arc::clone(&self.file), offset, left: size })
    }

    fn missing(&self, name: &Path) -> LayoutError {
        let source = io::Error::new(io::ErrorKind::NotFound, format!("it has no file {}", name.display()));
        LayoutError::Io { path: self.path.clone(), source }
    }
}

/// What is said where a member should begin, behind one that ends there.
fn no_header(end: u64) -> String {
    match end {
        0 => "it is no tar archive".to_owned(),
        _ => format!("it is no tar archive after byte {end}"),
    }
}

fn blob_name(digest: &Sha256Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

/// The bytes of one file of the tar.
struct Member {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

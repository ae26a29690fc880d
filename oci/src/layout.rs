//! Reading an OCI image layout: a directory with `oci-layout`, `index.json` and `blobs/` (image-spec, image-layout.md).
//!
//! A layout is input like any other: every document is verified against the descriptor that names it, and read only
//! from regular files, so that a FIFO in it cannot hold a build up.

mod archive;

use std::{
    fs::{self, File, FileType, Metadata},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    descriptor::{Descriptor, MediaType},
    digest::Sha256Digest,
    document::{self, DocumentError, Found},
    manifest::{Index, Manifest},
    platform::Platform,
};

pub use archive::LayoutArchive;

/// The annotation that tags an entry of `index.json` (image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why a layout gave no image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The directory is no layout, or one of another version.
    #[error("{} is not an OCI layout: {reason}", directory.display())]
    NotALayout {
        /// Which.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No entry of `index.json` has this tag or digest.
    #[error("{} has no image {selector:?}{}", directory.display(), tagged(tags))]
    NotFound {
        /// The layout.
        directory: PathBuf,
        /// What was asked for.
        selector: String,
        /// The tags it has.
        tags: Vec<String>,
    },
    /// Several entries could be meant.
    #[error("{} has several images: name one by tag or digest{}", directory.display(), tagged(tags))]
    Ambiguous {
        /// The layout.
        directory: PathBuf,
        /// The tags it has.
        tags: Vec<String>,
    },
    /// A document is not what it should be.
    #[error("in the OCI layout {}", directory.display())]
    Document {
        /// The layout.
        directory: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<DocumentError>,
    },
}

fn tagged(tags: &[String]) -> String {
    if tags.is_empty() { String::new() } else { format!("; it has {}", tags.join(", ")) }
}

/// A manifest found in a layout, verified.
#[derive(Debug, Clone)]
pub struct LayoutManifest {
    /// How the layout names it.
    pub descriptor: Descriptor,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// The same, parsed.
    pub manifest: Manifest,
    /// What `index.json` points at on the way to it: an index, or the manifest itself.
    pub root_digest: Sha256Digest,
}

/// Finds the manifest of one platform. `selector` is a tag or a digest; without one it is the only image, else the one
/// tagged `latest`, else the only one for the platform.
///
/// # Errors
/// [`LayoutError`].
pub fn find_image(
    directory: &Path,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<LayoutManifest, LayoutError> {
    let index = read_index(directory)?;
    let descriptor = choose(directory, &index, selector, platform)?;
    let bytes = read_document(directory, &descriptor)?;
    let root_digest = descriptor.digest;
    let mut read = |descriptor: &Descriptor| read_document(directory, descriptor).map_err(Failure::Layout);
    let selected = document::select(Found { descriptor, bytes }, platform, &mut read);
    let (found, manifest) = selected.map_err(|failure| failure.at(directory))?;
    Ok(LayoutManifest { descriptor: found.descriptor, bytes: found.bytes, manifest, root_digest })
}

/// Finds what a tag or digest stands for, an index or a manifest; without one, the only image or the one tagged `latest`.
///
/// # Errors
/// [`LayoutError`].
pub fn find_root(directory: &Path, selector: Option<&str>) -> Result<Found, LayoutError> {
    let index = read_index(directory)?;
    let descriptor = match candidates(&index, selector).as_slice() {
        [only] => (*only).clone(),
        [] => unlisted(directory, &index, selector)?,
        _ => return Err(LayoutError::Ambiguous { directory: directory.to_owned(), tags: tags(&index) }),
    };
    let bytes = read_document(directory, &descriptor)?;
    Ok(Found { descriptor, bytes })
}

/// Reads and verifies a small document: a manifest, an index or a config.
///
/// # Errors
/// [`LayoutError::Io`] or [`LayoutError::Document`].
pub fn read_document(directory: &Path, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
    let wrong = |error: DocumentError| Failure::Document(error).at(directory);
    document::check_size(descriptor.size).map_err(wrong)?;
    let bytes =
        read_limited(open_blob(directory, &descriptor.digest)?, &blob_path(directory, &descriptor.digest))?;
    document::verify(descriptor, &bytes).map_err(wrong)?;
    Ok(bytes)
}

/// Opens a blob; its bytes are not verified (see [`crate::verify::Verified`]).
///
/// # Errors
/// [`LayoutError::Io`].
pub fn open_blob(directory: &Path, digest: &Sha256Digest) -> Result<File, LayoutError> {
    open_regular(&blob_path(directory, digest))
}

fn blob_path(directory: &Path, digest: &Sha256Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}

/// Reads `index.json`, having looked at the version in `oci-layout`.
///
/// # Errors
/// [`LayoutError`].
pub fn read_index(directory: &Path) -> Result<Index, LayoutError> {
    check_version(directory)?;
    let path = directory.join("index.json");
    parse_index(directory, &read_limited(open_regular(&path)?, &path)?)
}

fn parse_index(directory: &Path, bytes: &[u8]) -> Result<Index, LayoutError> {
    let wrong = |error: DocumentError| Failure::Document(error).at(directory);
    match document::Document::parse(&MediaType::OciIndex, bytes).map_err(wrong)? {
        document::Document::Index(index) => Ok(index),
        document::Document::Manifest(_) => unreachable!("an index was asked for"),
    }
}

fn check_version(directory: &Path) -> Result<(), LayoutError> {
    let refuse = |reason: String| LayoutError::NotALayout { directory: directory.to_owned(), reason };
    let path = directory.join("oci-layout");
    let file = match open_regular(&path) {
        Err(LayoutError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound && directory.is_dir() =>
        {
            return Err(refuse("it has no file oci-layout".to_owned()));
        }
        // What is missing is all of it.
        Err(LayoutError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound && !directory.exists() =>
        {
            return Err(LayoutError::Io { path: directory.to_owned(), source });
        }
        opened => opened?,
    };
    check_marker(directory, &read_limited(file, &path)?)
}

fn check_marker(directory: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let refuse = |reason: String| LayoutError::NotALayout { directory: directory.to_owned(), reason };
    let marker: Marker = serde_json::from_slice(bytes)
        .map_err(|error| refuse(format!("its file oci-layout is damaged: {error}")))?;
    match marker.image_layout_version.as_str() {
        version if version.starts_with("1.") => Ok(()),
        other => Err(refuse(format!("its version is {other:?}, not 1.x"))),
    }
}

/// What `index.json` has for a selector.
fn choose(
    directory: &Path,
    index: &Index,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, LayoutError> {
    let candidates = candidates(index, selector);
    if candidates.is_empty() {
        return unlisted(directory, index, selector);
    }
    if let [only] = candidates.as_slice() {
        return Ok((*only).clone());
    }
    let fits = |entry: &&&Descriptor| entry.platform.as_ref().is_some_and(|own| own.satisfies(platform));
    match candidates.iter().filter(fits).collect::<Vec<_>>().as_slice() {
        [only] => Ok((**only).clone()),
        _ => Err(LayoutError::Ambiguous { directory: directory.to_owned(), tags: tags(index) }),
    }
}

/// What a digest stands for that `index.json` does not list.
fn unlisted(directory: &Path, index: &Index, selector: Option<&str>) -> Result<Descriptor, LayoutError> {
    let digest = selector.and_then(|text| text.parse().ok());
    match digest.filter(|digest| blob_path(directory, digest).exists()) {
        Some(digest) => describe(directory, &digest),
        None => Err(not_found(directory, index, selector)),
    }
}

fn not_found(directory: &Path, index: &Index, selector: Option<&str>) -> LayoutError {
    let selector = selector.unwrap_or("latest").to_owned();
    LayoutError::NotFound { directory: directory.to_owned(), selector, tags: tags(index) }
}

fn tags(index: &Index) -> Vec<String> {
    index.manifests.iter().filter_map(tag).map(str::to_owned).collect()
}

fn tag(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).map(String::as_str)
}

/// The different things a selector may mean.
fn candidates<'a>(index: &'a Index, selector: Option<&str>) -> Vec<&'a Descriptor> {
    let matching = |wanted: &dyn Fn(&Descriptor) -> bool| {
        let mut found: Vec<_> = index.manifests.iter().filter(|entry| wanted(entry)).collect();
        found.sort_by_key(|entry| entry.digest);
        found.dedup_by_key(|entry| entry.digest);
        found
    };
    let Some(text) = selector else {
        let latest = matching(&|entry| tag(entry) == Some("latest"));
        return if latest.is_empty() { matching(&|_| true) } else { latest };
    };
    match text.parse::<Sha256Digest>() {
        Ok(digest) => matching(&|entry| entry.digest == digest),
        Err(_) => matching(&|entry| tag(entry) == Some(text)),
    }
}

/// The descriptor of a document that `index.json` does not list, but that is there: one of a nested index.
fn describe(directory: &Path, digest: &Sha256Digest) -> Result<Descriptor, LayoutError> {
    let bytes = read_limited(open_blob(directory, digest)?, &blob_path(directory, digest))?;
    described(directory, *digest, &bytes)
}

fn described(directory: &Path, digest: Sha256Digest, bytes: &[u8]) -> Result<Descriptor, LayoutError> {
    let wrong = |error: DocumentError| Failure::Document(error).at(directory);
    let media_type = document::media_type(None, bytes).map_err(wrong)?;
    let descriptor = Descriptor::new(media_type, digest, bytes.len() as u64);
    document::verify(&descriptor, bytes).map_err(wrong)?;
    Ok(descriptor)
}

fn open_regular(path: &Path) -> Result<File, LayoutError> {
    let failed = |source| LayoutError::Io { path: path.to_owned(), source };
    let judged = |metadata: Metadata| match no_file(metadata.file_type()) {
        Some(what) => Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what))),
        None => Ok(()),
    };
    // A socket cannot be opened, and would not be told for what it is.
    judged(fs::metadata(path).map_err(failed)?)?;
    // Without O_NONBLOCK, to open a FIFO would wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    judged(file.metadata().map_err(failed)?)?;
    Ok(file)
}

/// What something is that is no regular file.
fn no_file(kind: FileType) -> Option<&'static str> {
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_dir() => Some("it is a directory, not a regular file"),
        _ if kind.is_fifo() => Some("it is a pipe, not a regular file"),
        _ if kind.is_socket() => Some("it is a socket, not a regular file"),
        _ => Some("it is a device, not a regular file"),
    }
}

fn read_limited(file: impl Read, path: &Path) -> Result<Vec<u8>, LayoutError> {
    let failed = |source| LayoutError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    file.take(document::MAX_SIZE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > document::MAX_SIZE {
        let limit = format!("longer than {} bytes", document::MAX_SIZE);
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, limit)));
    }
    Ok(bytes)
}

/// Either half of what [`document::select`] may fail with here.
enum Failure {
    Layout(LayoutError),
    Document(DocumentError),
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

impl Failure {
    fn at(self, directory: &Path) -> LayoutError {
        match self {
            Self::Layout(error) => error,
            Self::Document(source) => {
                LayoutError::Document { directory: directory.to_owned(), source: Box::new(source) }
            }
        }
    }
}

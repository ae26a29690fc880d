//! Reading an OCI image layout directory (image-spec, image-layout.md).

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{descriptor::Descriptor, digest::Sha256Digest, platform::Platform};

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
}

/// A manifest found in a layout, verified.
#[derive(Debug, Clone)]
pub struct LayoutManifest {
    /// How the layout names it.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What `index.json` pointed at on the way to it: an index, or the manifest itself.
    pub root_digest: Sha256Digest,
}

/// Finds the manifest of one platform. `selector` is a tag or a digest; without one it is the only image, or the one
/// tagged `latest`.
pub fn find_image(
    directory: &Path,
    _selector: Option<&str>,
    _platform: &Platform,
) -> Result<LayoutManifest, LayoutError> {
    Err(LayoutError::Io { path: directory.to_owned(), source: io::ErrorKind::Unsupported.into() })
}

/// Opens a blob of a layout; its bytes are not verified.
pub fn open_blob(directory: &Path, digest: &Sha256Digest) -> Result<File, LayoutError> {
    let path = directory.join("blobs/sha256").join(digest.hex());
    File::open(&path).map_err(|source| LayoutError::Io { path, source })
}

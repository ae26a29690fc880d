//! Checks a finished OCI layout from outside, as the strictest of its readers would.
//!
//! It shares no code with what writes images, and takes nothing on trust: every file below `blobs/` is hashed, every
//! descriptor followed, every manifest compared with its config. For tests, and for whoever wants to be sure.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    config::ImageConfig,
    descriptor::{Compression, Descriptor, MediaType},
    digest::{DiffId, Sha256Digest, Sha256Hasher},
    document::{self, Document, DocumentError},
    layout::{self, LayoutError},
    manifest::Manifest,
    platform::Platform,
};

/// What is wrong with a layout.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// It cannot be read, or a document is not what its descriptor says.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file below `blobs/` is not what its name says.
    #[error("{} is not the blob it is called", path.display())]
    Misnamed {
        /// Which.
        path: PathBuf,
    },
    /// Something that a descriptor names has another size.
    #[error("blob {} has {found} bytes, its descriptor says {}", descriptor.digest, descriptor.size)]
    Size {
        /// The descriptor.
        descriptor: Box<Descriptor>,
        /// What there is.
        found: u64,
    },
    /// A manifest or index is wrong in itself, or does not fit its config.
    #[error("{digest}: {reason}")]
    Document {
        /// Which.
        digest: Sha256Digest,
        /// What is wrong.
        reason: String,
    },
}

/// Turns the bytes of a layer blob into those of its tar.
pub type Decompress<'a> = &'a dyn Fn(Compression, File) -> io::Result<Box<dyn Read>>;

/// Checks every blob's digest and size, and that manifests and configs agree. Returns the digests of the manifests and
/// indexes that `index.json` names, in its order.
///
/// # Errors
/// [`ValidateError`]: the first thing that is wrong.
pub fn layout(directory: &Path) -> Result<Vec<Sha256Digest>, ValidateError> {
    let index = layout::read_index(directory)?;
    check_names(directory)?;
    let mut walk = Walk { directory, images: Vec::new(), seen: BTreeSet::new() };
    index.manifests.iter().try_for_each(|entry| walk.document(entry))?;
    Ok(index.manifests.iter().map(|entry| entry.digest).collect())
}

/// Checks, of every image that `index.json` leads to, that each layer decompresses to its diff ID. Apart from
/// [`layout`] because this crate has no decompressor.
///
/// # Errors
/// [`ValidateError`].
pub fn diff_ids(directory: &Path, decompress: Decompress<'_>) -> Result<(), ValidateError> {
    let index = layout::read_index(directory)?;
    let mut walk = Walk { directory, images: Vec::new(), seen: BTreeSet::new() };
    index.manifests.iter().try_for_each(|entry| walk.document(entry))?;
    for (digest, manifest, config) in &walk.images {
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let found = uncompressed_digest(directory, layer, decompress)?;
            if found != *diff_id {
                let reason =
                    format!("layer {} decompresses to {found}, the config says {diff_id}", layer.digest);
                return Err(ValidateError::Document { digest: *digest, reason });
            }
        }
    }
    Ok(())
}

fn uncompressed_digest(
    directory: &Path,
    layer: &Descriptor,
    decompress: Decompress<'_>,
) -> Result<DiffId, ValidateError> {
    let failed = |source| ValidateError::Io { path: directory.join(layer.digest.hex()), source };
    let compression = layer.media_type.layer_compression().expect("checked when the image was walked");
    let blob = layout::open_blob(directory, &layer.digest)?;
    let tar = decompress(compression, blob).map_err(failed)?;
    hash(tar).map(|(digest, _)| digest.into()).map_err(failed)
}

/// Every file below `blobs/` is named by its digest.
fn check_names(directory: &Path) -> Result<(), ValidateError> {
    let blobs = directory.join("blobs");
    for algorithm in entries(&blobs)? {
        if algorithm.file_name() != Some("sha256".as_ref()) {
            return Err(ValidateError::Misnamed { path: algorithm });
        }
    }
    for path in entries(&blobs.join("sha256"))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(digest) = format!("sha256:{name}").parse::<Sha256Digest>() else {
            return Err(ValidateError::Misnamed { path });
        };
        let found = hash(layout::open_blob(directory, &digest)?);
        let (found, _) = found.map_err(|source| ValidateError::Io { path: path.clone(), source })?;
        if found != digest {
            return Err(ValidateError::Misnamed { path });
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, ValidateError> {
    let failed = |source| ValidateError::Io { path: directory.to_owned(), source };
    let listed: io::Result<Vec<_>> =
        fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry?.path())).collect();
    let mut paths = listed.map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn hash(mut reader: impl Read) -> io::Result<(Sha256Digest, u64)> {
    let (mut hasher, mut size) = (Sha256Hasher::default(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((hasher.finish(), size)),
            count => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

/// Follows descriptors from `index.json` down.
struct Walk<'a> {
    directory: &'a Path,
    images: Vec<(Sha256Digest, Manifest, ImageConfig)>,
    seen: BTreeSet<Sha256Digest>,
}

impl Walk<'_> {
    fn document(&mut self, descriptor: &Descriptor) -> Result<(), ValidateError> {
        if !self.seen.insert(descriptor.digest) {
            return Ok(());
        }
        let wrong = |reason: String| ValidateError::Document { digest: descriptor.digest, reason };
        let refused = |error: DocumentError| wrong(error.to_string());
        let bytes = layout::read_document(self.directory, descriptor)?;
        match Document::parse(&descriptor.media_type, &bytes).map_err(refused)? {
            Document::Index(index) if index.schema_version != 2 => {
                Err(wrong(not_version_2(index.schema_version)))
            }
            Document::Index(index) => index.manifests.iter().try_for_each(|entry| self.document(entry)),
            Document::Manifest(manifest) => {
                let config = self.image(descriptor, &manifest)?;
                if let Some(reason) =
                    config.as_ref().and_then(|config| disagreement(descriptor, &manifest, config))
                {
                    return Err(wrong(reason));
                }
                self.images.extend(config.map(|config| (descriptor.digest, manifest, config)));
                Ok(())
            }
        }
    }

    /// The config of a manifest, its layers being there; `None` for an artifact that is not an image.
    fn image(
        &self,
        descriptor: &Descriptor,
        manifest: &Manifest,
    ) -> Result<Option<ImageConfig>, ValidateError> {
        let config = layout::read_document(self.directory, &manifest.config)?;
        manifest.layers.iter().try_for_each(|layer| self.blob(layer))?;
        if !matches!(manifest.config.media_type, MediaType::OciConfig | MediaType::DockerConfig) {
            return Ok(None);
        }
        let refused = |error: DocumentError| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            ValidateError::Document { digest: descriptor.digest, reason: format!("{error}{cause}") }
        };
        document::image_config(manifest, &config).map(Some).map_err(refused)
    }

    /// That a layer is there with its size; its digest is its name, which has been checked.
    fn blob(&self, descriptor: &Descriptor) -> Result<(), ValidateError> {
        let file = layout::open_blob(self.directory, &descriptor.digest)?;
        let path = || self.directory.join("blobs/sha256").join(descriptor.digest.hex());
        let found = file.metadata().map_err(|source| ValidateError::Io { path: path(), source })?.len();
        if found != descriptor.size {
            return Err(ValidateError::Size { descriptor: Box::new(descriptor.clone()), found });
        }
        Ok(())
    }
}

/// Where a manifest and its config do not fit together.
fn disagreement(descriptor: &Descriptor, manifest: &Manifest, config: &ImageConfig) -> Option<String> {
    let layers = manifest.layers.len();
    let steps = config.history.iter().filter(|step| !step.empty_layer).count();
    let plain = |(layer, diff_id): &(&Descriptor, &DiffId)| {
        let uncompressed = layer.media_type.layer_compression() == Some(Compression::None);
        uncompressed && DiffId::from(layer.digest) != **diff_id
    };
    let own = config.platform();
    let other = |platform: &Platform| !own.satisfies(platform);
    if manifest.schema_version != 2 {
        Some(not_version_2(manifest.schema_version))
    } else if config.rootfs.kind != "layers" {
        Some(format!("rootfs.type is {:?}, not \"layers\"", config.rootfs.kind))
    } else if !config.history.is_empty() && steps != layers {
        Some(format!("the manifest has {layers} layers, the history {steps} that are not empty"))
    } else if let Some((layer, diff_id)) = manifest.layers.iter().zip(&config.rootfs.diff_ids).find(plain) {
        Some(format!("layer {} is not compressed, but its diff ID is {diff_id}", layer.digest))
    } else if own.os.is_empty() || own.architecture.is_empty() {
        Some("the config names no platform".to_owned())
    } else {
        let said = descriptor.platform.as_ref().filter(|platform| other(platform))?;
        Some(format!("the index says {said}, the config {own}"))
    }
}

fn not_version_2(version: u32) -> String {
    format!("schemaVersion is {version}, not 2")
}

#[cfg(test)]
mod tests;

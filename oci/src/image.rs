//! From a name to one image: index → platform → manifest → config, every step verified.

use std::path::Path;

use crate::{
    config::ImageConfig,
    digest::Sha256Digest,
    layer::{BaseLayer, BlobOrigin},
    layout::LayoutError,
    manifest::Manifest,
    platform::Platform,
    reference::Reference,
    registry::{Registry, RegistryError},
};

/// Why a name is not an image we can use.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The image does not exist for this platform.
    #[error("{name} has no image for {platform}; it has {}", available.join(", "))]
    NoPlatform {
        /// What was asked for.
        name: String,
        /// For which platform.
        platform: Box<Platform>,
        /// What there is.
        available: Vec<String>,
    },
}

/// An image, resolved down to its config. No layer has been touched.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// Digest of the platform's manifest.
    pub manifest_digest: Sha256Digest,
    /// Digest of what the name points at: an index, or that manifest.
    pub root_digest: Sha256Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The config.
    pub config: ImageConfig,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
}

impl ResolvedImage {
    /// The layers with their diff IDs, the base first; blobs can be had from `origin`.
    pub fn base_layers(&self, origin: &BlobOrigin) -> Vec<BaseLayer> {
        let layers = self.manifest.layers.iter().zip(&self.config.rootfs.diff_ids);
        let layer = |(descriptor, diff_id): (&crate::Descriptor, &crate::DiffId)| BaseLayer {
            diff_id: *diff_id,
            descriptor: descriptor.clone(),
            origin: origin.clone(),
        };
        layers.map(layer).collect()
    }
}

/// Resolves an image of a registry.
pub fn resolve_registry(
    registry: &Registry,
    reference: &Reference,
    _platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    registry.manifest(reference)?;
    Err(RegistryError::Setup("not there yet".to_owned()).into())
}

/// Resolves an image of an OCI layout.
pub fn resolve_layout(
    directory: &Path,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    crate::layout::find_image(directory, selector, platform)?;
    Err(RegistryError::Setup("not there yet".to_owned()).into())
}

//! What a name stands for, fetched and put in order: the root, and each image below it with its config and layers.

use oci::{
    Descriptor, History, ImageConfig, MediaType, Platform,
    document::{Document, DocumentError, Found},
    documents::Documents,
    image::ImageError,
    manifest::{Index, Manifest},
};
use serde_json::Value;

/// How far down is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// At what the name stands for, and nothing below.
    Root,
    /// At every image.
    Images,
}

/// What a name stands for.
#[derive(Debug)]
pub struct Inspected {
    /// The index or manifest.
    pub root: Found,
    /// The same parsed, where it is an index.
    pub index: Option<Index>,
    /// The images, in the order of the index.
    pub images: Vec<Image>,
}

/// One image.
#[derive(Debug)]
pub struct Image {
    /// What its config says it runs on.
    pub platform: Platform,
    /// Its manifest.
    pub descriptor: Descriptor,
    /// The same, parsed.
    pub manifest: Manifest,
    /// Its config, as far as we know the format.
    pub config: ImageConfig,
    /// The whole of it.
    pub whole_config: Value,
}

/// A line of an image's history with the layer it made.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What the config says; nothing of a layer for which it has no line.
    pub history: Option<&'a History>,
    /// The layer; none where the instruction made none.
    pub layer: Option<&'a Descriptor>,
}

impl Image {
    /// The history with its layers, the oldest first.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let mut layers = self.manifest.layers.iter();
        let told = self.config.history.iter().map(|history| {
            let layer = if history.empty_layer { None } else { layers.next() };
            Step { history: Some(history), layer }
        });
        let mut steps: Vec<_> = told.collect();
        steps.extend(layers.map(|layer| Step { history: None, layer: Some(layer) }));
        steps
    }

    /// Bytes of config and layers, as a registry keeps them.
    pub fn size(&self) -> u64 {
        let layers = self.manifest.layers.iter().map(|layer| layer.size);
        layers.fold(self.manifest.config.size, u64::saturating_add)
    }
}

/// Looks at what the documents hold; with a platform, only at the image for it.
///
/// # Errors
/// It cannot be had, is no image, or has none for the platform.
pub fn look(
    documents: &Documents,
    platform: Option<&Platform>,
    depth: Depth,
) -> Result<Inspected, ImageError> {
    let root = documents.root()?;
    let unusable = |error| documents.unusable(error);
    let parsed = Document::parse(&root.descriptor.media_type, &root.bytes).map_err(unusable)?;
    let index = if let Document::Index(index) = parsed { Some(index) } else { None };
    let mut images = Vec::new();
    if depth == Depth::Images {
        for descriptor in documents.manifests(&root)? {
            let is_wanted =
                |own: &Platform| platform.map_or(!is_attestation(own), |wanted| own.satisfies(wanted));
            if descriptor.platform.as_ref().is_none_or(is_wanted) {
                images.extend(image(documents, descriptor)?);
            }
        }
    }
    let others: Vec<Image> = images
        .extract_if(.., |image| platform.is_some_and(|wanted| !image.platform.satisfies(wanted)))
        .collect();
    if images.is_empty() && depth == Depth::Images {
        return Err(unusable(match platform {
            Some(platform) => missing(platform, index.as_ref(), &others),
            None => DocumentError::Inconsistent("none of what it names is an image".to_owned()),
        }));
    }
    Ok(Inspected { root, index, images })
}

/// The exact bytes of the root; with a platform, of the manifest for it.
///
/// # Errors
/// As those of [`look`].
pub fn raw(documents: &Documents, platform: Option<&Platform>) -> Result<Vec<u8>, ImageError> {
    let Some(platform) = platform else { return Ok(documents.root()?.bytes) };
    let found = look(documents, Some(platform), Depth::Images)?;
    match found.images.as_slice() {
        [image, ..] if image.descriptor.digest != found.root.descriptor.digest => {
            documents.document(&image.descriptor)
        }
        _ => Ok(found.root.bytes),
    }
}

/// What BuildKit calls the platform of manifests that say something about an image.
fn is_attestation(platform: &Platform) -> bool {
    platform.os == "unknown" && platform.architecture == "unknown"
}

/// What there is instead: what the index says, else what the images say themselves.
fn missing(platform: &Platform, index: Option<&Index>, others: &[Image]) -> DocumentError {
    let known = index.into_iter().flat_map(|index| &index.manifests).filter_map(|one| one.platform.as_ref());
    let own = others.iter().filter(|image| image.descriptor.platform.is_none()).map(|image| &image.platform);
    let known = known.chain(own);
    let available = known.filter(|own| !is_attestation(own)).map(Platform::to_string).collect();
    DocumentError::NoPlatform { platform: Box::new(platform.clone()), available }
}

/// The image of a manifest; nothing where it is of something else.
fn image(documents: &Documents, descriptor: Descriptor) -> Result<Option<Image>, ImageError> {
    let unusable = |error| documents.unusable(error);
    if !descriptor.media_type.is_manifest() {
        return Ok(None);
    }
    let bytes = documents.document(&descriptor)?;
    let Document::Manifest(manifest) = Document::parse(&descriptor.media_type, &bytes).map_err(unusable)?
    else {
        return Ok(None);
    };
    let media_type = manifest.config.media_type.clone();
    if !matches!(media_type, MediaType::OciConfig | MediaType::DockerConfig) {
        return Ok(None);
    }
    let bytes = documents.config(&manifest.config)?;
    let parsed = serde_json::from_slice(&bytes)
        .and_then(|whole: Value| Ok((serde_json::from_value::<ImageConfig>(whole.clone())?, whole)));
    let (config, whole_config) =
        parsed.map_err(|source| unusable(DocumentError::Json { media_type, source }))?;
    let platform = config.platform();
    Ok(Some(Image { platform, descriptor, manifest, config, whole_config }))
}

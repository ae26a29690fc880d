//! From solved images to the JSON of the OCI image format: configs, manifests and, for several platforms, an index.
//!
//! The bytes are a pure function of the images, their sealed layers and the options. Every layer has a history entry
//! and every entry that is not `empty_layer` has a layer, also where a base image got that wrong.

use std::sync::Arc;

use oci::{
    Descriptor, History, ImageConfig, MediaType, Platform, Sha256Digest,
    config::RootFs,
    manifest::{Index, Manifest},
    tree::NORMAL_TIME,
};
use serde::Serialize;
use solver::{Image, graph::HistoryItem};

use crate::{
    annotations::Annotations,
    cache::inline::{InlineKeys, Inlined},
    packing::MediaTypes,
    seal::{SealError, SealedLayer, Sealer},
};

/// The comment of history entries that stand for a layer of which a base image says nothing.
const SYNTHETIC_COMMENT: &str = "layer of the base image without history";

/// What goes into the JSON beside the images.
#[derive(Debug, Clone)]
pub struct AssembleOptions {
    /// `created` of the configs and of our history entries, in Unix seconds: SOURCE_DATE_EPOCH where it is given.
    pub created: i64,
    /// By which names manifest, config and layers are called.
    pub media_types: MediaTypes,
    /// What is written about them.
    pub annotations: Annotations,
    /// `type=inline`: each image is its own cache.
    pub inline: Option<Arc<InlineKeys>>,
}

impl Default for AssembleOptions {
    fn default() -> Self {
        let (media_types, annotations) = Default::default();
        Self { created: NORMAL_TIME, media_types, annotations, inline: None }
    }
}

/// Why images could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A layer could not be sealed.
    #[error(transparent)]
    Seal(#[from] Arc<SealError>),
    /// The plan and the snapshot do not fit together: our bug.
    #[error(
        "internal error: the history of {platform} has {history} steps, its snapshot {layers} layers on top of {base}"
    )]
    History {
        /// Platform of the image.
        platform: Platform,
        /// Steps in the history.
        history: usize,
        /// Layers since the base, the empty ones too.
        layers: usize,
        /// Layers of the base.
        base: usize,
    },
    /// Docker's image format has no name for layers in zstd, and Docker's own tools refuse the one that some use.
    #[error(
        "layer {0} is compressed with zstd, which images with Docker's media types cannot have: give \
         oci-mediatypes=true"
    )]
    NoDockerType(Sha256Digest),
    /// There is nothing to put together: our bug.
    #[error("internal error: no image to assemble")]
    Empty,
}

/// Images, ready to go anywhere: everything but the bytes of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// What a name will point at: the index or the only manifest.
    pub root: Descriptor,
    /// The index, if there are several platforms.
    pub index: Option<Vec<u8>>,
    /// The images in the order of their platforms' targets.
    pub images: Vec<AssembledImage>,
    /// `created` of the images, in Unix seconds.
    pub created: i64,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssembledImage {
    /// What it runs on.
    pub platform: Platform,
    /// Descriptor of its manifest, with its annotations and without a platform.
    pub manifest: Descriptor,
    /// The manifest.
    pub manifest_bytes: Vec<u8>,
    /// Descriptor of its config.
    pub config: Descriptor,
    /// The config.
    pub config_bytes: Vec<u8>,
    /// Its layers, the base first.
    pub layers: Vec<SealedLayer>,
    /// What the config names beside them, with its bytes: in a registry it must be there, too.
    pub beside: Vec<(Descriptor, Vec<u8>)>,
}

/// Seals what is not yet sealed and writes the JSON.
///
/// # Errors
/// A layer cannot be sealed, or an image contradicts itself.
pub fn assemble(
    images: &[Image],
    sealer: &Sealer,
    options: &AssembleOptions,
) -> Result<Assembled, AssembleError> {
    images.iter().for_each(|image| sealer.offer(&image.snapshot));
    let assemble = |image: &Image| {
        let layers = sealer.seal(&image.snapshot)?;
        let inlined = options.inline.as_ref().map(|keys| keys.of(image, sealer)).transpose();
        assemble_image(image, layers, inlined.map_err(Arc::new)?.flatten(), options)
    };
    let images = images.iter().map(assemble).collect::<Result<Vec<_>, _>>()?;
    let created = options.created;
    match images.as_slice() {
        [] => Err(AssembleError::Empty),
        [only] => Ok(Assembled { root: only.manifest.clone(), index: None, images, created }),
        several => {
            let index = index_of(several, options);
            let media_type = index.media_type.clone().expect("index_of sets it");
            let index = json(&index);
            let annotations = options.annotations.index_descriptor.clone();
            let root = Descriptor { annotations, ..Descriptor::of(media_type, &index) };
            Ok(Assembled { root, index: Some(index), images, created })
        }
    }
}

fn index_of(images: &[AssembledImage], options: &AssembleOptions) -> Index {
    let entry = |image: &AssembledImage| Descriptor {
        platform: Some(image.platform.clone()),
        ..image.manifest.clone()
    };
    Index {
        schema_version: 2,
        media_type: Some(options.media_types.name(&MediaType::OciIndex)),
        manifests: images.iter().map(entry).collect(),
        annotations: options.annotations.index.clone(),
    }
}

fn assemble_image(
    image: &Image,
    layers: Vec<SealedLayer>,
    inlined: Option<Inlined>,
    options: &AssembleOptions,
) -> Result<AssembledImage, AssembleError> {
    let platform = image.target.platform.clone();
    let config = config_of(image, &layers, options)?;
    let (inline, beside) =
        inlined.map_or((None, Vec::new()), |Inlined { value, trees }| (Some(value), trees));
    let config_bytes = json(&Config { config: &config, inline });
    let AssembleOptions { media_types, annotations, .. } = options;
    let config = Descriptor::of(media_types.name(&MediaType::OciConfig), &config_bytes);
    let layers = layers.into_iter().map(|layer| called(layer, *media_types));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let media_type = media_types.name(&MediaType::OciManifest);
    let manifest_bytes = json(&Manifest {
        schema_version: 2,
        media_type: Some(media_type.clone()),
        config: config.clone(),
        layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
        annotations: annotations.manifest.of(&platform),
    });
    let manifest = Descriptor {
        annotations: annotations.manifest_descriptor.of(&platform),
        ..Descriptor::of(media_type, &manifest_bytes)
    };
    Ok(AssembledImage { platform, manifest, manifest_bytes, config, config_bytes, layers, beside })
}

/// The config object, and what else stands in it.
#[derive(Serialize)]
struct Config<'a> {
    #[serde(flatten)]
    config: &'a ImageConfig,
    #[serde(rename = "layerwright.cache.v1", skip_serializing_if = "Option::is_none")]
    inline: Option<serde_json::Value>,
}

/// A layer under the name that its media type has here. Docker's descriptors hold no annotations.
fn called(layer: SealedLayer, media_types: MediaTypes) -> Result<SealedLayer, AssembleError> {
    let SealedLayer { diff_id, descriptor, origin } = layer;
    let media_type = media_types.name(&descriptor.media_type);
    let descriptor = match media_types {
        MediaTypes::Oci => Descriptor { media_type, ..descriptor },
        MediaTypes::Docker if media_type == MediaType::DockerLayerZstd => {
            return Err(AssembleError::NoDockerType(descriptor.digest));
        }
        MediaTypes::Docker => Descriptor::new(media_type, descriptor.digest, descriptor.size),
    };
    Ok(SealedLayer { diff_id, descriptor, origin })
}

fn config_of(
    image: &Image,
    layers: &[SealedLayer],
    options: &AssembleOptions,
) -> Result<ImageConfig, AssembleError> {
    let Platform { architecture, os, os_version, variant } = image.target.platform.clone();
    let created = rfc3339(options.created);
    let history = history_of(image, &created)?;
    Ok(ImageConfig {
        created: Some(created),
        architecture,
        variant,
        os,
        os_version,
        rootfs: RootFs { diff_ids: layers.iter().map(|layer| layer.diff_id).collect(), ..RootFs::default() },
        history,
        ..image.target.config.clone()
    })
}

/// The base's history, made to fit the base's layers, then ours.
fn history_of(image: &Image, created: &str) -> Result<Vec<History>, AssembleError> {
    let target = &image.target;
    let all = &image.snapshot.layers;
    let steps = target.history.iter().filter(|item| item.produces_layer).count();
    let contradiction = || AssembleError::History {
        platform: target.platform.clone(),
        history: steps,
        layers: all.len().saturating_sub(target.base_layers),
        base: target.base_layers,
    };
    let (base, ours) = all.split_at_checked(target.base_layers).ok_or_else(contradiction)?;
    if ours.len() != steps {
        return Err(contradiction());
    }
    let mut history = base_history(&target.config.history, base.len(), created);
    let mut layers = ours.iter();
    history.extend(target.history.iter().map(|HistoryItem { entry, produces_layer }| History {
        created: Some(created.to_owned()),
        empty_layer: !produces_layer || layers.next().is_none_or(|layer| layer.is_empty()),
        ..entry.clone()
    }));
    Ok(history)
}

/// One entry with a layer for each layer: what is missing is made up, what is too much counts as `empty_layer`.
fn base_history(entries: &[History], layers: usize, created: &str) -> Vec<History> {
    let mut left = layers;
    let mut history = Vec::with_capacity(entries.len().max(layers));
    for entry in entries {
        let empty_layer = entry.empty_layer || left == 0;
        left -= usize::from(!empty_layer);
        history.push(History { empty_layer, ..entry.clone() });
    }
    let synthetic = History {
        created: Some(created.to_owned()),
        comment: SYNTHETIC_COMMENT.to_owned(),
        ..History::default()
    };
    history.extend(std::iter::repeat_n(synthetic, left));
    history
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with string keys")
}

/// Unix seconds as RFC 3339 in UTC; years before 0 or after 9999 are cut to those.
pub fn rfc3339(seconds: i64) -> String {
    const FIRST: i64 = -62_167_219_200;
    const LAST: i64 = 253_402_300_799;
    let seconds = seconds.clamp(FIRST, LAST);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970-01-01. Years begin in March here, so that the leap day is last.
fn civil_date(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_1970: i64 = 719_468;
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day) = (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (NORMAL_TIME, "2000-01-01T00:00:00Z"),
            (951_782_400 + 3661, "2000-02-29T01:01:01Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
            (i64::MIN, "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), want);
        }
    }

    #[test]
    fn the_history_of_a_base_is_made_to_fit_its_layers() {
        let entry = |empty_layer| History { created_by: "x".to_owned(), empty_layer, ..History::default() };
        for (entries, layers, want) in [
            (vec![], 2, vec![false, false]),
            (vec![true, false], 1, vec![true, false]),
            (vec![true, false], 2, vec![true, false, false]),
            (vec![false, false, true], 1, vec![false, true, true]),
        ] {
            let entries: Vec<_> = entries.into_iter().map(entry).collect();
            let history = base_history(&entries, layers, "2000-01-01T00:00:00Z");
            let empty: Vec<_> = history.iter().map(|entry| entry.empty_layer).collect();
            assert_eq!(empty, want);
        }
    }
}

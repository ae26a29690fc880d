//! `layerwright diff`: what two images have different, down to the path and its field, and the instruction that made it. Nothing
//! is written and no store is needed; layers that are one blob are not read, and all others verified.

mod json;
mod layers;
mod text;

pub use self::{
    json::shown as json,
    text::{first_cause, shown as text},
};

use std::{collections::BTreeMap, str::FromStr};

use executor::compare::{
    settings::{Setting, settings},
    steps::{Pair, pair},
};
use oci::{
    Descriptor, DiffId, Platform, documents::Documents, image::ImageError, manifest::Index,
    registry::Registry,
};
use serde_json::json as object;

use self::layers::{LayerChanges, Side};
use crate::{
    args::DiffArgs,
    call::pretty,
    client,
    failure::{self, Failure},
    inspect::look::{Depth, Image, Inspected, Step, look},
    place::ImagePlace,
    request::RequestError,
    spec::call::Format,
};

/// What two names stand for, and all that differs.
#[derive(Debug)]
pub struct Comparison {
    /// Both, as they were named, with the digest of index or manifest.
    pub names: [(String, Descriptor); 2],
    /// Annotations of the indexes, where both are one.
    pub index: Vec<Setting>,
    /// One for each platform that is not the same in both.
    pub images: Vec<ImageDifference>,
}

/// How the images for one platform differ.
#[derive(Debug)]
pub struct ImageDifference {
    /// Which.
    pub platform: Platform,
    /// What is there.
    pub found: Found,
}

/// Which of both have an image for the platform.
#[derive(Debug)]
pub enum Found {
    /// The first only.
    First,
    /// The second only.
    Second,
    /// Both.
    Both {
        /// Of manifest and config, but for what steps have made.
        settings: Vec<Setting>,
        /// Those that differ, the oldest first.
        steps: Vec<StepDifference>,
    },
}

/// A step that is not the same in both, or is in one only.
#[derive(Debug)]
pub struct StepDifference {
    /// Its place among the steps of the image, from 1: the first's, where that has it.
    pub number: usize,
    /// How many steps that image has.
    pub of: usize,
    /// What it was made by.
    pub instruction: String,
    /// How.
    pub how: How,
}

/// How a step differs.
#[derive(Debug)]
pub enum How {
    /// The first has it only.
    First,
    /// The second has it only.
    Second,
    /// The files are the same, and their blobs are not.
    Packed(Box<[Descriptor; 2]>),
    /// One of them made a layer, and the other none.
    Layer {
        /// Whether it is the first.
        is_first: bool,
    },
    /// The line of the history, and what the layers hold.
    Made {
        /// Of the history.
        settings: Vec<Setting>,
        /// Of the file system; nothing where the layers are the same.
        changes: Option<LayerChanges>,
    },
}

/// `layerwright diff`: what goes to standard output, and whether nothing differs.
///
/// # Errors
/// An image cannot be had, or is none.
pub fn run(args: &DiffArgs) -> Result<(String, bool), Failure> {
    let registry = client::asking(&args.registries)?;
    let comparison = compare([&args.first, &args.second], args.platform.as_ref(), &registry)?;
    let text = match args.format {
        Format::Json => pretty(&json(&comparison)),
        Format::Text => text(&comparison, args.limit),
    };
    Ok((text, comparison.is_same()))
}

impl Comparison {
    /// Whether both are one.
    pub fn is_same(&self) -> bool {
        self.names[0].1.digest == self.names[1].1.digest
    }
}

/// Compares two images.
///
/// # Errors
/// As those of [`run`].
pub fn compare(
    names: [&str; 2],
    platform: Option<&Platform>,
    registry: &Registry,
) -> Result<Comparison, Failure> {
    let [first, second] = names.map(|name| Opened::new(name, platform, registry));
    let (first, second) = (first?, second?);
    let mut comparison =
        Comparison { names: [first.named(), second.named()], index: Vec::new(), images: Vec::new() };
    if !comparison.is_same() {
        comparison.index = index_settings(&first.found, &second.found);
        comparison.images = images(&first, &second)?;
    }
    Ok(comparison)
}

/// An image that is looked at.
struct Opened {
    name: String,
    documents: Documents,
    found: Inspected,
}

impl Opened {
    fn new(name: &str, platform: Option<&Platform>, registry: &Registry) -> Result<Self, Failure> {
        let place = ImagePlace::from_str(name).map_err(RequestError::from)?;
        let name = place.to_string();
        let failed = |source: ImageError| Failure::Inspect { name: name.clone(), source: Box::new(source) };
        let documents = place.documents(registry).map_err(failed)?;
        let found = look(&documents, platform, Depth::Images).map_err(failed)?;
        Ok(Self { name, documents, found })
    }

    fn named(&self) -> (String, Descriptor) {
        (self.name.clone(), self.found.root.descriptor.clone())
    }

    fn by_platform(&self) -> BTreeMap<String, &Image> {
        self.found.images.iter().map(|image| (image.platform.to_string(), image)).collect()
    }

    fn side<'a>(&'a self, layer: &'a Descriptor, diff_id: Option<DiffId>) -> Side<'a> {
        Side { name: &self.name, documents: &self.documents, layer, diff_id }
    }
}

fn index_settings(first: &Inspected, second: &Inspected) -> Vec<Setting> {
    let both = first.index.as_ref().zip(second.index.as_ref());
    let annotations = both.map(|(one, other)| {
        let fields = |index: &Index| object!({ "annotations": index.annotations });
        settings(&fields(one), &fields(other), &[])
    });
    annotations.unwrap_or_default()
}

fn images(first: &Opened, second: &Opened) -> Result<Vec<ImageDifference>, Failure> {
    let (ones, others) = (first.by_platform(), second.by_platform());
    let mut found = Vec::new();
    for (name, image) in &ones {
        let difference = match others.get(name) {
            Some(other) if other.descriptor.digest == image.descriptor.digest => continue,
            Some(other) => Found::Both {
                settings: image_settings(image, other),
                steps: steps((first, image), (second, other))?,
            },
            None => Found::First,
        };
        found.push(ImageDifference { platform: image.platform.clone(), found: difference });
    }
    let others = others.into_iter().filter(|(name, _)| !ones.contains_key(name));
    found.extend(
        others.map(|(_, image)| ImageDifference { platform: image.platform.clone(), found: Found::Second }),
    );
    Ok(found)
}

fn image_settings(first: &Image, second: &Image) -> Vec<Setting> {
    let manifest = |image: &Image| object!({ "annotations": image.manifest.annotations, "mediaType": image.manifest.media_type });
    let mut found = settings(&manifest(first), &manifest(second), &[]);
    found.extend(settings(&first.whole_config, &second.whole_config, &["history", "rootfs"]));
    found
}

/// A step with the diff ID of its layer.
struct Made<'a> {
    step: Step<'a>,
    diff_id: Option<DiffId>,
}

fn made(image: &Image) -> Vec<Made<'_>> {
    let mut ids = image.config.rootfs.diff_ids.iter().copied();
    let steps = image.steps().into_iter();
    steps.map(|step| Made { diff_id: step.layer.and_then(|_| ids.next()), step }).collect()
}

fn instructions<'a>(steps: &[Made<'a>]) -> Vec<&'a str> {
    steps.iter().map(|made| made.step.history.map_or("", |history| history.created_by.as_str())).collect()
}

fn steps(first: (&Opened, &Image), second: (&Opened, &Image)) -> Result<Vec<StepDifference>, Failure> {
    let (ones, others) = (made(first.1), made(second.1));
    let (one_texts, other_texts) = (instructions(&ones), instructions(&others));
    let mut found = Vec::new();
    for pair in pair(&one_texts, &other_texts) {
        let (at, of, instruction, how) = match pair {
            Pair::First(at) => (at, ones.len(), one_texts[at], Some(How::First)),
            Pair::Second(at) => (at, others.len(), other_texts[at], Some(How::Second)),
            Pair::Both(at, other) => {
                (at, ones.len(), one_texts[at], step(first.0, &ones[at], second.0, &others[other])?)
            }
        };
        let instruction = instruction.to_owned();
        found.extend(how.map(|how| StepDifference { number: at + 1, of, instruction, how }));
    }
    Ok(found)
}

/// How two steps of one text differ, if they do.
fn step(first: &Opened, one: &Made<'_>, second: &Opened, other: &Made<'_>) -> Result<Option<How>, Failure> {
    let line = |made: &Made<'_>| made.step.history.map_or(object!({}), |history| object!(history));
    let settings = settings(&line(one), &line(other), &["empty_layer"]);
    let changes = match (one.step.layer, other.step.layer) {
        (Some(layer), Some(other_layer)) => {
            let sides = (first.side(layer, one.diff_id), second.side(other_layer, other.diff_id));
            let is_same = one.diff_id.is_some() && one.diff_id == other.diff_id;
            if layer.digest == other_layer.digest {
                None
            } else if is_same {
                // What configs say of layers is believed when the layers have been read.
                layers::verify(sides.0, sides.1)?;
                if settings.is_empty() {
                    return Ok(Some(How::Packed(Box::new([layer.clone(), other_layer.clone()]))));
                }
                None
            } else {
                Some(layers::compare(sides.0, sides.1)?)
            }
        }
        (None, None) => None,
        (layer, _) => return Ok(Some(How::Layer { is_first: layer.is_some() })),
    };
    let differs = changes.is_some() || !settings.is_empty();
    Ok(differs.then_some(How::Made { settings, changes }))
}

/// The exit code of a comparison, as diff(1) has it.
pub fn exit_code(is_same: bool) -> u8 {
    u8::from(!is_same)
}

/// The exit code of one that could not be made. It is never that of images that differ: what would be the fault of a build
/// is that of an image which cannot be read; an image that there is none of is not the machine's fault.
pub fn exit_code_of(failure: &Failure) -> u8 {
    match failure.exit_code() {
        failure::BUILD if matches!(failure, Failure::Inspect { source, .. } if source.is_missing_platform()) => {
            failure::USAGE
        }
        failure::BUILD => failure::MACHINE,
        code => code,
    }
}

//! `layerwright cache prune`

use executor::gc::Cap;
use exporter::cache::care::{self, Entry, Keep, Survey, Swept, distinct};
use oci::{
    Descriptor, DiffId, ImageConfig, MediaType, Registry,
    document::{Document, DocumentError},
    documents::Documents,
    image::ImageError,
};

use super::{CareError, Place, json, text};
use crate::{
    args::CachePruneArgs, call::pretty, client, failure::Failure, history, place::ImagePlace,
    spec::call::Format,
};

/// What went, or would go.
pub struct Pruned<'a> {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// What was in the cache.
    pub survey: &'a Survey,
    /// What of it goes.
    pub going: Vec<&'a Entry>,
    /// What became of blobs that nothing names any more.
    pub swept: Option<Swept>,
    /// Images to keep of which the cache has nothing.
    pub strangers: Vec<String>,
}

impl Pruned<'_> {
    /// Bytes of what was there, and of what is left, each counted once.
    pub fn bytes(&self) -> (u64, u64) {
        (distinct(&self.survey.entries), distinct(self.left()))
    }

    /// What stays.
    pub fn left(&self) -> Vec<&Entry> {
        let goes = |entry: &Entry| self.going.iter().any(|going| going.digest == entry.digest);
        self.survey.entries.iter().filter(|entry| !goes(entry)).collect()
    }
}

/// Removes; the text for standard output.
///
/// # Errors
/// The cache cannot be read or written, or an image to keep cannot be had.
pub fn run(args: &CachePruneArgs) -> Result<String, Failure> {
    let place = Place::open(&args.at)?;
    if let Some(tag) = &place.tag {
        return Err(Failure::Care(CareError::Tag(tag.clone())));
    }
    // Before anything is removed: an image that cannot be had is one of which nothing would stay.
    let images = images(args)?;
    let survey = place.survey()?;
    let keep = keep(args, images.iter().flat_map(|(_, layers)| layers).cloned().collect());
    let chosen = care::choose(&survey.entries, &keep, history::now());
    let going: Vec<&Entry> = chosen.into_iter().map(|place| &survey.entries[place]).collect();
    let swept = match args.dry_run {
        true => None,
        false => Some(care::prune(&*place.tidy, &going, &survey.announcements, &place.cancel)?),
    };
    let strangers = strangers(&survey, &images);
    let pruned = Pruned { dry_run: args.dry_run, survey: &survey, going, swept, strangers };
    Ok(match args.at.format() {
        Format::Json => pretty(&json::pruned(&pruned)),
        Format::Text => text::pruned(&pruned, history::now()),
    })
}

/// As `gc` has it, and BuildKit: what is older goes, however little there is.
fn keep(args: &CachePruneArgs, images: Vec<Vec<DiffId>>) -> Keep {
    let storage = match (args.keep_storage, args.keep_duration) {
        (Some(Cap::Bytes(bytes)), _) => Some(bytes),
        (Some(_), _) => Some(u64::MAX),
        (None, _) => None,
    };
    // What is to fit into a size is removed by its age alone, unless a time is given too.
    Keep { within: args.keep_duration, storage, images }
}

/// The diff IDs of each image, for every platform.
type Layers = Vec<Vec<DiffId>>;

fn images(args: &CachePruneArgs) -> Result<Vec<(String, Layers)>, Failure> {
    if args.keep_images.is_empty() {
        return Ok(Vec::new());
    }
    let registry = client::asking(&args.at.registries)?;
    let found = |image: &ImagePlace| {
        let name = image.to_string();
        let layers = diff_ids(image, &registry);
        let failed = |source| Failure::Inspect { name: name.clone(), source: Box::new(source) };
        layers.map_err(failed).map(|layers| (name, layers))
    };
    args.keep_images.iter().map(found).collect()
}

fn diff_ids(image: &ImagePlace, registry: &Registry) -> Result<Layers, ImageError> {
    let documents = image.documents(registry)?;
    let root = documents.root()?;
    let mut images = Vec::new();
    for descriptor in documents.manifests(&root)? {
        let bytes = documents.document(&descriptor)?;
        let parsed =
            Document::parse(&descriptor.media_type, &bytes).map_err(|error| documents.unusable(error))?;
        let Document::Manifest(manifest) = parsed else { continue };
        if matches!(manifest.config.media_type, MediaType::OciConfig | MediaType::DockerConfig) {
            images.push(config(&documents, &manifest.config)?.rootfs.diff_ids);
        }
    }
    Ok(images)
}

fn config(documents: &Documents, descriptor: &Descriptor) -> Result<ImageConfig, ImageError> {
    let media_type = descriptor.media_type.clone();
    serde_json::from_slice(&documents.config(descriptor)?)
        .map_err(|source| documents.unusable(DocumentError::Json { media_type, source }))
}

/// Images to keep that are of no record: built elsewhere, or with times of their own.
fn strangers(survey: &Survey, images: &[(String, Layers)]) -> Vec<String> {
    let records = || survey.entries.iter().flat_map(Entry::records);
    let is_known = |layers: &Vec<DiffId>| records().any(|kept| layers.starts_with(&kept.diff_ids()));
    let unknown = images.iter().filter(|(_, layers)| !layers.iter().any(is_known));
    unknown.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::args::{self, CacheCommand, Cli, Command};

    #[test]
    fn what_is_kept_is_said_as_with_gc() {
        let keep_of = |line: &str| {
            let argv = ["layerwright", "cache", "prune", "--remote", "./cache"].into_iter();
            match args::parse(argv.chain(line.split_whitespace())) {
                Ok(Cli { command: Command::Cache(CacheCommand::Prune(args)) }) => {
                    Some((keep(&args, Vec::new()), args.keep_images.len()))
                }
                _ => None,
            }
        };
        let kept = |days: Option<u64>, storage: Option<u64>, images: usize| {
            let within = days.map(|days| Duration::from_secs(86_400 * days));
            Some((Keep { within, storage, images: Vec::new() }, images))
        };
        for (line, expected) in [
            ("--all", kept(None, None, 0)),
            ("-a --dry-run --keep-image app:1", kept(None, None, 1)),
            ("--keep-image app:1 --keep-image ./layout:x", kept(None, None, 2)),
            ("--keep-duration 7d", kept(Some(7), None, 0)),
            ("--keep-storage 1GB", kept(None, Some(1_000_000_000), 0)),
            ("--keep-storage off --json", kept(None, Some(u64::MAX), 0)),
            ("--keep-duration 7d --keep-storage 0 --format json", kept(Some(7), Some(0), 0)),
            ("", None),
            ("--dry-run", None),
            ("--all --keep-storage 1GB", None),
            ("--keep-storage 20%", None),
            ("--keep-duration 7", None),
            ("--keep-image UPPER", None),
        ] {
            assert_eq!(keep_of(line), expected, "{line:?}");
        }
    }
}

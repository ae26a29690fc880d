//! `layerwright index create`: images that were built anywhere, joined to one index and brought to its names.
//!
//! Everything is found out and joined before anything is written; then the uploads of every other push bring what the
//! names' repositories lack, the manifests, the index, and the names last.

use std::{collections::BTreeMap, str::FromStr};

use exporter::{
    IndexError, Joining, Push, Tagging, UploadOptions, Uploads, join,
    upload::{Document, Parcel},
};
use oci::{
    Descriptor, ImageConfig, MediaType, Platform, Sha256Digest,
    document::{Document as Parsed, DocumentError, Found},
    documents::Documents,
    image::ImageError,
    manifest::Index,
    registry::Registry,
};
use solver::Cancel;

use crate::{
    args::IndexCreateArgs,
    build::Events,
    client,
    failure::Failure,
    place::ImagePlace,
    push::{self, Pushed},
    request::RequestError,
    spec::annotation::{AnnotationSpec, Kind},
};

/// Creates an index; gives the exit code.
pub fn create(args: &IndexCreateArgs) -> u8 {
    if args.dry_run {
        let joined = client::asking(&args.registries).and_then(|registry| joined(args, &registry));
        return crate::answer(joined.map(|(_, index)| text(&index) + "\n"));
    }
    push::shown(args.progress, args.quiet, |environment, events, cancel| {
        let registry = client::until(&args.registries, environment, &events, cancel)?;
        bring(args, registry, events, cancel)
    })
}

fn text(index: &Document) -> String {
    String::from_utf8_lossy(&index.bytes).into_owned()
}

/// Joins, brings and names.
fn bring(
    args: &IndexCreateArgs,
    registry: Registry,
    events: Events,
    cancel: &Cancel,
) -> Result<Pushed, Failure> {
    let (manifests, index) = joined(args, &registry)?;
    let digest = index.descriptor.digest;
    let parcel = Parcel::joined(&manifests, index).map_err(|source| failed("the sources", source))?;
    let push = Push { parcel, names: args.tags.clone(), tagging: Tagging::Tags };
    let options = UploadOptions { registry, events, cancel: cancel.clone(), refused: Cancel::default() };
    let uploads = Uploads::new(options, &push.names);
    uploads.name(uploads.bring(&[&push])?)?;
    Ok(Pushed { digest, destination: push.told() })
}

/// One of the places that images come from.
struct Source {
    documents: Documents,
    root: Found,
    /// What the root names, or the root itself; those of images with their platforms.
    manifests: Vec<Found>,
}

impl Source {
    fn find(place: &ImagePlace, registry: &Registry) -> Result<Self, Failure> {
        let found = || {
            let documents = place.documents(registry)?;
            let root = documents.root()?;
            let descriptors = documents.manifests(&root)?.into_iter();
            let manifests = descriptors.map(|descriptor| manifest(&documents, &root, descriptor));
            let manifests = manifests.collect::<Result<_, _>>()?;
            Ok(Self { documents, root, manifests })
        };
        found().map_err(|source| failed(&place.to_string(), source))
    }

    fn descriptors(&self) -> impl Iterator<Item = Descriptor> {
        self.manifests.iter().map(|found| found.descriptor.clone())
    }

    /// Those of the root, if that is an index.
    fn annotations(&self) -> BTreeMap<String, String> {
        match Parsed::parse(&self.root.descriptor.media_type, &self.root.bytes) {
            Ok(Parsed::Index(index)) => index.annotations,
            _ => BTreeMap::new(),
        }
    }
}

fn failed(name: &str, source: ImageError) -> Failure {
    Failure::Inspect { name: name.to_owned(), source: Box::new(source) }
}

/// A manifest as an index names it. What an OCI layout says of its images it says of them there only.
fn manifest(documents: &Documents, root: &Found, descriptor: Descriptor) -> Result<Found, ImageError> {
    let is_root = descriptor.digest == root.descriptor.digest;
    let (mut descriptor, bytes) = match is_root {
        true => {
            let Descriptor { media_type, digest, size, .. } = descriptor;
            (Descriptor::new(media_type, digest, size), root.bytes.clone())
        }
        false => {
            let bytes = documents.document(&descriptor)?;
            (descriptor, bytes)
        }
    };
    if descriptor.platform.is_none() {
        descriptor.platform = platform(documents, &descriptor, &bytes)?;
    }
    Ok(Found { descriptor, bytes })
}

/// What an image's config says; nothing where it is of something else.
fn platform(
    documents: &Documents,
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<Option<Platform>, ImageError> {
    let unusable = |error| documents.unusable(error);
    let Parsed::Manifest(manifest) = Parsed::parse(&descriptor.media_type, bytes).map_err(unusable)? else {
        return Ok(None);
    };
    let media_type = manifest.config.media_type.clone();
    if !matches!(media_type, MediaType::OciConfig | MediaType::DockerConfig) {
        return Ok(None);
    }
    let config = documents.config(&manifest.config)?;
    let config: ImageConfig = serde_json::from_slice(&config)
        .map_err(|source| unusable(DocumentError::Json { media_type, source }))?;
    Ok(Some(config.platform()))
}

/// The index, and the manifests it names with the places where what they name is.
fn joined(
    args: &IndexCreateArgs,
    registry: &Registry,
) -> Result<(Vec<(Documents, Found)>, Document), Failure> {
    let given = annotated(&args.annotations)?;
    let find = |text: &String| {
        let place = ImagePlace::from_str(text).map_err(RequestError::from)?;
        Source::find(&place, registry)
    };
    let sources = args.sources.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let kept = args.tags.first().filter(|_| args.append);
    let kept = kept.map(|name| Source::find(&ImagePlace::Registry(name.clone()), registry)).transpose()?;
    // What there is to be kept of an index: with --append that of the name, else that of the only source.
    let whole = kept.as_ref().or(if let [only] = &sources[..] { Some(only) } else { None });
    let mut annotations = whole.map(Source::annotations).unwrap_or_default();
    annotations.extend(given.annotations);
    let (index, media_type) = join(&Joining {
        sources: sources.iter().flat_map(Source::descriptors).collect(),
        kept: kept.iter().flat_map(Source::descriptors).collect(),
        annotations,
        ..given
    })?;
    let document = match sources.as_slice() {
        [only] if is_same(&only.root, &index) => {
            Document { descriptor: only.root.descriptor.clone(), bytes: only.root.bytes.clone() }
        }
        _ => {
            let bytes = serde_json::to_vec(&index).expect("plain data with string keys");
            Document { descriptor: Descriptor::of(media_type, &bytes), bytes }
        }
    };
    let mut by_digest: BTreeMap<Sha256Digest, (Documents, Found)> = BTreeMap::new();
    for Source { documents, manifests, .. } in kept.into_iter().chain(sources) {
        for found in manifests {
            by_digest.entry(found.descriptor.digest).or_insert((documents.clone(), found));
        }
    }
    let manifests = index.manifests.iter().filter_map(|entry| by_digest.remove(&entry.digest));
    Ok((manifests.collect(), document))
}

/// Whether joining has changed nothing: an index alone is taken over as it is, with its digest.
fn is_same(root: &Found, index: &Index) -> bool {
    let parsed = Parsed::parse(&root.descriptor.media_type, &root.bytes);
    matches!(parsed, Ok(Parsed::Index(own))
        if (&own.manifests, &own.annotations) == (&index.manifests, &index.annotations))
}

/// Where the annotations go. The manifests exist already, and a registry keeps no descriptor of the index.
fn annotated(specs: &[AnnotationSpec]) -> Result<Joining, IndexError> {
    let mut joining = Joining::default();
    for AnnotationSpec { places, key, value } in specs {
        for place in places {
            let map = match (place.kind, &place.platform) {
                (Kind::Index, None) => &mut joining.annotations,
                (Kind::ManifestDescriptor, None) => &mut joining.of_all,
                (Kind::ManifestDescriptor, Some(platform)) => {
                    joining.of_platform.entry(platform.clone()).or_default()
                }
                _ => return Err(IndexError::NoPlace { kind: place.kind.name(), key: key.clone() }),
            };
            map.insert(key.clone(), value.clone());
        }
    }
    Ok(joining)
}

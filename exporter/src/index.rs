//! Joins images to one index. Pure: what the images are was found out before, and the bytes are a function of that alone.
//!
//! Entries stand in the order of the sources, each manifest once and each platform once: which of two images for a
//! platform is meant, nobody but the user can know. Manifests that say something about an image (attestations) go with it.

use std::collections::BTreeMap;

use oci::{Descriptor, MediaType, Platform, Sha256Digest, manifest::Index};

/// The annotation by which BuildKit's attestations name the manifest that they are about.
const ABOUT: &str = "vnd.docker.reference.digest";

/// What is joined to what.
#[derive(Debug, Clone, Default)]
pub struct Joining {
    /// What the index holds already; an image of a platform that a source is for goes.
    pub kept: Vec<Descriptor>,
    /// The manifests of the sources; those of images have a platform.
    pub sources: Vec<Descriptor>,
    /// Annotations of the index.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of the entries of all images.
    pub of_all: BTreeMap<String, String>,
    /// Annotations of the entries of single platforms.
    pub of_platform: BTreeMap<Platform, BTreeMap<String, String>>,
}

/// Why images cannot be joined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// There is nothing to join.
    #[error("none of the sources is an image")]
    Empty,
    /// Two images of one platform.
    #[error("two images are for {platform}: {first} and {second}")]
    SamePlatform {
        /// Which.
        platform: Box<Platform>,
        /// The one.
        first: Sha256Digest,
        /// The other.
        second: Sha256Digest,
    },
    /// An annotation of an image that is not there.
    #[error("--annotation manifest-descriptor[{0}]: no source is an image for that platform")]
    NoPlatform(Box<Platform>),
    /// An annotation that has no place in an index.
    #[error(
        "--annotation {kind}:{key}: a manifest that exists cannot be annotated, and an index has no platform: use index: \
         or manifest-descriptor:"
    )]
    NoPlace {
        /// What it was meant for.
        kind: &'static str,
        /// Which.
        key: String,
    },
}

/// The index. It is Docker's where all manifests are and nothing is annotated, else OCI's.
///
/// # Errors
/// [`IndexError`]
pub fn join(joining: &Joining) -> Result<(Index, MediaType), IndexError> {
    let Joining { kept, sources, annotations, of_all, of_platform } = joining;
    let mut manifests = remaining(kept, sources);
    for source in sources {
        if !manifests.iter().any(|other| other.digest == source.digest) {
            manifests.push(source.clone());
        }
    }
    check(&manifests)?;
    for platform in of_platform.keys() {
        if !manifests.iter().any(|entry| image_platform(entry).as_ref() == Some(platform)) {
            return Err(IndexError::NoPlatform(Box::new(platform.clone())));
        }
    }
    for entry in &mut manifests {
        let Some(platform) = image_platform(entry) else { continue };
        let added = of_all.iter().chain(of_platform.get(&platform).into_iter().flatten());
        entry.annotations.extend(added.map(|(key, value)| (key.clone(), value.clone())));
    }
    let is_dockers = manifests.iter().all(|entry| entry.media_type == MediaType::DockerManifest);
    let is_annotated = !annotations.is_empty() || manifests.iter().any(|entry| !entry.annotations.is_empty());
    let media_type = match is_dockers && !is_annotated {
        true => MediaType::DockerIndex,
        false => MediaType::OciIndex,
    };
    let annotations = annotations.clone();
    Ok((
        Index { schema_version: 2, media_type: Some(media_type.clone()), manifests, annotations },
        media_type,
    ))
}

/// What stays of an index to which sources are added.
fn remaining(kept: &[Descriptor], sources: &[Descriptor]) -> Vec<Descriptor> {
    let is_replaced = |entry: &&Descriptor| {
        let platform = image_platform(entry);
        platform.is_some() && sources.iter().any(|source| image_platform(source) == platform)
    };
    let replaced: Vec<String> =
        kept.iter().filter(is_replaced).map(|entry| entry.digest.to_string()).collect();
    let goes = |entry: &Descriptor| {
        let about = entry.annotations.get(ABOUT);
        replaced.contains(&entry.digest.to_string()) || about.is_some_and(|about| replaced.contains(about))
    };
    kept.iter().filter(|entry| !goes(entry)).cloned().collect()
}

fn check(manifests: &[Descriptor]) -> Result<(), IndexError> {
    let mut images: BTreeMap<Platform, Sha256Digest> = BTreeMap::new();
    for entry in manifests {
        let Some(platform) = image_platform(entry) else { continue };
        if let Some(first) = images.insert(platform.clone(), entry.digest) {
            return Err(IndexError::SamePlatform {
                platform: Box::new(platform),
                first,
                second: entry.digest,
            });
        }
    }
    if images.is_empty() { Err(IndexError::Empty) } else { Ok(()) }
}

/// The platform of an image, however its variant is written; attestations have none that anybody could ask for.
fn image_platform(entry: &Descriptor) -> Option<Platform> {
    let own = entry.platform.as_ref().filter(|platform| platform.os != "unknown")?;
    let platform = Platform::new(&own.os, &own.architecture, own.variant.as_deref());
    Some(Platform { os_version: own.os_version.clone(), ..platform })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str, content: &str) -> Descriptor {
        let platform = platform.parse().expect("a platform");
        Descriptor { platform: Some(platform), ..Descriptor::of(MediaType::OciManifest, content.as_bytes()) }
    }

    fn attestation(of: &Descriptor) -> Descriptor {
        let text = of.digest.to_string();
        Descriptor {
            annotations: BTreeMap::from([(ABOUT.to_owned(), text.clone())]),
            platform: Some(Platform {
                architecture: "unknown".to_owned(),
                os: "unknown".to_owned(),
                os_version: None,
                variant: None,
            }),
            ..Descriptor::of(MediaType::OciManifest, text.as_bytes())
        }
    }

    fn digests(joining: &Joining) -> Vec<Sha256Digest> {
        let (index, _) = join(joining).expect("joined");
        index.manifests.iter().map(|entry| entry.digest).collect()
    }

    #[test]
    fn entries_stand_as_given_and_once() {
        let (amd, arm) = (entry("amd64", "a"), entry("arm64", "b"));
        let about = attestation(&arm);
        let sources = vec![arm.clone(), about.clone(), amd.clone(), arm.clone()];
        assert_eq!(
            digests(&Joining { sources, ..Joining::default() }),
            [arm.digest, about.digest, amd.digest]
        );
    }

    #[test]
    fn what_is_appended_replaces_the_image_of_its_platform_and_what_is_about_it() {
        let (amd, arm, new) = (entry("amd64", "a"), entry("arm64", "b"), entry("arm64", "c"));
        let kept = vec![arm.clone(), attestation(&arm), amd.clone()];
        let joining = Joining { kept, sources: vec![new.clone()], ..Joining::default() };
        assert_eq!(digests(&joining), [amd.digest, new.digest]);
    }

    #[test]
    fn docker_manifests_make_a_docker_index_unless_something_is_annotated() {
        let docker = Descriptor { media_type: MediaType::DockerManifest, ..entry("amd64", "a") };
        let mut joining = Joining { sources: vec![docker], ..Joining::default() };
        assert_eq!(join(&joining).expect("joined").1, MediaType::DockerIndex);
        joining.of_all = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let (index, media_type) = join(&joining).expect("joined");
        assert_eq!((media_type, &index.manifests[0].annotations), (MediaType::OciIndex, &joining.of_all));
    }

    #[test]
    fn what_nobody_could_choose_from_is_refused() {
        let joining = |sources| Joining { sources, ..Joining::default() };
        let amd = entry("amd64", "a");
        let error = join(&joining(vec![amd.clone(), entry("amd64", "b")])).expect_err("two of a kind");
        assert!(error.to_string().starts_with("two images are for linux/amd64: sha256:"), "{error}");
        assert_eq!(join(&joining(vec![attestation(&amd)])).map(drop), Err(IndexError::Empty));
        let of_platform = BTreeMap::from([("arm64".parse().expect("a platform"), BTreeMap::new())]);
        let error = join(&Joining { sources: vec![amd], of_platform, ..Joining::default() });
        assert!(matches!(error, Err(IndexError::NoPlatform(_))));
    }
}

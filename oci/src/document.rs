//! What the bytes of a manifest or index are: decided once, from the type they were promised as and from their shape.
//!
//! The same bytes read as two different things are how a pinned digest was made to name two images (CVE-2021-41190),
//! so type, body and shape must agree, and what could be both is neither.

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    config::ImageConfig,
    descriptor::{Descriptor, MediaType},
    digest::Sha256Digest,
    manifest::{Index, Manifest},
    platform::Platform,
};

/// Longest manifest, index or config that is read, in bytes. What registries accept is as long (distribution-spec).
pub const MAX_SIZE: u64 = 4 << 20;

/// How deep indexes may lie in one another.
pub const MAX_DEPTH: usize = 4;

/// A parsed manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Why bytes are not the document they should be.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or a field is missing or given twice.
    #[error("not valid JSON of {media_type}")]
    Json {
        /// What it should be.
        media_type: MediaType,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// The body and what announced it name different types.
    #[error("announced as {announced}, but its body says {body}")]
    MediaType {
        /// By the descriptor or the `Content-Type`.
        announced: MediaType,
        /// By the field `mediaType`.
        body: MediaType,
    },
    /// Neither the body nor anything else says what it is.
    #[error("nothing says what type of document it is")]
    Untyped,
    /// It has the fields of an index and of a manifest.
    #[error("it is both an index and a manifest")]
    Ambiguous,
    /// Docker's first manifest format, without a config.
    #[error("its format is Docker's schema 1, which is not supported")]
    Schema1,
    /// A type that is neither an image nor an index.
    #[error("{0} is not an image or an index of images")]
    Unsupported(MediaType),
    /// Longer than [`MAX_SIZE`].
    #[error("it has {size} bytes, and the limit is {MAX_SIZE}")]
    TooLarge {
        /// Its length.
        size: u64,
    },
    /// The bytes have another digest or length than the descriptor says.
    #[error("expected {expected} of {expected_size} bytes, got {found} of {found_size} bytes")]
    Mismatch {
        /// From the descriptor.
        expected: Sha256Digest,
        /// From the descriptor.
        expected_size: u64,
        /// Of the bytes.
        found: Sha256Digest,
        /// Of the bytes.
        found_size: u64,
    },
    /// Manifest and config do not fit together, or hold what cannot be used.
    #[error("{0}")]
    Inconsistent(String),
    /// No image in the index is for the platform.
    #[error("there is no image for {platform}{}", among(available))]
    NoPlatform {
        /// Which was asked for.
        platform: Box<Platform>,
        /// Those there are.
        available: Vec<String>,
    },
    /// Indexes in indexes in indexes.
    #[error("indexes are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

fn among(available: &[String]) -> String {
    if available.is_empty() { String::new() } else { format!(", only for {}", available.join(", ")) }
}

/// The fields that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<MediaType>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// The media type of a document, from what announced it (a descriptor or a `Content-Type`) and from its body.
///
/// # Errors
/// [`DocumentError`] when they disagree, or when the body has two shapes.
pub fn media_type(announced: Option<&MediaType>, bytes: &[u8]) -> Result<MediaType, DocumentError> {
    let unknown = || announced.cloned().unwrap_or(MediaType::Other("application/json".to_owned()));
    let shape: Shape = serde_json::from_slice(bytes)
        .map_err(|source| DocumentError::Json { media_type: unknown(), source })?;
    if shape.fs_layers.is_some() {
        return Err(DocumentError::Schema1);
    }
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(DocumentError::Ambiguous);
    }
    match (announced, shape.media_type) {
        (Some(announced), Some(body)) if *announced != body => {
            Err(DocumentError::MediaType { announced: announced.clone(), body })
        }
        (Some(media_type), _) => Ok(media_type.clone()),
        (None, Some(media_type)) => Ok(media_type),
        (None, None) => Err(DocumentError::Untyped),
    }
}

impl Document {
    /// Parses a document of a known type.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(announced: &MediaType, bytes: &[u8]) -> Result<Self, DocumentError> {
        let media_type = media_type(Some(announced), bytes)?;
        if media_type.is_index() {
            return Ok(Self::Index(json(&media_type, bytes)?));
        }
        if media_type.is_manifest() {
            return Ok(Self::Manifest(json(&media_type, bytes)?));
        }
        Err(DocumentError::Unsupported(media_type))
    }
}

fn json<'a, T: Deserialize<'a>>(media_type: &MediaType, bytes: &'a [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes)
        .map_err(|source| DocumentError::Json { media_type: media_type.clone(), source })
}

/// Refuses to read a document that is too long.
///
/// # Errors
/// [`DocumentError::TooLarge`].
pub fn check_size(size: u64) -> Result<(), DocumentError> {
    if size > MAX_SIZE { Err(DocumentError::TooLarge { size }) } else { Ok(()) }
}

/// Checks bytes against their descriptor.
///
/// # Errors
/// [`DocumentError::Mismatch`].
pub fn verify(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), DocumentError> {
    let (found, found_size) = (Sha256Digest::of(bytes), bytes.len() as u64);
    if (found, found_size) == (descriptor.digest, descriptor.size) {
        return Ok(());
    }
    let (expected, expected_size) = (descriptor.digest, descriptor.size);
    Err(DocumentError::Mismatch { expected, expected_size, found, found_size })
}

/// A document with what points at it.
#[derive(Debug, Clone)]
pub struct Found {
    /// What points at it.
    pub descriptor: Descriptor,
    /// Its verified bytes.
    pub bytes: Vec<u8>,
}

/// Goes down from an index to the manifest of one platform; a manifest is its own answer, whatever its platform, as
/// with `docker build`. `read` gets the verified bytes of a descriptor.
///
/// # Errors
/// What `read` fails with, and [`DocumentError`].
pub fn select<E: From<DocumentError>>(
    root: Found,
    platform: &Platform,
    read: &mut dyn FnMut(&Descriptor) -> Result<Vec<u8>, E>,
) -> Result<(Found, Manifest), E> {
    let mut found = root;
    for _ in 0..=MAX_DEPTH {
        let index = match Document::parse(&found.descriptor.media_type, &found.bytes)? {
            Document::Manifest(manifest) => return Ok((found, manifest)),
            Document::Index(index) => index,
        };
        let descriptor = pick(&index, platform)?.clone();
        check_size(descriptor.size)?;
        let bytes = read(&descriptor)?;
        found = Found { descriptor, bytes };
    }
    Err(DocumentError::TooDeep.into())
}

/// The entry of an index for a platform: the first that says so, else the only one, where that says nothing.
fn pick<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, DocumentError> {
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|own| own.satisfies(platform));
    if let Some(entry) = index.manifests.iter().find(fits) {
        return Ok(entry);
    }
    if let [entry @ Descriptor { platform: None, .. }] = index.manifests.as_slice() {
        return Ok(entry);
    }
    let known = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
    let available = known.filter(|own| own.os != "unknown").map(Platform::to_string).collect();
    Err(DocumentError::NoPlatform { platform: Box::new(platform.clone()), available })
}

/// Parses the config of an image and checks that it and the manifest are about the same layers, all of types that can
/// be unpacked.
///
/// # Errors
/// [`DocumentError::Json`] or [`DocumentError::Inconsistent`].
pub fn image_config(manifest: &Manifest, bytes: &[u8]) -> Result<ImageConfig, DocumentError> {
    let media_type = &manifest.config.media_type;
    if !matches!(media_type, MediaType::OciConfig | MediaType::DockerConfig) {
        return Err(DocumentError::Unsupported(media_type.clone()));
    }
    let config: ImageConfig = json(media_type, bytes)?;
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        let reason = format!("the manifest has {layers} layers, but the config has {diff_ids} diff IDs");
        return Err(DocumentError::Inconsistent(reason));
    }
    let unreadable = |layer: &&Descriptor| layer.media_type.layer_compression().is_none();
    if let Some(layer) = manifest.layers.iter().find(unreadable) {
        let reason =
            format!("layer {} is of type {}, which cannot be unpacked", layer.digest, layer.media_type);
        return Err(DocumentError::Inconsistent(reason));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn of(name: &str) -> MediaType {
        MediaType::from(name.to_owned())
    }

    #[test]
    fn type_body_and_shape_must_agree() {
        let cases: [(Option<&str>, &str, &str); 9] = [
            (Some(MANIFEST), r#"{"config":{},"layers":[]}"#, MANIFEST),
            (None, r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#, INDEX),
            (Some("a/b"), r#"{"mediaType":"a/b"}"#, "a/b"),
            (None, r#"{"config":{},"layers":[]}"#, "nothing says"),
            (
                Some(INDEX),
                r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#,
                "but its body says",
            ),
            (Some(INDEX), r#"{"manifests":[],"layers":[]}"#, "both an index and a manifest"),
            (Some(INDEX), r#"{"manifests":[],"config":{}}"#, "both an index and a manifest"),
            (Some(MANIFEST), r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (Some(MANIFEST), r#"{"mediaType":"a/b","mediaType":"c/d"}"#, "not valid JSON"),
        ];
        for (announced, body, want) in cases {
            let found = match media_type(announced.map(of).as_ref(), body.as_bytes()) {
                Ok(found) => found.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(want), "{body}: {found}");
        }
    }

    fn index(entries: &[(&str, Option<&str>)]) -> Found {
        let manifests = entries.iter().map(|(body, platform)| Descriptor {
            platform: platform.map(|text| text.parse().expect("a platform")),
            ..Descriptor::of(of(if body.contains("manifests") { INDEX } else { MANIFEST }), body.as_bytes())
        });
        let index = Index {
            schema_version: 2,
            media_type: Some(MediaType::OciIndex),
            manifests: manifests.collect(),
            annotations: Default::default(),
        };
        let bytes = serde_json::to_vec(&index).expect("serialisable");
        Found { descriptor: Descriptor::of(MediaType::OciIndex, &bytes), bytes }
    }

    fn manifest(marker: &str) -> String {
        let digest = Sha256Digest::of(marker.as_bytes());
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x/{marker}","digest":"{digest}","size":1}},"layers":[]}}"#
        )
    }

    fn choose(root: Found, bodies: &[&str], platform: &str) -> Result<String, DocumentError> {
        let mut read = |descriptor: &Descriptor| {
            let body = bodies.iter().find(|body| Sha256Digest::of(body.as_bytes()) == descriptor.digest);
            Ok::<_, DocumentError>(body.expect("a known descriptor").as_bytes().to_vec())
        };
        let platform = platform.parse().expect("a platform");
        select(root, &platform, &mut read).map(|(_, manifest)| manifest.config.media_type.to_string())
    }

    #[test]
    fn the_manifest_of_the_platform_is_found_through_nested_indexes() {
        let (amd, arm) = (manifest("amd"), manifest("arm"));
        let inner = index(&[(&arm, Some("linux/arm64"))]);
        let inner_text = String::from_utf8(inner.bytes).expect("JSON");
        let entries = [(amd.as_str(), Some("linux/amd64")), (inner_text.as_str(), Some("linux/arm64/v8"))];
        let bodies = [amd.as_str(), arm.as_str(), inner_text.as_str()];
        assert_eq!(choose(index(&entries), &bodies, "linux/amd64").expect("there"), "x/amd");
        assert_eq!(choose(index(&entries), &bodies, "arm64").expect("there"), "x/arm");

        let error = choose(index(&entries), &bodies, "linux/s390x").expect_err("not there").to_string();
        assert_eq!(error, "there is no image for linux/s390x, only for linux/amd64, linux/arm64");
        assert_eq!(choose(index(&[(&amd, None)]), &bodies, "linux/s390x").expect("the only one"), "x/amd");
    }

    #[test]
    fn nesting_has_an_end() {
        let mut bodies = vec![manifest("deep")];
        for _ in 0..6 {
            let outer = index(&[(bodies.last().expect("one at least"), None)]);
            bodies.push(String::from_utf8(outer.bytes).expect("JSON"));
        }
        let bytes = bodies.last().expect("seven").clone().into_bytes();
        let root = Found { descriptor: Descriptor::of(MediaType::OciIndex, &bytes), bytes };
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        assert!(matches!(choose(root, &bodies, "amd64"), Err(DocumentError::TooDeep)));
    }

    #[test]
    fn a_config_of_other_layers_is_refused() {
        let config = Descriptor::of(MediaType::OciConfig, b"");
        let layer = |name: &str| Descriptor::of(of(name), b"x");
        let with = |layers| Manifest {
            schema_version: 2,
            media_type: None,
            config: config.clone(),
            layers,
            annotations: Default::default(),
        };
        let diff_id = Sha256Digest::of(b"x");
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        );
        let check =
            |layers| image_config(&with(layers), text.as_bytes()).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(check(vec![layer("application/vnd.oci.image.layer.v1.tar+gzip")]), Ok(()));
        assert!(check(vec![]).expect_err("no layer").contains("0 layers, but the config has 1 diff IDs"));
        let foreign = check(vec![layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]);
        assert!(foreign.expect_err("not ours").contains("cannot be unpacked"));
    }
}

//! The form of what a name stands for: an OCI manifest whose config is the artifact's document.
//!
//! The document is a blob like any other, and where it is small it is embedded in the config's descriptor too (`data`,
//! image-spec, descriptor.md), so that who has the manifest has all. The layers are the blobs that must live as long. The same
//! manifest lies in a registry under a tag, and in a directory in a file.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use oci::{
    Descriptor, MediaType, Sha256Digest,
    document::{self, Document, DocumentError},
    manifest::Manifest,
};
use serde::{Deserialize, Serialize};

use super::{
    announcement::{Announcement, Said},
    storage::{Artifact, ArtifactKind},
};

/// Longest document that is read, in bytes.
pub const MAX_DOCUMENT: u64 = 32 << 20;
/// Documents up to this many bytes are embedded: with them, and base64's third more, a manifest stays well below the 4 MiB that
/// registries take.
const MAX_EMBEDDED: usize = 512 << 10;
/// So many blobs are named by a manifest, for the same reason. Those of a bundle are named by its records' own artifacts, too.
const MAX_BLOBS: usize = 12_000;
/// Bytes of a signature, which is Ed25519's.
pub const SIGNATURE_SIZE: usize = 64;
/// The content of an announcement's config and of its only layer (image-spec, "Guidance for an Empty Descriptor"): all that is
/// said is in the annotations.
pub const EMPTY: &[u8] = b"{}";
const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// What tells an announcement from all else that is empty.
pub const ANNOUNCEMENT_MEDIA_TYPE: &str = "application/vnd.layerwright.cache.announcement.v1";
/// The annotation that holds the signature of the document, in base64.
pub const SIGNATURE: &str = "dev.layerwright.cache.signature";

/// The manifest of an artifact. Field order is the order of the JSON we write.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactManifest {
    schema_version: u32,
    media_type: MediaType,
    artifact_type: MediaType,
    config: Embedding,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// A descriptor with the bytes it describes.
#[derive(Debug, Serialize, Deserialize)]
struct Embedding {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

/// Why a manifest is not that of an artifact.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not a manifest, or not the document that it names.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The document is longer than anybody would write.
    #[error("its document has {0} bytes, and the limit is {MAX_DOCUMENT}")]
    TooLarge(u64),
    /// Not JSON of the right shape.
    #[error("not the manifest of an artifact")]
    Json(#[from] serde_json::Error),
    /// What should be base64 is not.
    #[error("{0} is not base64")]
    Base64(&'static str),
    /// An announcement that says nothing.
    #[error("its annotations do not say what is announced")]
    Silent,
    /// No signature has so many bytes.
    #[error("its signature has {0} bytes, and any of ours has {SIGNATURE_SIZE}")]
    Signature(usize),
}

/// What a manifest says.
#[derive(Debug)]
pub enum Parsed {
    /// An artifact with its document in it.
    Whole(Artifact),
    /// An artifact whose document has to be read: the blob of this descriptor.
    Apart(Descriptor, Apart),
    /// What a builder says of a step that it runs.
    Announcement(Announcement),
    /// An image.
    Image(Manifest),
    /// Several.
    Index(Vec<Descriptor>),
}

/// An artifact that lacks its document.
#[derive(Debug)]
pub struct Apart(Artifact);

impl Apart {
    /// With the bytes that the descriptor describes.
    ///
    /// # Errors
    /// They are others.
    pub fn with(self, descriptor: &Descriptor, document: Vec<u8>) -> Result<Artifact, ArtifactError> {
        document::verify(descriptor, &document)?;
        Ok(Artifact { document, ..self.0 })
    }
}

/// The descriptor of an artifact's document.
pub fn config(kind: ArtifactKind, document: &[u8]) -> Descriptor {
    Descriptor::of(kind.media_type(), document)
}

/// The manifest of an artifact: the same bytes for the same artifact, and no more than registries take.
pub fn manifest(artifact: &Artifact) -> Vec<u8> {
    let embedded = artifact.document.len() <= MAX_EMBEDDED;
    let data = embedded.then(|| BASE64_STANDARD.encode(&artifact.document));
    let signature =
        artifact.signature.iter().map(|bytes| (SIGNATURE.to_owned(), BASE64_STANDARD.encode(bytes)));
    let manifest = ArtifactManifest {
        schema_version: 2,
        media_type: MediaType::OciManifest,
        artifact_type: artifact.kind.media_type(),
        config: Embedding { descriptor: config(artifact.kind, &artifact.document), data },
        layers: artifact.blobs.iter().take(MAX_BLOBS).cloned().collect(),
        annotations: signature.collect(),
    };
    serde_json::to_vec(&manifest).expect("it has no map with keys that are not text")
}

/// The descriptor of [`EMPTY`].
pub fn empty() -> Descriptor {
    Descriptor::of(MediaType::Other(EMPTY_MEDIA_TYPE.to_owned()), EMPTY)
}

/// The manifest of an announcement.
pub fn announcement(announcement: &Announcement) -> Vec<u8> {
    let Announcement { said, signature } = announcement;
    let signature = signature.iter().map(|bytes| (SIGNATURE.to_owned(), BASE64_STANDARD.encode(bytes)));
    let manifest = ArtifactManifest {
        schema_version: 2,
        media_type: MediaType::OciManifest,
        artifact_type: MediaType::Other(ANNOUNCEMENT_MEDIA_TYPE.to_owned()),
        config: Embedding { descriptor: empty(), data: Some(BASE64_STANDARD.encode(EMPTY)) },
        layers: vec![empty()],
        annotations: said.annotations().chain(signature).collect(),
    };
    serde_json::to_vec(&manifest).expect("it has no map with keys that are not text")
}

/// What the bytes of a manifest say; its digest is for the caller to look at.
///
/// # Errors
/// They are none.
pub fn parse(media_type: &MediaType, bytes: &[u8]) -> Result<Parsed, ArtifactError> {
    let manifest = match Document::parse(media_type, bytes)? {
        Document::Index(index) => return Ok(Parsed::Index(index.manifests)),
        Document::Manifest(manifest) => manifest,
    };
    if manifest.config.size > MAX_DOCUMENT {
        return Err(ArtifactError::TooLarge(manifest.config.size));
    }
    let Some(kind) = ArtifactKind::of(&manifest.config.media_type) else {
        let announced = announced(bytes).transpose()?;
        return Ok(announced.map_or_else(|| Parsed::Image(manifest), Parsed::Announcement));
    };
    let ArtifactManifest { config, layers, annotations, .. } = serde_json::from_slice(bytes)?;
    let signature = signature(&annotations)?;
    let apart = Apart(Artifact { kind, document: Vec::new(), signature, blobs: layers });
    match &config.data {
        Some(data) => Ok(Parsed::Whole(apart.with(&config.descriptor, decoded(data, "its document")?)?)),
        None => Ok(Parsed::Apart(config.descriptor, apart)),
    }
}

/// What an announcement says, where a manifest is one.
fn announced(bytes: &[u8]) -> Option<Result<Announcement, ArtifactError>> {
    let ArtifactManifest { artifact_type, annotations, .. } = serde_json::from_slice(bytes).ok()?;
    let is_ours = artifact_type == MediaType::Other(ANNOUNCEMENT_MEDIA_TYPE.to_owned());
    let read = || {
        let said = Said::of(&annotations).ok_or(ArtifactError::Silent)?;
        Ok(Announcement { said, signature: signature(&annotations)? })
    };
    is_ours.then(read)
}

/// The signature among annotations, where there is one.
fn signature(annotations: &BTreeMap<String, String>) -> Result<Option<Vec<u8>>, ArtifactError> {
    let Some(text) = annotations.get(SIGNATURE) else { return Ok(None) };
    let signature = decoded(text, "its signature")?;
    // A bundle has room for no other one, so a record with it would spoil those that it is passed on in.
    match signature.len() {
        SIGNATURE_SIZE => Ok(Some(signature)),
        other => Err(ArtifactError::Signature(other)),
    }
}

fn decoded(text: &str, what: &'static str) -> Result<Vec<u8>, ArtifactError> {
    BASE64_STANDARD.decode(text).map_err(|_| ArtifactError::Base64(what))
}

/// The digest a name is, where it is one.
pub fn as_digest(name: &str) -> Option<Sha256Digest> {
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::announcement::{Builder, State};

    #[test]
    fn no_manifest_is_longer_than_registries_take() {
        let blob = |n: u32| {
            Descriptor::new(
                MediaType::Other(oci::packed::INVENTORY_MEDIA_TYPE.to_owned()),
                Sha256Digest::of(&n.to_le_bytes()),
                u64::from(u32::MAX) + u64::from(n),
            )
        };
        let blobs: Vec<_> = (0..30_000).map(blob).collect();
        let document = vec![0; MAX_EMBEDDED];
        let artifact = Artifact { kind: ArtifactKind::Bundle, document, signature: Some(vec![1; 64]), blobs };
        let bytes = manifest(&artifact);
        assert!(bytes.len() as u64 <= document::MAX_SIZE, "{}", bytes.len());
        let Ok(Parsed::Whole(read)) = parse(&MediaType::OciManifest, &bytes) else { panic!("it is whole") };
        assert_eq!((read.document, read.blobs.len()), (artifact.document, MAX_BLOBS));
    }

    #[test]
    fn a_signature_of_another_length_is_none() {
        for length in [0, 1, SIGNATURE_SIZE - 1, SIGNATURE_SIZE + 1, 256 + SIGNATURE_SIZE] {
            let signature = Some(vec![1; length]);
            let artifact =
                Artifact { kind: ArtifactKind::Record, document: vec![0], signature, blobs: vec![] };
            let parsed = parse(&MediaType::OciManifest, &manifest(&artifact));
            assert!(matches!(parsed, Err(ArtifactError::Signature(found)) if found == length), "{length}");
        }
    }

    #[test]
    fn an_announcement_is_read_back_and_nothing_else_is_one() {
        let said = Said { builder: Builder(7), count: 3, state: State::Done };
        for signature in [None, Some(vec![1; SIGNATURE_SIZE])] {
            let announced = Announcement { said, signature };
            let bytes = announcement(&announced);
            let parsed = parse(&MediaType::OciManifest, &bytes).expect("read");
            assert!(matches!(parsed, Parsed::Announcement(read) if read == announced));
            let other = String::from_utf8(bytes.clone()).expect("text").replace(".v1\"", ".v2\"");
            let parsed = parse(&MediaType::OciManifest, other.as_bytes()).expect("read");
            assert!(matches!(parsed, Parsed::Image(_)), "of another version");
            let silent = String::from_utf8(bytes).expect("text").replace("\"done\"", "\"gone\"");
            let parsed = parse(&MediaType::OciManifest, silent.as_bytes());
            assert!(matches!(parsed, Err(ArtifactError::Silent)));
        }
    }

    #[test]
    fn an_image_with_a_config_beyond_all_bounds_is_not_read() {
        let config = Descriptor::new(MediaType::OciConfig, Sha256Digest::of(b""), MAX_DOCUMENT + 1);
        let image = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [] });
        let parsed = parse(&MediaType::OciManifest, image.to_string().as_bytes());
        assert!(matches!(parsed, Err(ArtifactError::TooLarge(size)) if size == MAX_DOCUMENT + 1));
    }
}

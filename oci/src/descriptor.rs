//! Descriptors: how one OCI object points at another (image-spec, descriptor.md).

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{digest::Sha256Digest, platform::Platform};

/// Where the bytes of an object are named: type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    pub media_type: MediaType,
    /// SHA-256 of the bytes.
    pub digest: Sha256Digest,
    /// Length in bytes.
    pub size: u64,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A bare descriptor.
    pub fn new(media_type: MediaType, digest: Sha256Digest, size: u64) -> Self {
        Self { media_type, digest, size, annotations: BTreeMap::new(), platform: None }
    }

    /// The descriptor of bytes in memory.
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Sha256Digest::of(bytes), bytes.len() as u64)
    }
}

/// A media type of the OCI image format or of Docker's schema 2, which we read; anything else is kept as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MediaType {
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.oci.image.config.v1+json`
    OciConfig,
    /// `application/vnd.oci.image.layer.v1.tar`
    OciLayer,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    OciLayerGzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    OciLayerZstd,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerIndex,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.docker.container.image.v1+json`
    DockerConfig,
    /// `application/vnd.docker.image.rootfs.diff.tar`
    DockerLayer,
    /// `application/vnd.docker.image.rootfs.diff.tar.gzip`
    DockerLayerGzip,
    /// `application/vnd.docker.image.rootfs.diff.tar.zstd`
    DockerLayerZstd,
    /// Anything else, as it was written.
    Other(String),
}

const NAMES: [(MediaType, &str); 12] = [
    (MediaType::OciIndex, "application/vnd.oci.image.index.v1+json"),
    (MediaType::OciManifest, "application/vnd.oci.image.manifest.v1+json"),
    (MediaType::OciConfig, "application/vnd.oci.image.config.v1+json"),
    (MediaType::OciLayer, "application/vnd.oci.image.layer.v1.tar"),
    (MediaType::OciLayerGzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
    (MediaType::OciLayerZstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
    (MediaType::DockerIndex, "application/vnd.docker.distribution.manifest.list.v2+json"),
    (MediaType::DockerManifest, "application/vnd.docker.distribution.manifest.v2+json"),
    (MediaType::DockerConfig, "application/vnd.docker.container.image.v1+json"),
    (MediaType::DockerLayer, "application/vnd.docker.image.rootfs.diff.tar"),
    (MediaType::DockerLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    (MediaType::DockerLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
];

/// How the bytes of a layer blob are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar.
    None,
    /// RFC 1952, possibly of several members.
    Gzip,
    /// RFC 8878, possibly of several frames.
    Zstd,
}

impl MediaType {
    /// The text that stands in JSON and in `Content-Type`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => NAMES.iter().find(|(kind, _)| kind == known).expect("every known type has a row").1,
        }
    }

    /// Whether this is an index or a Docker manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerIndex)
    }

    /// Whether this is the manifest of one image.
    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }

    /// How a layer of this type is compressed, or `None` if this is not a layer type we can read.
    pub fn layer_compression(&self) -> Option<Compression> {
        match self {
            Self::OciLayer | Self::DockerLayer => Some(Compression::None),
            Self::OciLayerGzip | Self::DockerLayerGzip => Some(Compression::Gzip),
            Self::OciLayerZstd | Self::DockerLayerZstd => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The OCI name of a Docker type; the bytes behind both are the same.
    pub fn to_oci(&self) -> MediaType {
        match self {
            Self::DockerIndex => Self::OciIndex,
            Self::DockerManifest => Self::OciManifest,
            Self::DockerConfig => Self::OciConfig,
            Self::DockerLayer => Self::OciLayer,
            Self::DockerLayerGzip => Self::OciLayerGzip,
            Self::DockerLayerZstd => Self::OciLayerZstd,
            other => other.clone(),
        }
    }

    /// Docker's name of an OCI type; the bytes behind both are the same.
    pub fn to_docker(&self) -> MediaType {
        match self {
            Self::OciIndex => Self::DockerIndex,
            Self::OciManifest => Self::DockerManifest,
            Self::OciConfig => Self::DockerConfig,
            Self::OciLayer => Self::DockerLayer,
            Self::OciLayerGzip => Self::DockerLayerGzip,
            Self::OciLayerZstd => Self::DockerLayerZstd,
            other => other.clone(),
        }
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        match NAMES.iter().find(|(_, name)| *name == text) {
            Some((kind, _)) => kind.clone(),
            None => Self::Other(text),
        }
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> String {
        media_type.as_str().to_owned()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

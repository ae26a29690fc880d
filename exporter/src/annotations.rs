//! What is written about an image beside its config: annotations of manifests, indexes and their descriptors.
//!
//! They are part of the bytes that they are written into, so two outputs with other annotations are two images with one
//! config (image-spec, annotations.md).

use std::collections::BTreeMap;

use oci::Platform;

/// Annotations of the images of one output, by the place that they have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Of each manifest.
    pub manifest: PlatformAnnotations,
    /// Of each manifest's descriptor: in the index where there is one, else in that of an OCI layout.
    pub manifest_descriptor: PlatformAnnotations,
    /// Of the index, where there is one.
    pub index: BTreeMap<String, String>,
    /// Of the index's descriptor in an OCI layout.
    pub index_descriptor: BTreeMap<String, String>,
}

/// Annotations of the images of several platforms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlatformAnnotations {
    /// Of every image.
    pub all: BTreeMap<String, String>,
    /// Of the image of one platform; these go before those of all.
    pub only: BTreeMap<Platform, BTreeMap<String, String>>,
}

impl Annotations {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl PlatformAnnotations {
    /// Those of the image of this platform.
    pub fn of(&self, platform: &Platform) -> BTreeMap<String, String> {
        let only = self.only.get(platform).into_iter().flatten();
        self.all.iter().chain(only).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

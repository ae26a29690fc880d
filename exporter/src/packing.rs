//! How the images of a build are packed: what decides the bytes of an image beside what was built.
//!
//! Outputs that are packed alike share their layers, manifests and digests; whatever two outputs can differ in must be
//! a field here.

use oci::MediaType;

use crate::{annotations::Annotations, encode::Encoder};

/// All that two outputs of one build can differ in. Outputs of one form have one manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// How the image is packed.
    pub packing: Packing,
    /// What is written about it.
    pub annotations: Annotations,
}

/// How an image is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Packing {
    /// What built layers are made into.
    pub encoder: Encoder,
    /// What becomes of the layers of base images.
    pub base: BaseLayers,
    /// By which names manifest, config and layers are called.
    pub media_types: MediaTypes,
}

/// What becomes of the layers of base images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum BaseLayers {
    /// Their blobs pass through as they are.
    #[default]
    Kept,
    /// `force-compression=true`: those in another format than the built ones' are made anew.
    Repacked,
}

/// By which names manifest, config and layers are called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum MediaTypes {
    /// Those of the OCI image format.
    #[default]
    Oci,
    /// `oci-mediatypes=false`: those of Docker's "Image Manifest Version 2, Schema 2".
    Docker,
}

impl MediaTypes {
    /// What something with this OCI media type is called.
    pub fn name(self, media_type: &MediaType) -> MediaType {
        match self {
            Self::Oci => media_type.clone(),
            Self::Docker => media_type.to_docker(),
        }
    }
}

//! Finds base images: implements [`solver::Resolver`] over registries and OCI layouts. No layer is downloaded here.

use oci::{Platform, registry::Registry};
use solver::{BaseImage, FailureKind, ImageName, Resolver, StepFailure};

/// Finds images in registries and OCI layouts.
#[derive(Debug, Clone)]
pub struct ImageResolver {
    registry: Registry,
}

impl ImageResolver {
    /// A resolver that asks registries through this client.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }
}

impl Resolver for ImageResolver {
    fn image(&self, image: &ImageName, _platform: &Platform) -> Result<BaseImage, StepFailure> {
        let message = format!("{image:?}: not there yet ({:?})", self.registry);
        Err(StepFailure::new(FailureKind::Registry, message))
    }
}

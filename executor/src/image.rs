//! Finds base images: implements [`solver::Resolver`] over registries and OCI layouts. No layer is downloaded here.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use oci::{
    BlobOrigin, Platform, Reference, Sha256Digest,
    image::{
        FindDocument, ImageError, ResolvedImage, resolve_layout, resolve_registry, resolve_registry_with,
    },
    registry::Registry,
    store::Store,
};
use solver::{BaseImage, FailureKind, ImageName, Resolver, StepFailure};

use crate::error::blame;

/// Finds images in registries and OCI layouts.
#[derive(Clone)]
pub struct ImageResolver {
    registry: Registry,
    /// Keeps manifests and configs.
    store: Option<Arc<Store>>,
    /// Who may have those that the store has not.
    find: Arc<FindDocument>,
    /// The manifests and configs of images in registries that were resolved.
    documents: Arc<Mutex<BTreeSet<Sha256Digest>>>,
}

impl ImageResolver {
    /// A resolver that asks registries through this client.
    pub fn new(registry: Registry) -> Self {
        Self { registry, store: None, find: Arc::new(|_| None), documents: Arc::default() }
    }

    /// A resolver that keeps what it learns of images in a store, and asks for none of it twice.
    pub fn with_store(registry: Registry, store: Arc<Store>) -> Self {
        Self { store: Some(store), ..Self::new(registry) }
    }

    /// The same, which asks `find` for what the store lacks, before it asks a registry.
    pub fn finding(self, find: Arc<FindDocument>) -> Self {
        Self { find, ..self }
    }

    /// The manifests and configs of all images in registries that it, or a clone, has resolved.
    pub fn documents(&self) -> Vec<Sha256Digest> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    fn find_in_registry(&self, reference: &Reference, platform: &Platform) -> Result<BaseImage, StepFailure> {
        let reference = reference.with_default_tag();
        let resolved = match &self.store {
            Some(store) => resolve_registry_with(&self.registry, store, &*self.find, &reference, platform),
            None => resolve_registry(&self.registry, &reference, platform),
        };
        let resolved = resolved.map_err(|error| failure(&reference.familiar(), platform, error))?;
        let documents = [resolved.root_digest, resolved.manifest_digest, resolved.manifest.config.digest];
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).extend(documents);
        let pinned = Reference { digest: Some(resolved.root_digest), ..reference.clone() };
        // A tag says nothing about a blob, and would tie what is remembered of a step to the name it was built under.
        let origin = BlobOrigin::Registry(reference.with_digest(resolved.manifest_digest));
        Ok(base_image(pinned.to_string(), resolved, &origin))
    }
}

impl Resolver for ImageResolver {
    fn image(&self, image: &ImageName, platform: &Platform) -> Result<BaseImage, StepFailure> {
        match image {
            ImageName::Registry(reference) => self.find_in_registry(reference, platform),
            ImageName::OciLayout { directory, selector } => {
                find_in_layout(directory, selector.as_deref(), platform)
            }
        }
    }
}

fn find_in_layout(
    directory: &Path,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<BaseImage, StepFailure> {
    let name = match selector {
        // Only a digest has a colon in it.
        Some(digest) if digest.contains(':') => format!("oci-layout://{}@{digest}", directory.display()),
        Some(tag) => format!("oci-layout://{}:{tag}", directory.display()),
        None => format!("oci-layout://{}", directory.display()),
    };
    let resolved =
        resolve_layout(directory, selector, platform).map_err(|error| failure(&name, platform, error))?;
    // What is remembered of a step must lead there from any working directory.
    let origin = std::path::absolute(directory).map_err(|error| {
        StepFailure::caused(FailureKind::Machine, "cannot find out the working directory", error)
    })?;
    let pinned = format!("oci-layout://{}@{}", directory.display(), resolved.root_digest);
    Ok(base_image(pinned, resolved, &BlobOrigin::OciLayout(origin)))
}

fn base_image(pinned: String, resolved: ResolvedImage, origin: &BlobOrigin) -> BaseImage {
    let layers = resolved.base_layers(origin);
    BaseImage { pinned, config: resolved.config, layers }
}

fn failure(name: &str, platform: &Platform, error: ImageError) -> StepFailure {
    let is_missing_platform = error.is_missing_platform();
    let is_unavailable = matches!(&error, ImageError::Registry(error) if error.is_unavailable());
    if matches!(&error, ImageError::Registry(error) if error.is_not_found()) {
        // The registry's own words say the same again.
        return StepFailure::new(FailureKind::Registry, format!("{name}: not found"));
    }
    let failure = blame(FailureKind::Build, error);
    match is_missing_platform {
        true => StepFailure {
            kind: FailureKind::Build,
            message: format!("{name} does not exist for {platform}"),
            ..failure
        },
        false => {
            let kind = if is_unavailable { FailureKind::Unavailable } else { failure.kind };
            StepFailure { kind, message: format!("cannot resolve {name}"), ..failure }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use oci::{
        Descriptor, DiffId, ImageConfig, Layer, MediaType, Sha256Digest, Snapshot,
        config::RootFs,
        manifest::{Index, Manifest},
        registry::{Limits, RegistryError, RegistryOptions},
    };

    use super::*;

    fn resolver() -> ImageResolver {
        let limits = Limits { patience: Duration::ZERO, short_patience: Duration::ZERO, ..Limits::default() };
        let options = RegistryOptions { limits, ..RegistryOptions::default() };
        ImageResolver::new(Registry::new(options).expect("a client"))
    }

    fn put(directory: &Path, media_type: MediaType, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        fs::write(directory.join("blobs/sha256").join(descriptor.digest.hex()), bytes).expect("written");
        descriptor
    }

    /// A layout with one image of one layer; returns the layer's diff ID.
    fn layout(directory: &Path, platform: &Platform) -> DiffId {
        fs::create_dir_all(directory.join("blobs/sha256")).expect("made");
        let layer = [0; 1024];
        let diff_id: DiffId = Sha256Digest::of(&layer).into();
        let rootfs = RootFs { diff_ids: vec![diff_id], ..RootFs::default() };
        let config = ImageConfig { rootfs, ..ImageConfig::empty(platform) };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MediaType::OciManifest),
            config: put(directory, MediaType::OciConfig, &json(&config)),
            layers: vec![put(directory, MediaType::OciLayer, &layer)],
            annotations: Default::default(),
        };
        let mut manifest = put(directory, MediaType::OciManifest, &json(&manifest));
        manifest.platform = Some(platform.clone());
        let index = |descriptor| Index {
            schema_version: 2,
            media_type: Some(MediaType::OciIndex),
            manifests: vec![descriptor],
            annotations: Default::default(),
        };
        let inner = put(directory, MediaType::OciIndex, &json(&index(manifest)));
        fs::write(directory.join("index.json"), json(&index(inner))).expect("written");
        fs::write(directory.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").expect("written");
        diff_id
    }

    fn json(value: &impl serde::Serialize) -> Vec<u8> {
        serde_json::to_vec(value).expect("it has no odd keys")
    }

    #[test]
    fn an_image_of_a_layout_is_pinned_and_knows_where_its_layers_are() {
        let directory = tempfile::tempdir().expect("made");
        let platform = Platform::host();
        let diff_id = layout(directory.path(), &platform);
        let name = ImageName::OciLayout { directory: directory.path().to_owned(), selector: None };
        let image = resolver().image(&name, &platform).expect("resolved");
        assert!(
            image.pinned.starts_with("oci-layout://") && image.pinned.contains("@sha256:"),
            "{}",
            image.pinned
        );
        let snapshot =
            Snapshot { layers: image.layers.iter().cloned().map(Box::new).map(Layer::Base).collect() };
        assert_eq!(snapshot.layers.len(), 1);
        assert_eq!(image.layers[0].diff_id, diff_id);
        assert_eq!(image.layers[0].origin, BlobOrigin::OciLayout(directory.path().to_owned()));
    }

    #[test]
    fn an_image_that_a_layout_lacks_is_told_as_it_is_written() {
        let directory = tempfile::tempdir().expect("made");
        layout(directory.path(), &Platform::host());
        let digest = format!("sha256:{}", "0".repeat(64));
        for (selector, written) in [("v2", ":v2".to_owned()), (&digest, format!("@{digest}"))] {
            let selector = Some(selector.to_owned());
            let name = ImageName::OciLayout { directory: directory.path().to_owned(), selector };
            let failure = resolver().image(&name, &Platform::host()).expect_err("there is none");
            assert!(failure.message.ends_with(&written), "{failure}");
        }
    }

    #[test]
    fn a_missing_platform_is_the_build_s_fault_and_an_unreachable_registry_the_registry_s() {
        let directory = tempfile::tempdir().expect("made");
        layout(directory.path(), &Platform::host());
        let name = ImageName::OciLayout { directory: directory.path().to_owned(), selector: None };
        let other = Platform::new("linux", "s390x", None);
        let failure = resolver().image(&name, &other).expect_err("there is none");
        assert_eq!(failure.kind, FailureKind::Build);
        assert!(failure.message.ends_with("does not exist for linux/s390x"), "{failure}");

        // Port 1 of loopback: nobody listens.
        let name = ImageName::Registry("127.0.0.1:1/app".parse().expect("a reference"));
        let failure = resolver().image(&name, &Platform::host()).expect_err("nobody listens");
        assert_eq!(failure.kind, FailureKind::Unavailable);
        assert_eq!(failure.message, "cannot resolve 127.0.0.1:1/app:latest");

        let missing = RegistryError::NotFound { name: "docker.io/library/app:1".to_owned(), reason: None };
        let failure = super::failure("app:1", &Platform::host(), missing.into());
        assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Registry, "app:1: not found"));
        assert!(failure.source.is_none());
    }
}

//! Annotations, of `--annotation` and of single outputs: whether each has a place.
//!
//! What has none is refused: an annotation that was asked for and is in no image would go unnoticed.

use exporter::{Annotations, ImageOutput, MediaTypes, Output as To, PlatformAnnotations};
use oci::Platform;

use crate::{
    outputs::Output,
    spec::annotation::{self, AnnotationSpec, Kind},
};

/// Why an annotation has no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// There is no index.
    #[error("annotation {}:{key}: an image of one platform has no index: annotate its manifest", kind.name())]
    NoIndex {
        /// What it was meant for.
        kind: Kind,
        /// Which.
        key: String,
    },
    /// Nothing there keeps a descriptor.
    #[error(
        "annotation {}:{key}: the descriptor of what is pushed or loaded is held by nothing there; an OCI layout's \
         index.json holds it", kind.name()
    )]
    NoDescriptor {
        /// What it was meant for.
        kind: Kind,
        /// Which.
        key: String,
    },
    /// A platform that is not built.
    #[error("annotation {key}: no image for {platform} is built, only for {built}")]
    Platform {
        /// Which.
        key: String,
        /// What it was meant for.
        platform: Box<Platform>,
        /// What is built.
        built: String,
    },
    /// Docker's manifests have no annotations.
    #[error(
        "annotation {0}: Docker's media types have no place for annotations: leave oci-mediatypes=false out"
    )]
    DockerTypes(String),
    /// No image comes of the build.
    #[error("--annotation {0}: none of the outputs is an image")]
    NoImage(String),
}

/// Checks `--annotation` and what outputs say about their own images, for a build of these platforms (none: this
/// machine's).
///
/// # Errors
/// [`AnnotationError`]
pub fn check(
    general: &[AnnotationSpec],
    outputs: &[Output],
    platforms: &[Platform],
) -> Result<(), AnnotationError> {
    let host = [Platform::host()];
    let built = if platforms.is_empty() { &host[..] } else { platforms };
    let is_image = |output: &&Output| matches!(output.to, To::Image(_));
    if let Some(first) = general.first()
        && !outputs.is_empty()
        && !outputs.iter().any(|output| is_image(&output))
    {
        return Err(AnnotationError::NoImage(first.key.clone()));
    }
    // What has no output yet can go anywhere.
    check_places(&annotation::sorted(general), None, built)?;
    outputs.iter().filter(is_image).try_for_each(|output| check_output(output, built))
}

fn check_output(output: &Output, built: &[Platform]) -> Result<(), AnnotationError> {
    let annotations = &output.form.annotations;
    if output.form.packing.media_types == MediaTypes::Docker
        && let Some(key) = keys(annotations).next()
    {
        return Err(AnnotationError::DockerTypes(key.to_owned()));
    }
    check_places(annotations, Some(&output.to), built)
}

fn check_places(
    annotations: &Annotations,
    to: Option<&To>,
    built: &[Platform],
) -> Result<(), AnnotationError> {
    let Annotations { manifest, manifest_descriptor, index, index_descriptor } = annotations;
    let has_index = built.len() > 1;
    let keeps_none = matches!(to, Some(To::Image(ImageOutput::Registry { .. } | ImageOutput::Load { .. })));
    for (kind, key) in
        [(Kind::Index, index.keys().next()), (Kind::IndexDescriptor, index_descriptor.keys().next())]
    {
        let Some(key) = key.cloned() else { continue };
        if !has_index {
            return Err(AnnotationError::NoIndex { kind, key });
        }
        if keeps_none && kind == Kind::IndexDescriptor {
            return Err(AnnotationError::NoDescriptor { kind, key });
        }
    }
    if let Some(key) = keys_of(manifest_descriptor).next()
        && keeps_none
        && !has_index
    {
        return Err(AnnotationError::NoDescriptor { kind: Kind::ManifestDescriptor, key: key.to_owned() });
    }
    check_platforms(manifest, built)?;
    check_platforms(manifest_descriptor, built)
}

fn check_platforms(annotations: &PlatformAnnotations, built: &[Platform]) -> Result<(), AnnotationError> {
    match annotations.only.iter().find(|(platform, _)| !built.contains(platform)) {
        None => Ok(()),
        Some((platform, annotations)) => Err(AnnotationError::Platform {
            key: annotations.keys().next().cloned().unwrap_or_default(),
            platform: Box::new(platform.clone()),
            built: built.iter().map(Platform::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn keys(annotations: &Annotations) -> impl Iterator<Item = &str> {
    let Annotations { manifest, manifest_descriptor, index, index_descriptor } = annotations;
    let of_indexes = index.keys().chain(index_descriptor.keys()).map(String::as_str);
    keys_of(manifest).chain(keys_of(manifest_descriptor)).chain(of_indexes)
}

fn keys_of(annotations: &PlatformAnnotations) -> impl Iterator<Item = &str> {
    let PlatformAnnotations { all, only } = annotations;
    all.keys().chain(only.values().flat_map(|annotations| annotations.keys())).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        outputs::{self, Asked},
        spec::output::OutputSpec,
    };

    fn checked(annotations: &[&str], specs: &[&str], built: &str) -> Result<(), String> {
        let annotations: Vec<AnnotationSpec> =
            annotations.iter().map(|text| text.parse().expect("an annotation")).collect();
        let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
        let built: Vec<Platform> = built.split(',').map(|text| text.parse().expect("a platform")).collect();
        let asked = Asked { specs: &specs, tags: &[], annotations: &annotations, push: false, load: false };
        check(&annotations, &outputs::resolve(asked), &built).map_err(|error| error.to_string())
    }

    const ONE: &str = "linux/amd64";
    const TWO: &str = "linux/amd64,linux/arm64";
    const OCI: &str = "type=oci,dest=x";
    const PUSH: &str = "type=registry,name=h/x";

    #[test]
    fn what_has_no_place_is_refused_by_name() {
        for (annotation, output, built, want) in [
            ("index:a=b", OCI, ONE, "index:a: an image of one platform has no index"),
            ("index-descriptor:a=b", OCI, ONE, "index-descriptor:a: an image of one platform"),
            ("manifest-descriptor:a=b", PUSH, ONE, "manifest-descriptor:a: the descriptor of what is pushed"),
            ("manifest-descriptor:a=b", "type=docker", ONE, "manifest-descriptor:a: the descriptor of what"),
            ("index-descriptor:a=b", PUSH, TWO, "index-descriptor:a: the descriptor of what is pushed"),
            (
                "manifest[linux/arm64]:a=b",
                OCI,
                ONE,
                "no image for linux/arm64 is built, only for linux/amd64",
            ),
            ("manifest[s390x]:a=b", OCI, TWO, "is built, only for linux/amd64, linux/arm64"),
            ("a=b", "type=oci,dest=x,oci-mediatypes=false", ONE, "Docker's media types have no place"),
            ("a=b", "type=local,dest=x", ONE, "none of the outputs is an image"),
        ] {
            let error = checked(&[annotation], &[output], built).expect_err(annotation);
            assert!(error.contains(want), "{annotation}: {error}");
        }
    }

    #[test]
    fn what_an_output_says_is_checked_for_that_output() {
        let index = "type=oci,dest=x,annotation-index.a=b";
        assert!(checked(&[], &[index], ONE).is_err());
        let descriptor = "type=oci,dest=x,annotation-manifest-descriptor.a=b";
        assert_eq!(checked(&[], &[descriptor, PUSH], ONE), Ok(()));
        let docker = "type=registry,name=h/x,oci-mediatypes=false";
        assert_eq!(checked(&[], &[descriptor, docker], ONE), Ok(()));
    }

    #[test]
    fn what_has_a_place_is_taken() {
        assert_eq!(checked(&["manifest-descriptor:a=b"], &[PUSH], TWO), Ok(()));
        let all = ["a=1", "manifest,manifest-descriptor:b=2", "manifest[linux/amd64]:a=3"];
        assert_eq!(checked(&all, &[OCI], ONE), Ok(()));
        assert_eq!(checked(&all, &[], ONE), Ok(()));
        let all = [&all[..], &["index:i=1", "index-descriptor:j=2"]].concat();
        assert_eq!(checked(&all, &[OCI], TWO), Ok(()));
    }
}

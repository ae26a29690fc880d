//! `--annotation`: which of them apply to this build, and where they go.
//!
//! What has no place is refused: an annotation that was asked for and is in no image would go unnoticed.

use std::collections::BTreeMap;

use exporter::{ImageOutput, Output as To};
use oci::Platform;

use crate::{
    outputs::Output,
    spec::annotation::{AnnotationSpec, Kind, Place},
};

/// Annotations by the place that they have in an image of one platform.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Of the manifest.
    pub manifest: BTreeMap<String, String>,
    /// Of the manifest's descriptor.
    pub manifest_descriptor: BTreeMap<String, String>,
}

/// Why an annotation has no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// There is no index.
    #[error("--annotation {}:{key}: an image of one platform has no index: annotate its manifest", kind.name())]
    NoIndex {
        /// What it was meant for.
        kind: Kind,
        /// Which.
        key: String,
    },
    /// There is no index whose descriptor would hold it.
    #[error(
        "--annotation manifest-descriptor:{0}: a pushed image of one platform has no index that would hold its \
         descriptor; an OCI layout has one"
    )]
    NoDescriptor(String),
    /// A platform that is not built.
    #[error("--annotation {key}: no image for {platform} is built, only for {built}")]
    Platform {
        /// Which.
        key: String,
        /// What it was meant for.
        platform: Box<Platform>,
        /// What is built.
        built: Box<Platform>,
    },
    /// No image comes of the build.
    #[error("--annotation {0}: none of the outputs is an image")]
    NoImage(String),
}

/// Sorts annotations for an image of this platform that goes to these outputs. The last one of a key wins.
///
/// # Errors
/// [`AnnotationError`]
pub fn resolve(
    specs: &[AnnotationSpec],
    outputs: &[Output],
    built: &Platform,
) -> Result<Annotations, AnnotationError> {
    let mut annotations = Annotations::default();
    for AnnotationSpec { places, key, value } in specs {
        if !outputs.is_empty() && !outputs.iter().any(|output| matches!(output.to, To::Image(_))) {
            return Err(AnnotationError::NoImage(key.clone()));
        }
        for place in places {
            check(place, key, outputs, built)?;
            let map = match place.kind {
                Kind::ManifestDescriptor => &mut annotations.manifest_descriptor,
                _ => &mut annotations.manifest,
            };
            map.insert(key.clone(), value.clone());
        }
    }
    Ok(annotations)
}

fn check(place: &Place, key: &str, outputs: &[Output], built: &Platform) -> Result<(), AnnotationError> {
    let pushed = |output: &Output| matches!(output.to, To::Image(ImageOutput::Registry { .. }));
    match place.kind {
        Kind::Index | Kind::IndexDescriptor => {
            return Err(AnnotationError::NoIndex { kind: place.kind, key: key.to_owned() });
        }
        Kind::ManifestDescriptor if outputs.iter().any(pushed) => {
            return Err(AnnotationError::NoDescriptor(key.to_owned()));
        }
        Kind::Manifest | Kind::ManifestDescriptor => {}
    }
    match &place.platform {
        Some(platform) if platform != built => {
            let (platform, built) = (Box::new(platform.clone()), Box::new(built.clone()));
            let key = key.to_owned();
            Err(AnnotationError::Platform { key, platform, built })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{outputs, spec::output::OutputSpec};

    fn resolved(annotations: &[&str], specs: &[&str]) -> Result<Annotations, String> {
        let annotations: Vec<AnnotationSpec> =
            annotations.iter().map(|text| text.parse().expect("an annotation")).collect();
        let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
        let built = "linux/amd64".parse().expect("a platform");
        resolve(&annotations, &outputs::resolve(&specs, &[], false), &built)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_goes_to_its_place_and_the_last_one_wins() {
        let given = [
            "a=1",
            "manifest,manifest-descriptor:b=2",
            "manifest[linux/amd64]:a=3",
            "manifest-descriptor:c=",
        ];
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let want = Annotations {
            manifest: map(&[("a", "3"), ("b", "2")]),
            manifest_descriptor: map(&[("b", "2"), ("c", "")]),
        };
        assert_eq!(resolved(&given, &["type=oci,dest=x"]), Ok(want.clone()));
        assert_eq!(resolved(&given, &[]), Ok(want));
    }

    #[test]
    fn what_has_no_place_is_refused_by_name() {
        for (annotation, output, want) in [
            ("index:a=b", "type=oci,dest=x", "index:a: an image of one platform has no index"),
            ("index-descriptor:a=b", "type=oci,dest=x", "index-descriptor:a: an image of one platform"),
            (
                "manifest-descriptor:a=b",
                "type=registry,name=h/x",
                "a pushed image of one platform has no index",
            ),
            (
                "manifest[linux/arm64]:a=b",
                "type=oci,dest=x",
                "no image for linux/arm64 is built, only for linux/amd64",
            ),
            ("a=b", "type=local,dest=x", "none of the outputs is an image"),
        ] {
            let error = resolved(&[annotation], &[output]).expect_err(annotation);
            assert!(error.contains(want), "{annotation}: {error}");
        }
    }
}

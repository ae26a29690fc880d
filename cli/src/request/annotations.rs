//! `--annotation`: which of them apply to this build, and where they go.
//!
//! What has no place is refused: an annotation that was asked for and is in no image would go unnoticed.

use std::collections::BTreeMap;

use exporter::{ImageOutput, Output as To, PlatformAnnotations};
use oci::Platform;

use crate::{
    outputs::Output,
    spec::annotation::{AnnotationSpec, Kind, Place},
};

/// Annotations by the place that they have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Of the manifests.
    pub manifest: PlatformAnnotations,
    /// Of the manifests' descriptors.
    pub manifest_descriptor: PlatformAnnotations,
    /// Of the index of several images.
    pub index: BTreeMap<String, String>,
    /// Of the index's descriptor in an OCI layout.
    pub index_descriptor: BTreeMap<String, String>,
}

impl Annotations {
    fn of(&mut self, place: &Place) -> &mut BTreeMap<String, String> {
        let annotations = match place.kind {
            Kind::Index => return &mut self.index,
            Kind::IndexDescriptor => return &mut self.index_descriptor,
            Kind::Manifest => &mut self.manifest,
            Kind::ManifestDescriptor => &mut self.manifest_descriptor,
        };
        match &place.platform {
            None => &mut annotations.all,
            Some(platform) => annotations.only.entry(platform.clone()).or_default(),
        }
    }
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
    /// A registry keeps no descriptor of what a tag names.
    #[error(
        "--annotation index-descriptor:{0}: in a registry nothing holds the descriptor of an index; an OCI layout does"
    )]
    NoIndexDescriptor(String),
    /// An index is of all platforms.
    #[error("--annotation {}:{key}: an index has no platform", kind.name())]
    IndexOfPlatform {
        /// What it was meant for.
        kind: Kind,
        /// Which.
        key: String,
    },
    /// A platform that is not built.
    #[error("--annotation {key}: no image for {platform} is built, only for {built}")]
    Platform {
        /// Which.
        key: String,
        /// What it was meant for.
        platform: Box<Platform>,
        /// What is built.
        built: String,
    },
    /// No image comes of the build.
    #[error("--annotation {0}: none of the outputs is an image")]
    NoImage(String),
}

/// Sorts annotations for an image of these platforms (none: this machine's) that goes to these outputs. The last one of
/// a key wins; one for a platform goes before one for all.
///
/// # Errors
/// [`AnnotationError`]
pub fn resolve(
    specs: &[AnnotationSpec],
    outputs: &[Output],
    platforms: &[Platform],
) -> Result<Annotations, AnnotationError> {
    let host = [Platform::host()];
    let built = if platforms.is_empty() { &host[..] } else { platforms };
    let mut annotations = Annotations::default();
    for AnnotationSpec { places, key, value } in specs {
        if !outputs.is_empty() && !outputs.iter().any(|output| matches!(output.to, To::Image(_))) {
            return Err(AnnotationError::NoImage(key.clone()));
        }
        for place in places {
            check(place, key, outputs, built)?;
            annotations.of(place).insert(key.clone(), value.clone());
        }
    }
    Ok(annotations)
}

fn check(place: &Place, key: &str, outputs: &[Output], built: &[Platform]) -> Result<(), AnnotationError> {
    let pushed = |output: &Output| matches!(output.to, To::Image(ImageOutput::Registry { .. }));
    let (kind, key, has_index) = (place.kind, key.to_owned(), built.len() > 1);
    let is_pushed = outputs.iter().any(pushed);
    match kind {
        Kind::Index | Kind::IndexDescriptor if !has_index => Err(AnnotationError::NoIndex { kind, key }),
        Kind::Index | Kind::IndexDescriptor if place.platform.is_some() => {
            Err(AnnotationError::IndexOfPlatform { kind, key })
        }
        Kind::IndexDescriptor if is_pushed => Err(AnnotationError::NoIndexDescriptor(key)),
        Kind::ManifestDescriptor if is_pushed && !has_index => Err(AnnotationError::NoDescriptor(key)),
        _ => match &place.platform {
            Some(platform) if !built.contains(platform) => {
                let built = built.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ");
                Err(AnnotationError::Platform { key, platform: Box::new(platform.clone()), built })
            }
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{outputs, spec::output::OutputSpec};

    fn resolved(annotations: &[&str], specs: &[&str], built: &str) -> Result<Annotations, String> {
        let annotations: Vec<AnnotationSpec> =
            annotations.iter().map(|text| text.parse().expect("an annotation")).collect();
        let specs: Vec<OutputSpec> = specs.iter().map(|text| text.parse().expect("an output")).collect();
        let built: Vec<Platform> = built.split(',').map(|text| text.parse().expect("a platform")).collect();
        resolve(&annotations, &outputs::resolve(&specs, &[], false), &built)
            .map_err(|error| error.to_string())
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    const ONE: &str = "linux/amd64";
    const TWO: &str = "linux/amd64,linux/arm64";

    #[test]
    fn each_goes_to_its_place_and_the_last_one_wins() {
        let given = [
            "a=1",
            "a=2",
            "manifest,manifest-descriptor:b=2",
            "manifest[linux/amd64]:a=3",
            "manifest-descriptor:c=",
        ];
        let amd64: Platform = ONE.parse().expect("a platform");
        let mut want = Annotations {
            manifest: PlatformAnnotations {
                all: map(&[("a", "2"), ("b", "2")]),
                only: BTreeMap::from([(amd64, map(&[("a", "3")]))]),
            },
            manifest_descriptor: PlatformAnnotations {
                all: map(&[("b", "2"), ("c", "")]),
                ..PlatformAnnotations::default()
            },
            ..Annotations::default()
        };
        assert_eq!(resolved(&given, &["type=oci,dest=x"], ONE), Ok(want.clone()));
        assert_eq!(resolved(&given, &[], ONE), Ok(want.clone()));
        let given = [&given[..], &["index:i=1", "index-descriptor:j=2"]].concat();
        want.index = map(&[("i", "1")]);
        want.index_descriptor = map(&[("j", "2")]);
        assert_eq!(resolved(&given, &["type=oci,dest=x"], TWO), Ok(want));
    }

    #[test]
    fn what_has_no_place_is_refused_by_name() {
        const OCI: &str = "type=oci,dest=x";
        const PUSH: &str = "type=registry,name=h/x";
        for (annotation, output, built, want) in [
            ("index:a=b", OCI, ONE, "index:a: an image of one platform has no index"),
            ("index-descriptor:a=b", OCI, ONE, "index-descriptor:a: an image of one platform"),
            ("index[linux/amd64]:a=b", OCI, TWO, "index:a: an index has no platform"),
            ("manifest-descriptor:a=b", PUSH, ONE, "a pushed image of one platform has no index"),
            ("index-descriptor:a=b", PUSH, TWO, "in a registry nothing holds the descriptor"),
            (
                "manifest[linux/arm64]:a=b",
                OCI,
                ONE,
                "no image for linux/arm64 is built, only for linux/amd64",
            ),
            ("manifest[s390x]:a=b", OCI, TWO, "is built, only for linux/amd64, linux/arm64"),
            ("a=b", "type=local,dest=x", ONE, "none of the outputs is an image"),
        ] {
            let error = resolved(&[annotation], &[output], built).expect_err(annotation);
            assert!(error.contains(want), "{annotation}: {error}");
        }
        assert!(resolved(&["manifest-descriptor:a=b"], &[PUSH], TWO).is_ok());
    }
}

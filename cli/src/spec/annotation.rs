//! `--annotation [TYPE[,TYPE]:]KEY=VALUE`, and of one output `annotation[-TYPE][[PLATFORM]].KEY=VALUE`: what is written
//! about an image beside its config.

use std::{collections::BTreeMap, str::FromStr};

use exporter::Annotations;
use oci::Platform;
use solver::remote::without_logins;

/// One `--annotation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationSpec {
    /// Where it goes; at least one place.
    pub places: Vec<Place>,
    /// What is said of it.
    pub key: String,
    /// What it is said to be.
    pub value: String,
}

/// Where an annotation goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Into what.
    pub kind: Kind,
    /// Of which platform's image; all of them where it is not given.
    pub platform: Option<Platform>,
}

/// What can be annotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The manifest of an image.
    Manifest,
    /// The descriptor that an index has of a manifest.
    ManifestDescriptor,
    /// The index of several images.
    Index,
    /// The descriptor that an OCI layout has of an index.
    IndexDescriptor,
}

impl Kind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::ManifestDescriptor => "manifest-descriptor",
            Self::Index => "index",
            Self::IndexDescriptor => "index-descriptor",
        }
    }
}

impl AnnotationSpec {
    /// Reads the key of an output's option; `None` where it is none of an annotation. What follows the first dot is the
    /// annotation's own, capitals included.
    pub fn of_output(key: &str, value: &str) -> Option<Result<Self, AnnotationSpecError>> {
        let rest = key.strip_prefix("annotation").filter(|rest| rest.starts_with(['-', '.', '[']))?;
        let read = || {
            let no_key = || AnnotationSpecError::NotAPair(format!("{key}={value}"));
            let has_platform = rest.find(['.', '[']).is_some_and(|at| rest[at..].starts_with('['));
            let (place_text, annotation) = match has_platform {
                true => rest.split_once("].").map(|(before, after)| (format!("{before}]"), after)),
                false => rest.split_once('.').map(|(before, after)| (before.to_owned(), after)),
            }
            .ok_or_else(no_key)?;
            let place = match place_text.strip_prefix('-') {
                Some(named) => place(named)?,
                None => place(&format!("{}{place_text}", Kind::Manifest.name()))?,
            };
            match annotation.is_empty() {
                true => Err(no_key()),
                false => {
                    Ok(Self { places: vec![place], key: annotation.to_owned(), value: value.to_owned() })
                }
            }
        };
        Some(read())
    }
}

/// What an image says by a key: a URL of those that the OCI names (image-spec, "Pre-Defined Annotation Keys") goes without who
/// logs in, since what a CI system calls its clone's remote has a token in it.
pub fn told(key: &str, value: &str) -> String {
    match key.starts_with("org.opencontainers.image.") {
        true => without_logins(value),
        false => value.to_owned(),
    }
}

/// Annotations by their places, as they are [`told`]. The last of one place and key wins.
pub fn sorted<'a>(specs: impl IntoIterator<Item = &'a AnnotationSpec>) -> Annotations {
    let mut annotations = Annotations::default();
    for AnnotationSpec { places, key, value } in specs {
        for place in places {
            placed(&mut annotations, place).insert(key.clone(), told(key, value));
        }
    }
    annotations
}

fn placed<'a>(annotations: &'a mut Annotations, place: &Place) -> &'a mut BTreeMap<String, String> {
    let of_images = match place.kind {
        Kind::Index => return &mut annotations.index,
        Kind::IndexDescriptor => return &mut annotations.index_descriptor,
        Kind::Manifest => &mut annotations.manifest,
        Kind::ManifestDescriptor => &mut annotations.manifest_descriptor,
    };
    match &place.platform {
        None => &mut of_images.all,
        Some(platform) => of_images.only.entry(platform.clone()).or_default(),
    }
}

/// Why something is no annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationSpecError {
    /// No `=`.
    #[error("invalid annotation {0:?}: expected [TYPE:]KEY=VALUE")]
    NotAPair(String),
    /// Nothing that could be annotated.
    #[error(
        "unknown annotation type {0:?}: expected manifest, index, manifest-descriptor or index-descriptor, each \
             with an optional [PLATFORM]"
    )]
    Type(String),
    /// An index is of all platforms.
    #[error("invalid annotation type {0:?}: an index has no platform")]
    IndexOfPlatform(String),
    /// No platform in the brackets.
    #[error("invalid annotation type {text:?}: {source}")]
    Platform {
        /// The type with its brackets.
        text: String,
        /// What is wrong.
        source: oci::platform::PlatformError,
    },
}

impl FromStr for AnnotationSpec {
    type Err = AnnotationSpecError;

    fn from_str(text: &str) -> Result<Self, AnnotationSpecError> {
        let not_a_pair = || AnnotationSpecError::NotAPair(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(not_a_pair)?;
        let (places, key) = match name.split_once(':') {
            Some((types, key)) => (types.split(',').map(place).collect::<Result<_, _>>()?, key),
            None => (vec![Place { kind: Kind::Manifest, platform: None }], name),
        };
        match key.is_empty() {
            true => Err(not_a_pair()),
            false => Ok(Self { places, key: key.to_owned(), value: value.to_owned() }),
        }
    }
}

fn place(text: &str) -> Result<Place, AnnotationSpecError> {
    let unknown = || AnnotationSpecError::Type(text.to_owned());
    let (kind, platform) = match text.split_once('[') {
        Some((kind, rest)) => (kind, Some(rest.strip_suffix(']').ok_or_else(unknown)?)),
        None => (text, None),
    };
    let kinds = [Kind::Manifest, Kind::ManifestDescriptor, Kind::Index, Kind::IndexDescriptor];
    let kind = kinds.into_iter().find(|known| known.name() == kind).ok_or_else(unknown)?;
    if platform.is_some() && matches!(kind, Kind::Index | Kind::IndexDescriptor) {
        return Err(AnnotationSpecError::IndexOfPlatform(text.to_owned()));
    }
    let parse = |platform: &str| {
        platform.parse().map_err(|source| AnnotationSpecError::Platform { text: text.to_owned(), source })
    };
    Ok(Place { kind, platform: platform.map(parse).transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_platforms_are_read() {
        let place = |kind, platform: Option<&str>| Place {
            kind,
            platform: platform.map(|text| text.parse().expect("a platform")),
        };
        for (text, places, key, value) in [
            ("a=b", vec![place(Kind::Manifest, None)], "a", "b"),
            ("a.b/c=x=y", vec![place(Kind::Manifest, None)], "a.b/c", "x=y"),
            ("manifest:a=", vec![place(Kind::Manifest, None)], "a", ""),
            (
                "manifest-descriptor[linux/arm64],index:a=b",
                vec![place(Kind::ManifestDescriptor, Some("linux/arm64")), place(Kind::Index, None)],
                "a",
                "b",
            ),
            ("index-descriptor:a:b=c", vec![place(Kind::IndexDescriptor, None)], "a:b", "c"),
        ] {
            let want = AnnotationSpec { places, key: key.to_owned(), value: value.to_owned() };
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in [
            "a",
            "=b",
            "index[linux/amd64]:a=b",
            "manifest:=b",
            "layer:a=b",
            "manifest[:a=b",
            "manifest[x/]:a=b",
            "manifest[]:a=b",
        ] {
            assert!(text.parse::<AnnotationSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_goes_to_its_place_and_the_last_one_wins() {
        let given =
            ["a=1", "a=2", "manifest,index:b=2", "manifest[linux/amd64]:a=3", "manifest-descriptor:c="];
        let specs: Vec<AnnotationSpec> =
            given.iter().map(|text| text.parse().expect("an annotation")).collect();
        let sorted = sorted(&specs);
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let amd64: Platform = "linux/amd64".parse().expect("a platform");
        assert_eq!(sorted.manifest.of(&amd64), map(&[("a", "3"), ("b", "2")]));
        assert_eq!(sorted.manifest.all, map(&[("a", "2"), ("b", "2")]));
        assert_eq!(sorted.manifest_descriptor.all, map(&[("c", "")]));
        assert_eq!((sorted.index, sorted.index_descriptor), (map(&[("b", "2")]), map(&[])));
    }

    #[test]
    fn keys_of_outputs_are_read_as_buildkit_reads_them() {
        for (key, want) in [
            ("annotation.a.B", "a.B="),
            ("annotation-manifest.a", "manifest:a="),
            ("annotation[linux/arm64].a.b", "manifest[linux/arm64]:a.b="),
            ("annotation-manifest-descriptor[linux/arm64].a", "manifest-descriptor[linux/arm64]:a="),
            ("annotation-index.a", "index:a="),
            ("annotation-index-descriptor.a]b", "index-descriptor:a]b="),
        ] {
            let found = AnnotationSpec::of_output(key, "").expect("an annotation").expect(key);
            assert_eq!(Ok(found), want.parse(), "{key}");
        }
        for key in
            ["annotation.", "annotation-layer.a", "annotation[.a", "annotation[x/].a", "annotation-manifest"]
        {
            assert!(AnnotationSpec::of_output(key, "").expect("an annotation").is_err(), "{key}");
        }
        assert_eq!(AnnotationSpec::of_output("annotations", ""), None);
    }
}

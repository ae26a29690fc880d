//! `--annotation [TYPE[,TYPE]:]KEY=VALUE`: what is written about an image beside its config.

use std::str::FromStr;

use oci::Platform;

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
        for text in
            ["a", "=b", "manifest:=b", "layer:a=b", "manifest[:a=b", "manifest[x/]:a=b", "manifest[]:a=b"]
        {
            assert!(text.parse::<AnnotationSpec>().is_err(), "{text}");
        }
    }
}

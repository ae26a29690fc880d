//! Where an image lies that exists, by what a person types: a reference, an OCI layout directory or a tar that holds one.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use oci::{
    Reference, documents::Documents, image::ImageError, reference::ReferenceError, registry::Registry,
};

/// An image somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlace {
    /// In a registry.
    Registry(Reference),
    /// In a directory or a tar.
    Path {
        /// Which.
        path: PathBuf,
        /// Tag or digest in it.
        selector: Option<String>,
    },
}

/// Says that what follows is a path, whatever it looks like.
const LAYOUT: &str = "oci-layout://";

impl ImagePlace {
    /// Where its documents are; a registry is not asked yet.
    ///
    /// # Errors
    /// A file that is no tar of a layout.
    pub fn documents(&self, registry: &Registry) -> Result<Documents, ImageError> {
        match self {
            Self::Registry(reference) => Ok(Documents::of_registry(registry, reference)),
            Self::Path { path, selector } => Documents::of_path(path, selector.clone()),
        }
    }
}

/// What begins with a slash or a dot, or with `oci-layout://`, is a path. So is what is there: a file, or a directory with a
/// layout in it, or what is neither and can hold no image, as a pipe, which is told by whoever opens it; and what is called as
/// archives are, unless a registry stands in front: no registry is asked for a file that was mistyped. Everything else is a
/// reference.
impl FromStr for ImagePlace {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = text.strip_prefix(LAYOUT) {
            return Ok(path(rest));
        }
        let looks_like_one = text.starts_with(['/', '.']) || is_called_as_an_archive(text);
        // The directory of what is built lies about and has the name of its image often enough.
        let is_meant = |path: &Path| match path.is_dir() {
            true => path.join("oci-layout").is_file(),
            false => path.exists(),
        };
        match path(text) {
            Self::Path { path, selector } if looks_like_one || is_meant(&path) => {
                Ok(Self::Path { path, selector })
            }
            _ => text.parse().map(Self::Registry),
        }
    }
}

/// Whether it is the name of an archive, and no registry's: those have a dot or a port in front of the first slash.
fn is_called_as_an_archive(text: &str) -> bool {
    let ends = [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| text.ends_with(end));
    let registry = text.split_once('/').map(|(first, _)| first);
    ends && registry.is_none_or(|first| !first.contains(['.', ':']) && first != "localhost")
}

/// `PATH[:TAG][@DIGEST]`; a path that is there is not cut.
fn path(text: &str) -> ImagePlace {
    let whole = ImagePlace::Path { path: text.into(), selector: None };
    if Path::new(text).exists() {
        return whole;
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (rest, tag) = match rest.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
        _ => (rest, None),
    };
    match digest.or(tag) {
        Some(selector) => ImagePlace::Path { path: rest.into(), selector: Some(selector.to_owned()) },
        None => whole,
    }
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "{}", reference.with_default_tag()),
            Self::Path { path, selector: None } => write!(f, "{}", path.display()),
            Self::Path { path, selector: Some(selector) } => {
                // Only a digest has a colon in it.
                let mark = if selector.contains(':') { '@' } else { ':' };
                write!(f, "{}{mark}{selector}", path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_a_path_and_everything_else_a_reference() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path().display().to_string();
        std::fs::create_dir(directory.path().join("debian")).expect("made");
        std::fs::create_dir(directory.path().join("layout")).expect("made");
        std::fs::write(directory.path().join("layout/oci-layout"), "{}").expect("written");
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, path, selector) in [
            (format!("{at}/layout"), format!("{at}/layout"), None),
            (format!("{at}/layout:1"), format!("{at}/layout"), Some("1")),
            (format!("{at}/layout:1@{digest}"), format!("{at}/layout"), Some(digest.as_str())),
            (format!("oci-layout://{at}/x:1"), format!("{at}/x"), Some("1")),
            ("./missing.tar".to_owned(), "./missing.tar".to_owned(), None),
            ("missing.tar".to_owned(), "missing.tar".to_owned(), None),
            ("out/missing.tar.gz".to_owned(), "out/missing.tar.gz".to_owned(), None),
        ] {
            let want = ImagePlace::Path { path: path.into(), selector: selector.map(str::to_owned) };
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in [format!("./x@{digest}"), "./x:1".to_owned(), "./x".to_owned()] {
            assert_eq!(text.parse::<ImagePlace>().expect("a path").to_string(), text);
        }
        for text in [
            "debian",
            "debian:bookworm",
            "localhost:5000/a/b:1",
            "ghcr.io/a/backup.tar",
            "localhost/x.tgz",
            "a.tar:1",
        ] {
            assert!(matches!(text.parse(), Ok(ImagePlace::Registry(_))), "{text}");
        }
        assert!("UPPER".parse::<ImagePlace>().is_err());
    }
}

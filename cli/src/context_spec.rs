//! `--build-context NAME=SOURCE` and the main context: what stands in for directories and images.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use oci::Reference;

/// One `--build-context`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContextSpec {
    /// The image or stage it stands for, as images are called: `debian` for `docker.io/library/debian:latest`.
    pub name: String,
    /// What is used instead.
    pub source: NamedSource,
}

/// What a named context holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedSource {
    /// The files of a directory.
    Directory(PathBuf),
    /// `docker-image://REF`
    Image(Reference),
    /// `oci-layout://DIR[:TAG][@DIGEST]`
    OciLayout {
        /// The directory.
        directory: PathBuf,
        /// Digest, else tag, where one is given.
        selector: Option<String>,
    },
    /// `scratch`
    Scratch,
}

/// Why something is no context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextSpecError {
    /// Not `NAME=SOURCE`.
    #[error("expected NAME=SOURCE")]
    NotAPair,
    /// A name that cannot be an image's or a stage's.
    #[error("invalid context name {0:?}")]
    Name(String),
    /// An image no registry has.
    #[error(transparent)]
    Image(#[from] oci::reference::ReferenceError),
    /// A kind of context that does not exist here.
    #[error("{what} as a build context is not implemented yet: {expected}")]
    Unsupported {
        /// What was given.
        what: &'static str,
        /// What could be given.
        expected: &'static str,
    },
}

/// The kinds of named contexts.
pub const NAMED_EXPECTED: &str = "expected a directory, docker-image://REF, oci-layout://DIR or scratch";
const MAIN_EXPECTED: &str = "expected a directory";

impl FromStr for NamedContextSpec {
    type Err = ContextSpecError;

    fn from_str(text: &str) -> Result<Self, ContextSpecError> {
        let (name, source) = text.split_once('=').ok_or(ContextSpecError::NotAPair)?;
        Ok(Self { name: context_name(name)?, source: named_source(source)? })
    }
}

/// The name as Dockerfiles use it: without the parts of a reference that are always the same.
fn context_name(name: &str) -> Result<String, ContextSpecError> {
    let reference: Reference = name.parse().map_err(|_| ContextSpecError::Name(name.to_owned()))?;
    let familiar = reference.familiar();
    Ok(familiar.strip_suffix(":latest").map(str::to_owned).unwrap_or(familiar))
}

fn named_source(source: &str) -> Result<NamedSource, ContextSpecError> {
    if let Some(reference) = source.strip_prefix("docker-image://") {
        return match reference {
            "scratch" => Ok(NamedSource::Scratch),
            _ => Ok(NamedSource::Image(reference.parse::<Reference>()?.with_default_tag())),
        };
    }
    if let Some(location) = source.strip_prefix("oci-layout://") {
        let (directory, selector) = layout_location(location);
        return Ok(NamedSource::OciLayout { directory: PathBuf::from(directory), selector });
    }
    if source == "scratch" {
        return Ok(NamedSource::Scratch);
    }
    match remote_kind(source) {
        Some(what) => Err(ContextSpecError::Unsupported { what, expected: NAMED_EXPECTED }),
        None if source.is_empty() => Err(ContextSpecError::NotAPair),
        None => Ok(NamedSource::Directory(PathBuf::from(source))),
    }
}

/// `DIR[:TAG][@DIGEST]`; the digest wins over the tag.
fn layout_location(location: &str) -> (&str, Option<String>) {
    let (rest, digest) = match location.rsplit_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") => (rest, Some(digest.to_owned())),
        _ => (location, None),
    };
    match rest.rsplit_once(':') {
        Some((directory, tag)) if !tag.contains('/') && !tag.is_empty() => {
            (directory, digest.or_else(|| Some(tag.to_owned())))
        }
        _ => (rest, digest),
    }
}

/// The directory of the main context.
///
/// # Errors
/// [`ContextSpecError::Unsupported`] for the other kinds that `docker build` knows.
pub fn main_context(text: &str) -> Result<&Path, ContextSpecError> {
    match remote_kind(text) {
        Some(what) => Err(ContextSpecError::Unsupported { what, expected: MAIN_EXPECTED }),
        None => Ok(Path::new(text)),
    }
}

/// What a source is that is no directory.
fn remote_kind(source: &str) -> Option<&'static str> {
    let is_git = |source: &str| {
        let before_fragment = source.split('#').next().unwrap_or(source);
        before_fragment.ends_with(".git")
    };
    match source {
        "-" => Some("a tar archive on standard input"),
        _ if source.starts_with("git@") || source.starts_with("github.com/") => Some("a git repository"),
        _ if source.starts_with("target:") => Some("another target of a bake file"),
        _ => match source.split_once("://") {
            Some(("http" | "https", rest)) if !is_git(rest) => Some("a URL"),
            Some(("http" | "https" | "git" | "ssh", _)) => Some("a git repository"),
            Some(_) => Some("this kind of source"),
            None => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(directory: &str, selector: Option<&str>) -> NamedSource {
        NamedSource::OciLayout { directory: directory.into(), selector: selector.map(str::to_owned) }
    }

    #[test]
    fn sources_are_told_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, name, source) in [
            ("src=../x", "src", NamedSource::Directory("../x".into())),
            ("debian=scratch", "debian", NamedSource::Scratch),
            ("a=./scratch", "a", NamedSource::Directory("./scratch".into())),
            ("docker.io/library/debian:latest=d", "debian", NamedSource::Directory("d".into())),
            (
                "r.io/a:1=docker-image://alpine",
                "r.io/a:1",
                NamedSource::Image("alpine:latest".parse().expect("ref")),
            ),
            ("b=docker-image://scratch", "b", NamedSource::Scratch),
            ("b=oci-layout://out", "b", layout("out", None)),
            ("b=oci-layout:///a/b:v1", "b", layout("/a/b", Some("v1"))),
            ("b=oci-layout://a:b/c", "b", layout("a:b/c", None)),
            (&format!("b=oci-layout://o:v1@{digest}"), "b", layout("o", Some(&digest))),
        ] {
            assert_eq!(text.parse(), Ok(NamedContextSpec { name: name.to_owned(), source }), "{text}");
        }
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (text, want) in [
            ("src", "expected NAME=SOURCE"),
            ("src=", "expected NAME=SOURCE"),
            ("Src=x", "invalid context name \"Src\""),
            ("s=https://h/x.tar", "a URL as a build context"),
            ("s=https://h/x.git#main", "a git repository"),
            ("s=git@h:x", "a git repository"),
            ("s=target:base", "bake file"),
            ("s=docker-image://UPPER", "lowercase"),
            ("s=-", "standard input"),
        ] {
            let error = text.parse::<NamedContextSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert!(main_context("-").is_err() && main_context("https://h/r.git").is_err());
        assert_eq!(main_context("a/b"), Ok(Path::new("a/b")));
    }
}

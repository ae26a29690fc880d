//! The main context and `--build-context NAME=SOURCE`: what kind of place each names. Nothing is looked at here but the
//! text; what an address means is [`solver::remote`]'s to say.

use std::{path::PathBuf, str::FromStr};

use oci::{Platform, Reference};
use solver::remote::{self, AddressError, GitAddress};

/// One `--build-context`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContextSpec {
    /// The image or stage it stands for, as images are called: `debian` for `docker.io/library/debian:latest`; with
    /// `::os/architecture` behind it, only for that platform.
    pub name: String,
    /// What is used instead.
    pub source: NamedSource,
}

/// What a named context holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedSource {
    /// Files.
    Files(FilesSource),
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

/// Where the files of a context are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesSource {
    /// In a directory.
    Directory(PathBuf),
    /// In a commit of a git repository.
    Git(GitAddress),
    /// Behind a URL: a tar archive, or one file.
    Url(String),
}

/// The main context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSpec {
    /// `-`: a tar archive, or a Dockerfile, on standard input.
    Stdin,
    /// `--git`: a commit of a repository of this machine.
    Commit(CommitSpec),
    /// Anything else.
    Files(FilesSource),
}

/// What `--git` says of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitSpec {
    /// A directory in the repository, or the repository.
    pub place: PathBuf,
    /// `REV` or `REV:DIRECTORY`
    pub revision: String,
    /// `--dirty`
    pub is_dirty: bool,
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
    /// A platform that nobody has.
    #[error("invalid context name {name:?}")]
    Platform {
        /// The whole name.
        name: String,
        /// What is wrong with what follows `::`.
        #[source]
        source: oci::platform::PlatformError,
    },
    /// An image no registry has.
    #[error(transparent)]
    Image(#[from] oci::reference::ReferenceError),
    /// An address of a git repository that contradicts itself.
    #[error("git repository: {0}")]
    Git(#[from] AddressError),
    /// A kind of context that does not exist here.
    #[error("{what} cannot be a build context here: {expected}")]
    Unsupported {
        /// What was given.
        what: &'static str,
        /// What could be given.
        expected: &'static str,
    },
}

/// The kinds of named contexts.
pub const NAMED_EXPECTED: &str =
    "expected a directory, a git repository, an http(s) URL, docker-image://REF, oci-layout://DIR or scratch";
const MAIN_EXPECTED: &str = "expected a directory, -, a git repository or an http(s) URL";

impl FromStr for NamedContextSpec {
    type Err = ContextSpecError;

    fn from_str(text: &str) -> Result<Self, ContextSpecError> {
        let (name, source) = text.split_once('=').ok_or(ContextSpecError::NotAPair)?;
        Ok(Self { name: name_and_platform(name)?, source: named_source(source)? })
    }
}

impl FromStr for ContextSpec {
    type Err = ContextSpecError;

    fn from_str(text: &str) -> Result<Self, ContextSpecError> {
        match text {
            "-" => Ok(Self::Stdin),
            _ => files_source(text, MAIN_EXPECTED).map(Self::Files),
        }
    }
}

/// `NAME` or `NAME::PLATFORM`, both as the planner compares them.
fn name_and_platform(text: &str) -> Result<String, ContextSpecError> {
    let Some((name, platform)) = text.split_once("::") else { return context_name(text) };
    let platform: Platform =
        platform.parse().map_err(|source| ContextSpecError::Platform { name: text.to_owned(), source })?;
    Ok(format!("{}::{platform}", context_name(name)?))
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
    match source {
        "scratch" => Ok(NamedSource::Scratch),
        "" => Err(ContextSpecError::NotAPair),
        _ => files_source(source, NAMED_EXPECTED).map(NamedSource::Files),
    }
}

fn files_source(text: &str, expected: &'static str) -> Result<FilesSource, ContextSpecError> {
    if let Some(address) = remote::parse_git_context(text) {
        return Ok(FilesSource::Git(address?));
    }
    if remote::is_url(text) {
        return Ok(FilesSource::Url(text.to_owned()));
    }
    match foreign_kind(text) {
        Some(what) => Err(ContextSpecError::Unsupported { what, expected }),
        None => Ok(FilesSource::Directory(PathBuf::from(text))),
    }
}

/// What a source is that is no place with files.
fn foreign_kind(source: &str) -> Option<&'static str> {
    match source {
        "-" => Some("standard input"),
        _ if source.starts_with("target:") => Some("another target of a bake file"),
        _ if source.starts_with("docker-image:") || source.starts_with("oci-layout:") => Some("an image"),
        _ if source.contains("://") => Some("this kind of source"),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(directory: &str, selector: Option<&str>) -> NamedSource {
        NamedSource::OciLayout { directory: directory.into(), selector: selector.map(str::to_owned) }
    }

    fn directory(path: &str) -> NamedSource {
        NamedSource::Files(FilesSource::Directory(path.into()))
    }

    fn git(remote: &str, reference: &str) -> FilesSource {
        let address = remote::parse_git_context(&format!("{remote}#{reference}")).expect("a repository");
        FilesSource::Git(address.expect("sound"))
    }

    #[test]
    fn sources_are_told_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, name, source) in [
            ("src=../x", "src", directory("../x")),
            ("debian=scratch", "debian", NamedSource::Scratch),
            ("a=./scratch", "a", directory("./scratch")),
            ("docker.io/library/debian:latest=d", "debian", directory("d")),
            ("debian::linux/aarch64=d", "debian::linux/arm64", directory("d")),
            ("r.io/a:1::linux/arm/v7=scratch", "r.io/a:1::linux/arm/v7", NamedSource::Scratch),
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
            ("s=https://h/x.tar", "s", NamedSource::Files(FilesSource::Url("https://h/x.tar".to_owned()))),
            ("s=https://h/x.git#main", "s", NamedSource::Files(git("https://h/x.git", "main"))),
            ("s=git@h:x#v1:sub", "s", NamedSource::Files(git("git@h:x", "v1:sub"))),
        ] {
            assert_eq!(text.parse(), Ok(NamedContextSpec { name: name.to_owned(), source }), "{text}");
        }
    }

    #[test]
    fn main_contexts_are_told_apart() {
        let directory = |path: &str| FilesSource::Directory(path.into());
        for (text, want) in [
            ("a/b", directory("a/b")),
            ("./-", directory("./-")),
            ("http://h/x", FilesSource::Url("http://h/x".to_owned())),
            ("github.com/me/app#main", git("github.com/me/app", "main")),
            ("ssh://git@h/x", git("ssh://git@h/x", "")),
        ] {
            assert_eq!(text.parse(), Ok(ContextSpec::Files(want)), "{text}");
        }
        assert_eq!("-".parse(), Ok(ContextSpec::Stdin));
    }

    #[test]
    fn what_is_no_context_is_refused_by_name() {
        for (text, want) in [
            ("src", "expected NAME=SOURCE"),
            ("src=", "expected NAME=SOURCE"),
            ("Src=x", "invalid context name \"Src\""),
            ("s::nowhere/x=d", "invalid context name \"s::nowhere/x\""),
            ("s=target:base", "bake file"),
            ("s=docker-image://UPPER", "lowercase"),
            ("s=docker-image:foo", "an image cannot be a build context here"),
            ("s=foo://bar", "this kind of source"),
            ("s=-", "standard input"),
            ("s=https://h/x.git?tag=1&branch=2", "branch conflicts with tag"),
        ] {
            let error = text.parse::<NamedContextSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert!("ftp://h/x".parse::<ContextSpec>().is_err());
    }
}

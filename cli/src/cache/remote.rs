//! `--remote`: which remote cache is looked after.

use std::{path::Path, str::FromStr};

use oci::Reference;

use crate::spec::cache::{CacheFromSpec, CachePlace, CacheSource, CacheSpecError};

/// One cache, as a value of `--cache-from` or by its bare place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSpec(pub CacheSource);

/// Why no cache is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteSpecError {
    /// As with `--cache-from`.
    #[error(transparent)]
    Spec(#[from] CacheSpecError),
    /// None, or several.
    #[error("expected one cache: HOST/REPO[:TAG], a directory, or a record like type=local,src=DIR")]
    NotOne,
    /// Neither a directory that is there nor a repository of a registry that is named.
    #[error(
        "{text:?} is no directory here and names no registry: write ./{text} for a directory, {reference} for that repository"
    )]
    Guess {
        /// What was given.
        text: String,
        /// What a build would take it for.
        reference: Box<Reference>,
    },
}

/// What begins with a slash or a dot is a directory, and so is one that is there. A registry must be named: a directory that
/// is not there, or is somewhere else, is no repository of Docker Hub that somebody would remove things from.
impl FromStr for RemoteSpec {
    type Err = RemoteSpecError;

    fn from_str(text: &str) -> Result<Self, RemoteSpecError> {
        let is_path = text.starts_with(['/', '.']) || !text.contains('=') && Path::new(text).is_dir();
        if is_path {
            let place = CachePlace::Directory { path: text.into(), tag: None };
            return Ok(Self(CacheSource { place, insecure: false }));
        }
        let CacheFromSpec(mut sources) = text.parse()?;
        match (sources.pop(), sources.is_empty()) {
            (Some(CacheSource { place: CachePlace::Registry(reference), .. }), true) if is_guess(text) => {
                Err(RemoteSpecError::Guess { text: text.to_owned(), reference: Box::new(reference) })
            }
            (Some(source), true) => Ok(Self(source)),
            _ => Err(RemoteSpecError::NotOne),
        }
    }
}

/// Whether only a convention says which registry is meant.
fn is_guess(text: &str) -> bool {
    let host = text.split_once('/').map(|(host, _)| host);
    !text.contains('=') && !host.is_some_and(|host| host == "localhost" || host.contains(['.', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_meant_by_its_place_or_as_for_a_build() {
        let place = |text: &str| text.parse::<RemoteSpec>().map(|RemoteSpec(source)| source.place);
        let directory = |path: &str, tag: Option<&str>| {
            Ok(CachePlace::Directory { path: path.into(), tag: tag.map(str::to_owned) })
        };
        let registry = |text: &str| Ok(CachePlace::Registry(text.parse().expect("a reference")));
        assert_eq!(place("./cache"), directory("./cache", None));
        assert_eq!(place("/tmp/a=b"), directory("/tmp/a=b", None));
        assert_eq!(place("src"), directory("src", None), "it is there, beside Cargo.toml");
        assert_eq!(place("type=local,src=x,tag=main"), directory("x", Some("main")));
        assert_eq!(place("registry.example/app/cache:main"), registry("registry.example/app/cache:main"));
        assert_eq!(place("type=registry,ref=app"), registry("app"));
        assert_eq!(place("localhost/app"), registry("localhost/app"));
        for (text, whole) in [
            ("lz", "docker.io/library/lz"),
            ("lz:main", "docker.io/library/lz:main"),
            ("team/cache", "docker.io/team/cache"),
        ] {
            let refused = place(text).expect_err(text).to_string();
            assert!(refused.contains(&format!("./{text} for a directory, {whole} for")), "{refused}");
            assert_eq!(place(whole), registry(whole));
        }
        assert_eq!(place("a,b"), Err(RemoteSpecError::NotOne));
        assert_eq!(place(""), Err(RemoteSpecError::NotOne));
        assert!(matches!(place("type=s3"), Err(RemoteSpecError::Spec(_))));
    }
}

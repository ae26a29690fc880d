//! `--remote`: which remote cache is looked after.

use std::{path::Path, str::FromStr};

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
    #[error("expected one cache: REPO[:TAG], a directory, or a record like type=local,src=DIR")]
    NotOne,
}

/// What begins with a slash or a dot is a directory, and so is one that is there.
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
            (Some(source), true) => Ok(Self(source)),
            _ => Err(RemoteSpecError::NotOne),
        }
    }
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
        assert_eq!(place("a,b"), Err(RemoteSpecError::NotOne));
        assert_eq!(place(""), Err(RemoteSpecError::NotOne));
        assert!(matches!(place("type=s3"), Err(RemoteSpecError::Spec(_))));
    }
}

//! `--cache-from`, `--cache-to` and the keys: which caches there are for a build, each once.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::RequestError;
use crate::{
    args::{self, BuildArgs},
    spec::{
        cache::{CacheFromSpec, CacheMode, CachePacking, CachePlace, CacheSink, CacheSource, CacheToSpec},
        call::Call,
    },
};

/// The remote caches of a build.
#[derive(Debug, Clone, Default)]
pub struct Caches {
    /// Those that are read, in this order.
    pub from: Vec<CachePlace>,
    /// Those that are filled.
    pub to: Vec<CacheFill>,
    /// `type=inline`: whether the image holds its own.
    pub inline: bool,
    /// `--cache-sign-key`
    pub sign_key: Option<PathBuf>,
    /// `--cache-trust-key`
    pub trust_keys: Vec<PathBuf>,
    /// Registries that `registry.insecure=true` was said of.
    pub insecure: Vec<String>,
}

/// A cache that is filled.
#[derive(Debug, Clone)]
pub struct CacheFill {
    /// Where it lies.
    pub place: CachePlace,
    /// `mode=`
    pub mode: CacheMode,
    /// `ignore-error=`
    pub ignore_error: bool,
    /// How layers are packed there.
    pub packing: CachePacking,
}

const NOTHING_TO_SIGN: &str = "--cache-sign-key signs what --cache-to writes, and there is no --cache-to";
const INLINE_UNSIGNED: &str =
    "--cache-sign-key has nothing to sign: an inline cache has no signatures, so add another --cache-to";

/// What the arguments say. A question about a Dockerfile has no caches, whatever the flags say.
///
/// # Errors
/// A directory is no path, or a key has nothing to be for.
pub fn read(args: &BuildArgs, build_args: &BTreeMap<String, String>) -> Result<Caches, RequestError> {
    if args.call().is_none_or(|call| call.call != Call::Build) {
        return Ok(Caches::default());
    }
    if args.cache_sign_key.is_some() && args.cache_to.is_empty() {
        return Err(RequestError::Conflict(NOTHING_TO_SIGN));
    }
    let mut caches = Caches {
        inline: asks_for_inline(build_args),
        sign_key: args.cache_sign_key.clone(),
        trust_keys: args.cache_trust_keys.clone(),
        ..Caches::default()
    };
    for source in args.cache_from.iter().flat_map(|CacheFromSpec(sources)| sources) {
        let place = caches.place(source)?;
        if !caches.from.contains(&place) {
            caches.from.push(place);
        }
    }
    for sink in args.cache_to.iter().flat_map(|CacheToSpec(sinks)| sinks) {
        caches.fill(sink)?;
    }
    let sinks = args.cache_to.iter().map(|CacheToSpec(sinks)| sinks.len()).sum::<usize>();
    if caches.sign_key.is_some() && sinks > 0 && caches.to.is_empty() {
        return Err(RequestError::Conflict(INLINE_UNSIGNED));
    }
    Ok(caches)
}

impl Caches {
    fn fill(&mut self, sink: &CacheSink) -> Result<(), RequestError> {
        let CacheSink::Place { source, mode, ignore_error, packing } = sink else {
            self.inline = true;
            return Ok(());
        };
        let place = self.place(source)?;
        // As with equal keys of a record, the last one counts.
        self.to.retain(|fill| fill.place != place);
        self.to.push(CacheFill { place, mode: *mode, ignore_error: *ignore_error, packing: *packing });
        Ok(())
    }

    /// The same place has the same name, however it was written.
    fn place(&mut self, source: &CacheSource) -> Result<CachePlace, RequestError> {
        match &source.place {
            CachePlace::Registry(reference) => {
                if source.insecure && !self.insecure.contains(&reference.registry) {
                    self.insecure.push(reference.registry.clone());
                }
                Ok(source.place.clone())
            }
            CachePlace::Directory { path, tag } => {
                Ok(CachePlace::Directory { path: absolute(path)?, tag: tag.clone() })
            }
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, RequestError> {
    let read = |source| RequestError::Read { what: "cache", path: path.to_owned(), source };
    std::path::absolute(path).map_err(read)
}

/// As with buildx, which takes what is no truth value for no.
fn asks_for_inline(build_args: &BTreeMap<String, String>) -> bool {
    build_args.get("BUILDKIT_INLINE_CACHE").is_some_and(|value| args::go_bool(value).unwrap_or(false))
}

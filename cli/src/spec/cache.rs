//! `--cache-from` and `--cache-to`: which remote caches a build reads, and which it fills, in buildx's words.
//!
//! A value is a record of `key=value` fields, or nothing but references: `--cache-from REF,REF`. Kinds of caches that
//! BuildKit has and this builder does not are refused by name, like keys nobody knows: a cache that is not what was
//! asked for is found out weeks later, on a bill.

use std::{path::PathBuf, str::FromStr};

use exporter::{BaseLayers, Encoder};
use oci::{Reference, reference::ReferenceError};

use super::{
    csv,
    options::{OptionError, Options},
};

/// Where a cache lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CachePlace {
    /// `type=registry,ref=`: the repository of this reference. The tag, where there is one, names the bundle.
    Registry(Reference),
    /// `type=local,dest=|src=`
    Directory {
        /// The directory, as it was given.
        path: PathBuf,
        /// `tag=`: what the bundle is called there.
        tag: Option<String>,
    },
}

/// One `--cache-from`: the caches that are read, in this order. None where the value is empty, as with buildx: scripts
/// leave it so where there is no cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFromSpec(pub Vec<CacheSource>);

/// A cache that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSource {
    /// Where it lies.
    pub place: CachePlace,
    /// `registry.insecure=`: whether its registry is trusted without TLS.
    pub insecure: bool,
}

/// One `--cache-to`; none where the value is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheToSpec(pub Vec<CacheSink>);

/// A cache that is filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSink {
    /// `type=inline`: the image itself.
    Inline,
    /// A place of its own.
    Place {
        /// Where it lies, and how it is reached.
        source: CacheSource,
        /// `mode=`
        mode: CacheMode,
        /// `ignore-error=`: whether the build goes well even where the cache could not be filled.
        ignore_error: bool,
        /// How layers are packed there.
        packing: CachePacking,
    },
}

/// Which steps go to a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Those whose layers the image has.
    Min,
    /// All that ran.
    #[default]
    Max,
}

/// How layers are packed in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePacking {
    /// `compression=`, `compression-level=`, where one of them is said.
    pub encoder: Option<Encoder>,
    /// `force-compression=`: also where an output packs them in another way, whose blobs would do.
    pub forced: bool,
}

/// Why there is no such cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheSpecError {
    /// The record is malformed, or has a key or a value that does not exist.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// No `type=`.
    #[error("type= is missing: expected type=registry or type=local{0}")]
    NoType(&'static str),
    /// A type that does not exist here.
    #[error("type={kind} is not implemented: expected {expected}")]
    Type {
        /// The type.
        kind: String,
        /// What there is.
        expected: &'static str,
    },
    /// Inline caches are read from their images.
    #[error("type=inline is for --cache-to: the image is the cache, so read it with type=registry,ref=IMAGE")]
    InlineSource,
    /// A key that must be there.
    #[error("type={kind} needs {key}=")]
    Missing {
        /// The type.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A name no registry takes.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A bare reference among fields.
    #[error("{reference:?} takes no options like this: write type=registry,ref={reference}{options}")]
    Short {
        /// The reference, as it was given.
        reference: String,
        /// The other fields, each after a comma.
        options: String,
    },
    /// A reference that looks like a path.
    #[error("{path:?} is no repository: a directory is type=local,{key}={path}")]
    Path {
        /// What was given.
        path: String,
        /// What names a directory.
        key: &'static str,
    },
    /// A cache is filled, which no digest stands for.
    #[error("ref={0} has a digest: what a cache holds changes with every build, so give a tag or nothing")]
    Digest(Reference),
}

impl FromStr for CacheFromSpec {
    type Err = CacheSpecError;

    fn from_str(text: &str) -> Result<Self, CacheSpecError> {
        if let Some(references) = references(text, "src")? {
            return Ok(Self(references));
        }
        let (kind, mut options) = record(text, "")?;
        let place = match kind.as_str() {
            "registry" => registry(&mut options)?,
            "local" => {
                let path = directory(&mut options, "src")?;
                CachePlace::Directory { path, tag: tag(&mut options)? }
            }
            "inline" => return Err(CacheSpecError::InlineSource),
            _ => return Err(CacheSpecError::Type { kind, expected: "registry or local" }),
        };
        let source = reached(place, &mut options)?;
        options.refuse_rest(&kind, why_not)?;
        Ok(Self(vec![source]))
    }
}

impl FromStr for CacheToSpec {
    type Err = CacheSpecError;

    fn from_str(text: &str) -> Result<Self, CacheSpecError> {
        if let Some(references) = references(text, "dest")? {
            let sink = |source: CacheSource| {
                filled(&source.place)?;
                let packing = CachePacking { encoder: None, forced: false };
                Ok(CacheSink::Place { source, mode: CacheMode::default(), ignore_error: true, packing })
            };
            return references.into_iter().map(sink).collect::<Result<_, _>>().map(Self);
        }
        let (kind, mut options) = record(text, ", or type=inline")?;
        let sink = match kind.as_str() {
            "registry" => {
                let place = registry(&mut options)?;
                filled(&place)?;
                sink(place, &mut options)?
            }
            "local" => {
                let path = directory(&mut options, "dest")?;
                let place = CachePlace::Directory { path, tag: tag(&mut options)? };
                sink(place, &mut options)?
            }
            "inline" => inline(&mut options)?,
            _ => return Err(CacheSpecError::Type { kind, expected: "registry, local or inline" }),
        };
        options.refuse_rest(&kind, why_not)?;
        Ok(Self(vec![sink]))
    }
}

/// The references that a value consists of, if it is no record; `key` is what names a directory in one.
fn references(text: &str, key: &'static str) -> Result<Option<Vec<CacheSource>>, CacheSpecError> {
    if text.contains('=') {
        return Ok(None);
    }
    let fields = csv::fields(text).map_err(OptionError::from)?;
    let source = |field: &String| {
        if field.starts_with(['.', '/', '~']) {
            return Err(CacheSpecError::Path { path: field.clone(), key });
        }
        Ok(CacheSource { place: CachePlace::Registry(field.parse()?), insecure: false })
    };
    fields.iter().filter(|field| !field.is_empty()).map(source).collect::<Result<_, _>>().map(Some)
}

/// The type of a record, and the rest of it.
fn record(text: &str, more: &'static str) -> Result<(String, Options), CacheSpecError> {
    let fields = csv::fields(text).map_err(OptionError::from)?;
    let mut options = Options::read(&fields).map_err(|error| short(&fields).unwrap_or(error.into()))?;
    let kind = options.take("type").filter(|kind| !kind.is_empty());
    Ok((kind.ok_or(CacheSpecError::NoType(more))?, options))
}

/// What is meant by a reference with options behind it.
fn short(fields: &[String]) -> Option<CacheSpecError> {
    let (reference, options) = fields.split_first()?;
    let has_place = |field: &String| field.starts_with("type=") || field.starts_with("ref=");
    let are_options = options.iter().all(|field| field.contains('=') && !has_place(field));
    if !are_options || reference.starts_with(['.', '/', '~']) || reference.parse::<Reference>().is_err() {
        return None;
    }
    let options = options.iter().map(|field| format!(",{field}")).collect();
    Some(CacheSpecError::Short { reference: reference.clone(), options })
}

fn registry(options: &mut Options) -> Result<CachePlace, CacheSpecError> {
    let reference = options.take("ref").filter(|reference| !reference.is_empty());
    let missing = CacheSpecError::Missing { kind: "registry", key: "ref" };
    Ok(CachePlace::Registry(reference.ok_or(missing)?.parse()?))
}

fn directory(options: &mut Options, key: &'static str) -> Result<PathBuf, CacheSpecError> {
    let path = options.take(key).filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or(CacheSpecError::Missing { kind: "local", key })
}

/// `tag=`, as tags are in registries, so that a directory can be copied into one.
fn tag(options: &mut Options) -> Result<Option<String>, CacheSpecError> {
    let Some(tag) = options.take("tag").filter(|tag| !tag.is_empty()) else { return Ok(None) };
    let expected = "up to 128 letters, digits, '_', '.' and '-'";
    match format!("cache:{tag}").parse::<Reference>() {
        Ok(Reference { tag: Some(read), digest: None, .. }) if read == tag => Ok(Some(tag)),
        _ => Err(OptionError::value("tag", &tag, expected).into()),
    }
}

/// Only registries can be reached in more than one way.
fn reached(place: CachePlace, options: &mut Options) -> Result<CacheSource, CacheSpecError> {
    let insecure = match place {
        CachePlace::Registry(_) => options.boolean("registry.insecure", "false")?,
        CachePlace::Directory { .. } => false,
    };
    Ok(CacheSource { place, insecure })
}

fn filled(place: &CachePlace) -> Result<(), CacheSpecError> {
    match place {
        CachePlace::Registry(reference) if reference.digest.is_some() => {
            Err(CacheSpecError::Digest(reference.clone()))
        }
        _ => Ok(()),
    }
}

/// What there is to say about filling a place.
fn sink(place: CachePlace, options: &mut Options) -> Result<CacheSink, CacheSpecError> {
    let source = reached(place, options)?;
    let mode = match options.take("mode").as_deref() {
        None | Some("max") => CacheMode::Max,
        Some("min") => CacheMode::Min,
        Some(other) => return Err(OptionError::value("mode", other, "min or max").into()),
    };
    let ignore_error = options.boolean("ignore-error", "true")?;
    let packing = CachePacking {
        encoder: options.wanted_encoder()?,
        forced: options.base_layers()? == BaseLayers::Repacked,
    };
    // What a cache consists of here; the other forms are for programs that do not know them.
    for key in ["oci-mediatypes", "image-manifest", "oci-artifact"] {
        options.only(key, "true")?;
    }
    Ok(CacheSink::Place { source, mode, ignore_error, packing })
}

fn inline(options: &mut Options) -> Result<CacheSink, CacheSpecError> {
    match options.take("mode").as_deref() {
        None | Some("min") => Ok(CacheSink::Inline),
        Some(other) => {
            let expected = "min with type=inline, which holds the steps of the image and no others";
            Err(OptionError::value("mode", other, expected).into())
        }
    }
}

/// What is to be said of options that BuildKit has and that do not exist here.
fn why_not(key: &str) -> &'static str {
    match key {
        "digest" => ": a directory holds what many builds have left there, so give tag= or nothing",
        "scope" | "url" | "url_v2" | "token" | "timeout" => {
            ": that is one of type=gha, which does not exist here"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(reference: &str) -> CacheSource {
        let place = CachePlace::Registry(reference.parse().expect("a reference"));
        CacheSource { place, insecure: false }
    }

    fn directory(path: &str, tag: Option<&str>) -> CacheSource {
        let place = CachePlace::Directory { path: path.into(), tag: tag.map(str::to_owned) };
        CacheSource { place, insecure: false }
    }

    #[test]
    fn what_is_read_from_is_said_as_with_buildx() {
        let insecure = CacheSource { insecure: true, ..registry("h/c") };
        for (text, want) in [
            ("", vec![]),
            ("app", vec![registry("app")]),
            ("h:5000/c:main,h/d", vec![registry("h:5000/c:main"), registry("h/d")]),
            ("type=registry,ref=h/c:main", vec![registry("h/c:main")]),
            ("ref=h/c,TYPE=registry", vec![registry("h/c")]),
            ("type=registry,ref=h/c,registry.insecure=true", vec![insecure]),
            ("type=local,src=c", vec![directory("c", None)]),
            ("type=local,src=/a/c,tag=x", vec![directory("/a/c", Some("x"))]),
        ] {
            assert_eq!(text.parse(), Ok(CacheFromSpec(want)), "{text}");
        }
    }

    #[test]
    fn what_is_filled_has_a_mode_and_a_packing() {
        let usual = CachePacking { encoder: None, forced: false };
        let place = |source, mode, ignore_error, packing| {
            vec![CacheSink::Place { source, mode, ignore_error, packing }]
        };
        let max = |source| place(source, CacheMode::Max, true, usual);
        let zstd = CachePacking { encoder: Some(Encoder::ZSTD), forced: true };
        for (text, want) in [
            ("h/c", max(registry("h/c"))),
            ("type=inline", vec![CacheSink::Inline]),
            ("type=inline,mode=min", vec![CacheSink::Inline]),
            ("type=registry,ref=h/c:t", max(registry("h/c:t"))),
            ("type=local,dest=c,mode=max", max(directory("c", None))),
            ("type=local,dest=c,mode=min", place(directory("c", None), CacheMode::Min, true, usual)),
            ("type=registry,ref=c,ignore-error=false", place(registry("c"), CacheMode::Max, false, usual)),
            (
                "type=registry,ref=c,compression=zstd,force-compression=true",
                place(registry("c"), CacheMode::Max, true, zstd),
            ),
            ("type=registry,ref=c,oci-mediatypes=true,image-manifest=true", max(registry("c"))),
        ] {
            assert_eq!(text.parse(), Ok(CacheToSpec(want)), "{text}");
        }
    }

    #[test]
    fn what_is_no_cache_is_refused_by_name() {
        for (text, want) in [
            ("ref=h/c", "type= is missing: expected type=registry or type=local"),
            ("type=gha", "type=gha is not implemented: expected registry or local"),
            ("type=s3,bucket=b", "type=s3 is not implemented"),
            ("type=inline", "--cache-to"),
            ("type=registry", "type=registry needs ref="),
            ("type=registry,ref=", "type=registry needs ref="),
            ("type=registry,ref=App", "lowercase"),
            ("type=registry,ref=c,mode=max", "type=registry has no option mode="),
            ("type=registry,ref=c,scope=x", "type=registry has no option scope=: that is one of type=gha"),
            ("type=local,dest=c", "type=local needs src="),
            ("type=local,src=c,digest=sha256:0", "has no option digest=: a directory holds"),
            ("type=local,src=c,tag=a/b", "tag=a/b is not supported"),
            ("type=local,src=c,tagg=b", "(did you mean tag=?)"),
            ("type=local,src=c,registry.insecure=true", "type=local has no option registry.insecure="),
            ("type=local,x", "\"x\" is not a key=value pair"),
            ("App", "lowercase"),
            ("./c", "\"./c\" is no repository: a directory is type=local,src=./c"),
        ] {
            let error = text.parse::<CacheFromSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        for (text, want) in [
            ("dest=c", "type= is missing: expected type=registry or type=local, or type=inline"),
            (
                "h/c:t,ignore-error=false,mode=min",
                "\"h/c:t\" takes no options like this: write type=registry,ref=h/c:t,ignore-error=false,mode=min",
            ),
            ("h/c,h/d,mode=min", "\"h/c\" is not a key=value pair"),
            ("./c,mode=min", "\"./c\" is not a key=value pair"),
            ("type=azblob", "type=azblob is not implemented: expected registry, local or inline"),
            ("type=local,src=c", "type=local needs dest="),
            ("type=local,dest=c,mode=all", "mode=all is not supported: expected min or max"),
            ("type=inline,mode=max", "mode=max is not supported: expected min with type=inline"),
            ("type=inline,ref=x", "type=inline has no option ref="),
            ("type=local,dest=c,ignore-error=no", "ignore-error=no is not supported"),
            ("type=registry,ref=c,image-manifest=false", "image-manifest=false is not supported"),
            ("type=registry,ref=c,oci-mediatypes=false", "oci-mediatypes=false is not supported"),
            ("type=registry,ref=c,compression=estargz", "compression=estargz is not supported"),
            ("h/c,/c", "a directory is type=local,dest=/c"),
            ("type=registry,ref=c@sha256:", "the digest must be"),
            (&format!("c@sha256:{}", "0".repeat(64)), "has a digest"),
        ] {
            let error = text.parse::<CacheToSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}

//! `--output`: where the result of a build goes, as `docker buildx build -o` spells it.
//!
//! A value is a record of comma-separated `key=value` fields, or a lone directory, or `-`. Keys that BuildKit knows
//! and this builder does not are refused by name, like keys nobody knows: an output that is not what was asked for
//! is worse than none.

use std::{path::PathBuf, str::FromStr};

use exporter::{BaseLayers, Destination, Encoder, GzipLevel, Packing, Tagging, ZstdLevel};
use oci::{Reference, reference::ReferenceError};

use super::csv;

/// One `--output`, before `-t` and `--push` are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputSpec {
    /// `type=oci`: an OCI layout in a tar archive.
    OciArchive {
        /// Where it goes.
        destination: Destination,
        /// How the layers are packed and what the image is called.
        image: ImageOptions,
    },
    /// `type=oci,tar=false`: an OCI layout.
    OciLayout {
        /// Where it goes.
        directory: PathBuf,
        /// How the layers are packed and what the image is called.
        image: ImageOptions,
    },
    /// `type=image` and `type=registry`: an image, pushed or left in the store.
    Image {
        /// Whether it is pushed.
        push: bool,
        /// Whether its registry is trusted without TLS.
        insecure: bool,
        /// What becomes of its names there.
        tagging: Tagging,
        /// How the layers are packed and what the image is called.
        image: ImageOptions,
    },
    /// `type=tar`: the root file system as one tar archive.
    Tar(Destination),
    /// `type=local`: the root file system as a directory.
    Local(PathBuf),
    /// `type=cacheonly`: the result stays in the store, and that is what was wanted.
    CacheOnly,
}

/// What outputs that hold an image have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// `name=`: names instead of those of `-t`, as they were given.
    pub names: Vec<Reference>,
    /// `compression=` and what else says how it is packed.
    pub packing: Packing,
}

/// Why an output cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputSpecError {
    /// The record cannot be read.
    #[error(transparent)]
    Csv(#[from] csv::CsvError),
    /// A field without `=`.
    #[error("{0:?} is not a key=value pair")]
    NotAPair(String),
    /// No `type=`.
    #[error("type= is missing: expected type=registry, image, oci, tar, local or cacheonly")]
    NoType,
    /// A type that does not exist here.
    #[error("type={0} is not implemented: expected registry, image, oci, tar, local or cacheonly")]
    Type(String),
    /// A key that does not exist here.
    #[error("type={kind} has no option {key}= here{why}")]
    Key {
        /// The type.
        kind: &'static str,
        /// The key.
        key: String,
        /// More about it, where there is more to say.
        why: &'static str,
    },
    /// A value its key does not take.
    #[error("{key}={value} is not supported: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// No `dest=` where there must be one.
    #[error("type={0} needs dest=")]
    NoDestination(&'static str),
    /// A name no registry takes.
    #[error(transparent)]
    Name(#[from] ReferenceError),
}

impl FromStr for OutputSpec {
    type Err = OutputSpecError;

    fn from_str(text: &str) -> Result<Self, OutputSpecError> {
        if text == "-" {
            return Ok(Self::Tar(Destination::Stdout));
        }
        let fields = csv::fields(text)?;
        if let [only] = &fields[..]
            && only == text
            && !text.starts_with("type=")
        {
            return match text.is_empty() {
                true => Err(OutputSpecError::NoType),
                false => Ok(Self::Local(PathBuf::from(text))),
            };
        }
        let mut options = Options::read(&fields)?;
        let spec = match options.take("type").as_deref() {
            Some("registry") => image(&mut options, "registry", "true")?,
            Some("image") => image(&mut options, "image", "false")?,
            Some("oci") => oci(&mut options)?,
            Some("tar") => Self::Tar(options.destination("tar")?),
            Some("local") => local(&mut options)?,
            Some("cacheonly") => Self::CacheOnly,
            Some(other) => return Err(OutputSpecError::Type(other.to_owned())),
            None => return Err(OutputSpecError::NoType),
        };
        options.refuse_rest(&spec)?;
        Ok(spec)
    }
}

fn image(
    options: &mut Options,
    kind: &'static str,
    default_push: &str,
) -> Result<OutputSpec, OutputSpecError> {
    let push = options.boolean("push", default_push)?;
    if kind == "registry" && !push {
        return Err(OutputSpecError::Value {
            key: "push",
            value: "false".into(),
            expected: "true with type=registry",
        });
    }
    let insecure = options.boolean("registry.insecure", "false")?;
    let tagging = match options.boolean("push-by-digest", "false")? {
        true => Tagging::DigestOnly,
        false => Tagging::Tags,
    };
    // Names of the image in a store of images, which BuildKit would give it, too; here is none.
    options.boolean("name-canonical", "false")?;
    Ok(OutputSpec::Image { push, insecure, tagging, image: options.image()? })
}

fn oci(options: &mut Options) -> Result<OutputSpec, OutputSpecError> {
    let archive = options.boolean("tar", "true")?;
    match (archive, options.destination("oci")?) {
        (true, destination) => Ok(OutputSpec::OciArchive { destination, image: options.image()? }),
        (false, Destination::File(directory)) => {
            Ok(OutputSpec::OciLayout { directory, image: options.image()? })
        }
        (false, Destination::Stdout) => Err(OutputSpecError::NoDestination("oci,tar=false")),
    }
}

fn local(options: &mut Options) -> Result<OutputSpec, OutputSpecError> {
    match options.destination("local")? {
        Destination::File(directory) => Ok(OutputSpec::Local(directory)),
        Destination::Stdout => Err(OutputSpecError::NoDestination("local")),
    }
}

/// The pairs that nobody has asked for yet. The last of two equal keys wins, as in BuildKit.
struct Options(Vec<(String, String)>);

impl Options {
    fn read(fields: &[String]) -> Result<Self, OutputSpecError> {
        let pair = |field: &String| {
            let (key, value) =
                field.split_once('=').ok_or_else(|| OutputSpecError::NotAPair(field.clone()))?;
            Ok((key.trim().to_ascii_lowercase(), value.to_owned()))
        };
        fields.iter().map(pair).collect::<Result<_, _>>().map(Self)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let value = self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        self.0.retain(|(name, _)| name != key);
        value
    }

    fn boolean(&mut self, key: &'static str, default: &str) -> Result<bool, OutputSpecError> {
        let value = self.take(key).unwrap_or_else(|| default.to_owned());
        match value.as_str() {
            "true" | "1" | "t" | "True" | "TRUE" | "T" => Ok(true),
            "false" | "0" | "f" | "False" | "FALSE" | "F" => Ok(false),
            _ => Err(OutputSpecError::Value { key, value, expected: "true or false" }),
        }
    }

    /// `dest=`; missing for an archive means standard output, as in buildx.
    fn destination(&mut self, kind: &'static str) -> Result<Destination, OutputSpecError> {
        match self.take("dest").as_deref() {
            Some("-") => Ok(Destination::Stdout),
            Some("") => Err(OutputSpecError::NoDestination(kind)),
            Some(path) => Ok(Destination::File(PathBuf::from(path))),
            None => Ok(Destination::Stdout),
        }
    }

    fn image(&mut self) -> Result<ImageOptions, OutputSpecError> {
        let names = self.take("name").unwrap_or_default();
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names = names.map(|name| Ok(name.parse::<Reference>()?));
        let (encoder, base) = (self.encoder()?, self.base_layers()?);
        self.always("oci-mediatypes")?;
        self.always("rewrite-timestamp")?;
        let packing = Packing { encoder, base, ..Packing::default() };
        Ok(ImageOptions { names: names.collect::<Result<_, OutputSpecError>>()?, packing })
    }

    /// `compression=` and `compression-level=`, whose numbers are BuildKit's.
    fn encoder(&mut self) -> Result<Encoder, OutputSpecError> {
        let refused = |key, value: &str, expected| {
            Err(OutputSpecError::Value { key, value: value.to_owned(), expected })
        };
        let level = self.take("compression-level");
        let number = || level.as_deref().map(|level| level.parse().ok());
        let (encoder, expected) = match self.take("compression").as_deref() {
            None | Some("gzip") => match number() {
                None => (Some(Encoder::GZIP), ""),
                Some(level) => (level.and_then(GzipLevel::new).map(Encoder::Gzip), "0 to 9 for gzip"),
            },
            Some("zstd") => match number() {
                None => (Some(Encoder::ZSTD), ""),
                Some(level) => (level.and_then(ZstdLevel::new).map(Encoder::Zstd), "0 to 22 for zstd"),
            },
            Some("uncompressed") => {
                (level.is_none().then_some(Encoder::Uncompressed), "no level for what is not compressed")
            }
            Some(other) => return refused("compression", other, "gzip, zstd or uncompressed"),
        };
        encoder.map_or_else(|| refused("compression-level", &level.unwrap_or_default(), expected), Ok)
    }

    /// `force-compression=`, which is true where it is empty.
    fn base_layers(&mut self) -> Result<BaseLayers, OutputSpecError> {
        let key = "force-compression";
        self.0
            .iter_mut()
            .filter(|(name, value)| name == key && value.is_empty())
            .for_each(|(_, value)| value.push('1'));
        Ok(match self.boolean(key, "false")? {
            true => BaseLayers::Repacked,
            false => BaseLayers::Kept,
        })
    }

    /// An option of BuildKit that is always on here: `true` says nothing new, `false` cannot be had.
    fn always(&mut self, key: &'static str) -> Result<(), OutputSpecError> {
        match self.boolean(key, "true")? {
            true => Ok(()),
            false => Err(OutputSpecError::Value {
                key,
                value: "false".to_owned(),
                expected: "true, or leave it out",
            }),
        }
    }

    fn refuse_rest(&self, spec: &OutputSpec) -> Result<(), OutputSpecError> {
        let Some((key, _)) = self.0.first() else { return Ok(()) };
        let kind = match spec {
            OutputSpec::OciArchive { .. } | OutputSpec::OciLayout { .. } => "oci",
            OutputSpec::Image { .. } => "image",
            OutputSpec::Tar(_) => "tar",
            OutputSpec::Local(_) => "local",
            OutputSpec::CacheOnly => "cacheonly",
        };
        let why = match key.split(['.', '[']).next() {
            Some("annotation" | "annotation-index") => ": --annotation gives one to all images",
            Some("attestation-inline" | "attestation-prefix") => ": attestations are not implemented yet",
            _ => "",
        };
        Err(OutputSpecError::Key { kind, key: key.clone(), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(destination: Destination) -> OutputSpec {
        OutputSpec::OciArchive { destination, image: ImageOptions::default() }
    }

    fn layout(directory: &str) -> OutputSpec {
        OutputSpec::OciLayout { directory: directory.into(), image: ImageOptions::default() }
    }

    fn path(text: &str) -> Destination {
        Destination::File(PathBuf::from(text))
    }

    fn names(names: &[&str]) -> ImageOptions {
        let names = names.iter().map(|name| name.parse().expect("a reference")).collect();
        ImageOptions { names, ..ImageOptions::default() }
    }

    #[test]
    fn what_can_be_made_is_read() {
        let image = |push, image| OutputSpec::Image { push, insecure: false, tagging: Tagging::Tags, image };
        for (text, want) in [
            ("out", OutputSpec::Local("out".into())),
            ("./a=b", OutputSpec::Local("./a=b".into())),
            ("-", OutputSpec::Tar(Destination::Stdout)),
            ("type=local,dest=out", OutputSpec::Local("out".into())),
            ("type=tar,dest=x.tar", OutputSpec::Tar(path("x.tar"))),
            ("type=tar", OutputSpec::Tar(Destination::Stdout)),
            ("type=oci,dest=x.tar", archive(path("x.tar"))),
            ("type=oci,tar=false,dest=d", layout("d")),
            ("dest=x,TYPE=oci", archive(path("x"))),
            ("type=oci,oci-mediatypes=true,rewrite-timestamp=true", archive(Destination::Stdout)),
            ("type=registry", image(true, names(&[]))),
            ("type=registry,name=r.io/a", image(true, names(&["r.io/a"]))),
            ("type=image", image(false, names(&[]))),
            ("type=image,push=true,\"name=r.io/a:1,r.io/b\"", image(true, names(&["r.io/a:1", "r.io/b"]))),
            (
                "type=image,push=true,push-by-digest=true,name-canonical=true,name=r.io/a",
                OutputSpec::Image {
                    push: true,
                    insecure: false,
                    tagging: Tagging::DigestOnly,
                    image: names(&["r.io/a"]),
                },
            ),
            ("type=cacheonly", OutputSpec::CacheOnly),
        ] {
            assert_eq!(text.parse::<OutputSpec>().as_ref(), Ok(&want), "{text}");
        }
    }

    #[test]
    fn layers_are_packed_as_wanted() {
        let gzip = |level| GzipLevel::new(level).map(Encoder::Gzip).expect("a level");
        let zstd = |level| ZstdLevel::new(level).map(Encoder::Zstd).expect("a level");
        for (keys, want) in [
            ("", Encoder::GZIP),
            (",compression=gzip", Encoder::GZIP),
            (",compression-level=0", gzip(0)),
            (",compression-level=9,compression=gzip", gzip(9)),
            (",compression=zstd", Encoder::ZSTD),
            (",compression=zstd,compression-level=0", zstd(1)),
            (",compression=zstd,compression-level=22", zstd(22)),
            (",compression=uncompressed", Encoder::Uncompressed),
        ] {
            let spec = format!("type=oci{keys}").parse::<OutputSpec>();
            let Ok(OutputSpec::OciArchive { image, .. }) = spec else { panic!("{keys}: {spec:?}") };
            assert_eq!((image.packing.encoder, image.packing.base), (want, BaseLayers::Kept), "{keys}");
        }
        for (value, want) in
            [("", BaseLayers::Repacked), ("true", BaseLayers::Repacked), ("0", BaseLayers::Kept)]
        {
            let spec = format!("type=oci,compression=zstd,force-compression={value}").parse::<OutputSpec>();
            let Ok(OutputSpec::OciArchive { image, .. }) = spec else { panic!("{value}: {spec:?}") };
            assert_eq!((image.packing.encoder, image.packing.base), (Encoder::ZSTD, want), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused_by_name() {
        for (text, want) in [
            ("", "type= is missing"),
            ("dest=x,tar=false", "type= is missing"),
            ("type=docker,dest=x", "type=docker is not implemented"),
            ("type=oci,dest", "\"dest\" is not a key=value pair"),
            ("type=oci,annotation.a=b", "has no option annotation.a= here: --annotation"),
            ("type=oci,compresion=gzip", "has no option compresion="),
            ("type=oci,compression=estargz", "compression=estargz is not supported: expected gzip, zstd or"),
            (
                "type=oci,compression-level=10",
                "compression-level=10 is not supported: expected 0 to 9 for gzip",
            ),
            ("type=oci,compression=zstd,compression-level=23", "expected 0 to 22 for zstd"),
            ("type=oci,compression=zstd,compression-level=-1", "compression-level=-1 is not supported"),
            ("type=oci,compression-level=best", "compression-level=best is not supported"),
            ("type=oci,compression-level=", "compression-level= is not supported"),
            ("type=oci,compression=uncompressed,compression-level=1", "no level for what is not compressed"),
            ("type=oci,force-compression=yes", "force-compression=yes is not supported"),
            ("type=tar,compression=zstd", "type=tar has no option compression="),
            ("type=oci,tar=no", "tar=no is not supported"),
            ("type=oci,tar=false", "type=oci,tar=false needs dest="),
            ("type=local", "type=local needs dest="),
            ("type=local,dest=out,compression=gzip", "type=local has no option compression="),
            ("type=registry,push=false", "push=false"),
            ("type=image,name=UPPER", "lowercase"),
            ("type=oci,oci-mediatypes=false", "oci-mediatypes=false"),
            ("type=oci,name=\"a\"", "a quote stands inside a field"),
        ] {
            let error = text.parse::<OutputSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}

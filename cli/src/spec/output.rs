//! `--output`: where the result of a build goes, as `docker buildx build -o` spells it.
//!
//! A value is a record of comma-separated `key=value` fields, or a lone directory, or `-`. Keys that BuildKit knows
//! and this builder does not are refused by name, like keys nobody knows: an output that is not what was asked for
//! is worse than none.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use exporter::{Destination, MediaTypes, Packing, PlatformSplit, Tagging};
use oci::{MediaType, Reference, reference::ReferenceError};

use super::{
    annotation::{AnnotationSpec, AnnotationSpecError},
    csv,
    options::{OptionError, Options},
};

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
    /// `type=docker,dest=`: an archive for `docker load`.
    DockerArchive {
        /// Where it goes.
        destination: Destination,
        /// How the layers are packed and what the image is called.
        image: ImageOptions,
    },
    /// `type=docker` without `dest=`: loaded into docker or podman.
    Load {
        /// `context=`: the docker context.
        context: Option<String>,
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
    Tar {
        /// Where it goes.
        destination: Destination,
        /// Where in it the files of each platform go.
        split: PlatformSplit,
    },
    /// `type=local`: the root file system as a directory.
    Local {
        /// Where it goes.
        directory: PathBuf,
        /// Where in it the files of each platform go.
        split: PlatformSplit,
    },
    /// `type=cacheonly`: the result stays in the store, and that is what was wanted.
    CacheOnly,
}

/// What outputs that hold an image have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// `name=`: names instead of those of `-t`, as they were given.
    pub names: Vec<Reference>,
    /// `compression=` and what else says how it is packed. The media types are those that this kind of output usually
    /// has.
    pub packing: Packing,
    /// `oci-mediatypes=`, where it is given.
    pub media_types: Option<MediaTypes>,
    /// `annotation.KEY=` and its kin.
    pub annotations: Vec<AnnotationSpec>,
}

/// Why an output cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputSpecError {
    /// The record is malformed, or has a key or a value that does not exist.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// No `type=`.
    #[error("type= is missing: expected type=registry, image, oci, docker, tar, local or cacheonly")]
    NoType,
    /// A type that does not exist here.
    #[error("type={0} is not implemented: expected registry, image, oci, docker, tar, local or cacheonly")]
    Type(String),
    /// No `dest=` where there must be one.
    #[error("type={0} needs dest=")]
    NoDestination(&'static str),
    /// Docker's image format has no zstd.
    #[error(
        "oci-mediatypes=false and compression=zstd contradict each other: Docker's media types have none for zstd"
    )]
    ZstdForDocker,
    /// A place for the archive, and a place to load it into.
    #[error("dest= and context= contradict each other: an archive goes to a file, or into a docker context")]
    DestinationAndContext,
    /// An annotation that makes no sense.
    #[error(transparent)]
    Annotation(#[from] AnnotationSpecError),
    /// A name no registry takes.
    #[error(transparent)]
    Name(#[from] ReferenceError),
}

impl OutputSpec {
    /// An OCI layout in a directory.
    pub fn layout(directory: &Path) -> Self {
        Self::OciLayout { directory: directory.to_owned(), image: ImageOptions::default() }
    }
}

impl FromStr for OutputSpec {
    type Err = OutputSpecError;

    fn from_str(text: &str) -> Result<Self, OutputSpecError> {
        if text == "-" {
            return Ok(Self::Tar { destination: Destination::Stdout, split: PlatformSplit::default() });
        }
        let fields = csv::fields(text).map_err(OptionError::from)?;
        if let [only] = &fields[..]
            && only == text
            && !text.starts_with("type=")
        {
            return match text.is_empty() {
                true => Err(OutputSpecError::NoType),
                false => Ok(Self::Local { directory: text.into(), split: PlatformSplit::default() }),
            };
        }
        let mut options = Options::read(&fields)?;
        let kind = options.take("type");
        let spec = match kind.as_deref() {
            Some("registry") => image(&mut options, "registry", "true")?,
            Some("image") => image(&mut options, "image", "false")?,
            Some("oci") => oci(&mut options)?,
            Some("docker") => docker(&mut options)?,
            Some("tar") => {
                Self::Tar { destination: options.destination("tar")?, split: options.platform_split()? }
            }
            Some("local") => local(&mut options)?,
            Some("cacheonly") => Self::CacheOnly,
            Some(other) => return Err(OutputSpecError::Type(other.to_owned())),
            None => return Err(OutputSpecError::NoType),
        };
        options.refuse_rest(&kind.unwrap_or_default(), why_not)?;
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
        return Err(OptionError::value("push", "false", "true with type=registry").into());
    }
    let insecure = options.boolean("registry.insecure", "false")?;
    let tagging = match options.boolean("push-by-digest", "false")? {
        true => Tagging::DigestOnly,
        false => Tagging::Tags,
    };
    // Names of the image in a store of images, which BuildKit would give it, too; here is none, and it cannot be unpacked
    // there either. Whoever pulls from a registry can always give NAME@DIGEST.
    options.boolean("name-canonical", "false")?;
    options.only("store", "false")?;
    options.only("unpack", "false")?;
    Ok(OutputSpec::Image { push, insecure, tagging, image: options.image(MediaTypes::Oci)? })
}

fn oci(options: &mut Options) -> Result<OutputSpec, OutputSpecError> {
    let archive = options.boolean("tar", "true")?;
    match (archive, options.destination("oci")?) {
        (true, destination) => {
            Ok(OutputSpec::OciArchive { destination, image: options.image(MediaTypes::Oci)? })
        }
        (false, Destination::File(directory)) => {
            Ok(OutputSpec::OciLayout { directory, image: options.image(MediaTypes::Oci)? })
        }
        (false, Destination::Stdout) => Err(OutputSpecError::NoDestination("oci,tar=false")),
    }
}

/// As with buildx: an archive where there is a `dest=`, else the image is loaded; `tar=false` is a layout with Docker's
/// media types.
fn docker(options: &mut Options) -> Result<OutputSpec, OutputSpecError> {
    let archive = options.boolean("tar", "true")?;
    let context = options.take("context").filter(|context| !context.is_empty());
    let destination = options.has("dest").then(|| options.destination("docker")).transpose()?;
    let image = options.image(MediaTypes::Docker)?;
    match (archive, destination, context) {
        (_, Some(_), Some(_)) => Err(OutputSpecError::DestinationAndContext),
        (true, None, context) => Ok(OutputSpec::Load { context, image }),
        (true, Some(destination), None) => Ok(OutputSpec::DockerArchive { destination, image }),
        (false, Some(Destination::File(directory)), None) => {
            let media_types = image.media_types.or(Some(MediaTypes::Docker));
            Ok(OutputSpec::OciLayout { directory, image: ImageOptions { media_types, ..image } })
        }
        (false, ..) => Err(OutputSpecError::NoDestination("docker,tar=false")),
    }
}

fn local(options: &mut Options) -> Result<OutputSpec, OutputSpecError> {
    match options.destination("local")? {
        Destination::File(directory) => Ok(OutputSpec::Local { directory, split: options.platform_split()? }),
        Destination::Stdout => Err(OutputSpecError::NoDestination("local")),
    }
}

impl Options {
    /// `dest=`; missing for an archive means standard output, as in buildx.
    fn destination(&mut self, kind: &'static str) -> Result<Destination, OutputSpecError> {
        match self.take("dest").as_deref() {
            Some("-") => Ok(Destination::Stdout),
            Some("") => Err(OutputSpecError::NoDestination(kind)),
            Some(path) => Ok(Destination::File(PathBuf::from(path))),
            None => Ok(Destination::Stdout),
        }
    }

    /// `platform-split=`
    fn platform_split(&mut self) -> Result<PlatformSplit, OutputSpecError> {
        if !self.has("platform-split") {
            return Ok(PlatformSplit::Several);
        }
        let splits = self.boolean("platform-split", "true")?;
        Ok(if splits { PlatformSplit::Always } else { PlatformSplit::Never })
    }

    /// `annotation.KEY=` and its kin, in their order.
    fn annotations(&mut self) -> Result<Vec<AnnotationSpec>, OutputSpecError> {
        let mut annotations = Vec::new();
        let mut failed = None;
        self.pairs.retain(|(key, value)| match AnnotationSpec::of_output(key, value) {
            None => true,
            Some(Ok(annotation)) => {
                annotations.push(annotation);
                false
            }
            Some(Err(error)) => {
                failed.get_or_insert(error);
                false
            }
        });
        failed.map_or(Ok(annotations), |error| Err(error.into()))
    }

    /// `oci-mediatypes=`, where it is given.
    fn media_types(&mut self) -> Result<Option<MediaTypes>, OutputSpecError> {
        const KEY: &str = "oci-mediatypes";
        if !self.has(KEY) {
            return Ok(None);
        }
        self.empty_is_true(KEY);
        Ok(Some(if self.boolean(KEY, "true")? { MediaTypes::Oci } else { MediaTypes::Docker }))
    }

    /// What outputs that hold an image have in common, for one that usually has these media types.
    fn image(&mut self, usual: MediaTypes) -> Result<ImageOptions, OutputSpecError> {
        let names = self.take("name").unwrap_or_default();
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names = names.map(|name| Ok(name.parse::<Reference>()?));
        let (encoder, base) = (self.encoder()?, self.base_layers()?);
        self.only("rewrite-timestamp", "true")?;
        self.only("prefer-nondist-layers", "false")?;
        self.only("attestation-inline", "false")?;
        let (annotations, media_types) = (self.annotations()?, self.media_types()?);
        if media_types == Some(MediaTypes::Docker) && encoder.media_type() == MediaType::OciLayerZstd {
            return Err(OutputSpecError::ZstdForDocker);
        }
        let packing = Packing { encoder, base, media_types: usual };
        let names = names.collect::<Result<_, OutputSpecError>>()?;
        Ok(ImageOptions { names, packing, media_types, annotations })
    }
}

/// What is to be said of options that BuildKit has and that do not exist here.
fn why_not(key: &str) -> &'static str {
    match key.split(['.', '[']).next() {
        Some("attestation-prefix") => ": attestations are not implemented yet",
        Some("dangling-name-prefix") => ": an image without a name gets none, it is found by its digest",
        Some("source-date-epoch") => ": SOURCE_DATE_EPOCH, or the build argument, counts for all outputs",
        Some("buildinfo" | "buildinfo-attrs") => ": build information is gone from BuildKit, too",
        _ => "",
    }
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    use exporter::{BaseLayers, Encoder, GzipLevel, ZstdLevel};

    use super::*;

    use PlatformSplit::{Always, Never, Several};

    fn local(directory: &str, split: PlatformSplit) -> OutputSpec {
        OutputSpec::Local { directory: directory.into(), split }
    }

    fn tar(destination: Destination) -> OutputSpec {
        OutputSpec::Tar { destination, split: Several }
    }

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
            ("out", local("out", Several)),
            ("./a=b", local("./a=b", Several)),
            ("-", tar(Destination::Stdout)),
            ("type=local,dest=out", local("out", Several)),
            ("type=local,dest=out,platform-split=true", local("out", Always)),
            ("type=local,dest=out,platform-split=false", local("out", Never)),
            ("type=tar,dest=x.tar", tar(path("x.tar"))),
            ("type=tar", tar(Destination::Stdout)),
            ("type=oci,dest=x.tar", archive(path("x.tar"))),
            ("type=oci,tar=false,dest=d", layout("d")),
            ("dest=x,TYPE=oci", archive(path("x"))),
            ("type=oci,rewrite-timestamp=true", archive(Destination::Stdout)),
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
            ("type=moby", "type=moby is not implemented"),
            ("type=docker,tar=false", "type=docker,tar=false needs dest="),
            ("type=docker,dest=x,context=y", "contradict each other"),
            ("type=image,unpack=true", "unpack=true is not supported: expected false"),
            ("type=image,store=true", "store=true is not supported"),
            ("type=oci,rewrite-timestamp=false", "rewrite-timestamp=false is not supported"),
            ("type=oci,source-date-epoch=1", "SOURCE_DATE_EPOCH"),
            ("type=image,dangling-name-prefix=x", "found by its digest"),
            ("type=tar,annotation.a=b", "type=tar has no option annotation.a="),
            ("type=oci,dest", "\"dest\" is not a key=value pair"),
            ("type=oci,annotation-layer.a=b", "unknown annotation type \"layer\""),
            ("type=oci,annotation.=b", "invalid annotation"),
            ("type=oci,compresion=gzip", "type=oci has no option compresion= (did you mean compression=?)"),
            ("type=registry,nonsense=1", "type=registry has no option nonsense="),
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
            ("type=oci,oci-mediatypes=no", "oci-mediatypes=no is not supported"),
            ("type=oci,name=\"a\"", "a quote stands inside a field"),
        ] {
            let error = text.parse::<OutputSpec>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}

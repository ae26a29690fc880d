//! The commands that look at images and join them.

use clap::{Args, Subcommand};
use oci::{Platform, Reference};

use super::{ProgressMode, RegistryArgs, format, tag};
use crate::spec::{annotation::AnnotationSpec, call::Format};

/// `layerwright inspect`, `layerwright index inspect`
#[derive(Debug, Args)]
#[command(after_help = INSPECT)]
pub struct InspectArgs {
    /// A reference, or an OCI layout: a directory or a tar, as PATH[:TAG][@DIGEST]
    #[arg(value_name = "IMAGE")]
    pub name: String,

    /// Only the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,

    /// The index or manifest itself, byte for byte
    #[arg(long, conflicts_with_all = ["format", "json"])]
    pub raw: bool,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// `layerwright index`
#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Join images, built anywhere, to one index for several platforms
    Create(Box<IndexCreateArgs>),
    /// Show what an index names
    Inspect(Box<InspectArgs>),
}

/// `layerwright index create`
#[derive(Debug, Args)]
#[command(after_help = INDEX_CREATE)]
pub struct IndexCreateArgs {
    /// Images or indexes of them: references, or OCI layouts as PATH[:TAG][@DIGEST]
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<String>,

    /// Name of the index (repeatable)
    #[arg(short, long = "tag", value_name = "REF", value_parser = tag, required_unless_present = "dry_run")]
    pub tags: Vec<Reference>,

    /// Keep what the first name stands for; a source replaces its image of the same platform
    #[arg(long, requires = "tags")]
    pub append: bool,

    /// Annotate the index, or with manifest-descriptor[PLATFORM]: what it says of an image (repeatable)
    #[arg(long = "annotation", value_name = "K=V")]
    pub annotations: Vec<AnnotationSpec>,

    /// Print the index and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// On standard error: auto, tty, plain, json or quiet
    #[arg(long, value_name = "MODE")]
    pub progress: Option<ProgressMode>,

    /// Print the digest of the index only: implies --progress quiet
    #[arg(short, long)]
    pub quiet: bool,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// What follows the flags in `layerwright inspect --help`.
const INSPECT: &str = "\
What begins with / or . is a path, and so is a file or an OCI layout that is
there; everything else is the name of an image in a registry. Nothing is
written. docs/inspect.md describes the JSON.

Exit codes:
  0 shown, 1 not an image, or a damaged one, or none for the platform, 2 usage,
  or no such layout, 3 registry or network";

/// What follows the flags in `layerwright index create --help`.
const INDEX_CREATE: &str = "\
The index names the images in the order given; those of an index count one by
one. A platform comes from the source's index, else from the image's config, and
each must be there once. Blobs that the repository lacks are mounted from
repositories of the same registry, or copied and verified. The names come last.";

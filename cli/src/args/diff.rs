//! `layerwright diff`

use clap::Args;
use oci::Platform;

use super::{RegistryArgs, format};
use crate::spec::call::Format;

/// `layerwright diff`
#[derive(Debug, Args)]
#[command(after_help = DIFF)]
pub struct DiffArgs {
    /// A reference, or an OCI layout: a directory or a tar, as PATH[:TAG][@DIGEST]
    #[arg(value_name = "A")]
    pub first: String,

    /// The same, of what it is compared with
    #[arg(value_name = "B")]
    pub second: String,

    /// Only the images for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// Paths of a layer that are shown as text; 0 shows all
    #[arg(long, value_name = "N", default_value = "20")]
    pub limit: usize,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

const DIFF: &str = "\
Steps find each other by their instructions. Of layers that are not one blob
each path that differs is told with what differs: content, and where it begins
to, mode, owner, mtime, link, attributes. What begins with / or . is a path, and
so is a file or an OCI layout that is there. docs/diff.md describes the JSON.

Exit codes:
  0 the same digest, 1 they differ, 2 usage, or there is no such layout or image
  in it, 3 registry or network, 4 one of them is no image, damaged or unreadable";

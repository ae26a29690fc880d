//! `layerwright verify`

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::{BuildArgs, format};
use crate::spec::call::Format;

/// `layerwright verify`
#[derive(Debug, Args)]
#[command(after_help = VERIFY, group = ArgGroup::new("how").required(true))]
#[command(override_usage = "layerwright verify --twice [BUILD OPTIONS] CONTEXT\n       \
                            layerwright verify --against IMAGE [BUILD OPTIONS] CONTEXT")]
pub struct VerifyArgs {
    /// Build twice, and compare both images
    #[arg(long, group = "how", help_heading = HOW)]
    pub twice: bool,

    /// Build once, and compare with this image: a reference, or a layout as PATH[:TAG][@DIGEST]
    #[arg(long, value_name = "IMAGE", group = "how", help_heading = HOW)]
    pub against: Option<String>,

    /// Paths of a layer that are shown as text; 0 shows all
    #[arg(long, value_name = "N", default_value = "20", help_heading = HOW)]
    pub limit: usize,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    #[arg(help_heading = HOW)]
    pub format: Format,

    /// What one of the builds is given by us: not for people.
    #[arg(long, value_name = "DIR", hide = true)]
    pub rebuild: Option<PathBuf>,

    /// What is built
    #[command(flatten)]
    pub build: BuildArgs,
}

const HOW: &str = "What is compared";

const VERIFY: &str = "\
Each build begins with nothing: an empty store of its own beside the one that
--root names, no cache, which goes in the end. The second one (with --against
the only one) has another place, copies of local contexts with other times and
made in another order, another umask, and runs one step at a time; with --jobs
1, eight. It begins a second after the first has ended. What builds write is
compared as layerwright diff does; docs/verify.md says what to do about it.

Outputs, remote caches and standard input are refused.

Exit codes:
  0 the same digest, 1 they differ, 5 a build failed, where build ends with 1;
  else those of build: 2 usage, 3 registry or network, 4 store, disk, sandbox";

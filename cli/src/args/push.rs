//! `layerwright push`

use clap::{ArgAction, Args};
use oci::{Platform, Reference};

use super::{ProgressMode, go_bool, registry::RegistryArgs, tag};
use crate::place::ImagePlace;

/// `layerwright push`
#[derive(Debug, Args)]
#[command(after_help = PUSH)]
pub struct PushArgs {
    /// An OCI layout, a directory or a tar, and which image of it: a tag or @DIGEST
    #[arg(value_name = "LAYOUT[:TAG]", value_parser = layout)]
    pub source: ImagePlace,

    /// Name to push to (repeatable)
    #[arg(value_name = "REF", required = true, value_parser = tag)]
    pub names: Vec<Reference>,

    /// Push the image for this platform only, not the index
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// On standard error: auto, tty, plain, json or quiet
    #[arg(long, value_name = "MODE")]
    pub progress: Option<ProgressMode>,

    /// Print the digest only: implies --progress quiet
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, value_parser = go_bool)]
    #[arg(action = ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// A path; nothing is sought in registries that is not on this machine.
fn layout(text: &str) -> Result<ImagePlace, &'static str> {
    match text.parse() {
        Ok(place @ ImagePlace::Path { .. }) => Ok(place),
        _ => Err(
            "there is no OCI layout of this name, and no tar; one is written by build -o type=oci,dest=FILE, as -t alone puts an \
             image nowhere",
        ),
    }
}

const PUSH: &str = "\
Pushes what a build has written with -o type=oci, or any other OCI layout, as
it is: an index with all its images, with the digests it has there. Every
document and blob is verified when it is read; what the registry has is not
sent. The names change last, when everything else is there, in all registries
at the same time.

Exit codes: 0 every REF names the image, 2 usage, or no image of that name, 3
the registry refuses it or does not answer, 4 the layout cannot be read.";

//! `layerwright cache`: looking after remote caches, in the words of `layerwright gc` and `docker buildx prune`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Subcommand};
use executor::gc::Cap;

use super::{RegistryArgs, format};
use crate::{
    cache::RemoteSpec,
    place::ImagePlace,
    spec::{call::Format, duration::duration},
};

/// `layerwright cache`
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the records and bundles of a remote cache
    Ls(Box<CacheLsArgs>),
    /// Show all that a remote cache says of a step, or a bundle
    Show(Box<CacheShowArgs>),
    /// Remove from a remote cache what is old, too much or of no image
    Prune(Box<CachePruneArgs>),
}

/// Which cache, and how it is told about.
#[derive(Debug, Args)]
pub struct CacheAt {
    /// The cache: HOST/REPO[:TAG], a directory, or as --cache-from has it
    #[arg(long, value_name = "REF")]
    pub remote: RemoteSpec,

    /// Records that this key has not signed cannot be used (repeatable)
    #[arg(long = "cache-trust-key", value_name = "FILE")]
    pub trust_keys: Vec<PathBuf>,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    format: Format,

    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

impl CacheAt {
    /// How the answer is printed.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

/// `layerwright cache ls`
#[derive(Debug, Args)]
#[command(after_help = LS)]
pub struct CacheLsArgs {
    /// Which cache.
    #[command(flatten)]
    pub at: CacheAt,
}

/// `layerwright cache show`
#[derive(Debug, Args)]
#[command(after_help = SHOW)]
pub struct CacheShowArgs {
    /// A key, the beginning of one, or a name in the cache
    #[arg(value_name = "KEY|PREFIX|NAME")]
    pub what: String,

    /// Which cache.
    #[command(flatten)]
    pub at: CacheAt,
}

/// `layerwright cache prune`
#[derive(Debug, Args)]
#[command(after_help = PRUNE)]
#[command(group(ArgGroup::new("keep").required(true).multiple(true).args(["keep_storage", "keep_duration", "keep_images", "all"])))]
pub struct CachePruneArgs {
    /// Remove until no more than this is left: 10GB, 512MiB or off
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub keep_storage: Option<Cap>,

    /// Keep what was used within this time: 168h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub keep_duration: Option<Duration>,

    /// Keep what this image's layers are from, other stages not (repeatable)
    #[arg(long = "keep-image", value_name = "REF", value_parser = image)]
    pub keep_images: Vec<ImagePlace>,

    /// Remove everything, but what --keep-image keeps
    #[arg(short, long, conflicts_with_all = ["keep_storage", "keep_duration"])]
    pub all: bool,

    /// Remove nothing, and tell what would go
    #[arg(long)]
    pub dry_run: bool,

    /// Which cache.
    #[command(flatten)]
    pub at: CacheAt,
}

/// A size of a cache; no disk is known of which it could be a part.
fn size(text: &str) -> Result<Cap, String> {
    match text.parse() {
        Ok(cap @ (Cap::Bytes(_) | Cap::None)) => Ok(cap),
        _ => Err("expected a size like 10GB, 512MiB or off".to_owned()),
    }
}

fn image(text: &str) -> Result<ImagePlace, String> {
    text.parse().map_err(|error: oci::reference::ReferenceError| error.to_string())
}

/// What follows the flags in `layerwright cache ls --help`.
const LS: &str = "\
One line for each record: the step, when and where it ran, the size of its own
layer, its keys. Totals count what several records share once. With a TAG only
what that bundle holds is listed. Nothing but records is downloaded.

Exit codes: 0 listed, 2 usage, 3 registry or network, 4 the directory.";

/// What follows the flags in `layerwright cache show --help`.
const SHOW: &str = "\
KEY is a definition or content key as `cache ls` and `explain` show it, PREFIX
at least four digits of one, or lw1-d-, lw1-c- or lw1-b- and as many, NAME a
tag: of a bundle, or lw1-...

Exit codes: 0 shown, 2 usage, or there is no such thing, or several, 3 registry
or network, 4 the directory.";

/// What follows the flags in `layerwright cache prune --help`.
const PRUNE: &str = "\
Examples:
  prune --keep-duration 30d    all that was not used for 30 days
  prune --keep-storage 50GB    least recently used first, until 50GB are left
  prune --keep-image app:v1 --keep-duration 30d
                               the same, but of what app:v1 consists of nothing
  prune --all                  everything

A registry does not tell when something was read: a record counts as used when
it was made, or when a bundle that names it got its newest record. What cannot
be used (damaged, or with a trust key not signed by it) goes first. Builds that
run at the same time lose nothing: what is removed is built again.

A registry deletes names; the blobs go when it collects its garbage, as
`registry garbage-collect CONFIG` does. It must allow deletion: docker-registry
with storage: {delete: {enabled: true}}, or REGISTRY_STORAGE_DELETE_ENABLED=true
in its environment. In a directory the blobs go at once, but for those written
within the last hour, which a build may be about to name.

Exit codes: 0 removed, 2 usage, 3 registry or network, 4 the directory.";

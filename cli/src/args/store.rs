//! `layerwright du` and `layerwright gc`, in the words of `buildctl prune` and `docker builder prune`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use executor::gc::Cap;

use super::format;
use crate::spec::{call::Format, duration::duration};

/// `layerwright du`
#[derive(Debug, Args)]
pub struct DuArgs {
    /// List every thing, with what it belongs to
    #[arg(short, long)]
    pub verbose: bool,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright gc`
#[derive(Debug, Args)]
#[command(after_help = GC)]
pub struct GcArgs {
    /// Remove until no more than this is left: 10GB, 512MiB, 20% or off [default: see below]
    #[arg(long, value_name = "SIZE")]
    pub keep_storage: Option<Cap>,

    /// Keep what was used within this time: 168h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub keep_duration: Option<Duration>,

    /// Remove everything that no running build uses, history and contexts included
    #[arg(short, long, conflicts_with_all = ["keep_storage", "keep_duration"])]
    pub all: bool,

    /// Remove nothing, and tell what would go
    #[arg(long)]
    pub dry_run: bool,

    /// List every thing that goes, with what it belongs to
    #[arg(short, long)]
    pub verbose: bool,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

const GC: &str = "\
Least recently used goes first, cache mounts last, and what running builds use
never. What is removed costs a later build time and nothing else.

  gc                      down to the cap that builds keep by themselves at
                          their end: LAYERWRIGHT_KEEP_STORAGE, else as BuildKit
                          does 80% of the disk, at most 100GB; less than that
                          where less than 20% of the disk is free, but not less
                          than 10% of it or 10GB
  gc --keep-storage 5GB   down to 5GB
  gc --keep-duration 7d   all that was not used for 7 days
  gc --keep-duration 7d --keep-storage 5GB
                          of what was not used for 7 days so much that 5GB are
                          left
  gc --all                everything; the empty store can then be removed with
                          rm -r, which cannot remove files of subordinate ids

GB is 1000^3 bytes, GiB (and g) 1024^3.";

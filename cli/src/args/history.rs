//! `layerwright history`, in the words of `docker buildx history`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::format;
use crate::spec::call::Format;

/// `layerwright history`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HistoryArgs {
    /// What to do; without a word, list.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,

    /// What of.
    #[command(flatten)]
    pub list: HistoryListArgs,
}

/// What can be asked of the history. A build is meant by its ID or the beginning of that, by `last`, or by `^N`, the Nth
/// before the last.
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// List the builds of the store, the newest first
    Ls(HistoryListArgs),
    /// Tell what became of each step of a build
    #[command(visible_alias = "inspect")]
    Show(HistoryShowArgs),
    /// Print the log that was kept of a build
    Logs(HistoryLogsArgs),
    /// Forget builds
    Rm(HistoryRemoveArgs),
}

/// `layerwright history ls`
#[derive(Debug, Args)]
pub struct HistoryListArgs {
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright history show`
#[derive(Debug, Args)]
pub struct HistoryShowArgs {
    /// The build: its ID or the beginning of that, last, or ^N for the Nth before the last
    #[arg(value_name = "BUILD", default_value = "last")]
    pub build: String,

    /// Print the log that was kept, too
    #[arg(long)]
    pub log: bool,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright history logs`
#[derive(Debug, Args)]
pub struct HistoryLogsArgs {
    /// The build: its ID or the beginning of that, last, or ^N for the Nth before the last
    #[arg(value_name = "BUILD", default_value = "last")]
    pub build: String,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright history rm`
#[derive(Debug, Args)]
pub struct HistoryRemoveArgs {
    /// The builds
    #[arg(value_name = "BUILD", required_unless_present = "all")]
    pub builds: Vec<String>,

    /// All of them
    #[arg(long, conflicts_with = "builds")]
    pub all: bool,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

//! `layerwright run`

use std::path::PathBuf;

use clap::{ArgAction, Args};
use executor::sandbox::Mode;
use oci::Platform;
use solver::op::{Network, Relaxation};

use super::{LimitArgs, ProgressMode, RegistryArgs, go_bool, hostname, network, sandbox};
use crate::spec::{
    host::HostSpec,
    mount::{TmpfsSpec, VolumeSpec},
};

/// `layerwright run`
#[derive(Debug, Args)]
#[command(after_help = RUN, override_usage = "layerwright run [OPTIONS] IMAGE [--] [COMMAND [ARGUMENT]...]")]
pub struct RunArgs {
    /// A reference, or an OCI layout: a directory or a tar, as PATH[:TAG][@DIGEST]; and what is run in place of its CMD
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true)]
    pub words: Vec<String>,

    /// Run this in place of the image's ENTRYPOINT; the image's CMD goes as well
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,

    /// Set a variable; K alone takes $K's value (repeatable)
    #[arg(short, long = "env", value_name = "K=V")]
    pub env: Vec<String>,

    /// Set the variables of a file, one a line (repeatable)
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,

    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,

    /// Run as this user: NAME|UID[:GROUP|GID]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,

    /// Show a file or directory of this machine: SRC:DST[:ro] (repeatable)
    #[arg(short, long = "volume", value_name = "SRC:DST")]
    pub volumes: Vec<VolumeSpec>,

    /// Mount an empty directory in memory: DST[:size=SIZE] (repeatable)
    #[arg(long, value_name = "DST")]
    pub tmpfs: Vec<TmpfsSpec>,

    /// Network: default, none, host or isolated
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true, value_parser = network)]
    pub network: Network,

    /// Put a name into /etc/hosts: NAME:IP (repeatable)
    #[arg(long = "add-host", value_name = "NAME:IP")]
    pub hosts: Vec<HostSpec>,

    /// Name of the machine that the command sees
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,

    /// The root file system cannot be written; volumes can
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub read_only: bool,

    /// Pass standard input on
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, value_parser = go_bool)]
    #[arg(action = ArgAction::Set, value_name = "BOOL")]
    pub interactive: bool,

    /// Give the command a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, value_parser = go_bool)]
    #[arg(action = ArgAction::Set, value_name = "BOOL")]
    pub tty: bool,

    /// Namespaces: auto, strict, userns or chroot
    #[arg(long, value_name = "MODE", default_value = "auto", hide_default_value = true, value_parser = sandbox)]
    pub sandbox: Mode,

    /// Let a line of the sandbox go, like userns (repeatable)
    #[arg(long = "sandbox-allow", value_name = "NAME")]
    pub sandbox_allow: Vec<Relaxation>,

    /// The image for this platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,

    /// Nothing: what the command writes is always gone afterwards
    #[arg(long)]
    pub rm: bool,

    /// Of a pull, on standard error: auto, tty, plain, json or quiet
    #[arg(long, value_name = "MODE")]
    pub progress: Option<ProgressMode>,

    /// Say nothing of a pull: short for --progress quiet
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", hide_default_value = true, value_parser = go_bool)]
    #[arg(action = ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// What the command may use, and whom it asks for names.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

impl RunArgs {
    /// The image, and its command: what follows the image is no flag of ours, as with docker.
    pub fn image_and_command(&self) -> (&str, &[String]) {
        match self.words.as_slice() {
            [image, escape, command @ ..] if escape == "--" => (image, command),
            [image, command @ ..] => (image, command),
            [] => ("", &[]),
        }
    }
}

/// What follows the flags in `layerwright run --help`.
const RUN: &str = "\
Runs an image as docker run --rm does, in the sandbox of RUN: ENTRYPOINT and
CMD, or what follows the image's name, with or without -- in front. What begins
with / or . is a path, and so is a file or an OCI layout that is there; every
other IMAGE is a name in a registry, asked for each time. What the command
writes is gone afterwards, but for that in -v. A SRC begins with / or . and must
be there. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on;
the third of the first two ends everything. docs/run.md tells more.

Exit codes: that of the command, 128 and its number where a signal ended it; 125
layerwright's own failure, 126 the command cannot be executed, 127 there is none
of this name.";

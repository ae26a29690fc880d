//! The command line, spelled as `docker buildx build` spells it.
//!
//! Everything here is syntax: what was typed, each value parsed into its type. What depends on files or on the
//! environment is [`crate::request`]'s work. Flags of `docker buildx build` that do not exist here are refused by
//! name ([`crate::refused`]).

mod cache;
mod diff;
mod help;
mod history;
mod image;
mod limits;
mod login;
mod push;
mod registry;
mod run;
mod store;
mod values;
mod verify;

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use executor::{context::ContextModes, sandbox::Mode};
use oci::Platform;
use solver::op::{Network, Relaxation, Timestamps};

pub use self::cache::{CacheAt, CacheCommand, CacheLsArgs, CachePruneArgs, CacheShowArgs};
pub use self::diff::DiffArgs;
pub use self::history::{
    HistoryArgs, HistoryCommand, HistoryListArgs, HistoryLogsArgs, HistoryRemoveArgs, HistoryShowArgs,
};
pub use self::image::{IndexCommand, IndexCreateArgs, InspectArgs};
pub use self::limits::LimitArgs;
pub use self::login::{LoginArgs, LogoutArgs};
pub use self::push::PushArgs;
pub use self::registry::RegistryArgs;
pub use self::run::RunArgs;
pub use self::store::{DuArgs, GcArgs};
pub use self::values::{OnFailure, ProgressMode, go_bool};
use self::values::{
    context_modes, format, hostname, jobs, network, on_failure, retry, sandbox, tag, timestamps,
};
pub use self::verify::VerifyArgs;
use crate::{
    refused,
    spec::{
        allow::AllowSpec,
        annotation::AnnotationSpec,
        cache::{CacheFromSpec, CacheToSpec},
        call::{Call, CallSpec, Format},
        context::NamedContextSpec,
        duration::duration,
        host::HostSpec,
        output::OutputSpec,
        secret::{SecretSpec, SshSpec},
        tag::TagSpec,
    },
};

/// Builds container images from Dockerfiles: no daemon, root or ordinary user, the same digest everywhere.
#[derive(Debug, Parser)]
#[command(name = "layerwright", version, subcommand_required = true)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile
    Build(Box<BuildArgs>),
    /// Look after remote caches: what they hold, and what of it goes
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Show what a build context holds, and what an ignore file takes out of it
    #[command(subcommand)]
    Context(ContextCommand),
    /// Look inside the builder
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Tell what two images have different: instruction, path and field
    Diff(Box<DiffArgs>),
    /// Tell what this machine allows, and the one setting that would lift each limit
    Doctor(DoctorArgs),
    /// Tell what the store holds, by kind
    Du(DuArgs),
    /// Tell why each step of a build ran, and where those come from that did not
    Explain(ExplainArgs),
    /// Verify everything in the store, and repair it
    Fsck(FsckArgs),
    /// Remove from the store what is not needed, least recently used first
    Gc(GcArgs),
    /// List past builds: their time, result, hit rate and what the cache saved
    History(HistoryArgs),
    /// Join images to an index, or show one
    #[command(subcommand)]
    Index(IndexCommand),
    /// Show an image: index, manifests, config, and each layer with its instruction
    Inspect(Box<InspectArgs>),
    /// Log in to a registry, in docker's words
    Login(Box<LoginArgs>),
    /// Forget a login
    Logout(LogoutArgs),
    /// Push an image that a build has written to an OCI layout
    Push(Box<PushArgs>),
    /// Run an image, as docker run --rm does
    Run(Box<RunArgs>),
    /// Build twice, elsewhere and from nothing, and tell what is not the same
    Verify(Box<VerifyArgs>),
    /// Print the version
    Version,
}

const INPUT: &str = "What is built";
const RESULT: &str = "What becomes of it";
const STEPS: &str = "How steps run";
const CACHES: &str = "Remote caches (see below)";
const MACHINE: &str = "This run";

/// `layerwright build`
#[derive(Debug, Args)]
#[command(after_help = help::BUILD, next_line_help = false)]
pub struct BuildArgs {
    /// Where COPY and ADD find files: a directory, -, a git repository or a URL (see below)
    #[arg(value_name = "CONTEXT")]
    pub context: String,

    /// Build what commit REV holds; CONTEXT is in its repository
    #[arg(long, value_name = "REV", help_heading = INPUT)]
    pub git: Option<String>,

    /// With --git: lay changed files of the work tree over REV
    #[arg(help_heading = INPUT, requires = "git")]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub dirty: bool,

    /// Dockerfile: a path, a URL or - [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE", help_heading = INPUT)]
    pub file: Option<String>,

    /// Use something else for image or stage NAME (repeatable)
    #[arg(long = "build-context", value_name = "NAME=SOURCE", help_heading = INPUT)]
    pub contexts: Vec<NamedContextSpec>,

    /// Set a build argument; K alone takes $K's value (repeatable)
    #[arg(long = "build-arg", value_name = "K=V", help_heading = INPUT)]
    pub build_args: Vec<String>,

    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE", help_heading = INPUT)]
    pub target: Option<String>,

    /// Platforms to build for, as a,b [default: this machine's]
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',', help_heading = INPUT)]
    pub platforms: Vec<Platform>,

    /// Nothing: registries are asked for every base image anyway
    #[arg(help_heading = INPUT)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub pull: bool,

    /// Name of the image, with an optional tag (repeatable; see below)
    #[arg(short, long = "tag", value_name = "REF", help_heading = RESULT)]
    pub tags: Vec<TagSpec>,

    /// Add a label to the image (repeatable)
    #[arg(long = "label", value_name = "K=V", help_heading = RESULT)]
    pub labels: Vec<String>,

    /// Label and annotate what is built from git with revision and time
    #[arg(help_heading = RESULT)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub git_labels: bool,

    /// Annotate the manifest: [TYPE:]K=V, see below (repeatable)
    #[arg(long = "annotation", value_name = "K=V", help_heading = RESULT)]
    pub annotations: Vec<AnnotationSpec>,

    /// Times of files: auto (reproducible) or preserve (as Docker)
    #[arg(long, value_name = "MODE", default_value = "auto", hide_default_value = true, value_parser = timestamps)]
    #[arg(help_heading = RESULT)]
    pub timestamps: Timestamps,

    /// Modes of context files: normalise (no umask 002), preserve or git
    #[arg(long, value_name = "MODES", default_value = "normalise", hide_default_value = true)]
    #[arg(value_parser = context_modes, help_heading = RESULT)]
    pub context_modes: ContextModes,

    /// Where the result goes (repeatable; see below)
    #[arg(short, long = "output", value_name = "SPEC", help_heading = RESULT)]
    pub outputs: Vec<OutputSpec>,

    /// Push to every -t: short for -o type=registry
    #[arg(help_heading = RESULT)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub push: bool,

    /// Load the image into docker or podman: short for -o type=docker
    #[arg(help_heading = RESULT)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub load: bool,

    /// Write the image ID, the digest of its config, to a file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub iidfile: Option<PathBuf>,

    /// Write digests, descriptor and names as JSON to a file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub metadata_file: Option<PathBuf>,

    /// Write what was read, as a rule for make or ninja
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub depfile: Option<PathBuf>,

    /// Take no step from the cache
    #[arg(help_heading = STEPS)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub no_cache: bool,

    /// Take no step of this stage from the cache (repeatable)
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = STEPS)]
    pub no_cache_filter: Vec<String>,

    /// Take no result from the cache that is older, like 12h or 7d
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = STEPS)]
    pub cache_ttl: Option<Duration>,

    /// Read a remote cache: REF or a SPEC (repeatable)
    #[arg(long = "cache-from", value_name = "SPEC", help_heading = CACHES)]
    pub cache_from: Vec<CacheFromSpec>,

    /// Fill a remote cache: REF or a SPEC (repeatable)
    #[arg(long = "cache-to", value_name = "SPEC", help_heading = CACHES)]
    pub cache_to: Vec<CacheToSpec>,

    /// Sign what goes into caches with this Ed25519 key, in PEM
    #[arg(long, value_name = "FILE", help_heading = CACHES)]
    pub cache_sign_key: Option<PathBuf>,

    /// Trust in caches what this key has signed only (repeatable)
    #[arg(long = "cache-trust-key", value_name = "FILE", help_heading = CACHES)]
    pub cache_trust_keys: Vec<PathBuf>,

    /// Try a failing RUN or download again up to N times
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true, value_parser = retry)]
    #[arg(allow_hyphen_values = true, help_heading = STEPS)]
    pub retry: u32,

    /// Network of RUN steps: default, none, host or isolated
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true, value_parser = network)]
    #[arg(help_heading = STEPS)]
    pub network: Network,

    /// Secret for RUN: id=ID,src=PATH or id=ID,env=NAME (repeatable)
    #[arg(long = "secret", value_name = "SPEC", help_heading = STEPS)]
    pub secrets: Vec<SecretSpec>,

    /// SSH agent or keys for RUN: default|ID[=SOCKET|KEY,...]
    #[arg(long = "ssh", value_name = "SPEC", help_heading = STEPS)]
    pub ssh: Vec<SshSpec>,

    /// Allow network.host, security.insecure or device[=NAME]
    #[arg(long = "allow", value_name = "WHAT", help_heading = STEPS)]
    pub allow: Vec<AllowSpec>,

    /// Put a name into /etc/hosts of RUN: NAME:IP (repeatable)
    #[arg(long = "add-host", value_name = "NAME:IP", help_heading = STEPS)]
    pub hosts: Vec<HostSpec>,

    /// What RUN steps may use, and whom they ask for names
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Namespaces of RUN steps: auto, strict, userns or chroot (none)
    #[arg(long, value_name = "MODE", default_value = "auto", hide_default_value = true, value_parser = sandbox)]
    #[arg(help_heading = STEPS)]
    pub sandbox: Mode,

    /// Let a line of the sandbox go, like userns (repeatable; see below)
    #[arg(long = "sandbox-allow", value_name = "NAME", help_heading = STEPS)]
    pub sandbox_allow: Vec<Relaxation>,

    /// After a failing RUN, open a shell in what it left: shell
    #[arg(long, value_name = "WHAT", value_parser = on_failure, help_heading = STEPS)]
    pub on_failure: Option<OnFailure>,

    /// Steps at the same time [default: twice the CPUs, 8 at least]
    #[arg(long, value_name = "N", value_parser = jobs, help_heading = STEPS)]
    pub jobs: Option<NonZeroUsize>,

    /// Tell in the end why each step ran (see layerwright explain)
    #[arg(help_heading = MACHINE)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub explain: bool,

    /// Ask instead: check, outline or targets[,format=json]
    #[arg(long, value_name = "METHOD", alias = "print", help_heading = MACHINE)]
    pub call: Option<CallSpec>,

    /// Check the Dockerfile and build nothing: --call check
    #[arg(help_heading = MACHINE)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub check: bool,

    /// On standard error: auto, tty, plain, json or quiet
    #[arg(long, value_name = "MODE", help_heading = MACHINE)]
    pub progress: Option<ProgressMode>,

    /// Print the manifest's digest only: implies --progress quiet
    #[arg(short, help_heading = MACHINE)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR", help_heading = MACHINE)]
    pub root: Option<PathBuf>,

    /// How registries are reached
    #[command(flatten)]
    pub registries: RegistryArgs,
}

impl BuildArgs {
    /// What is to be done: `--check` is short for `--call check`, and changes nothing about a check that is asked for
    /// in another way. `None` where the two contradict each other.
    pub fn call(&self) -> Option<CallSpec> {
        match self.call {
            None if self.check => Some(Call::Check.into()),
            None => Some(Call::Build.into()),
            Some(call) if self.check && call.call != Call::Check => None,
            Some(call) => Some(call),
        }
    }
}

/// `layerwright context`
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the files that COPY and ADD can see
    Ls(ContextLsArgs),
}

/// `layerwright context ls`
#[derive(Debug, Args)]
pub struct ContextLsArgs {
    /// A directory, - (a tar archive on standard input), a git repository or a URL
    #[arg(value_name = "CONTEXT", default_value = ".")]
    pub context: String,

    /// Dockerfile: its own ignore file, FILE.dockerignore, goes before the context's
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,

    /// List the commit REV of the repository that CONTEXT lies in, whatever its work tree has
    #[arg(long, value_name = "REV")]
    pub git: Option<String>,

    /// Tell which line of the ignore file decides about this path
    #[arg(long, value_name = "PATH")]
    pub why: Option<String>,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store, where contexts from elsewhere are kept
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright debug`
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Print the syntax tree of a Dockerfile, as BuildKit's parser dumps it
    Ast {
        /// The Dockerfile, - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// `layerwright explain`
#[derive(Debug, Args)]
#[command(after_help = help::EXPLAIN)]
pub struct ExplainArgs {
    /// The build: its ID or the beginning of that, last, or ^N for the Nth before the last
    #[arg(value_name = "BUILD", default_value = "last")]
    pub build: String,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Directory of the store that is asked about [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `layerwright fsck`
#[derive(Debug, Args)]
#[command(after_help = help::FSCK)]
pub struct FsckArgs {
    /// Remove what is damaged and what needs it, so that the next build makes it again
    #[arg(long)]
    pub repair: bool,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true, value_parser = format)]
    pub format: Format,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Why there is no command to follow.
#[derive(Debug)]
pub enum NotParsed {
    /// Help or version was asked for, or the line is wrong: clap has the text and the exit code.
    Clap(clap::Error),
    /// A flag that does not exist here.
    Refused(refused::RefusedFlag),
}

/// The exit code of a line that cannot be read: that of `run`, as docker's, is none that a command could have had.
pub fn usage_code(argv: impl IntoIterator<Item = OsString>) -> u8 {
    match argv.into_iter().nth(1).is_some_and(|command| command == "run") {
        true => crate::run::FAILED,
        false => crate::failure::USAGE,
    }
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// What to print instead of doing something, help and version included.
pub fn parse(argv: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, NotParsed> {
    let matches = command().try_get_matches_from(argv).map_err(NotParsed::Clap)?;
    if let Some((name, given)) = matches.subcommand()
        && let Some((_, of)) = refused::Of::ALL.into_iter().find(|(known, _)| *known == name)
    {
        refused::check(given, of).map_err(NotParsed::Refused)?;
    }
    Cli::from_arg_matches(&matches).map_err(NotParsed::Clap)
}

fn command() -> clap::Command {
    let refusing = |command: clap::Command, (name, of)| {
        command.mut_subcommand(name, |command| refused::add_to(command, of))
    };
    refused::Of::ALL.into_iter().fold(Cli::command(), refusing)
}

#[cfg(test)]
mod tests;

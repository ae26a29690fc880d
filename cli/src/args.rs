//! The command line, spelled as `docker buildx build` spells it.
//!
//! Everything here is syntax: what was typed, each value parsed into its type. What depends on files or on the
//! environment is [`crate::request`]'s work. Flags of `docker buildx build` that do not exist here are refused by
//! name ([`crate::refused`]).

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use oci::{Platform, Reference};
use solver::op::{Network, Timestamps};

use crate::{context_spec::NamedContextSpec, output_spec::OutputSpec, refused};

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
    /// Tell what this machine allows, and the one setting that would lift each limit
    Doctor(DoctorArgs),
    /// Print the version
    Version,
}

/// How the progress of a build is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressMode {
    /// `tty` where standard error is a terminal, else `plain`.
    Auto,
    /// A live view.
    Tty,
    /// One line for everything that happens.
    Plain,
    /// One JSON object a line.
    Json,
    /// Nothing but errors; the digest goes to standard output.
    Quiet,
}

impl FromStr for ProgressMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tty" => Ok(Self::Tty),
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            "quiet" => Ok(Self::Quiet),
            _ => Err("expected auto, tty, plain, json or quiet".to_owned()),
        }
    }
}

const BUILD_HELP: &str = "\
Outputs (-o, repeatable; without one the result stays in the store):
  type=registry[,name=REF]                 push to REF, or to every -t
  type=image,push=true[,name=REF]          the same
  type=oci,dest=FILE                       OCI layout as a tar archive; dest=- is standard output
  type=oci,dest=DIR,tar=false              OCI layout as a directory
  type=tar,dest=FILE                       the root file system as a tar archive
  type=local,dest=DIR                      the root file system as a directory
  type=cacheonly                           nothing: the result stays in the store
  DIR                                      short for type=local,dest=DIR
  -                                        short for type=tar,dest=-
  Images also take compression=gzip|uncompressed.
  A value with a comma is quoted: 'type=oci,dest=x,\"name=a,b\"'.

Named contexts (--build-context NAME=SOURCE) stand for an image or stage NAME:
  DIR                                      a directory
  docker-image://REF                       an image in a registry
  oci-layout://DIR[:TAG][@DIGEST]          an image in an OCI layout
  scratch                                  nothing at all

Environment:
  LAYERWRIGHT_ROOT         the store, where --root is not given
  SOURCE_DATE_EPOCH        sets the build argument of that name, and with it the times in the image
  BUILDKIT_PROGRESS        sets --progress
  DOCKER_DEFAULT_PLATFORM  sets --platform
  DOCKER_CONFIG            directory of Docker's config.json, for registry credentials
  REGISTRY_AUTH_FILE       Podman's file of registry credentials
  NO_COLOR                 no colours

The other flags of docker buildx build are refused by name, unless they ask for what is done in
any case: --provenance=false and --sbom=false (no attestations are made), --load=false, --rm.

Exit codes:
  0 done, 1 the build failed, 2 usage or Dockerfile error, 3 registry or network,
  4 store, disk or sandbox, 130 and 143 stopped by SIGINT and SIGTERM, 255 a bug in layerwright";

const INPUT: &str = "What is built";
const RESULT: &str = "What becomes of it";
const STEPS: &str = "How steps run";
const MACHINE: &str = "This run";

/// `layerwright build`
#[derive(Debug, Args)]
#[command(after_help = BUILD_HELP, next_line_help = false)]
pub struct BuildArgs {
    /// Directory whose files COPY and ADD see
    #[arg(value_name = "CONTEXT")]
    pub context: String,

    /// Dockerfile, - for standard input [default: CONTEXT/Dockerfile]
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

    /// Platform to build for [default: this machine's]
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',', help_heading = INPUT)]
    pub platforms: Vec<Platform>,

    /// Nothing: registries are asked for every base image anyway
    #[arg(help_heading = INPUT)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub pull: bool,

    /// Name of the image, with an optional tag (repeatable)
    #[arg(short, long = "tag", value_name = "REF", value_parser = tag, help_heading = RESULT)]
    pub tags: Vec<Reference>,

    /// Add a label to the image (repeatable)
    #[arg(long = "label", value_name = "K=V", help_heading = RESULT)]
    pub labels: Vec<String>,

    /// Times of files: auto (reproducible) or preserve (as Docker)
    #[arg(long, value_name = "MODE", default_value = "auto", hide_default_value = true, value_parser = timestamps)]
    #[arg(help_heading = RESULT)]
    pub timestamps: Timestamps,

    /// Where the result goes (repeatable; see below)
    #[arg(short, long = "output", value_name = "SPEC", help_heading = RESULT)]
    pub outputs: Vec<OutputSpec>,

    /// Push to every -t: short for -o type=registry
    #[arg(help_heading = RESULT)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub push: bool,

    /// Write the image ID, the digest of its config, to a file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub iidfile: Option<PathBuf>,

    /// Write digests, descriptor and names as JSON to a file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub metadata_file: Option<PathBuf>,

    /// Take no step from the cache
    #[arg(help_heading = STEPS)]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub no_cache: bool,

    /// Take no step of this stage from the cache (repeatable)
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = STEPS)]
    pub no_cache_filter: Vec<String>,

    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true, value_parser = network)]
    #[arg(help_heading = STEPS)]
    pub network: Network,

    /// Steps that run at the same time [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = jobs, help_heading = STEPS)]
    pub jobs: Option<NonZeroUsize>,

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

    /// HOST[:PORT] to talk to in HTTP or unverified (repeatable)
    #[arg(long = "insecure-registry", value_name = "HOST", help_heading = MACHINE)]
    pub insecure_registries: Vec<String>,
}

/// `layerwright doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Directory of the store that is asked about [default: $XDG_DATA_HOME/layerwright]
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

/// Reads a command line, the program's name first.
///
/// # Errors
/// What to print instead of doing something, help and version included.
pub fn parse(argv: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, NotParsed> {
    let matches = command().try_get_matches_from(argv).map_err(NotParsed::Clap)?;
    if let Some(("build", build)) = matches.subcommand() {
        refused::check(build).map_err(NotParsed::Refused)?;
    }
    Cli::from_arg_matches(&matches).map_err(NotParsed::Clap)
}

fn command() -> clap::Command {
    Cli::command().mut_subcommand("build", refused::add_to)
}

/// The texts that Go's `strconv.ParseBool` takes.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn jobs(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a number of at least 1".to_owned())
}

fn tag(text: &str) -> Result<Reference, String> {
    let reference: Reference =
        text.parse().map_err(|error: oci::reference::ReferenceError| error.to_string())?;
    match reference.digest {
        None => Ok(reference.with_default_tag()),
        Some(_) => Err("a name to give cannot have a digest".to_owned()),
    }
}

fn network(text: &str) -> Result<Network, String> {
    match text {
        "default" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err("expected default, none or host".to_owned()),
    }
}

fn timestamps(text: &str) -> Result<Timestamps, String> {
    match text {
        "auto" => Ok(Timestamps::Auto),
        "preserve" => Ok(Timestamps::Preserve),
        _ => Err("expected auto or preserve".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(line: &str) -> Result<BuildArgs, String> {
        let argv = ["layerwright", "build"].into_iter().chain(line.split_whitespace());
        match parse(argv) {
            Ok(Cli { command: Command::Build(args) }) => Ok(*args),
            Ok(other) => Err(format!("{other:?}")),
            Err(NotParsed::Clap(error)) => Err(error.to_string()),
            Err(NotParsed::Refused(error)) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_are_read_as_docker_reads_them() {
        let args =
            build("-f- -t=app --tag reg.io/a:1 --build-arg A=b=c --build-arg B --push=false --no-cache .");
        let args = args.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(args.file.as_deref(), Some("-"));
        let tags: Vec<String> = args.tags.iter().map(Reference::to_string).collect();
        assert_eq!(tags, ["docker.io/library/app:latest", "reg.io/a:1"]);
        assert_eq!(args.build_args, ["A=b=c", "B"]);
        assert_eq!((args.push, args.no_cache, args.pull, args.quiet), (false, true, false, false));
        assert_eq!(
            (args.network, args.progress, args.timestamps),
            (Network::Default, None, Timestamps::Auto)
        );
    }

    #[test]
    fn flags_may_follow_the_context() {
        let args = build(". -q --network none --platform linux/amd64,linux/arm64 --jobs 3 --pull");
        let args = args.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((args.context.as_str(), args.quiet, args.pull), (".", true, true));
        assert_eq!((args.network, args.platforms.len()), (Network::None, 2));
        assert_eq!(args.jobs.map(NonZeroUsize::get), Some(3));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (line, want) in [
            ("", "<CONTEXT>"),
            (". extra", "extra"),
            ("--frobnicate .", "--frobnicate"),
            ("--network bridge .", "expected default, none or host"),
            ("--progress rawjson .", "rawjson"),
            ("--jobs 0 .", "--jobs"),
            ("-t App .", "lowercase"),
            ("--push=maybe .", "expected true or false"),
            ("--platform linux/ .", "invalid platform"),
            ("--platform foo .", "no operating system or architecture has that name"),
            ("--secret id=x .", "--secret: "),
            ("-m 1g .", "--memory: "),
            ("--load .", "--load: "),
            ("--rm=false .", "--rm: "),
        ] {
            let error = build(line).expect_err(line);
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn every_flag_is_one_line_of_the_help() {
        let mut command = command().term_width(100);
        command.build();
        let build = command.find_subcommand_mut("build").expect("there is one");
        let help = build.render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let lines: Vec<&str> = help.lines().map(str::trim_start).collect();
        let shown = build.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional());
        for arg in shown {
            let flag = format!("--{}", arg.get_long().expect("flags have long names"));
            let line = lines.iter().find(|line| line.starts_with('-') && names(line, &flag));
            let text = line.unwrap_or_else(|| panic!("{flag} is not there\n{help}"));
            assert!(text.ends_with(&arg.get_help().expect("told").to_string()), "{text}\n{help}");
        }
        assert!(!help.contains("--secret"), "{help}");
        for kind in ["registry", "image", "oci", "tar", "local", "cacheonly"] {
            assert!(help.contains(&format!("type={kind}")), "{kind}: {help}");
        }
    }

    /// Whether a line of the help is about a flag.
    fn names(line: &str, flag: &str) -> bool {
        line.split([' ', '[']).take(2).any(|word| word == flag)
    }
}

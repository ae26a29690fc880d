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
  DIR                                      short for type=local,dest=DIR
  -                                        short for type=tar,dest=-
  Images also take compression=gzip|uncompressed; values with a comma are quoted: 'type=oci,\"name=a,b\"'.

Named contexts (--build-context NAME=SOURCE) stand for an image or stage NAME:
  DIR                                      a directory
  docker-image://REF                       an image in a registry
  oci-layout://DIR[:TAG][@DIGEST]          an image in an OCI layout
  scratch                                  nothing at all

Environment:
  LAYERWRIGHT_ROOT         the store, where --root is not given
  SOURCE_DATE_EPOCH        sets the build argument of that name, and with it every time in the image
  BUILDKIT_PROGRESS        sets --progress
  DOCKER_DEFAULT_PLATFORM  sets --platform
  DOCKER_CONFIG            directory of Docker's config.json, for registry credentials
  NO_COLOR                 no colours

Exit codes:
  0 done, 1 the build failed, 2 usage or Dockerfile error, 3 registry or network, 4 store, disk or sandbox,
  130 and 143 stopped by SIGINT and SIGTERM, 255 a bug in layerwright";

/// `layerwright build`
#[derive(Debug, Args)]
#[command(after_help = BUILD_HELP, next_line_help = false)]
pub struct BuildArgs {
    /// Directory whose files COPY and ADD see
    #[arg(value_name = "CONTEXT")]
    pub context: String,

    /// Dockerfile to build, - for standard input [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,

    /// Name of the image, with an optional tag (repeatable)
    #[arg(short, long = "tag", value_name = "REF", value_parser = tag)]
    pub tags: Vec<Reference>,

    /// Set a build argument; K alone takes it from the environment (repeatable)
    #[arg(long = "build-arg", value_name = "K=V")]
    pub build_args: Vec<String>,

    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,

    /// Add a label to the image (repeatable)
    #[arg(long = "label", value_name = "K=V")]
    pub labels: Vec<String>,

    /// Platform to build for [default: this machine's]
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    pub platforms: Vec<Platform>,

    /// Use something else for image or stage NAME (repeatable)
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    pub contexts: Vec<NamedContextSpec>,

    /// Take no step from the cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub no_cache: bool,

    /// Take no step of this stage from the cache (repeatable)
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,

    /// Ask the registry for every base image (it is asked in any case)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub pull: bool,

    /// Where the result goes (repeatable; see below)
    #[arg(short, long = "output", value_name = "SPEC")]
    pub outputs: Vec<OutputSpec>,

    /// Push to every -t: short for -o type=registry
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub push: bool,

    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true, value_parser = network)]
    pub network: Network,

    /// Progress on standard error: auto, tty, plain, json or quiet
    #[arg(long, value_name = "MODE")]
    pub progress: Option<ProgressMode>,

    /// Print nothing but the digest of the result: short for --progress quiet
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(hide_default_value = true, value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,

    /// Write the image ID (the digest of its config) to a file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,

    /// Write digests, descriptor and names of the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,

    /// Directory of the store [default: $XDG_DATA_HOME/layerwright]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// How many steps run at the same time [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = jobs)]
    pub jobs: Option<NonZeroUsize>,

    /// File times in layers: auto is reproducible, preserve keeps them as Docker does
    #[arg(long, value_name = "MODE", default_value = "auto", hide_default_value = true, value_parser = timestamps)]
    pub timestamps: Timestamps,

    /// Talk plain HTTP to this registry, or do not verify its certificate (repeatable)
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
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
        let mut command = command().term_width(160);
        let build = command.find_subcommand_mut("build").expect("there is one");
        let help = build.clone().term_width(160).render_help().to_string();
        let lines = help.lines().map(str::trim_start).take_while(|line| !line.starts_with("Outputs"));
        let flags: Vec<&str> = lines.filter(|line| line.starts_with('-')).collect();
        assert!(flags.len() > 20, "{help}");
        assert!(flags.iter().all(|line| line.contains("  ")), "{help}");
        assert!(!help.contains("--secret"), "{help}");
    }
}

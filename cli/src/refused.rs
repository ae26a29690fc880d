//! Flags of `docker buildx build` and `docker run` that do not exist here, so that each is refused by its name.
//!
//! A flag that is parsed and then ignored gives an image that is not what was asked for; one that is simply unknown
//! leaves the user guessing whether it was a typing mistake. They are hidden from the help.

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use crate::args::go_bool;

/// Whether a flag stands alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// `--rm` or `--rm=false`
    Nothing,
    /// `--builder name`
    Value,
}

struct Flag {
    long: &'static str,
    short: Option<char>,
    takes: Takes,
    /// What it does where it is not given, if that is a truth value: asking for that is no reason to refuse.
    usual: Option<bool>,
    why: &'static str,
}

const fn switch(long: &'static str, why: &'static str) -> Flag {
    Flag { long, short: None, takes: Takes::Nothing, usual: Some(false), why }
}

const fn option(long: &'static str, why: &'static str) -> Flag {
    Flag { long, short: None, takes: Takes::Value, usual: None, why }
}

impl Flag {
    const fn short(self, short: char) -> Self {
        Flag { short: Some(short), ..self }
    }

    const fn usually(self, usual: bool) -> Self {
        Flag { usual: Some(usual), ..self }
    }
}

const NO_DAEMON: &str = "there is no builder instance or daemon to choose: the build runs in this process";
const NO_ATTESTATION: &str = "attestations are not implemented yet, and none are made: leave the flag out";
const NO_CONTAINERS: &str = "there are no intermediate containers to keep or remove: leave the flag out";

const NO_DETACHED: &str =
    "a container ends with this process: start it with & or in a service manager, or use docker or podman";
const NO_PORTS: &str = "nothing is between the command and the network: with the usual one, or --network=host, its ports are this machine's";
const NO_NAMES: &str = "no container stays, so none is called by a name, and nothing restarts or removes one";
const FIXED_RIGHTS: &str =
    "the sandbox is that of RUN and always on: --sandbox-allow lets lines of it go by name (docs/sandbox.md)";
const NO_DEVICES: &str = "devices of this machine are not passed on";

/// Those of `docker run`.
const OF_RUN: &[Flag] = &[
    switch("detach", NO_DETACHED).short('d'),
    option("publish", NO_PORTS).short('p'),
    switch("publish-all", NO_PORTS).short('P'),
    option("expose", NO_PORTS),
    option("link", NO_NAMES),
    option("name", NO_NAMES),
    option("restart", NO_NAMES),
    option("cidfile", NO_NAMES),
    option("label", NO_NAMES).short('l'),
    switch("privileged", FIXED_RIGHTS),
    option("cap-add", FIXED_RIGHTS),
    option("cap-drop", FIXED_RIGHTS),
    option("security-opt", FIXED_RIGHTS),
    option("pid", FIXED_RIGHTS),
    option("ipc", FIXED_RIGHTS),
    option("userns", FIXED_RIGHTS),
    option("device", NO_DEVICES),
    option("gpus", NO_DEVICES),
    switch("init", "it is so in any case: a process of ours is the first one, passes signals on and waits for what is left")
        .usually(true),
    option("mount", "use -v SRC:DST[:ro] and --tmpfs DST"),
    option("pull", "an image of a registry is asked for each time, and what is here of it is not pulled again"),
];

/// Those of `docker buildx build`.
const OF_BUILD: &[Flag] = &[
    option("attest", NO_ATTESTATION),
    option("builder", NO_DAEMON),
    switch("compress", "there is no daemon to send the context to: leave the flag out"),
    switch("debug", "debug logging is not implemented yet; --progress plain shows every line of every step")
        .short('D'),
    switch("detach", NO_DAEMON),
    switch(
        "disable-content-trust",
        "content trust (Notary) is not implemented: images are verified by digest",
    ),
    switch("force-rm", NO_CONTAINERS),
    option("invoke", "opening a shell in a build is not implemented yet"),
    option("isolation", "there is one kind of isolation on Linux; `layerwright doctor` describes it"),
    option("policy", "source policies are not implemented yet"),
    option("provenance", NO_ATTESTATION).usually(false),
    option("ref", NO_DAEMON),
    switch("rm", NO_CONTAINERS).usually(true),
    option("sbom", NO_ATTESTATION).usually(false),
    option(
        "security-opt",
        "the sandbox is always on, and its options are flags of their own: --no-new-privs, --sandbox",
    ),
    option("server-config", NO_DAEMON),
    switch("squash", "squashing layers is not implemented"),
    switch("stream", NO_DAEMON),
];

/// A flag the user gave that is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {why}")]
pub struct RefusedFlag {
    flag: &'static str,
    why: &'static str,
}

/// Whose flags are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// `layerwright build`
    Build,
    /// `layerwright run`
    Run,
}

impl Of {
    /// All that refuse some, by their names.
    pub const ALL: [(&'static str, Of); 2] = [("build", Of::Build), ("run", Of::Run)];

    fn flags(self) -> &'static [Flag] {
        match self {
            Self::Build => OF_BUILD,
            Self::Run => OF_RUN,
        }
    }
}

/// The command with every refused flag known and hidden.
pub fn add_to(command: Command, of: Of) -> Command {
    of.flags().iter().fold(command, |command, flag| command.arg(hidden(flag)))
}

fn hidden(flag: &Flag) -> Arg {
    let arg = Arg::new(flag.long).long(flag.long).hide(true).action(ArgAction::Append);
    let arg = match flag.takes {
        Takes::Nothing => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Takes::Value => arg.num_args(1),
    };
    match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

/// The first refused flag in what was given.
///
/// # Errors
/// That flag, and the sentence about it.
pub fn check(matches: &ArgMatches, of: Of) -> Result<(), RefusedFlag> {
    let unusual =
        |flag: &Flag, value: &String| go_bool(value).ok().is_none_or(|value| flag.usual != Some(value));
    let given = |flag: &&Flag| {
        matches.value_source(flag.long) == Some(ValueSource::CommandLine)
            && matches.get_many::<String>(flag.long).into_iter().flatten().any(|value| unusual(flag, value))
    };
    match of.flags().iter().find(given) {
        Some(flag) => Err(RefusedFlag { flag: flag.long, why: flag.why }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_refused_by_its_name() {
        let all = Of::ALL.into_iter().flat_map(|(_, of)| of.flags().iter().map(move |flag| (of, flag)));
        for (of, flag) in all {
            let text = match flag.takes {
                Takes::Nothing => format!("--{}={}", flag.long, flag.usual != Some(true)),
                Takes::Value => format!("--{}=x", flag.long),
            };
            let command = add_to(Command::new("build"), of).arg(Arg::new("context"));
            let matches = command.try_get_matches_from(["build", &text, "."]).expect("known, though hidden");
            let refusal = check(&matches, of).expect_err("refused").to_string();
            assert!(refusal.starts_with(&format!("--{}: ", flag.long)), "{refusal}");
        }
    }

    #[test]
    fn asking_for_what_happens_anyway_is_fine() {
        for text in ["--provenance=false", "--sbom=0", "--rm", "--rm=true"] {
            let matches = add_to(Command::new("build"), Of::Build)
                .try_get_matches_from(["build", text])
                .expect("known");
            assert_eq!(check(&matches, Of::Build), Ok(()), "{text}");
        }
        for text in ["--provenance=mode=max", "--rm=false", "--rm=x", "--attest=false"] {
            let matches = add_to(Command::new("build"), Of::Build)
                .try_get_matches_from(["build", text])
                .expect("known");
            assert!(check(&matches, Of::Build).is_err(), "{text}");
        }
    }
}

//! The words that flags take, each with what it says to others.

use std::{num::NonZeroUsize, str::FromStr};

use executor::{context::ContextModes, sandbox::Mode};
use oci::Reference;
use solver::op::{self, Network, Timestamps};

use crate::spec::call::Format;

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

/// What happens when a RUN fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// A shell is opened where the step ended.
    Shell,
}

/// The texts that Go's `strconv.ParseBool` takes.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

pub(super) fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("expected text or json".to_owned()),
    }
}

pub(super) fn jobs(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a number of at least 1".to_owned())
}

pub(super) fn retry(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a number like 0 or 3".to_owned())
}

pub(super) fn tag(text: &str) -> Result<Reference, String> {
    let reference: Reference =
        text.parse().map_err(|error: oci::reference::ReferenceError| error.to_string())?;
    match reference.digest {
        None => Ok(reference),
        Some(_) => Err("a name to give cannot have a digest".to_owned()),
    }
}

pub(super) fn network(text: &str) -> Result<Network, String> {
    match text {
        "default" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        "isolated" => Ok(Network::Isolated),
        _ => Err("expected default, none, host or isolated".to_owned()),
    }
}

/// An empty one is none.
pub(super) fn hostname(text: &str) -> Result<String, String> {
    match text.is_empty() || op::is_hostname(text) {
        true => Ok(text.to_owned()),
        false => Err(op::HOSTNAME_RULE.to_owned()),
    }
}

pub(super) fn sandbox(text: &str) -> Result<Mode, String> {
    match text {
        "auto" => Ok(Mode::Auto),
        "strict" => Ok(Mode::Strict),
        "userns" => Ok(Mode::SubordinateIds),
        "chroot" => Ok(Mode::Chroot),
        _ => Err("expected auto, strict, userns or chroot".to_owned()),
    }
}

pub(super) fn on_failure(text: &str) -> Result<OnFailure, String> {
    match text {
        "shell" => Ok(OnFailure::Shell),
        _ => Err("expected shell".to_owned()),
    }
}

pub(super) fn timestamps(text: &str) -> Result<Timestamps, String> {
    match text {
        "auto" => Ok(Timestamps::Auto),
        "preserve" => Ok(Timestamps::Preserve),
        _ => Err("expected auto or preserve".to_owned()),
    }
}

pub(super) fn context_modes(text: &str) -> Result<ContextModes, String> {
    match text {
        "normalise" => Ok(ContextModes::Normalise),
        "preserve" => Ok(ContextModes::Preserve),
        "git" => Ok(ContextModes::Git),
        _ => Err("expected normalise, preserve or git".to_owned()),
    }
}

//! Why the sandbox could not do its work: which step, what the kernel said, and the one setting that would lift it.

use std::io;

use rustix::io::Errno;

use crate::sandbox::hint::{self, Circumstances};

/// A sandbox that could not be entered or a step that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A named step of the set-up failed.
    #[error("sandbox: {step}: {message}")]
    Step {
        /// Its name.
        step: String,
        /// What it was about and what the kernel said.
        message: String,
        /// What the kernel said.
        errno: Option<Errno>,
        /// The one setting that would lift it, where we know it.
        hint: Option<String>,
    },
    /// What the image has at a path, or what the step wants there, leaves no place: so it would be on any machine.
    #[error("sandbox: {step}: {message}")]
    NoPlace {
        /// The step of the set-up.
        step: String,
        /// What is there.
        message: String,
    },
    /// The init ended without a word.
    #[error("sandbox: the init ended unexpectedly ({0})")]
    InitDied(String),
    /// The build was cancelled; the command has been ended.
    #[error("cancelled")]
    Cancelled,
}

impl SandboxError {
    /// The one setting that would lift it, where we know it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            SandboxError::Step { hint, .. } => hint.as_deref(),
            SandboxError::NoPlace { .. } | SandboxError::InitDied(_) | SandboxError::Cancelled => None,
        }
    }

    /// The same with another way to build, besides the setting that would lift it.
    pub(super) fn or_else(self, way: Option<&str>) -> Self {
        match (self, way) {
            (Self::Step { step, message, errno, hint }, Some(way)) => {
                let hint = Some(hint.map_or(way.to_owned(), |hint| format!("{hint}; or {way}")));
                Self::Step { step, message, errno, hint }
            }
            (error, _) => error,
        }
    }

    /// The same where a build could go on without, but for `--sandbox=strict`.
    pub(super) fn refused_by_strict(self, what: &str) -> Self {
        match self {
            Self::Step { step, message, errno, hint } => {
                let step = format!("{step}: {message}");
                Self::Step { step: format!("--sandbox=strict refuses {what}"), message: step, errno, hint }
            }
            error => error,
        }
    }

    /// A step that the kernel refused, with the hint for it.
    pub(super) fn errno(step: &str, errno: Errno) -> Self {
        Self::refused(step, errno.to_string(), Some(errno))
    }

    /// A step on which `std` failed, with the hint for it.
    pub(super) fn io(step: &str, error: &io::Error) -> Self {
        Self::refused(step, error.to_string(), error.raw_os_error().map(Errno::from_raw_os_error))
    }

    /// A step that failed, with the hint for it.
    pub(super) fn refused(step: &str, message: String, errno: Option<Errno>) -> Self {
        let hint = hint::for_step(step, errno, &Circumstances::of_this_machine());
        Self::Step { step: step.to_owned(), message, errno, hint }
    }

    /// What an init reported, with its hint or the one for the step.
    pub(super) fn reported(step: &str, message: String, errno: Option<i32>, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => Self::step(step, &message, Some(hint)),
            None => Self::refused(step, message, errno.map(Errno::from_raw_os_error)),
        }
    }

    /// A step that failed for a reason of our own.
    pub(super) fn step(step: &str, message: &str, hint: Option<String>) -> Self {
        Self::Step { step: step.to_owned(), message: message.to_owned(), errno: None, hint }
    }
}

//! Everything that ends a command without success, and the exit code it stands for.

use std::{io, path::PathBuf};

use oci::{registry::RegistryError, store::StoreError};
use parser::{Diagnostic, Span};
use solver::{FailureKind, StepFailure};

use crate::{request::RequestError, signals::Signal};

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line, or a file it names.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The Dockerfile.
    #[error("{}", summary(diagnostics))]
    Dockerfile {
        /// All that is wrong or doubtful, at least one error among it.
        diagnostics: Vec<Diagnostic>,
    },
    /// A base image that cannot be had.
    #[error("{failure}")]
    Image {
        /// Where it is asked for.
        span: Span,
        /// Why not.
        #[source]
        failure: StepFailure,
    },
    /// A step that failed.
    #[error("{failure}")]
    Step {
        /// `[build 2/4] RUN make`
        label: String,
        /// Where it stands; steps that no line asks for have no place.
        span: Option<Span>,
        /// Why.
        #[source]
        failure: StepFailure,
    },
    /// The pattern of an ignore file.
    #[error(transparent)]
    Context(#[from] executor::context::ContextError),
    /// The registry client.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] executor::sandbox::SandboxError),
    /// A file the user asked for beside the image.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The clock stands before the times that images hold.
    #[error("the clock says it is before 2025: set it, since times in images depend on it being later")]
    Clock,
    /// The user stopped the build.
    #[error("stopped by {0}")]
    Stopped(Signal),
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| found.severity == parser::Severity::Error);
    errors.map(|found| found.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// The code of mistakes in the command line or the Dockerfile.
pub const USAGE: u8 = 2;
/// The code of our own bugs.
pub const BUG: u8 = 255;

impl Failure {
    /// The exit code, as the help lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Request(_) | Self::Dockerfile { .. } | Self::Context(_) => USAGE,
            Self::Image { failure, .. } | Self::Step { failure, .. } => kind_code(failure.kind),
            Self::Registry(_) => kind_code(FailureKind::Registry),
            Self::Store(_) | Self::Sandbox(_) | Self::Write { .. } | Self::Clock => {
                kind_code(FailureKind::Machine)
            }
            Self::Stopped(signal) => signal.exit_code(),
        }
    }

    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Image { failure, .. } | Self::Step { failure, .. } => failure.hint.as_deref(),
            Self::Sandbox(error) => error.hint(),
            _ => None,
        }
    }
}

/// The code of a step's failure. A cancelled step of a build that nobody stopped would be our bug.
fn kind_code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Build => 1,
        FailureKind::Usage => USAGE,
        FailureKind::Registry => 3,
        FailureKind::Machine => 4,
        FailureKind::Cancelled => BUG,
    }
}

/// An error and what caused it, in one line; a cause that its effect has told already is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let read = io::Error::other("disk on fire");
        let failure = StepFailure::caused(FailureKind::Machine, "cannot read layer", read);
        let failure = Failure::Step { label: "[1/1] RUN x".into(), span: None, failure };
        assert_eq!(chain(&failure), "cannot read layer: disk on fire");
        assert_eq!(failure.exit_code(), 4);
    }
}

//! How the inits fail: with the name of a step, so the builder can say what could not be done and why.

use std::io;

use rustix::io::Errno;

use crate::{
    mount::{MountError, aside},
    sandbox::{SandboxError, wire::Report},
};

/// A named step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    step: String,
    message: String,
    errno: Option<Errno>,
    hint: Option<String>,
}

impl Failure {
    /// A step that failed for a reason of our own.
    pub fn new(step: &str, message: impl Into<String>) -> Self {
        Self { step: step.to_owned(), message: message.into(), errno: None, hint: None }
    }

    /// The same with the one setting that would lift it, where only we know it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The report the builder gets.
    pub fn report(&self) -> Report {
        Report::Failed {
            step: self.step.clone(),
            message: self.message.clone(),
            errno: self.errno.map(Errno::raw_os_error),
            hint: self.hint.clone(),
        }
    }
}

impl From<Failure> for SandboxError {
    fn from(Failure { step, message, errno, hint }: Failure) -> Self {
        SandboxError::reported(&step, message, errno.map(Errno::raw_os_error), hint)
    }
}

/// Names the step a result belongs to.
pub trait NameStep<T> {
    /// The same result, its error with a name.
    fn step(self, name: &str) -> Result<T, Failure>;
}

impl<T> NameStep<T> for Result<T, Errno> {
    fn step(self, name: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure { errno: Some(errno), ..Failure::new(name, errno.to_string()) })
    }
}

impl<T> NameStep<T> for io::Result<T> {
    fn step(self, name: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            Failure { errno, ..Failure::new(name, error.to_string()) }
        })
    }
}

impl<T> NameStep<T> for Result<T, MountError> {
    fn step(self, name: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let message = format!("{}: {}{}", error.path.display(), error.errno, aside(&error.said));
            Failure { errno: Some(error.errno), ..Failure::new(&format!("{name} {}", error.step), message) }
        })
    }
}

//! Why the sandbox could not do its work: which step, what the kernel said, and the one setting that would lift it.

use rustix::io::Errno;

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
            SandboxError::InitDied(_) | SandboxError::Cancelled => None,
        }
    }
}

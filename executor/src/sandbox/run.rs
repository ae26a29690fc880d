//! The builder's side of a run: starts the init, sends the plan, reads what the command says until it has ended.

use solver::{Cancel, Stream};

use crate::sandbox::{SandboxError, SandboxPlan};

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It could not be executed: 127 where it was not found, 126 where it was; the message is for people.
    NotExecuted {
        /// What a shell would return.
        code: i32,
        /// `exec: "foo": not found in PATH`
        message: String,
    },
}

/// Whether this process was started as the init of a sandbox; if so, `main` calls [`super::init_main`] at once.
pub fn is_init_call() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == "sandbox-init")
}

/// The resolver configuration a step gets when it shares the builder's network: the builder's own as it is, since a
/// stub resolver on loopback can be reached there. Nothing where the builder has none: a public resolver is never
/// invented.
pub fn resolv_conf() -> String {
    String::new()
}

/// Runs a command to its end. `log` takes its output line by line (without the line end; at most 64 KiB, the rest of a
/// longer line comes as the next one) and holds the command back while it blocks. When `cancel` asks, the command gets
/// SIGTERM, ten seconds, and SIGKILL. When this returns no process of the step is left.
///
/// # Errors
/// The sandbox could not be set up, or the build was cancelled.
pub fn run(
    plan: &SandboxPlan,
    log: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<Exit, SandboxError> {
    let _ = (plan, log, cancel);
    Err(SandboxError::InitDied("not there yet".to_owned()))
}

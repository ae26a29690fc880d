//! Moves the builder itself into a mount namespace of its own, and, as an ordinary user, into a user namespace.

use crate::sandbox::{Rung, SandboxError};

/// Which rung to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// The first that works: root, subordinate ids, one id.
    #[default]
    Auto,
    /// A user namespace with subordinate ids, or fail; for root, too.
    SubordinateIds,
    /// A user namespace with one id, or fail; for root, too.
    SingleId,
}

/// Where the builder is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// Whose ids it has.
    pub rung: Rung,
    /// The user and group id maps, `uid 0 1000 1,1 100000 65536 gid 0 1000 1,1 100000 65536`: what is in the store
    /// means something under these only.
    pub id_map: String,
    /// What a person should know: why it is not a better rung, which protections this kernel lacks.
    pub notes: Vec<String>,
}

/// Enters. To be called first thing in `main`, while the process has one thread.
///
/// # Errors
/// The step that failed, with errno and the one setting that would lift it.
pub fn enter_builder(mode: Mode) -> Result<Entered, SandboxError> {
    Err(SandboxError::InitDied(format!("not there yet: {mode:?}")))
}

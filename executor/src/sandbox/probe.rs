//! What this machine allows, found out by doing it in a throw-away process: the table of `layerwright doctor`.

use std::path::Path;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What it is, for people: `overlay in the store`.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It works; the detail says how well (`ABI 7`, `65536 ids`).
    Works(String),
    /// It does not.
    Fails {
        /// The step that failed and what the kernel said.
        reason: String,
        /// The one setting that would lift it, where we know it.
        remedy: Option<String>,
    },
}

/// Tries everything. `store` is the directory whose file system is asked about overlay; it must exist. To be called
/// before [`super::enter_builder`], while the process has one thread.
pub fn probe(store: &Path) -> Vec<Probe> {
    let _ = store;
    Vec::new()
}

//! What a command is started with besides its arguments.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    path::PathBuf,
};

/// The process's surroundings, as far as a result depends on them.
pub struct Environment {
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Whether the user is root.
    pub is_root: bool,
    /// Whether standard input is one.
    pub stdin_is_terminal: bool,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            stderr_is_terminal: io::stderr().is_terminal(),
            is_root: rustix::process::geteuid().is_root(),
            stdin_is_terminal: io::stdin().is_terminal(),
        }
    }

    /// A variable, set or not.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// A variable; one that is empty or not UTF-8 counts as not set.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(OsStr::to_str).filter(|value| !value.is_empty())
    }

    /// A variable that holds a path; an empty one counts as not set.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

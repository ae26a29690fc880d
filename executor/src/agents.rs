//! SSH agents: what `--ssh` names, for `RUN --mount=type=ssh` and for git over SSH.
//!
//! A private key never leaves the agent that holds it. Keys that come as files are given to an `ssh-agent` of our own, one
//! for each `--ssh`, that is started when a step first wants it and ends with the build, however the build ends. A
//! step gets a socket behind which every request but "which keys" and "sign this" is refused ([`proxy`]).

mod private;
pub mod proxy;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use private::PrivateAgent;
pub use proxy::Proxy;

/// Where the keys of one `--ssh` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentSource {
    /// The socket of an agent that is running already.
    Socket(PathBuf),
    /// Files with private keys, for which an agent is started.
    Keys(Vec<PathBuf>),
}

/// The agents of a build, by the id of their `--ssh`. Cheap to clone; those of our own end with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Agents {
    agents: Arc<BTreeMap<String, Agent>>,
}

#[derive(Debug)]
struct Agent {
    source: AgentSource,
    /// Started when it is first wanted.
    own: Mutex<Option<PrivateAgent>>,
}

/// Why an agent cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A program of OpenSSH cannot be run.
    #[error("cannot run {program} for the keys of --ssh {id}")]
    Run {
        /// Which program.
        program: &'static str,
        /// For which `--ssh`.
        id: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent ended before it could be used.
    #[error("ssh-agent for --ssh {id} did not start: {message}")]
    NotStarted {
        /// For which `--ssh`.
        id: String,
        /// What it said.
        message: String,
    },
    /// A key file cannot be read.
    #[error("cannot read the key {} of --ssh {id}", path.display())]
    Read {
        /// For which `--ssh`.
        id: String,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key that needs a passphrase.
    #[error("the key {} of --ssh {id} is encrypted, and a build cannot ask for its passphrase", path.display())]
    Encrypted {
        /// For which `--ssh`.
        id: String,
        /// Which file.
        path: PathBuf,
    },
    /// A file that the agent takes for no key.
    #[error("the key {} of --ssh {id} is not accepted: {message}", path.display())]
    Refused {
        /// For which `--ssh`.
        id: String,
        /// Which file.
        path: PathBuf,
        /// What ssh-add said.
        message: String,
    },
    /// A socket for a step cannot be made.
    #[error("cannot make a socket for --ssh {id}")]
    Socket {
        /// For which `--ssh`.
        id: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl AgentError {
    /// What to do next, where we know it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            AgentError::Encrypted { .. } => {
                Some("add it to a running agent with ssh-add, and give that one with --ssh default")
            }
            AgentError::Run { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "install the package `openssh-client`, or give a running agent with --ssh default=SOCKET",
            ),
            _ => None,
        }
    }
}

impl Agents {
    /// Agents; none is started or connected to yet.
    pub fn new(sources: BTreeMap<String, AgentSource>) -> Self {
        let agent = |source| Agent { source, own: Mutex::default() };
        Self { agents: Arc::new(sources.into_iter().map(|(id, source)| (id, agent(source))).collect()) }
    }

    /// The socket of an agent, started if need be; `None` where there is no `--ssh` of that id. It takes all requests:
    /// what runs in a step must get a [`Proxy`] instead. It is there as long as a clone of this value.
    ///
    /// # Errors
    /// The agent cannot be started, or does not take a key.
    pub fn socket(&self, id: &str) -> Result<Option<PathBuf>, AgentError> {
        let Some(agent) = self.agents.get(id) else { return Ok(None) };
        let keys = match &agent.source {
            AgentSource::Socket(path) => return Ok(Some(path.clone())),
            AgentSource::Keys(keys) => keys,
        };
        let mut own = agent.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*own {
            return Ok(Some(running.socket()));
        }
        let started = PrivateAgent::start(id, keys)?;
        Ok(Some(own.insert(started).socket()))
    }

    /// A filtered socket in a directory, for one step; `None` where there is no `--ssh` of that id.
    ///
    /// # Errors
    /// Those of [`Agents::socket`], or the socket cannot be made.
    pub fn proxy(&self, id: &str, directory: &Path) -> Result<Option<Proxy>, AgentError> {
        let Some(agent) = self.socket(id)? else { return Ok(None) };
        let made = Proxy::start(directory, agent);
        made.map(Some).map_err(|source| AgentError::Socket { id: id.to_owned(), source })
    }
}

//! From the network a step is to have to what its plan says of it: the program of a user-mode stack, and whom the step
//! asks for names.

use std::path::PathBuf;

use solver::op;

use crate::sandbox::{
    Dns, SandboxError,
    dns::{self, Source},
    isolated::STEP,
    plan::Network,
};

/// A network, and what `/etc/resolv.conf` says there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The network.
    pub network: Network,
    /// The resolver configuration.
    pub resolv_conf: String,
    /// The file of this machine that it comes from, as far as the command line does not say it.
    pub resolver: String,
}

impl Connection {
    /// What this machine has to offer of it. `dns` is what the command line says in place of the machine's own resolver
    /// configuration.
    ///
    /// # Errors
    /// There is no user-mode stack, no name server that an isolated step could reach, or a resolver configuration
    /// that cannot be read.
    pub fn new(asked: op::Network, dns: &Dns) -> Result<Self, SandboxError> {
        let shared = |network| {
            let Source { path, text } = dns::own()?;
            Ok(Self { network, resolv_conf: dns.applied_to(&text), resolver: path })
        };
        match asked {
            // A resolver could only time out.
            op::Network::None => Ok(Self::resolved_by(Network::None, String::new())),
            op::Network::Default => shared(Network::Default),
            op::Network::Host => shared(Network::Host),
            op::Network::Isolated => {
                let program = find_stack().ok_or_else(not_installed)?;
                let Source { path, text } = dns::for_isolated(dns)?;
                Ok(Self { network: Network::Isolated { program }, resolv_conf: text, resolver: path })
            }
        }
    }

    /// One with a resolver configuration that comes from no file of this machine.
    pub fn resolved_by(network: Network, resolv_conf: String) -> Self {
        Self { network, resolv_conf, resolver: String::new() }
    }

    /// What a person should know of it before a name is asked for in vain.
    pub fn doubt(&self) -> Option<String> {
        match &self.network {
            Network::None => None,
            network => {
                dns::doubt(&self.resolver, &self.resolv_conf, matches!(network, Network::Isolated { .. }))
            }
        }
    }
}

/// The user-mode stack: `pasta` in an absolute directory of PATH.
pub fn find_stack() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("pasta"))
        .find(|program| program.is_file())
}

fn not_installed() -> SandboxError {
    let hint = format!("{INSTALL}, or choose --network=default, none or host");
    SandboxError::step(STEP, "pasta is not installed", Some(hint))
}

/// How a machine gets the stack.
pub const INSTALL: &str = "install pasta (the package `passt`)";

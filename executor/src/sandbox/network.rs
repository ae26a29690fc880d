//! From the network a step is to have to what its plan says of it: the program of a user-mode stack, and whom the step
//! asks for names.

use std::path::PathBuf;

use solver::op;

use crate::sandbox::{Dns, SandboxError, dns, isolated::STEP, plan::Network};

/// A network, and what `/etc/resolv.conf` says there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The network.
    pub network: Network,
    /// The resolver configuration.
    pub resolv_conf: String,
}

impl Connection {
    /// What this machine has to offer of it. `dns` is what the command line says in place of the machine's own resolver
    /// configuration.
    ///
    /// # Errors
    /// There is no user-mode stack, no name server that an isolated step could reach, or a resolver configuration
    /// that cannot be read.
    pub fn new(asked: op::Network, dns: &Dns) -> Result<Self, SandboxError> {
        let connection = |network, resolv_conf| Self { network, resolv_conf };
        Ok(match asked {
            // A resolver could only time out.
            op::Network::None => connection(Network::None, String::new()),
            op::Network::Default => connection(Network::Default, dns.applied_to(&dns::own()?)),
            op::Network::Host => connection(Network::Host, dns.applied_to(&dns::own()?)),
            op::Network::Isolated => {
                let program = find_stack().ok_or_else(not_installed)?;
                connection(Network::Isolated { program }, dns::for_isolated(dns)?)
            }
        })
    }

    /// What a person should know of it before a name is asked for in vain.
    pub fn doubt(&self) -> Option<String> {
        match &self.network {
            Network::None => None,
            network => dns::doubt(&self.resolv_conf, matches!(network, Network::Isolated { .. })),
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

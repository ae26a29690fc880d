//! The names of machines in a step: its own, and those in `/etc/hosts`.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use solver::op;

use super::{Network, PlanError};

/// Whether the name of a step's machine is one that somebody has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Naming {
    /// Nobody has. Where the machine forbids to set it, the step goes without.
    Usual,
    /// Where it cannot be set, the step fails.
    Asked,
}

impl Naming {
    /// That of a name that was given; an empty one is none.
    pub fn of(name: Option<&str>) -> Self {
        match name {
            None | Some("") => Self::Usual,
            Some(_) => Self::Asked,
        }
    }
}

/// The name a step's machine has; BuildKit's, which scripts in the field know.
const HOSTNAME: &str = "buildkitsandbox";

/// What `hostname` says.
pub(super) fn hostname(exec: &op::Exec) -> &str {
    exec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(HOSTNAME)
}

/// What stands in `/etc/hosts`.
pub(super) fn hosts(exec: &op::Exec, network: &Network) -> Result<String, PlanError> {
    let own = hostname(exec);
    let is_name =
        |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
    if !is_name(own) || own.len() > HOST_NAME_MAX {
        return Err(PlanError::HostName(own.to_owned()));
    }
    let mut text = format!("127.0.0.1\tlocalhost {own}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in &exec.hosts {
        if !is_name(name) {
            return Err(PlanError::HostName(name.clone()));
        }
        if address == HOST_GATEWAY && matches!(network, Network::Isolated { .. }) {
            return Err(PlanError::HostGateway { name: name.clone() });
        }
        let wrong = || PlanError::HostAddress { name: name.clone(), address: address.clone() };
        let address = match (address.as_str(), network) {
            (HOST_GATEWAY, Network::None) => NOBODY,
            (HOST_GATEWAY, _) => THIS_MACHINE,
            (address, _) => address.parse().map_err(|_| wrong())?,
        };
        text += &format!("{address}\t{name}\n");
    }
    Ok(text)
}

/// What sethostname(2) takes.
const HOST_NAME_MAX: usize = 64;

/// Docker's word for the machine that builds. A step shares its network, so that is where it is.
const HOST_GATEWAY: &str = "host-gateway";
const THIS_MACHINE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What stands for it where there is no network: as with Docker the name has an address, and nothing leads there. Loopback
/// would be the step itself. RFC 7600's, which belongs to no machine.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8));

//! `--add-host NAME:IP` and `NAME=IP`: names that RUN steps find in `/etc/hosts`.

use std::{fmt, net::IpAddr, str::FromStr};

/// One `--add-host`: a name and its addresses, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// The name.
    pub name: String,
    /// What it stands for, at least one.
    pub addresses: Vec<HostAddress>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    /// An address.
    Ip(IpAddr),
    /// `host-gateway`: this machine, as the step sees it. Which address that is, its network says.
    Gateway,
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostAddress::Ip(address) => address.fmt(f),
            HostAddress::Gateway => f.write_str(HOST_GATEWAY),
        }
    }
}

/// Why something gives no name an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostSpecError {
    /// Not two parts.
    #[error("invalid host {0}: expected NAME:IP, NAME=IP or NAME=host-gateway")]
    NotAPair(String),
    /// A name that would be several words, or a comment.
    #[error("invalid host {0}: a name has no blanks and no #")]
    Name(String),
    /// No address.
    #[error("invalid host {text}: {address:?} is no IP address")]
    Address {
        /// All of it.
        text: String,
        /// The part that is none.
        address: String,
    },
}

/// What Docker replaces by the address of the machine as a container sees it.
const HOST_GATEWAY: &str = "host-gateway";

impl FromStr for HostSpec {
    type Err = HostSpecError;

    fn from_str(text: &str) -> Result<Self, HostSpecError> {
        let pair = text.split_once('=').or_else(|| text.split_once(':'));
        let (name, addresses) = pair
            .filter(|(name, addresses)| !name.is_empty() && !addresses.is_empty())
            .ok_or_else(|| HostSpecError::NotAPair(text.to_owned()))?;
        if name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
            return Err(HostSpecError::Name(text.to_owned()));
        }
        let address = |part: &str| address(part).ok_or_else(|| invalid(text, part));
        let addresses = addresses.split(',').map(address).collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), addresses })
    }
}

fn invalid(text: &str, address: &str) -> HostSpecError {
    HostSpecError::Address { text: text.to_owned(), address: address.to_owned() }
}

/// An address, in square brackets or not.
fn address(text: &str) -> Option<HostAddress> {
    if text == HOST_GATEWAY {
        return Some(HostAddress::Gateway);
    }
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    inner.unwrap_or(text).parse().ok().map(HostAddress::Ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_docker_reads_them() {
        for (text, name, addresses) in [
            ("db:10.0.0.1", "db", &["10.0.0.1"][..]),
            ("db=10.0.0.1", "db", &["10.0.0.1"]),
            ("db:::1", "db", &["::1"]),
            ("db=[2001:db8::1]", "db", &["2001:db8::1"]),
            ("db=10.0.0.1,[::1]", "db", &["10.0.0.1", "::1"]),
            ("host.docker.internal:host-gateway", "host.docker.internal", &["host-gateway"]),
        ] {
            let host: HostSpec = text.parse().unwrap_or_else(|error| panic!("{error}"));
            let shown: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
            assert_eq!((host.name.as_str(), shown), (name, addresses.iter().map(|&a| a.into()).collect()));
        }
    }

    #[test]
    fn what_gives_no_address_is_refused() {
        for text in [
            "db",
            "db:",
            ":1.2.3.4",
            "=1.2.3.4",
            "db:name",
            "db=1.2.3",
            "a b:1.2.3.4",
            "a#:1.2.3.4",
            "a=1.1.1.1,",
        ] {
            let error = text.parse::<HostSpec>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("invalid host {text}: ")), "{error}");
        }
    }
}

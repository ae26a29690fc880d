//! Which host a registry is, and which hosts are alike.

use std::net::IpAddr;

use reqwest::Url;

use crate::reference::DEFAULT_REGISTRY;

/// The host behind Docker Hub's name.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// `host[:port]` that is contacted for a registry.
pub(super) fn host_of(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry }
}

/// Scheme, host and port: what credentials are bound to (RELIABILITY R25).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    pub fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default().to_owned();
        Self { scheme: url.scheme().to_owned(), host, port: url.port_or_known_default() }
    }
}

/// The host of a URL as an address, where it is one.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address: IpAddr = bare.parse().ok()?;
    Some(match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    })
}

/// Whether a host name means this machine: 127.0.0.0/8, ::1 or `localhost`.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || address(host).is_some_and(|address| address.is_loopback())
}

/// Who can be reached at a host name, as far as the name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Anything with a name, and public addresses.
    Public,
    /// Addresses of private networks (RFC 1918, RFC 4193).
    Private,
    /// Link-local addresses, where clouds keep their metadata, and the unspecified one.
    Link,
    /// This machine.
    Loopback,
}

impl Reach {
    pub fn of(host: &str) -> Self {
        let Some(address) = address(host) else {
            return if is_loopback(host) { Self::Loopback } else { Self::Public };
        };
        let (private, link) = match address {
            IpAddr::V4(v4) => (v4.is_private(), v4.is_link_local()),
            IpAddr::V6(v6) => (v6.is_unique_local(), v6.is_unicast_link_local()),
        };
        match (address.is_loopback(), private, link || address.is_unspecified()) {
            (true, ..) => Self::Loopback,
            (_, true, _) => Self::Private,
            (_, _, true) => Self::Link,
            _ => Self::Public,
        }
    }
}

/// Whether two hosts belong to the same owner as far as names tell: equal, or below the same registrable domain.
pub(super) fn are_related(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    if one == other {
        return true;
    }
    if address(&one).is_some() || address(&other).is_some() {
        return false;
    }
    match (registrable(&one), registrable(&other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// Domains below which names are handed out to strangers, and that matter to registries. Country domains with a second
/// level are known by rule.
const SHARED: [&str; 14] = [
    "amazonaws.com",
    "azurecr.io",
    "azurewebsites.net",
    "cloudfront.net",
    "cr.cloud.ru",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "jfrog.io",
    "ngrok.io",
    "pkg.dev",
    "run.app",
    "workers.dev",
];

/// The part of a name that somebody has registered, or `None` where there is no such part.
fn registrable(host: &str) -> Option<&str> {
    if let Some(suffix) = SHARED.iter().find(|suffix| is_below(host, suffix)) {
        return last_labels(host, suffix.split('.').count() + 1);
    }
    let mut labels = host.rsplit('.');
    let (top, second) = (labels.next()?, labels.next()?);
    let generic = ["ac", "co", "com", "edu", "gob", "gouv", "gov", "mil", "ne", "net", "or", "org"];
    let two_level_country = top.len() == 2 && generic.contains(&second);
    last_labels(host, if two_level_country { 3 } else { 2 })
}

fn is_below(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
}

fn last_labels(host: &str, count: usize) -> Option<&str> {
    let start = host.rmatch_indices('.').map(|(at, _)| at + 1).nth(count - 1);
    match start {
        Some(start) => Some(&host[start..]),
        None => (host.split('.').count() == count).then_some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_tell_who_can_be_reached() {
        for (host, want) in [
            ("localhost", Reach::Loopback),
            ("LOCALHOST", Reach::Loopback),
            ("127.0.0.1", Reach::Loopback),
            ("127.9.9.9", Reach::Loopback),
            ("[::1]", Reach::Loopback),
            ("[::ffff:127.0.0.1]", Reach::Loopback),
            ("10.0.0.1", Reach::Private),
            ("192.168.1.1", Reach::Private),
            ("[fd00::1]", Reach::Private),
            ("169.254.169.254", Reach::Link),
            ("[fe80::1]", Reach::Link),
            ("[::ffff:169.254.169.254]", Reach::Link),
            ("0.0.0.0", Reach::Link),
            ("[::]", Reach::Link),
            ("localhost.example.com", Reach::Public),
            ("127.0.0.1.nip.io", Reach::Public),
            ("128.0.0.1", Reach::Public),
            ("[2001:db8::1]", Reach::Public),
        ] {
            assert_eq!(Reach::of(host), want, "{host}");
            assert_eq!(is_loopback(host), want == Reach::Loopback, "{host}");
        }
    }

    #[test]
    fn docker_hub_is_reached_by_its_other_name() {
        assert_eq!(host_of("docker.io"), "registry-1.docker.io");
        assert_eq!(host_of("r.example.com:5000"), "r.example.com:5000");
    }

    #[test]
    fn related_hosts_share_what_somebody_has_registered() {
        for (one, other, want) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("ghcr.io", "GHCR.io", true),
            ("r.example.co.uk", "auth.example.co.uk", true),
            ("a.co.uk", "b.co.uk", false),
            ("victim.azurecr.io", "evil.azurecr.io", false),
            ("1.dkr.ecr.eu-west-1.amazonaws.com", "evil.amazonaws.com", false),
            ("docker.io", "docker.io.evil.com", false),
            ("docker.io", "evildocker.io", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("10.1.0.1", "9.1.0.1", false),
            ("localhost", "otherhost", false),
            ("co.uk", "co.uk", true),
            ("azurecr.io", "evil.azurecr.io", false),
        ] {
            assert_eq!(are_related(one, other), want, "{one} {other}");
            assert_eq!(are_related(other, one), want, "{other} {one}");
        }
    }
}

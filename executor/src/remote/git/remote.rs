//! The address of a repository: what `git` is given of it, what people are shown, and what submodules make of it.
//!
//! Only `http`, `https`, `ssh` and `git` are spoken, as by BuildKit: no local path, no `file:`, none of the transports
//! that run a program. What `git` gets never begins with a dash and never holds the credentials of an HTTP address.

use solver::remote::redacted;

/// A repository that may be contacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// For `git`: without the user information of HTTP.
    pub url: String,
    /// For people.
    pub shown: String,
    /// `user:password` of an HTTP address, decoded.
    pub login: Option<String>,
    /// The host without user and port.
    pub host: String,
    /// How it is reached.
    pub protocol: Protocol,
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `http://` and `https://`
    Http,
    /// `ssh://` and `user@host:path`
    Ssh,
    /// `git://`
    Git,
}

impl Remote {
    /// Reads an address; `None` for what is not spoken.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with('-') || text.chars().any(char::is_control) {
            return None;
        }
        let shown = redacted(text);
        let Some((scheme, rest)) = text.split_once("://") else { return Self::parse_scp(text, shown) };
        let scheme = scheme.to_ascii_lowercase();
        let protocol = match scheme.as_str() {
            "http" | "https" => Protocol::Http,
            "ssh" => Protocol::Ssh,
            "git" => Protocol::Git,
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, authority),
        };
        let host = host_of(place)?;
        let is_safe = |text: &str| !text.is_empty() && !text.starts_with('-');
        if !is_safe(&host) || login.is_some_and(|login| !is_safe(login)) {
            return None;
        }
        let (url, login) = match protocol {
            Protocol::Http => (format!("{scheme}://{place}{path}"), login.and_then(decoded)),
            _ => (text.to_owned(), None),
        };
        Some(Self { url, shown, login, host, protocol })
    }

    /// `user@host:path`
    fn parse_scp(text: &str, shown: String) -> Option<Self> {
        let (authority, path) = text.split_once(':')?;
        let (user, host) = authority.split_once('@')?;
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        // `host::path` names a program that would be run.
        let is_address = plain(user) && plain(host) && !path.starts_with(':') && !path.is_empty();
        let (url, host) = (text.to_owned(), host.to_owned());
        is_address.then_some(Self { url, shown, login: None, host, protocol: Protocol::Ssh })
    }

    /// The address that a submodule names, which may be relative to this one (gitmodules(5)).
    pub fn submodule(&self, url: &str) -> Option<Self> {
        if !url.starts_with("./") && !url.starts_with("../") {
            return Self::parse(url);
        }
        let mut base = self.url.trim_end_matches('/').to_owned();
        let floor = match base.find("://") {
            Some(at) => base[at + 3..].find('/').map(|slash| at + 3 + slash)?,
            None => base.find(':')? + 1,
        };
        let mut rest = url;
        loop {
            if let Some(next) = rest.strip_prefix("./") {
                rest = next;
            } else if let Some(next) = rest.strip_prefix("../") {
                rest = next;
                if base.len() <= floor {
                    return None;
                }
                let end = base[floor..].rfind('/').map_or(floor, |slash| floor + slash);
                base.truncate(end);
            } else {
                break;
            }
        }
        let joint = if base.ends_with(':') { "" } else { "/" };
        let mut remote = Self::parse(&format!("{base}{joint}{rest}"))?;
        remote.login.clone_from(&self.login);
        Some(remote)
    }

    /// Where credentials of this address hold, as git's `http.<url>.*` has it: here, and all over GitHub, as for
    /// BuildKit and for GitHub's own checkout action.
    pub fn scope(&self) -> String {
        let github = ["https://github.com/", "https://www.github.com/"];
        let scope = github.into_iter().find(|prefix| self.url.starts_with(prefix));
        scope.unwrap_or(&self.url).to_owned()
    }
}

/// `host`, `host:port`, `[v6]:port`
fn host_of(place: &str) -> Option<String> {
    if let Some(rest) = place.strip_prefix('[') {
        return rest.split_once(']').map(|(host, _)| host.to_owned());
    }
    Some(place.split_once(':').map_or(place, |(host, _)| host).to_owned())
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_four_protocols_are_spoken_and_nothing_is_an_option() {
        for (text, url, host, login) in [
            ("https://host.example/a.git", "https://host.example/a.git", "host.example", None),
            ("https://u:p%40q@h:8/a.git", "https://h:8/a.git", "h", Some("u:p@q")),
            ("HTTP://[::1]:8/a.git", "http://[::1]:8/a.git", "::1", None),
            ("git@h.example:a/b.git", "git@h.example:a/b.git", "h.example", None),
            ("ssh://git@h:22/a", "ssh://git@h:22/a", "h", None),
            ("git://h/a", "git://h/a", "h", None),
        ] {
            let remote = Remote::parse(text).expect(text);
            assert_eq!((remote.url.as_str(), remote.host.as_str()), (url, host), "{text}");
            assert_eq!(remote.login.as_deref(), login, "{text}");
            assert!(!remote.shown.contains("p%40q"), "{}", remote.shown);
        }
        for text in [
            "--upload-pack=touch /tmp/x",
            "ext::sh -c true",
            "fd::0",
            "file:///etc",
            "/srv/git/a.git",
            "../a.git",
            "a.git",
            "C:/a.git",
            "ssh://-oProxyCommand=x/a",
            "ssh://-ox@h/a",
            "-ox@h:a",
            "git@-oProxyCommand=x:a",
            "git@h::a",
            "ssh::git@h:a",
            "https://",
            "ftp://h/a.git",
            "https://h/a\n.git",
        ] {
            assert_eq!(Remote::parse(text), None, "{text}");
        }
    }

    #[test]
    fn submodules_are_found_beside_their_repository() {
        for (base, url, expected) in [
            ("https://h/a/b.git", "../c.git", Some("https://h/a/c.git")),
            ("https://h/a/b.git/", "../../c.git", Some("https://h/c.git")),
            ("https://h/a/b.git", "./c.git", Some("https://h/a/b.git/c.git")),
            ("https://h/a.git", "../../../c.git", None),
            ("git@h:a/b.git", "../c.git", Some("git@h:a/c.git")),
            ("git@h:b.git", "../c.git", Some("git@h:c.git")),
            ("https://h/a.git", "https://other/c.git", Some("https://other/c.git")),
            ("https://h/a.git", "file:///etc", None),
            ("https://h/a.git", "/etc", None),
            ("https://h/a.git", "ext::sh", None),
            ("https://h/a.git", "-u", None),
        ] {
            let found = Remote::parse(base).expect(base).submodule(url);
            assert_eq!(found.map(|remote| remote.url).as_deref(), expected, "{base} {url}");
        }
    }
}

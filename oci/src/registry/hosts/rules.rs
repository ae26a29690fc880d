//! Which settings hold for an image: the table with the longest prefix of its name (containers-registries.conf(5)).

use std::{path::Path, sync::Arc};

use super::Location;
use crate::{
    reference::{self, Reference, ReferenceError},
    registry::error::RegistryError,
};

/// The first part of the names of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `host[:port][/path]`, which may end with a tag or a digest.
    Name(String),
    /// The same of all hosts below a domain: what follows the `*` of `*.example.com`.
    Below(String),
}

impl Pattern {
    /// A prefix as it is written, `*.` before a domain included.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if let Some(below) = text.strip_prefix('*').filter(|below| below.starts_with('.')) {
            reference::prefix(&below[1..])?;
            return Ok(Self::Below(below.to_owned()));
        }
        match text.split_once('/') {
            // A tag or a digest is no prefix of anything else, and is compared as it stands.
            Some((host, path)) if path.contains([':', '@']) => {
                let host = reference::prefix(host)?;
                Ok(Self::Name(format!("{host}/{path}")))
            }
            _ => reference::prefix(text).map(Self::Name),
        }
    }

    /// How much of a full name this is the first part of.
    pub fn matched(&self, name: &str) -> Option<usize> {
        match self {
            Self::Name(prefix) => starts_with(name, prefix).then_some(prefix.len()),
            Self::Below(domain) => {
                let (domain, path) = domain.split_at(domain.find('/').unwrap_or(domain.len()));
                let (host, rest) = name.split_at(name.find('/').unwrap_or(name.len()));
                let is_below = host.len() > domain.len() && host.ends_with(domain);
                (is_below && (path.is_empty() || starts_with(rest, path))).then_some(host.len() + path.len())
            }
        }
    }

    /// How good a match is: the longer one, and of two the one that says more.
    fn rank(&self, name: &str) -> Option<(usize, bool)> {
        Some((self.matched(name)?, matches!(self, Self::Name(_))))
    }
}

/// Whether a name begins with a prefix that ends where a part of the name ends. A colon after a bare host begins a port,
/// which is another registry.
fn starts_with(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    let is_host = !prefix.contains('/');
    rest.is_empty() || rest.starts_with('/') || !is_host && rest.starts_with([':', '@'])
}

/// The best of several patterns for a name.
pub(super) fn best<'a, T>(all: &'a [T], name: &str, pattern: impl Fn(&T) -> &Pattern) -> Option<&'a T> {
    let ranked = all.iter().filter_map(|entry| Some((pattern(entry).rank(name)?, entry)));
    // The first of equals, where `max_by_key` takes the last.
    ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
}

/// When a mirror is asked for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullFrom {
    All,
    DigestsOnly,
    TagsOnly,
}

/// Where images are looked for before their registry is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub location: Location,
    pub is_insecure: bool,
    pub pull: PullFrom,
}

/// One `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub prefix: Pattern,
    /// What takes the prefix's place, if anything does.
    pub location: Option<String>,
    pub is_insecure: bool,
    pub is_blocked: bool,
    pub mirrors: Vec<Mirror>,
    /// Where it stands.
    pub path: Arc<Path>,
    /// In which line, the first being 1.
    pub line: usize,
}

/// What is asked of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) enum Wanted {
    /// What a name stands for.
    Manifest,
    /// Bytes with a digest, which are the same everywhere.
    Blob,
}

/// Where to look for an image, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Sources {
    pub mirrors: Vec<Reference>,
    /// The registry itself.
    pub own: Reference,
}

impl Rule {
    /// The image's place in its registry, if it may be used at all.
    pub fn own(&self, reference: &Reference) -> Result<Reference, RegistryError> {
        self.permit(reference)?;
        match &self.location {
            Some(location) => rewritten(reference, &self.prefix, location),
            None => Ok(reference.clone()),
        }
    }

    /// Refuses images that are blocked.
    pub fn permit(&self, reference: &Reference) -> Result<(), RegistryError> {
        match self.is_blocked {
            false => Ok(()),
            true => Err(RegistryError::Blocked {
                name: reference.to_string(),
                path: self.path.to_path_buf(),
                line: self.line,
            }),
        }
    }
}

impl Mirror {
    pub fn is_for(&self, reference: &Reference, wanted: Wanted) -> bool {
        match (wanted, self.pull) {
            (Wanted::Blob, _) | (_, PullFrom::All) => true,
            (_, PullFrom::DigestsOnly) => reference.digest.is_some(),
            (_, PullFrom::TagsOnly) => reference.digest.is_none(),
        }
    }
}

/// The image with another first part of its name; tag and digest stay.
pub(super) fn rewritten(
    reference: &Reference,
    prefix: &Pattern,
    location: &str,
) -> Result<Reference, RegistryError> {
    let full = reference.to_string();
    let name = format!("{}/{}", reference.registry, reference.repository);
    let matched = prefix.matched(&full).unwrap_or_default().min(name.len());
    let moved = format!("{location}{}", &name[matched..]);
    match moved.split_once('/') {
        Some((registry, repository)) => Ok(Reference {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            ..reference.clone()
        }),
        None => Err(RegistryError::NoRepository { name: full, location: location.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_a_part_of_the_name_ends() {
        let digest = format!("@sha256:{}", "0".repeat(64));
        for (prefix, name, want) in [
            ("example.com", "example.com/a", Some(11)),
            ("example.com", "example.com", Some(11)),
            ("example.com", "example.com:5000/a", None),
            ("example.com", "example.comic/a", None),
            ("example.com:5000", "example.com:5000/a", Some(16)),
            ("example.com:5000", "example.com:50000/a", None),
            ("example.com/a", "example.com/a/b:1", Some(13)),
            ("example.com/a", "example.com/a:1", Some(13)),
            ("example.com/a", "example.com/ab", None),
            ("example.com/a:1", "example.com/a:1", Some(15)),
            ("example.com/a:1", "example.com/a:10", None),
            ("docker.io", "docker.io/library/debian", Some(9)),
            ("index.docker.io", "docker.io/library/debian", Some(9)),
            ("registry-1.docker.io/library", "docker.io/library/debian", Some(17)),
            ("*.example.com", "a.example.com/x", Some(13)),
            ("*.example.com", "b.a.example.com/x", Some(15)),
            ("*.example.com", "example.com/x", None),
            ("*.example.com", "a.example.com:5000/x", None),
            ("*.example.com:5000", "a.example.com:5000/x", Some(18)),
            ("*.example.com", "evilexample.com/x", None),
            ("*.example.com", "host/a.example.com/x", None),
            ("*.example.com/x", "a.example.com/x/y", Some(15)),
            ("*.example.com/x", "a.example.com/xy", None),
            ("localhost", "localhost/x", Some(9)),
            ("[::1]:5000", "[::1]:5000/x", Some(10)),
        ] {
            let pattern = Pattern::parse(prefix).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(pattern.matched(name), want, "{prefix} {name}");
        }
        let pinned = Pattern::parse(&format!("example.com/a{digest}")).expect("a prefix");
        assert!(pinned.matched(&format!("example.com/a{digest}")).is_some());
        for bad in
            ["", "/a", "a b", "*", "*example.com", "a.*.com", "example.com/", "example.com//a", "http://a"]
        {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_and_a_name_before_a_wildcard() {
        let patterns: Vec<Pattern> =
            ["*.example.com", "a.example.com", "a.example.com/x", "*.com", "a.example.com/x/y/z"]
                .iter()
                .map(|text| Pattern::parse(text).expect("a prefix"))
                .collect();
        for (name, want) in [
            ("a.example.com/q", Some("a.example.com")),
            ("b.example.com/q", Some(".example.com")),
            ("a.example.com/x/y", Some("a.example.com/x")),
            ("a.example.com/x/y/z:1", Some("a.example.com/x/y/z")),
            ("b.other.com/x", Some(".com")),
            ("b.other.org/x", None),
        ] {
            let found = best(&patterns, name, |pattern| pattern).map(|pattern| match pattern {
                Pattern::Name(text) | Pattern::Below(text) => text.as_str(),
            });
            assert_eq!(found, want, "{name}");
        }
    }

    #[test]
    fn another_place_takes_the_place_of_the_prefix() {
        for (prefix, location, name, want) in [
            ("example.com/foo", "internal/bar", "example.com/foo/image:1", "internal/bar/image:1"),
            ("example.com", "m:5000", "example.com/a/b", "m:5000/a/b"),
            ("example.com/a/b", "m:5000/c", "example.com/a/b:2", "m:5000/c:2"),
            ("example.com/a:1", "m:5000/c", "example.com/a:1", "m:5000/c:1"),
            ("docker.io", "m/hub", "debian", "m/hub/library/debian"),
            ("*.example.com", "m", "a.b.example.com/x", "m/x"),
        ] {
            let prefix = Pattern::parse(prefix).expect("a prefix");
            let moved = rewritten(&name.parse().expect("a reference"), &prefix, location).expect("a place");
            assert_eq!(moved.to_string(), want);
        }
        let whole = Pattern::parse("example.com/a").expect("a prefix");
        assert!(rewritten(&"example.com/a".parse().expect("a reference"), &whole, "m").is_err());
    }
}

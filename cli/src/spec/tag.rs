//! `-t REF`, in which `{git.sha}` and its like stand for what the commit is called that is built.

use std::{fmt, str::FromStr};

use oci::Reference;

/// One `-t`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagSpec {
    /// A name as it is.
    Plain(Reference),
    /// One with placeholders, in the order of the text.
    Template(Vec<Part>),
}

/// A part of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// What stands there.
    Text(String),
    /// What is put there.
    Git(GitName),
}

/// What a commit is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GitName {
    /// The whole hash.
    Sha,
    /// Its first seven digits.
    Short,
    /// The branch.
    Branch,
    /// The tag.
    Tag,
    /// The hash of the tree that is the context.
    Tree,
}

impl GitName {
    const ALL: [GitName; 5] = [Self::Sha, Self::Short, Self::Branch, Self::Tag, Self::Tree];

    /// What it is, in a word.
    pub fn noun(self) -> &'static str {
        match self {
            GitName::Sha | GitName::Short => "hash",
            GitName::Branch => "branch",
            GitName::Tag => "tag",
            GitName::Tree => "tree",
        }
    }
}

impl fmt::Display for GitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GitName::Sha => "{git.sha}",
            GitName::Short => "{git.short}",
            GitName::Branch => "{git.branch}",
            GitName::Tag => "{git.tag}",
            GitName::Tree => "{git.tree}",
        })
    }
}

/// Why something is no name for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagSpecError {
    /// Not the form of a reference.
    #[error(transparent)]
    Reference(#[from] oci::reference::ReferenceError),
    /// A digest is what comes of an image.
    #[error("a name to give cannot have a digest")]
    Digest,
    /// More than a tag may have, with what was put into it.
    #[error("a tag has at most {most} characters, and this one would have {length}: {0}", most = TAG_MAX, length = .0.len())]
    TooLong(String),
    /// Braces around something else.
    #[error(
        "unknown placeholder {0}: expected {{git.sha}}, {{git.short}}, {{git.branch}}, {{git.tag}} or {{git.tree}}"
    )]
    Placeholder(String),
}

/// What stands behind the hash of a commit over which a work tree is laid.
pub const DIRTY: &str = "-dirty";
/// Digits of [`GitName::Short`].
pub const SHORT: usize = 7;
/// Characters of a tag (distribution-spec, "Pulling manifests").
const TAG_MAX: usize = 128;

impl TagSpec {
    /// The name, with what `called` says for each placeholder; letters that no tag may have become dashes, as in
    /// `feature/x`, and an underscore where the tag begins with them.
    ///
    /// # Errors
    /// What `called` says, or that the result is no name, or too long for a tag.
    pub fn expand<E: From<TagSpecError>>(
        &self,
        mut called: impl FnMut(GitName) -> Result<String, E>,
    ) -> Result<Reference, E> {
        let parts = match self {
            Self::Plain(reference) => return Ok(reference.clone()),
            Self::Template(parts) => parts,
        };
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(plain) => text += plain,
                Part::Git(name) => text += &as_tag(&called(*name)?, text.ends_with(':')),
            }
        }
        match text.rsplit_once(':') {
            // Cut off, it would be another name's tag.
            Some((_, tag)) if tag.len() > TAG_MAX && !tag.contains('/') => {
                Err(TagSpecError::TooLong(tag.to_owned()).into())
            }
            _ => Ok(reference(&text)?),
        }
    }
}

/// What of a name can be in a tag, whose first letter is an ASCII letter, a digit or an underscore.
fn as_tag(name: &str, begins: bool) -> String {
    let fine = |(at, character): (usize, char)| match character {
        '_' | 'a'..='z' | 'A'..='Z' | '0'..='9' => character,
        _ if begins && at == 0 => '_',
        '.' => character,
        _ => '-',
    };
    name.chars().enumerate().map(fine).collect()
}

fn reference(text: &str) -> Result<Reference, TagSpecError> {
    let reference: Reference = text.parse()?;
    if reference.digest.is_some() { Err(TagSpecError::Digest) } else { Ok(reference) }
}

impl FromStr for TagSpec {
    type Err = TagSpecError;

    fn from_str(text: &str) -> Result<Self, TagSpecError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(begin) = rest.find('{') {
            let end = rest[begin..].find('}').map_or(rest.len(), |end| begin + end + 1);
            let placeholder = &rest[begin..end];
            let name = GitName::ALL.into_iter().find(|name| name.to_string() == placeholder);
            let name = name.ok_or_else(|| TagSpecError::Placeholder(placeholder.to_owned()))?;
            parts.extend((begin > 0).then(|| Part::Text(rest[..begin].to_owned())));
            parts.push(Part::Git(name));
            rest = &rest[end..];
        }
        if parts.is_empty() {
            return reference(text).map(Self::Plain);
        }
        parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
        let spec = Self::Template(parts);
        // Whatever a commit is called, the rest must be a name.
        spec.expand(|_| Ok::<_, TagSpecError>("0".to_owned()))?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let spec: TagSpec = text.parse().map_err(|error: TagSpecError| error.to_string())?;
        let called = |name| match name {
            GitName::Branch => Ok("feature/über x".to_owned()),
            GitName::Tag => Ok("-v1.4+2".to_owned()),
            name => Ok::<_, TagSpecError>(format!("{name:?}").to_lowercase()),
        };
        spec.expand(called).map(|reference| reference.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn placeholders_become_what_the_commit_is_called() {
        for (text, expected) in [
            ("h.example/a:1", "h.example/a:1"),
            ("h.example/a:{git.sha}", "h.example/a:sha"),
            ("h.example/a:x-{git.short}-{git.tree}", "h.example/a:x-short-tree"),
            ("h.example/a:{git.branch}", "h.example/a:feature--ber-x"),
            ("h.example/a:{git.tag}", "h.example/a:_v1.4-2"),
            ("h.example/a:x{git.tag}", "h.example/a:x-v1.4-2"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_before_anything_is_built() {
        for (text, expected) in [
            ("a:{git.sah}", "unknown placeholder {git.sah}: expected {git.sha}"),
            ("a:{git.sha", "unknown placeholder {git.sha: expected"),
            ("UPPER:{git.sha}", "invalid"),
            ("a:{git.sha}/", "invalid"),
            (
                &format!("a:{}{{git.branch}}", "x".repeat(115)),
                "at most 128 characters, and this one would have 129: xxx",
            ),
        ] {
            let error = expanded(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert_eq!(digest.parse::<TagSpec>(), Err(TagSpecError::Digest));
    }
}

//! What `-t` says of the commit that is built.

use executor::git::Called;
use oci::Reference;

use super::RequestError;
use crate::spec::tag::{DIRTY, GitName, SHORT, TagSpec, TagSpecError};

/// The names of `-t`, with what the commit is called in their placeholders.
///
/// # Errors
/// There is no commit, or it has no such name, or several.
pub fn tags(specs: &[TagSpec], called: Option<&Called>) -> Result<Vec<Reference>, RequestError> {
    let name = |name: GitName| -> Result<String, RequestError> {
        let called = called.ok_or(RequestError::NoGit(name))?;
        let plain = match name {
            GitName::Sha => called.sha.clone(),
            GitName::Short => called.sha.chars().take(SHORT).collect(),
            GitName::Tree => called.tree.clone(),
            GitName::Branch => only(name, &called.branches, called)?,
            GitName::Tag => only(name, &called.tags, called)?,
        };
        Ok(if called.is_dirty { plain + DIRTY } else { plain })
    };
    specs.iter().map(|spec| spec.expand(name)).collect()
}

fn only(name: GitName, names: &[String], called: &Called) -> Result<String, RequestError> {
    match names {
        [only] => Ok(only.clone()),
        _ => Err(RequestError::NotCalled { name, commit: called.sha.clone(), found: names.to_vec() }),
    }
}

impl From<TagSpecError> for RequestError {
    fn from(error: TagSpecError) -> Self {
        Self::Tag(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(branches: &[&str], is_dirty: bool) -> Called {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (sha, tree) = ("0123456789".repeat(4), "9876543210".repeat(4));
        Called { sha, tree, time: 1_763_806_800, is_dirty, branches: names(branches), tags: names(&["v1"]) }
    }

    fn expanded(text: &str, called: Option<&Called>) -> String {
        let specs = [text.parse().expect("a template")];
        match tags(&specs, called) {
            Ok(tags) => tags[0].to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn tags_are_called_as_the_commit_is() {
        let clean = called(&["main"], false);
        for (text, expected) in [
            ("h.example/a:{git.short}", "h.example/a:0123456"),
            ("h.example/a:{git.branch}-{git.tag}", "h.example/a:main-v1"),
            ("h.example/a:1", "h.example/a:1"),
        ] {
            assert_eq!(expanded(text, Some(&clean)), expected);
        }
        assert_eq!(
            expanded("h.example/a:{git.short}", Some(&called(&[], true))),
            "h.example/a:0123456-dirty"
        );
    }

    #[test]
    fn a_name_that_is_none_or_several_is_an_error() {
        let error = expanded("h.example/a:{git.branch}", Some(&called(&[], false)));
        assert!(error.contains("0123456") && error.contains("no branch"), "{error}");
        let error = expanded("h.example/a:{git.branch}", Some(&called(&["a", "b"], false)));
        assert!(error.contains("a, b"), "{error}");
        assert!(expanded("h.example/a:{git.sha}", None).contains("--git"));
    }
}

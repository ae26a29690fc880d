//! What an image says of the commit it was built from: names for `-t`, labels, annotations, and when it was made.

use std::collections::BTreeMap;

use executor::git::Called;
use exporter::{MediaTypes, assemble::rfc3339};
use oci::Reference;

use super::RequestError;
use crate::{
    outputs::Output,
    spec::tag::{GitName, SHORT, TagSpec, TagSpecError},
};

/// The hash of the commit (image-spec, annotations.md, "Pre-Defined Annotation Keys").
const REVISION: &str = "org.opencontainers.image.revision";
/// When it was committed.
const CREATED: &str = "org.opencontainers.image.created";
/// What stands behind a hash that is not all of it.
const DIRTY: &str = "-dirty";

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

/// What labels and annotations say.
fn told(called: &Called) -> [(&'static str, String); 2] {
    let dirty = if called.is_dirty { DIRTY } else { "" };
    [(REVISION, format!("{}{dirty}", called.sha)), (CREATED, rfc3339(called.time))]
}

/// Adds labels for the commit; those of the command line stay.
pub fn label(labels: &mut BTreeMap<String, String>, called: &Called) {
    for (key, value) in told(called) {
        labels.entry(key.to_owned()).or_insert(value);
    }
}

/// Adds annotations for the commit to each image, and to an index of them, where they have a place.
pub fn annotate(outputs: &mut [Output], called: &Called) {
    for output in outputs {
        let is_image = matches!(output.to, exporter::Output::Image(_));
        if !is_image || output.form.packing.media_types == MediaTypes::Docker {
            continue;
        }
        let annotations = &mut output.form.annotations;
        for (key, value) in told(called) {
            annotations.manifest.all.entry(key.to_owned()).or_insert_with(|| value.clone());
            annotations.index.entry(key.to_owned()).or_insert(value);
        }
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

    #[test]
    fn what_the_user_has_labelled_stays() {
        let mut labels = [(REVISION.to_owned(), "mine".to_owned())].into();
        label(&mut labels, &called(&[], true));
        assert_eq!(labels[REVISION], "mine");
        assert_eq!(labels[CREATED], "2025-11-22T10:20:00Z");
    }
}

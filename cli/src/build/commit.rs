//! What an image says of the commit it was built from: labels, annotations, and when it was made.

use std::collections::BTreeMap;

use exporter::{Annotations, MediaTypes, assemble::rfc3339};

use crate::{inputs::BuiltFrom, spec::tag::DIRTY};

/// The hash of the commit (image-spec, annotations.md, "Pre-Defined Annotation Keys").
const REVISION: &str = "org.opencontainers.image.revision";
/// When it was committed.
const CREATED: &str = "org.opencontainers.image.created";

fn told(commit: &BuiltFrom) -> [(&'static str, String); 2] {
    let dirty = if commit.is_dirty { DIRTY } else { "" };
    [(REVISION, format!("{}{dirty}", commit.sha)), (CREATED, rfc3339(commit.time))]
}

/// Adds labels for the commit; those of the command line stay.
pub fn label(labels: &mut BTreeMap<String, String>, commit: &BuiltFrom) {
    for (key, value) in told(commit) {
        labels.entry(key.to_owned()).or_insert(value);
    }
}

/// Adds annotations for the commit to each image, and to an index of them; Docker's media types have no place for any.
pub fn annotate(annotations: &mut Annotations, media_types: MediaTypes, commit: &BuiltFrom) {
    if media_types == MediaTypes::Docker {
        return;
    }
    for (key, value) in told(commit) {
        annotations.manifest.all.entry(key.to_owned()).or_insert_with(|| value.clone());
        annotations.index.entry(key.to_owned()).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_has_said_stays() {
        let commit = BuiltFrom { sha: "0123".to_owned(), time: 1_763_806_800, is_dirty: true };
        let mut labels = [(REVISION.to_owned(), "mine".to_owned())].into();
        label(&mut labels, &commit);
        assert_eq!((labels[REVISION].as_str(), labels[CREATED].as_str()), ("mine", "2025-11-22T10:20:00Z"));
        let mut annotations = Annotations::default();
        annotate(&mut annotations, MediaTypes::Docker, &commit);
        assert!(annotations.is_empty());
        annotate(&mut annotations, MediaTypes::Oci, &commit);
        assert_eq!(annotations.manifest.all[REVISION], "0123-dirty");
        assert_eq!(annotations.index, annotations.manifest.all);
    }
}

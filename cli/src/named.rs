//! Why a name leads nowhere that a person has seen a build give: `-t` alone puts an image nowhere, where docker would have it in
//! its store. Only told beside the error of a registry that could not give the image.

use std::path::Path;

use oci::Reference;

use crate::history::{self, Ending};

/// How many builds are looked at, from the last one on.
const BUILDS: usize = 100;

/// What to say if a build of this store has named an image so and put it nowhere. What cannot be read says nothing.
pub fn hint(store: &Path, reference: &Reference) -> Option<String> {
    let wanted = reference.with_default_tag();
    let is_meant = |tag: &String| tag.parse::<Reference>().is_ok_and(|tag| tag.with_default_tag() == wanted);
    let builds = history::list(store).ok()?;
    let build = builds.into_iter().take(BUILDS).find(|id| {
        let entry = history::read(store, id);
        entry.is_ok_and(|entry| entry.asked.tags.iter().any(is_meant) && went_nowhere(&entry.result))
    })?;
    Some(format!(
        "build {build} gave the name with -t, which alone puts an image nowhere: build again with --push, or with \
         -o type=oci,dest=FILE and name FILE"
    ))
}

fn went_nowhere(result: &Ending) -> bool {
    matches!(result, Ending::Completed { destinations, .. } if destinations.is_empty())
}

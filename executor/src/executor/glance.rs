//! What a look at a context came to, remembered with all that was seen: where the next look sees the same, nobody has to
//! put the listing together, let alone hash it.
//!
//! `ROOT/glances/HEX` is named after the look (place, selector, ignore rules, modes). It is written only for looks in which
//! every file was in a state that says what it holds from now on (see [`crate::context::Index`]), and believed only
//! where the [print](crate::context::ContextSight::print) is the same. One that is missing or damaged costs a listing.

use std::path::{Path, PathBuf};

use oci::{
    TreeDigest,
    store::{Store, checked},
};
use serde::{Deserialize, Serialize};

/// Version of the file format.
const VERSION: u32 = 1;

/// What a look came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Glance {
    /// Stands for all that was seen.
    pub(super) print: TreeDigest,
    /// The identity of the files.
    pub(super) digest: TreeDigest,
    /// The first path whose mode was normalised, for a notice.
    pub(super) normalised: Option<String>,
}

impl Glance {
    /// What the look of this name came to when it last saw the same.
    pub(super) fn recall(store: &Store, name: &TreeDigest, print: &TreeDigest) -> Option<Self> {
        let path = path(name);
        let glance: Self = checked::read(&store.root().join(&path), VERSION).ok().flatten()?;
        store.touch(&path);
        (glance.print == *print).then_some(glance)
    }

    /// Writes it down. A store that does not take it costs the next build a listing.
    pub(super) fn keep(&self, store: &Store, name: &TreeDigest) {
        let written = checked::encode(VERSION, self).map(|bytes| store.write_loose(&path(name), &bytes));
        drop(written);
    }
}

fn path(name: &TreeDigest) -> PathBuf {
    Path::new("glances").join(name.hex())
}

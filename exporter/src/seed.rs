//! Finds an older layer that is much like a new one: the same COPY after one file was edited, on whatever base.
//!
//! Each sealed layer leaves a few *hints* (`seeds/HEX`), named by the smallest digests among those of its contents and
//! of its paths, which hold the digest of its tree. Two layers that share most of their files share most of these (the
//! idea of MinHash: the chance that the smallest of a set is in another is the part they have in common), so a new layer
//! looks under its own smallest and takes the tree it finds most often. The last layer wins a hint. A hint that is wrong,
//! old or gone costs time and nothing else: what is shared is found by comparing trees, and verified by content.

use std::{
    cmp::Reverse,
    path::{Path, PathBuf},
};

use crate::{old::OldBlob, places::content_length};
use oci::{
    ContentDigest, EntryKind, Tree, TreeDigest,
    store::{
        Store, StoreError,
        sealed::{self, Hint},
    },
};

/// Layers with less in their files are made anew each time.
const WORTH: u64 = 1024 * 1024;
/// Hints of each kind that a layer leaves.
const HINTS: usize = 2;

/// The blob of this name of a layer much like `tree`, if there is one.
pub(crate) fn find(store: &Store, digest: &TreeDigest, tree: &Tree, name: &str) -> Option<OldBlob> {
    let read = |path: PathBuf| Hint::read(&store.root().join(path));
    let hints = hints(tree, name).into_iter().filter_map(read);
    let found: Vec<_> = hints.map(|hint| hint.tree).filter(|found| found != digest).collect();
    let votes = |tree: &TreeDigest| found.iter().filter(|other| *other == tree).count();
    let mut candidates = found.clone();
    candidates.sort_by_key(|tree| (Reverse(votes(tree)), *tree));
    candidates.dedup();
    let open = |tree: TreeDigest| OldBlob::open(store, &tree, name, &sealed::read(store, &tree, name)?);
    candidates.into_iter().find_map(open)
}

/// Lets later layers find this one, whose blob and record are in place.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn leave(store: &Store, digest: &TreeDigest, tree: &Tree, name: &str) -> Result<(), StoreError> {
    let hint = Hint { tree: *digest };
    hints(tree, name).iter().try_for_each(|path| hint.leave(store, path))
}

/// Where the hints of a layer are, relative to the store's root.
fn hints(tree: &Tree, name: &str) -> Vec<PathBuf> {
    if tree.entries().iter().map(content_length).sum::<u64>() < WORTH {
        return Vec::new();
    }
    let (mut contents, mut paths) = (Vec::new(), Vec::new());
    for entry in tree.entries() {
        if let EntryKind::File { content, size: 1.. } = &entry.kind {
            contents.push(named(name, "content", content.as_bytes()));
            paths.push(named(name, "path", &entry.path));
        }
    }
    let smallest = |mut digests: Vec<ContentDigest>| {
        digests.sort_unstable();
        digests.dedup();
        digests.truncate(HINTS);
        digests
    };
    let hints = smallest(contents).into_iter().chain(smallest(paths));
    hints.map(|hint| Path::new("seeds").join(hint.hex())).collect()
}

fn named(name: &str, kind: &str, what: &[u8]) -> ContentDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("seed {name} {kind} ").as_bytes()).update(what);
    hasher.finalize().into()
}

//! Where snapshots lie in a store, and whether what is said to be there is: whoever relies on a place pins it first.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci::{
    Layer, Snapshot, TreeDigest,
    store::{Store, StoreError},
};
use rustix::fs::{Mode, OFlags};

use super::{Meta, SnapshotError, materialise};

/// Pins all that the layers of snapshots may lie in, before it is looked for, by one write.
///
/// # Errors
/// The store's.
pub fn pin_layers<'a>(
    store: &Store,
    snapshots: impl IntoIterator<Item = &'a Snapshot>,
) -> Result<(), StoreError> {
    pin_chain(store, snapshots.into_iter().flat_map(Snapshot::chain))
}

pub(super) fn pin_chain<'a>(
    store: &Store,
    chain: impl IntoIterator<Item = (TreeDigest, &'a Layer)>,
) -> Result<(), StoreError> {
    let mut pins = BTreeSet::new();
    for (digest, layer) in chain {
        pins.insert(directory(store, &digest));
        if let Layer::Built(tree) = layer {
            pins.insert(directory(store, &Snapshot::digest_of_one(layer)));
            pins.extend([tree_file(tree), oci::store::sealed::directory(tree)]);
        }
    }
    store.pin(&pins.into_iter().collect::<Vec<_>>())
}

/// Whether a layer on top of a chain can be had. Of one that a step made the store must have the tree, and the bytes: in
/// a directory or in a blob; one of a base image can be had from elsewhere.
pub fn holds_layer(store: &Store, chain: &TreeDigest, layer: &Layer) -> bool {
    match layer {
        Layer::Base(_) => true,
        Layer::Built(tree) => {
            store.touch(&tree_file(tree));
            store.root().join(tree_file(tree)).is_file() && materialise::holds_bytes(store, chain, tree)
        }
    }
}

pub(super) fn holds_directory(store: &Store, chain: &TreeDigest) -> bool {
    let directory = directory(store, chain);
    let is_there = Meta::read(&directory).is_ok_and(|meta| meta.is_some());
    if is_there {
        store.touch(&directory);
    }
    is_there
}

/// Name of the directory that holds a layer's files.
pub(super) const FILES: &str = "fs";

pub(super) fn directory(store: &Store, chain: &TreeDigest) -> PathBuf {
    store.area("snapshots").join(chain.hex())
}

pub(super) fn files(store: &Store, chain: &TreeDigest) -> PathBuf {
    directory(store, chain).join(FILES)
}

pub(super) fn tree_file(tree: &TreeDigest) -> PathBuf {
    Path::new("trees").join(tree.hex())
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| SnapshotError::io("open", path)(errno.into()))
}

//! What the files of a context were, by the digest that stands for them in keys: `ROOT/inventories/HEX`, so that a later
//! build can name the file that differs.
//!
//! Nothing depends on them but explanations: one that is missing, damaged or of another version is not there.

use std::path::{Path, PathBuf};

use oci::{
    TreeDigest,
    store::{Store, StoreError, checked},
};
use solver::explain::Inventory;

/// Where inventories lie in a store.
pub const AREA: &str = "inventories";
/// Version of the content of an inventory's file.
pub const VERSION: u32 = 1;

/// The inventory of what [`solver::key::source_key`] calls `files`, if there is one.
pub fn read(root: &Path, files: &TreeDigest) -> Option<Inventory> {
    checked::read(&root.join(path(files)), VERSION).ok().flatten()
}

/// Writes an inventory that is not there yet.
///
/// # Errors
/// The store does not take it.
pub fn write(store: &Store, files: &TreeDigest, inventory: &Inventory) -> Result<(), StoreError> {
    checked::write(store, &path(files), VERSION, inventory)
}

/// Where in a store the inventory of these files is, or would be.
pub fn path(files: &TreeDigest) -> PathBuf {
    Path::new(AREA).join(files.hex())
}

//! Why a step ran: what differs between what it was made of and what is remembered.
//!
//! Pure: records, and the inventories that their pre-images name, come from the caller.

use std::collections::BTreeMap;

use oci::ContentDigest;
use serde::{Deserialize, Serialize};

/// The files behind one digest of a pre-image, by path from the source's root, without a leading slash. Paths that are
/// not text are shown as people read them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory(pub BTreeMap<String, Item>);

/// One thing of an [`Inventory`], as far as it is part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Permission bits, as they enter the key.
    pub mode: u32,
}

/// What an [`Item`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    /// A directory.
    Directory,
    /// A regular file and its content.
    File(ContentDigest),
    /// A symbolic link and where it points.
    Link(String),
    /// Anything else, in words.
    Other(String),
}

//! What the store remembers of built layers that have been made into blobs: `sealed/TREE/NAME.json`.
//!
//! NAME says all that decides a blob's bytes beside the tree: the encoder and how times enter (`gzip-...-cdc1.normal`).
//! A layer of a base image that was packed anew has no tree: TREE is [`crate::Layer::tree`] there, and NAME ends in
//! [`BASE`].
//!
//! One tree may have several blobs, and each of them holds the content of all its files. A blob is durable before its
//! record is written, but may be collected after; so whoever reads a record asks whether the blob is still there. A file
//! that cannot be read, or proves to be damaged, is no record: the layer is sealed again and the record replaced.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    checked::{self, CheckedError},
};
use crate::{
    descriptor::Descriptor,
    digest::{DiffId, TreeDigest},
};

/// The version of the records; another one is no record.
pub const VERSION: u32 = 1;
/// The version of hints; another one is none.
const HINT_VERSION: u32 = 1;
const EXTENSION: &str = "json";
/// What the name of a blob's chunk table ends in, a checked file beside the record that only its writer reads.
pub const CHUNKS: &str = "chunks";
/// What the name of a base layer's blob has in the place of how times enter: they stay as they are.
pub const BASE: &str = "base";
/// What the name of a built layer's blob ends in where times enter as the layer's tree has them.
pub const NORMAL: &str = "normal";

/// The blob of a built layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedRecord {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: DiffId,
    /// The blob: its media type says how the tar is compressed.
    pub descriptor: Descriptor,
}

/// What is left for layers much like a sealed one to find it by, a checked file each; where, is for who looks for them to say.
/// One that is wrong, old or gone costs time and nothing else.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hint {
    /// The sealed layer.
    pub tree: TreeDigest,
}

impl Hint {
    /// The hint in a file, if it is one.
    pub fn read(file: &Path) -> Option<Self> {
        checked::read(file, HINT_VERSION).ok().flatten()
    }

    /// Leaves it at a path relative to the store's root.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn leave(&self, store: &Store, path: &Path) -> Result<(), StoreError> {
        checked::write(store, path, HINT_VERSION, self)
    }
}

impl SealedRecord {
    /// Whether the blob is still in the store, with its size. Its bytes are not read.
    pub fn is_held(&self, store: &Store) -> bool {
        store.has_blob(&self.descriptor.digest, self.descriptor.size)
    }
}

/// The name of a built layer's blob that a remote cache has told of, with times as in [`NORMAL`]: it has the diff ID that was
/// told, and nobody has made it of the layer's files. So it is for those who compare what they read of it with the layer's
/// tree, and for builds that are told the same.
pub fn name_if_told(encoder: &str) -> String {
    format!("told-{encoder}.{NORMAL}")
}

/// The name of a blob that was told of, once all files of it have turned out to be those of the layer's tree.
pub fn name_if_read(encoder: &str) -> String {
    format!("read-{encoder}.{NORMAL}")
}

/// All files of this blob are those of the tree; remembers that, if it is one that a cache has told of.
///
/// # Errors
/// The record cannot be written.
pub fn note_read(store: &Store, tree: &TreeDigest, blob: &SealedRecord) -> Result<(), StoreError> {
    for (name, _) in all(store, tree).iter().filter(|(_, record)| record == blob) {
        if let Some(rest) = name.strip_prefix("told-") {
            write(store, tree, &format!("read-{rest}"), blob)?;
        }
    }
    Ok(())
}

/// Whether a file of a layer's records is that of a base layer, which no tree stands for.
pub fn is_of_base(file: &Path) -> bool {
    let name = file.extension().filter(|extension| *extension == EXTENSION).and_then(|_| file.file_stem());
    name.is_some_and(|name| Path::new(name).extension().is_some_and(|suffix| suffix == BASE))
}

/// Where the records of a built layer are, relative to the store's root.
pub fn directory(tree: &TreeDigest) -> PathBuf {
    Path::new("sealed").join(tree.hex())
}

/// Where a record is, relative to the store's root.
pub fn path(tree: &TreeDigest, name: &str) -> PathBuf {
    directory(tree).join(format!("{name}.{EXTENSION}"))
}

/// Where the chunk table of a blob is, relative to the store's root.
pub fn chunks_path(tree: &TreeDigest, name: &str) -> PathBuf {
    directory(tree).join(format!("{name}.{CHUNKS}"))
}

/// The record of this name, if there is a good one and its blob is in the store.
pub fn read(store: &Store, tree: &TreeDigest, name: &str) -> Option<SealedRecord> {
    let path = path(tree, name);
    store.pin(&[&path]).ok()?;
    let record: SealedRecord = checked::read(&store.root().join(&path), VERSION).ok()??;
    if !record.is_held(store) {
        return None;
    }
    store.touch(&path);
    Some(record)
}

/// What is wrong with the record of this name, for whoever found none; `None` where there never was one.
pub fn damage(store: &Store, tree: &TreeDigest, name: &str) -> Option<CheckedError> {
    let read = checked::read::<SealedRecord>(&store.root().join(path(tree, name)), VERSION);
    read.err().filter(CheckedError::is_damage)
}

/// All good records of a built layer whose blobs are in the store, by name.
pub fn all(store: &Store, tree: &TreeDigest) -> Vec<(String, SealedRecord)> {
    if store.pin(&[directory(tree)]).is_err() {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(store.root().join(directory(tree))) else { return Vec::new() };
    let name = |entry: fs::DirEntry| {
        let path = PathBuf::from(entry.file_name());
        let is_record = path.extension().is_some_and(|extension| extension == EXTENSION);
        is_record.then(|| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned)).flatten()
    };
    let mut names: Vec<_> = entries.flatten().filter_map(name).collect();
    names.sort();
    names.into_iter().filter_map(|name| read(store, tree, &name).map(|record| (name, record))).collect()
}

/// Whether the content of a built layer can be had from a blob, whichever.
pub fn is_held(store: &Store, tree: &TreeDigest) -> bool {
    !all(store, tree).is_empty()
}

/// Remembers a blob that is in place.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write(store: &Store, tree: &TreeDigest, name: &str, record: &SealedRecord) -> Result<(), StoreError> {
    checked::write(store, &path(tree, name), VERSION, record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MediaType, Tree};

    #[test]
    fn a_record_counts_while_it_is_whole_and_its_blob_is_there() {
        let directory = tempfile::tempdir().expect("temp");
        let store = Store::open(directory.path()).expect("a store");
        let tree = Tree::empty_digest();
        let seal = |name: &str, bytes: &[u8]| {
            let mut blob = store.blob_writer().expect("a blob");
            std::io::Write::write_all(&mut blob, bytes).expect("written");
            let (digest, _) = blob.commit().expect("stored");
            let descriptor = Descriptor::new(MediaType::OciLayer, digest, bytes.len() as u64);
            let record = SealedRecord { diff_id: digest.into(), descriptor };
            write(&store, &tree, name, &record).expect("written");
            record
        };
        assert!(!is_held(&store, &tree) && read(&store, &tree, "a.1").is_none());
        let (a, b) = (seal("a.1", b"one"), seal("b.2", b"two"));
        assert_eq!(read(&store, &tree, "a.1"), Some(a.clone()));
        assert_eq!(all(&store, &tree), [("a.1".to_owned(), a.clone()), ("b.2".to_owned(), b.clone())]);
        store.remove_blob(&a.descriptor.digest).expect("removed");
        assert_eq!(all(&store, &tree), [("b.2".to_owned(), b)]);
        let path = store.root().join(path(&tree, "b.2"));
        let mut bytes = std::fs::read(&path).expect("readable");
        bytes[40] ^= 1;
        std::fs::remove_file(&path).expect("ours");
        std::fs::write(&path, bytes).expect("ours");
        assert!(!is_held(&store, &tree), "a damaged record is none");
        assert!(
            damage(&store, &tree, "b.2")
                .is_some_and(|damage| damage.to_string().contains("b.2.json is damaged"))
        );
        assert!(damage(&store, &tree, "a.1").is_none(), "nor is one without its blob, but it is good");
    }
}

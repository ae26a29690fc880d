//! What stands beside a snapshot's `fs/`: what is known of the layer that its files do not say. `meta.json` is read
//! whenever the snapshot is used; `brought`, which can be long, only where it is asked for: 32 bytes a digest, and the
//! BLAKE3 of all of them at its end. Both prove themselves.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oci::{
    ContentDigest, Entry, EntryKind, Tree, TreeDigest,
    store::{
        StoreError,
        checked::{self, CheckedError, Damage},
    },
    tree::TIME_LIMIT,
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::BLOCK;
use crate::listing::Owners;

const META: &str = "meta.json";
const BROUGHT: &str = "brought";

/// Version of the format of `meta.json` and of the directories beside it.
const META_VERSION: u32 = 3;

/// The content of `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The layer's own digest.
    pub layer: TreeDigest,
    /// The digest of the chain below; `None` for a layer on top of nothing.
    pub parent: Option<TreeDigest>,
    /// What the layer's files take on disk, about, in bytes.
    pub bytes: u64,
    /// No file of the layer was stamped later; later than the stamps of all layers below.
    pub stamp: Stamp,
    /// Whether nothing of the layers below is left.
    pub opaque_root: bool,
    /// Owners, in the whole snapshot, that the disk could not hold.
    pub owners: Vec<Owned>,
}

/// One of [`Owners`] in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owned {
    path: PathText,
    uid: u32,
    gid: u32,
}

/// A path as people read it, or its bytes where it is not text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl Meta {
    /// Reads the file in a snapshot's directory; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or has another version.
    pub fn read(directory: &Path) -> Result<Option<Self>, CheckedError> {
        checked::read(&directory.join(META), META_VERSION)
    }

    /// Writes the file into a directory that is not a snapshot yet.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), StoreError> {
        checked::write_beside(&directory.join(META), META_VERSION, self)
    }

    /// Owners, in the whole snapshot, that the disk could not hold.
    pub fn owners(&self) -> Owners {
        let owner = |owned: &Owned| {
            let path = match &owned.path {
                PathText::Text(text) => text.clone().into_bytes(),
                PathText::Bytes(bytes) => bytes.clone(),
            };
            (path, (owned.uid, owned.gid))
        };
        self.owners.iter().map(owner).collect()
    }
}

/// Whether an error of [`Meta::read`] means that the snapshot must be made again: it is damaged, or another version's.
pub(super) fn is_useless(error: &CheckedError) -> bool {
    error.is_damage() || matches!(error, CheckedError::Version { .. })
}

/// Reads the contents that were brought with one layer; `None` where nothing says which.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read_brought(directory: &Path) -> Result<Option<BTreeSet<ContentDigest>>, CheckedError> {
    let path = directory.join(BROUGHT);
    let Some(bytes) = checked::read_binary(&path)? else { return Ok(None) };
    let (digests, rest) = bytes.as_chunks::<32>();
    match rest.is_empty() {
        true => Ok(Some(digests.iter().copied().map(ContentDigest::new).collect())),
        false => Err(CheckedError::Damaged { path, what: Damage::Form }),
    }
}

/// Writes the contents that were brought with one layer.
///
/// # Errors
/// The file cannot be written.
pub fn write_brought(directory: &Path, brought: &BTreeSet<ContentDigest>) -> Result<(), StoreError> {
    let bytes = brought.iter().flat_map(|digest| *digest.as_bytes()).collect();
    checked::write_binary(&directory.join(BROUGHT), bytes)
}

/// The form of [`Owners`] that stands in [`Meta`].
pub fn owned(owners: Owners) -> Vec<Owned> {
    let owned = |(path, (uid, gid))| {
        let path =
            String::from_utf8(path).map_or_else(|bytes| PathText::Bytes(bytes.into_bytes()), PathText::Text);
        Owned { path, uid, gid }
    };
    owners.into_iter().map(owned).collect()
}

/// A moment of this machine's clock, as a file's time on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Whole Unix seconds, rounded down.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

impl Stamp {
    /// Now, but later than `before`; `None` if the clock is before 2025, when no layer can have been made.
    pub fn now_after(before: Option<Stamp>) -> Option<Stamp> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let now = Self { seconds: i64::try_from(now.as_secs()).ok()?, nanoseconds: now.subsec_nanos() };
        let next = before.map_or(now, Stamp::next).max(now);
        (now.seconds >= TIME_LIMIT).then_some(next)
    }

    /// Now, by the clock that gives files their times: it ticks a few hundred times a second and lags behind
    /// [`SystemTime::now`] until it does (clock_gettime(2), `CLOCK_REALTIME_COARSE`).
    pub(crate) fn of_files_now() -> Stamp {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
    }

    /// A millisecond later: file systems and tools round, but none of those we know more than that.
    fn next(self) -> Stamp {
        self.later(1_000_000)
    }

    /// So many nanoseconds later.
    pub(crate) fn later(self, nanoseconds: u64) -> Stamp {
        let nanoseconds = u64::from(self.nanoseconds) + nanoseconds;
        let (seconds, nanoseconds) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
        Self { seconds: self.seconds.saturating_add_unsigned(seconds), nanoseconds: nanoseconds as u32 }
    }
}

impl From<Stamp> for SystemTime {
    /// The epoch for what was before it.
    fn from(Stamp { seconds, nanoseconds }: Stamp) -> Self {
        UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or_default(), nanoseconds)
    }
}

/// What the files of a layer take on disk, about.
pub(super) fn bytes_on_disk(tree: &Tree) -> u64 {
    let bytes = |entry: &Entry| match entry.kind {
        EntryKind::File { size, .. } => size.next_multiple_of(BLOCK),
        EntryKind::Directory => BLOCK,
        _ => 0,
    };
    tree.entries().iter().map(bytes).sum()
}

/// The owners that hold in a snapshot after a layer came on top of it.
pub(super) fn owners_above(mut owners: Owners, tree: &Tree, written: &Owners) -> Owners {
    for entry in tree.entries() {
        let keeps_below = matches!(entry.kind, EntryKind::Directory);
        let keeps_itself = matches!(entry.kind, EntryKind::Opaque);
        if !keeps_itself {
            owners.remove(&entry.path);
        }
        if !keeps_below {
            let below = [&entry.path, &b"/"[..]].concat();
            owners.retain(|path, _| !path.starts_with(&below));
        }
        if let Some(owner) = written.get(&entry.path) {
            owners.insert(entry.path.clone(), *owner);
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_comes_back_and_damage_is_told() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let brought: BTreeSet<_> = ["a", "b"].map(|text| ContentDigest::of(text.as_bytes())).into();
        assert_eq!(read_brought(directory.path()).expect("readable"), None);
        write_brought(directory.path(), &brought).expect("it is written");
        assert_eq!(read_brought(directory.path()).expect("undamaged"), Some(brought));
        let file = directory.path().join(BROUGHT);
        std::fs::remove_file(&file).expect("it is removed");
        checked::write_binary(&file, vec![1; 33]).expect("it is written");
        assert!(read_brought(directory.path()).is_err_and(|error| error.is_damage()));
    }

    #[test]
    fn a_stamp_is_later_than_the_one_before_even_if_the_clock_goes_back() {
        let future = Stamp { seconds: i64::from(u32::MAX), nanoseconds: 999_500_000 };
        let after = Stamp::now_after(Some(future)).expect("the clock is set");
        assert_eq!(after, Stamp { seconds: future.seconds + 1, nanoseconds: 500_000 });
        let now = Stamp::now_after(None).expect("the clock is set");
        assert!(Stamp::now_after(Some(now)).expect("the clock is set") > now);
    }
}

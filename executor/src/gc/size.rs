//! What things take on disk: blocks, not lengths, each file once.
//!
//! To measure a directory is to walk it, and most of them never change. So what was measured is kept in `sizes.json`, by
//! path, inode and the time of the last change that the thing itself notes. The file is a cache: without it, or with a
//! damaged one, everything is measured anew.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use oci::store::{Store, checked};
use serde::{Deserialize, Serialize};

use super::Detail;

/// The file, from the root of the store on.
pub const FILE: &str = "sizes.json";
const VERSION: u32 = 1;

/// For this long, what a directory that has changed took before is near enough for a cap.
const RECENT: Duration = Duration::from_secs(600);

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    known: BTreeMap<PathBuf, Size>,
    /// Those of things that are still there.
    current: BTreeMap<PathBuf, Size>,
}

/// The size of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Size {
    bytes: u64,
    inode: u64,
    /// When its content changed last, as far as it says; nanoseconds since 1970.
    changed: u64,
    /// When it was measured, the same.
    measured: u64,
}

impl Sizes {
    pub(super) fn read(store: &Store) -> Self {
        let known = checked::read(&store.root().join(FILE), VERSION).ok().flatten().unwrap_or_default();
        Self { known, current: BTreeMap::new() }
    }

    /// Keeps what was measured, if anything was. What cannot be kept is measured again.
    pub(super) fn write(&self, store: &Store) {
        if self.current != self.known {
            let bytes = checked::encode(VERSION, &self.current);
            let _ = bytes.map(|bytes| store.write_loose(Path::new(FILE), &bytes));
        }
    }

    /// What a directory takes. `changed` is when its content changed last, where it can; `noted` what was noted of it when
    /// it was made, for those who want no more.
    pub(super) fn of(
        &mut self,
        root: &Path,
        path: &Path,
        changed: Option<SystemTime>,
        noted: Option<u64>,
        detail: Detail,
    ) -> u64 {
        let whole = root.join(path);
        let inode = fs::symlink_metadata(&whole).map_or(0, |metadata| metadata.ino());
        let now = nanoseconds(SystemTime::now());
        let changed = changed.map_or(0, nanoseconds);
        let known = self.known.get(path).filter(|size| size.inode == inode).copied();
        let is_good = |size: &Size| {
            let is_recent = now.saturating_sub(size.measured) < RECENT.as_nanos() as u64;
            size.changed == changed || (detail == Detail::Noted && is_recent)
        };
        if let Some(size) = known.filter(is_good) {
            self.current.insert(path.to_owned(), size);
            return size.bytes;
        }
        if let (Some(bytes), Detail::Noted) = (noted, detail) {
            return bytes;
        }
        let bytes = on_disk(&whole);
        self.current.insert(path.to_owned(), Size { bytes, inode, changed, measured: now });
        bytes
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// What a file or directory with all it holds takes on its file system, as `du` counts. What cannot be read is not counted.
pub(super) fn on_disk(path: &Path) -> u64 {
    let mut linked = HashSet::new();
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(path).same_file_system(true).into_iter().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let is_new = metadata.nlink() < 2 || metadata.is_dir() || linked.insert(metadata.ino());
        if is_new {
            bytes += blocks(&metadata);
        }
    }
    bytes
}

/// What one file or directory takes by itself.
pub(super) fn blocks(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

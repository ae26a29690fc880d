//! Cache mounts, whose bookkeeping alone is ours, and whatever lies in the store and is none of it.

use std::{fs, path::Path};

use super::{Check, Found, FsckError, digest_of, names};
use crate::cache_mounts;

const STRAY: &str = "nothing here knows it";
const COUNTS_AS_CHANGED: &str = "everything counts as changed for the next step that uses the cache mount";

/// Areas whose things are named by digests, and how these end.
const DIGESTS: &[(&str, &[&str])] = &[
    ("blobs/sha256", &[""]),
    ("snapshots", &[""]),
    ("catalogues", &[""]),
    ("trees", &[""]),
    ("sealed", &[""]),
    ("seeds", &[""]),
    ("records/definition", &[".json"]),
    ("records/content", &[".json"]),
    ("git/remotes", &[".sha1", ".sha256", ".sha1.lock", ".sha256.lock"]),
    ("git/checkouts", &[""]),
    ("downloads/records", &[".json"]),
    ("downloads/files", &[""]),
    ("inventories", &[""]),
    ("glances", &[""]),
];

impl Check<'_> {
    /// Things in the areas of the store that nothing has put there.
    pub(super) fn strays(&self, found: &mut Found) -> Result<(), FsckError> {
        for &(area, endings) in DIGESTS {
            for name in self.names(area)? {
                let text = name.to_str().unwrap_or_default();
                let is_ours =
                    endings.iter().any(|ending| text.strip_suffix(ending).and_then(digest_of).is_some());
                if !is_ours {
                    found.add(Path::new(area).join(&name), "it is no part of a store", STRAY);
                }
            }
        }
        for name in self.names("locks")? {
            let path = Path::new("locks").join(&name);
            let metadata = fs::symlink_metadata(self.store.root().join(&path));
            if metadata.is_ok_and(|metadata| !metadata.is_file()) {
                found.add(path, "it is no lock", STRAY);
            }
        }
        Ok(())
    }

    /// The ledgers of cache mounts.
    pub(super) fn mounts(&self, found: &mut Found) -> Result<(), FsckError> {
        for name in self.names("mounts")? {
            let id = Path::new("mounts").join(&name);
            let label = id.join("id");
            let told = fs::read(self.store.root().join(&label));
            if told.is_ok_and(|told| !cache_mounts::is_named(&name, &told)) {
                found.add(label, "it is another id", "it is written again");
            }
            for variant in self.names(&id.display().to_string())? {
                let variant = id.join(variant);
                let path = self.store.root().join(&variant);
                if !path.is_dir() {
                    continue;
                }
                for number in names(&path).map_err(FsckError::io(&path))? {
                    self.mount(&variant.join(number), found);
                }
            }
        }
        Ok(())
    }

    fn mount(&self, directory: &Path, found: &mut Found) {
        let path = self.store.root().join(directory);
        self.count("mounts", 1, 0);
        if cache_mounts::has_damaged_ledger(&path) {
            found.add(directory.join(cache_mounts::LEDGER), "its digest is wrong", COUNTS_AS_CHANGED);
        }
        if path.is_dir() && !path.join("fs").is_dir() {
            found.add(directory, "fs is missing", "the cache mount begins anew");
        }
    }
}

//! Tells a command that failed because the store's disk is full from one that failed for reasons of its own: it says so in
//! its own words at most, and what it wrote is gone when the user looks.

use oci::store::Store;
use rustix::fs::{StatVfs, statvfs};

use crate::{error::full_disk_hint, sandbox::Rung};

/// What to say when the disk of the store takes nothing more. To be asked while what a step wrote is still there. What a
/// layer that was being packed beside the step has found counts as well: it has given back by now what it had.
pub fn full_disk(store: &Store, rung: Rung) -> Option<String> {
    let lack = fullness(&statvfs(store.root()).ok()?, rung);
    let was_full = || store.was_full().then(|| " for this build".to_owned());
    lack.or_else(was_full).map(|lack| full_disk_hint(store.root(), &lack))
}

/// Which of its resources a file system has run out of. Some (btrfs) do not count inodes and say that they have none.
fn fullness(disk: &StatVfs, rung: Rung) -> Option<String> {
    // What is set aside for root is of use to root only.
    let (blocks, inodes) = match rung {
        Rung::Root | Rung::Chroot => (disk.f_bfree, disk.f_ffree),
        Rung::SubordinateIds | Rung::SingleId => (disk.f_bavail, disk.f_favail),
    };
    let free = blocks.saturating_mul(disk.f_frsize);
    match (blocks, inodes) {
        (0, _) => Some(format!(" ({free} bytes free)")),
        (_, 0) if disk.f_files > 0 => Some(format!(" (no inodes free, though {free} bytes are)")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_without_blocks_or_without_inodes() {
        let mut disk = statvfs("/").expect("there is a root");
        (disk.f_frsize, disk.f_files) = (4096, 100);
        for (free, available, inodes, files, rung, expected) in [
            (2, 1, 5, 100, Rung::Root, None),
            (0, 0, 5, 100, Rung::Root, Some(" (0 bytes free)")),
            (2, 0, 5, 100, Rung::Root, None),
            (2, 0, 5, 100, Rung::SingleId, Some(" (0 bytes free)")),
            (2, 2, 0, 100, Rung::SubordinateIds, Some(" (no inodes free, though 8192 bytes are)")),
            (2, 2, 0, 0, Rung::Root, None),
        ] {
            (disk.f_bfree, disk.f_bavail, disk.f_files) = (free, available, files);
            (disk.f_ffree, disk.f_favail) = (inodes, inodes);
            assert_eq!(fullness(&disk, rung).as_deref(), expected, "{free} {available} {inodes} {files}");
        }
    }
}

//! Which files were written to so lately that they may be written to again without another time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::{
    fd::AsFd,
    fs::{fstat, fstatfs},
    io::Errno,
};

use crate::listing::state::FileState;

/// The coarsest clock of a file system is FAT's with two seconds; one of a kernel is late by up to 10 ms.
const GRAIN: Duration = Duration::from_secs(3);
/// How far another machine's clock may be off.
const SKEW: Duration = Duration::from_secs(3600);

/// File systems that stamp files by this machine's clock, by their magic numbers (`linux/magic.h`, and the sources of
/// XFS, bcachefs, ZFS, exFAT and NTFS).
const OF_THIS_MACHINE: [u64; 13] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlay
    0x4d44,      // FAT
    0x2011_bab0, // exFAT
    0x7366_746e, // NTFS
    0x9660,      // ISO 9660
];

/// A moment before which a file must have been written to for last, for its state to say what it holds.
#[derive(Debug, Clone, Copy)]
pub struct Horizon {
    /// The device of which `near` is right.
    device: u64,
    near: Duration,
    /// For all others.
    far: Duration,
}

impl Horizon {
    /// For files that are looked at from now on, in an open directory and on other devices below it.
    ///
    /// # Errors
    /// What fstat(2) and fstatfs(2) say.
    pub fn of(root: impl AsFd) -> Result<Self, Errno> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (device, kind) = (fstat(&root)?.st_dev, fstatfs(&root)?.f_type as u64 & 0xffff_ffff);
        let far = now.saturating_sub(SKEW);
        let near = if OF_THIS_MACHINE.contains(&kind) { now.saturating_sub(GRAIN) } else { far };
        Ok(Self { device, near, far })
    }

    /// Whether a file in this state was last written to, and last changed otherwise, before.
    pub fn is_before(&self, state: &FileState) -> bool {
        let horizon = if state.device == self.device { self.near } else { self.far };
        let horizon = (horizon.as_secs() as i64, horizon.subsec_nanos());
        state.modified < horizon && state.changed < horizon
    }
}

#[cfg(test)]
impl Horizon {
    /// One before which everything was written to.
    pub(super) fn everything_settled() -> Self {
        let far = Duration::from_secs(i64::MAX as u64);
        Self { device: 0, near: far, far }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(device: u64, modified: i64, changed: i64) -> FileState {
        let (modified, changed) = ((modified, 0), (changed, 0));
        FileState { device, inode: 1, size: 1, mode: 0o100_644, modified, changed }
    }

    #[test]
    fn what_was_just_written_to_is_not_before() {
        let horizon = Horizon { device: 1, near: Duration::from_secs(9997), far: Duration::from_secs(6400) };
        for (device, modified, changed, before) in [
            (1, 100, 9996, true),
            (1, -5, 100, true),
            (1, 100, 9997, false),
            (1, 9998, 100, false),
            (1, 20_000, 100, false),
            (1, 100, 20_000, false),
            (2, 100, 9996, false),
            (2, 100, 6399, true),
        ] {
            assert_eq!(horizon.is_before(&state(device, modified, changed)), before, "{modified} {changed}");
        }
    }

    #[test]
    fn a_file_that_was_just_made_is_not_before() {
        let temp = tempfile::tempdir().expect("made");
        std::fs::write(temp.path().join("f"), "x").expect("written");
        let root = std::fs::File::open(temp.path()).expect("opened");
        let horizon = Horizon::of(&root).expect("asked");
        let stat = rustix::fs::stat(temp.path().join("f")).expect("there");
        assert!(!horizon.is_before(&FileState::of(&stat)));
    }
}

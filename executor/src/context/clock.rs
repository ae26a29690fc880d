//! Which files were written to so lately that they may be written to again without another time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::{
    fd::AsFd,
    fs::{fstat, fstatfs},
    io::Errno,
};

use crate::listing::state::FileState;

/// The coarsest clock of a file system ticks each second or two; one of a kernel is late by up to 10 ms.
const GRAIN: Duration = Duration::from_secs(3);
/// How far another machine's clock may be off.
const SKEW: Duration = Duration::from_secs(3600);

/// File systems that stamp files by this machine's clock, by their magic numbers (`linux/magic.h`, and the sources of
/// XFS, bcachefs, ZFS and NTFS3).
const OF_THIS_MACHINE: [u64; 10] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlay
    0x7366_746e, // NTFS
];

/// Those that another machine stamps, which keeps a time of change as well.
const OF_ANOTHER_MACHINE: [u64; 6] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
];

/// A moment before which a file must have been written to for last, for its state to say what it holds.
///
/// That needs a time of change that nobody can set. FAT and most of FUSE have none but the modification time, images
/// (squashfs, erofs, ISO 9660) have whatever their maker wrote, and the same in the next image on the same device: of
/// those, of file systems that we do not know, and of what else is mounted below a context, nothing is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Horizon {
    /// The only device of which it says anything; `None` for all.
    device: Option<u64>,
    /// `None` where no state is to be relied on.
    moment: Option<Duration>,
}

impl Horizon {
    /// For files that are looked at from now on, in an open directory.
    ///
    /// # Errors
    /// What fstat(2) and fstatfs(2) say.
    pub fn of(root: impl AsFd) -> Result<Self, Errno> {
        let (device, kind) = (fstat(&root)?.st_dev, fstatfs(&root)?.f_type as u64 & 0xffff_ffff);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { device: Some(device), moment: margin(kind).map(|margin| now.saturating_sub(margin)) })
    }

    /// Whether a file in this state was last written to, and last changed otherwise, before.
    pub fn is_before(&self, state: &FileState) -> bool {
        let Some(moment) = self.moment else { return false };
        let moment = (moment.as_secs() as i64, moment.subsec_nanos());
        self.device.is_none_or(|device| device == state.device)
            && state.modified < moment
            && state.changed < moment
    }
}

/// Whether an open directory's file system gives what changes a time that nobody can set, by this machine's clock.
///
/// # Errors
/// What fstatfs(2) says.
pub fn keeps_time_of_change(root: impl AsFd) -> Result<bool, Errno> {
    let kind = fstatfs(root)?.f_type as u64 & 0xffff_ffff;
    Ok(OF_THIS_MACHINE.contains(&kind))
}

/// How much older than a look a file's times must be on a file system, by its magic number.
fn margin(kind: u64) -> Option<Duration> {
    match kind {
        kind if OF_THIS_MACHINE.contains(&kind) => Some(GRAIN),
        kind if OF_ANOTHER_MACHINE.contains(&kind) => Some(SKEW),
        _ => None,
    }
}

#[cfg(test)]
impl Horizon {
    /// One before which everything was written to.
    pub(super) fn everything_settled() -> Self {
        Self { device: None, moment: Some(Duration::from_secs(i64::MAX as u64)) }
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
        let horizon = Horizon { device: Some(1), moment: Some(Duration::from_secs(9997)) };
        for (device, modified, changed, before) in [
            (1, 100, 9996, true),
            (1, -5, 100, true),
            (1, 100, 9997, false),
            (1, 9998, 100, false),
            (1, 20_000, 100, false),
            (1, 100, 20_000, false),
            (2, 100, 9996, false),
            (2, 100, 6399, false),
        ] {
            assert_eq!(horizon.is_before(&state(device, modified, changed)), before, "{modified} {changed}");
        }
    }

    #[test]
    fn states_count_only_where_nobody_can_set_the_time_of_change() {
        for (kind, name) in [
            (0x4d44, "FAT"),
            (0x2011_bab0, "exFAT"),
            (0x9660, "ISO 9660"),
            (0x7371_7368, "squashfs"),
            (0xe0f5_e1e2, "erofs"),
            (0x6573_5546, "FUSE"),
            (0, "unknown"),
        ] {
            let horizon = Horizon { device: Some(1), moment: margin(kind) };
            assert!(!horizon.is_before(&state(1, -1, -1)), "{name}");
        }
        assert_eq!((margin(0xef53), margin(0x6969)), (Some(GRAIN), Some(SKEW)));
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

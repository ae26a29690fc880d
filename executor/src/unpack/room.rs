//! The disk's last bytes are not a layer's to take: an archive that grows without end leaves room for all others
//! (RELIABILITY R21).

use std::{io, os::fd::AsFd};

use oci::store::free_bytes;
use rustix::fs::fstatvfs;

/// What stays free, in bytes: this, or a hundredth of a small disk.
const FLOOR: u64 = 256 << 20;
/// How many bytes are written before the disk is looked at again. Several layers are unpacked at the same time; all
/// their strides together are less than the floor.
const STRIDE: u64 = 32 << 20;

/// Why no more is written, inside an [`io::Error`] of the kind [`io::ErrorKind::StorageFull`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{free} bytes are free, and {floor} of them stay so")]
pub struct NoRoom {
    /// What this user could write.
    pub free: u64,
    /// What is left to others.
    pub floor: u64,
}

/// What a layer may still write before somebody looks at the disk again.
#[derive(Debug, Default)]
pub(super) struct Room {
    left: u64,
}

/// How much a disk holds, and has free for this user, in bytes.
struct Disk {
    size: u64,
    free: u64,
}

impl Room {
    /// Asks for room for some bytes on the disk of an open file.
    pub(super) fn take(&mut self, file: impl AsFd, bytes: u64) -> io::Result<()> {
        self.take_of(bytes, || {
            let disk = fstatvfs(file)?;
            Ok(Disk { size: disk.f_blocks.saturating_mul(disk.f_frsize), free: free_bytes(&disk) })
        })
    }

    fn take_of(&mut self, bytes: u64, look: impl FnOnce() -> io::Result<Disk>) -> io::Result<()> {
        if bytes <= self.left {
            self.left -= bytes;
            return Ok(());
        }
        let Disk { size, free } = look()?;
        let floor = FLOOR.min(size / 100);
        let Some(spare) = free.checked_sub(floor).and_then(|spare| spare.checked_sub(bytes)) else {
            return Err(io::Error::new(io::ErrorKind::StorageFull, NoRoom { free, floor }));
        };
        self.left = spare.min(STRIDE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_disk_is_not_taken() {
        let (large, small) = (1 << 40, 1 << 30);
        for (size, free, bytes, is_taken) in [
            (large, FLOOR + 5, 5, true),
            (large, FLOOR + 4, 5, false),
            (large, 0, 1, false),
            (small, small / 100 + 5, 5, true),
            (small, small / 100 + 4, 5, false),
        ] {
            let taken = Room::default().take_of(bytes, || Ok(Disk { size, free }));
            assert_eq!(taken.is_ok(), is_taken, "{bytes} of {free} of {size}");
        }
        let error = Room::default().take_of(9, || Ok(Disk { size: 100, free: 5 })).expect_err("no room");
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::StorageFull, "5 bytes are free, and 1 of them stay so")
        );
    }

    #[test]
    fn the_disk_is_looked_at_once_a_stride() {
        let (mut room, mut looks) = (Room::default(), 0);
        for _ in 0..64 {
            let look = || {
                looks += 1;
                Ok(Disk { size: 1 << 40, free: 1 << 39 })
            };
            room.take_of(1 << 20, look).expect("there is room");
        }
        assert_eq!(looks, 2);
        let file = tempfile::tempfile().expect("made");
        Room::default().take(&file, 1).expect("there is room");
    }
}

//! How overlayfs writes down that something of a lower layer is gone: a character device 0:0 in the place of a removed
//! file, and an attribute on a directory that hides all it had below
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
//!
//! The attribute is `trusted.overlay.opaque`, or `user.overlay.opaque` where the mount says `userxattr`, which is the
//! only way inside a user namespace. Both families of attributes are the file system's own and never part of a layer.

use std::os::fd::AsFd;

use rustix::{
    fs::{Dev, FileType, Mode, Stat, XattrFlags, fgetxattr, fsetxattr, mknodat},
    io::Errno,
};

use crate::{mount::OverlayMarks, sandbox::Rung};

impl From<Rung> for OverlayMarks {
    fn from(rung: Rung) -> Self {
        match rung {
            Rung::Root => Self::Trusted,
            // In a chroot there are copies, and none of these marks.
            Rung::SubordinateIds | Rung::SingleId | Rung::Chroot => Self::User,
        }
    }
}

impl OverlayMarks {
    /// Hides what lower layers have below an open directory (not one opened with `O_PATH`).
    ///
    /// # Errors
    /// What fsetxattr(2) says.
    pub fn mark_opaque(self, directory: impl AsFd) -> Result<(), Errno> {
        fsetxattr(directory, self.opaque_xattr(), b"y", XattrFlags::empty())
    }

    /// Whether an open directory hides what lower layers have below it.
    ///
    /// # Errors
    /// What fgetxattr(2) says.
    pub fn is_opaque(self, directory: impl AsFd) -> Result<bool, Errno> {
        let mut value = [0u8; 8];
        match fgetxattr(directory, self.opaque_xattr(), &mut value) {
            Ok(length) => Ok(&value[..length] == b"y"),
            Err(Errno::NODATA | Errno::RANGE) => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn opaque_xattr(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// Whether an attribute is overlayfs's own, of either family.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether a file is the mark of a removed one.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes the mark of a removed file; ordinary users may, too.
///
/// # Errors
/// What mknodat(2) says.
pub fn make_whiteout(parent: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0 as Dev)
}

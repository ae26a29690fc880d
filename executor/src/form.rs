//! How the file systems of a store lie on disk: as layers that overlayfs merges, or, where the kernel refuses that, each as a
//! whole copy ([`crate::copies`]).
//!
//! A directory that holds one layer says what it hides of those below. For overlayfs that is a device 0:0 in the place of
//! what is gone, and an attribute on a directory that hides all. Where there is no overlay these often cannot be made (on an
//! overlay, for one), and only we read them: they are sockets, which anybody can make anywhere and no layer can hold.

use std::os::fd::AsFd;

use rustix::{
    fs::{FileType, Mode, Stat, mknodat},
    io::Errno,
};

use crate::{
    mount::OverlayMarks,
    rootfs::{file_type, lstat},
    sandbox::{Files, Footing},
    whiteout::is_whiteout,
};

/// How the file systems of a store lie on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A snapshot's directory is its topmost layer, with such marks.
    Layers(OverlayMarks),
    /// A snapshot's directory is all of it; one that is on its way there is a layer, marked by sockets.
    Copies,
}

/// Marks a directory that hides all that is below; no file of a layer is called so.
const OPAQUE: &[u8] = b".wh..wh..opq";

impl From<OverlayMarks> for Form {
    fn from(marks: OverlayMarks) -> Self {
        Self::Layers(marks)
    }
}

impl From<Footing> for Form {
    fn from(footing: Footing) -> Self {
        match footing.files {
            Files::Merged | Files::Fused => Self::Layers(footing.into()),
            Files::Copied => Self::Copies,
        }
    }
}

impl Form {
    /// Hides what is below of this name.
    ///
    /// # Errors
    /// What mknodat(2) says.
    pub fn hide(self, parent: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Layers(marks) => marks.hide(parent, name),
            Self::Copies => mknodat(parent, name, FileType::Socket, Mode::empty(), 0),
        }
    }

    /// Whether a mark beside this name hides what is below; it goes.
    ///
    /// # Errors
    /// What unlinkat(2) says.
    pub fn unhide(self, parent: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
        match self {
            Self::Layers(marks) => marks.unhide(parent, name),
            Self::Copies => Ok(false),
        }
    }

    /// Whether a mark beside this name hides what is below.
    ///
    /// # Errors
    /// What fstatat(2) says.
    pub fn hides(self, parent: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
        match self {
            Self::Layers(marks) => marks.hides(parent, name),
            Self::Copies => Ok(false),
        }
    }

    /// Hides all that is below an open directory (not one opened with `O_PATH`).
    ///
    /// # Errors
    /// What fsetxattr(2) or mknodat(2) says.
    pub fn mark_opaque(self, directory: impl AsFd) -> Result<(), Errno> {
        match self {
            Self::Layers(marks) => marks.mark_opaque(directory),
            Self::Copies => match self.hide(directory, OPAQUE) {
                Err(Errno::EXIST) => Ok(()),
                made => made,
            },
        }
    }

    /// Whether a device at this path of a layer would be shown as what it is. fuse-overlayfs opens what it looks for, cannot open
    /// a device, and takes it for missing. In `/dev` no step sees what an image has.
    pub fn shows_device(self, path: &[u8]) -> bool {
        self != Self::Layers(OverlayMarks::Names) || path.starts_with(b"dev/")
    }

    /// Whether an open directory hides all that is below.
    ///
    /// # Errors
    /// What fgetxattr(2) or fstatat(2) says.
    pub fn is_opaque(self, directory: impl AsFd) -> Result<bool, Errno> {
        match self {
            Self::Layers(marks) => marks.is_opaque(directory),
            Self::Copies => Ok(lstat(directory, OPAQUE)?.is_some_and(|stat| is_socket(&stat))),
        }
    }
}

/// Whether something in a directory that a layer is unpacked to is the mark of something removed. No archive holds what
/// either form takes for it.
pub fn is_mark(stat: &Stat) -> bool {
    is_whiteout(stat) || is_socket(stat)
}

/// Whether it is [`Form::mark_opaque`]'s mark among the names of a directory.
pub fn is_opaque_mark(name: &[u8], stat: &Stat) -> bool {
    name == OPAQUE && is_socket(stat)
}

/// Whether it is a socket.
pub fn is_socket(stat: &Stat) -> bool {
    file_type(stat) == FileType::Socket
}

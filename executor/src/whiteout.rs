//! How overlayfs writes down that something of a lower layer is gone: a character device 0:0 in the place of a removed
//! file, and an attribute on a directory that hides all it had below
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
//!
//! The attribute is `trusted.overlay.opaque`, or `user.overlay.opaque` where the mount says `userxattr`, which is the
//! only way inside a user namespace. Both families of attributes are the file system's own and never part of a layer.
//!
//! Where the kernel mounts no overlay these can often not be made. fuse-overlayfs then reads and writes what AUFS had, and
//! layers have: an empty file `.wh.NAME` beside the place of what is gone, and `.wh..wh..opq` in a directory that hides all.

use std::{ffi::OsStr, os::fd::AsFd, os::unix::ffi::OsStrExt};

use rustix::{
    fs::{
        AtFlags, Dev, FileType, Mode, OFlags, Stat, XattrFlags, fgetxattr, fsetxattr, mknodat, openat,
        unlinkat,
    },
    io::Errno,
};

use crate::{
    mount::OverlayMarks,
    rootfs::{file_type, lstat},
    sandbox::{Files, Footing, Rung},
};

/// What the names begin with that say that something is gone.
pub const MARK_PREFIX: &[u8] = b".wh.";

/// The name that says that nothing of what is below shows through the directory it is in.
pub const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

impl From<Rung> for OverlayMarks {
    fn from(rung: Rung) -> Self {
        match rung {
            Rung::Root => Self::Trusted,
            // In a chroot there are copies, and none of these marks.
            Rung::SubordinateIds | Rung::SingleId | Rung::Chroot => Self::User,
        }
    }
}

impl From<Footing> for OverlayMarks {
    fn from(footing: Footing) -> Self {
        match footing.files {
            Files::Fused => Self::Names,
            Files::Merged | Files::Copied => footing.rung.into(),
        }
    }
}

impl OverlayMarks {
    /// Hides what lower layers have of this name.
    ///
    /// # Errors
    /// `EEXIST` where this layer has something of that name; what the kernel says.
    pub fn hide(self, parent: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Trusted | Self::User => make_whiteout(parent, name),
            Self::Names if lstat(&parent, name)?.is_some() => Err(Errno::EXIST),
            Self::Names => make_mark(parent, &mark_of(name)),
        }
    }

    /// Whether this name of lower layers is hidden by a mark that does not stand in its place; the mark goes.
    ///
    /// # Errors
    /// What unlinkat(2) says.
    pub fn unhide(self, parent: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
        if self != Self::Names {
            return Ok(false);
        }
        match unlinkat(parent, OsStr::from_bytes(&mark_of(name)), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether this name of lower layers is hidden by a mark that does not stand in its place.
    ///
    /// # Errors
    /// What fstatat(2) says.
    pub fn hides(self, parent: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
        match self {
            Self::Trusted | Self::User => Ok(false),
            Self::Names => match lstat(parent, &mark_of(name)) {
                Err(Errno::NAMETOOLONG) => Ok(false),
                found => Ok(found?.is_some()),
            },
        }
    }

    /// Hides what lower layers have below an open directory (not one opened with `O_PATH`).
    ///
    /// # Errors
    /// What fsetxattr(2) says.
    pub fn mark_opaque(self, directory: impl AsFd) -> Result<(), Errno> {
        match self.opaque_xattr() {
            Some(attribute) => fsetxattr(directory, attribute, b"y", XattrFlags::empty()),
            None => make_mark(directory, OPAQUE_NAME),
        }
    }

    /// Whether an open directory hides what lower layers have below it.
    ///
    /// # Errors
    /// What fgetxattr(2) says.
    pub fn is_opaque(self, directory: impl AsFd) -> Result<bool, Errno> {
        let mut value = [0u8; 8];
        let Some(attribute) = self.opaque_xattr() else {
            return Ok(lstat(directory, OPAQUE_NAME)?.is_some_and(|stat| is_mark_file(&stat)));
        };
        match fgetxattr(directory, attribute, &mut value) {
            Ok(length) => Ok(&value[..length] == b"y"),
            Err(Errno::NODATA | Errno::RANGE) => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn opaque_xattr(self) -> Option<&'static str> {
        match self {
            Self::Trusted => Some("trusted.overlay.opaque"),
            Self::User => Some("user.overlay.opaque"),
            Self::Names => None,
        }
    }
}

/// What hides a name by standing beside it.
fn mark_of(name: &[u8]) -> Vec<u8> {
    [MARK_PREFIX, name].concat()
}

/// One that is there already is as good.
fn make_mark(parent: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, OsStr::from_bytes(name), flags, Mode::RWXU) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Whether a file whose name is that of a mark can be one: they hold nothing.
pub fn is_mark_file(stat: &Stat) -> bool {
    file_type(stat) == FileType::RegularFile && stat.st_size == 0
}

/// What a file of this name hides, if it is a mark: everything below its directory (`None`), or one name.
pub fn hidden_by<'a>(name: &'a [u8], stat: &Stat) -> Option<Option<&'a [u8]>> {
    match name.strip_prefix(MARK_PREFIX) {
        _ if !is_mark_file(stat) => None,
        _ if name == OPAQUE_NAME => Some(None),
        hidden => hidden.map(Some),
    }
}

/// Whether an attribute is overlayfs's own, of either family, or fuse-overlayfs's, which an image could lie to it with.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    const OWN: [&[u8]; 5] = [
        b"trusted.overlay.",
        b"user.overlay.",
        b"user.fuseoverlayfs.",
        b"security.fuseoverlayfs.",
        b"user.containers.override_stat",
    ];
    OWN.iter().any(|own| name.starts_with(own))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, OFlags, open};

    use super::*;

    #[test]
    fn marks_by_name_stand_beside_what_they_hide() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let opened =
            open(directory.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("it opens");
        let names = OverlayMarks::Names;
        fs::write(at("there"), "").expect("written");
        assert_eq!(names.hide(&opened, b"there"), Err(Errno::EXIST));
        assert_eq!((names.hide(&opened, b"gone"), names.hide(&opened, b"gone")), (Ok(()), Ok(())));
        assert!(at(".wh.gone").exists() && !at("gone").exists());
        assert_eq!((names.hides(&opened, b"gone"), names.hides(&opened, b"there")), (Ok(true), Ok(false)));
        assert_eq!((names.unhide(&opened, b"gone"), names.unhide(&opened, b"gone")), (Ok(true), Ok(false)));
        assert_eq!(names.hides(&opened, &[b'x'; 255]), Ok(false), "no file is called so");
        assert_eq!(names.is_opaque(&opened), Ok(false));
        names.mark_opaque(&opened).expect("marked");
        assert_eq!(names.is_opaque(&opened), Ok(true));
        assert_eq!(OverlayMarks::User.unhide(&opened, b".wh..opq"), Ok(false), "it stands in its place");
    }

    #[test]
    fn a_mark_is_an_empty_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let opened =
            open(directory.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("it opens");
        let hidden = |name: &str, content: &str| {
            fs::write(directory.path().join(name), content).expect("written");
            let stat = lstat(&opened, name.as_bytes()).expect("looked").expect("it is there");
            hidden_by(name.as_bytes(), &stat).map(|hidden| hidden.map(<[u8]>::to_vec))
        };
        assert_eq!(hidden(".wh.a", ""), Some(Some(b"a".to_vec())));
        assert_eq!(hidden(".wh..wh..opq", ""), Some(None));
        assert_eq!((hidden(".wh.b", "x"), hidden("a", "")), (None, None));
    }
}

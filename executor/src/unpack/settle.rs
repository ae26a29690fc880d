//! The end of unpacking, once the layers below are there: what the layer takes over from them, and what it leaves out.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
        fsetxattr, fstat, futimens, unlinkat,
    },
    io::Errno,
};

use super::{
    UnpackError,
    place::{open_directory, timestamps},
    walk::Walker,
};
use crate::{listing::Owners, mount::OverlayMarks, snapshot::Stamp, whiteout::is_overlay_xattr};

/// One layer's directory over those of the layers below.
pub(super) struct Stack<'a> {
    pub(super) own: &'a Walker,
    /// The layers below, topmost first.
    pub(super) lowers: &'a [OwnedFd],
    pub(super) marks: OverlayMarks,
}

impl Stack<'_> {
    /// Gives a directory that the archive only implied the metadata it has in the layers below, or that of a new one.
    pub(super) fn inherit(&self, path: &[u8], stamp: Stamp) -> Result<(), UnpackError> {
        let failed = UnpackError::at("set the metadata of", path);
        let own = open_directory(self.own.open(path).map_err(&failed)?, b".").map_err(&failed)?;
        match self.below(path).map_err(&failed)? {
            Some(lower) => copy_metadata(&lower, &own),
            None => make_plain(&own, stamp),
        }
        .map_err(failed)
    }

    /// Removes a whiteout in a directory that only this layer has: overlayfs would list it as a file there.
    pub(super) fn drop_if_stray(&self, whiteout: &[u8]) -> Result<(), UnpackError> {
        let failed = UnpackError::at("remove the needless whiteout", whiteout);
        let slash = whiteout.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = slash.map_or((&b""[..], whiteout), |at| (&whiteout[..at], &whiteout[at + 1..]));
        let merged =
            !self.hides(whiteout).map_err(&failed)? && self.below(parent).map_err(&failed)?.is_some();
        if merged || parent.is_empty() {
            return Ok(());
        }
        let parent = self.own.open(parent).map_err(&failed)?;
        unlinkat(&parent, name, AtFlags::empty()).map_err(failed)
    }

    /// The owners that still hold for what shows through this layer. An implied directory is the one below.
    pub(super) fn shown(
        &self,
        owners: &Owners,
        implied: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Owners, UnpackError> {
        let mut shown = Owners::new();
        if self.lowers.is_empty() {
            return Ok(shown);
        }
        for (path, owner) in owners {
            let failed = UnpackError::at("look at", path);
            let root = self.own.open(b"").map_err(&failed)?;
            let is_shown = match look_up(root, path, self.marks).map_err(&failed)? {
                Seen::Nothing => true,
                Seen::Hidden => false,
                Seen::Directory(_) => implied(path) && !self.hides(path).map_err(&failed)?,
            };
            if is_shown {
                shown.insert(path.clone(), *owner);
            }
        }
        Ok(shown)
    }

    /// Whether this layer itself hides what lies below at a path: one of the directories above it is opaque.
    fn hides(&self, path: &[u8]) -> Result<bool, Errno> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let directory = open_directory(self.own.open(&path[..at])?, b".")?;
            if self.marks.is_opaque(directory)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The directory that would be seen at a path without this layer.
    fn below(&self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        if self.hides(path)? {
            return Ok(None);
        }
        for lower in self.lowers {
            match look_up(lower, path, self.marks)? {
                Seen::Directory(directory) => return Ok(Some(directory)),
                Seen::Hidden => return Ok(None),
                Seen::Nothing => {}
            }
        }
        Ok(None)
    }
}

/// What one layer says about a path.
enum Seen {
    Directory(OwnedFd),
    /// Something that is no directory, or nothing, and layers below do not count.
    Hidden,
    Nothing,
}

fn look_up(layer: impl AsFd, path: &[u8], marks: OverlayMarks) -> Result<Seen, Errno> {
    let mut here = open_directory(layer, b".")?;
    let mut opaque = false;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        match open_directory(&here, name) {
            Ok(directory) => here = directory,
            Err(Errno::NOENT) if !opaque => return Ok(Seen::Nothing),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Seen::Hidden),
            Err(errno) => return Err(errno),
        }
        opaque |= marks.is_opaque(&here)?;
    }
    Ok(Seen::Directory(here))
}

/// The metadata of a directory that nobody has said anything about.
pub(super) fn make_plain(directory: impl AsFd, stamp: Stamp) -> Result<(), Errno> {
    fchown(&directory, Some(Uid::ROOT), Some(Gid::ROOT))?;
    fchmod(&directory, Mode::from_raw_mode(0o755))?;
    futimens(&directory, &timestamps(stamp))
}

/// Gives a directory owner, attributes, mode and time of another one.
pub(crate) fn copy_metadata(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let stat = fstat(&from)?;
    fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    let mut names = vec![0; 64 << 10];
    let length = flistxattr(&from, &mut names)?;
    let names = names[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty() && !is_overlay_xattr(name)) {
        let mut value = vec![0; 64 << 10];
        let length = fgetxattr(&from, name, &mut value)?;
        fsetxattr(&to, name, &value[..length], XattrFlags::empty())?;
    }
    fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 };
    futimens(&to, &Timestamps { last_access: time, last_modification: time })
}

//! The end of unpacking, once the layers below are there: what the layer takes over from them, and what it leaves out.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr,
        flistxattr, fsetxattr, fstat, futimens, unlinkat,
    },
    io::Errno,
};

use super::{
    UnpackError,
    place::{open_directory, timestamps},
    walk::Walker,
};
use crate::{
    form::Form,
    listing::Owners,
    rootfs::{open_beneath, split},
    snapshot::Stamp,
    whiteout::is_overlay_xattr,
};

/// One layer's directory over those of the layers below.
///
/// What is asked for comes in the order of paths, so the directories above a path are mostly those above the last one: what
/// was found of them is kept, and a path costs one step, however deep it lies (RELIABILITY R20).
pub(super) struct Stack<'a> {
    own: &'a Walker,
    /// The layers below, topmost first.
    lowers: &'a [OwnedFd],
    form: Form,
    /// The directory asked for last and all above it, the root first.
    levels: Vec<Level>,
    /// Its path.
    last: Vec<u8>,
}

/// A directory of which it is known where it shows through.
struct Level {
    /// Length of its path.
    end: usize,
    /// The layers below that have it and that nothing above them hides there, topmost first.
    shining: Vec<usize>,
}

impl<'a> Stack<'a> {
    pub(super) fn new(own: &'a Walker, lowers: &'a [OwnedFd], form: Form) -> Self {
        let root = Level { end: 0, shining: (0..lowers.len()).collect() };
        Self { own, lowers, form, levels: vec![root], last: Vec::new() }
    }

    /// Gives a directory that the archive only implied the metadata it has in the layers below, or that of a new one.
    pub(super) fn inherit(&mut self, path: &[u8], stamp: Stamp) -> Result<(), UnpackError> {
        let failed = UnpackError::at("set the metadata of", path);
        let own = open_directory(self.own.open(path).map_err(&failed)?, b".").map_err(&failed)?;
        match self.below(path).map_err(&failed)? {
            Some(lower) => copy_metadata(&lower, &own),
            None => make_plain(&own, stamp),
        }
        .map_err(failed)
    }

    /// Removes a whiteout in a directory that only this layer has: overlayfs would list it as a file there.
    pub(super) fn drop_if_stray(&mut self, whiteout: &[u8]) -> Result<(), UnpackError> {
        let failed = UnpackError::at("remove the needless whiteout", whiteout);
        let slash = whiteout.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = slash.map_or((&b""[..], whiteout), |at| (&whiteout[..at], &whiteout[at + 1..]));
        if parent.is_empty() || self.is_merged(parent).map_err(&failed)? {
            return Ok(());
        }
        let parent = self.own.open(parent).map_err(&failed)?;
        if self.form.unhide(&parent, name).map_err(&failed)? {
            return Ok(());
        }
        unlinkat(&parent, name, AtFlags::empty()).map_err(failed)
    }

    /// The owners that still hold for what shows through this layer. An implied directory is the one below.
    pub(super) fn shown(
        &mut self,
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
            let is_shown = match look_up(root, path, self.form).map_err(&failed)? {
                Seen::Nothing => true,
                Seen::Hidden => false,
                Seen::Directory => implied(path) && !self.hides_above(path).map_err(&failed)?,
            };
            if is_shown {
                shown.insert(path.clone(), *owner);
            }
        }
        Ok(shown)
    }

    /// The directory that would be seen at a path without this layer; `None` as well where this layer hides it.
    fn below(&mut self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let lowers = self.lowers;
        match self.level(path)?.shining.first() {
            Some(lower) => open_below(&lowers[*lower], path).map(Some),
            None => Ok(None),
        }
    }

    /// Whether a directory of this layer and those below are seen as one.
    fn is_merged(&mut self, path: &[u8]) -> Result<bool, Errno> {
        Ok(!self.level(path)?.shining.is_empty() && !self.is_opaque(path)?)
    }

    /// Whether one of the directories above a path, and not of the root, is opaque in this layer.
    fn hides_above(&self, path: &[u8]) -> Result<bool, Errno> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if self.is_opaque(&path[..at])? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this layer lets nothing of the layers below through in a directory of its own.
    fn is_opaque(&self, path: &[u8]) -> Result<bool, Errno> {
        self.form.is_opaque(open_directory(self.own.open(path)?, b".")?)
    }

    /// What is known of a directory, after all above it.
    fn level(&mut self, path: &[u8]) -> Result<&Level, Errno> {
        let is_above = |end: usize| {
            self.last.get(..end) == path.get(..end) && matches!(path.get(end), None | Some(b'/')) || end == 0
        };
        let kept = self.levels.iter().take_while(|level| is_above(level.end)).count();
        self.levels.truncate(kept.max(1));
        self.last = path.to_vec();
        let known = self.levels.last().map_or(0, |level| level.end);
        let slashes = path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > known);
        let ends: Vec<_> =
            slashes.map(|(at, _)| at).chain((path.len() > known).then_some(path.len())).collect();
        for end in ends {
            let above = self.levels.last().expect("the root stays");
            let shining = self.shining(&path[..above.end], &above.shining, &path[..end])?;
            self.levels.push(Level { end, shining });
        }
        Ok(self.levels.last().expect("the root stays"))
    }

    /// Which of the layers that have the directory `above` let `path`, in it, be seen.
    fn shining(&self, above: &[u8], layers: &[usize], path: &[u8]) -> Result<Vec<usize>, Errno> {
        let mut shining = Vec::new();
        if layers.is_empty() || (!above.is_empty() && self.is_opaque(above)?) {
            return Ok(shining);
        }
        for layer in layers {
            match open_below(&self.lowers[*layer], path) {
                Ok(directory) => {
                    shining.push(*layer);
                    if self.form.is_opaque(&directory)? {
                        break;
                    }
                }
                Err(Errno::NOENT) if self.hides(&self.lowers[*layer], path)? => break,
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(shining)
    }

    /// Whether a layer has a mark beside the place of this path.
    fn hides(&self, layer: &OwnedFd, path: &[u8]) -> Result<bool, Errno> {
        let (parent, name) = split(path);
        match open_below(layer, parent) {
            Ok(parent) => self.form.hides(parent, name),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// Opens a directory of a layer by its path, in which there is no link.
fn open_below(layer: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(layer, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// What one layer says about a path.
enum Seen {
    Directory,
    /// Something that is no directory, or nothing, and layers below do not count.
    Hidden,
    Nothing,
}

fn look_up(layer: impl AsFd, path: &[u8], form: Form) -> Result<Seen, Errno> {
    let mut here = open_directory(layer, b".")?;
    let mut opaque = false;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        match open_directory(&here, name) {
            Ok(directory) => here = directory,
            Err(Errno::NOENT) if !opaque && !form.hides(&here, name)? => return Ok(Seen::Nothing),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Seen::Hidden),
            Err(errno) => return Err(errno),
        }
        opaque |= form.is_opaque(&here)?;
    }
    Ok(Seen::Directory)
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

//! Lists an upper directory, or what is touched in a copy: what is there, what it hides, and what stood there before.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, OFlags, Stat, fstat},
    io::Errno,
};

use solver::Cancel;

use super::{Changed, DiffError, Lower, Upper, UpperKind, go_on};
use crate::{
    copies::{Bond, born},
    listing::NodeKind,
    mount::OverlayMarks,
    rootfs::{
        PathError, failed, file_type, join, lstat, names, open_beneath, permissions, shown, split, xattrs,
        xattrs_at,
    },
    whiteout::{hidden_by, is_whiteout},
};

/// What an upper directory says about a path.
#[derive(Debug)]
pub enum Found {
    /// What stood there is gone.
    Gone,
    /// Something stands there now.
    Present(Box<Present>),
}

/// Something in an upper directory.
#[derive(Debug)]
pub struct Present {
    /// What it is; `None` for a socket. Sizes of files are in `stat`.
    pub kind: Option<NodeKind>,
    /// As the disk has it.
    pub stat: Stat,
    /// Permission bits.
    pub mode: u32,
    /// Whose it is, also where the disk does not know.
    pub owner: (u32, u32),
    /// Attributes that reach layers; those of regular files are read with their bytes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What stood there before.
    pub before: Option<Before>,
    /// Whether that would stand there again if this were removed from the upper directory.
    pub shows_lower: bool,
    /// Whether it is, in a copy, the copy of that.
    pub is_copy: bool,
    /// What has become of it, if it is, in a copy, that of a file with several names.
    pub bond: Bond,
}

impl Present {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Some(NodeKind::Directory)
    }
}

/// What stood at a path before the step.
#[derive(Debug)]
pub struct Before {
    /// As the disk has it.
    pub stat: Stat,
    /// Whose it was, also where the disk does not know.
    pub owner: (u32, u32),
}

/// A directory that is still to be listed.
struct Pending {
    path: Vec<u8>,
    /// Whether the directory of the same path below shows through, or would if it were not hidden.
    has_lower: bool,
    /// Whether nothing of it shows through any more.
    hides: bool,
}

/// Lists everything in an upper directory, and what a copy has that may have changed, one directory open at a time.
pub fn walk(
    root: &OwnedFd,
    upper: Upper<'_>,
    lower: Lower<'_>,
    cancel: &Cancel,
) -> Result<Changed, DiffError> {
    let mut walker = Walker { root, upper, lower, cancel, found: Changed::new() };
    let mut todo = vec![Pending { path: Vec::new(), has_lower: true, hides: false }];
    while let Some(pending) = todo.pop() {
        walker.directory(pending, &mut todo)?;
    }
    Ok(walker.found)
}

/// Names in a directory.
type Names = Vec<Vec<u8>>;

struct Walker<'a> {
    root: &'a OwnedFd,
    upper: Upper<'a>,
    lower: Lower<'a>,
    cancel: &'a Cancel,
    found: Changed,
}

impl Walker<'_> {
    fn directory(&mut self, pending: Pending, todo: &mut Vec<Pending>) -> Result<(), DiffError> {
        let Pending { path: dir, has_lower, hides } = pending;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let upper = open_beneath(self.root, &dir, flags).map_err(failed("reading", &dir))?;
        let lower = match has_lower {
            true => Some(open_beneath(self.lower.root, &dir, flags).map_err(failed("reading", &dir))?),
            false => None,
        };
        let hides = hides || self.is_opaque(&dir, &upper, lower.as_ref())?;
        let (upper_names, hidden) = self.names(&dir, &upper)?;
        for name in hidden.iter().filter(|name| upper_names.binary_search(name).is_err()) {
            let was_there = lower.as_ref().map(|lower| lstat(lower, name)).transpose();
            if was_there.map_err(failed("reading", &dir))?.flatten().is_some() {
                self.found.insert(join(&dir, name), Found::Gone);
            }
        }
        for name in &upper_names {
            go_on(self.cancel)?;
            let path = join(&dir, name);
            let before = match &lower {
                Some(lower) => lstat(lower, name).map_err(failed("reading", &path))?,
                None => None,
            };
            let is_merged = before.as_ref().is_some_and(|stat| file_type(stat) == FileType::Directory);
            let was_there = before.is_some();
            let untouched = self.untouched(&upper, name, &path, before.as_ref())?;
            // A file with several names that came here with its directory is looked at, though it is where it was.
            let has_come = |stat: &Stat| hides && file_type(stat) != FileType::Directory && stat.st_nlink > 1;
            if let Some(stat) = untouched.filter(|stat| !has_come(stat)) {
                if file_type(&stat) == FileType::Directory {
                    todo.push(Pending { path, has_lower: is_merged, hides });
                }
                continue;
            }
            let found = match self.name(&upper, name, &path, before)? {
                Some(present) => {
                    if present.is_directory() {
                        todo.push(Pending { path: path.clone(), has_lower: is_merged, hides });
                    }
                    Found::Present(Box::new(Present { shows_lower: was_there && !hides, ..present }))
                }
                None if was_there => Found::Gone,
                None => continue,
            };
            self.found.insert(path, found);
        }
        let is_whole = matches!(self.upper.kind, UpperKind::Copy(_));
        if let Some(lower) = lower.filter(|_| hides || is_whole) {
            for name in names(&lower).map_err(failed("reading", &dir))? {
                if upper_names.binary_search(&name).is_err() {
                    self.found.insert(join(&dir, &name), Found::Gone);
                }
            }
        }
        Ok(())
    }

    /// The names in an upper directory, and those that marks beside their places hide.
    fn names(&self, dir: &[u8], upper: &OwnedFd) -> Result<(Names, Names), PathError> {
        let found = names(upper).map_err(failed("reading", dir))?;
        if !matches!(self.upper.kind, UpperKind::Overlay(OverlayMarks::Names)) {
            return Ok((found, Vec::new()));
        }
        let (mut names, mut hidden) = (Vec::new(), Vec::new());
        for name in found {
            let stat = lstat(upper, &name).map_err(failed("reading", dir))?;
            match stat.and_then(|stat| hidden_by(&name, &stat)) {
                Some(mark) => hidden.extend(mark.map(<[u8]>::to_vec)),
                None => names.push(name),
            }
        }
        Ok((names, hidden))
    }

    /// Whether nothing of the directory below shows through: of a copy, whether it is another directory.
    fn is_opaque(&self, dir: &[u8], upper: &OwnedFd, lower: Option<&OwnedFd>) -> Result<bool, PathError> {
        match (self.upper.kind, lower) {
            (UpperKind::Overlay(marks), _) => marks.is_opaque(upper),
            (UpperKind::Copy(_), None) => Ok(true),
            (UpperKind::Copy(twins), Some(lower)) => {
                fstat(upper).and_then(|now| Ok(!twins.is_copy(&now, born(upper, b"")?, &fstat(lower)?)))
            }
        }
        .map_err(failed("looking at", dir))
    }

    /// What is the copy of what was there before, and as it was copied.
    fn untouched(
        &self,
        upper: &OwnedFd,
        name: &[u8],
        path: &[u8],
        before: Option<&Stat>,
    ) -> Result<Option<Stat>, PathError> {
        let (UpperKind::Copy(twins), Some(before)) = (self.upper.kind, before) else { return Ok(None) };
        let stat = lstat(upper, name).map_err(failed("reading", path))?;
        Ok(stat.filter(|stat| twins.is_untouched(stat, before)))
    }

    /// What a name stands for; `None` for a whiteout.
    fn name(
        &self,
        upper: &OwnedFd,
        name: &[u8],
        path: &[u8],
        before: Option<Stat>,
    ) -> Result<Option<Present>, DiffError> {
        let stat = lstat(upper, name).map_err(failed("reading", path))?;
        let stat = stat.ok_or(Errno::NOENT).map_err(failed("reading", path))?;
        if is_whiteout(&stat) {
            return match self.upper.kind {
                UpperKind::Overlay(_) => Ok(None),
                UpperKind::Copy(_) => Err(DiffError::WhiteoutDevice(format!("/{}", shown(path)))),
            };
        }
        if name.starts_with(b".wh.") {
            return Err(DiffError::WhiteoutName(format!("/{}", shown(path))));
        }
        let kind = NodeKind::of(upper, path, &stat)?;
        let xattrs = match kind {
            Some(NodeKind::Directory) => directory_attributes(upper, name, path)?,
            Some(NodeKind::File { .. }) | None => BTreeMap::new(),
            Some(_) => xattrs_at(upper, name).map_err(failed("reading attributes of", path))?,
        };
        let born = || born(upper, name);
        let (is_copy, bond) = match (self.upper.kind, &before) {
            (UpperKind::Overlay(_), _) => Ok((false, Bond::None)),
            (UpperKind::Copy(twins), None) => twins.bond(&stat, born).map(|bond| (false, bond)),
            (UpperKind::Copy(twins), Some(before)) => {
                born().and_then(|at| Ok((twins.is_copy(&stat, at, before), twins.bond(&stat, || Ok(at))?)))
            }
        }
        .map_err(failed("looking at", path))?;
        let before = before.map(|stat| Before {
            owner: self.lower.owners.get(path).copied().unwrap_or((stat.st_uid, stat.st_gid)),
            stat,
        });
        let owner = self.owner(path, &stat, before.as_ref());
        let mode = if matches!(kind, Some(NodeKind::Symlink { .. })) { 0o777 } else { permissions(&stat) };
        Ok(Some(Present { kind, stat, mode, owner, xattrs, before, shows_lower: false, is_copy, bond }))
    }

    /// Whose something is. A directory that was copied up still is whose it was, also where the disk cannot say so.
    fn owner(&self, path: &[u8], stat: &Stat, before: Option<&Before>) -> (u32, u32) {
        if let Some(owner) = self.upper.owners.get(path) {
            return *owner;
        }
        let disk = (stat.st_uid, stat.st_gid);
        let is_directory = file_type(stat) == FileType::Directory;
        let untouched = |before: &&Before| {
            let was_directory = file_type(&before.stat) == FileType::Directory;
            was_directory && is_directory && (before.stat.st_uid, before.stat.st_gid) == disk
        };
        before.filter(untouched).map_or(disk, |before| before.owner)
    }
}

/// The attributes that reach layers of what is neither file nor directory.
pub fn node_attributes(root: impl AsFd, path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, PathError> {
    let (parent, name) = split(path);
    let parent = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY);
    parent.and_then(|parent| xattrs_at(parent, name)).map_err(failed("reading attributes of", path))
}

/// The attributes of a directory that reach layers.
pub fn directory_attributes(
    parent: impl AsFd,
    path_in_parent: &[u8],
    path: &[u8],
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, PathError> {
    let directory = open_beneath(parent, path_in_parent, OFlags::RDONLY | OFlags::DIRECTORY);
    let directory = directory.map_err(failed("reading", path))?;
    xattrs(&directory).map_err(failed("reading attributes of", path))
}

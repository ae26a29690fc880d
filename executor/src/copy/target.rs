//! The file system that is copied into: where a path leads, directories, one file at a time, and what is stamped on it.
//!
//! A path of the Dockerfile or of an archive is first [resolved](Target::resolve) to one without links, inside the
//! root and also where it does not exist yet; everything after that refuses links. Nobody else writes here.
//!
//! An owner that this user namespace does not have cannot be set on disk. It is [kept](Target::owners) for the layer
//! instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, futimens, linkat, makedev, mknodat,
        readlinkat, symlinkat, unlinkat,
    },
    io::Errno,
};

use rayon::prelude::*;
use solver::Cancel;

use super::{
    CopyError, content,
    ground::{Ground, Kind, NewFiles, Packed},
};
use crate::{
    archive,
    listing::{
        NodeKind, Owners,
        lookup::{Found, Paths},
    },
    rootfs::{
        failed, file_type, join, lstat, make_dir, mtime, names, open_beneath, set_mode, set_mtime,
        set_node_mode, set_owner, set_xattr, set_xattr_at, shown, split,
    },
    users::{UserError, file_owner, workdir_owner},
};

/// Where files are copied to.
pub struct Target<'a> {
    root: BorrowedFd<'a>,
    /// Path of the root in the image, for messages and owners.
    prefix: Vec<u8>,
    /// Owners that the disk below could not hold.
    below: Option<&'a Owners>,
    /// Owners that the disk could not hold, by path in the image.
    pub owners: Owners,
    /// Directories that were made since [`Ground::forget_made`]: nothing is in them that was not put there since.
    made: BTreeSet<Vec<u8>>,
}

/// What something gets beside its content.
#[derive(Debug, Clone)]
pub struct Stamp<'a> {
    /// User and group.
    pub owner: (u32, u32),
    /// Permission bits; links have none.
    pub mode: u32,
    /// Extended attributes; those it has stay.
    pub xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
    /// Modification time, whole Unix seconds and the rest.
    pub time: (i64, u32),
}

impl<'a> Target<'a> {
    /// A target with this root directory. `below` are the owners that the disk of the file system as it was could not
    /// hold.
    pub fn new(root: BorrowedFd<'a>, below: Option<&'a Owners>) -> Self {
        Self { root, prefix: Vec::new(), below, owners: Owners::new(), made: BTreeSet::new() }
    }

    /// A target whose root is a directory of an image: paths and links end there.
    pub fn inside(root: &'a OwnedFd, path_in_image: &[u8]) -> Self {
        Self {
            root: root.as_fd(),
            prefix: path_in_image.to_vec(),
            below: None,
            owners: Owners::new(),
            made: BTreeSet::new(),
        }
    }

    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'a> {
        self.root
    }

    /// A path as people know it.
    pub fn shown(&self, path: &[u8]) -> String {
        format!("/{}", shown(&self.in_image(path)).trim_start_matches('/'))
    }

    /// A path in the image, without a leading slash.
    pub fn in_image(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() { self.prefix.clone() } else { join(&self.prefix, path) }
    }

    fn failed<E: Into<std::io::Error>>(
        &self,
        action: &'static str,
        path: &[u8],
    ) -> impl FnOnce(E) -> CopyError {
        let path = self.shown(path).into_bytes();
        move |error| failed(action, &path)(error).into()
    }

    /// What is at a path without links.
    pub fn find(&self, path: &[u8]) -> Result<Option<Stat>, CopyError> {
        if path.is_empty() {
            return Ok(Some(fstat(self.root).map_err(self.failed("reading", path))?));
        }
        Ok(self.look(path)?.map(|(_, stat)| stat))
    }

    fn look(&self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>, CopyError> {
        let (parent, name) = split(path);
        let dir = match open_beneath(self.root, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            answer => answer.map_err(self.failed("reading", parent))?,
        };
        let stat = lstat(&dir, name).map_err(self.failed("reading", path))?;
        Ok(stat.map(|stat| (dir, stat)))
    }

    /// The open directory that a path without links is in.
    pub fn parent(&self, path: &[u8]) -> Result<OwnedFd, CopyError> {
        let (parent, _) = split(path);
        open_beneath(self.root, parent, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(self.failed("opening directory", parent))
    }

    fn unlink_at(&self, path: &[u8], flags: AtFlags) -> Result<(), CopyError> {
        let name = OsStr::from_bytes(split(path).1);
        unlinkat(self.parent(path)?, name, flags).map_err(self.failed("removing", path))
    }

    /// Removes whatever is at a path, with all below it. Enters no link.
    pub fn remove_all(&mut self, path: &[u8]) -> Result<(), CopyError> {
        let mut dirs = vec![path.to_vec()];
        let mut next = 0;
        while next < dirs.len() {
            let dir = dirs[next].clone();
            next += 1;
            let opened = match open_beneath(self.root, &dir, OFlags::RDONLY | OFlags::DIRECTORY) {
                Err(Errno::NOTDIR | Errno::LOOP) if dir == path => {
                    self.owners.remove(&self.in_image(path));
                    return self.unlink_at(path, AtFlags::empty());
                }
                answer => answer.map_err(self.failed("removing", &dir))?,
            };
            for name in names(&opened).map_err(self.failed("removing", &dir))? {
                let child = join(&dir, &name);
                match unlinkat(&opened, OsStr::from_bytes(&name), AtFlags::empty()) {
                    Err(Errno::ISDIR) => dirs.push(child),
                    answer => answer.map_err(self.failed("removing", &child))?,
                }
            }
        }
        for dir in dirs.iter().rev() {
            self.unlink_at(dir, AtFlags::REMOVEDIR)?;
        }
        let gone = self.in_image(path);
        let below = |path: &[u8]| {
            path.strip_prefix(gone.as_slice()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        self.owners.retain(|path, _| !below(path));
        Ok(())
    }

    /// Creates a regular file, empty and writable, where nothing is.
    pub fn create_file(&self, path: &[u8]) -> Result<OwnedFd, CopyError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        open_beneath(self.root, path, flags).map_err(self.failed("creating", path))
    }

    fn make_node(&self, path: &[u8], kind: &NodeKind) -> Result<(), CopyError> {
        let (dir, name) = (self.parent(path)?, OsStr::from_bytes(split(path).1));
        let node = |file_type, device| mknodat(&dir, name, file_type, Mode::RUSR | Mode::WUSR, device);
        let made = match kind {
            NodeKind::Symlink { target } => symlinkat(OsStr::from_bytes(target), &dir, name),
            NodeKind::CharDevice { major, minor } => node(FileType::CharacterDevice, makedev(*major, *minor)),
            NodeKind::BlockDevice { major, minor } => node(FileType::BlockDevice, makedev(*major, *minor)),
            NodeKind::Fifo => node(FileType::Fifo, 0),
            NodeKind::Directory | NodeKind::File { .. } => Err(Errno::INVAL),
        };
        match (made, kind) {
            (Err(Errno::PERM), NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. }) => {
                Err(CopyError::Device(self.shown(path)))
            }
            (made, _) => made.map_err(self.failed("creating", path)),
        }
    }

    /// Remembers whose something is, unless the disk does.
    pub fn note_owner(&mut self, path: &[u8], owner: (u32, u32), applied: Applied) {
        let path = self.in_image(path);
        match applied {
            Applied::OnDisk => self.owners.remove(&path),
            Applied::InLayerOnly => self.owners.insert(path, owner),
        };
    }

    /// [`Ground::stamp`] for a file that is open; the owner is not noted, so several threads can do it at a time.
    pub fn stamp_file(&self, file: &File, path: &[u8], stamp: &Stamp<'_>) -> Result<Applied, CopyError> {
        let (uid, gid) = (Uid::from_raw(stamp.owner.0), Gid::from_raw(stamp.owner.1));
        let changed = fchown(file, Some(uid), Some(gid));
        let applied = applied(stamp.owner, changed, || fstat(file).map(Some))
            .map_err(self.failed("changing the owner of", path))?;
        self.stamp_open(file.as_fd(), path, stamp)?;
        let (seconds, nanoseconds) = stamp.time;
        futimens(file, &mtime(seconds, nanoseconds)).map_err(self.failed("changing the time of", path))?;
        Ok(applied)
    }

    /// [`Ground::stamp`] without taking note of the owner.
    pub fn stamp_only(&self, path: &[u8], stamp: &Stamp<'_>) -> Result<Applied, CopyError> {
        let (dir, name) = (self.parent(path)?, split(path).1);
        let stat = lstat(&dir, name).map_err(self.failed("reading", path))?;
        let stat = stat.ok_or(Errno::NOENT).map_err(self.failed("reading", path))?;
        let applied = apply_owner_at(&dir, name, stamp.owner);
        let applied = applied.map_err(self.failed("changing the owner of", path))?;
        match file_type(&stat) {
            FileType::Symlink => self.set_attributes_at(&dir, name, path, stamp)?,
            FileType::RegularFile | FileType::Directory => {
                let file = open_beneath(&dir, name, OFlags::RDONLY | OFlags::NONBLOCK)
                    .map_err(self.failed("opening", path))?;
                self.stamp_open(file.as_fd(), path, stamp)?;
            }
            _ => {
                set_node_mode(&dir, name, stamp.mode).map_err(self.failed("changing the mode of", path))?;
                self.set_attributes_at(&dir, name, path, stamp)?;
            }
        }
        let (seconds, nanoseconds) = stamp.time;
        set_mtime(&dir, name, seconds, nanoseconds).map_err(self.failed("changing the time of", path))?;
        Ok(applied)
    }

    fn set_attributes_at(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        stamp: &Stamp<'_>,
    ) -> Result<(), CopyError> {
        let mut xattrs = stamp.xattrs.iter();
        let set = xattrs.try_for_each(|(attribute, value)| set_xattr_at(dir, name, attribute, value));
        set.map_err(self.failed("setting attributes of", path))
    }

    fn stamp_open(&self, file: BorrowedFd<'_>, path: &[u8], stamp: &Stamp<'_>) -> Result<(), CopyError> {
        set_mode(file, stamp.mode).map_err(self.failed("changing the mode of", path))?;
        for (name, value) in stamp.xattrs {
            set_xattr(file, name, value).map_err(self.failed("setting attributes of", path))?;
        }
        Ok(())
    }
}

impl Paths for Target<'_> {
    type Error = CopyError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, CopyError> {
        let Some((dir, stat)) = self.look(path)? else { return Ok(None) };
        Ok(Some(match file_type(&stat) {
            FileType::Directory => Found::Directory,
            FileType::Symlink => {
                let target = readlinkat(dir, OsStr::from_bytes(split(path).1), Vec::new());
                Found::Link(target.map_err(self.failed("reading link", path))?.into_bytes())
            }
            _ => Found::Other,
        }))
    }

    fn told(&self, path: &[u8]) -> String {
        self.shown(path)
    }
}

impl Ground for Target<'_> {
    fn kind_at(&self, path: &[u8]) -> Result<Option<Kind>, CopyError> {
        Ok(self.find(path)?.map(|stat| kind(&stat)))
    }

    fn old_kind_at(&self, path: &[u8]) -> Result<Option<Kind>, CopyError> {
        if self.made.contains(split(path).0) { Ok(None) } else { self.kind_at(path) }
    }

    fn forget_made(&mut self) {
        self.made.clear();
    }

    fn make_dir(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError> {
        make_dir(self.parent(path)?, split(path).1, mode).map_err(self.failed("creating directory", path))?;
        self.made.insert(path.to_vec());
        Ok(())
    }

    fn set_owner(&mut self, path: &[u8], owner: (u32, u32)) -> Result<(), CopyError> {
        let applied = apply_owner_at(&self.parent(path)?, split(path).1, owner);
        let applied = applied.map_err(self.failed("changing the owner of", path))?;
        self.note_owner(path, owner, applied);
        Ok(())
    }

    fn change_mode(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError> {
        let stat = self.find(path)?.expect("a directory that was found is there");
        let stamp = Stamp {
            owner: (stat.st_uid, stat.st_gid),
            mode,
            xattrs: &BTreeMap::new(),
            time: (stat.st_mtime, stat.st_mtime_nsec as u32),
        };
        self.stamp_only(path, &stamp).map(drop)
    }

    fn unlink(&mut self, path: &[u8]) -> Result<(), CopyError> {
        self.unlink_at(path, AtFlags::empty())
    }

    fn create_node(&mut self, path: &[u8], kind: &NodeKind) -> Result<(), CopyError> {
        self.make_node(path, kind)
    }

    /// Several at a time.
    fn create_files(&mut self, new: NewFiles<'_>, cancel: &Cancel) -> Result<(), CopyError> {
        let this = &*self;
        let written = new.files.par_iter().map(|(source, path, node)| {
            let file = content::write(new.listing, source, node, this, path, cancel)?;
            this.stamp_file(&file, path, &(new.stamp)(node))
        });
        let applied = written.collect::<Result<Vec<_>, CopyError>>()?;
        for ((_, path, node), applied) in new.files.iter().zip(applied) {
            self.note_owner(path, (new.stamp)(node).owner, applied);
        }
        Ok(())
    }

    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<(), CopyError> {
        let (from, to) = (OsStr::from_bytes(split(existing).1), OsStr::from_bytes(split(path).1));
        linkat(self.parent(existing)?, from, self.parent(path)?, to, AtFlags::empty())
            .map_err(self.failed("linking", path))?;
        match self.owners.get(&self.in_image(existing)).copied() {
            Some(owner) => self.owners.insert(self.in_image(path), owner),
            None => self.owners.remove(&self.in_image(path)),
        };
        Ok(())
    }

    /// The order matters: a change of owner clears setuid and capabilities, and everything changes times.
    fn stamp(&mut self, path: &[u8], stamp: &Stamp<'_>) -> Result<(), CopyError> {
        let applied = self.stamp_only(path, stamp)?;
        self.note_owner(path, stamp.owner, applied);
        let was_noted = self.below.is_some_and(|below| below.contains_key(path));
        if was_noted && self.kind_at(path)? == Some(Kind::Directory) {
            // The diff would take the owner on disk for the one of a directory that was only touched.
            self.owners.insert(path.to_vec(), stamp.owner);
        }
        Ok(())
    }

    fn unpack(&mut self, archive: Packed<'_>, cancel: &Cancel) -> Result<(), CopyError> {
        archive::unpack(archive.listing, archive.path, self, archive.destination, archive.owner, cancel)
    }

    fn file_owner(&self, owner: &str) -> Result<(u32, u32), UserError> {
        file_owner(self.root, owner)
    }

    fn workdir_owner(&self, owner: &str, warn: &dyn Fn(UserError)) -> Result<(u32, u32), UserError> {
        workdir_owner(self.root, owner, warn)
    }
}

fn kind(stat: &Stat) -> Kind {
    if file_type(stat) == FileType::Directory { Kind::Directory } else { Kind::Other }
}

/// Where an owner could be noted down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The file on disk has it.
    OnDisk,
    /// This user namespace has no such id.
    InLayerOnly,
}

fn apply_owner_at(dir: &OwnedFd, name: &[u8], owner: (u32, u32)) -> Result<Applied, Errno> {
    applied(owner, set_owner(dir, name, owner.0, owner.1), || lstat(dir, name))
}

/// Makes of what a change of owner said whether the disk has that owner now.
fn applied(
    owner: (u32, u32),
    changed: Result<(), Errno>,
    look: impl FnOnce() -> Result<Option<Stat>, Errno>,
) -> Result<Applied, Errno> {
    match changed {
        Ok(()) => Ok(Applied::OnDisk),
        Err(Errno::PERM | Errno::INVAL) => {
            let same = look()?.is_some_and(|stat| (stat.st_uid, stat.st_gid) == owner);
            Ok(if same { Applied::OnDisk } else { Applied::InLayerOnly })
        }
        Err(error) => Err(error),
    }
}

//! Unpacks layers: a tar stream into a directory in overlay format, whatever the stream says.
//!
//! Two halves. [`unpack`] needs nothing but the stream, so layers are unpacked at the same time. [`Loose::settle`] comes
//! when the layers below are settled: directories that the archive implies but does not list take over what the layers
//! below say about them.
//!
//! Whatever a layer holds, nothing outside its own directory is read or changed (RELIABILITY R17, R18), and an entry is
//! unpacked as it is, or the layer is refused with its path. Of two entries with the same path the last one wins, but
//! two directories are one. Three things may be lost on disk without a refusal, and are warned of or recorded instead:
//! device nodes and most attributes where an ordinary user may not set them, and owners that his user namespace does
//! not have. Layers of a base image pass through a build as the blobs they are, so none of that reaches an image.

mod error;
mod notes;
mod place;
mod room;
mod settle;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use oci::ContentDigest;
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, fstat, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    },
    io::Errno,
};

pub use error::UnpackError;
use notes::{Known, Notes};
pub(crate) use settle::copy_metadata;

pub use room::NoRoom;
use room::Room;
use walk::{Directory, Made, Replaced, Walker};
pub(crate) use walk::{MAX_LINKS, names};

use crate::{
    form::{Form, is_mark},
    listing::Owners,
    snapshot::Stamp,
    tarball::{TarEntry, TarKind, TarReader},
};

/// How removed files are named in layers (image-spec, layer.md, "Whiteouts").
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";
pub(crate) const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Bookkeeping of AUFS, which old layers may still hold and everybody skips.
pub(crate) const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// Where a layer is unpacked to.
#[derive(Debug)]
pub struct Target {
    /// The empty directory that becomes the layer's.
    pub root: OwnedFd,
    /// A directory of the same file system that nobody looks into: what a later entry replaces goes there.
    pub trash: OwnedFd,
    /// How what it hides is marked.
    pub form: Form,
    /// The time that entries get instead of a normalised one.
    pub stamp: Stamp,
}

/// A layer that is unpacked, but not yet settled on those below.
pub struct Loose {
    walker: Walker,
    notes: Notes,
    form: Form,
    room: Room,
}

/// What is known of an unpacked layer beside its files.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Contents whose files carried a content-derived time.
    pub brought: BTreeSet<ContentDigest>,
    /// Owners, of this layer and of what shows through it, that the disk could not hold.
    pub owners: Owners,
    /// Whether nothing of the layers below is left.
    pub opaque_root: bool,
    /// What its files take on disk, about.
    pub bytes: u64,
    /// Contents of regular files by inode; `None` where there are too many of them.
    pub contents: Option<BTreeMap<u64, ContentDigest>>,
    /// What was left out, for people.
    pub warnings: Vec<String>,
}

/// Unpacks an uncompressed layer. The stream is not read beyond the archive's end mark.
///
/// # Errors
/// The archive is malformed, an entry is refused, or the disk fails; what is in the directory then is of no use.
pub fn unpack(stream: impl Read, target: Target) -> Result<Loose, UnpackError> {
    let walker = Walker::new(target.root, target.trash);
    let mut loose =
        Loose { walker, notes: Notes::new(target.stamp), form: target.form, room: Room::default() };
    let mut archive = TarReader::new(stream);
    while let Some(entry) = archive.next_entry()? {
        loose.place(&entry, &mut archive.content())?;
    }
    Ok(loose)
}

impl Loose {
    /// Whether nothing of the layers below shows through.
    pub fn hides_all_below(&self) -> bool {
        self.notes.opaque_root
    }

    /// Completes the layer's directory. `lowers` are the layers below, topmost first, all settled, and `owners` what
    /// their disk could not hold.
    ///
    /// # Errors
    /// The disk fails.
    pub fn settle(self, lowers: &[OwnedFd], owners: &Owners) -> Result<Unpacked, UnpackError> {
        let Self { walker, notes, form, .. } = self;
        let lowers = if notes.opaque_root { &[] } else { lowers };
        let mut stack = settle::Stack::new(&walker, lowers, form);
        for (path, _) in notes.paths().filter(|(_, known)| *known == Known::Whiteout) {
            stack.drop_if_stray(path)?;
        }
        let mut shown = stack.shown(owners, &|path| notes.known(path) == Some(Known::Implied))?;
        for (path, known) in notes.paths() {
            match known {
                Known::Implied => stack.inherit(path, notes.stamp)?,
                Known::Listed(time) => set_time(&walker, path, time)?,
                Known::Whiteout | Known::SkippedDevice => {}
            }
        }
        let warnings = notes.warnings();
        let Notes { brought, owners, opaque_root, bytes, contents, .. } = notes;
        shown.extend(owners);
        Ok(Unpacked { brought, owners: shown, opaque_root, bytes, contents, warnings })
    }

    fn place(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), UnpackError> {
        self.notes.count(entry);
        let names = names(&entry.path)?;
        let Some((name, parents)) = names.split_last() else {
            return self.place_root(entry);
        };
        let is_aufs = names[0].starts_with(AUFS_PREFIX) && names[0] != OPAQUE_WHITEOUT;
        if is_aufs {
            return Ok(());
        }
        if parents.iter().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
            return Err(UnpackError::refused(&entry.path, "it lies below a whiteout"));
        }
        let parent = self.parent(parents)?;
        if *name == OPAQUE_WHITEOUT {
            return self.hide_all_below(&parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.hide(&parent, hidden, entry);
        }
        match &entry.kind {
            TarKind::File => self.place_file(&parent, name, entry, content),
            TarKind::Directory => self.place_directory(&parent, name, entry),
            TarKind::HardLink(target) => self.place_hard_link(&parent, name, entry, target),
            TarKind::Symlink(target) => {
                self.create(&parent, name, || symlinkat(target.as_slice(), &parent, *name))?;
                place::finish_node(&parent, name, FileType::Symlink, entry, &mut self.notes)
            }
            TarKind::Fifo => self.place_node(&parent, name, entry, FileType::Fifo, (0, 0)),
            TarKind::CharDevice { major: 0, minor: 0 } => Err(UnpackError::refused(
                &entry.path,
                "a character device 0:0 is overlayfs's mark of a removed file",
            )),
            TarKind::CharDevice { major, minor } => {
                self.place_node(&parent, name, entry, FileType::CharacterDevice, (*major, *minor))
            }
            TarKind::BlockDevice { major, minor } => {
                self.place_node(&parent, name, entry, FileType::BlockDevice, (*major, *minor))
            }
        }
    }

    /// The directory for an entry; those that are missing on the way are implied.
    fn parent(&mut self, names: &[&[u8]]) -> Result<Arc<Directory>, UnpackError> {
        let Self { walker, notes, form, .. } = self;
        let mut fresh = Vec::new();
        let parent = walker.find_or_make(names, &mut |Made { parent, name, replaced }| {
            let path = parent.join(name);
            let was_hidden = form.unhide(parent, name).map_err(UnpackError::at("make directory", &path))?;
            if replaced == Replaced::Nothing && !was_hidden {
                return notes.remember(path, Known::Implied);
            }
            fresh.push(path.clone());
            notes.remember(path, Known::Listed(notes.stamp))
        })?;
        for path in fresh {
            let failed = UnpackError::at("make directory", &path);
            let directory =
                place::open_directory(walker.open(&path).map_err(&failed)?, b".").map_err(&failed)?;
            form.mark_opaque(&directory).map_err(&failed)?;
            settle::make_plain(&directory, notes.stamp).map_err(&failed)?;
        }
        Ok(parent)
    }

    /// Makes something that must be new, and takes what an earlier entry left there out of the way if need be.
    fn create<T>(
        &mut self,
        parent: &Directory,
        name: &[u8],
        mut make: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let path = parent.join(name);
        self.notes.forget(&path);
        self.form.unhide(parent, name).map_err(UnpackError::at("make", &path))?;
        match make() {
            Err(Errno::EXIST) => {
                self.walker.clear(parent, name)?;
                make().map_err(UnpackError::at("make", &path))
            }
            made => made.map_err(UnpackError::at("make", &path)),
        }
    }

    /// Takes a mark beside the place of something new away, and says whether there was one.
    fn unhide(&mut self, parent: &Directory, name: &[u8]) -> Result<bool, UnpackError> {
        let path = parent.join(name);
        let was_hidden = self.form.unhide(parent, name).map_err(UnpackError::at("make", &path))?;
        if was_hidden {
            self.notes.forget(&path);
        }
        Ok(was_hidden)
    }

    fn place_root(&mut self, entry: &TarEntry) -> Result<(), UnpackError> {
        if entry.kind != TarKind::Directory {
            return Err(UnpackError::refused(&entry.path, "the root can only be a directory"));
        }
        let failed = UnpackError::at("open", &entry.path);
        let root = place::open_directory(self.walker.open(b"").map_err(&failed)?, b".").map_err(&failed)?;
        self.finish_directory(root, Vec::new(), entry)
    }

    fn place_file(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &TarEntry,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.create(parent, name, || openat(parent, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut file = File::from(file);
        let digest = place::write_content(content, &mut file, entry, &mut self.room)
            .map_err(|error| UnpackError::io("write", &entry.path, error))?;
        let inode = fstat(&file).map_err(UnpackError::at("look at", &entry.path))?.st_ino;
        self.notes.content(inode, digest);
        let time = place::time_on_disk(entry, Some(digest), &mut self.notes);
        place::finish_open(&file, &parent.join(name), entry, time, &mut self.notes)
    }

    fn place_directory(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &TarEntry,
    ) -> Result<(), UnpackError> {
        let path = parent.join(name);
        let make = || mkdirat(parent, name, Mode::RWXU);
        let failed = UnpackError::at("make directory", &path);
        let replaces = match make() {
            Ok(()) => self.unhide(parent, name)?,
            Err(Errno::EXIST) if is_directory(parent, name).map_err(&failed)? => false,
            Err(Errno::EXIST) => {
                self.create(parent, name, make)?;
                true
            }
            Err(errno) => return Err(failed(errno)),
        };
        let directory = place::open_directory(parent, name).map_err(&failed)?;
        if replaces {
            // What stood here before hid the lower layers, and so must the directory.
            self.form.mark_opaque(&directory).map_err(failed)?;
        }
        self.finish_directory(directory, path.clone(), entry)
    }

    fn finish_directory(
        &mut self,
        directory: OwnedFd,
        path: Vec<u8>,
        entry: &TarEntry,
    ) -> Result<(), UnpackError> {
        let time = place::time_on_disk(entry, None, &mut self.notes);
        place::finish_open(directory, &path, entry, time, &mut self.notes)?;
        self.notes.remember(path, Known::Listed(time))
    }

    fn place_hard_link(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &TarEntry,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let target_names = names(target)
            .map_err(|_| UnpackError::refused(&entry.path, "it is a hard link to a path with \"..\""))?;
        let Some((target_name, target_parents)) = target_names.split_last() else {
            return Err(UnpackError::refused(&entry.path, "it is a hard link to a directory"));
        };
        let target_parent = self.walker.find(target_parents)?;
        let target_path = target_parent.join(target_name);
        if self.notes.known(&target_path) == Some(Known::SkippedDevice) {
            return self.notes.remember(parent.join(name), Known::SkippedDevice);
        }
        let missing = || {
            UnpackError::refused(&entry.path, "it is a hard link to something that the layer does not hold")
        };
        let stat = statat(&*target_parent, *target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if is_mark(&stat) || target_path == parent.join(name) {
            return Err(missing());
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(UnpackError::refused(&entry.path, "it is a hard link to a directory"));
        }
        self.create(parent, name, || linkat(&*target_parent, *target_name, parent, name, AtFlags::empty()))?;
        self.notes.same_owner(&parent.join(name), &target_path)
    }

    fn place_node(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &TarEntry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), UnpackError> {
        if kind != FileType::Fifo && !self.form.shows_device(&parent.join(name)) {
            return Err(UnpackError::refused(
                &entry.path,
                "fuse-overlayfs, which merges layers here, shows no devices",
            ));
        }
        let mode = Mode::RUSR | Mode::WUSR;
        let made =
            self.create(parent, name, || match mknodat(parent, name, kind, mode, makedev(major, minor)) {
                Err(Errno::PERM) if kind != FileType::Fifo => Ok(false),
                made => made.map(|()| true),
            })?;
        match made {
            true => place::finish_node(parent, name, kind, entry, &mut self.notes),
            false => self.notes.remember(parent.join(name), Known::SkippedDevice),
        }
    }

    /// An opaque whiteout: only what lower layers have in the directory is gone, wherever it stands in the layer.
    fn hide_all_below(&mut self, directory: &Directory) -> Result<(), UnpackError> {
        if directory.path.is_empty() {
            self.notes.opaque_root = true;
            return Ok(());
        }
        let failed = UnpackError::at("make opaque", &directory.path);
        let open = place::open_directory(directory, b".").map_err(&failed)?;
        self.form.mark_opaque(open).map_err(failed)
    }

    /// A whiteout: only what lower layers have at the path is gone; an entry of this layer stays, before or after it.
    fn hide(&mut self, parent: &Directory, name: &[u8], entry: &TarEntry) -> Result<(), UnpackError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(UnpackError::refused(&entry.path, "it is a whiteout of no name"));
        }
        let path = parent.join(name);
        let failed = UnpackError::at("make the whiteout", &path);
        match self.form.hide(parent, name) {
            Ok(()) => self.notes.remember(path.clone(), Known::Whiteout),
            Err(Errno::EXIST) if is_directory(parent, name).map_err(&failed)? => {
                let directory = place::open_directory(parent, name).map_err(&failed)?;
                self.form.mark_opaque(directory).map_err(failed)
            }
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(failed(errno)),
        }
    }
}

fn is_directory(parent: &Directory, name: &[u8]) -> Result<bool, Errno> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn set_time(walker: &Walker, path: &[u8], time: Stamp) -> Result<(), UnpackError> {
    let failed = UnpackError::at("set the time of", path);
    let directory = place::open_directory(walker.open(path).map_err(&failed)?, b".").map_err(&failed)?;
    rustix::fs::futimens(directory.as_fd(), &place::timestamps(time)).map_err(failed)
}

#[cfg(test)]
mod tests;

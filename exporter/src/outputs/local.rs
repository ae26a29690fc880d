//! The files of images into a directory of the user's (`type=local`), over what is there.
//!
//! As with buildx, everything then belongs to whoever runs the build; a file that was to belong to somebody else loses
//! setuid and setgid, so that nothing gains rights it did not have. What this user cannot have at all (devices,
//! capabilities) is left out. Each of these is said once, in a warning.
//!
//! The directory may hold anything, links of an earlier image too: every path is resolved below it without following
//! one. Each file appears whole or not at all; directories get their modes and times at the end.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use oci::ContentDigest;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};
use solver::Event;

use super::{
    ExportError, FileSystem, PlatformSplit, Tools, failed,
    file::{NewFile, open_directory, replace},
    flat::{self, FlatEntry, FlatKind, Taken},
};
use crate::{archive::ArchiveError, layer::TimePolicy};

/// Writes the files of images, each platform's where `split` says.
pub fn export(
    systems: &[FileSystem],
    directory: &Path,
    split: PlatformSplit,
    times: TimePolicy,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let mut together = flat::together(systems, split);
    for system in systems {
        let prefix = flat::prefix(systems, split, &system.platform);
        let directory = prefix.map_or_else(|| directory.to_owned(), |prefix| directory.join(prefix));
        let is_new = !directory.exists();
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        if let Err(error) = export_system(system, &directory, together.as_mut(), times, tools) {
            if is_new {
                // Only an empty one can be removed, and one that holds something is to stay.
                let _ = fs::remove_dir(&directory);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn export_system<'a>(
    system: &'a FileSystem,
    directory: &Path,
    mut together: Option<&mut Taken<'a>>,
    times: TimePolicy,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let root = open_directory(directory).map_err(failed("open", directory))?;
    let mut target = Target { root, path: directory, directories: Vec::new(), losses: BTreeMap::new() };
    flat::walk(system, times, tools, &mut |entry| {
        let wanted = together.as_mut().map_or(Ok(true), |taken| taken.take(&system.platform, entry))?;
        if wanted { target.write(entry) } else { Ok(()) }
    })?;
    target.finish_directories()?;
    target.report(tools);
    Ok(())
}

/// The user's directory while it is written to.
struct Target<'a> {
    root: OwnedFd,
    path: &'a Path,
    /// What directories get when nothing is written into them any more.
    directories: Vec<(Vec<u8>, Mode, i64)>,
    /// What some files could not have: the first of them, and how many there are.
    losses: BTreeMap<Loss, (Vec<u8>, usize)>,
}

/// What a file can lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    Owner,
    Attributes,
    Device,
}

impl Loss {
    fn reason(self) -> &'static str {
        match self {
            Self::Owner => "given to you instead of their owners in the image (type=tar keeps owners)",
            Self::Attributes => "written without extended attributes that cannot be set here",
            Self::Device => "left out, since only root can make devices",
        }
    }
}

impl Target<'_> {
    fn write(&mut self, entry: &FlatEntry<'_>) -> Result<(), ExportError> {
        let site = self.site(&entry.path)?;
        let loss = match &entry.kind {
            FlatKind::Directory => {
                self.directories.push((entry.path.clone(), mode_of(entry), entry.time));
                site.directory().map(|()| None)
            }
            FlatKind::File(size) => site.file(entry, *size),
            // It shares the metadata of the name that came before.
            FlatKind::HardLink(target) => return site.hard_link(&self.site(target)?),
            FlatKind::Symlink(target) => site.symlink(target, entry.time).map(|()| None),
            FlatKind::Fifo => site.node(entry, FileType::Fifo, 0),
            FlatKind::CharDevice(major, minor) => {
                site.node(entry, FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))
            }
            FlatKind::BlockDevice(major, minor) => {
                site.node(entry, FileType::BlockDevice, rustix::fs::makedev(*major, *minor))
            }
        }?;
        let foreign = (is_foreign(entry) && loss != Some(Loss::Device)).then_some(Loss::Owner);
        for loss in loss.into_iter().chain(foreign) {
            self.losses.entry(loss).or_insert_with(|| (entry.path.clone(), 0)).1 += 1;
        }
        Ok(())
    }

    /// Where a path is to be made: its directory is opened without following any link.
    fn site<'p>(&self, path: &'p [u8]) -> Result<Site<'p>, ExportError> {
        let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(name_at);
        let parent = self.open(if parent.is_empty() { b"." } else { parent })?;
        Ok(Site { parent, name: OsStr::from_bytes(name), path: self.path.join(OsStr::from_bytes(path)) })
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, ExportError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = OsStr::from_bytes(path);
        let opened = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
        opened.map_err(|error| failed("open", &self.path.join(path))(error.into()))
    }

    /// Gives directories their modes and times, the deepest first.
    fn finish_directories(&self) -> Result<(), ExportError> {
        for (path, mode, time) in self.directories.iter().rev() {
            let directory = self.open(path)?;
            let chmod = rustix::fs::fchmod(&directory, *mode);
            let set = chmod.and_then(|()| rustix::fs::futimens(&directory, &timestamps(*time)));
            let path = self.path.join(OsStr::from_bytes(path));
            set.map_err(|error| failed("set the mode and time of", &path)(error.into()))?;
        }
        Ok(())
    }

    fn report(&self, tools: &Tools<'_>) {
        for (loss, (first, count)) in &self.losses {
            let (path, reason, first) = (self.path.display(), loss.reason(), String::from_utf8_lossy(first));
            let more = if *count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            (tools.events)(Event::Warning(format!("{path}: {reason}: /{first}{more}")));
        }
    }
}

/// Where one file is to be made.
struct Site<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
    /// For messages.
    path: PathBuf,
}

impl Site<'_> {
    fn failed(&self, error: impl Into<io::Error>) -> ExportError {
        failed("write", &self.path)(error.into())
    }

    /// Makes a directory that we may write to, or takes the one that is there; anything else in its place goes.
    fn directory(&self) -> Result<(), ExportError> {
        let Self { parent, name, .. } = self;
        let make = || match rustix::fs::mkdirat(parent, *name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, *name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    let writable = Mode::from_raw_mode(stat.st_mode & 0o7777) | Mode::RWXU;
                    return rustix::fs::chmodat(parent, *name, writable, AtFlags::empty());
                }
                rustix::fs::unlinkat(parent, *name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, *name, Mode::RWXU)
            }
            made => made,
        };
        make().map_err(|error| self.failed(error))
    }

    fn hard_link(&self, first: &Site<'_>) -> Result<(), ExportError> {
        let link = |name: &OsStr| {
            rustix::fs::linkat(&first.parent, first.name, &self.parent, name, AtFlags::empty())
        };
        replace(&self.parent, self.name, link).map_err(|error| self.failed(error))
    }

    fn symlink(&self, target: &[u8], time: i64) -> Result<(), ExportError> {
        let target = OsStr::from_bytes(target);
        let link = |name: &OsStr| rustix::fs::symlinkat(target, &self.parent, name);
        replace(&self.parent, self.name, link).map_err(|error| self.failed(error))?;
        self.set_time(time)
    }

    /// Makes a pipe or a device, unless only root may.
    fn node(&self, entry: &FlatEntry<'_>, kind: FileType, device: u64) -> Result<Option<Loss>, ExportError> {
        let mode = mode_of(entry);
        let make = |name: &OsStr| {
            rustix::fs::mknodat(&self.parent, name, kind, mode, device)?;
            rustix::fs::chmodat(&self.parent, name, mode, AtFlags::empty())
        };
        match replace(&self.parent, self.name, make) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && kind != FileType::Fifo => {
                return Ok(Some(Loss::Device));
            }
            made => made.map_err(|error| self.failed(error))?,
        }
        self.set_time(entry.time).map(|()| None)
    }

    fn set_time(&self, time: i64) -> Result<(), ExportError> {
        let set =
            rustix::fs::utimensat(&self.parent, self.name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW);
        set.map_err(|error| self.failed(error))
    }

    /// Writes a regular file with its metadata.
    fn file(&self, entry: &FlatEntry<'_>, size: u64) -> Result<Option<Loss>, ExportError> {
        let mut file = NewFile::create(&self.parent, self.name).map_err(|error| self.failed(error))?;
        self.copy(entry, size, &mut file)?;
        let complete = set_xattrs(file.file(), entry).map_err(|error| self.failed(error))?;
        rustix::fs::fchmod(file.file(), mode_of(entry)).map_err(|error| self.failed(error))?;
        rustix::fs::futimens(file.file(), &timestamps(entry.time)).map_err(|error| self.failed(error))?;
        file.commit().map_err(|error| self.failed(error))?;
        Ok((!complete).then_some(Loss::Attributes))
    }

    fn copy(&self, entry: &FlatEntry<'_>, size: u64, file: &mut NewFile<'_>) -> Result<(), ExportError> {
        let unreadable = |source| ArchiveError::Read { path: entry.path.clone(), source };
        let mut content = entry.open().map_err(unreadable)?;
        let (mut hasher, mut buffer, mut written) = (blake3::Hasher::new(), vec![0; 256 * 1024], 0);
        loop {
            let count = content.read(&mut buffer).map_err(unreadable)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            written += count as u64;
            file.write_all(&buffer[..count]).map_err(|error| self.failed(error))?;
        }
        let expected = |digest| digest == ContentDigest::from(hasher.finalize());
        if written != size || !entry.content.is_none_or(expected) {
            return Err(ArchiveError::Changed { path: entry.path.clone(), what: "other content" }.into());
        }
        Ok(())
    }
}

/// Whether an entry belongs to somebody else than the user who runs the build.
fn is_foreign(entry: &FlatEntry<'_>) -> bool {
    entry.uid != rustix::process::geteuid().as_raw() || entry.gid != rustix::process::getegid().as_raw()
}

fn mode_of(entry: &FlatEntry<'_>) -> Mode {
    let gains_rights = is_foreign(entry) && entry.kind != FlatKind::Directory;
    Mode::from_raw_mode(if gains_rights { entry.mode & 0o1777 } else { entry.mode })
}

/// Sets extended attributes; `false` if some of them are not for us to set.
fn set_xattrs(file: &File, entry: &FlatEntry<'_>) -> rustix::io::Result<bool> {
    let mut complete = true;
    for (name, value) in &entry.xattrs {
        match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Err(Errno::PERM | Errno::NOTSUP | Errno::ACCESS) => complete = false,
            set => set?,
        }
    }
    Ok(complete)
}

fn timestamps(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

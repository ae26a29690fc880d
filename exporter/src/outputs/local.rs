//! The files of images into a directory of the user's (`type=local`), over what is there.
//!
//! As with buildx, everything then belongs to whoever runs the build; a file that was to belong to somebody else loses
//! setuid and setgid, so that nothing gains rights it did not have. What this user cannot have at all (devices,
//! capabilities) is left out. Each of these is said once, in a warning.
//!
//! The directory may hold anything, links of an earlier image too: every path is resolved below it without following
//! one. Each file appears whole or not at all; directories get their modes and times at the end.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use oci::ContentDigest;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};
use solver::Event;

use super::{
    ExportError, FileSystem, Tools, failed,
    file::{NewFile, open_directory, replace},
    flat::{self, FlatEntry, FlatKind},
};
use crate::{archive::ArchiveError, layer::TimePolicy};

/// Writes the files of images, those of several platforms each below its own directory.
pub fn export(
    systems: &[FileSystem],
    directory: &Path,
    times: TimePolicy,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    for system in systems {
        let prefix = flat::prefix(systems, &system.platform);
        let directory = prefix.map_or_else(|| directory.to_owned(), |prefix| directory.join(prefix));
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let root = open_directory(&directory).map_err(failed("open", &directory))?;
        let mut target = Target { root, path: &directory, directories: Vec::new(), lost: Default::default() };
        flat::walk(system, times, tools, &mut |entry| target.write(entry))?;
        target.finish(tools)?;
    }
    Ok(())
}

struct Target<'a> {
    root: OwnedFd,
    path: &'a Path,
    /// What directories get when nothing is written into them any more.
    directories: Vec<(Vec<u8>, Mode, i64)>,
    lost: [Lost; 3],
}

/// What some files could not have: how many, and the first of them.
#[derive(Default)]
struct Lost {
    count: usize,
    first: Vec<u8>,
}

const OWNER: usize = 0;
const DEVICE: usize = 1;
const XATTR: usize = 2;
const REASONS: [&str; 3] = [
    "belong to other users in the image and to you here (type=tar keeps owners)",
    "are devices that only root can make, and were left out",
    "have extended attributes that cannot be set here, and lost them",
];

impl Target<'_> {
    fn write(&mut self, entry: &FlatEntry<'_>) -> Result<(), ExportError> {
        let (parent, name) = self.place(&entry.path)?;
        let failed =
            |error: io::Error| failed("write", &self.path.join(OsStr::from_bytes(&entry.path)))(error);
        let made = match &entry.kind {
            FlatKind::Directory => {
                self.directories.push((entry.path.clone(), mode_of(entry), entry.time));
                make_directory(&parent, name).map_err(failed)?;
                true
            }
            FlatKind::File(size) => {
                let kept = write_file(&parent, name, entry, *size, failed)?;
                self.note(XATTR, !kept, entry);
                true
            }
            FlatKind::HardLink(target) => {
                let (source, source_name) = self.place(target)?;
                let link =
                    |name: &OsStr| rustix::fs::linkat(&source, source_name, &parent, name, AtFlags::empty());
                replace(&parent, name, link).map_err(failed)?;
                // It shares the metadata of the name that came before.
                return Ok(());
            }
            FlatKind::Symlink(target) => {
                let target = OsStr::from_bytes(target);
                replace(&parent, name, |name| rustix::fs::symlinkat(target, &parent, name))
                    .map_err(failed)?;
                set_time(&parent, name, entry.time).map_err(|error| failed(error.into()))?;
                true
            }
            FlatKind::Fifo => self.node(&parent, name, entry, FileType::Fifo, 0)?,
            FlatKind::CharDevice(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                self.node(&parent, name, entry, FileType::CharacterDevice, device)?
            }
            FlatKind::BlockDevice(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                self.node(&parent, name, entry, FileType::BlockDevice, device)?
            }
        };
        self.note(DEVICE, !made, entry);
        self.note(OWNER, made && is_foreign(entry), entry);
        Ok(())
    }

    /// Makes a pipe or a device, unless only root may.
    fn node(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &FlatEntry<'_>,
        kind: FileType,
        device: u64,
    ) -> Result<bool, ExportError> {
        let mode = mode_of(entry);
        let make = |name: &OsStr| {
            rustix::fs::mknodat(parent, name, kind, mode, device)?;
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
        };
        let made = match replace(parent, name, make) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && kind != FileType::Fifo => {
                return Ok(false);
            }
            made => made.and_then(|()| Ok(set_time(parent, name, entry.time)?)),
        };
        made.map_err(failed("write", &self.path.join(OsStr::from_bytes(&entry.path))))?;
        Ok(true)
    }

    /// The directory that a path is in, opened without following any link, and the path's last name.
    fn place<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p OsStr), ExportError> {
        let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(name_at);
        let parent = self.open(if parent.is_empty() { b"." } else { parent })?;
        Ok((parent, OsStr::from_bytes(name)))
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, ExportError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = OsStr::from_bytes(path);
        let opened = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
        opened.map_err(|error| failed("open", &self.path.join(path))(error.into()))
    }

    fn note(&mut self, what: usize, lost: bool, entry: &FlatEntry<'_>) {
        let noted = &mut self.lost[what];
        if lost && noted.count == 0 {
            noted.first.clone_from(&entry.path);
        }
        noted.count += usize::from(lost);
    }

    /// Gives directories their modes and times, the deepest first, and says what was lost.
    fn finish(&self, tools: &Tools<'_>) -> Result<(), ExportError> {
        for (path, mode, time) in self.directories.iter().rev() {
            let directory = self.open(path)?;
            let set = || {
                rustix::fs::fchmod(&directory, *mode)?;
                rustix::fs::futimens(&directory, &timestamps(*time))
            };
            let set: rustix::io::Result<()> = set();
            let path = self.path.join(OsStr::from_bytes(path));
            set.map_err(|error| failed("set the mode and time of", &path)(error.into()))?;
        }
        for (Lost { count, first }, reason) in self.lost.iter().zip(REASONS) {
            if *count > 0 {
                let first = String::from_utf8_lossy(first);
                let path = self.path.display();
                (tools.events)(Event::Warning(format!(
                    "{path}: {count} files {reason}; the first is /{first}"
                )));
            }
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

/// Makes a directory that we may write to, or takes the one that is there; anything else in its place goes.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Err(Errno::EXIST) => {}
        made => return Ok(made?),
    }
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        return Ok(rustix::fs::mkdirat(parent, name, Mode::RWXU)?);
    }
    let writable = Mode::from_raw_mode(stat.st_mode & 0o7777) | Mode::RWXU;
    Ok(rustix::fs::chmodat(parent, name, writable, AtFlags::empty())?)
}

/// Writes a regular file with its metadata; returns whether it has all its extended attributes.
fn write_file(
    parent: &OwnedFd,
    name: &OsStr,
    entry: &FlatEntry<'_>,
    size: u64,
    failed: impl Fn(io::Error) -> ExportError,
) -> Result<bool, ExportError> {
    let unreadable = |source| ArchiveError::Read { path: entry.path.clone(), source };
    let mut content = entry.open().map_err(unreadable)?;
    let mut file = NewFile::create(parent, name).map_err(&failed)?;
    copy(&mut content, &mut file, entry, size, &failed)?;
    let complete = set_xattrs(file.file(), entry).map_err(|error| failed(error.into()))?;
    rustix::fs::fchmod(file.file(), mode_of(entry)).map_err(|error| failed(error.into()))?;
    rustix::fs::futimens(file.file(), &timestamps(entry.time)).map_err(|error| failed(error.into()))?;
    file.commit().map_err(failed)?;
    Ok(complete)
}

fn copy(
    content: &mut fs::File,
    file: &mut NewFile<'_>,
    entry: &FlatEntry<'_>,
    size: u64,
    failed: &impl Fn(io::Error) -> ExportError,
) -> Result<(), ExportError> {
    use io::{Read, Write};
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut written = 0;
    loop {
        let unreadable = |source| ArchiveError::Read { path: entry.path.clone(), source };
        let count = content.read(&mut buffer).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        written += count as u64;
        file.write_all(&buffer[..count]).map_err(failed)?;
    }
    let expected = entry.content.is_none_or(|content| content == ContentDigest::from(hasher.finalize()));
    if written != size || !expected {
        return Err(ArchiveError::Changed { path: entry.path.clone(), what: "other content" }.into());
    }
    Ok(())
}

/// Sets extended attributes; `false` if some of them are not for us to set.
fn set_xattrs(file: impl AsFd, entry: &FlatEntry<'_>) -> rustix::io::Result<bool> {
    let mut complete = true;
    for (name, value) in &entry.xattrs {
        match rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()) {
            Err(Errno::PERM | Errno::NOTSUP | Errno::ACCESS) => complete = false,
            set => set?,
        }
    }
    Ok(complete)
}

fn set_time(parent: &OwnedFd, name: &OsStr, time: i64) -> rustix::io::Result<()> {
    rustix::fs::utimensat(parent, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
}

fn timestamps(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

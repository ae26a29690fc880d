//! The files of an image as one tree: walks the merged file system that the executor has mounted, in sorted order.
//!
//! What is on disk is not all of the truth: times there are real, so that tools work while the build runs, and without
//! privileges owners are not what they will be. What a built layer records of an entry therefore goes before what the
//! file system says; entries of base images are taken from disk, with the owners that the executor had to keep apart,
//! and a time there that a layer would normalise is normalised.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, Layer, Metadata, Platform, Snapshot, Tree, store::Store,
    tree::TIME_LIMIT,
};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{ExportError, FileSystem, PlatformSplit, Tools, go_on};
use crate::{archive::ArchiveError, layer::TimePolicy, pax::Kind, seal::read_tree};

/// One file of an image.
#[derive(Debug)]
pub struct FlatEntry<'a> {
    /// Path from the root, without a leading slash.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FlatKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in Unix seconds.
    pub time: i64,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What a regular file must hold, where a built layer says so.
    pub content: Option<ContentDigest>,
    parent: &'a OwnedFd,
    name: &'a OsStr,
}

/// What a file is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlatKind {
    /// A directory.
    Directory,
    /// A regular file of this many bytes.
    File(u64),
    /// Another name of a file that came before: its path.
    HardLink(Vec<u8>),
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

impl FlatEntry<'_> {
    /// Opens a regular file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(&self) -> io::Result<File> {
        open_file(self.parent, self.name)
    }
}

fn open_file(parent: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?.into())
}

impl FlatKind {
    /// The path that a hard link is another name of; empty for everything else.
    pub fn hard_link_target(&self) -> &[u8] {
        match self {
            Self::HardLink(target) => target,
            _ => b"",
        }
    }

    /// The kind in a tar, where the target of a hard link may stand under another path.
    pub fn in_archive<'a>(&'a self, hard_link_target: &'a [u8]) -> Kind<'a> {
        match self {
            Self::Directory => Kind::Directory,
            Self::File(size) => Kind::File(*size),
            Self::HardLink(_) => Kind::HardLink(hard_link_target),
            Self::Symlink(target) => Kind::Symlink(target),
            Self::CharDevice(major, minor) => Kind::CharDevice(*major, *minor),
            Self::BlockDevice(major, minor) => Kind::BlockDevice(*major, *minor),
            Self::Fifo => Kind::Fifo,
        }
    }
}

/// The directory of one platform: `linux_amd64`, or none where its files go beside those of the others.
pub fn prefix(systems: &[FileSystem], split: PlatformSplit, platform: &Platform) -> Option<String> {
    let is_split = match split {
        PlatformSplit::Several => systems.len() > 1,
        PlatformSplit::Always => true,
        PlatformSplit::Never => false,
    };
    is_split.then(|| platform.to_string().replace('/', "_"))
}

/// What the platforms before have written where the files of several go into one place.
#[derive(Debug, Default)]
pub struct Taken<'a> {
    /// Whose a path is, and whether it is a directory.
    paths: BTreeMap<Vec<u8>, (&'a Platform, bool)>,
}

/// Keeps watch where the files of several platforms go into one place.
pub fn together<'a>(systems: &[FileSystem], split: PlatformSplit) -> Option<Taken<'a>> {
    (systems.len() > 1 && split == PlatformSplit::Never).then(Taken::default)
}

impl<'a> Taken<'a> {
    /// Whether an entry is to be written: a directory that is there stays as the first platform has it.
    ///
    /// # Errors
    /// [`ExportError::Collision`]
    pub fn take(&mut self, platform: &'a Platform, entry: &FlatEntry<'_>) -> Result<bool, ExportError> {
        let is_directory = entry.kind == FlatKind::Directory;
        match self.paths.get(&entry.path) {
            None => {
                self.paths.insert(entry.path.clone(), (platform, is_directory));
                Ok(true)
            }
            Some((_, true)) if is_directory => Ok(false),
            Some((first, _)) => Err(ExportError::Collision {
                path: entry.path.clone(),
                first: Box::new((*first).clone()),
                second: Box::new(platform.clone()),
            }),
        }
    }
}

/// Shows every file below the root to `visit`: directories before what is in them, names in byte order. Sockets are
/// left out, as in layers.
///
/// # Errors
/// What `visit` gives, or a file cannot be read.
pub fn walk(
    system: &FileSystem,
    times: TimePolicy,
    tools: &Tools<'_>,
    visit: &mut dyn FnMut(&FlatEntry<'_>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let recorded = recorded(&system.snapshot, tools.fetcher.store())?;
    let mut walker = Walker { system, recorded, times, first_names: BTreeMap::new() };
    let mut stack = vec![Frame::open(&system.root, OsStr::new("."), Vec::new())?];
    while let Some(frame) = stack.last_mut() {
        go_on(tools.cancel)?;
        let Some(name) = frame.names.pop() else {
            stack.pop();
            continue;
        };
        let Some(entry) = walker.entry(frame, &name)? else { continue };
        visit(&entry)?;
        if entry.kind == FlatKind::Directory {
            let child = Frame::open(&frame.directory, &name, entry.path)?;
            stack.push(child);
        }
    }
    Ok(())
}

/// A directory on the way, and what of it is still to be shown.
struct Frame {
    directory: OwnedFd,
    path: Vec<u8>,
    /// The last one comes first.
    names: Vec<OsString>,
}

impl Frame {
    fn open(parent: &OwnedFd, name: &OsStr, path: Vec<u8>) -> Result<Self, ArchiveError> {
        let read = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if !matches!(name.as_slice(), b"." | b"..") {
                    names.push(OsString::from_vec(name));
                }
            }
            names.sort_by(|a, b| b.cmp(a));
            Ok((directory, names))
        };
        match read() {
            Ok((directory, names)) => Ok(Self { directory, path, names }),
            Err(source) => Err(unreadable(&path)(source)),
        }
    }
}

fn unreadable(path: &[u8]) -> impl FnOnce(Errno) -> ArchiveError {
    move |source| ArchiveError::Read { path: path.to_vec(), source: source.into() }
}

struct Walker<'s> {
    system: &'s FileSystem,
    recorded: BTreeMap<Vec<u8>, Recorded>,
    times: TimePolicy,
    /// The name under which each file with several names was shown first, by device and inode.
    first_names: BTreeMap<(u64, u64), Vec<u8>>,
}

/// What a built layer says of a path.
#[derive(Clone)]
struct Recorded {
    metadata: Metadata,
    content: Option<ContentDigest>,
}

impl Walker<'_> {
    fn entry<'a>(&mut self, frame: &'a Frame, name: &'a OsStr) -> Result<Option<FlatEntry<'a>>, ExportError> {
        let mut path = frame.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let parent = &frame.directory;
        let Some((kind, recorded)) = self.examine(parent, name, &path).map_err(unreadable(&path))? else {
            return Ok(None);
        };
        let Recorded { metadata: Metadata { mode, uid, gid, time, xattrs }, content } = recorded;
        let time = self.times.seconds(time, content.as_ref());
        Ok(Some(FlatEntry { path, kind, mode, uid, gid, time, xattrs, content, parent, name }))
    }

    fn examine(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &[u8],
    ) -> rustix::io::Result<Option<(FlatKind, Recorded)>> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let Some(kind) = self.kind(parent, name, &stat, path)? else { return Ok(None) };
        let recorded = match self.recorded.get(path) {
            Some(recorded) => recorded.clone(),
            None => self.of_base(parent, name, &stat, path)?,
        };
        Ok(Some((kind, recorded)))
    }

    fn kind(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
        path: &[u8],
    ) -> rustix::io::Result<Option<FlatKind>> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let first = self.first_names.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_vec());
            if first != path {
                return Ok(Some(FlatKind::HardLink(first.clone())));
            }
        }
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        Ok(Some(match kind {
            FileType::Directory => FlatKind::Directory,
            FileType::RegularFile => FlatKind::File(stat.st_size as u64),
            FileType::Symlink => {
                FlatKind::Symlink(rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes())
            }
            FileType::CharacterDevice => FlatKind::CharDevice(major, minor),
            FileType::BlockDevice => FlatKind::BlockDevice(major, minor),
            FileType::Fifo => FlatKind::Fifo,
            FileType::Socket | FileType::Unknown => return Ok(None),
        }))
    }

    /// What is known of an entry that no built layer speaks of.
    fn of_base(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
        path: &[u8],
    ) -> rustix::io::Result<Recorded> {
        let normalised = stat.st_mtime >= TIME_LIMIT && self.times != TimePolicy::Preserve;
        let content = if normalised { self.brought(parent, name, stat)? } else { None };
        let time = match content {
            Some(_) => EntryTime::Content,
            None if normalised => EntryTime::Epoch,
            None => EntryTime::Kept(stat.st_mtime),
        };
        let (uid, gid) = self.system.owners.get(path).copied().unwrap_or((stat.st_uid, stat.st_gid));
        let xattrs = xattrs(parent, name)?;
        Ok(Recorded { metadata: Metadata { mode: stat.st_mode & 0o7777, uid, gid, time, xattrs }, content })
    }

    /// The content of a regular file, if it came by COPY or ADD.
    fn brought(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
    ) -> rustix::io::Result<Option<ContentDigest>> {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || self.system.brought.is_empty() {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        let hashed = open_file(parent, name).and_then(|file| hasher.update_reader(file).map(drop));
        hashed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let content = ContentDigest::from(hasher.finalize());
        Ok(self.system.brought.contains(&content).then_some(content))
    }
}

fn xattrs(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    let path = path.as_slice();
    let mut list = Vec::with_capacity(64 * 1024);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        listed => listed?,
    };
    let names = list.split(|byte| *byte == 0).filter(|name| is_wanted(name));
    let value = |name: &[u8]| {
        let mut value = Vec::with_capacity(64 * 1024);
        rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        Ok((name.to_vec(), value))
    };
    names.map(value).collect()
}

/// Whether an extended attribute of a base image's file belongs to the image. The rest is the machine's.
fn is_wanted(name: &[u8]) -> bool {
    let of_overlayfs = name.starts_with(b"user.overlay.");
    let ours: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
    ours.contains(&name) || (name.starts_with(b"user.") && !of_overlayfs)
}

/// What the built layers of a snapshot say of the paths that they leave in its file system.
fn recorded(snapshot: &Snapshot, store: &Store) -> Result<BTreeMap<Vec<u8>, Recorded>, ExportError> {
    let mut recorded = BTreeMap::new();
    for (_, layer) in snapshot.chain() {
        if let Layer::Built(digest) = layer {
            apply(&read_tree(store, *digest)?, &mut recorded);
        }
    }
    Ok(recorded)
}

fn apply(tree: &Tree, recorded: &mut BTreeMap<Vec<u8>, Recorded>) {
    for Entry { path, kind, metadata } in tree.entries() {
        if !matches!(kind, EntryKind::Directory) {
            remove_below(path, recorded);
        }
        let content = match kind {
            EntryKind::Opaque => continue,
            EntryKind::Whiteout => {
                recorded.remove(path);
                continue;
            }
            EntryKind::File { content, .. } => Some(*content),
            EntryKind::HardLink { target } => match tree.get(target).map(|entry| &entry.kind) {
                Some(EntryKind::File { content, .. }) => Some(*content),
                _ => None,
            },
            _ => None,
        };
        recorded.insert(path.clone(), Recorded { metadata: metadata.clone(), content });
    }
}

fn remove_below(path: &[u8], recorded: &mut BTreeMap<Vec<u8>, Recorded>) {
    let start = [path, b"/"].concat();
    let below = recorded.range(start.clone()..).map(|(path, _)| path);
    let below: Vec<_> = below.take_while(|path| path.starts_with(&start)).cloned().collect();
    below.iter().for_each(|path| drop(recorded.remove(path)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, EntryKind)]) -> Tree {
        let entry = |(path, kind): &(&str, EntryKind)| Entry {
            path: path.as_bytes().to_vec(),
            kind: kind.clone(),
            metadata: Metadata::default(),
        };
        Tree::new(entries.iter().map(entry).collect()).expect("valid")
    }

    #[test]
    fn later_layers_hide_what_earlier_ones_say() {
        let file = EntryKind::File { size: 1, content: ContentDigest::of(b"x") };
        let mut recorded = BTreeMap::new();
        let lower = [("d", EntryKind::Directory), ("d/a", file.clone()), ("d-e", file.clone())];
        apply(&tree(&lower), &mut recorded);
        apply(
            &tree(&[("d", EntryKind::Directory), ("d", EntryKind::Opaque), ("d/b", file.clone())]),
            &mut recorded,
        );
        let paths = |recorded: &BTreeMap<Vec<u8>, Recorded>| {
            recorded.keys().map(|path| String::from_utf8(path.clone()).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(paths(&recorded), ["d", "d-e", "d/b"]);
        apply(&tree(&[("d", EntryKind::Whiteout)]), &mut recorded);
        assert_eq!(paths(&recorded), ["d-e"]);
    }
}

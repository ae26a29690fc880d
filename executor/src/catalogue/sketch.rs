//! Draws up a catalogue while an archive goes by: what [`crate::unpack`] does with directories of a disk, done with names.
//!
//! Names lead to things, so that hard links hold when one of their names is replaced. A name that something stands at has
//! directories above it, up to the root.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, Metadata, Tree,
    tree::{NORMAL_TIME, content_time},
};
use rustix::fs::FileType;

use super::{Catalogue, plain};
use crate::{
    rootfs::{join, may_carry, reaches_layer, split},
    tarball::{TarEntry, TarKind},
    unpack::{AUFS_PREFIX, MAX_LINKS, OPAQUE_WHITEOUT, UnpackError, WHITEOUT_PREFIX, names},
    users::{FILE_MAX, is_account_file},
};

/// Bytes of names, link targets and attributes, and of what keeps them, that a catalogue is worth.
const MAX_REMEMBERED: usize = 512 << 20;
/// What an entry takes beside these.
const ENTRY: usize = 256;
/// The longest name that a disk takes.
const NAME_MAX: usize = 255;
const LONG_NAME: &str = "its path holds a name of more than 255 bytes";
const ACCESS_LIST: &[u8] = b"system.posix_acl_";

/// A layer in the making.
#[derive(Default)]
pub(super) struct Sketch {
    names: BTreeMap<Vec<u8>, Name>,
    things: Vec<Thing>,
    hides_all: bool,
    accounts: BTreeMap<ContentDigest, Vec<u8>>,
    remembered: usize,
    has_access_lists: bool,
}

/// What is at a path.
enum Name {
    /// A directory: its metadata where the archive lists it, and whether it hides what is below.
    Directory { listed: Option<Metadata>, is_opaque: bool },
    /// Anything else, by number.
    Thing(usize),
    /// What lower layers have there is gone.
    Whiteout,
}

/// What names other than those of directories lead to.
struct Thing {
    kind: EntryKind,
    metadata: Metadata,
}

/// Whether directories that are missing on the way are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    AreMade,
    AreRefused,
}

impl Sketch {
    /// Takes an entry in.
    pub(super) fn place(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), UnpackError> {
        if self.needs_disk() {
            return Ok(());
        }
        let parts = short_names(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.place_root(entry);
        };
        if parts[0].starts_with(AUFS_PREFIX) && parts[0] != OPAQUE_WHITEOUT {
            return Ok(());
        }
        if parents.iter().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
            return Err(UnpackError::refused(&entry.path, "it lies below a whiteout"));
        }
        let parent = self.walk(parents, Missing::AreMade)?;
        if *name == OPAQUE_WHITEOUT {
            self.hide_all_below(&parent);
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.hide(&parent, hidden, entry);
        }
        let path = join(&parent, name);
        let kind = match &entry.kind {
            TarKind::File => self.content(&path, entry, content)?,
            TarKind::Directory => {
                self.place_directory(path, entry);
                return Ok(());
            }
            TarKind::HardLink(target) => return self.place_hard_link(path, entry, target),
            TarKind::Symlink(target) => EntryKind::Symlink { target: target.clone() },
            TarKind::Fifo => EntryKind::Fifo,
            TarKind::CharDevice { major: 0, minor: 0 } => {
                return Err(UnpackError::refused(
                    &entry.path,
                    "a character device 0:0 is overlayfs's mark of a removed file",
                ));
            }
            TarKind::CharDevice { major, minor } => EntryKind::CharDevice { major: *major, minor: *minor },
            TarKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major: *major, minor: *minor },
        };
        let metadata = self.metadata(entry, &kind);
        self.things.push(Thing { kind, metadata });
        self.put(path, Name::Thing(self.things.len() - 1));
        Ok(())
    }

    /// What was taken in, in order.
    pub(super) fn finish(self) -> Result<Catalogue, UnpackError> {
        if self.needs_disk() {
            return Ok(Catalogue { needs_disk: true, ..Catalogue::default() });
        }
        let Self { names, things, hides_all, accounts, .. } = self;
        let (mut entries, mut implied) = (Vec::with_capacity(names.len()), BTreeSet::new());
        let mut first_names: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (path, name) in names {
            let entry =
                |kind, metadata: &Metadata| Entry { path: path.clone(), kind, metadata: metadata.clone() };
            match &name {
                Name::Whiteout => entries.push(entry(EntryKind::Whiteout, &Metadata::default())),
                Name::Directory { listed: Some(metadata), .. } => {
                    entries.push(entry(EntryKind::Directory, metadata));
                }
                Name::Directory { listed: None, .. } => drop(implied.insert(path.clone())),
                Name::Thing(number) => {
                    let Thing { kind, metadata } = &things[*number];
                    let kind = match first_names.get(number) {
                        Some(first) => EntryKind::HardLink { target: first.clone() },
                        None => kind.clone(),
                    };
                    entries.push(entry(kind, metadata));
                    first_names.entry(*number).or_insert(path.clone());
                }
            }
            if let Name::Directory { is_opaque: true, .. } = name {
                entries.push(entry(EntryKind::Opaque, &Metadata::default()));
            }
        }
        let tree =
            Tree::new(entries).expect("names of directories, each once, and first names before the others");
        Ok(Catalogue { tree, implied, hides_all, accounts, needs_disk: false })
    }

    fn needs_disk(&self) -> bool {
        self.has_access_lists || self.remembered > MAX_REMEMBERED
    }

    /// Nobody looks at the root itself; that it has a default ACL counts.
    fn place_root(&mut self, entry: &TarEntry) -> Result<(), UnpackError> {
        if entry.kind != TarKind::Directory {
            return Err(UnpackError::refused(&entry.path, "the root can only be a directory"));
        }
        self.metadata(entry, &EntryKind::Directory);
        Ok(())
    }

    /// A directory that is there keeps what is in it, and the attributes that it has.
    fn place_directory(&mut self, path: Vec<u8>, entry: &TarEntry) {
        let metadata = self.metadata(entry, &EntryKind::Directory);
        match self.names.get_mut(&path) {
            Some(Name::Directory { listed, .. }) => *listed = Some(relisted(listed.take(), metadata)),
            before => {
                // What stood here before hid the lower layers, and so must the directory.
                let is_opaque = before.is_some();
                self.put(path, Name::Directory { listed: Some(metadata), is_opaque });
            }
        }
    }

    fn place_hard_link(&mut self, path: Vec<u8>, entry: &TarEntry, target: &[u8]) -> Result<(), UnpackError> {
        let parts = names(target)
            .map_err(|_| UnpackError::refused(&entry.path, "it is a hard link to a path with \"..\""))?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(UnpackError::refused(&entry.path, "it is a hard link to a directory"));
        };
        let target = join(&self.walk(parents, Missing::AreRefused)?, name);
        let number = match self.names.get(&target) {
            Some(Name::Directory { .. }) => {
                return Err(UnpackError::refused(&entry.path, "it is a hard link to a directory"));
            }
            Some(Name::Thing(number)) if target != path => *number,
            _ => {
                return Err(UnpackError::refused(
                    &entry.path,
                    "it is a hard link to something that the layer does not hold",
                ));
            }
        };
        self.put(path, Name::Thing(number));
        Ok(())
    }

    /// An opaque whiteout: only what lower layers have in the directory is gone, wherever it stands in the layer.
    fn hide_all_below(&mut self, path: &[u8]) {
        match self.names.get_mut(path) {
            Some(Name::Directory { is_opaque, .. }) => *is_opaque = true,
            _ => self.hides_all = true,
        }
    }

    /// A whiteout: only what lower layers have at the path is gone; an entry of this layer stays, before or after it.
    fn hide(&mut self, parent: &[u8], name: &[u8], entry: &TarEntry) -> Result<(), UnpackError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(UnpackError::refused(&entry.path, "it is a whiteout of no name"));
        }
        let path = join(parent, name);
        match self.names.get_mut(&path) {
            Some(Name::Directory { is_opaque, .. }) => *is_opaque = true,
            Some(Name::Thing(_) | Name::Whiteout) => {}
            None => self.put(path, Name::Whiteout),
        }
        Ok(())
    }

    /// Puts something at a path, and takes what an earlier entry left there, and all below it, away.
    fn put(&mut self, path: Vec<u8>, name: Name) {
        if let Some(Name::Directory { .. }) = self.names.get(&path) {
            let from = join(&path, b"");
            let below = self.names.range(from.clone()..).map(|(path, _)| path);
            let below: Vec<_> = below.take_while(|path| path.starts_with(&from)).cloned().collect();
            below.iter().for_each(|path| drop(self.names.remove(path)));
        }
        self.remember(path.len());
        self.names.insert(path, name);
    }

    fn remember(&mut self, bytes: usize) {
        self.remembered = self.remembered.saturating_add(bytes + ENTRY);
    }

    /// The path of the directory that names lead to, links inside the layer followed.
    fn walk(&mut self, parts: &[&[u8]], missing: Missing) -> Result<Vec<u8>, UnpackError> {
        let wanted = parts.join(&b'/');
        if wanted.is_empty() || matches!(self.names.get(&wanted), Some(Name::Directory { .. })) {
            return Ok(wanted);
        }
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|name| name.to_vec()).collect();
        let (mut here, mut links) = (Vec::new(), 0);
        while let Some(name) = pending.pop() {
            if name.len() > NAME_MAX {
                return Err(UnpackError::refused(&wanted, LONG_NAME));
            }
            if name == b".." {
                here = split(&here).0.to_vec();
                continue;
            }
            let path = join(&here, &name);
            match self.names.get(&path) {
                Some(Name::Directory { .. }) => here = path,
                Some(Name::Thing(number)) => {
                    let target = self.link(*number, &wanted)?;
                    if links == MAX_LINKS {
                        return Err(UnpackError::refused(&wanted, "its path goes through too many links"));
                    }
                    links += 1;
                    if target.starts_with(b"/") {
                        here = Vec::new();
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    pending.extend(parts.filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec));
                }
                before => {
                    if missing == Missing::AreRefused {
                        let reason = "an entry refers to it, but the layer does not hold it";
                        return Err(UnpackError::refused(&path, reason));
                    }
                    // `.wh.d` followed by `d/f`: the lower `d` is gone, and a new one begins.
                    let is_new = before.is_some();
                    let made = Name::Directory { listed: is_new.then(plain), is_opaque: is_new };
                    self.put(path.clone(), made);
                    here = path;
                }
            }
        }
        Ok(here)
    }

    /// Where something that stands in the way to a path leads.
    fn link(&self, number: usize, wanted: &[u8]) -> Result<&[u8], UnpackError> {
        match &self.things[number].kind {
            EntryKind::Symlink { target } => Ok(target),
            _ => Err(UnpackError::refused(wanted, "its path goes through something that is no directory")),
        }
    }

    /// Hashes a file, and keeps an account file that is small enough to be read later.
    fn content(
        &mut self,
        path: &[u8],
        entry: &TarEntry,
        content: &mut impl Read,
    ) -> Result<EntryKind, UnpackError> {
        let failed = |error: io::Error| UnpackError::io("read", &entry.path, error);
        if is_account_file(path) && entry.size <= FILE_MAX {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(failed)?;
            let content = ContentDigest::of(&bytes);
            self.accounts.insert(content, bytes);
            return Ok(EntryKind::File { size: entry.size, content });
        }
        let mut hasher = blake3::Hasher::new();
        io::copy(content, &mut hasher).map_err(failed)?;
        Ok(EntryKind::File { size: entry.size, content: hasher.finalize().into() })
    }

    /// What an entry has beside its content, as far as it reaches layers.
    fn metadata(&mut self, entry: &TarEntry, kind: &EntryKind) -> Metadata {
        let stands = file_type(kind);
        let carries = |name: &[u8]| reaches_layer(name) && may_carry(stands, name);
        let xattrs: BTreeMap<_, _> =
            entry.xattrs.clone().into_iter().filter(|(name, _)| carries(name)).collect();
        self.has_access_lists |= xattrs.keys().any(|name| name.starts_with(ACCESS_LIST));
        self.remember(xattrs.iter().map(|(name, value)| name.len() + value.len()).sum());
        let mode = match kind {
            EntryKind::Symlink { target } => {
                self.remember(target.len());
                0o777
            }
            _ => entry.mode,
        };
        Metadata { mode, uid: entry.uid, gid: entry.gid, time: time(entry, kind), xattrs }
    }
}

/// What an entry of an archive becomes on disk.
fn file_type(kind: &EntryKind) -> FileType {
    match kind {
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink { .. } => FileType::Symlink,
        EntryKind::CharDevice { .. } => FileType::CharacterDevice,
        EntryKind::BlockDevice { .. } => FileType::BlockDevice,
        EntryKind::Fifo => FileType::Fifo,
        _ => FileType::RegularFile,
    }
}

/// The names of a path, each short enough for a disk.
fn short_names(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let parts = names(path)?;
    match parts.iter().any(|name| name.len() > NAME_MAX) {
        true => Err(UnpackError::refused(path, LONG_NAME)),
        false => Ok(parts),
    }
}

/// A directory that is listed again gets what the later entry says, and keeps attributes that this does not mention.
fn relisted(before: Option<Metadata>, mut now: Metadata) -> Metadata {
    let mut xattrs = before.map(|before| before.xattrs).unwrap_or_default();
    xattrs.append(&mut now.xattrs);
    Metadata { xattrs, ..now }
}

/// Normalised times are those of unpacking on disk; see [`crate::unpack`].
fn time(entry: &TarEntry, kind: &EntryKind) -> EntryTime {
    match kind {
        EntryKind::File { content, .. }
            if entry.nanoseconds == 0 && content_time(content) == entry.seconds =>
        {
            EntryTime::Content
        }
        _ if (entry.seconds, entry.nanoseconds) == (NORMAL_TIME, 0) => EntryTime::Epoch,
        _ => EntryTime::Kept(entry.seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::{TarReader, craft::Archive};

    #[test]
    fn what_is_too_much_to_remember_is_for_a_disk_to_tell() {
        let archive = Archive::default().file("a", b"").symlink("b", "a").file("c/d", b"").finish();
        for (room, needs_disk) in [(10 * ENTRY, false), (ENTRY, true)] {
            let mut sketch = Sketch { remembered: MAX_REMEMBERED - room, ..Sketch::default() };
            let mut reader = TarReader::new(&archive[..]);
            while let Some(entry) = reader.next_entry().expect("well-formed") {
                sketch.place(&entry, &mut reader.content()).expect("no layer is refused for its length");
            }
            assert_eq!(sketch.finish().expect("no error").needs_disk(), needs_disk);
        }
    }
}

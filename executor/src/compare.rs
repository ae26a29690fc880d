//! What two images have different, told by what they say themselves: nothing is unpacked, and nothing of this machine is asked.
//!
//! An image that was built twice and has two digests differs in something that somebody wrote: a clock, a name, an order. This
//! module finds it: which instruction's layer ([`steps`]), which path and which field of it ([`changes`]), which bytes
//! ([`excerpt`]), which setting ([`settings`]). Layers with the same diff ID are the same and need not be read.
//!
//! What a layer says of a path last is what counts, as for whoever unpacks it; the order of entries in the tar is no
//! difference of the file system, so two tars with other bytes may have no [`Change`] at all.

pub mod excerpt;
pub mod settings;
pub mod steps;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use oci::{ContentDigest, EntryKind};

use crate::tarball::{TarEntry, TarError, TarKind, TarReader};

/// Marks of image-spec, layer.md, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What one layer says of each path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerContents {
    items: BTreeMap<Vec<u8>, Item>,
    /// Directories of which nothing that lower layers have is left.
    opaque: BTreeSet<Vec<u8>>,
}

/// What it says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    kind: EntryKind,
    mode: u32,
    owner: (u32, u32),
    time: Moment,
    xattrs: BTreeMap<Vec<u8>, Value>,
}

/// The value of an extended attribute, in a few bytes: a hostile image has gigabytes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Its first bytes, [`Value::SHOWN`] at most.
    pub beginning: Vec<u8>,
    /// How long it is.
    pub length: usize,
    digest: ContentDigest,
}

impl Value {
    /// Bytes that are kept as they are.
    pub const SHOWN: usize = 64;

    fn new(bytes: &[u8]) -> Self {
        let beginning = bytes[..bytes.len().min(Self::SHOWN)].to_vec();
        Self { beginning, length: bytes.len(), digest: blake3::hash(bytes).into() }
    }
}

/// A modification time as a tar has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Unix time.
    pub seconds: i64,
    /// The rest of it.
    pub nanoseconds: u32,
}

/// A path that is not the same in both layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root, without a slash at either end; any bytes.
    pub path: Vec<u8>,
    /// In what it differs; at least one.
    pub fields: Vec<Field>,
}

/// One thing in which a path differs; of each pair the first layer's comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// Only the first layer says anything of it.
    OnlyFirst(&'static str),
    /// Only the second one does.
    OnlySecond(&'static str),
    /// It is something else: a file, a link, a whiteout. Nothing more is told of it then.
    Kind(&'static str, &'static str),
    /// Bytes of a regular file; the sizes.
    Content(u64, u64),
    /// Where a link leads.
    Target(Vec<u8>, Vec<u8>),
    /// Major and minor number of a device.
    Device((u32, u32), (u32, u32)),
    /// Permission bits.
    Mode(u32, u32),
    /// Numeric user and group.
    Owner((u32, u32), (u32, u32)),
    /// Modification time.
    Time(Moment, Moment),
    /// An extended attribute, by name; `None` where it is not there.
    Attribute(Vec<u8>, Option<Value>, Option<Value>),
    /// Whether what lower layers have in the directory is hidden.
    Opaque(bool, bool),
}

impl LayerContents {
    /// Reads an uncompressed layer, to the stream's end, so that whoever verifies the stream has verified it.
    ///
    /// # Errors
    /// The archive is none, or cannot be read.
    pub fn read(stream: impl Read) -> Result<Self, TarError> {
        let mut contents = Self::default();
        let mut archive = TarReader::new(stream);
        while let Some(entry) = archive.next_entry()? {
            contents.add(entry, &mut archive.content()).map_err(TarError::Io)?;
        }
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarError::Io)?;
        Ok(contents)
    }

    /// How many paths it says something of.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.opaque.is_empty()
    }

    fn add(&mut self, entry: TarEntry, content: &mut impl Read) -> io::Result<()> {
        let path = clean(&entry.path);
        let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], &path[..]),
        };
        if name == OPAQUE {
            self.opaque.insert(directory.to_vec());
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(WHITEOUT) {
            let mut path = directory.to_vec();
            if !directory.is_empty() {
                path.push(b'/');
            }
            path.extend(gone);
            // What the same layer brings to that path stands, whichever comes first.
            self.items.entry(path).or_insert_with(Item::whiteout);
            return Ok(());
        }
        let item = Item {
            kind: kind(&entry, content)?,
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            time: Moment { seconds: entry.seconds, nanoseconds: entry.nanoseconds },
            xattrs: entry.xattrs.into_iter().map(|(name, value)| (name, Value::new(&value))).collect(),
        };
        self.items.insert(path, item);
        Ok(())
    }
}

impl Item {
    fn whiteout() -> Self {
        let time = Moment { seconds: 0, nanoseconds: 0 };
        Self { kind: EntryKind::Whiteout, mode: 0, owner: (0, 0), time, xattrs: BTreeMap::new() }
    }
}

/// The paths that are not the same in both, in the order of their bytes.
pub fn changes(first: &LayerContents, second: &LayerContents) -> Vec<Change> {
    let paths: BTreeSet<&Vec<u8>> =
        first.items.keys().chain(second.items.keys()).chain(&first.opaque).chain(&second.opaque).collect();
    let changed = paths.into_iter().filter_map(|path| {
        let mut fields = match (first.items.get(path), second.items.get(path)) {
            (Some(one), Some(other)) => fields(one, other),
            (Some(one), None) => vec![Field::OnlyFirst(noun(&one.kind))],
            (None, Some(other)) => vec![Field::OnlySecond(noun(&other.kind))],
            (None, None) => Vec::new(),
        };
        let opaque = (first.opaque.contains(path), second.opaque.contains(path));
        if opaque.0 != opaque.1 {
            fields.push(Field::Opaque(opaque.0, opaque.1));
        }
        (!fields.is_empty()).then(|| Change { path: path.clone(), fields })
    });
    changed.collect()
}

fn fields(first: &Item, second: &Item) -> Vec<Field> {
    if noun(&first.kind) != noun(&second.kind) {
        return vec![Field::Kind(noun(&first.kind), noun(&second.kind))];
    }
    let mut found = Vec::new();
    match (&first.kind, &second.kind) {
        (one, other) if one == other => {}
        (EntryKind::File { size: one, .. }, EntryKind::File { size: other, .. }) => {
            found.push(Field::Content(*one, *other));
        }
        (EntryKind::Symlink { target: one }, EntryKind::Symlink { target: other })
        | (EntryKind::HardLink { target: one }, EntryKind::HardLink { target: other }) => {
            found.push(Field::Target(one.clone(), other.clone()));
        }
        (one, other) => {
            found.extend(device(one).zip(device(other)).map(|(one, other)| Field::Device(one, other)))
        }
    }
    if first.mode != second.mode {
        found.push(Field::Mode(first.mode, second.mode));
    }
    if first.owner != second.owner {
        found.push(Field::Owner(first.owner, second.owner));
    }
    if first.time != second.time {
        found.push(Field::Time(first.time, second.time));
    }
    let names: BTreeSet<&Vec<u8>> = first.xattrs.keys().chain(second.xattrs.keys()).collect();
    for name in names {
        let (one, other) = (first.xattrs.get(name), second.xattrs.get(name));
        if one != other {
            found.push(Field::Attribute(name.clone(), one.cloned(), other.cloned()));
        }
    }
    found
}

/// What it is called.
fn noun(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Whiteout => "whiteout",
        EntryKind::Directory => "directory",
        EntryKind::File { .. } => "file",
        EntryKind::Symlink { .. } => "symbolic link",
        EntryKind::HardLink { .. } => "hard link",
        EntryKind::CharDevice { .. } => "character device",
        EntryKind::BlockDevice { .. } => "block device",
        EntryKind::Fifo => "named pipe",
        EntryKind::Opaque => "opaque directory",
    }
}

fn device(kind: &EntryKind) -> Option<(u32, u32)> {
    match kind {
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            Some((*major, *minor))
        }
        _ => None,
    }
}

fn kind(entry: &TarEntry, content: &mut impl Read) -> io::Result<EntryKind> {
    Ok(match &entry.kind {
        TarKind::File => {
            let mut hasher = blake3::Hasher::new();
            io::copy(content, &mut hasher)?;
            EntryKind::File { size: entry.size, content: hasher.finalize().into() }
        }
        TarKind::Directory => EntryKind::Directory,
        TarKind::Symlink(target) => EntryKind::Symlink { target: target.clone() },
        TarKind::HardLink(target) => EntryKind::HardLink { target: clean(target) },
        TarKind::CharDevice { major, minor } => EntryKind::CharDevice { major: *major, minor: *minor },
        TarKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major: *major, minor: *minor },
        TarKind::Fifo => EntryKind::Fifo,
    })
}

/// A path without empty components and dots, as `./usr/bin/` and `usr/bin` are one; `..` stays, for it is a difference.
fn clean(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.collect::<Vec<_>>().join(&b'/')
}

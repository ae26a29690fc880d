//! What a layer holds, entry by entry: the value between a directory on disk and a layer tar.
//!
//! A [`Tree`] is what the differ makes of an overlay's upper directory, what the layer writer turns into a tar, and
//! what is hashed into a layer's identity: its digest covers exactly what the tar would hold, no more and no less.
//! Entries are sorted by path bytes and unique, parents before children, a whiteout before an entry of the same name.
//!
//! [`Tree::to_bytes`] is the canonical encoding, [`Tree::digest`] is BLAKE3 over it, and [`Tree::from_bytes`] reads it
//! back, so a tree file in the store verifies itself.

use std::collections::BTreeMap;

use crate::{
    canonical::{Bytes, Canonical, Encoder},
    digest::{ContentDigest, TreeDigest},
};

/// The start of 2025 in Unix seconds: times below it are kept, all others are normalised (see [`EntryTime`]).
pub const TIME_LIMIT: i64 = 1_735_689_600;
/// 2000-01-01T00:00:00Z in Unix seconds: the time of everything that is normalised and not [`EntryTime::Content`].
pub const NORMAL_TIME: i64 = 946_684_800;
/// 1980-01-01T00:00:00Z, where the range of content-derived times begins; [`NORMAL_TIME`] ends it.
const CONTENT_TIME_START: i64 = 315_532_800;

/// The entries of one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: Vec<Entry>,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path from the root, without a leading or trailing slash; any bytes but NUL. Never empty: the root directory
    /// itself is not an entry.
    pub path: Vec<u8>,
    /// What the entry is.
    pub kind: EntryKind,
    /// Mode, owner, time and extended attributes. Default for [`EntryKind::Whiteout`] and [`EntryKind::Opaque`].
    pub metadata: Metadata,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// The path of a lower layer is gone (image-spec, layer.md, "Whiteouts").
    Whiteout,
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// BLAKE3 of its bytes.
        content: ContentDigest,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: Vec<u8>,
    },
    /// Another name of a regular file, device or FIFO that is an entry of this tree.
    HardLink {
        /// Path of that entry: the first of the names in byte order.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// Everything that lower layers have below the directory of this path is gone (an opaque whiteout). Stands
    /// right after that directory's own entry.
    Opaque,
}

/// What an entry carries beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub time: EntryTime,
    /// Extended attributes by full name, for example `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self { mode: 0, uid: 0, gid: 0, time: EntryTime::Epoch, xattrs: BTreeMap::new() }
    }
}

/// The time of an entry, before the time policy of an export turns it into seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryTime {
    /// Normalised: [`NORMAL_TIME`], or SOURCE_DATE_EPOCH where that is given.
    Epoch,
    /// Normalised, but differing with the content (see [`content_time`]), so that ETags and whatever else is keyed by
    /// time and size change when a file brought by COPY or ADD changes. Regular files only.
    Content,
    /// Kept as it is: whole Unix seconds.
    Kept(i64),
}

/// A second between 1980 and 2000 that is a function of a file's content.
pub fn content_time(content: &ContentDigest) -> i64 {
    let prefix: [u8; 8] = content.as_bytes()[..8].try_into().expect("a digest has 32 bytes");
    let range = (NORMAL_TIME - CONTENT_TIME_START) as u64;
    CONTENT_TIME_START + (u64::from_le_bytes(prefix) % range) as i64
}

/// Why entries are not a tree, or bytes not the encoding of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A path is empty, absolute, or has an empty, `.` or `..` component or a NUL.
    #[error("invalid path in a layer: {:?}", String::from_utf8_lossy(.0))]
    Path(Vec<u8>),
    /// Two entries have the same path.
    #[error("two entries for {:?} in one layer", String::from_utf8_lossy(.0))]
    Duplicate(Vec<u8>),
    /// A hard link names no entry of the tree that comes before it.
    #[error("hard link {:?} has no target in its layer", String::from_utf8_lossy(.0))]
    DanglingLink(Vec<u8>),
    /// The bytes end early, go on too long, or hold an unknown number.
    #[error("damaged tree file at byte {0}")]
    Damaged(usize),
}

impl Tree {
    /// Sorts entries and checks the invariants of the module's head.
    ///
    /// # Errors
    /// [`TreeError::Path`], [`TreeError::Duplicate`] or [`TreeError::DanglingLink`].
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, TreeError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path).then(a.kind.rank().cmp(&b.kind.rank())));
        if let Some(entry) = entries.iter().find(|entry| !is_valid_path(&entry.path)) {
            return Err(TreeError::Path(entry.path.clone()));
        }
        let same =
            |pair: &&[Entry]| pair[0].path == pair[1].path && pair[0].kind.rank() == pair[1].kind.rank();
        if let Some(pair) = entries.windows(2).find(same) {
            return Err(TreeError::Duplicate(pair[0].path.clone()));
        }
        let tree = Self { entries };
        let dangling = |entry: &&Entry| match &entry.kind {
            EntryKind::HardLink { target } => *target >= entry.path || !tree.has_link_target(target),
            _ => false,
        };
        match tree.entries.iter().find(dangling) {
            Some(entry) => Err(TreeError::DanglingLink(entry.path.clone())),
            None => Ok(tree),
        }
    }

    fn has_link_target(&self, path: &[u8]) -> bool {
        self.get(path)
            .is_some_and(|entry| !matches!(entry.kind, EntryKind::Directory | EntryKind::HardLink { .. }))
    }

    /// The entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at a path that is neither whiteout nor opaque marker.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let key = (path, 1);
        let index = self.entries.binary_search_by(|e| (e.path.as_slice(), e.kind.rank()).cmp(&key)).ok()?;
        self.entries.get(index)
    }

    /// All entries of a path: a whiteout, what stands there, an opaque marker, in this order, as far as they are there.
    pub fn at(&self, path: &[u8]) -> &[Entry] {
        let begin = self.entries.partition_point(|entry| entry.path.as_slice() < path);
        let rest = &self.entries[begin..];
        let count = rest.iter().take_while(|entry| entry.path == path).count();
        &rest[..count]
    }

    /// Whether the layer changes nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The digest of the tree without entries.
    pub fn empty_digest() -> TreeDigest {
        static EMPTY: std::sync::OnceLock<TreeDigest> = std::sync::OnceLock::new();
        *EMPTY.get_or_init(|| Tree::default().digest())
    }

    /// Identity of the layer.
    pub fn digest(&self) -> TreeDigest {
        self.encoder().digest()
    }

    /// The canonical encoding, as it is hashed and stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encoder().into_bytes()
    }

    fn encoder(&self) -> Encoder {
        let mut encoder = Encoder::new("tree");
        self.entries.encode(&mut encoder);
        encoder
    }

    /// Reads what [`Tree::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`TreeError`] for anything that `to_bytes` could not have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TreeError> {
        let head = Encoder::new("tree").into_bytes();
        if !bytes.starts_with(&head) {
            return Err(TreeError::Damaged(0));
        }
        let mut reader = Reader { bytes, at: head.len() };
        let count = reader.u64()?;
        let entries = (0..count).map(|_| reader.entry()).collect::<Result<Vec<_>, _>>()?;
        if reader.at != bytes.len() {
            return Err(TreeError::Damaged(reader.at));
        }
        Self::new(entries)
    }
}

impl EntryKind {
    /// Order of entries with the same path: whiteout, the entry itself, opaque marker.
    fn rank(&self) -> u8 {
        match self {
            Self::Whiteout => 0,
            Self::Opaque => 2,
            _ => 1,
        }
    }
}

fn is_valid_path(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

impl Canonical for Entry {
    fn encode(&self, out: &mut Encoder) {
        let Self { path, kind, metadata } = self;
        out.field(1, &Bytes(path)).field(2, kind).field(3, metadata);
    }
}

impl Canonical for EntryKind {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Whiteout => out.variant(0),
            Self::Directory => out.variant(1),
            Self::File { size, content } => out.variant(2).field(1, size).field(2, content),
            Self::Symlink { target } => out.variant(3).field(1, &Bytes(target)),
            Self::HardLink { target } => out.variant(4).field(1, &Bytes(target)),
            Self::CharDevice { major, minor } => out.variant(5).field(1, major).field(2, minor),
            Self::BlockDevice { major, minor } => out.variant(6).field(1, major).field(2, minor),
            Self::Fifo => out.variant(7),
            Self::Opaque => out.variant(8),
        };
    }
}

impl Canonical for Metadata {
    fn encode(&self, out: &mut Encoder) {
        let Self { mode, uid, gid, time, xattrs } = self;
        out.field(1, mode).field(2, uid).field(3, gid).field(4, time);
        let xattrs: Vec<_> = xattrs.iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect();
        out.field(5, &xattrs);
    }
}

impl Canonical for EntryTime {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Epoch => out.variant(0),
            Self::Content => out.variant(1),
            Self::Kept(seconds) => out.variant(2).field(1, seconds),
        };
    }
}

/// Reads the canonical encoding back; every method mirrors one `encode`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], TreeError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(TreeError::Damaged(self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, TreeError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, TreeError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self) -> Result<u64, TreeError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken")))
    }

    fn string(&mut self) -> Result<Vec<u8>, TreeError> {
        let length = usize::try_from(self.u64()?).map_err(|_| TreeError::Damaged(self.at))?;
        Ok(self.take(length)?.to_vec())
    }

    fn field(&mut self, number: u8) -> Result<(), TreeError> {
        let at = self.at;
        (self.u8()? == number).then_some(()).ok_or(TreeError::Damaged(at))
    }

    fn numbered<T>(
        &mut self,
        number: u8,
        read: impl FnOnce(&mut Self) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        self.field(number)?;
        read(self)
    }

    fn entry(&mut self) -> Result<Entry, TreeError> {
        Ok(Entry {
            path: self.numbered(1, Self::string)?,
            kind: self.numbered(2, Self::kind)?,
            metadata: self.numbered(3, Self::metadata)?,
        })
    }

    fn kind(&mut self) -> Result<EntryKind, TreeError> {
        let at = self.at;
        Ok(match self.u8()? {
            0 => EntryKind::Whiteout,
            1 => EntryKind::Directory,
            2 => {
                let size = self.numbered(1, Self::u64)?;
                self.field(2)?;
                let content = self.take(32)?.try_into().expect("32 bytes were taken");
                EntryKind::File { size, content: ContentDigest::new(content) }
            }
            3 => EntryKind::Symlink { target: self.numbered(1, Self::string)? },
            4 => EntryKind::HardLink { target: self.numbered(1, Self::string)? },
            5 => EntryKind::CharDevice {
                major: self.numbered(1, Self::u32)?,
                minor: self.numbered(2, Self::u32)?,
            },
            6 => EntryKind::BlockDevice {
                major: self.numbered(1, Self::u32)?,
                minor: self.numbered(2, Self::u32)?,
            },
            7 => EntryKind::Fifo,
            8 => EntryKind::Opaque,
            _ => return Err(TreeError::Damaged(at)),
        })
    }

    fn metadata(&mut self) -> Result<Metadata, TreeError> {
        Ok(Metadata {
            mode: self.numbered(1, Self::u32)?,
            uid: self.numbered(2, Self::u32)?,
            gid: self.numbered(3, Self::u32)?,
            time: self.numbered(4, Self::time)?,
            xattrs: self.numbered(5, |reader| {
                let count = reader.u64()?;
                (0..count).map(|_| Ok((reader.string()?, reader.string()?))).collect()
            })?,
        })
    }

    fn time(&mut self) -> Result<EntryTime, TreeError> {
        let at = self.at;
        match self.u8()? {
            0 => Ok(EntryTime::Epoch),
            1 => Ok(EntryTime::Content),
            2 => self.numbered(1, |reader| Ok(EntryTime::Kept(reader.u64()? as i64))),
            _ => Err(TreeError::Damaged(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.into(), kind, metadata: Metadata::default() }
    }

    fn file(path: &str) -> Entry {
        entry(path, EntryKind::File { size: 1, content: ContentDigest::of(b"x") })
    }

    fn sample() -> Tree {
        let mut capable = file("bin/ping");
        capable.metadata.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 10]);
        capable.metadata.time = EntryTime::Kept(-5);
        let link = entry("bin/ping6", EntryKind::HardLink { target: b"bin/ping".to_vec() });
        let entries = vec![
            link,
            capable,
            entry("bin", EntryKind::Directory),
            entry("bin", EntryKind::Opaque),
            entry("bin", EntryKind::Whiteout),
            entry("dev/null", EntryKind::CharDevice { major: 1, minor: 3 }),
            entry("l", EntryKind::Symlink { target: b"../x".to_vec() }),
        ];
        Tree::new(entries).expect("valid entries")
    }

    #[test]
    fn a_tree_survives_its_encoding() {
        let tree = sample();
        assert_eq!(Tree::from_bytes(&tree.to_bytes()), Ok(tree));
    }

    #[test]
    fn every_damage_is_noticed_or_changes_the_digest() {
        let (tree, bytes) = (sample(), sample().to_bytes());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            if let Ok(other) = Tree::from_bytes(&damaged) {
                assert_ne!(other.digest(), tree.digest(), "byte {at}");
            }
            assert!(Tree::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn whiteout_entry_and_opaque_marker_of_one_path_come_in_this_order() {
        let kinds: Vec<_> = sample().entries()[..3].iter().map(|entry| entry.kind.clone()).collect();
        assert_eq!(kinds, [EntryKind::Whiteout, EntryKind::Directory, EntryKind::Opaque]);
    }

    #[test]
    fn what_no_tar_could_hold_is_refused() {
        for path in ["", "/a", "a/", "a//b", "a/../b", "."] {
            assert_eq!(Tree::new(vec![file(path)]), Err(TreeError::Path(path.into())));
        }
        assert_eq!(Tree::new(vec![file("a"), file("a")]), Err(TreeError::Duplicate(b"a".to_vec())));
        let link = entry("a", EntryKind::HardLink { target: b"b".to_vec() });
        assert_eq!(Tree::new(vec![link, file("b")]), Err(TreeError::DanglingLink(b"a".to_vec())));
    }

    #[test]
    fn content_times_lie_in_their_range_and_differ() {
        let (a, b) = (content_time(&ContentDigest::of(b"a")), content_time(&ContentDigest::of(b"b")));
        assert_ne!(a, b);
        assert!([a, b].iter().all(|time| (CONTENT_TIME_START..NORMAL_TIME).contains(time)));
    }
}

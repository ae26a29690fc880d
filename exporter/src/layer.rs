//! From a [`Tree`] and the bytes of its files to a layer tar (image-spec, layer.md).
//!
//! [`write_tar`] is the one function that does it, for every layer this builder makes. Its output is a pure function of
//! the tree and the [`TimePolicy`]: entries in tree order, numeric owners, no access time, whiteouts and opaque
//! markers as the specification has them, hard links kept. The content of each file is hashed again on its way and must
//! be what the tree says (RELIABILITY R12): a page cache or a disk that was tampered with gives an error, not a layer.

use std::{borrow::Cow, io::Write};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, FileSource, Metadata, Tree,
    store::sealed,
    tree::{NORMAL_TIME, content_time},
};

use crate::{
    archive::{ArchiveError, ArchiveWriter},
    pax::{Header, Kind},
};

/// What the name of a whiteout begins with.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The name of an opaque marker.
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// How the times of a tree become seconds. Part of the name under which a sealed layer is remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TimePolicy {
    /// Normalised times are [`NORMAL_TIME`] or derived from the content, kept ones stay.
    #[default]
    Default,
    /// SOURCE_DATE_EPOCH: normalised times are this second, kept ones stay unless they are later.
    Epoch(i64),
    /// `--timestamps=preserve`: as the tree has them. A tree of such a build has kept times only, so this gives the
    /// bytes that [`TimePolicy::Default`] gives; SOURCE_DATE_EPOCH does not reach the layers.
    Preserve,
}

impl TimePolicy {
    /// The seconds of an entry. `content` is the digest of its file, for [`EntryTime::Content`].
    pub fn seconds(self, time: EntryTime, content: Option<&ContentDigest>) -> i64 {
        match (self, time) {
            (Self::Epoch(epoch), EntryTime::Kept(seconds)) => seconds.min(epoch),
            (Self::Epoch(epoch), _) => epoch,
            (_, EntryTime::Kept(seconds)) => seconds,
            (_, EntryTime::Content) => content.map_or(NORMAL_TIME, content_time),
            (_, EntryTime::Epoch) => NORMAL_TIME,
        }
    }

    /// Names the policy in file names; policies that give equal bytes share a name.
    pub fn id(self) -> String {
        match self {
            Self::Default | Self::Preserve => sealed::NORMAL.to_owned(),
            Self::Epoch(seconds) => format!("epoch{seconds}"),
        }
    }

    /// A policy that gives the bytes of the one with this name.
    pub(crate) fn from_id(id: &str) -> Option<Self> {
        match id.strip_prefix("epoch") {
            None => (id == Self::Default.id()).then_some(Self::Default),
            Some(seconds) => Some(Self::Epoch(seconds.parse().ok()?)),
        }
    }
}

/// Why a tree did not become a tar.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file is called `.wh.something`, which every reader of layers takes for a removed file.
    #[error("{:?} cannot be in a layer: names that begin with \".wh.\" mean removed files there", String::from_utf8_lossy(.0))]
    ReservedName(Vec<u8>),
    /// An entry could not be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Writes the layer tar of a tree.
///
/// # Errors
/// A name that layers reserve, a value that no tar can hold, a file that is not what the tree says it is, or a stream
/// that takes no more. What was written by then is of no use.
pub fn write_tar(
    tree: &Tree,
    files: &dyn FileSource,
    times: TimePolicy,
    out: &mut dyn Write,
) -> Result<(), LayerError> {
    let tar = LayerTar::new(tree, times)?;
    let mut archive = ArchiveWriter::new(out);
    tree.entries().iter().try_for_each(|entry| tar.write(entry, files, &mut archive))?;
    archive.finish()?;
    Ok(())
}

/// The entries of a tree as its layer tar has them, one by one: whoever writes them in order, and the end of a tar after
/// them, has written what [`write_tar`] writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerTar<'a> {
    tree: &'a Tree,
    times: TimePolicy,
}

impl<'a> LayerTar<'a> {
    /// The tar of a tree.
    ///
    /// # Errors
    /// [`LayerError::ReservedName`].
    pub(crate) fn new(tree: &'a Tree, times: TimePolicy) -> Result<Self, LayerError> {
        match tree.entries().iter().find(|entry| is_reserved(&entry.path)) {
            Some(entry) => Err(LayerError::ReservedName(entry.path.clone())),
            None => Ok(Self { tree, times }),
        }
    }

    /// The tree's entries.
    pub(crate) fn entries(&self) -> &'a [Entry] {
        self.tree.entries()
    }

    /// Writes one entry, with its content if it is a file.
    pub(crate) fn write<W: Write>(
        &self,
        entry: &Entry,
        files: &dyn FileSource,
        archive: &mut ArchiveWriter<W>,
    ) -> Result<(), ArchiveError> {
        self.with_header(entry, |header| {
            let EntryKind::File { size, content } = &entry.kind else {
                return archive.entry(header);
            };
            let failed = |source| ArchiveError::Read { path: header.path.to_vec(), source };
            let mut file = files.open(&entry.path).map_err(failed)?;
            archive.file(header, *size, Some(content), &mut file)
        })
    }

    /// The blocks of an entry before its content.
    pub(crate) fn header(&self, entry: &Entry) -> Result<Vec<u8>, ArchiveError> {
        let failed = |source| ArchiveError::Header { path: entry.path.clone(), source };
        self.with_header(entry, |header| header.to_blocks().map_err(failed))
    }

    fn with_header<R>(&self, entry: &Entry, then: impl FnOnce(&Header<'_>) -> R) -> R {
        let path = archive_path(entry);
        let Metadata { mode, uid, gid, time, xattrs } = &entry.metadata;
        let kind = archive_kind(&entry.kind);
        let time = self.times.seconds(*time, content_of(entry, self.tree));
        then(&Header { path: &path, kind, mode: *mode, uid: *uid, gid: *gid, time, xattrs })
    }
}

/// Under which name an entry stands in the tar.
fn archive_path(entry: &Entry) -> Cow<'_, [u8]> {
    let path = entry.path.as_slice();
    let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    match entry.kind {
        EntryKind::Whiteout => Cow::Owned([&path[..name_at], WHITEOUT_PREFIX, &path[name_at..]].concat()),
        EntryKind::Opaque => Cow::Owned([path, b"/", OPAQUE_NAME].concat()),
        _ => Cow::Borrowed(path),
    }
}

fn archive_kind(kind: &EntryKind) -> Kind<'_> {
    match kind {
        EntryKind::Whiteout | EntryKind::Opaque => Kind::File(0),
        EntryKind::Directory => Kind::Directory,
        EntryKind::File { size, .. } => Kind::File(*size),
        EntryKind::Symlink { target } => Kind::Symlink(target),
        EntryKind::HardLink { target } => Kind::HardLink(target),
        EntryKind::CharDevice { major, minor } => Kind::CharDevice(*major, *minor),
        EntryKind::BlockDevice { major, minor } => Kind::BlockDevice(*major, *minor),
        EntryKind::Fifo => Kind::Fifo,
    }
}

/// The content that an entry's time may be derived from: its own, or that of the file it is another name of.
fn content_of<'a>(entry: &'a Entry, tree: &'a Tree) -> Option<&'a ContentDigest> {
    match &entry.kind {
        EntryKind::File { content, .. } => Some(content),
        EntryKind::HardLink { target } => match &tree.get(target)?.kind {
            EntryKind::File { content, .. } => Some(content),
            _ => None,
        },
        _ => None,
    }
}

fn is_reserved(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT_PREFIX))
}

//! What a layer of a base image holds, entry by entry, told by its archive alone: nothing is unpacked.
//!
//! A build that copies onto a base image and runs nothing there only *looks* at what is below a destination. Its base
//! layers are streamed once, their headers read by the rules of [`crate::unpack`], and the catalogue is kept in the store
//! under the layer's diff ID, so the next build needs no byte of the blob. What [`look`] tells of some catalogues is what
//! the overlay of the unpacked layers would show; a property test holds the two against each other.
//!
//! Contents are known by their BLAKE3, and the bytes of the account files are kept, as far as they are small enough to be
//! read at all (RELIABILITY R20). What only a disk can tell (POSIX ACLs, which a later chmod changes and new files
//! inherit), and layers with more entries than are worth keeping in memory, make a catalogue that says so
//! ([`Catalogue::needs_disk`]): then the layers are unpacked.

mod file;
mod sketch;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use oci::{ContentDigest, Entry, EntryKind, EntryTime, Metadata, Tree};

pub(crate) use file::path;
pub use file::{AREA, CatalogueError};

use crate::{tarball::TarReader, unpack::UnpackError};
use sketch::Sketch;

/// What one base layer holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// What the layer has entries for. Opaque directories are marked, whiteouts stand where nothing else does.
    tree: Tree,
    /// Directories that the archive goes through without listing them.
    implied: BTreeSet<Vec<u8>>,
    /// Whether nothing of the layers below is left.
    hides_all: bool,
    /// What the account files hold.
    accounts: BTreeMap<ContentDigest, Vec<u8>>,
    /// Whether only a disk can tell.
    needs_disk: bool,
}

/// What one layer says of a path (image-spec, layer.md, "Whiteouts").
enum Said<'a> {
    /// Something stands there.
    Stands(&'a Entry),
    /// Nothing does any more, whatever is below.
    Nothing,
    /// A directory, with the metadata of the one below, if that shows through and is one.
    Implied { shows_below: bool },
    /// The next lower layer is to be asked.
    Silence,
}

/// What is at a path of a file system that some catalogues tell of.
#[derive(Debug, PartialEq, Eq)]
pub enum Looked<'a> {
    /// An entry of the layer with this number, topmost first.
    Entry(usize, &'a Entry),
    /// A directory that nobody has said anything about: root's, 0755, as old as its layer is on disk.
    Plain,
}

impl Catalogue {
    /// Reads an uncompressed layer up to the archive's end mark.
    ///
    /// # Errors
    /// As [`crate::unpack::unpack`], for all that is wrong with the archive itself.
    pub fn read(stream: impl Read) -> Result<Self, UnpackError> {
        let mut sketch = Sketch::default();
        let mut archive = TarReader::new(stream);
        while let Some(entry) = archive.next_entry()? {
            sketch.place(&entry, &mut archive.content())?;
        }
        sketch.finish()
    }

    /// Whether the layer must be unpacked to be looked at.
    pub fn needs_disk(&self) -> bool {
        self.needs_disk
    }

    /// The bytes of an account file of the layer.
    pub fn account(&self, content: &ContentDigest) -> Option<&[u8]> {
        self.accounts.get(content).map(Vec::as_slice)
    }

    /// The entry that stands for itself at a path.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.tree.get(path)
    }

    fn says(&self, path: &[u8]) -> Said<'_> {
        let mut hidden = self.hides_all;
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            for entry in self.tree.at(&path[..end]) {
                match entry.kind {
                    EntryKind::Directory => {}
                    EntryKind::Opaque => hidden = true,
                    _ => return Said::Nothing,
                }
            }
        }
        match self.tree.at(path).first() {
            Some(Entry { kind: EntryKind::Whiteout, .. }) => Said::Nothing,
            Some(entry) if entry.kind != EntryKind::Opaque => Said::Stands(entry),
            _ if self.implied.contains(path) => Said::Implied { shows_below: !hidden },
            _ if hidden => Said::Nothing,
            _ => Said::Silence,
        }
    }
}

/// What is at a path without links; `catalogues` are those of all layers, topmost first.
pub fn look<'a, C: AsRef<Catalogue>>(catalogues: &'a [C], path: &[u8]) -> Option<Looked<'a>> {
    let mut is_implied = false;
    for (layer, catalogue) in catalogues.iter().enumerate() {
        match catalogue.as_ref().says(path) {
            Said::Stands(entry) if is_implied && entry.kind != EntryKind::Directory => break,
            Said::Stands(entry) => return Some(Looked::Entry(layer, entry)),
            Said::Nothing => break,
            Said::Implied { shows_below } => {
                is_implied = true;
                if !shows_below {
                    break;
                }
            }
            Said::Silence => {}
        }
    }
    is_implied.then_some(Looked::Plain)
}

/// The metadata of [`Looked::Plain`].
pub fn plain() -> Metadata {
    Metadata { mode: 0o755, time: EntryTime::Epoch, ..Metadata::default() }
}

#[cfg(test)]
mod tests;

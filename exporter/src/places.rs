//! Where everything stands in the tar of a layer, known from its tree alone.
//!
//! Two layers that are much alike have long stretches in common. [`shared`] finds them without a byte of either: an entry
//! whose header and content are equal is equal to its last padding byte. What an older blob has of a new layer can then be
//! taken from there ([`crate::old`]), wherever in the new tar it stands.

use std::{collections::HashMap, ops::Range};

use oci::{ContentDigest, Entry, EntryKind};

use crate::{
    archive::{ArchiveError, TRAILER},
    layer::LayerTar,
    pax::BLOCK,
};

/// The places of a tar: one for each entry, and one for the blocks that end it.
#[derive(Debug)]
pub(crate) struct Places {
    places: Vec<Place>,
    length: u64,
}

#[derive(Debug)]
struct Place {
    /// Where it begins.
    start: u64,
    /// Bytes of the entry's header.
    header: u64,
    /// Equal for equal bytes, and only for those.
    mark: ContentDigest,
}

/// A stretch of a new tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Run {
    /// Stands in the old tar, too, at these bytes.
    Shared(Range<u64>),
    /// These entries, by their places; the one after the last entry is the end of the tar.
    New(Range<usize>),
}

impl Places {
    /// The places of a tar.
    ///
    /// # Errors
    /// [`ArchiveError::Header`].
    pub(crate) fn of(tar: &LayerTar<'_>) -> Result<Self, ArchiveError> {
        let mut places = Vec::with_capacity(tar.entries().len() + 1);
        let mut start = 0;
        for entry in tar.entries() {
            let blocks = tar.header(entry)?;
            let header = blocks.len() as u64;
            places.push(Place { start, header, mark: mark(&blocks, entry) });
            start += header + content_length(entry).next_multiple_of(BLOCK as u64);
        }
        // No header, so no mark of an entry equals that of the end.
        places.push(Place { start, header: 0, mark: ContentDigest::of(b"") });
        Ok(Self { places, length: start + TRAILER as u64 })
    }

    /// Where the content of an entry begins.
    pub(crate) fn content(&self, entry: usize) -> u64 {
        self.places[entry].start + self.places[entry].header
    }

    fn end(&self, place: usize) -> u64 {
        self.places.get(place + 1).map_or(self.length, |next| next.start)
    }
}

/// How the new tar is made of the old one and of entries that must be written.
pub(crate) fn shared(new: &Places, old: &Places) -> Vec<Run> {
    let at: HashMap<_, _> = old.places.iter().enumerate().map(|(index, place)| (place.mark, index)).collect();
    let mut runs = Vec::new();
    for (index, place) in new.places.iter().enumerate() {
        match (at.get(&place.mark), runs.last_mut()) {
            (Some(&found), Some(Run::Shared(bytes))) if bytes.end == old.places[found].start => {
                bytes.end = old.end(found);
            }
            (Some(&found), _) => runs.push(Run::Shared(old.places[found].start..old.end(found))),
            (None, Some(Run::New(entries))) => entries.end = index + 1,
            (None, _) => runs.push(Run::New(index..index + 1)),
        }
    }
    runs
}

/// Bytes of an entry's content.
pub(crate) fn content_length(entry: &Entry) -> u64 {
    match entry.kind {
        EntryKind::File { size, .. } => size,
        _ => 0,
    }
}

fn mark(blocks: &[u8], entry: &Entry) -> ContentDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(blocks);
    if let EntryKind::File { content, .. } = &entry.kind {
        hasher.update(content.as_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use oci::{Metadata, Tree};

    use super::*;
    use crate::{TimePolicy, layer::LayerTar};

    fn tree(files: &[(&str, &str)]) -> Tree {
        let entry = |(path, content): &(&str, &str)| {
            let kind = EntryKind::File {
                size: content.len() as u64,
                content: ContentDigest::of(content.as_bytes()),
            };
            Entry { path: path.as_bytes().to_vec(), kind, metadata: Metadata::default() }
        };
        Tree::new(files.iter().map(entry).collect()).expect("valid")
    }

    fn runs(new: &[(&str, &str)], old: &[(&str, &str)]) -> Vec<Run> {
        let [new, old] = [tree(new), tree(old)];
        let places =
            |tree| Places::of(&LayerTar::new(tree, TimePolicy::Default).expect("names")).expect("headers");
        shared(&places(&new), &places(&old))
    }

    #[test]
    fn what_is_equal_is_found_wherever_it_stands() {
        let old = [("a", "1"), ("b", "2"), ("c", "3")];
        let whole = 3 * 1024 + 1024;
        assert_eq!(runs(&old, &old), [Run::Shared(0..whole)]);
        let changed = [("a", "1"), ("b", "other"), ("c", "3")];
        assert_eq!(runs(&changed, &old), [Run::Shared(0..1024), Run::New(1..2), Run::Shared(2048..whole)]);
        let removed = [("a", "1"), ("c", "3")];
        assert_eq!(runs(&removed, &old), [Run::Shared(0..1024), Run::Shared(2048..whole)]);
        let added = [("a", "1"), ("aa", "x"), ("ab", "y"), ("b", "2"), ("c", "3")];
        assert_eq!(runs(&added, &old), [Run::Shared(0..1024), Run::New(1..3), Run::Shared(1024..whole)]);
        let renamed = [("x", "1"), ("y", "2"), ("z", "3")];
        assert_eq!(runs(&renamed, &old), [Run::New(0..3), Run::Shared(3072..whole)]);
        assert_eq!(runs(&[], &old), [Run::Shared(3072..whole)]);
    }
}

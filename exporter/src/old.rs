//! A blob that was made of a layer before: for a new layer that is much alike, or for the same one in another form.
//!
//! Beside the record of a compressed blob stands its *chunk table* (`sealed/TREE/NAME.chunks`): of each chunk how long it
//! is before and after compression, the BLAKE3 of both, and what the SHA-256 of the tar and of the blob have come to at its
//! end. With it and the tree any file, and any chunk as it was compressed, is had without reading the others; and a blob that
//! begins with the same chunks is hashed from the first other one on.
//!
//! Nothing of a blob is believed. A compressed chunk that is copied has the BLAKE3 the table says; the content of files is
//! hashed by whoever writes them to a tar. What is found to be otherwise *spoils* the blob: the caller does without it, and
//! removes it from the store.
//!
//! The table is believed, the kept SHA-256 among it: nobody hashes again what they stand for. It proves by its BLAKE3 that it
//! is what was written, and by its last row that it was written with this record, since both hashers come to the record's
//! digests there; those of the other rows are the same two on their way, and have taken as many bytes as there are to their
//! end. So a wrong one takes somebody who writes a table of his own, and who may do that may write any record. It makes no image
//! in silence: registries refuse a blob that has not the digest they are told, clients a tar that has not its diff ID, and `fsck`
//! hashes every blob of a store.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use oci::{
    ContentDigest, Descriptor, DiffId, EntryKind, FileSource, MediaType, Sha256Digest, Tree, TreeDigest,
    store::{
        Store, StoreError, checked,
        sealed::{self, SealedRecord},
    },
    unpacked::{MAX_LAYER, unpacked},
    verify::Verified,
};
use serde::{Deserialize, Serialize};

use crate::{
    chunk::MAX_CHUNK,
    encode,
    layer::{LayerTar, TimePolicy},
    places::Places,
    sha256::Sha256,
};

/// The version of chunk tables; another one is none.
const VERSION: u32 = 2;
/// Bytes of a tar that are written at once.
const BLOCK: usize = 256 << 10;
/// Decompressed chunks that are kept for files which are read next.
const KEPT: usize = 4;

/// One chunk of a compressed blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// Bytes of the tar.
    pub(crate) length: u32,
    /// Their BLAKE3.
    pub(crate) content: ContentDigest,
    /// Bytes of the blob.
    pub(crate) size: u32,
    /// Their BLAKE3.
    pub(crate) member: ContentDigest,
}

/// What a table says of a chunk, and of all before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) chunk: Chunk,
    /// What has hashed the tar up to the chunk's end.
    pub(crate) tar: Sha256,
    /// What has hashed the blob up to there.
    pub(crate) blob: Sha256,
}

/// Why a blob's tar could not be written down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Remembers the chunks of a blob, in order.
///
/// # Errors
/// [`StoreError::Io`].
pub(crate) fn write_table(
    store: &Store,
    tree: &TreeDigest,
    name: &str,
    chunks: &[Row],
) -> Result<(), StoreError> {
    checked::write(store, &sealed::chunks_path(tree, name), VERSION, &chunks)
}

/// An open blob and where everything is in it. It stays readable when somebody removes it from the store.
#[derive(Debug)]
pub(crate) struct OldBlob {
    file: File,
    descriptor: Descriptor,
    name: String,
    places: Places,
    /// Where the content of each file is in the tar.
    contents: HashMap<ContentDigest, u64>,
    chunks: Vec<Placed>,
    by_content: HashMap<ContentDigest, usize>,
    kept: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
    spoiled: AtomicBool,
}

/// A chunk, and where it begins in the tar and in the blob.
#[derive(Debug)]
struct Placed {
    row: Row,
    start: u64,
    offset: u64,
}

impl OldBlob {
    /// Opens the blob of a record; `None` if there is no telling what is where in it.
    pub(crate) fn open(
        store: &Store,
        digest: &TreeDigest,
        name: &str,
        record: &SealedRecord,
    ) -> Option<Self> {
        let chunks = match record.descriptor.media_type {
            MediaType::OciLayer => Vec::new(),
            MediaType::OciLayerGzip | MediaType::OciLayerZstd => read_table(store, digest, name, record)?,
            _ => return None,
        };
        let file = store.open_blob(&record.descriptor.digest).ok()?;
        Self::with(store, digest, name, record, (file, chunks))
    }

    /// Opens the blob of a record that has no table, since it was made elsewhere: its tar is written to a temporary file.
    /// `None` if that cannot be had from it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn unpack(
        store: &Store,
        digest: &TreeDigest,
        name: &str,
        record: &SealedRecord,
    ) -> Result<Option<Self>, UnpackError> {
        let Ok(blob) = store.open_blob(&record.descriptor.digest) else { return Ok(None) };
        let Ok(tar) = unpacked(Verified::new(blob, &record.descriptor)) else { return Ok(None) };
        // An open file outlives its directory.
        let temporary = store.temp_dir("tar")?;
        let path = temporary.path().join("tar");
        let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
        let whole = copy(&mut tar.take(MAX_LAYER), &mut file)?;
        Ok(whole.and_then(|()| Self::with(store, digest, name, record, (file, Vec::new()))))
    }

    /// A blob in this file: cut into these chunks, or a plain tar where there are none.
    fn with(
        store: &Store,
        digest: &TreeDigest,
        name: &str,
        record: &SealedRecord,
        (file, chunks): (File, Vec<Placed>),
    ) -> Option<Self> {
        let times = TimePolicy::from_id(name.rsplit_once('.')?.1)?;
        let tree = crate::seal::read_tree(store, *digest).ok()?;
        let places = Places::of(&LayerTar::new(&tree, times).ok()?).ok()?;
        let by_content = chunks.iter().enumerate().map(|(index, placed)| (placed.row.chunk.content, index));
        Some(Self {
            file,
            descriptor: record.descriptor.clone(),
            name: name.to_owned(),
            contents: contents(&tree, &places),
            by_content: by_content.collect(),
            places,
            chunks,
            kept: Mutex::default(),
            spoiled: AtomicBool::new(false),
        })
    }

    /// What it is called in the store.
    pub(crate) fn digest(&self) -> Sha256Digest {
        self.descriptor.digest
    }

    /// Where everything is in its tar.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Whether its chunks can be copied into a blob of this name as they are.
    pub(crate) fn has_chunks_of(&self, name: &str) -> bool {
        self.name == name && !self.chunks.is_empty()
    }

    /// Whether it has turned out to be damaged.
    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::SeqCst)
    }

    /// Takes the damaged blob out of the store, so that it is a miss from now on.
    pub(crate) fn remove(&self, store: &Store) -> Result<(), StoreError> {
        store.remove_blob(&self.descriptor.digest)
    }

    /// The chunk of this content, if there is one.
    pub(crate) fn chunk_of(&self, content: &ContentDigest) -> Option<usize> {
        self.by_content.get(content).copied()
    }

    /// The chunk that begins at a byte of the tar, if one does, and its length.
    pub(crate) fn chunk_at(&self, start: u64) -> Option<(usize, u64)> {
        let index = self.chunks.binary_search_by_key(&start, |placed| placed.start).ok()?;
        Some((index, self.row(index).chunk.length.into()))
    }

    /// The row of a chunk.
    pub(crate) fn row(&self, index: usize) -> &Row {
        &self.chunks[index].row
    }

    /// Reads a chunk as it was compressed.
    ///
    /// # Errors
    /// The blob cannot be read, or is spoiled.
    pub(crate) fn read_member(&self, index: usize, member: &mut Vec<u8>) -> io::Result<()> {
        let Placed { row: Row { chunk, .. }, offset, .. } = &self.chunks[index];
        member.resize(chunk.size as usize, 0);
        let read = self.file.read_exact_at(member, *offset);
        if read.is_err() || ContentDigest::of(member) != chunk.member {
            return Err(self.spoil());
        }
        Ok(())
    }

    /// Decompresses what [`OldBlob::read_member`] has read.
    ///
    /// # Errors
    /// The blob is spoiled.
    pub(crate) fn decompress(&self, index: usize, member: &[u8], chunk: &mut Vec<u8>) -> io::Result<()> {
        let length = self.row(index).chunk.length as usize;
        let is_whole = encode::decompress(&self.descriptor.media_type, member, length, chunk);
        if is_whole { Ok(()) } else { Err(self.spoil()) }
    }

    /// Bytes of the tar from a place on, as many as are at hand there. Those of a tar that is not compressed are not
    /// verified.
    ///
    /// # Errors
    /// The blob cannot be read, or is spoiled, or ends before that place.
    pub(crate) fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunks.is_empty() {
            return self.file.read_at(buffer, at);
        }
        let index = self.chunks.partition_point(|placed| placed.start <= at) - 1;
        let chunk = self.decompressed(index)?;
        let rest = usize::try_from(at - self.chunks[index].start).ok().and_then(|from| chunk.get(from..));
        let rest = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn decompressed(&self, index: usize) -> io::Result<Arc<Vec<u8>>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, chunk)) = kept().iter().find(|(kept, _)| *kept == index) {
            return Ok(Arc::clone(chunk));
        }
        let (mut member, mut chunk) = (Vec::new(), Vec::new());
        self.read_member(index, &mut member)?;
        self.decompress(index, &member, &mut chunk)?;
        let chunk = Arc::new(chunk);
        let mut kept = kept();
        kept.truncate(KEPT - 1);
        kept.push_front((index, Arc::clone(&chunk)));
        Ok(chunk)
    }

    fn spoil(&self) -> io::Error {
        self.spoiled.store(true, Ordering::SeqCst);
        io::Error::new(io::ErrorKind::InvalidData, format!("blob {} is damaged", self.descriptor.digest))
    }
}

/// `None` if the source fails.
fn copy(source: &mut impl Read, file: &mut File) -> io::Result<Option<()>> {
    let mut block = vec![0; BLOCK];
    loop {
        match source.read(&mut block) {
            Ok(0) => return Ok(Some(())),
            Ok(count) => file.write_all(&block[..count])?,
            Err(_) => return Ok(None),
        }
    }
}

/// The table of a blob, if it is one: chunks that are as long as the blob, and end in the digests of its record.
fn read_table(store: &Store, tree: &TreeDigest, name: &str, record: &SealedRecord) -> Option<Vec<Placed>> {
    let path = store.root().join(sealed::chunks_path(tree, name));
    let rows: Vec<Row> = checked::read(&path, VERSION).ok()??;
    let (mut start, mut offset) = (0, 0);
    let place = |row: Row| {
        let placed = Placed { row, start, offset };
        start += u64::from(placed.row.chunk.length);
        offset += u64::from(placed.row.chunk.size);
        placed
    };
    let chunks: Vec<_> = rows.into_iter().map(place).collect();
    let fits = chunks.iter().all(|Placed { row: Row { chunk, tar, blob }, start, offset }| {
        let ends = (start + u64::from(chunk.length), offset + u64::from(chunk.size));
        chunk.length as usize <= MAX_CHUNK && (tar.taken(), blob.taken()) == ends
    });
    // One that has taken what it should can be finished: others may count beyond all numbers.
    let Row { tar, blob, .. } = chunks.last().filter(|_| fits)?.row.clone();
    let digests = (DiffId::from(tar.finish()), blob.finish());
    let is_whole = digests == (record.diff_id, record.descriptor.digest) && offset == record.descriptor.size;
    is_whole.then_some(chunks)
}

fn contents(tree: &Tree, places: &Places) -> HashMap<ContentDigest, u64> {
    let content = |(index, entry): (usize, &oci::Entry)| match &entry.kind {
        EntryKind::File { content, .. } => Some((*content, places.content(index))),
        _ => None,
    };
    tree.entries().iter().enumerate().filter_map(content).collect()
}

/// The files of a tree: out of an old blob where that has their content, else from where they are.
pub(crate) struct OldFirst<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) old: Arc<OldBlob>,
    pub(crate) rest: &'a dyn FileSource,
}

impl FileSource for OldFirst<'_> {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let found = match self.tree.get(path).map(|entry| &entry.kind) {
            Some(EntryKind::File { size, content }) => {
                self.old.contents.get(content).map(|start| (*start, *size))
            }
            _ => None,
        };
        match found {
            Some((at, left)) => Ok(Box::new(OldFile { old: Arc::clone(&self.old), at, left })),
            None => self.rest.open(path),
        }
    }
}

/// A file in the tar of an old blob.
struct OldFile {
    old: Arc<OldBlob>,
    at: u64,
    left: u64,
}

impl Read for OldFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = if room == 0 { 0 } else { self.old.read_at(self.at, &mut buffer[..room])? };
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

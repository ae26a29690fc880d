//! From the bytes of a tar to a blob in the store: cut into chunks, each chunk compressed on its own, in order.
//!
//! Four things overlap: whoever produces the tar, the compression of several chunks, the SHA-256 of the tar (its diff
//! ID) and the SHA-256 of the blob, beside which it is written. A blob that is the tar is hashed once. Parallelism
//! is across chunks and the order of the output is the order of the input, so no thread count reaches a byte. Memory is
//! a fixed number of buffers of at most one chunk each, whatever the size of the layer and however many layers are
//! encoded at the same time.
//!
//! A chunk that an older blob holds is not compressed again: the compressed bytes are copied from there, which gives the
//! bytes that compressing would give, since those are a function of the chunk and the encoder. The chunks that both blobs
//! *begin* with are not even decompressed: both SHA-256 go on from where they were at the last one's end.

use std::{
    io::{self, Write},
    ops::RangeInclusive,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use oci::{
    ContentDigest, Descriptor, DiffId, Sha256Digest,
    store::{BlobCopy, Store, StoreError},
};

use crate::{
    chunk::{Chunker, MAX_CHUNK},
    courtesy::{Courtesy, give_way},
    encode::Encoder,
    old::{Chunk, OldBlob, Row},
    sha256::Sha256,
};

/// Chunks between the chunker and the blob for each compressing thread: one is compressed while another one waits.
const CHUNKS_A_THREAD: usize = 2;
/// Fewest and most of them; each takes up to 4 MiB before and 4 MiB after compression.
const CHUNKS: RangeInclusive<usize> = 8..=32;
/// Bytes of a segment, more or less: what is read at once by one thread.
pub(crate) const SEGMENT: usize = 512 * 1024;
/// Segments of a layer that are being read, wait for their turn, or wait to be hashed and written.
const SEGMENTS: usize = 12;

/// A blob that stands in the store.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// SHA-256 of the tar.
    pub(crate) diff_id: DiffId,
    /// The blob.
    pub(crate) descriptor: Descriptor,
    /// What it consists of, if it is compressed.
    pub(crate) chunks: Vec<Row>,
}

/// Why a tar did not become a blob.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError<E: std::error::Error + 'static> {
    /// The tar could not be produced.
    #[error(transparent)]
    Produce(E),
    /// The store does not take the blob.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob cannot be written.
    #[error("cannot write a layer's blob to the store")]
    Write(#[source] io::Error),
    /// The tar is another one than it should be.
    #[error("the tar has the digest {0}")]
    DiffId(DiffId),
}

/// What there is to encode, beside the bytes.
#[derive(Clone, Copy)]
pub(crate) struct Encoding<'s> {
    /// What the tar is made into.
    pub(crate) encoder: Encoder,
    /// Where the blob goes.
    pub(crate) store: &'s Store,
    /// What the tar takes at most, in bytes, for the error of a full disk.
    pub(crate) wanted: u64,
    /// What the SHA-256 of the tar must be, where that is known.
    pub(crate) diff_id: Option<DiffId>,
    /// A blob of the same encoder whose chunks may come again.
    pub(crate) old: Option<&'s OldBlob>,
    /// Is told how many bytes of the tar have come; what it answers with an error goes no further.
    pub(crate) watch: &'s (dyn Fn(usize) -> io::Result<()> + Sync),
}

/// The threads and the memory that all encodings of a process share.
#[derive(Debug)]
pub(crate) struct Pipeline {
    threads: rayon::ThreadPool,
    chunks: Arc<Buffers>,
    members: Arc<Buffers>,
}

impl Pipeline {
    /// A pipeline with this many compressing threads, at least one, and as courteous as this.
    ///
    /// # Errors
    /// The operating system gives no threads.
    pub(crate) fn new(threads: usize, courtesy: Courtesy) -> io::Result<Self> {
        let name = |index| format!("compress-{index}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(name);
        let pool = pool.start_handler(move |_| give_way(courtesy)).build();
        let count = threads.saturating_mul(CHUNKS_A_THREAD).clamp(*CHUNKS.start(), *CHUNKS.end());
        let (chunks, members) = (Buffers::new(count, MAX_CHUNK), Buffers::new(count, MAX_CHUNK));
        Ok(Self { threads: pool.map_err(io::Error::other)?, chunks, members })
    }

    /// Encodes what `produce` writes into a blob of the store.
    ///
    /// # Errors
    /// What `produce` gives back, unless its stream failed for a reason of ours: then that reason.
    pub(crate) fn encode<'s, E: std::error::Error + Send + 'static>(
        &'s self,
        encoding: Encoding<'s>,
        produce: impl FnOnce(&mut Sink<'_, 's>) -> Result<(), E>,
    ) -> Result<Encoded, EncodeError<E>> {
        let blob = Blob::new(&encoding)?;
        let (to_hasher, chunks) = channel();
        let (to_writer, members) = channel();
        thread::scope(|scope| {
            let hasher = scope.spawn(move || hash(&chunks));
            let writer = scope.spawn(move || write(&members, blob));
            let (produced, flushed) = self.threads.in_place_scope(|pool| {
                let mut sink = Sink::new(self, pool, encoding, to_hasher, to_writer);
                let produced = produce(&mut sink);
                let flushed = sink.finish(produced.is_ok());
                (produced, flushed)
            });
            let (diff_id, tars) = hasher.join().expect("hashing does not panic");
            let written = writer.join().expect("writing a blob does not panic");
            // A broken blob is the reason why the producer could not write, not the other way round.
            let (blob, members) = written.map_err(EncodeError::Write)?;
            produced.map_err(EncodeError::Produce)?;
            flushed.map_err(EncodeError::Write)?;
            let tar = DiffId::from(diff_id);
            if encoding.diff_id.is_some_and(|wanted| wanted != tar) {
                return Err(EncodeError::DiffId(tar));
            }
            let (digest, size) = blob.commit(diff_id)?;
            let descriptor = Descriptor::new(encoding.encoder.media_type(), digest, size);
            let chunks = members.into_iter().zip(tars).map(|((chunk, blob), tar)| Row { chunk, tar, blob });
            let chunks = chunks.collect();
            Ok(Encoded { diff_id: tar, descriptor, chunks })
        })
    }
}

/// Where the tar is written to: cuts it and hands each chunk to the hasher and to a compressing thread.
pub(crate) struct Sink<'a, 's> {
    pipeline: &'s Pipeline,
    pool: &'a rayon::Scope<'s>,
    encoding: Encoding<'s>,
    chunker: Chunker,
    /// What has come since the last cut.
    chunk: Option<Buffer>,
    /// How many chunks of the old blob have come, in order, as long as nothing else has.
    kept: Option<usize>,
    segments: Arc<Buffers>,
    to_hasher: Sender<Receiver<Hashed>>,
    to_writer: Sender<Receiver<io::Result<Member>>>,
}

/// A part of a tar, for its hasher.
enum Hashed {
    Bytes(Arc<Buffer>),
    /// What the hasher would be after it.
    Known(Sha256),
}

/// A part of a blob.
enum Member {
    Tar(Arc<Buffer>),
    Compressed(Buffer, Chunk),
    /// One before which, and up to whose end, the old blob is the same.
    Kept(Buffer, Chunk, Sha256),
}

impl<'a, 's> Sink<'a, 's> {
    fn new(
        pipeline: &'s Pipeline,
        pool: &'a rayon::Scope<'s>,
        encoding: Encoding<'s>,
        to_hasher: Sender<Receiver<Hashed>>,
        to_writer: Sender<Receiver<io::Result<Member>>>,
    ) -> Self {
        let (chunker, segments) = (Chunker::default(), Buffers::new(SEGMENTS, SEGMENT + SEGMENT / 2));
        Self { pipeline, pool, encoding, chunker, chunk: None, kept: Some(0), segments, to_hasher, to_writer }
    }

    /// Lets one of the pipeline's threads make a segment, which [`Sink::take`] takes when it is its turn. At most half of
    /// all segments may be under way before they are taken.
    pub(crate) fn prepare<E: Send + 's>(
        &self,
        make: impl FnOnce(&mut Vec<u8>) -> Result<(), E> + Send + 's,
    ) -> Receiver<Result<Buffer, E>> {
        let mut segment = Buffers::take(&self.segments);
        let (done, to_come) = channel();
        self.pool.spawn(move |_| {
            let made = make(&mut segment.bytes).map(|()| segment);
            // Nobody listens any more once the layer has failed.
            done.send(made).unwrap_or_default();
        });
        to_come
    }

    /// How many segments may be prepared before the first of them is taken.
    pub(crate) fn ahead() -> usize {
        SEGMENTS / 2
    }

    /// Writes a segment.
    ///
    /// # Errors
    /// As those of writing.
    pub(crate) fn take(&mut self, segment: Buffer) -> io::Result<()> {
        match self.encoding.encoder {
            Encoder::Gzip(_) | Encoder::Zstd(_) => self.write_all(&segment.bytes),
            Encoder::Uncompressed => {
                (self.encoding.watch)(segment.bytes.len())?;
                self.end_chunk()?;
                self.pass_on(segment)
            }
        }
    }

    /// Writes the chunk that begins at a byte of the old blob's tar, if one does which ends before `end`, and this is
    /// where a chunk begins here. Tells its length.
    ///
    /// # Errors
    /// As those of writing.
    pub(crate) fn copy_chunk(&mut self, start: u64, end: u64) -> io::Result<Option<u64>> {
        let is_cut = self.chunk.as_ref().is_none_or(|chunk| chunk.bytes.is_empty());
        let Some(old) = self.encoding.old.filter(|_| is_cut) else { return Ok(None) };
        let Some((index, length)) = old.chunk_at(start).filter(|(_, length)| start + length <= end) else {
            return Ok(None);
        };
        (self.encoding.watch)(length as usize)?;
        self.kept = self.kept.filter(|kept| *kept == index).map(|kept| kept + 1);
        match self.kept {
            Some(_) => self.keep(old, index)?,
            None => self.copy(old, index)?,
        }
        Ok(Some(length))
    }

    /// Hands a chunk of the old blob to the writer, and to the hasher what it comes to.
    fn keep(&self, old: &'s OldBlob, index: usize) -> io::Result<()> {
        let (mut member, hashed, written) = self.announce()?;
        let Row { chunk, tar, blob } = old.row(index).clone();
        hashed.send(Hashed::Known(tar)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.pool.spawn(move |_| {
            let read = old.read_member(index, &mut member.bytes);
            written.send(read.map(|()| Member::Kept(member, chunk, blob))).unwrap_or_default();
        });
        Ok(())
    }

    /// Hands a chunk of the old blob to the writer, and what it is without compression to the hasher.
    fn copy(&mut self, old: &'s OldBlob, index: usize) -> io::Result<()> {
        // An empty one that has been taken already is not to be waited for.
        let mut chunk = self.chunk.take().unwrap_or_else(|| Buffers::take(&self.pipeline.chunks));
        let (mut member, hashed, written) = self.announce()?;
        self.pool.spawn(move |_| {
            let copied = old.read_member(index, &mut member.bytes);
            let copied = copied.and_then(|()| old.decompress(index, &member.bytes, &mut chunk.bytes));
            // Without a chunk the hasher ends; its digest is not looked at, since the blob has failed.
            if copied.is_ok() {
                hashed.send(Hashed::Bytes(Arc::new(chunk))).unwrap_or_default();
            }
            let chunk = old.row(index).chunk;
            written.send(copied.map(|()| Member::Compressed(member, chunk))).unwrap_or_default();
        });
        Ok(())
    }

    /// Hands a chunk to the hasher and to a compressing thread.
    fn dispatch(&mut self, chunk: Buffer) -> io::Result<()> {
        let (mut member, hashed, written) = self.announce()?;
        let chunk = Arc::new(chunk);
        hashed.send(Hashed::Bytes(Arc::clone(&chunk))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let Encoding { encoder, old, .. } = self.encoding;
        self.pool.spawn(move |_| {
            let content = ContentDigest::of(&chunk.bytes);
            let known = old.and_then(|old| old.chunk_of(&content).map(|index| (old, index)));
            // One that cannot be copied is compressed.
            let copied = known.is_some_and(|(old, index)| old.read_member(index, &mut member.bytes).is_ok());
            if !copied {
                encoder.compress(&chunk.bytes, &mut member.bytes);
            }
            let entry = Chunk {
                length: chunk.bytes.len() as u32,
                content,
                size: member.bytes.len() as u32,
                member: ContentDigest::of(&member.bytes),
            };
            written.send(Ok(Member::Compressed(member, entry))).unwrap_or_default();
        });
        Ok(())
    }

    /// Makes room for a chunk in the order of the blob.
    fn announce(&self) -> io::Result<(Buffer, Sender<Hashed>, Sender<io::Result<Member>>)> {
        let member = Buffers::take(&self.pipeline.members);
        let ((hashed, to_hash), (written, to_write)) = (channel(), channel());
        // The writer is gone only when the blob cannot be written; its own error says why.
        self.to_writer.send(to_write).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.to_hasher.send(to_hash).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok((member, hashed, written))
    }

    /// Hands a part of the tar to the hasher and to the writer.
    fn pass_on(&self, segment: Buffer) -> io::Result<()> {
        let segment = Arc::new(segment);
        let ((hashed, to_hash), (written, to_write)) = (channel(), channel());
        hashed.send(Hashed::Bytes(Arc::clone(&segment))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        written.send(Ok(Member::Tar(segment))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.to_writer.send(to_write).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.to_hasher.send(to_hash).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Sends the last chunk if the tar is complete, and lets the other threads end.
    fn finish(mut self, complete: bool) -> io::Result<()> {
        if complete { self.end_chunk() } else { Ok(()) }
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        match self.chunk.take().filter(|chunk| !chunk.bytes.is_empty()) {
            None => Ok(()),
            Some(segment) if self.encoding.encoder == Encoder::Uncompressed => self.pass_on(segment),
            Some(chunk) => self.dispatch(chunk),
        }
    }

    fn write_chunked(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut chunk = self.chunk.take().unwrap_or_else(|| Buffers::take(&self.pipeline.chunks));
        let (taken, ends) = self.chunker.fill(&mut chunk.bytes, bytes);
        if ends {
            self.dispatch(chunk)?;
        } else {
            self.chunk = Some(chunk);
        }
        Ok(taken)
    }

    fn write_plain(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut segment = self.chunk.take().unwrap_or_else(|| Buffers::take(&self.segments));
        let taken = bytes.len().min(SEGMENT - segment.bytes.len());
        segment.bytes.extend_from_slice(&bytes[..taken]);
        if segment.bytes.len() == SEGMENT {
            self.pass_on(segment)?;
        } else {
            self.chunk = Some(segment);
        }
        Ok(taken)
    }
}

/// Ends a write where a chunk ends.
impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kept = None;
        let taken = match self.encoding.encoder {
            Encoder::Gzip(_) | Encoder::Zstd(_) => self.write_chunked(bytes),
            Encoder::Uncompressed => self.write_plain(bytes),
        }?;
        (self.encoding.watch)(taken)?;
        Ok(taken)
    }

    /// Does nothing: where chunks end is not the writer's to say.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A blob on its way to the store.
struct Blob {
    copy: BlobCopy,
    size: u64,
    /// Of what has been written; nobody's where the blob is the tar, which is hashed beside it.
    hasher: Option<Sha256>,
}

impl Blob {
    fn new(encoding: &Encoding<'_>) -> Result<Self, StoreError> {
        let Encoding { store, wanted, encoder, .. } = *encoding;
        let hasher = (encoder != Encoder::Uncompressed).then(Sha256::default);
        Ok(Self { copy: store.blob_copy()?.expecting(wanted), size: 0, hasher })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        self.copy.write_all(bytes)
    }

    fn commit(self, diff_id: Sha256Digest) -> Result<(Sha256Digest, u64), StoreError> {
        let digest = self.hasher.map_or(diff_id, Sha256::finish);
        self.copy.commit_verified(&digest, self.size).map(|()| (digest, self.size))
    }
}

/// Tells also what the hasher was after each part.
fn hash(parts: &Receiver<Receiver<Hashed>>) -> (Sha256Digest, Vec<Sha256>) {
    let (mut hasher, mut kept) = (Sha256::default(), Vec::new());
    for part in parts {
        match part.recv() {
            Ok(Hashed::Bytes(part)) => hasher.update(&part.bytes),
            Ok(Hashed::Known(then)) => hasher = then,
            // One that does not come has failed, and so has the blob.
            Err(_) => break,
        }
        kept.push(hasher.clone());
    }
    (hasher.finish(), kept)
}

/// Tells of each chunk what the blob's hasher was after it.
fn write(
    members: &Receiver<Receiver<io::Result<Member>>>,
    mut blob: Blob,
) -> io::Result<(Blob, Vec<(Chunk, Sha256)>)> {
    let mut chunks = Vec::new();
    for member in members {
        match member.recv().map_err(|_| io::Error::other("a compressing thread is gone"))?? {
            Member::Tar(segment) => blob.write_all(&segment.bytes)?,
            Member::Compressed(member, chunk) => {
                blob.write_all(&member.bytes)?;
                let hasher = blob.hasher.as_mut().expect("what is compressed is hashed from its first byte");
                hasher.update(&member.bytes);
                chunks.push((chunk, hasher.clone()));
            }
            Member::Kept(member, chunk, then) => {
                blob.write_all(&member.bytes)?;
                blob.hasher = Some(then.clone());
                chunks.push((chunk, then));
            }
        }
    }
    Ok((blob, chunks))
}

/// Memory for chunks or for what becomes of them, used again and again.
#[derive(Debug)]
struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    returned: Condvar,
    capacity: usize,
}

/// One of them; goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    fn new(count: usize, capacity: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(vec![Vec::new(); count]), returned: Condvar::new(), capacity })
    }

    /// Waits until one is free. Cannot wait for ever: those of members are on their way to a blob and wait for nothing,
    /// those of chunks wait for members at most, and of segments half are on their way to hasher and writer.
    fn take(buffers: &Arc<Self>) -> Buffer {
        let mut free = buffers.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(mut bytes) = free.pop() {
                // Once, and never more; pages that no chunk reaches are never touched.
                bytes.reserve_exact(buffers.capacity);
                return Buffer { bytes, home: Arc::clone(buffers) };
            }
            free = buffers.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        self.home.returned.notify_one();
    }
}

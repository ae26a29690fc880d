//! From the bytes of a tar to a blob in the store: cut into chunks, each chunk compressed on its own, in order.
//!
//! Four things overlap: whoever produces the tar, the compression of several chunks, the SHA-256 of the tar (its diff
//! ID) and the SHA-256 of the blob, which the store's writer computes. Parallelism is across chunks and the order of
//! the output is the order of the input, so no thread count reaches a byte. Memory is a fixed number of buffers of at
//! most one chunk each, whatever the size of the layer and however many layers are encoded at the same time.
//!
//! A chunk is one gzip member without name or time. One that does not compress is stored: [`is_dense`] decides that
//! from a sample of its bytes, so that neither this builder nor a reader spends time on it.

use std::{
    cell::RefCell,
    io::{self, Write},
    ops::RangeInclusive,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use libdeflater::{CompressionLvl, Compressor};
use oci::{
    Descriptor, DiffId, MediaType, Sha256Digest,
    store::{BlobWriter, Store, StoreError},
};
use solver::Cancel;

use crate::chunk::{CHUNKER_ID, Chunker, MAX_CHUNK};

/// Chunks between the chunker and the blob for each compressing thread: one is compressed while another one waits.
const CHUNKS_A_THREAD: usize = 2;
/// Fewest and most of them; each takes up to 4 MiB before and 4 MiB after compression.
const CHUNKS: RangeInclusive<usize> = 8..=32;
/// The level with the best ratio of time to size (see BENCHMARKS.md); part of the format through [`Encoder::id`].
const LEVEL: i32 = 4;
/// The version of libdeflate that is compiled in; another one may give other bytes.
const LIBDEFLATE: &str = "1.26";

/// What a layer tar is made into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// One gzip member a chunk.
    #[default]
    Gzip,
    /// The tar as it is.
    Uncompressed,
}

impl Encoder {
    /// Names everything that decides the bytes of a blob: format, library and its version, level, chunker.
    pub fn id(self) -> String {
        match self {
            Self::Gzip => format!("gzip-libdeflate{LIBDEFLATE}-l{LEVEL}-{CHUNKER_ID}"),
            Self::Uncompressed => "uncompressed".to_owned(),
        }
    }

    /// The media type of the blobs it makes.
    pub fn media_type(self) -> MediaType {
        match self {
            Self::Gzip => MediaType::OciLayerGzip,
            Self::Uncompressed => MediaType::OciLayer,
        }
    }

    fn encode(self, chunk: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Gzip => gzip_member(chunk, out),
            Self::Uncompressed => out.extend_from_slice(chunk),
        }
    }
}

/// A blob that stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// SHA-256 of the tar.
    pub diff_id: DiffId,
    /// The blob.
    pub descriptor: Descriptor,
}

/// Why a tar did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError<E: std::error::Error + 'static> {
    /// The tar could not be produced.
    #[error(transparent)]
    Produce(E),
    /// The store does not take the blob.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob cannot be written.
    #[error("cannot write a layer's blob to the store")]
    Write(#[source] io::Error),
    /// The user stopped the build.
    #[error("stopped while compressing a layer")]
    Cancelled,
}

/// The threads and the memory that all encodings of a process share.
#[derive(Debug)]
pub struct Pipeline {
    threads: rayon::ThreadPool,
    chunks: Arc<Buffers>,
    members: Arc<Buffers>,
}

impl Pipeline {
    /// A pipeline with this many compressing threads, at least one.
    ///
    /// # Errors
    /// The operating system gives no threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let name = |index| format!("compress-{index}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(name).build();
        let count = threads.saturating_mul(CHUNKS_A_THREAD).clamp(*CHUNKS.start(), *CHUNKS.end());
        let (chunks, members) = (Buffers::new(count), Buffers::new(count));
        Ok(Self { threads: pool.map_err(io::Error::other)?, chunks, members })
    }

    /// Encodes what `produce` writes into a blob of the store.
    ///
    /// # Errors
    /// What `produce` gives back, unless its stream failed for a reason of ours: then that reason.
    pub fn encode<E: std::error::Error + Send + 'static>(
        &self,
        encoder: Encoder,
        store: &Store,
        cancel: &Cancel,
        produce: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Encoded, EncodeError<E>> {
        let blob = store.blob_writer()?;
        let (to_hasher, chunks) = channel();
        let (to_writer, members) = channel();
        thread::scope(|scope| {
            let hasher = scope.spawn(move || hash(&chunks));
            let writer = scope.spawn(move || write(&members, blob));
            let chunker = Chunker::default();
            let mut sink =
                Sink { pipeline: self, encoder, cancel, chunker, chunk: None, to_hasher, to_writer };
            let produced = produce(&mut sink);
            let flushed = sink.finish(produced.is_ok());
            let diff_id = hasher.join().expect("hashing does not panic");
            let blob = writer.join().expect("writing a blob does not panic");
            if cancel.is_requested() {
                return Err(EncodeError::Cancelled);
            }
            // A broken blob is the reason why the producer could not write, not the other way round.
            let blob = blob.map_err(EncodeError::Write)?;
            produced.map_err(EncodeError::Produce)?;
            flushed.map_err(EncodeError::Write)?;
            let (digest, size) = blob.commit()?;
            Ok(Encoded { diff_id, descriptor: Descriptor::new(encoder.media_type(), digest, size) })
        })
    }
}

/// Where the tar is written to: cuts it and hands each chunk to the hasher and to a compressing thread.
struct Sink<'a> {
    pipeline: &'a Pipeline,
    encoder: Encoder,
    cancel: &'a Cancel,
    chunker: Chunker,
    chunk: Option<Buffer>,
    to_hasher: Sender<Arc<Buffer>>,
    to_writer: Sender<Receiver<Buffer>>,
}

impl Sink<'_> {
    fn dispatch(&mut self, chunk: Buffer) -> io::Result<()> {
        if self.cancel.is_requested() {
            return Err(io::Error::other("stopped"));
        }
        let mut member = Buffers::take(&self.pipeline.members);
        let chunk = Arc::new(chunk);
        let (done, to_come) = channel();
        // The writer is gone only when the blob cannot be written; its own error says why.
        self.to_writer.send(to_come).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.to_hasher.send(chunk.clone()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let encoder = self.encoder;
        self.pipeline.threads.spawn(move || {
            encoder.encode(&chunk.bytes, &mut member.bytes);
            // Nobody listens any more once writing has failed.
            done.send(member).unwrap_or_default();
        });
        Ok(())
    }

    /// Sends the last chunk if the tar is complete, and lets the other threads end.
    fn finish(mut self, complete: bool) -> io::Result<()> {
        let last = self.chunk.take().filter(|chunk| complete && !chunk.bytes.is_empty());
        last.map_or(Ok(()), |chunk| self.dispatch(chunk))
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut chunk = self.chunk.take().unwrap_or_else(|| Buffers::take(&self.pipeline.chunks));
        let (taken, ends) = self.chunker.fill(&mut chunk.bytes, bytes);
        if ends {
            self.dispatch(chunk)?;
        } else {
            self.chunk = Some(chunk);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash(chunks: &Receiver<Arc<Buffer>>) -> DiffId {
    let mut hasher = ring::digest::Context::new(&ring::digest::SHA256);
    chunks.iter().for_each(|chunk| hasher.update(&chunk.bytes));
    Sha256Digest::from_ring(&hasher.finish()).into()
}

fn write(members: &Receiver<Receiver<Buffer>>, mut blob: BlobWriter) -> io::Result<BlobWriter> {
    for member in members {
        let member = member.recv().map_err(|_| io::Error::other("a compressing thread is gone"))?;
        blob.write_all(&member.bytes)?;
    }
    Ok(blob)
}

/// Memory for chunks or for what becomes of them, used again and again.
#[derive(Debug)]
struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    returned: Condvar,
}

/// One of them; goes back when it is dropped.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(vec![Vec::new(); count]), returned: Condvar::new() })
    }

    /// Waits until one is free. Cannot wait for ever: those of members are on their way to a blob and wait for nothing,
    /// and those of chunks wait for members at most.
    fn take(buffers: &Arc<Self>) -> Buffer {
        let mut free = buffers.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(mut bytes) = free.pop() {
                // Once, and never more; pages that no chunk reaches are never touched.
                bytes.reserve_exact(MAX_CHUNK);
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

thread_local! {
    static COMPRESSOR: RefCell<Compressor> = RefCell::new(compressor(LEVEL));
    static STORER: RefCell<Compressor> = RefCell::new(compressor(0));
    static PROBE: RefCell<Compressor> = RefCell::new(compressor(1));
}

fn compressor(level: i32) -> Compressor {
    Compressor::new(CompressionLvl::new(level).expect("libdeflate has levels 0 to 12"))
}

fn gzip_member(bytes: &[u8], member: &mut Vec<u8>) {
    let compressor = if is_dense(bytes) { &STORER } else { &COMPRESSOR };
    compressor.with_borrow_mut(|compressor| compress(compressor, bytes, member));
}

fn compress(compressor: &mut Compressor, bytes: &[u8], member: &mut Vec<u8>) {
    member.resize(compressor.gzip_compress_bound(bytes.len()), 0);
    let length = compressor.gzip_compress(bytes, member).expect("the bound is large enough");
    member.truncate(length);
}

/// Whether compression would save less than a thirty-second: judged by four samples of 8 KiB, evenly spread. Part of
/// the output format.
fn is_dense(bytes: &[u8]) -> bool {
    const SAMPLES: usize = 4;
    const SAMPLE: usize = 8 * 1024;
    if bytes.len() < SAMPLES * SAMPLE {
        return false;
    }
    let starts = (0..SAMPLES).map(|index| index * (bytes.len() - SAMPLE) / (SAMPLES - 1));
    let sample: Vec<u8> = starts.flat_map(|start| &bytes[start..start + SAMPLE]).copied().collect();
    let mut compressed = Vec::new();
    PROBE.with_borrow_mut(|probe| compress(probe, &sample, &mut compressed));
    compressed.len() > sample.len() - sample.len() / 32
}

//! From a blob to the bytes of its tar: read, verified and kept in one thread, decompressed in a second, hashed in a third,
//! and unpacked by the caller's. What one of them has done waits for the next in a bounded channel, so that the slowest
//! slows all down, to the registry's end.
//!
//! What comes out is checked against the diff ID, and its size is bounded (RELIABILITY R21).

use std::{
    io::{self, Cursor, Read},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use oci::{
    DiffId,
    digest::Sha256Hasher,
    unpacked::{MAX_LAYER, unpacked},
};
use solver::Cancel;

/// Bytes handed from thread to thread at once, and how often before the faster one waits.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

/// Why a layer's bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The blob cannot be read or decompressed, or is the wrong one.
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    /// It unpacks to more than we take.
    #[error("the layer is larger than {} GiB", MAX_LAYER >> 30)]
    TooLarge,
    /// The user stopped the build.
    #[error("cancelled")]
    Cancelled,
}

/// What became of a layer's bytes.
pub(super) struct Streamed<T> {
    /// What the consumer made of them.
    pub(super) consumed: T,
    /// Their digest.
    pub(super) diff_id: DiffId,
}

/// Decompresses a blob to its end, while `consume` reads the result and all of it is hashed. What the consumer leaves
/// unread is read and hashed, too.
///
/// # Errors
/// Outer: the blob cannot be read. Inner: the consumer's own, which ends the reading.
pub(super) fn decompress<T, E>(
    blob: impl Read + Send,
    cancel: &Cancel,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
) -> Result<Result<Streamed<T>, E>, StreamError> {
    let (to_decoder, for_decoder) = sync_channel(CHUNKS);
    let (to_hash, for_hash) = sync_channel(CHUNKS);
    let (to_consumer, for_consumer) = sync_channel(CHUNKS);
    thread::scope(|scope| {
        scope.spawn(move || fetch(blob, &to_decoder));
        let blob = Pieces { pieces: for_decoder, current: Cursor::default() };
        let reader = scope.spawn(move || read(blob, MAX_LAYER, cancel, [to_hash, to_consumer]));
        let hasher = scope.spawn(move || hash(for_hash));
        let mut chunks =
            Chunks { chunks: for_consumer, current: Chunk::default(), position: 0, is_over: false };
        let consumed = consume(&mut chunks);
        if consumed.is_ok() {
            let _ = io::copy(&mut chunks, &mut io::sink());
        }
        drop(chunks);
        reader.join().expect("reading does not panic")?;
        let diff_id = hasher.join().expect("hashing does not panic");
        Ok(consumed.map(|consumed| Streamed { consumed, diff_id }))
    })
}

type Chunk = Arc<Vec<u8>>;

/// Reads a blob to its end, or until nobody takes its bytes any more.
fn fetch(mut blob: impl Read, taker: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = Vec::with_capacity(CHUNK);
        let read = blob.by_ref().take(CHUNK as u64).read_to_end(&mut piece);
        let is_last = !matches!(read, Ok(1..));
        if taker.send(read.map(|_| piece)).is_err() || is_last {
            return;
        }
    }
}

/// The decoder's end of a blob. An empty piece says that the blob is over.
struct Pieces {
    pieces: Receiver<io::Result<Vec<u8>>>,
    current: Cursor<Vec<u8>>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.current.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        // After the last piece, or an error, nothing comes.
        self.current = Cursor::new(self.pieces.recv().unwrap_or(Ok(Vec::new()))?);
        self.current.read(buffer)
    }
}

/// Ends early, without an error, when nobody takes the bytes any more: the taker has one of his own.
fn read(
    blob: impl Read + Send,
    most: u64,
    cancel: &Cancel,
    takers: [SyncSender<Chunk>; 2],
) -> Result<(), StreamError> {
    let mut tar = unpacked(blob).map_err(StreamError::Read)?;
    let mut total = 0;
    loop {
        if cancel.is_requested() {
            return Err(StreamError::Cancelled);
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        tar.by_ref().take(CHUNK as u64).read_to_end(&mut chunk).map_err(StreamError::Read)?;
        total += chunk.len() as u64;
        if total > most {
            return Err(StreamError::TooLarge);
        }
        let chunk = Arc::new(chunk);
        let is_taken = takers.iter().all(|taker| taker.send(chunk.clone()).is_ok());
        if chunk.is_empty() || !is_taken {
            return Ok(());
        }
    }
}

fn hash(chunks: Receiver<Chunk>) -> DiffId {
    let mut hasher = Sha256Hasher::default();
    chunks.iter().for_each(|chunk| hasher.update(&chunk));
    hasher.finish().into()
}

/// The consumer's end. An empty chunk says that all is well and over; a closed channel that the reader has failed.
struct Chunks {
    chunks: Receiver<Chunk>,
    current: Chunk,
    position: usize,
    is_over: bool,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() && !self.is_over {
            self.current = self.chunks.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.position = 0;
            self.is_over = self.current.is_empty();
        }
        let count = (&self.current[self.position..]).read(buffer)?;
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use oci::Sha256Digest;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn all(stream: &mut dyn Read) -> Result<Vec<u8>, io::Error> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn diff_id(bytes: &[u8]) -> DiffId {
        Sha256Digest::of(bytes).into()
    }

    #[test]
    fn every_compression_comes_out_the_same_and_hashed() {
        let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 1000) as u8).collect();
        let (first, second) = bytes.split_at(1 << 20);
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("in memory");
        for blob in [
            bytes.clone(),
            gzip(&bytes),
            [gzip(first), gzip(second)].concat(),
            frame(&bytes),
            [frame(first), frame(second)].concat(),
        ] {
            let streamed =
                decompress(&blob[..], &Cancel::default(), all).expect("readable").expect("consumed");
            assert!(streamed.consumed == bytes);
            assert_eq!(streamed.diff_id, diff_id(&bytes));
        }
    }

    #[test]
    fn what_the_consumer_leaves_is_hashed_all_the_same() {
        let blob = vec![7; 5 << 20];
        let nothing = |_: &mut dyn Read| Ok::<_, io::Error>(());
        let streamed =
            decompress(&blob[..], &Cancel::default(), nothing).expect("readable").expect("consumed");
        assert_eq!(streamed.diff_id, diff_id(&blob));
    }

    #[test]
    fn the_reader_s_error_counts_before_the_consumer_s_and_the_consumer_s_ends_the_reading() {
        let cut = gzip(&[1; 100_000]);
        let result = decompress(&cut[..cut.len() - 9], &Cancel::default(), all);
        assert!(matches!(result, Err(StreamError::Read(_))));
        let endless = io::repeat(7);
        let refuse = |_: &mut dyn Read| Err::<(), _>("refused");
        assert_eq!(decompress(endless, &Cancel::default(), refuse).expect("readable").err(), Some("refused"));
    }

    #[test]
    fn a_cancelled_build_stops_reading() {
        let cancel = Cancel::default();
        cancel.request();
        assert!(matches!(decompress(io::repeat(7), &cancel, all), Err(StreamError::Cancelled)));
    }

    #[test]
    fn what_unpacks_to_more_than_a_layer_may_have_is_refused_while_it_does() {
        let bomb = gzip(&vec![0; 8 << 20]);
        assert!(bomb.len() < 256 << 10);
        for (most, is_taken) in [(8 << 20, true), ((8 << 20) - 1, false), (CHUNK as u64, false)] {
            let (takers, given): (Vec<_>, Vec<_>) = (0..2).map(|_| sync_channel(100)).unzip();
            let takers = <[SyncSender<Chunk>; 2]>::try_from(takers).expect("two");
            let result = read(&bomb[..], most, &Cancel::default(), takers);
            assert_eq!(result.is_ok(), is_taken);
            assert!(is_taken || matches!(result, Err(StreamError::TooLarge)));
            let taken: u64 = given[0].try_iter().map(|chunk| chunk.len() as u64).sum();
            assert!(taken <= most);
        }
        assert_eq!(StreamError::TooLarge.to_string(), "the layer is larger than 64 GiB");
    }
}

//! A blob of a remote cache on its way through this process to somewhere else: its tar must have the diff ID that the cache has
//! told, since that is what the config of an image will say.

use std::{
    io::{self, Cursor, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use super::bring::Loss;
use crate::{
    digest::{DiffId, Sha256Hasher},
    unpacked::{MAX_LAYER, unpacked},
};

/// Pieces that wait for the decoder before the reader does.
const PIECES: usize = 16;
/// Bytes of a tar that are hashed at once.
const CHUNK: usize = 128 << 10;

/// The digest of the tar in a blob, which is read to its end.
///
/// # Errors
/// It cannot be read or unpacked, or is too large.
pub(super) fn diff_id(mut blob: impl Read + Send) -> io::Result<DiffId> {
    let mut hasher = Sha256Hasher::default();
    {
        let mut tar = unpacked(&mut blob)?.take(MAX_LAYER + 1);
        let mut chunk = vec![0; CHUNK];
        loop {
            match tar.read(&mut chunk)? {
                0 => break,
                count => hasher.update(&chunk[..count]),
            }
        }
        if tar.limit() == 0 {
            return Err(io::Error::other(format!("the layer is larger than {} GiB", MAX_LAYER >> 30)));
        }
    }
    // What the decoder leaves belongs to the blob, too.
    io::copy(&mut blob, &mut io::sink())?;
    Ok(hasher.finish().into())
}

/// Passes the bytes of a blob on, and fails with a [`Loss`] instead of handing out the last of them when its tar is not what
/// was told.
pub(crate) struct Told<R> {
    inner: R,
    left: u64,
    told: DiffId,
    /// Gone once all is said.
    hashing: Option<Hashing>,
}

struct Hashing {
    pieces: SyncSender<Vec<u8>>,
    found: JoinHandle<io::Result<DiffId>>,
}

impl<R: Read> Told<R> {
    /// Reads a blob of so many bytes.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn new(inner: R, size: u64, told: DiffId) -> io::Result<Self> {
        let (pieces, rest) = sync_channel(PIECES);
        let hash = move || diff_id(Pieces { rest, current: Cursor::default() });
        let found = thread::Builder::new().name("diff-id".to_owned()).spawn(hash)?;
        Ok(Self { inner, left: size, told, hashing: Some(Hashing { pieces, found }) })
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(Hashing { pieces, found }) = self.hashing.take() else { return Ok(()) };
        drop(pieces);
        let wrong = |loss| io::Error::new(io::ErrorKind::InvalidData, loss);
        match found.join().expect("hashing does not panic")? {
            found if found == self.told => Ok(()),
            found => Err(wrong(Loss::DiffId { told: self.told, found })),
        }
    }
}

impl<R: Read> Read for Told<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(hashing) = &self.hashing {
            // A decoder that has failed takes no more, and says so in the end.
            let _ = hashing.pieces.send(buffer[..count].to_vec());
        }
        self.left = self.left.saturating_sub(count as u64);
        if self.left == 0 || count == 0 && !buffer.is_empty() {
            self.finish()?;
        }
        Ok(count)
    }
}

/// The decoder's end.
struct Pieces {
    rest: Receiver<Vec<u8>>,
    current: Cursor<Vec<u8>>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.rest.recv() {
                Ok(piece) => self.current = Cursor::new(piece),
                Err(_) => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sha256Digest;

    fn read(blob: &[u8], told: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let told = Sha256Digest::of(told).into();
        let mut reader = Told::new(blob, blob.len() as u64, told)?;
        // As one that counts reads it: the end is not asked for.
        (&mut reader).take(blob.len() as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn the_last_bytes_come_only_out_of_the_right_tar() {
        let tar: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 7) as u8).collect();
        let packed = zstd::encode_all(&tar[..], 1).expect("in memory");
        for blob in [&tar, &packed] {
            assert!(read(blob, &tar).expect("right") == *blob);
            let error = read(blob, b"another").expect_err("wrong");
            let loss = error.get_ref().and_then(|inner| inner.downcast_ref::<Loss>());
            assert!(matches!(loss, Some(Loss::DiffId { .. })), "{error:?}");
        }
        read(&packed[..packed.len() / 2], &tar).expect_err("not to be unpacked");
    }

    #[test]
    fn who_stops_reading_leaves_no_thread_behind_that_waits() {
        let blob = vec![7; 1 << 20];
        let mut reader =
            Told::new(&blob[..], blob.len() as u64, Sha256Digest::of(&blob).into()).expect("made");
        reader.read_exact(&mut [0; 1000]).expect("some");
        let Hashing { pieces, found } = reader.hashing.take().expect("still hashing");
        drop((reader, pieces));
        found.join().expect("it ends").expect("and has hashed what came");
    }
}

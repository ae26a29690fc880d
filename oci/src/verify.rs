//! A reader that checks what it hands out against a descriptor.

use std::io::{self, Read};

use crate::{
    descriptor::Descriptor,
    digest::{Sha256Digest, Sha256Hasher},
};

/// What is wrong with a blob's bytes; found inside the [`io::Error`] of a [`Verified`] reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// They end early.
    #[error("blob {digest} ends after {found} of {size} bytes")]
    Truncated {
        /// Which blob.
        digest: Sha256Digest,
        /// How many bytes there were.
        found: u64,
        /// How many there should be.
        size: u64,
    },
    /// They go on.
    #[error("blob {digest} goes on after its {size} bytes")]
    TooLong {
        /// Which blob.
        digest: Sha256Digest,
        /// How many there should be.
        size: u64,
    },
    /// They are others.
    #[error("blob {digest} is damaged: its bytes have digest {found}")]
    WrongDigest {
        /// Which blob.
        digest: Sha256Digest,
        /// What came instead.
        found: Sha256Digest,
    },
}

impl From<BlobError> for io::Error {
    fn from(error: BlobError) -> Self {
        let kind = match error {
            BlobError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Passes the bytes of a blob on, and fails instead of handing out the last of them when size or digest are wrong: who
/// has read all bytes has read the right ones.
#[derive(Debug)]
pub struct Verified<R> {
    inner: R,
    digest: Sha256Digest,
    size: u64,
    position: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading(Sha256Hasher),
    Good,
    Bad(BlobError),
}

impl<R: Read> Verified<R> {
    /// Reads the blob of a descriptor.
    pub fn new(inner: R, descriptor: &Descriptor) -> Self {
        let state = State::Reading(Sha256Hasher::default());
        Self { inner, digest: descriptor.digest, size: descriptor.size, position: 0, state }
    }

    /// Looks for the end, and at the digest, once all bytes have come.
    fn finish(&mut self, hash: &Sha256Hasher) -> io::Result<State> {
        let found = hash.clone().finish();
        if read_some(&mut self.inner, &mut [0])? > 0 {
            return Ok(State::Bad(BlobError::TooLong { digest: self.digest, size: self.size }));
        }
        if found != self.digest {
            return Ok(State::Bad(BlobError::WrongDigest { digest: self.digest, found }));
        }
        Ok(State::Good)
    }

    fn step(&mut self, buffer: &mut [u8], hash: &mut Sha256Hasher) -> io::Result<(usize, Option<State>)> {
        let remaining = self.size - self.position;
        let limit = usize::try_from(remaining).map_or(buffer.len(), |remaining| remaining.min(buffer.len()));
        let count = if limit == 0 { 0 } else { read_some(&mut self.inner, &mut buffer[..limit])? };
        hash.update(&buffer[..count]);
        self.position += count as u64;
        if self.position == self.size {
            return Ok((count, Some(self.finish(hash)?)));
        }
        let truncated = BlobError::Truncated { digest: self.digest, found: self.position, size: self.size };
        Ok((count, (count == 0).then_some(State::Bad(truncated))))
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut hash = match &mut self.state {
            State::Good => return Ok(0),
            State::Bad(error) => return Err(error.clone().into()),
            State::Reading(hash) => std::mem::take(hash),
        };
        let stepped = self.step(buffer, &mut hash);
        self.state = match &stepped {
            Ok((_, Some(State::Good))) => State::Good,
            Ok((_, Some(State::Bad(error)))) => State::Bad(error.clone()),
            _ => State::Reading(hash),
        };
        match &self.state {
            State::Bad(error) => Err(error.clone().into()),
            _ => stepped.map(|(count, _)| count),
        }
    }
}

fn read_some(inner: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match inner.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::MediaType;

    fn read(promised: &[u8], came: &[u8]) -> Result<Vec<u8>, (usize, BlobError)> {
        let mut reader = Verified::new(came, &Descriptor::of(MediaType::OciLayer, promised));
        let mut bytes = Vec::new();
        match reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => {
                let inner = error.into_inner().expect("ours").downcast::<BlobError>().expect("ours");
                let again = reader.read(&mut [0]).expect_err("once bad, always bad");
                assert_eq!(again.into_inner().expect("ours").downcast::<BlobError>().expect("ours"), inner);
                Err((bytes.len(), *inner))
            }
        }
    }

    #[test]
    fn only_the_promised_bytes_are_read_to_their_end() {
        for good in [b"".as_slice(), b"x", &[7; 100_000]] {
            assert_eq!(read(good, good), Ok(good.to_vec()));
        }
        let digest = Sha256Digest::of(b"good");
        assert_eq!(read(b"good", b"goo"), Err((3, BlobError::Truncated { digest, found: 3, size: 4 })));
        assert_eq!(read(b"good", b"goods"), Err((0, BlobError::TooLong { digest, size: 4 })));
        let found = Sha256Digest::of(b"bad!");
        assert_eq!(read(b"good", b"bad!"), Err((0, BlobError::WrongDigest { digest, found })));
        let digest = Sha256Digest::of(b"");
        assert_eq!(read(b"", b"x"), Err((0, BlobError::TooLong { digest, size: 0 })));
    }
}

//! Writes a tar entry by entry. Every tar that leaves this crate (layers, file systems, OCI archives) goes through
//! here, so all of them are deterministic in the same way.

use std::io::{self, Read, Write};

use oci::ContentDigest;

use crate::pax::{BLOCK, Header, HeaderError};

/// Bytes that end a tar, all zero.
pub(crate) const TRAILER: usize = 2 * BLOCK;
pub(crate) const ZEROS: [u8; TRAILER] = [0; TRAILER];
const BUFFER: usize = 256 * 1024;

/// Why an entry could not be written. Paths are those inside the tar.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The entry has a value that no tar can hold.
    #[error("cannot write {:?} to a tar", String::from_utf8_lossy(path))]
    Header {
        /// The entry.
        path: Vec<u8>,
        /// Which value.
        #[source]
        source: HeaderError,
    },
    /// The file behind an entry cannot be read.
    #[error("cannot read {:?}", String::from_utf8_lossy(path))]
    Read {
        /// The entry.
        path: Vec<u8>,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The bytes on disk are not those that were hashed when the entry was recorded.
    #[error("{:?} has changed on disk since it was recorded: {what}", String::from_utf8_lossy(path))]
    Changed {
        /// The entry.
        path: Vec<u8>,
        /// What differs.
        what: &'static str,
    },
    /// The tar itself cannot be written.
    #[error("cannot write the tar")]
    Write(#[source] io::Error),
}

/// A tar under construction.
pub struct ArchiveWriter<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Starts a tar.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::new() }
    }

    /// Writes an entry that has no content.
    ///
    /// # Errors
    /// [`ArchiveError::Header`] or [`ArchiveError::Write`].
    pub fn entry(&mut self, header: &Header<'_>) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Header { path: header.path.to_vec(), source };
        let blocks = header.to_blocks().map_err(failed)?;
        self.out.write_all(&blocks).map_err(ArchiveError::Write)
    }

    /// Writes a file with its content, which must have exactly the size that the header says and, where a digest is
    /// given, that digest.
    ///
    /// # Errors
    /// Any [`ArchiveError`]; the tar is of no use then.
    pub fn file(
        &mut self,
        header: &Header<'_>,
        size: u64,
        digest: Option<&ContentDigest>,
        content: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        self.entry(header)?;
        let changed = |what| ArchiveError::Changed { path: header.path.to_vec(), what };
        let mut hasher = digest.map(|_| blake3::Hasher::new());
        let mut left = size;
        loop {
            // One byte more than is left, so that a file that has grown is noticed.
            let room = usize::try_from(left + 1).unwrap_or(BUFFER).min(BUFFER);
            if self.buffer.len() < room {
                self.buffer.resize(room, 0);
            }
            let count = read(content, &mut self.buffer[..room], header.path)?;
            if count == 0 {
                break;
            }
            left = left.checked_sub(count as u64).ok_or_else(|| changed("it is longer"))?;
            let bytes = &self.buffer[..count];
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            self.out.write_all(bytes).map_err(ArchiveError::Write)?;
        }
        if left > 0 {
            return Err(changed("it is shorter"));
        }
        let found = hasher.map(|hasher| ContentDigest::from(hasher.finalize()));
        if found.as_ref() != digest {
            return Err(changed("other content"));
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
        self.out.write_all(&ZEROS[..padding]).map_err(ArchiveError::Write)
    }

    /// Ends the tar with its two zero blocks and gives the stream back.
    ///
    /// # Errors
    /// [`ArchiveError::Write`].
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.out.write_all(&ZEROS).map_err(ArchiveError::Write)?;
        Ok(self.out)
    }
}

fn read(content: &mut dyn Read, buffer: &mut [u8], path: &[u8]) -> Result<usize, ArchiveError> {
    loop {
        match content.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ArchiveError::Read { path: path.to_vec(), source }),
            Ok(count) => return Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pax::Kind;

    fn write(size: u64, digest: Option<ContentDigest>, content: &[u8]) -> Result<Vec<u8>, ArchiveError> {
        let mut writer = ArchiveWriter::new(Vec::new());
        let xattrs = BTreeMap::new();
        let kind = Kind::File(size);
        let header = Header { path: b"f", kind, mode: 0o644, uid: 0, gid: 0, time: 0, xattrs: &xattrs };
        writer.file(&header, size, digest.as_ref(), &mut &*content)?;
        writer.finish()
    }

    #[test]
    fn content_is_padded_to_blocks() {
        for (size, blocks) in [(0, 3), (1, 4), (511, 4), (512, 4), (513, 5)] {
            let content = vec![b'x'; size];
            let tar = write(size as u64, Some(ContentDigest::of(&content)), &content).expect("written");
            assert_eq!(tar.len(), blocks * BLOCK);
        }
    }

    #[test]
    fn a_file_that_is_not_what_was_recorded_is_refused() {
        let other = Some(ContentDigest::of(b"other"));
        for (size, digest, want) in [(4, None, "longer"), (6, None, "shorter"), (5, other, "other content")] {
            let error = write(size, digest, b"bytes").expect_err("changed").to_string();
            assert!(error.contains(want) && error.contains("\"f\""), "{error}");
        }
    }
}

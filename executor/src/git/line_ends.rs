//! Whether a file of a work tree is its blob but for line ends: a checkout may have CRLF where the blob has LF.

use std::{
    fs::File,
    io::{self, Read, Seek},
    sync::atomic::AtomicBool,
};

use gix::{
    ObjectId,
    objs::{Kind, compute_stream_hash},
    progress::Discard,
};

/// Read at a time.
const BLOCK: usize = 64 << 10;

/// Whether the file has the bytes of a blob when each CRLF in it is taken for an LF.
///
/// # Errors
/// It cannot be read.
pub fn are_all_that_differs(file: &mut File, id: ObjectId) -> io::Result<bool> {
    file.rewind()?;
    let raw = file.metadata()?.len();
    let length = io::copy(&mut LineFeeds::new(&mut *file), &mut io::sink())?;
    if length >= raw {
        return Ok(false);
    }
    file.rewind()?;
    let never = AtomicBool::new(false);
    let hash =
        compute_stream_hash(id.kind(), Kind::Blob, &mut LineFeeds::new(file), length, &mut Discard, &never);
    // A file that has changed meanwhile is not the blob.
    Ok(hash.is_ok_and(|hash| hash == id))
}

/// What is read, with LF for CRLF.
struct LineFeeds<R> {
    source: R,
    /// What is to be given out, and how much of it was.
    ready: Vec<u8>,
    given: usize,
    /// Whether the last byte was a CR that is still to be given out, unless an LF follows.
    holds_return: bool,
}

impl<R: Read> LineFeeds<R> {
    fn new(source: R) -> Self {
        Self { source, ready: Vec::new(), given: 0, holds_return: false }
    }

    /// Makes more ready; nothing at the end.
    fn fill(&mut self) -> io::Result<()> {
        (self.ready, self.given) = (Vec::with_capacity(BLOCK + 1), 0);
        let mut block = vec![0; BLOCK];
        while self.ready.is_empty() {
            let count = self.source.read(&mut block)?;
            for byte in &block[..count] {
                if std::mem::take(&mut self.holds_return) && *byte != b'\n' {
                    self.ready.push(b'\r');
                }
                match byte {
                    b'\r' => self.holds_return = true,
                    byte => self.ready.push(*byte),
                }
            }
            if count == 0 {
                self.ready.extend(std::mem::take(&mut self.holds_return).then_some(b'\r'));
                break;
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for LineFeeds<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.ready.len() {
            self.fill()?;
        }
        let rest = &self.ready[self.given..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_end_becomes_one_byte_wherever_blocks_end() {
        for (raw, expected) in [
            ("", ""),
            ("a\r\nb\r\n", "a\nb\n"),
            ("\r\r\n", "\r\n"),
            ("\r", "\r"),
            ("a\rb\n\r\n\r", "a\rb\n\n\r"),
        ] {
            for block in [1, 2, 64] {
                let (mut reader, mut read) = (LineFeeds::new(raw.as_bytes()), Vec::new());
                let mut buffer = vec![0; block];
                loop {
                    match reader.read(&mut buffer).expect("read") {
                        0 => break,
                        count => read.extend(&buffer[..count]),
                    }
                }
                assert_eq!(String::from_utf8(read).expect("text"), expected, "{raw:?} {block}");
            }
        }
    }
}

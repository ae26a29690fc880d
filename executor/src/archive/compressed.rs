//! What a compressed stream holds, told by its first bytes, to its very end: each member of gzip, bzip2 and xz and each frame of
//! zstd is checked as it ends, and what is none behind the last one is an error.
//!
//! Zeros behind gzip are none: tapes and block devices are padded so, and gzip(1) reads over them.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Cursor, Read},
};

use flate2::bufread::GzDecoder;

/// Base-2 logarithm of the largest zstd window: 128 MiB (RELIABILITY R21).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What a stream holds, by its first bytes.
pub(crate) fn decompress<'a, R: Read + 'a>(mut stream: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    stream.by_ref().take(6).read_to_end(&mut magic)?;
    let stream = BufReader::with_capacity(128 << 10, Cursor::new(magic.clone()).chain(stream));
    Ok(match Compression::of(&magic) {
        Some(Compression::Gzip) => Box::new(Gzip { member: Some(GzDecoder::new(stream)) }),
        Some(Compression::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
        Some(Compression::Xz) => Box::new(xz2::bufread::XzDecoder::new_multi_decoder(stream)),
        Some(Compression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        None => Box::new(stream),
    })
}

/// How an archive may be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// RFC 1952.
    Gzip,
    /// That of bzip2(1).
    Bzip2,
    /// That of xz(1).
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// As a stream with these first bytes says.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            // A frame, or one to be skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

/// Members of gzip, one after the other, and zeros behind them.
struct Gzip<R> {
    /// The one that is read; none after the end or a failure.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.member = next_member(self.member.take().map(GzDecoder::into_inner))?;
        }
        Ok(0)
    }
}

/// The member that follows another one, unless all is over.
fn next_member<R: BufRead>(stream: Option<R>) -> io::Result<Option<GzDecoder<R>>> {
    let Some(mut stream) = stream else { return Ok(None) };
    match stream.fill_buf()?.first() {
        None => Ok(None),
        Some(0x1f) => Ok(Some(GzDecoder::new(stream))),
        Some(_) => only_zeros(stream).map(|()| None),
    }
}

fn only_zeros(mut stream: impl BufRead) -> io::Result<()> {
    loop {
        let piece = stream.fill_buf()?;
        if piece.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "something that is no gzip follows its end",
            ));
        }
        match piece.len() {
            0 => return Ok(()),
            length => stream.consume(length),
        }
    }
}

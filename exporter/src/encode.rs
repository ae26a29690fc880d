//! What a chunk of a layer tar becomes: the format of blobs.
//!
//! A chunk is one gzip member without name or time, or one zstd frame with its size and checksum. One that does not
//! compress is stored: [`is_dense`] decides that from a sample of its bytes, so that neither this builder nor a reader
//! spends time on it. Each member is made by one thread and knows nothing of the others, so that no thread count
//! reaches a byte.

mod gzip;
mod zstd;

use std::fmt;

use oci::MediaType;

use crate::chunk::CHUNKER_ID;

/// What a layer tar is made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// One gzip member a chunk.
    Gzip(GzipLevel),
    /// One zstd frame a chunk.
    Zstd(ZstdLevel),
    /// The tar as it is.
    Uncompressed,
}

/// How hard gzip tries: a level of libdeflate from 0, which stores, to 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GzipLevel(u8);

/// How hard zstd tries: a level of libzstd from 1 to 22.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ZstdLevel(u8);

impl Encoder {
    /// Gzip at its default level.
    pub const GZIP: Self = Self::Gzip(GzipLevel::DEFAULT);
    /// Zstd at its default level.
    pub const ZSTD: Self = Self::Zstd(ZstdLevel::DEFAULT);
    /// Zstd at its lowest level: what costs least of all that makes a blob smaller.
    pub const ZSTD_FASTEST: Self = Self::Zstd(ZstdLevel(1));

    /// Names everything that decides the bytes of a blob: format, library and its version, level, chunker.
    pub fn id(self) -> String {
        match self {
            Self::Gzip(level) => format!("gzip-libdeflate{}-l{level}-{CHUNKER_ID}", gzip::LIBDEFLATE),
            Self::Zstd(level) => format!("zstd-libzstd{}-l{level}-{CHUNKER_ID}", zstd::LIBZSTD),
            Self::Uncompressed => "uncompressed".to_owned(),
        }
    }

    /// The media type of the blobs it makes.
    pub fn media_type(self) -> MediaType {
        match self {
            Self::Gzip(_) => MediaType::OciLayerGzip,
            Self::Zstd(_) => MediaType::OciLayerZstd,
            Self::Uncompressed => MediaType::OciLayer,
        }
    }

    /// What becomes of a chunk, by the calling thread alone; `member` is emptied first.
    pub fn compress(self, chunk: &[u8], member: &mut Vec<u8>) {
        match self {
            Self::Gzip(level) => gzip::compress(level, chunk, member),
            Self::Zstd(level) => zstd::compress(level, chunk, member),
            Self::Uncompressed => chunk.clone_into(member),
        }
    }
}

/// Gzip, which everything reads.
impl Default for Encoder {
    fn default() -> Self {
        Self::GZIP
    }
}

impl GzipLevel {
    /// The level with the best ratio of time to size (see BENCHMARKS.md).
    pub const DEFAULT: Self = Self(4);

    /// A level from 0 to 9.
    pub fn new(level: u8) -> Option<Self> {
        (level <= 9).then_some(Self(level))
    }
}

impl ZstdLevel {
    /// The library's own default.
    pub const DEFAULT: Self = Self(3);

    /// A level from 0 to 22. 0 is the fastest, as in BuildKit, so it is 1 here.
    pub fn new(level: u8) -> Option<Self> {
        (level <= 22).then_some(Self(level.max(1)))
    }
}

impl fmt::Display for GzipLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ZstdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Decompresses the member of a chunk that has `length` bytes; `false` if it is none.
pub(crate) fn decompress(media_type: &MediaType, member: &[u8], length: usize, chunk: &mut Vec<u8>) -> bool {
    match media_type {
        MediaType::OciLayerGzip => gzip::decompress(member, length, chunk),
        MediaType::OciLayerZstd => zstd::decompress(member, length, chunk),
        _ => false,
    }
}

/// Whether compression would save less than a thirty-second: judged by four samples of 8 KiB, evenly spread, and what
/// `probe` makes of them. Part of the output format.
fn is_dense(bytes: &[u8], probe: impl FnOnce(&[u8], &mut Vec<u8>)) -> bool {
    const SAMPLES: usize = 4;
    const SAMPLE: usize = 8 * 1024;
    if bytes.len() < SAMPLES * SAMPLE {
        return false;
    }
    let starts = (0..SAMPLES).map(|index| index * (bytes.len() - SAMPLE) / (SAMPLES - 1));
    let sample: Vec<u8> = starts.flat_map(|start| &bytes[start..start + SAMPLE]).copied().collect();
    let mut compressed = Vec::new();
    probe(&sample, &mut compressed);
    compressed.len() > sample.len() - sample.len() / 32
}

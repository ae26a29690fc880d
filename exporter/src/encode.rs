//! What a chunk of a layer tar becomes: the format of blobs.
//!
//! A chunk is one gzip member without name or time. One that does not compress is stored: [`is_dense`] decides that
//! from a sample of its bytes, so that neither this builder nor a reader spends time on it.

use std::cell::RefCell;

use libdeflater::{CompressionLvl, Compressor};
use oci::MediaType;

use crate::chunk::CHUNKER_ID;

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
}

thread_local! {
    static COMPRESSOR: RefCell<Compressor> = RefCell::new(compressor(LEVEL));
    static STORER: RefCell<Compressor> = RefCell::new(compressor(0));
    static PROBE: RefCell<Compressor> = RefCell::new(compressor(1));
}

fn compressor(level: i32) -> Compressor {
    Compressor::new(CompressionLvl::new(level).expect("libdeflate has levels 0 to 12"))
}

/// The gzip member of a chunk; `member` is emptied first.
pub(crate) fn gzip_member(bytes: &[u8], member: &mut Vec<u8>) {
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

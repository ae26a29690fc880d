//! The bytes of a layer's tar, out of its blob.
//!
//! The compression is told by the first bytes, not by the media type, which registries hold wrong ones of; who reads them
//! checks the diff ID in any case. Memory is bounded, and so must be what is taken of them (RELIABILITY R21).

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes of a layer's tar; one that has more is refused.
pub const MAX_LAYER: u64 = 64 << 30;

/// Bytes of a blob that are read at once.
const BLOCK: usize = 256 << 10;
/// A zstd stream may ask for a window of this many bytes, as a power of two: 128 MiB.
const MAX_ZSTD_WINDOW: u32 = 27;

/// The tar of a blob: in gzip, in zstd or as it is. Its end is that of the blob.
///
/// # Errors
/// The blob cannot be read; what cannot be decompressed is an error of the reader.
pub fn unpacked<'a>(mut blob: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::new();
    blob.by_ref().take(4).read_to_end(&mut head)?;
    let again = BufReader::with_capacity(BLOCK, Cursor::new(head.clone()).chain(blob));
    match head[..] {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(again))),
        // A frame, or one to be skipped, which some tools begin with (RFC 8878, section 3.1).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::Decoder::with_buffer(again)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW)?;
            Ok(Box::new(decoder))
        }
        _ => Ok(Box::new(again)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn all(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        unpacked(blob)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn the_first_bytes_tell_the_compression() {
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 1000) as u8).collect();
        let (first, second) = bytes.split_at(1 << 19);
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("in memory");
        let skipped = *b"\x5a\x2a\x4d\x18\x03\0\0\0abc";
        for blob in [
            bytes.clone(),
            gzip(&bytes),
            [gzip(first), gzip(second)].concat(),
            frame(&bytes),
            [&skipped[..], &frame(first), &frame(second), &skipped].concat(),
        ] {
            assert!(all(&blob).expect("readable") == bytes);
        }
        for short in [&b""[..], b"\x28\xb5", b"tar"] {
            assert_eq!(all(short).expect("as it is"), short);
        }
    }

    #[test]
    fn a_window_that_takes_too_much_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("in memory");
        encoder.window_log(28).expect("allowed");
        encoder.write_all(&[0; 1000]).expect("in memory");
        all(&encoder.finish().expect("in memory")).expect_err("refused");
    }
}

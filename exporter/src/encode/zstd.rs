//! Chunks as zstd frames, by libzstd: each says how long its content is and ends in a checksum.

use std::{cell::RefCell, collections::BTreeMap};

use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::compress_bound,
};

use super::{ZstdLevel, is_dense};

/// The version of libzstd that is compiled in; another one may give other bytes.
pub(super) const LIBZSTD: &str = "1.5.7";

/// A level that looks for next to nothing, and so gives raw blocks.
const STORE: i32 = -(1 << 17);
/// The level that is fast enough to find out whether another one is worth while.
const PROBE: i32 = 1;

thread_local! {
    /// By level.
    static COMPRESSORS: RefCell<BTreeMap<i32, Compressor<'static>>> = RefCell::default();
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = RefCell::default();
}

/// The frame of a chunk; `member` is emptied first.
pub(super) fn compress(level: ZstdLevel, chunk: &[u8], member: &mut Vec<u8>) {
    let level = match is_dense(chunk, |sample, member| compress_at(PROBE, sample, member)) {
        true => STORE,
        false => level.0.into(),
    };
    compress_at(level, chunk, member);
}

fn compress_at(level: i32, bytes: &[u8], member: &mut Vec<u8>) {
    COMPRESSORS.with_borrow_mut(|compressors| {
        let compressor = compressors.entry(level).or_insert_with(|| compressor(level));
        member.clear();
        member.reserve_exact(compress_bound(bytes.len()));
        compressor.compress_to_buffer(bytes, member).expect("the bound is large enough");
    });
}

fn compressor(level: i32) -> Compressor<'static> {
    let mut compressor = Compressor::new(level).expect("a level of libzstd");
    compressor.include_checksum(true).expect("libzstd has checksums");
    compressor
}

/// The chunk of a frame, if it is one of `length` bytes.
pub(super) fn decompress(member: &[u8], length: usize, chunk: &mut Vec<u8>) -> bool {
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        if decompressor.is_none() {
            *decompressor = Decompressor::new().ok();
        }
        chunk.clear();
        chunk.reserve_exact(length);
        let found =
            decompressor.as_mut().map(|decompressor| decompressor.decompress_to_buffer(member, chunk));
        matches!(found, Some(Ok(found)) if found == length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_names_the_library_that_is_linked() {
        assert_eq!(zstd::zstd_safe::version_string(), LIBZSTD);
    }
}

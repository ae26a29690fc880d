//! Chunks as gzip members, by libdeflate.

use std::{cell::RefCell, collections::BTreeMap};

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use super::{GzipLevel, is_dense};

/// The version of libdeflate that is compiled in; another one may give other bytes.
pub(super) const LIBDEFLATE: &str = "1.26";

/// The level that stores.
const STORE: u8 = 0;
/// The level that is fast enough to find out whether another one is worth while.
const PROBE: u8 = 1;

thread_local! {
    /// By level.
    static COMPRESSORS: RefCell<BTreeMap<u8, Compressor>> = RefCell::default();
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// The member of a chunk; `member` is emptied first.
pub(super) fn compress(level: GzipLevel, chunk: &[u8], member: &mut Vec<u8>) {
    let level = match is_dense(chunk, |sample, member| compress_at(PROBE, sample, member)) {
        true => STORE,
        false => level.0,
    };
    compress_at(level, chunk, member);
}

fn compress_at(level: u8, bytes: &[u8], member: &mut Vec<u8>) {
    COMPRESSORS.with_borrow_mut(|compressors| {
        let compressor = compressors.entry(level).or_insert_with(|| {
            let level = CompressionLvl::new(level.into());
            Compressor::new(level.expect("libdeflate has levels 0 to 12"))
        });
        member.resize(compressor.gzip_compress_bound(bytes.len()), 0);
        let length = compressor.gzip_compress(bytes, member).expect("the bound is large enough");
        member.truncate(length);
    });
}

/// The chunk of a member, if it is one of `length` bytes.
pub(super) fn decompress(member: &[u8], length: usize, chunk: &mut Vec<u8>) -> bool {
    chunk.resize(length, 0);
    let found = DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.gzip_decompress(member, chunk));
    found == Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library cannot be asked for its version; the crate that compiles it in has the same one.
    #[test]
    fn the_id_names_the_library_that_is_linked() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
        let lock = std::fs::read_to_string(lock).expect("a lock file");
        let (_, package) = lock.split_once("name = \"libdeflate-sys\"\nversion = \"").expect("it is used");
        let (version, _) = package.split_once('"').expect("a version");
        assert_eq!(version.rsplit_once('.').expect("three numbers").0, LIBDEFLATE);
    }
}

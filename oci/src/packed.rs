//! Small documents of a remote cache, packed with zstd, and the media types of those that are blobs of their own.
//!
//! What is unpacked comes from whoever can write the cache. So the caller says how long it may be, memory grows with what
//! really comes, and the window is bounded: a bomb costs its limit and no more.

use std::io::{self, Read};

/// Media type of a blob that holds [`crate::Tree::to_bytes`], packed.
pub const TREE_MEDIA_TYPE: &str = "application/vnd.layerwright.cache.tree.v1+zstd";
/// Media type of a blob that holds the list of files behind a digest of a key, as JSON, packed.
pub const INVENTORY_MEDIA_TYPE: &str = "application/vnd.layerwright.cache.inventory.v1+zstd";
/// How long a packed tree, and what it unpacks to, may be: a layer of some millions of files.
pub const TREE_MAX: u64 = 512 << 20;
/// How long a packed inventory, and what it unpacks to, may be.
pub const INVENTORY_MAX: u64 = 256 << 20;

/// Between a quick one and a small result; what is packed is mostly digests, which no level makes smaller.
const LEVEL: i32 = 6;
/// 8 MiB, which is more than [`LEVEL`] uses.
const WINDOW_LOG_MAX: u32 = 23;

/// Packs bytes. The same bytes give the same result as long as libzstd is the same.
pub fn pack(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, LEVEL).expect("libzstd packs whatever is in memory")
}

/// Unpacks what [`pack`] made, if it has no more than `limit` bytes.
///
/// # Errors
/// It is not zstd, cut, or longer.
pub fn unpack(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    let mut bytes = Vec::new();
    decoder.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it unpacks to more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked_up_to_a_limit() {
        let bytes = b"the same again, ".repeat(1000);
        let packed = pack(&bytes);
        assert!(packed.len() < 200);
        assert_eq!(unpack(&packed, bytes.len() as u64).expect("packed"), bytes);
        let error = unpack(&packed, bytes.len() as u64 - 1).expect_err("too long");
        assert_eq!(error.to_string(), "it unpacks to more than 15999 bytes");
        assert_eq!(unpack(&pack(b""), 0).expect("packed"), b"");
    }

    #[test]
    fn what_is_cut_or_something_else_is_an_error() {
        let packed = pack(&b"bytes".repeat(100));
        for length in 1..packed.len() {
            assert!(unpack(&packed[..length], 1 << 20).is_err(), "{length} bytes");
        }
        assert!(unpack(b"something else", 1 << 20).is_err());
        assert!(unpack(&[&packed[..], b"more"].concat(), 1 << 20).is_err(), "more behind it");
    }

    #[test]
    fn a_bomb_costs_its_limit() {
        let bomb = pack(&vec![0; 64 << 20]);
        assert!(bomb.len() < 8 << 10);
        assert!(unpack(&bomb, 1 << 20).is_err());
    }

    #[test]
    fn a_window_of_gigabytes_is_refused() {
        // A frame header (RFC 8878, 3.1.1.1) without a content size, whose window is 2 GiB, and an empty last block.
        let hostile = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
        assert!(unpack(&hostile, 1 << 20).is_err());
    }
}

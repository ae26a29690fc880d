//! Cuts a byte stream where its content says so, so that an insertion changes one or two chunks and not all after it.
//!
//! The cuts are part of the output format: each chunk becomes one gzip member or zstd frame, so they decide the digests of
//! layers. They are a pure function of the bytes, whatever the sizes of the writes they came in.
//!
//! The rule, in full. A rolling hash over the last 64 bytes is kept: `hash = (hash << 1) + TABLE[byte]` in 64 bits.
//! `TABLE` is the first 256 outputs of SplitMix64 from the seed `0x6c61796572777231` ("layerwr1"). The hash is 0 at 64
//! bytes before the end of a chunk's first 256 KiB. From there on, the chunk ends after the first byte at which the
//! chunk is longer than 256 KiB and the hash's upper 22 bits (18 bits once it is longer than 832 KiB) are all 0, and at
//! 4 MiB at the latest. On random bytes that makes chunks of 1 MiB on average.

use std::ops::Range;

/// Names the rule in encoder ids.
pub const CHUNKER_ID: &str = "cdc1";

/// No chunk but the last is shorter.
pub const MIN_CHUNK: usize = 256 * 1024;
/// No chunk is longer.
pub const MAX_CHUNK: usize = 4 * 1024 * 1024;

/// From here on a cut is 16 times as likely, which keeps most chunks near the mean.
const SWITCH: usize = 832 * 1024;
const EARLY_BITS: u32 = 22;
const LATE_BITS: u32 = 18;
/// How many bytes the hash remembers.
const WINDOW: usize = 64;
const SEED: u64 = 0x6c61_7965_7277_7231;
static TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let (mut state, mut index) = (SEED, 0);
    while index < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[index] = mixed ^ (mixed >> 31);
        index += 1;
    }
    table
}

/// Finds the end of each chunk in turn. The caller holds the bytes.
#[derive(Debug, Default)]
pub struct Chunker {
    scanned: usize,
    hash: u64,
}

impl Chunker {
    /// Appends to the current chunk as many of the bytes as belong to it, and returns how many that were and whether
    /// they end it. `chunk` must be what the calls before have made of it, and empty for a new chunk.
    pub fn fill(&mut self, chunk: &mut Vec<u8>, bytes: &[u8]) -> (usize, bool) {
        let held = chunk.len();
        chunk.extend_from_slice(&bytes[..bytes.len().min(MAX_CHUNK - held)]);
        let end = self.scan(chunk);
        if let Some(end) = end {
            chunk.truncate(end);
            *self = Self::default();
        }
        (chunk.len() - held, end.is_some())
    }

    /// Looks at the bytes that came since the last scan; returns the length of the chunk if they end it.
    fn scan(&mut self, chunk: &[u8]) -> Option<usize> {
        self.roll(chunk, MIN_CHUNK - WINDOW..MIN_CHUNK, |_| false);
        self.roll(chunk, MIN_CHUNK..SWITCH, |hash| hash >> (u64::BITS - EARLY_BITS) == 0)
            .or_else(|| self.roll(chunk, SWITCH..MAX_CHUNK, |hash| hash >> (u64::BITS - LATE_BITS) == 0))
            .or_else(|| (chunk.len() == MAX_CHUNK).then_some(MAX_CHUNK))
    }

    /// Rolls the hash over what is new of a range; returns the length of the chunk at which it ends.
    fn roll(&mut self, chunk: &[u8], range: Range<usize>, ends: impl Fn(u64) -> bool) -> Option<usize> {
        let (from, to) = (range.start.max(self.scanned), range.end.min(chunk.len()));
        let mut hash = self.hash;
        for (offset, byte) in chunk.get(from..to)?.iter().enumerate() {
            hash = (hash << 1).wrapping_add(TABLE[usize::from(*byte)]);
            if ends(hash) {
                return Some(from + offset + 1);
            }
        }
        (self.hash, self.scanned) = (hash, to);
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that look random and are the same everywhere.
    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn chunks(bytes: &[u8], write_sizes: &[usize]) -> Vec<Vec<u8>> {
        let (mut chunker, mut chunks) = (Chunker::default(), vec![Vec::new()]);
        let mut sizes = write_sizes.iter().cycle();
        let mut rest = bytes;
        while !rest.is_empty() {
            let size = *sizes.next().expect("cycles");
            let (mut write, later) = rest.split_at(size.min(rest.len()));
            while !write.is_empty() {
                let (taken, ends) = chunker.fill(chunks.last_mut().expect("one at least"), write);
                write = &write[taken..];
                if ends {
                    chunks.push(Vec::new());
                }
            }
            rest = later;
        }
        chunks.pop_if(|last| last.is_empty());
        chunks
    }

    #[test]
    fn chunks_are_the_stream_and_keep_their_limits() {
        let bytes = noise(48 << 20, 1);
        let chunks = chunks(&bytes, &[1 << 20]);
        assert_eq!(chunks.concat(), bytes);
        let (last, others) = chunks.split_last().expect("some");
        assert!(others.iter().all(|chunk| (MIN_CHUNK..=MAX_CHUNK).contains(&chunk.len())));
        assert!(last.len() <= MAX_CHUNK);
        let mean = bytes.len() / chunks.len();
        assert!((800 << 10..1300 << 10).contains(&mean), "mean chunk has {mean} bytes");
    }

    #[test]
    fn bytes_without_content_are_cut_at_the_limit() {
        let sizes: Vec<_> = chunks(&vec![0; 9 << 20], &[77_777]).iter().map(Vec::len).collect();
        assert_eq!(sizes, [MAX_CHUNK, MAX_CHUNK, 1 << 20]);
        assert!(chunks(b"", &[1]).is_empty());
    }

    #[test]
    fn the_cuts_are_part_of_the_format() {
        let sizes: Vec<_> = chunks(&noise(6 << 20, 7), &[1 << 16]).iter().map(Vec::len).collect();
        assert_eq!(sizes, FORMAT_1_CUTS, "changing the rule needs a new CHUNKER_ID");
    }

    const FORMAT_1_CUTS: [usize; 5] = [1_209_751, 1_461_680, 917_140, 1_425_253, 1_277_632];

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let bytes = noise(24 << 20, 3);
        let mut edited = bytes.clone();
        edited.splice(5 << 20..5 << 20, *b"inserted");
        let (old, new) = (chunks(&bytes, &[1 << 20]), chunks(&edited, &[1 << 20]));
        let changed = new.iter().filter(|chunk| !old.contains(chunk)).count();
        assert!(changed <= 3, "{changed} of {} chunks changed", new.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn cuts_do_not_depend_on_the_sizes_of_writes(
            seed in any::<u64>(),
            length in 0usize..5 << 20,
            sizes in prop::collection::vec(1usize..600_000, 1..20),
        ) {
            let bytes = noise(length, seed);
            prop_assert_eq!(chunks(&bytes, &sizes), chunks(&bytes, &[usize::MAX]));
        }
    }
}

//! `testdata/encoders/golden` has a line for every encoder: its id, and size and digest of what becomes of a corpus. A
//! library that is updated, and gives other bytes then, changes them. UPDATE_EXPECT=1 rewrites the file; an id whose
//! digest has changed must become another one, or one name would be that of two blobs.

use std::{collections::BTreeSet, fmt::Write as _, thread};

use exporter::{Encoder, GzipLevel, ZstdLevel};
use oci::Sha256Digest;
use proptest::prelude::*;

use crate::support::{expect, unpacked, workspace};

const KIB: usize = 1024;

/// Every level that can be asked for.
fn encoders() -> Vec<Encoder> {
    let gzip = (0..=9).filter_map(GzipLevel::new).map(Encoder::Gzip);
    let zstd = (1..=22).filter_map(ZstdLevel::new).map(Encoder::Zstd);
    gzip.chain(zstd).collect()
}

/// Numbers that look random and are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    /// Words, the first of them the most frequent.
    fn prose(&mut self, length: usize) -> Vec<u8> {
        let words: Vec<Vec<u8>> = (0..2000)
            .map(|_| (0..2 + self.below(9)).map(|_| b'a' + self.below(20) as u8).collect())
            .collect();
        let mut text = Vec::with_capacity(length + 16);
        while text.len() < length {
            let limit = 1 + self.below(words.len());
            text.extend_from_slice(&words[self.below(limit)]);
            text.push(if self.below(11) == 0 { b'\n' } else { b' ' });
        }
        text.truncate(length);
        text
    }

    /// Records of sixteen bytes, each much like the one before.
    fn records(&mut self, length: usize) -> Vec<u8> {
        let mut record = [0; 16];
        (0..length / 16)
            .flat_map(|_| {
                record[self.below(6)] = self.below(256) as u8;
                record
            })
            .collect()
    }
}

/// Chunks of all kinds: what compresses and what does not, both in one, long and short ones, and none of a byte.
fn corpus() -> Vec<Vec<u8>> {
    let mut numbers = Numbers(7);
    let half = [numbers.prose(130 * KIB), numbers.noise(90 * KIB)].concat();
    vec![
        numbers.prose(330 * KIB),
        numbers.noise(270 * KIB),
        numbers.records(160 * KIB),
        half,
        vec![0; 4096 * KIB],
        numbers.prose(20 * KIB),
        numbers.noise(KIB),
        b"x".to_vec(),
    ]
}

fn members(encoder: Encoder, corpus: &[Vec<u8>]) -> Vec<u8> {
    let (mut member, mut blob) = (b"what was here before".to_vec(), Vec::new());
    for chunk in corpus {
        encoder.compress(chunk, &mut member);
        blob.extend_from_slice(&member);
    }
    blob
}

#[test]
fn the_output_of_every_encoder_is_pinned() {
    let (corpus, mut golden, mut ids) = (corpus(), String::new(), BTreeSet::new());
    for encoder in encoders() {
        let blob = members(encoder, &corpus);
        assert!(unpacked(&encoder.media_type(), &blob) == corpus.concat(), "{encoder:?}");
        // What a thread has compressed before leaves no trace.
        let fresh =
            thread::scope(|scope| scope.spawn(|| members(encoder, &corpus)).join().expect("no panic"));
        assert!(fresh == blob, "{encoder:?}");
        assert!(ids.insert(encoder.id()), "one name for two encoders");
        let line = format!("{} {} {}", encoder.id(), blob.len(), Sha256Digest::of(&blob).hex());
        writeln!(golden, "{line}").expect("in memory");
    }
    expect(&workspace().join("testdata/encoders/golden"), &golden);
}

#[test]
fn the_defaults_are_in_every_digest() {
    assert_eq!(Encoder::default(), Encoder::GZIP);
    assert_eq!(Encoder::GZIP.id(), "gzip-libdeflate1.26-l4-cdc1");
    assert_eq!(Encoder::ZSTD.id(), "zstd-libzstd1.5.7-l3-cdc1");
    assert_eq!(Encoder::Uncompressed.id(), "uncompressed");
    assert_eq!(
        [10, 23]
            .map(|level| (GzipLevel::new(level), ZstdLevel::new(level)))
            .map(|pair| (pair.0.is_some(), pair.1.is_some())),
        [(false, true), (false, false)]
    );
    assert_eq!(ZstdLevel::new(0), ZstdLevel::new(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    /// In any order, after anything else, a chunk becomes the same bytes.
    #[test]
    fn what_came_before_does_not_reach_a_byte(
        seed in any::<u64>(),
        lengths in prop::collection::vec((0usize..3, 0usize..300_000), 1..6),
        level in 1u8..=9,
    ) {
        let mut numbers = Numbers(seed);
        let chunk = |(kind, length): &(usize, usize)| match kind {
            0 => numbers.noise(*length),
            1 => numbers.prose(*length),
            _ => numbers.records(*length),
        };
        let chunks: Vec<_> = lengths.iter().map(chunk).collect();
        let encoders = [GzipLevel::new(level).map(Encoder::Gzip), ZstdLevel::new(level).map(Encoder::Zstd)];
        for encoder in encoders.into_iter().flatten() {
            let compress = |chunk: &Vec<u8>| members(encoder, std::slice::from_ref(chunk));
            let forth: Vec<_> = chunks.iter().map(compress).collect();
            let mut back: Vec<_> = chunks.iter().rev().map(compress).collect();
            back.reverse();
            prop_assert!(forth == back);
            prop_assert!(unpacked(&encoder.media_type(), &forth.concat()) == chunks.concat());
        }
    }
}

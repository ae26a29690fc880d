//! A SHA-256 that can be kept, so that bytes which begin as others did are hashed from where they differ.
//!
//! What is kept is the hash function's whole state: eight words, the number of blocks, and the bytes of a block that is
//! not full. Chunk tables hold it ([`crate::old`]): another form of it is another version of theirs.

use base64::{Engine, prelude::BASE64_STANDARD};
use oci::Sha256Digest;
use serde::{Deserialize, Serialize};
use sha2::digest::{
    Digest,
    common::hazmat::{SerializableState, SerializedState},
};

/// Bytes of the eight words.
const WORDS: usize = 32;
/// Bytes of a block.
const BLOCK: u64 = 64;

/// SHA-256 of bytes that come one after the other; a clone goes on from where it was made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// How many bytes it has taken: full blocks are counted behind the eight words, and then the bytes of the last one.
    pub(crate) fn taken(&self) -> u64 {
        let state = self.0.serialize();
        let (blocks, rest) = state[WORDS..].split_at(size_of::<u64>());
        let blocks = u64::from_le_bytes(blocks.try_into().expect("as long as was split off"));
        // A state that was read may tell of any number.
        blocks.saturating_mul(BLOCK).saturating_add(rest[0].into())
    }

    /// The digest of all of them.
    pub(crate) fn finish(self) -> Sha256Digest {
        Sha256Digest::new(self.0.finalize().into())
    }
}

impl From<Sha256> for String {
    fn from(Sha256(hasher): Sha256) -> Self {
        BASE64_STANDARD.encode(hasher.serialize())
    }
}

impl TryFrom<String> for Sha256 {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let none = "no state of a SHA-256";
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| none)?;
        let state = SerializedState::<sha2::Sha256>::try_from(&*bytes).map_err(|_| none)?;
        sha2::Sha256::deserialize(&state).map(Self).map_err(|_| none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_wherever_it_was_kept() {
        let bytes: Vec<u8> = (0..300u32).map(|index| (index * 7) as u8).collect();
        for at in 0..=bytes.len() {
            let mut first = Sha256::default();
            first.update(&bytes[..at]);
            assert_eq!(first.taken(), at as u64);
            let kept = serde_json::to_string(&first).expect("text");
            let mut then: Sha256 = serde_json::from_str(&kept).expect("a state");
            then.update(&bytes[at..]);
            assert_eq!(then.finish(), Sha256Digest::of(&bytes), "kept after {at} bytes");
        }
    }

    #[test]
    fn the_form_is_part_of_chunk_tables() {
        let mut hasher = Sha256::default();
        hasher.update(&[b'a'; 66]);
        assert_eq!(String::from(hasher), FORM, "another form needs another version of chunk tables");
        let many = BASE64_STANDARD.encode([[0xff; WORDS + size_of::<u64>()].as_slice(), &[0; 64]].concat());
        assert_eq!(Sha256::try_from(many).map(|hasher| hasher.taken()), Ok(u64::MAX));
        for none in ["", "AAAA", "no base64", &FORM[4..]] {
            Sha256::try_from(none.to_owned()).expect_err(none);
        }
    }

    const FORM: &str = "HLhb3yYGHuiUqEX7MQ/UTxZoXrLBmdTWKUmQq2ZeYwABAAAAAAAAAAJhYQAAAAAAAAAAAA\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
}

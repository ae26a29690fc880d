//! The one canonical encoding: what is hashed into tree digests and cache keys, and what tree files hold.
//!
//! A value has exactly one encoding and no two values share one: every field is preceded by its number, every
//! string and list by its length, a map is written in key order, an enum starts with its variant's number. The
//! stream opens with a domain name and a format version, so that a change of either changes every digest.
//!
//! Implement [`Canonical`] by destructuring `self` without `..`: a field that is added to a type but not to its
//! encoding then does not compile.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::{ContentDigest, DiffId, Sha256Digest, TreeDigest};

/// Version of the encodings of trees and keys. Raising it makes every cache entry a miss.
pub const FORMAT_VERSION: u32 = 1;

/// A value with one canonical encoding.
pub trait Canonical {
    /// Appends the encoding of `self`.
    fn encode(&self, out: &mut Encoder);
}

/// Collects an encoding.
#[derive(Debug, Clone)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Starts an encoding in a domain, for example `"layer"` or `"exec"`: equal values of different domains have
    /// different encodings.
    pub fn new(domain: &str) -> Self {
        let mut encoder = Self { bytes: Vec::with_capacity(256) };
        encoder.bytes.extend_from_slice(b"layerwright\0");
        FORMAT_VERSION.encode(&mut encoder);
        domain.encode(&mut encoder);
        encoder
    }

    /// Appends field `number` of a struct (or the variant number of an enum followed by its first field).
    pub fn field(&mut self, number: u8, value: &(impl Canonical + ?Sized)) -> &mut Self {
        self.bytes.push(number);
        value.encode(self);
        self
    }

    /// Appends the number of an enum's variant.
    pub fn variant(&mut self, number: u8) -> &mut Self {
        self.bytes.push(number);
        self
    }

    /// Appends a byte string: its length as eight little-endian bytes, then its bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        (bytes.len() as u64).encode(self);
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The encoding so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives up the encoding.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// BLAKE3 of the encoding.
    pub fn digest(&self) -> TreeDigest {
        blake3::hash(&self.bytes).into()
    }
}

/// A byte string, to be encoded with its length.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Canonical for Bytes<'_> {
    fn encode(&self, out: &mut Encoder) {
        out.bytes(self.0);
    }
}

impl Canonical for str {
    fn encode(&self, out: &mut Encoder) {
        out.bytes(self.as_bytes());
    }
}

impl Canonical for String {
    fn encode(&self, out: &mut Encoder) {
        self.as_str().encode(out);
    }
}

macro_rules! canonical_integers {
    ($($integer:ty),*) => {$(
        impl Canonical for $integer {
            fn encode(&self, out: &mut Encoder) {
                out.bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
canonical_integers!(u16, u32, u64, i64);

impl Canonical for bool {
    fn encode(&self, out: &mut Encoder) {
        out.bytes.push(u8::from(*self));
    }
}

macro_rules! canonical_digests {
    ($($digest:ty),*) => {$(
        impl Canonical for $digest {
            fn encode(&self, out: &mut Encoder) {
                out.bytes.extend_from_slice(self.as_bytes());
            }
        }
    )*};
}
canonical_digests!(Sha256Digest, DiffId, TreeDigest, ContentDigest);

impl<T: Canonical> Canonical for Option<T> {
    fn encode(&self, out: &mut Encoder) {
        match self {
            None => out.bytes.push(0),
            Some(value) => {
                out.bytes.push(1);
                value.encode(out);
            }
        }
    }
}

impl<T: Canonical> Canonical for [T] {
    fn encode(&self, out: &mut Encoder) {
        (self.len() as u64).encode(out);
        self.iter().for_each(|item| item.encode(out));
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn encode(&self, out: &mut Encoder) {
        self.as_slice().encode(out);
    }
}

impl<T: Canonical> Canonical for BTreeSet<T> {
    fn encode(&self, out: &mut Encoder) {
        (self.len() as u64).encode(out);
        self.iter().for_each(|item| item.encode(out));
    }
}

impl<K: Canonical, V: Canonical> Canonical for BTreeMap<K, V> {
    fn encode(&self, out: &mut Encoder) {
        (self.len() as u64).encode(out);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
}

impl<A: Canonical, B: Canonical> Canonical for (A, B) {
    fn encode(&self, out: &mut Encoder) {
        self.0.encode(out);
        self.1.encode(out);
    }
}

impl<T: Canonical + ?Sized> Canonical for &T {
    fn encode(&self, out: &mut Encoder) {
        (**self).encode(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(value: impl Canonical) -> TreeDigest {
        let mut encoder = Encoder::new("test");
        encoder.field(1, &value);
        encoder.digest()
    }

    #[test]
    fn boundaries_between_values_are_part_of_the_encoding() {
        assert_ne!(
            digest(vec!["ab".to_owned(), "c".to_owned()]),
            digest(vec!["a".to_owned(), "bc".to_owned()])
        );
        assert_ne!(digest(None::<String>), digest(Some(String::new())));
        assert_ne!(Encoder::new("a").digest(), Encoder::new("b").digest());
    }
}

//! Digests, one type for each thing that is hashed, so that they cannot be mixed up.
//!
//! [`Sha256Digest`] names OCI objects and nothing else; [`DiffId`] is the SHA-256 of an uncompressed layer tar.
//! [`TreeDigest`] and [`ContentDigest`] are BLAKE3 and never leave this builder's own formats: the first names
//! layers and snapshots and goes into keys, the second names the bytes of one file.
//!
//! A digest is 32 bytes before it is ever part of a path (RELIABILITY R24): parsing is strict, lower-case hex only.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What is wrong with the text of a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The part before the colon names another algorithm, or is missing.
    #[error("unsupported digest algorithm in {0:?}: expected \"{1}:\" and 64 hex digits")]
    Algorithm(String, &'static str),
    /// The part after the colon is not 64 lower-case hex digits.
    #[error("malformed digest {0:?}: expected 64 lower-case hex digits")]
    Hex(String),
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes that a hash function has produced.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 lower-case hex digits, without the algorithm: safe as a file name.
            pub fn hex(&self) -> String {
                to_hex(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{}"), self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                let hex = text
                    .strip_prefix(concat!($prefix, ":"))
                    .ok_or_else(|| DigestError::Algorithm(text.to_owned(), $prefix))?;
                from_hex(hex).map(Self).ok_or_else(|| DigestError::Hex(text.to_owned()))
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> String {
                digest.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = DigestError;

            fn try_from(text: String) -> Result<Self, DigestError> {
                text.parse()
            }
        }
    };
}

digest_type!(
    /// SHA-256 of an OCI object's bytes (image-spec, descriptor.md, "Digests").
    Sha256Digest, "sha256"
);
digest_type!(
    /// SHA-256 of a layer's uncompressed tar (image-spec, config.md, "rootfs.diff_ids").
    DiffId, "sha256"
);
digest_type!(
    /// BLAKE3 identity of a layer's tree, or of a chain of layers; see [`crate::tree`] and [`crate::layer`].
    TreeDigest, "blake3"
);
digest_type!(
    /// BLAKE3 of one regular file's bytes.
    ContentDigest, "blake3"
);

impl Sha256Digest {
    /// Hashes bytes that are already in memory. Use a streaming hasher for anything large.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        Self::from_ring(&digest)
    }

    /// Takes over the result of a `ring` SHA-256 context.
    pub fn from_ring(digest: &ring::digest::Digest) -> Self {
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// SHA-256 of bytes that come one after the other.
#[derive(Clone)]
pub struct Sha256Hasher(ring::digest::Context);

impl Default for Sha256Hasher {
    fn default() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl Sha256Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all of them.
    pub fn finish(self) -> Sha256Digest {
        Sha256Digest::from_ring(&self.0.finish())
    }
}

impl fmt::Debug for Sha256Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Hasher")
    }
}

impl From<Sha256Digest> for DiffId {
    fn from(digest: Sha256Digest) -> Self {
        Self(digest.0)
    }
}

impl From<blake3::Hash> for ContentDigest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl From<blake3::Hash> for TreeDigest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl ContentDigest {
    /// Hashes bytes that are already in memory.
    pub fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }
}

fn to_hex(bytes: &[u8; 32]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Sha256Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
    }

    #[test]
    fn anything_but_lower_case_hex_is_refused() {
        let upper = "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
        for text in ["", "sha256:", "sha512:00", "sha256:../../etc/passwd", "sha256:ab", upper] {
            assert!(text.parse::<Sha256Digest>().is_err(), "{text}");
        }
        assert!(ContentDigest::of(b"x").to_string().parse::<Sha256Digest>().is_err());
    }
}

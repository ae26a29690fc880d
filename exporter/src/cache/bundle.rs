//! All records that a build has used, in one document.
//!
//! ```text
//! 8 bytes    "lwbundle"
//! 4 bytes    version
//! 32 bytes   BLAKE3 of the content
//! the rest   the content, packed (oci::packed)
//!
//! content: entries, one after the other
//!   1 byte     1: a record                   2: a document
//!   4 bytes    length of its bytes           the same
//!   1 byte     length of its signature,      SHA-256 of its bytes: 32 bytes
//!   0 or 64    and the signature
//!              its bytes                     its bytes
//! ```
//!
//! Numbers have their lowest byte first. Records are in the order of their bytes, each once, and documents in that of their
//! digests, behind them; so the same records give the same bundle. Records are here as they were written, so that their
//! signatures stay good; a bundle has none of its own, and who trusts only some keys opens each record with them
//! ([`SignedRecord::open`]). Documents are manifests and configs of base images, which are named by their digests.

use std::collections::{BTreeMap, BTreeSet};

use oci::{BlobOrigin, ContentDigest, Sha256Digest, packed};
use solver::Key;

use super::{
    ArtifactKind,
    artifact::SIGNATURE_SIZE,
    record::{DOCUMENT_MAX, FormatError, RemoteRecord},
    sign::TrustKeys,
};

/// Version of the document. Another one is a miss.
pub const VERSION: u32 = 1;
/// How long a bundle may be, packed.
pub const PACKED_MAX: u64 = 32 << 20;
/// How long it may be, unpacked.
pub const UNPACKED_MAX: u64 = 64 << 20;
/// How many records and documents it may have.
pub const ENTRIES_MAX: usize = 16_384;

const MAGIC: &[u8; 8] = b"lwbundle";
const CALLED: &str = "a bundle of the cache";
/// The first bytes of entries.
const RECORD: u8 = 1;
const DOCUMENT: u8 = 2;

/// A record as somebody wrote it. Nothing in it is believed before it is opened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignedRecord {
    /// See [`RemoteRecord::to_document`].
    pub document: Vec<u8>,
    /// Of the document, where whoever wrote it has a key.
    pub signature: Option<Vec<u8>>,
}

/// What a bundle holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Records, each once.
    pub records: BTreeSet<SignedRecord>,
    /// Small documents of registries by their digests: manifests and configs of base images.
    pub documents: BTreeMap<Sha256Digest, Vec<u8>>,
}

impl SignedRecord {
    /// The record, if it is one that may be believed; see [`RemoteRecord::from_document`].
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn open(
        &self,
        asked: Option<&Key>,
        trusted: &TrustKeys,
        origin: &BlobOrigin,
    ) -> Result<RemoteRecord, FormatError> {
        if !trusted.verify(ArtifactKind::Record, &self.document, self.signature.as_deref()) {
            return Err(FormatError::Untrusted);
        }
        RemoteRecord::from_document(&self.document, asked, origin)
    }
}

impl Bundle {
    /// The bytes that a cache keeps. What there is no room for is left out, documents first: it costs whoever reads it a look
    /// by its own name.
    pub fn encode(&self) -> Vec<u8> {
        let content = self.content();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(ContentDigest::of(&content).as_bytes());
        bytes.extend_from_slice(&packed::pack(&content));
        bytes
    }

    fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        let records = self.records.iter().map(|SignedRecord { document, signature }| {
            let signature = signature.as_deref().unwrap_or_default();
            let head = [&[RECORD], &length(document)[..], &[signature.len() as u8], signature].concat();
            (head, document)
        });
        let documents = self.documents.iter().map(|(digest, document)| {
            ([&[DOCUMENT], &length(document)[..], digest.as_bytes()].concat(), document)
        });
        for (head, document) in records.chain(documents).take(ENTRIES_MAX) {
            let fits = document.len() as u64 <= DOCUMENT_MAX
                && (content.len() + head.len() + document.len()) as u64 <= UNPACKED_MAX;
            if fits {
                content.extend_from_slice(&head);
                content.extend_from_slice(document);
            }
        }
        content
    }

    /// Reads what somebody says to be a bundle. Its records are as they are, its documents have the digests that they
    /// are under.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() as u64 > PACKED_MAX {
            let bytes = bytes.len() as u64;
            return Err(FormatError::TooLong { what: CALLED, bytes, limit: PACKED_MAX });
        }
        let mut rest = Rest(bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it is no bundle"))?);
        let found = u32::from_le_bytes(rest.array()?);
        if found != VERSION {
            return Err(FormatError::Version { what: CALLED, found, wanted: VERSION });
        }
        let digest: [u8; 32] = rest.array()?;
        let content = packed::unpack(rest.0, UNPACKED_MAX).map_err(|error| damaged(error.to_string()))?;
        match ContentDigest::of(&content).as_bytes() == &digest {
            true => Self::parse(&content),
            false => Err(damaged("its digest is wrong")),
        }
    }

    fn parse(content: &[u8]) -> Result<Self, FormatError> {
        let mut bundle = Self::default();
        let mut rest = Rest(content);
        for _ in 0..ENTRIES_MAX {
            if rest.0.is_empty() {
                break;
            }
            bundle.take(&mut rest)?;
        }
        // Also what is out of order, or there twice, has another form.
        match rest.0.is_empty() && bundle.content() == content {
            true => Ok(bundle),
            false => Err(damaged("it is not written as bundles are")),
        }
    }

    fn take(&mut self, rest: &mut Rest<'_>) -> Result<(), FormatError> {
        let [kind] = rest.array()?;
        let length = u32::from_le_bytes(rest.array()?) as usize;
        match kind {
            RECORD => {
                let [signed] = rest.array()?;
                let signature = match usize::from(signed) {
                    0 => None,
                    SIGNATURE_SIZE => Some(rest.slice(SIGNATURE_SIZE)?.to_vec()),
                    _ => return Err(damaged("a signature has another length")),
                };
                let document = rest.slice(length)?.to_vec();
                self.records.insert(SignedRecord { document, signature });
            }
            DOCUMENT => {
                let digest = Sha256Digest::new(rest.array()?);
                let document = rest.slice(length)?;
                if Sha256Digest::of(document) != digest {
                    return Err(damaged("a document has another digest"));
                }
                self.documents.insert(digest, document.to_vec());
            }
            _ => return Err(damaged("it has an entry of no known kind")),
        }
        Ok(())
    }
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8], FormatError> {
        let (slice, rest) = self.0.split_at_checked(length).ok_or_else(|| damaged("it is cut"))?;
        self.0 = rest;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let slice = self.slice(N)?;
        Ok(slice.try_into().expect("as long as was asked for"))
    }
}

/// A length that stands before bytes; none that is longer than [`DOCUMENT_MAX`] is written.
fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn damaged(why: impl Into<String>) -> FormatError {
    FormatError::Inconsistent { what: CALLED, why: why.into() }
}

#[cfg(test)]
mod tests;

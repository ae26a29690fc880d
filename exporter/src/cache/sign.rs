//! Who wrote a record: Ed25519 signatures (RFC 8032), with keys as `openssl` makes them.
//!
//! What is signed is a document as it stands, behind the name and the version of the format, so that no signature counts for
//! anything else. With a trust key, what is unsigned or signed by somebody else does not exist; without one a cache is
//! believed as far as its documents are consistent. Key files are read strictly: one PEM block of the right kind.

mod pem;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::{ArtifactKind, announcement, bundle, record};

/// Nobody's Ed25519 key is longer.
const FILE_MAX: u64 = 16 << 10;
/// What stands before the 32 bytes of a public key: SubjectPublicKeyInfo of id-Ed25519 (RFC 8410, section 4).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A private key that records are signed with.
pub struct SignKey {
    pair: Ed25519KeyPair,
    warning: Option<String>,
}

/// Public keys of those who are believed. Without one (the default) everybody is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustKeys {
    keys: Vec<[u8; 32]>,
}

/// What a signature is for, besides the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The document of an artifact.
    Artifact(ArtifactKind),
    /// What is announced of a step.
    Announcement,
}

impl From<ArtifactKind> for Subject {
    fn from(kind: ArtifactKind) -> Self {
        Self::Artifact(kind)
    }
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Its file cannot be read.
    #[error("cannot read the key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its file holds something else.
    #[error("{} is no Ed25519 {kind} in PEM: {why}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wanted.
        kind: KeyKind,
        /// What is there.
        why: String,
    },
}

/// Which half of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Signs.
    Private,
    /// Verifies.
    Public,
}

impl KeyError {
    /// The command that makes a file as it is wanted.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } => None,
            Self::Form { kind: KeyKind::Private, .. } => {
                Some("openssl genpkey -algorithm ed25519 -out KEY.pem makes one")
            }
            Self::Form { kind: KeyKind::Public, .. } => {
                Some("openssl pkey -in KEY.pem -pubout -out PUBLIC.pem writes that of a private one")
            }
        }
    }
}

impl SignKey {
    /// Reads a key from a file as `openssl genpkey -algorithm ed25519` writes it (PKCS#8).
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let (text, warning) = read_private(path)?;
        let form = |why: String| KeyError::Form { path: path.to_owned(), kind: KeyKind::Private, why };
        Ok(Self { pair: private(&text).map_err(form)?, warning })
    }

    /// That others can read the file, if they can.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The signature of a document: 64 bytes.
    pub fn sign(&self, subject: impl Into<Subject>, document: &[u8]) -> Vec<u8> {
        self.pair.sign(&message(subject.into(), document)).as_ref().to_vec()
    }

    /// Whoever trusts this key and no other.
    pub fn trusted(&self) -> TrustKeys {
        let key = self.pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes");
        TrustKeys { keys: vec![key] }
    }
}

impl std::fmt::Debug for SignKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignKey")
    }
}

impl TrustKeys {
    /// Reads keys from files as `openssl pkey -pubout` writes them (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// A file cannot be read, or holds something else.
    pub fn read(paths: &[PathBuf]) -> Result<Self, KeyError> {
        let keys = paths.iter().map(|path| read_public(path)).collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }

    /// Whether everybody is believed.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What the keys are called: the names of those whose word counts.
    pub fn names(&self) -> BTreeSet<String> {
        let hex = |key: &[u8; 32]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.keys.iter().map(|key| format!("ed25519:{}", hex(key))).collect()
    }

    /// Whether a document may be believed: one of the keys has signed it, or there is none.
    pub fn verify(&self, subject: impl Into<Subject>, document: &[u8], signature: Option<&[u8]>) -> bool {
        if self.keys.is_empty() {
            return true;
        }
        let Some(signature) = signature else { return false };
        let message = message(subject.into(), document);
        let signed = |key| UnparsedPublicKey::new(&ED25519, key).verify(&message, signature).is_ok();
        self.keys.iter().any(signed)
    }
}

/// What is signed: the name of the format, a zero byte, its version in four bytes, the lowest first, and the document.
fn message(subject: Subject, document: &[u8]) -> Vec<u8> {
    let (domain, version) = match subject {
        Subject::Artifact(ArtifactKind::Record) => ("layerwright cache record\0", record::VERSION),
        Subject::Artifact(ArtifactKind::Bundle) => ("layerwright cache bundle\0", bundle::VERSION),
        Subject::Announcement => ("layerwright cache announcement\0", announcement::VERSION),
    };
    [domain.as_bytes(), &version.to_le_bytes(), document].concat()
}

fn read_public(path: &Path) -> Result<[u8; 32], KeyError> {
    let (text, _) = read_file(path)?;
    public(&text).map_err(|why| KeyError::Form { path: path.to_owned(), kind: KeyKind::Public, why })
}

/// The key in a text, or what is wrong with it.
pub(super) fn public(text: &str) -> Result<[u8; 32], String> {
    let der = pem::decode(text, KeyKind::Public)?;
    let key = der.strip_prefix(&SPKI).and_then(|key| key.try_into().ok());
    key.ok_or_else(|| "its key is not an Ed25519 key".to_owned())
}

/// The pair in a text, or what is wrong with it.
pub(super) fn private(text: &str) -> Result<Ed25519KeyPair, String> {
    let der = pem::decode(text, KeyKind::Private)?;
    // What openssl writes has no public key to compare with.
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
        .map_err(|error| format!("its key is not an Ed25519 key ({error})"))
}

/// The text of a private key, and a warning where it is not private.
fn read_private(path: &Path) -> Result<(String, Option<String>), KeyError> {
    let (text, mode) = read_file(path)?;
    let exposed = mode & 0o077 != 0;
    let warning = || {
        let shown = path.display();
        format!("others can read the private key {shown} (mode {:04o}): chmod 600 {shown}", mode & 0o7777)
    };
    Ok((text, exposed.then(warning)))
}

/// A key's text and the mode of its file.
fn read_file(path: &Path) -> Result<(String, u32), KeyError> {
    let failed = |source| KeyError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok((text, mode))
}

#[cfg(test)]
pub(crate) mod tests;

//! Git LFS: a blob that is only a pointer to its file, which lies beside the objects where `git lfs` has fetched it.
//!
//! A checkout has the file and not the pointer, so a build of the commit takes the file as well; nothing is fetched. What looks
//! like a pointer counts as one only where the commit's [attributes](super::attributes) put it through the filter; what does not
//! is a file like any other, as for `git lfs` itself.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use gix::ObjectId;
use oci::{ContentDigest, Sha256Digest, digest::Sha256Hasher};

use super::{GitError, plain, tree::Directory};

/// What the filter is called.
pub(super) const FILTER: &[u8] = b"lfs";
const VERSION: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";
/// Pointers are shorter.
const POINTER_MAX: usize = 1024;
/// Read at a time.
const BLOCK: usize = 256 << 10;

/// What a pointer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// SHA-256 of the file.
    pub file: ObjectId,
    /// Its length.
    pub size: u64,
}

/// Whether a blob of this length may be one.
pub(super) fn may_be_pointer(size: u64) -> bool {
    size < POINTER_MAX as u64 && size > VERSION.len() as u64
}

impl Pointer {
    /// Takes a blob for a pointer, if it has the form of one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() >= POINTER_MAX || !bytes.starts_with(VERSION) {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
        let file = ObjectId::from_hex(field("oid sha256:")?.as_bytes()).ok()?;
        let size = field("size ")?.parse().ok()?;
        (file.kind() == gix::hash::Kind::Sha256).then_some(Self { file, size })
    }

    /// Opens the file, if it has been fetched.
    pub fn open(&self, directory: &Directory) -> Option<File> {
        let file = plain::open(&self.place(directory)).ok()?;
        (file.metadata().ok()?.len() == self.size).then_some(file)
    }

    /// Whether a file is the one it leads to.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn leads_to(&self, file: &mut File) -> io::Result<bool> {
        Ok(file.metadata()?.len() == self.size && self.is(&hash(file)?.0))
    }

    fn is(&self, digest: &Sha256Digest) -> bool {
        digest.as_bytes() == self.file.as_slice()
    }

    /// What the file holds. It is verified.
    ///
    /// # Errors
    /// It cannot be read, or is another one.
    pub fn content(&self, directory: &Directory, mut file: File) -> Result<ContentDigest, GitError> {
        let place = || self.place(directory);
        let hashed = hash(&mut file).map_err(|source| GitError::LargeFile { file: place(), source });
        match hashed? {
            (digest, content) if self.is(&digest) => Ok(content),
            _ => {
                let source = io::Error::other("it does not have the digest that it is named after");
                Err(GitError::LargeFile { file: place(), source })
            }
        }
    }

    fn place(&self, directory: &Directory) -> PathBuf {
        let name = self.file.to_string();
        let objects = directory.repository.common_directory().join("lfs/objects");
        objects.join(&name[..2]).join(&name[2..4]).join(name)
    }
}

/// What the rest of a file hashes to.
fn hash(file: &mut File) -> io::Result<(Sha256Digest, ContentDigest)> {
    let (mut sha256, mut blake3) = (Sha256Hasher::default(), blake3::Hasher::new());
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block)? {
            0 => return Ok((sha256.finish(), blake3.finalize().into())),
            count => {
                sha256.update(&block[..count]);
                blake3.update(&block[..count]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_told_from_text() {
        let hex = "ab".repeat(32);
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{hex}\nsize 12345\n");
        let file = ObjectId::from_hex(hex.as_bytes()).expect("an id");
        assert_eq!(Pointer::parse(pointer.as_bytes()), Some(Pointer { file, size: 12345 }));
        for text in [
            "",
            "version https://git-lfs.github.com/spec/v1\n",
            &pointer.replace("sha256:ab", "sha256:"),
            &pointer.replace("spec/v1", "spec/v2"),
            &pointer.replace("12345", "many"),
            &format!("{pointer}{}", "x".repeat(1024)),
        ] {
            assert_eq!(Pointer::parse(text.as_bytes()), None, "{text}");
        }
    }
}

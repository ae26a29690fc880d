//! A file of a commit: its bytes, and what is remembered of them.

use std::{fs::File, sync::Arc};

use gix::ObjectId;
use oci::ContentDigest;

use super::{GitError, known::Known, lfs::Pointer, tree::Directory};
use crate::rootfs::shown;

/// A file of a commit, open.
#[derive(Debug)]
pub struct CommitFile {
    /// The id of its blob, if that says what it holds.
    pub(super) id: Option<ObjectId>,
    /// What it holds.
    pub bytes: FileBytes,
    /// What its blob is, where that is not what it holds.
    pub(super) pointer: Option<(Pointer, Arc<Directory>)>,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum FileBytes {
    /// Those of its blob.
    Blob(Vec<u8>),
    /// In a file: of Git LFS, of the work tree, or a blob that is too large for memory.
    Large(File),
}

impl CommitFile {
    /// What it holds, how much that is, and the id to remember it by.
    ///
    /// # Errors
    /// A file of Git LFS is not what its pointer says.
    pub fn content(
        self,
        path: &[u8],
        known: &Known,
    ) -> Result<(Option<ObjectId>, ContentDigest, u64), GitError> {
        match (self.pointer, self.bytes) {
            (_, FileBytes::Blob(bytes)) => Ok((self.id, ContentDigest::of(&bytes), bytes.len() as u64)),
            (Some((pointer, directory)), FileBytes::Large(file)) => {
                let content = match known.find(&pointer.file) {
                    Some((content, _)) => content,
                    None => pointer.content(&directory, file)?,
                };
                Ok((Some(pointer.file), content, pointer.size))
            }
            (None, FileBytes::Large(mut file)) => {
                let mut hasher = blake3::Hasher::new();
                let size = std::io::copy(&mut file, &mut hasher);
                let size = size.map_err(|source| GitError::WorkTree { path: shown(path).into(), source })?;
                Ok((self.id, hasher.finalize().into(), size))
            }
        }
    }
}

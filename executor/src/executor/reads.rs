//! What a build has read of this machine's directories, for whoever is to start another build when that changes.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    listing::{Listing, NodeKind},
    rootfs::split,
};

/// Files and directories that a build depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// Files, whose content counts.
    pub files: BTreeSet<PathBuf>,
    /// Directories, whose names count.
    pub directories: BTreeSet<PathBuf>,
}

/// A look at a context of this machine.
pub(super) struct Read {
    /// Where it is.
    pub(super) context: PathBuf,
    /// The directories whose names were read, relative to it.
    pub(super) directories: Vec<Vec<u8>>,
}

/// What was noted of looks at contexts; it is put together when somebody asks.
#[derive(Default)]
pub(super) struct Noted(Mutex<Vec<(Read, Arc<Listing>)>>);

impl Noted {
    /// Takes note of a look, and of what it has found.
    pub(super) fn note(&self, read: Read, found: &Arc<Listing>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((read, Arc::clone(found)));
    }

    /// All of it.
    pub(super) fn all(&self) -> Reads {
        let mut reads = Reads::default();
        for (Read { context, directories }, found) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
        {
            let absolute = |path: &[u8]| context.join(OsStr::from_bytes(path));
            reads.directories.extend(directories.iter().map(|path| absolute(path)));
            for (path, node) in &found.nodes {
                match node.kind {
                    NodeKind::Directory => {}
                    // Who asks for the time of a link is told that of what it leads to, if that is anything.
                    NodeKind::Symlink { .. } => drop(reads.directories.insert(absolute(split(path).0))),
                    _ => drop(reads.files.insert(absolute(path))),
                }
            }
        }
        reads
    }
}

//! Where the files of layers are that a step of this process made without writing them: still in the context, the
//! heredoc or the image they were copied from.
//!
//! A COPY is a tree and a note here. Whoever needs the bytes (the sealer, or a directory that somebody must read)
//! takes them from where they lie and compares them with the tree: a context's file may have changed since.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci::{ContentDigest, FileSource, LayerContents, Tree, TreeDigest};

use solver::StepFailure;

use crate::{
    git::GitError,
    listing::{ListError, Listing, NodeKind, Opened},
};

/// The layers of this process whose files are elsewhere. Cheap to clone.
#[derive(Clone, Default)]
pub struct Contents {
    layers: Arc<Mutex<BTreeMap<TreeDigest, Known>>>,
}

/// A layer and where its files are.
#[derive(Debug, Clone)]
struct Known {
    tree: Arc<Tree>,
    origins: Arc<Origins>,
}

/// Where the files of one layer are.
#[derive(Debug, Default)]
pub struct Origins {
    /// By path in the layer.
    pub files: BTreeMap<Vec<u8>, Origin>,
    /// Times on disk, Unix seconds and nanoseconds, of what is normalised in the layer and has a time of its own: by
    /// path in the layer.
    pub times: BTreeMap<Vec<u8>, (i64, u32)>,
}

/// Where one file is.
#[derive(Debug, Clone)]
pub struct Origin {
    /// What it was picked from.
    pub listing: Arc<Listing>,
    /// Its path there.
    pub path: Vec<u8>,
}

impl Contents {
    /// Remembers where the files of a layer are. The first who knows stays.
    pub fn insert(&self, layer: TreeDigest, tree: Tree, origins: Origins) {
        let known = || Known { tree: Arc::new(tree), origins: Arc::new(origins) };
        self.lock().entry(layer).or_insert_with(known);
    }

    /// Where the files of a layer are, if this process copied them.
    pub fn get(&self, layer: &TreeDigest) -> Option<Arc<Origins>> {
        self.lock().get(layer).map(|known| Arc::clone(&known.origins))
    }

    /// A layer that this process copied.
    pub fn tree(&self, layer: &TreeDigest) -> Option<Arc<Tree>> {
        self.lock().get(layer).map(|known| Arc::clone(&known.tree))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TreeDigest, Known>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayerContents for Contents {
    fn files_of(&self, layer: &TreeDigest) -> Option<Box<dyn FileSource + Send>> {
        self.get(layer).map(|origins| Box::new(Files(origins)) as Box<dyn FileSource + Send>)
    }
}

impl Origin {
    /// Opens the file. What is no file any more has changed; that its bytes are others must be found out by who reads.
    ///
    /// # Errors
    /// See [`Listing::open`].
    pub fn open(&self) -> Result<Opened<'_>, ListError> {
        let node = self.listing.nodes.get(&self.path).map(|node| &node.kind);
        match node {
            // What was keyed has no bytes. It may be a socket, which cannot be opened.
            Some(NodeKind::File { content: Some(content), .. }) if *content == ContentDigest::of(b"") => {
                Ok(Opened::Inline(b""))
            }
            _ => self.listing.open(&self.path),
        }
    }
}

struct Files(Arc<Origins>);

impl FileSource for Files {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let origin = self.0.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        match origin.open() {
            Ok(Opened::File(file)) => Ok(Box::new(file)),
            Ok(Opened::Bytes(bytes)) => Ok(Box::new(bytes)),
            Ok(Opened::Inline(bytes)) => Ok(Box::new(Cursor::new(bytes.to_vec()))),
            Err(ListError::Path(error)) => Err(error.source),
            // No file of a work tree has changed: a repository lacks an object.
            Err(ListError::Git(error)) if !matches!(*error, GitError::WorkTree { .. }) => {
                Err(io::Error::other(StepFailure::from(*error)))
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

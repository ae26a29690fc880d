//! Layers and snapshots: a file system *is* its list of layers.
//!
//! A [`Layer`] either came with a base image (and is known by its diff ID and blob) or was built here (and is known by
//! the digest of its [`Tree`](crate::Tree)); its bytes may not exist anywhere yet. A [`Snapshot`] is the chain of them.
//! Directories on disk are a cache of snapshots, keyed by [`Snapshot::digest`].
//!
//! Every step of a build adds exactly one layer to its parent's chain, possibly the empty one
//! ([`Layer::is_empty`]); empty layers keep the chain and the image's history in step and are left out of digests
//! and images.

use std::{
    fmt,
    io::{self, Read},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    canonical::Encoder,
    descriptor::Descriptor,
    digest::{DiffId, TreeDigest},
    reference::Reference,
    tree::Tree,
};

/// One layer of a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// Came with an image; passes through to the result as it is.
    Base(Box<BaseLayer>),
    /// Made by a step; its tree is in the store.
    Built(TreeDigest),
}

/// A layer of a pulled image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseLayer {
    /// SHA-256 of the uncompressed tar, from the image's config.
    pub diff_id: DiffId,
    /// The compressed blob, from the image's manifest.
    pub descriptor: Descriptor,
    /// Where the blob can be had.
    pub origin: BlobOrigin,
}

/// Where a blob can be read from when the store does not hold it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlobOrigin {
    /// The repository of this reference.
    Registry(Reference),
    /// The OCI layout in this directory, or in this tar.
    OciLayout(PathBuf),
}

impl fmt::Display for BlobOrigin {
    /// The repository or directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "{}/{}", reference.registry, reference.repository),
            Self::OciLayout(directory) => write!(f, "{}", directory.display()),
        }
    }
}

/// A file system: its layers, the base first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// One layer for each layer of the base image and for each step on top of it.
    pub layers: Vec<Layer>,
}

impl Layer {
    /// The layer's own identity: a hash of the diff ID, or the digest of the tree.
    pub fn tree(&self) -> TreeDigest {
        match self {
            Self::Base(base) => {
                let mut encoder = Encoder::new("base-layer");
                encoder.field(1, &base.diff_id);
                encoder.digest()
            }
            Self::Built(tree) => *tree,
        }
    }

    /// Whether the layer changes nothing: a step that wrote nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Built(tree) if *tree == Tree::empty_digest())
    }
}

impl Snapshot {
    /// Identity of the file system: the digests of its layers, chained. Empty layers do not count; `scratch` is the
    /// digest of no layer at all.
    pub fn digest(&self) -> TreeDigest {
        self.chain().last().map_or_else(|| Encoder::new("scratch").digest(), |(digest, _)| digest)
    }

    /// Every non-empty layer with the digest of the snapshot that ends in it, the base first.
    pub fn chain(&self) -> impl Iterator<Item = (TreeDigest, &Layer)> {
        let mut digest = Encoder::new("scratch").digest();
        self.layers.iter().filter(|layer| !layer.is_empty()).map(move |layer| {
            digest = Self::digest_with(&digest, layer);
            (digest, layer)
        })
    }

    /// Identity of the file system of digest `parent` with `layer` on top; an empty layer changes nothing.
    pub fn digest_with(parent: &TreeDigest, layer: &Layer) -> TreeDigest {
        if layer.is_empty() {
            return *parent;
        }
        let mut encoder = Encoder::new("chain");
        encoder.field(1, parent).field(2, &layer.tree());
        encoder.digest()
    }

    /// Identity of the file system that holds this layer and nothing else: where a layer was made that COPY --link put
    /// on top of another file system.
    pub fn digest_of_one(layer: &Layer) -> TreeDigest {
        Self::digest_with(&Self::default().digest(), layer)
    }

    /// The file system with one more layer on top.
    pub fn with(&self, layer: Layer) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer);
        Self { layers }
    }

    /// The file system without its topmost layer, or `None` for `scratch`.
    pub fn parent(&self) -> Option<Self> {
        let (_, below) = self.layers.split_last()?;
        Some(Self { layers: below.to_vec() })
    }
}

/// Gives the content of a tree's files. May be called from several threads at the same time.
pub trait FileSource: Sync {
    /// Opens the regular file of an entry, by the entry's path.
    ///
    /// # Errors
    /// What the operating system says; the caller adds the path.
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>>;
}

/// Knows where the bytes of layers are that a step of this process made without writing them to disk: still in the
/// context they were copied from. May be called from several threads at the same time.
pub trait LayerContents: Send + Sync {
    /// The files of a built layer; `None` for a layer it does not know. What is read must hash to what the layer's
    /// tree says, and whoever reads checks that.
    fn files_of(&self, layer: &TreeDigest) -> Option<Box<dyn FileSource + Send>>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Entry, EntryKind, EntryTime, Metadata};

    fn built(path: &str) -> Layer {
        let metadata =
            Metadata { mode: 0o755, uid: 0, gid: 0, time: EntryTime::Epoch, xattrs: Default::default() };
        let entry = Entry { path: path.into(), kind: EntryKind::Directory, metadata };
        Layer::Built(Tree::new(vec![entry]).expect("one entry").digest())
    }

    #[test]
    fn an_empty_layer_changes_nothing() {
        let one = Snapshot::default().with(built("a"));
        let padded = one.with(Layer::Built(Tree::empty_digest()));
        assert_eq!(one.digest(), padded.digest());
        assert_ne!(one.digest(), Snapshot::default().digest());
    }

    #[test]
    fn the_order_of_layers_counts() {
        let ab = Snapshot::default().with(built("a")).with(built("b"));
        let ba = Snapshot::default().with(built("b")).with(built("a"));
        assert_ne!(ab.digest(), ba.digest());
        assert_eq!(ab.parent(), Some(Snapshot::default().with(built("a"))));
    }
}

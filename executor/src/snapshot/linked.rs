//! Makes the directory of a layer that COPY --link made on an empty file system and put on top of another one.
//!
//! Nothing of the file system below was looked at when the layer was made, and nothing is copied until somebody needs the
//! files of the whole: an image that is only pushed never does. Then the layer's directory is copied. It cannot be
//! shared, because no directory may stand twice in one overlay, and hard links would show in what `stat` says of the
//! files; where the file system can, the copy shares its blocks. What overlayfs noted about the layer while it stood
//! alone (that its directories hide nothing less than everything) is not copied: directories are merged now.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
};

use oci::{Layer, Snapshot, Tree, TreeDigest};

use super::{
    FILES, Meta, SnapshotError, Snapshots, Stamp, bytes_on_disk, directory, files,
    meta::{owned, write_brought},
    open_directory, owners_above, tree_file,
};
use crate::{
    copy::{self, CopyError},
    unpack::copy_metadata,
};

impl Snapshots {
    /// Puts a layer that stands alone in the store on top of others, as the snapshot of this digest.
    pub(super) fn link(
        &self,
        (on, chain): (Option<TreeDigest>, TreeDigest),
        layer: &Layer,
        stamp: Stamp,
        lowers: &[OwnedFd],
        below: Option<&Meta>,
    ) -> Result<Meta, SnapshotError> {
        let alone = Snapshot::digest_of_one(layer);
        let own = self.meta(&alone)?.map(|meta| meta.owners()).unwrap_or_default();
        let temp = self.store().temp_dir("linked")?;
        let root = temp.path().join(FILES);
        fs::create_dir(&root).map_err(SnapshotError::io("create", &root))?;
        let to = open_directory(&root)?;
        let from = open_directory(&files(self.store(), &alone))?;
        let copied = copy::copy_contents(from.as_fd(), &own, to.as_fd(), self.cancel());
        let written = copied.map_err(|error| match error {
            CopyError::Cancelled => SnapshotError::Cancelled,
            source => SnapshotError::Link { layer: layer.tree(), source: Box::new(source) },
        })?;
        if let Some(lower) = lowers.first() {
            // The root is no entry of the layer: it is the one below.
            copy_metadata(lower, &to).map_err(|errno| SnapshotError::io("change", &root)(errno.into()))?;
        }
        let tree = self.read_tree(&layer.tree())?;
        let owners = owners_above(below.map(Meta::owners).unwrap_or_default(), &tree, &written);
        let meta = Meta {
            layer: layer.tree(),
            parent: on,
            bytes: bytes_on_disk(&tree),
            stamp,
            opaque_root: false,
            owners: owned(owners),
        };
        write_brought(temp.path(), &self.read_brought(&alone)?)?;
        meta.write(temp.path())?;
        self.store().rename_into(temp, &directory(self.store(), &chain))?;
        Ok(meta)
    }

    pub(crate) fn read_tree(&self, digest: &TreeDigest) -> Result<Tree, SnapshotError> {
        let path = self.store().root().join(tree_file(digest));
        let bytes = fs::read(&path).map_err(SnapshotError::io("read", &path))?;
        Tree::from_bytes(&bytes).map_err(|source| SnapshotError::Tree { path, source })
    }
}

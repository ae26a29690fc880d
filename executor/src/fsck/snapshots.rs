//! The directories of snapshots against the trees of their layers.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci::{Entry, EntryKind, Snapshot, Tree, TreeDigest};
use rustix::fs::{Mode, OFlags, Stat};

use super::{
    Check, Found, FsckError, damage,
    differences::{Wanted, difference},
    digest_of, names,
    objects::{unknown_names, unreadable},
    told,
};
use crate::{
    imprint::{self, ImprintError},
    sandbox::MARKER,
    snapshot::{Meta, read_brought},
};

const UNPACKED_AGAIN: &str = "the layer is unpacked, or its step run, again";
/// What stands in a snapshot's directory.
const NAMES: [&str; 4] = ["fs", "meta.json", "brought", "tree"];

impl Check<'_> {
    pub(super) fn snapshots(&self, found: &mut Found) -> Result<(), FsckError> {
        let bad_trees = &found.bad_trees;
        let wrong = self.each("snapshots", |name| {
            let Some(digest) = digest_of(name) else { return Ok(None) };
            let directory = self.store.area("snapshots").join(name);
            let what = match self.snapshot(&digest, &directory, bad_trees) {
                // Others have removed it meanwhile.
                _ if !directory.exists() => None,
                what => what?,
            };
            Ok(what.map(|what| (digest, what)))
        })?;
        for (path, (digest, what)) in wrong {
            found.bad_snapshots.insert(digest);
            found.add(path, what, UNPACKED_AGAIN);
        }
        Ok(())
    }

    fn snapshot(
        &self,
        digest: &TreeDigest,
        directory: &Path,
        bad_trees: &std::collections::BTreeSet<TreeDigest>,
    ) -> Result<Option<String>, FsckError> {
        if *digest == Snapshot::default().digest() {
            let held = names(&directory.join("fs")).map_err(FsckError::io(directory))?;
            let first = held.first().map(|name| format!("it holds {}, and should be empty", name.display()));
            return Ok(first);
        }
        if let Some(stray) = unknown_names(directory, &NAMES).map_err(FsckError::io(directory))? {
            return Ok(Some(format!("{} does not belong there", stray.display())));
        }
        let meta = match Meta::read(directory) {
            Ok(Some(meta)) => meta,
            Ok(None) => return Ok(Some("meta.json is missing".to_owned())),
            Err(error) => return Ok(Some(format!("meta.json: {}", damage(error)?))),
        };
        match read_brought(directory) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Some("brought is missing".to_owned())),
            Err(error) => return Ok(Some(format!("brought: {}", damage(error)?))),
        }
        let kept = match imprint::kept(directory) {
            Ok(kept) => kept,
            Err(error) => return Ok(Some(format!("tree: {}", damage(error)?))),
        };
        let files = directory.join("fs");
        if let Some(tree) = kept {
            return self.compare("snapshots", &files, &Wanted::All(&tree));
        }
        let Some(tree) = self.tree_of(&meta.layer).filter(|_| !bad_trees.contains(&meta.layer)) else {
            return Ok(Some(format!("the tree of its layer {} is damaged or missing", meta.layer)));
        };
        let is_below = |entry: &Entry| self.is_below(&meta, entry);
        let (tree, owners, is_below) = (&tree, &meta.owners(), &is_below);
        let wanted = match self.store.root().join(MARKER).exists() {
            true => Wanted::Copy { tree, owners, is_below },
            false => Wanted::Layer { tree, owners, is_below },
        };
        self.compare("snapshots", &files, &wanted)
    }

    /// Compares a directory with what it should hold, reading all of its files.
    pub(super) fn compare(
        &self,
        area: &'static str,
        directory: &Path,
        wanted: &Wanted<'_>,
    ) -> Result<Option<String>, FsckError> {
        let root = match open(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some("fs is missing".to_owned()));
            }
            Err(error) => return unreadable(directory, error).map(Some),
            Ok(root) => root,
        };
        let count = |stat: &Stat| {
            self.count(area, 0, u64::try_from(stat.st_size).unwrap_or(0));
            None
        };
        match imprint::imprint(&root, &count) {
            Ok(found) => Ok(difference(wanted, &found)),
            Err(ImprintError::Path(error)) => {
                let told = told(&error);
                unreadable(directory, error.source).map(|_| Some(told))
            }
            Err(error) => Ok(Some(told(&error))),
        }
    }

    fn tree_of(&self, layer: &TreeDigest) -> Option<Tree> {
        let bytes = fs::read(self.store.area("trees").join(layer.hex())).ok()?;
        Tree::from_bytes(&bytes).ok()
    }

    /// Whether the layers below a snapshot's topmost one show the same file at an entry's path; where one of them is not
    /// there, nobody can tell.
    fn is_below(&self, meta: &Meta, entry: &Entry) -> bool {
        let mut next = meta.parent;
        while let Some(chain) = next {
            let directory: PathBuf = self.store.area("snapshots").join(chain.hex());
            let Ok(Some(below)) = Meta::read(&directory) else { return true };
            let kept = imprint::kept(&directory).ok().flatten();
            let Some(tree) = kept.or_else(|| self.tree_of(&below.layer)) else { return true };
            if let Some(other) = tree.get(&entry.path) {
                return content(&tree, &other.kind) == content(&tree, &entry.kind)
                    || matches!(entry.kind, EntryKind::HardLink { .. });
            }
            next = below.parent;
        }
        false
    }
}

/// What an entry holds, through a hard link.
fn content<'a>(tree: &'a Tree, kind: &'a EntryKind) -> Option<&'a EntryKind> {
    match kind {
        EntryKind::HardLink { target } => tree.get(target).map(|entry| &entry.kind),
        kind => Some(kind),
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

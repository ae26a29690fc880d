//! Snapshots on disk: for each layer of a file system one directory in overlay format, made once and never changed.
//!
//! `ROOT/snapshots/CHAIN/` holds what the topmost layer of the snapshot with digest CHAIN adds to the one below:
//! `fs/`, with removed files as character devices 0:0 and opaque directories marked by an attribute, and [`Meta`].
//! It is keyed by the chain's digest and not by the layer's own, because the directories that a layer only passes
//! through carry their metadata from the layers below. It arrives by one rename and is complete from then on;
//! whoever is second throws his own away. The digest of `scratch` keys an empty directory.
//!
//! Where the kernel mounts no overlay, `fs/` is all of the file system ([`Form::Copies`]); a store is of one form only.
//!
//! Layers of base images can always be made again from their blobs; a layer that a step made cannot, so it counts as
//! present only while its directory is: the one of its chain, or the one of the layer alone, from which the other is
//! made when somebody needs it.

mod base;
mod catalogued;
mod entry;
mod error;
mod materialise;
mod meta;
mod places;
mod pull;
mod stream;
mod writable;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci::{
    ContentDigest, DiffId, Entry, EntryKind, Layer, Snapshot, Tree, TreeDigest, fetch::Fetcher, store::Store,
};
use solver::{Cancel, Event};

pub(crate) use base::at_once;
pub use error::SnapshotError;
pub(crate) use meta::read_brought;
pub use meta::{Meta, Stamp};
use meta::{bytes_on_disk, owners_above};
use places::{FILES, directory, files, holds_directory, open_directory, pin_chain, tree_file};
pub use places::{holds_layer, pin_layers};
pub use pull::PullError;
pub use stream::StreamError;
pub use writable::Writable;

use crate::{
    beneath::{Bases, Beneath},
    catalogue::Catalogue,
    contents::Contents,
    copies,
    copy::Planned,
    diff::Changes,
    form::Form,
    listing::Owners,
    lock::{self, NotLocked},
    mount::{MOST_LOWERS, Overlay, OverlaySync, mount_overlay},
    view::View,
};

/// Takes what happens, from any thread.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// What file systems allocate at a time.
pub(crate) const BLOCK: u64 = 4096;

/// The snapshots of one store. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    fetcher: Fetcher,
    form: Form,
    events: Events,
    cancel: Arc<Cancel>,
    /// What has been read of [`Meta`]; a step asks for that of every layer below it.
    known: Arc<Mutex<BTreeMap<TreeDigest, Meta>>>,
    /// What base layers hold that are not unpacked.
    catalogues: Arc<Mutex<BTreeMap<DiffId, Arc<Catalogue>>>>,
    /// Files of layers that are not on disk.
    contents: Contents,
}

impl Snapshots {
    /// Snapshots in the fetcher's store. Pulls and warnings are told to `events`, and stop when `cancel` asks.
    pub fn new(fetcher: Fetcher, form: Form, events: Events, cancel: Arc<Cancel>) -> Self {
        let (known, catalogues, contents) = Default::default();
        Self { fetcher, form, events, cancel, known, catalogues, contents }
    }

    /// Where files of layers are that are not on disk.
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The same snapshots for somebody who stops waiting and pulling when `cancel` asks.
    pub(crate) fn until(&self, cancel: &Cancel) -> Self {
        Self { cancel: Arc::new(cancel.clone()), ..self.clone() }
    }

    /// Takes what happens.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Asks to stop.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// The directories of a snapshot, topmost first, as an overlay mount wants them: at least one, and just one where it is a
    /// copy. Missing base layers are
    /// pulled and unpacked, and so are built ones that a remote cache has; threads and processes that want the same one
    /// wait for each other.
    ///
    /// # Errors
    /// A layer that a step made is gone, or it or a base layer cannot be had or is not what its digests say.
    pub fn ensure(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>, SnapshotError> {
        let chain: Vec<_> = snapshot.chain().collect();
        let metas = self.ensure_chain(&chain)?;
        if chain.is_empty() {
            return Ok(vec![self.scratch_directory()?]);
        }
        Ok(self.lowers(&chain, &metas))
    }

    /// The directories of a snapshot as an overlay mount without a writable one wants them: two at least; or one that needs
    /// no overlay, that of `scratch` or a copy.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`].
    pub fn readable(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lowers = self.ensure(snapshot)?;
        let scratch = self.scratch_directory()?;
        if self.form != Form::Copies && lowers.len() == 1 && lowers[0] != scratch {
            lowers.push(scratch);
        }
        Ok(lowers)
    }

    /// Refuses what the kernel could not merge, before anything is pulled and unpacked for it.
    ///
    /// # Errors
    /// [`SnapshotError::TooManyLayers`]
    pub fn check_mountable(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let count = snapshot.chain().count();
        if self.form == Form::Copies || count <= MOST_LOWERS {
            return Ok(());
        }
        let mut of_base = snapshot.layers.iter().filter_map(|layer| match layer {
            Layer::Base(base) => Some(base.origin.to_string()),
            Layer::Built(_) => None,
        });
        let base = of_base.next();
        let of_base = base.iter().count() + of_base.count();
        Err(SnapshotError::TooManyLayers { count, most: MOST_LOWERS, of_base, base })
    }

    /// The merged file system, read-only.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`] and [`Snapshots::check_mountable`], or the mount fails.
    pub fn view(&self, snapshot: &Snapshot) -> Result<View, SnapshotError> {
        self.check_mountable(snapshot)?;
        let lowers = self.readable(snapshot)?;
        let marks = match (lowers.as_slice(), self.form) {
            ([only], _) | ([only, ..], Form::Copies) => return open_directory(only).map(View::new),
            (_, Form::Layers(marks)) => marks,
            ([], Form::Copies) => unreachable!("a snapshot has a directory"),
        };
        let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
        let sync = OverlaySync::Honoured;
        Ok(View::of(mount_overlay(&Overlay { lowers: &lowers, writable: None, marks, sync })?))
    }

    /// A place for a step to write on top of a snapshot.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`], or the store cannot be written.
    pub fn scratch(&self, parent: &Snapshot) -> Result<Writable, SnapshotError> {
        let lowers = self.ensure(parent)?;
        Writable::new(self.store(), "step", lowers, self.form, &self.cancel)
    }

    /// A place to write on top of directories in overlay format, topmost first, for what nobody keeps.
    ///
    /// # Errors
    /// The store cannot be written.
    pub(crate) fn scratch_over(&self, lowers: Vec<PathBuf>) -> Result<Writable, SnapshotError> {
        Writable::new(self.store(), "scratch", lowers, self.form, &self.cancel)
    }

    /// Makes what a step wrote a layer of the store: its tree first, then its directory. `owners` are those that the
    /// step could not give its files on disk. A step that changed nothing leaves nothing but [`Tree::empty_digest`].
    ///
    /// # Errors
    /// The store cannot be written, or the clock is wrong.
    pub fn commit(
        &self,
        parent: &Snapshot,
        writable: Writable,
        changes: &Changes,
        owners: &Owners,
    ) -> Result<Layer, SnapshotError> {
        let layer = Layer::Built(changes.tree.digest());
        if layer.is_empty() {
            return Ok(layer);
        }
        changes.tree.entries().iter().try_for_each(|entry| self.refuse_unseen(entry))?;
        let below = self.top_meta(parent)?;
        let meta = Meta {
            layer: changes.tree.digest(),
            parent: parent.chain().last().map(|(digest, _)| digest),
            bytes: self.bytes_with(below.as_ref(), bytes_on_disk(&changes.tree)),
            stamp: self.stamp_after(below.as_ref())?,
            opaque_root: false,
            owners: meta::owned(owners_above(
                below.map(|meta| meta.owners()).unwrap_or_default(),
                &changes.tree,
                owners,
            )),
        };
        let temp = writable.finish(&meta, &changes.brought)?;
        self.store().write_atomic(&tree_file(&changes.tree.digest()), &changes.tree.to_bytes())?;
        self.store().rename_into(temp, &directory(self.store(), &parent.with(layer.clone()).digest()))?;
        Ok(layer)
    }

    /// Refuses a device that nobody would see.
    fn refuse_unseen(&self, entry: &Entry) -> Result<(), SnapshotError> {
        let is_device = matches!(entry.kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. });
        match is_device && !self.form.shows_device(&entry.path) {
            true => Err(SnapshotError::Unseen { path: entry.path.clone() }),
            false => Ok(()),
        }
    }

    /// What a snapshot holds, to be looked up without writing the layers on top that are not on disk; `bases` says how the
    /// layers of its base image are looked at if they are not there either.
    ///
    /// # Errors
    /// The tree of such a layer is gone, or cannot be brought.
    pub fn beneath(&self, snapshot: &Snapshot, bases: Bases) -> Result<Beneath, SnapshotError> {
        let mut chain: Vec<_> = snapshot.chain().collect();
        let mut above = Vec::new();
        while let Some((digest, Layer::Built(tree))) = chain.last() {
            if self.meta(digest)?.is_some() {
                break;
            }
            above.push(*tree);
            chain.pop();
        }
        self.bring_trees(&above)?;
        let trees = above.into_iter().map(|tree| Ok((tree, self.tree(&tree)?)));
        let trees = trees.collect::<Result<Vec<_>, SnapshotError>>()?;
        let layers = chain.into_iter().map(|(_, layer)| layer.clone()).collect();
        Ok(Beneath::new(self, trees, Snapshot { layers }, bases))
    }

    /// Makes a layer of what a copy planned: its tree, and a note in this process where its files are.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn adopt(&self, planned: Planned) -> Result<Layer, SnapshotError> {
        let Planned { tree, origins } = planned;
        let layer = Layer::Built(tree.digest());
        if !layer.is_empty() {
            self.store().write_atomic(&tree_file(&layer.tree()), &tree.to_bytes())?;
            self.contents.insert(layer.tree(), tree, origins);
        }
        Ok(layer)
    }

    fn tree(&self, digest: &TreeDigest) -> Result<Arc<Tree>, SnapshotError> {
        match self.contents.tree(digest) {
            Some(tree) => Ok(tree),
            None => self.read_tree(digest).map(Arc::new),
        }
    }

    /// The contents of all files that came into the snapshot by COPY or ADD, here or in the build of its base image.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`].
    pub fn brought(&self, snapshot: &Snapshot) -> Result<BTreeSet<ContentDigest>, SnapshotError> {
        self.ensure(snapshot)?;
        match self.all_brought(snapshot) {
            // Out of the way by now; of base layers it can be had again.
            Err(SnapshotError::Damaged { .. }) => {
                self.ensure(snapshot)?;
                self.all_brought(snapshot)
            }
            brought => brought,
        }
    }

    fn all_brought(&self, snapshot: &Snapshot) -> Result<BTreeSet<ContentDigest>, SnapshotError> {
        let mut brought = BTreeSet::new();
        for (digest, _) in snapshot.chain() {
            brought.append(&mut self.read_brought(&digest)?);
        }
        Ok(brought)
    }

    fn read_brought(&self, chain: &TreeDigest) -> Result<BTreeSet<ContentDigest>, SnapshotError> {
        let what = match meta::read_brought(&directory(self.store(), chain)) {
            Ok(Some(brought)) => return Ok(brought),
            Ok(None) => "what was brought with it is not known".to_owned(),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        self.discard(chain, &what)?;
        Err(SnapshotError::Damaged { path: directory(self.store(), chain), what })
    }

    /// Takes a snapshot that is of no use out of the way, and says so.
    ///
    /// # Errors
    /// Another build may have it mounted, whose files would go; or the store cannot be written.
    pub fn discard(&self, chain: &TreeDigest, why: &str) -> Result<(), SnapshotError> {
        let path = directory(self.store(), chain);
        if !self.store().set_aside(&path)? {
            return Err(SnapshotError::InUse { path, what: why.to_owned() });
        }
        self.warn(format!("the snapshot {} will be made again: {why}", path.display()));
        self.known().remove(chain);
        Ok(())
    }

    /// The owners in a snapshot that the disk could not hold.
    ///
    /// # Errors
    /// Those of [`Snapshots::ensure`].
    pub fn owners(&self, snapshot: &Snapshot) -> Result<Owners, SnapshotError> {
        self.ensure(snapshot)?;
        Ok(self.top_meta(snapshot)?.map(|meta| meta.owners()).unwrap_or_default())
    }

    /// When each layer of a snapshot was put on this disk, the base first.
    pub(crate) fn stamps(&self, snapshot: &Snapshot) -> Result<Vec<Stamp>, SnapshotError> {
        let chain: Vec<_> = snapshot.chain().collect();
        Ok(self.ensure_chain(&chain)?.iter().map(|meta| meta.stamp).collect())
    }

    /// Brings the blobs of base layers.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// The store they are in.
    pub fn store(&self) -> &Arc<Store> {
        self.fetcher.store()
    }

    pub(crate) fn warn(&self, warning: String) {
        (self.events)(Event::Warning(warning));
    }

    /// What a snapshot's directory takes, about, with so many bytes in its topmost layer.
    fn bytes_with(&self, below: Option<&Meta>, layer: u64) -> u64 {
        match self.form {
            Form::Layers(_) => layer,
            Form::Copies => layer + below.map_or(0, |below| below.bytes),
        }
    }

    /// Completes a snapshot's directory: where it is to be a copy, by what shows through the layer in it.
    fn fill(&self, root: &OwnedFd, below: Option<&PathBuf>) -> Result<(), SnapshotError> {
        if self.form == Form::Copies {
            let below = below.map(|below| open_directory(below)).transpose()?;
            copies::fill(root, below.as_ref(), &self.cancel)?;
        }
        Ok(())
    }

    fn stamp_after(&self, below: Option<&Meta>) -> Result<Stamp, SnapshotError> {
        Stamp::now_after(below.map(|meta| meta.stamp)).ok_or(SnapshotError::Clock)
    }

    /// What is known of every layer of a chain, once all of them are there.
    fn ensure_chain(&self, chain: &[(TreeDigest, &Layer)]) -> Result<Vec<Meta>, SnapshotError> {
        pin_chain(self.store(), chain.iter().copied())?;
        loop {
            let present = self.present(chain)?;
            let Some((first_missing, _)) = chain.get(present.len()) else {
                return Ok(present);
            };
            let _lock = self.lock(&chain[present.len()])?;
            // Whoever had the lock before us may have made it.
            if self.meta(first_missing)?.is_none() {
                // Who finds the lower layers in their places must still wait for the upper ones. Locks are taken from
                // the base up, so nobody waits in a circle.
                let above = chain[present.len() + 1..].iter().map(|layer| self.lock(layer));
                let _locks = above.collect::<Result<Vec<_>, _>>()?;
                return self.make_layers(chain, present);
            }
        }
    }

    /// What is known of the layers from the base up to the first that is missing.
    fn present(&self, chain: &[(TreeDigest, &Layer)]) -> Result<Vec<Meta>, SnapshotError> {
        let mut present = Vec::with_capacity(chain.len());
        for (digest, _) in chain {
            match self.meta(digest)? {
                Some(meta) => present.push(meta),
                None => break,
            }
        }
        Ok(present)
    }

    fn top_meta(&self, snapshot: &Snapshot) -> Result<Option<Meta>, SnapshotError> {
        match snapshot.chain().last() {
            Some((digest, _)) => self.meta(&digest),
            None => Ok(None),
        }
    }

    fn meta(&self, chain: &TreeDigest) -> Result<Option<Meta>, SnapshotError> {
        if let Some(meta) = self.known().get(chain) {
            return Ok(Some(meta.clone()));
        }
        self.store().pin(&[directory(self.store(), chain)])?;
        let meta = self.read_meta(chain)?;
        if let Some(meta) = &meta {
            self.store().touch(&directory(self.store(), chain));
            self.known().insert(*chain, meta.clone());
        }
        Ok(meta)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TreeDigest, Meta>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory that cannot be understood is taken out of the way and counts as missing.
    fn read_meta(&self, chain: &TreeDigest) -> Result<Option<Meta>, SnapshotError> {
        match Meta::read(&directory(self.store(), chain)) {
            Err(error) if meta::is_useless(&error) => self.discard(chain, &error.to_string()).map(|()| None),
            read => Ok(read?),
        }
    }

    /// Waits until nobody else makes a layer.
    fn lock(&self, (chain, layer): &(TreeDigest, &Layer)) -> Result<File, SnapshotError> {
        let what = match layer {
            Layer::Base(layer) => format!("unpacks {:.19}", layer.descriptor.digest.to_string()),
            Layer::Built(tree) => format!("unpacks {:.19}", tree.to_string()),
        };
        self.lock_named(&format!("snapshot-{}", chain.hex()), &what)
    }

    /// Waits for a lock; `what` says what the one who has it is doing.
    fn lock_named(&self, name: &str, what: &str) -> Result<File, SnapshotError> {
        let file = self.store().lock_file(name)?;
        match lock::wait_for(&file, what, &self.events, &self.cancel) {
            Ok(()) => Ok(file),
            Err(NotLocked::Cancelled) => Err(SnapshotError::Cancelled),
            Err(NotLocked::Io(error)) => {
                Err(SnapshotError::io("lock", &self.store().area("locks").join(name))(error))
            }
        }
    }

    /// The empty directory that is the snapshot of `scratch`.
    fn scratch_directory(&self) -> Result<PathBuf, SnapshotError> {
        let digest = Snapshot::default().digest();
        let path = files(self.store(), &digest);
        self.store().pin(&[directory(self.store(), &digest)])?;
        if path.is_dir() {
            return Ok(path);
        }
        let temp = self.store().temp_dir("scratch")?;
        let root = temp.path().join(FILES);
        fs::create_dir(&root).map_err(SnapshotError::io("create", &root))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))
            .map_err(SnapshotError::io("change", &root))?;
        self.store().rename_into(temp, &directory(self.store(), &digest))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests;

//! Writes the directory of a layer that a step made, from its tree and from wherever its bytes are: still in the context
//! that this process copied them from, in a blob of the store that some build sealed, or in the directory where the
//! layer stands alone (COPY --link).
//!
//! The tree says what the directory holds, and every byte that could have changed is hashed as it is written. Times on
//! disk are real, as after the step itself, as far as they are known: those of the context, and those of a layer that
//! stands alone; what comes out of a blob with a normalised time gets the time of writing, later than all that is below,
//! as in a base image. Directories that the layer only leads through are made like those below.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufReader},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, Layer, Snapshot, Tree, TreeDigest,
    store::{Store, sealed},
    tree::TreeError,
};
use rayon::prelude::*;
use rustix::fs::OFlags;

use super::{
    FILES, Meta, SnapshotError, Snapshots, Stamp, bytes_on_disk, directory, entry, files, holds_directory,
    meta::{owned, write_brought},
    open_directory, owners_above, tree_file,
};
use crate::{
    archive::decompress,
    beneath::node_kind,
    contents::Origins,
    copy::{
        CopyError, content,
        ground::Ground,
        target::{Applied, Stamp as FileStamp, Target},
    },
    form::Form,
    listing::ListError,
    mount::{Overlay, OverlaySync, mount_overlay},
    rootfs::{failed, lstat, open_beneath, set_mode, shown, split},
    tarball::TarReader,
    unpack::copy_metadata,
    view::View,
};

/// Where the bytes of a layer are.
pub(super) enum Bytes {
    /// Where this process copied them from.
    Origins(Arc<Origins>),
    /// In the directory of the snapshot that holds nothing but the layer.
    Alone(OwnedFd),
    /// In this blob.
    Sealed(Box<sealed::SealedRecord>),
}

/// Where a layer is written.
pub(super) struct Place {
    /// The chain below it, if there is one.
    pub on: Option<TreeDigest>,
    /// The chain that it ends.
    pub chain: TreeDigest,
    /// The directories below, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Later than all stamps below.
    pub stamp: Stamp,
}

impl Snapshots {
    /// Where the bytes of a built layer can be had; `None` where it is gone.
    pub(super) fn bytes_of(&self, tree: &TreeDigest) -> Result<Option<Bytes>, SnapshotError> {
        let alone = Snapshot::digest_of_one(&Layer::Built(*tree));
        if self.meta(&alone)?.is_some() {
            return open_directory(&files(self.store(), &alone)).map(|root| Some(Bytes::Alone(root)));
        }
        if let Some(origins) = self.contents().get(tree) {
            return Ok(Some(Bytes::Origins(origins)));
        }
        Ok(self.sealed(tree))
    }

    /// Makes the directory of a built layer, of the first bytes that turn out to be those of its tree.
    pub(super) fn rebuild(
        &self,
        layer: TreeDigest,
        place: &Place,
        below: Option<&Meta>,
    ) -> Result<Meta, SnapshotError> {
        let gone = || SnapshotError::Gone { layer, path: directory(self.store(), &place.chain) };
        let mut bytes = match self.bytes_of(&layer)? {
            Some(bytes) => bytes,
            None => self.brought_of(&layer)?.ok_or_else(gone)?,
        };
        loop {
            let error = match self.materialise(layer, place, &bytes, below) {
                Err(error) => error,
                Ok(made) => {
                    if let Bytes::Sealed(record) = &bytes {
                        sealed::note_read(self.store(), &layer, record)?;
                    }
                    return Ok(made);
                }
            };
            match (&bytes, &error) {
                (Bytes::Sealed(_), SnapshotError::Sealed { blob, .. }) => {
                    self.warn(format!("{error}, and is removed"));
                    self.store().remove_blob(blob)?;
                    // Its bytes were right when they came, if it came from there: then what is told of them is wrong.
                    self.fetcher().elsewhere().lose_blob(blob);
                }
                (Bytes::Sealed(record), SnapshotError::Files(_)) if self.is_from_elsewhere(&layer) => {
                    self.warn(format!("a layer of a remote cache is not used: {error}"));
                    self.store().remove_blob(&record.descriptor.digest)?;
                    // What no disk takes was never a step's work.
                    self.fetcher().elsewhere().lose(layer);
                }
                (Bytes::Origins(_), error) if has_changed(error) => {}
                _ => return Err(error),
            }
            let was_sealed = matches!(bytes, Bytes::Sealed(_));
            bytes = match (self.sealed(&layer), was_sealed) {
                (Some(sealed), _) => sealed,
                (None, true) => self.brought_of(&layer)?.ok_or_else(gone)?,
                (None, false) => return Err(error),
            };
        }
    }

    fn is_from_elsewhere(&self, layer: &TreeDigest) -> bool {
        self.fetcher().elsewhere().get(layer).is_some()
    }

    /// A blob that is brought from a remote cache.
    fn brought_of(&self, layer: &TreeDigest) -> Result<Option<Bytes>, SnapshotError> {
        Ok(self.bring_layer(layer)?.map(|record| Bytes::Sealed(Box::new(record))))
    }

    fn sealed(&self, layer: &TreeDigest) -> Option<Bytes> {
        let (_, record) = sealed::all(self.store(), layer).into_iter().next()?;
        Some(Bytes::Sealed(Box::new(record)))
    }

    fn materialise(
        &self,
        layer: TreeDigest,
        place: &Place,
        bytes: &Bytes,
        below: Option<&Meta>,
    ) -> Result<Meta, SnapshotError> {
        let Place { on, chain, lowers, stamp } = place;
        let tree = self.tree(&layer)?;
        let temp = self.store().temp_dir("files")?;
        let root = temp.path().join(FILES);
        fs::create_dir(&root).map_err(SnapshotError::io("create", &root))?;
        let to = open_directory(&root)?;
        let written = {
            let lower = Merged { lowers, form: self.form, view: OnceLock::new() };
            let target = Target::new(to.as_fd(), None);
            let mut writer = Writer {
                snapshots: self,
                tree: &tree,
                bytes,
                stamp: *stamp,
                lower,
                target,
                stubs: BTreeSet::new(),
            };
            writer.write(layer).map_err(|error| error.of_files(bytes_on_disk(&tree)))?;
            writer.target.owners
        };
        match lowers.first() {
            // The root is no entry of the layer: it is the one below.
            Some(lower) => copy_metadata(open_directory(lower)?, &to),
            None => set_mode(&to, 0o755),
        }
        .map_err(|errno| SnapshotError::io("change", &root)(errno.into()))?;
        let filled = self.fill(&to, lowers.first());
        filled.map_err(|error| error.of_files(self.bytes_with(below, 0)))?;
        let owners = owners_above(below.map(Meta::owners).unwrap_or_default(), &tree, &written);
        let meta = Meta {
            layer,
            parent: *on,
            bytes: self.bytes_with(below, bytes_on_disk(&tree)),
            stamp: *stamp,
            opaque_root: false,
            owners: owned(owners),
        };
        write_brought(temp.path(), &brought(&tree))?;
        meta.write(temp.path())?;
        self.store().rename_into(temp, &directory(self.store(), chain))?;
        Ok(meta)
    }
}

impl Snapshots {
    /// Reads the tree of a built layer, which is brought where only a remote cache has it.
    pub(crate) fn read_tree(&self, digest: &TreeDigest) -> Result<Tree, SnapshotError> {
        let path = self.store().root().join(tree_file(digest));
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut read = fs::read(&path);
        if read.as_ref().is_err_and(gone) {
            self.bring_trees(&[*digest])?;
            read = fs::read(&path);
        }
        let bytes = read.map_err(|error| match gone(&error) {
            true => SnapshotError::Gone { layer: *digest, path: path.clone() },
            false => SnapshotError::io("read", &path)(error),
        })?;
        match Tree::from_bytes(&bytes) {
            Ok(tree) if tree.digest() == *digest => Ok(tree),
            Ok(_) => Err(SnapshotError::Tree { path, source: TreeError::Damaged(0) }),
            Err(source) => Err(SnapshotError::Tree { path, source }),
        }
    }
}

/// Whether the bytes of a built layer are in the store: in a directory on top of this chain, in one of its own, or in a
/// blob.
pub(super) fn holds_bytes(store: &Store, chain: &TreeDigest, tree: &TreeDigest) -> bool {
    let alone = || Snapshot::digest_of_one(&Layer::Built(*tree));
    holds_directory(store, chain) || holds_directory(store, &alone()) || sealed::is_held(store, tree)
}

/// The contents that a layer's times say were brought by COPY or ADD.
fn brought(tree: &Tree) -> BTreeSet<ContentDigest> {
    let content = |entry: &Entry| match (&entry.kind, entry.metadata.time) {
        (EntryKind::File { content, .. }, EntryTime::Content) => Some(*content),
        _ => None,
    };
    tree.entries().iter().filter_map(content).collect()
}

/// The file system below, mounted when somebody asks for it.
struct Merged<'a> {
    lowers: &'a [PathBuf],
    form: Form,
    view: OnceLock<View>,
}

impl Merged<'_> {
    fn root(&self) -> Result<Option<&View>, SnapshotError> {
        if let Some(view) = self.view.get() {
            return Ok(Some(view));
        }
        let view = match self.lowers {
            [] => return Ok(None),
            [one] => View::new(open_directory(one)?),
            lowers => {
                let Form::Layers(marks) = self.form else { unreachable!("a copy stands for all below it") };
                let lowers: Vec<_> = lowers.iter().map(PathBuf::as_path).collect();
                let sync = OverlaySync::Honoured;
                View::of(mount_overlay(&Overlay { lowers: &lowers, writable: None, marks, sync })?)
            }
        };
        Ok(Some(self.view.get_or_init(|| view)))
    }
}

/// Writes one layer.
struct Writer<'a> {
    snapshots: &'a Snapshots,
    tree: &'a Tree,
    bytes: &'a Bytes,
    stamp: Stamp,
    lower: Merged<'a>,
    target: Target<'a>,
    /// Directories that are no entries of the layer.
    stubs: BTreeSet<Vec<u8>>,
}

impl Writer<'_> {
    /// Names and nodes first, then the bytes of files, then their other names, then what directories get: whatever is
    /// written into one changes its time.
    fn write(&mut self, layer: TreeDigest) -> Result<(), SnapshotError> {
        let tree = self.tree;
        for entry in tree.entries() {
            self.parents(split(&entry.path).0)?;
            self.place(entry)?;
        }
        self.files(layer)?;
        for entry in tree.entries() {
            if let EntryKind::HardLink { target } = &entry.kind {
                self.target.link(target, &entry.path)?;
            }
        }
        for entry in tree.entries().iter().rev().filter(|entry| entry.kind == EntryKind::Directory) {
            let time = self.time(entry)?;
            self.target.stamp(&entry.path, &file_stamp(entry, time))?;
        }
        let stubs = std::mem::take(&mut self.stubs);
        stubs.iter().rev().try_for_each(|stub| self.inherit(stub))
    }

    /// Makes the directories that are missing on the way to an entry.
    fn parents(&mut self, path: &[u8]) -> Result<(), SnapshotError> {
        let mut missing = Vec::new();
        let mut at = path;
        while !at.is_empty() && !self.stubs.contains(at) && self.tree.get(at).is_none() {
            missing.push(at.to_vec());
            at = split(at).0;
        }
        for path in missing.into_iter().rev() {
            self.target.make_dir(&path, 0o700)?;
            self.stubs.insert(path);
        }
        Ok(())
    }

    /// Makes what is neither a regular file nor another name of one.
    fn place(&mut self, entry: &Entry) -> Result<(), SnapshotError> {
        self.snapshots.refuse_unseen(entry)?;
        let path = entry.path.as_slice();
        let has_whiteout = || self.tree.at(path).iter().any(|entry| entry.kind == EntryKind::Whiteout);
        match &entry.kind {
            EntryKind::File { .. } | EntryKind::HardLink { .. } => Ok(()),
            EntryKind::Whiteout if self.tree.get(path).is_some() => Ok(()),
            EntryKind::Whiteout => {
                let parent = self.target.parent(path)?;
                Ok(self
                    .snapshots
                    .form
                    .hide(parent, split(path).1)
                    .map_err(failed("hiding", path))
                    .map_err(CopyError::from)?)
            }
            EntryKind::Directory => {
                let hides = has_whiteout();
                self.target.make_dir(path, 0o700)?;
                if hides { self.mark_opaque(path) } else { Ok(()) }
            }
            EntryKind::Opaque => self.mark_opaque(path),
            kind => {
                let kind = node_kind(kind).expect("it stands for itself");
                self.target.create_node(path, &kind)?;
                let time = self.time(entry)?;
                Ok(self.target.stamp(path, &file_stamp(entry, time))?)
            }
        }
    }

    fn mark_opaque(&self, path: &[u8]) -> Result<(), SnapshotError> {
        let directory = self.open(path)?;
        let marked = self.snapshots.form.mark_opaque(directory);
        Ok(marked.map_err(failed("hiding what is below", path)).map_err(CopyError::from)?)
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, CopyError> {
        let opened = open_beneath(self.target.root(), path, OFlags::RDONLY | OFlags::DIRECTORY);
        Ok(opened.map_err(failed("opening", path))?)
    }

    /// Gives a directory that the layer only leads through all that the one below has.
    fn inherit(&self, path: &[u8]) -> Result<(), SnapshotError> {
        let own = self.open(path)?;
        let lower = match self.lower.root()? {
            Some(root) => open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY).ok(),
            None => None,
        };
        let copied = match lower {
            Some(lower) => copy_metadata(lower, &own),
            None => set_mode(&own, 0o755),
        };
        Ok(copied.map_err(failed("changing", path)).map_err(CopyError::from)?)
    }

    fn files(&mut self, layer: TreeDigest) -> Result<(), SnapshotError> {
        let is_file = |entry: &&Entry| matches!(entry.kind, EntryKind::File { .. });
        let entries: Vec<&Entry> = self.tree.entries().iter().filter(is_file).collect();
        let applied = match self.bytes {
            Bytes::Sealed(blob) => self.unpack(layer, blob, entries.len())?,
            Bytes::Origins(_) | Bytes::Alone(_) => {
                let this = &*self;
                let written = entries.par_iter().map(|entry| Ok((entry.path.clone(), this.file(entry)?)));
                written.collect::<Result<Vec<_>, SnapshotError>>()?
            }
        };
        for (path, applied) in applied {
            let metadata = &self.tree.get(&path).expect("it was just written").metadata;
            self.target.note_owner(&path, (metadata.uid, metadata.gid), applied);
        }
        Ok(())
    }

    /// Writes one file, and says whether the disk knows whose it is.
    fn file(&self, entry: &Entry) -> Result<Applied, SnapshotError> {
        let EntryKind::File { size, .. } = &entry.kind else { unreachable!("only files have bytes") };
        let (path, cancel) = (entry.path.as_slice(), self.snapshots.cancel());
        let file = match self.bytes {
            Bytes::Alone(root) => {
                let opened = open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK);
                let from = File::from(opened.map_err(failed("reading", path)).map_err(CopyError::from)?);
                content::write_shared(&from, *size, &self.target, path, cancel)?
            }
            Bytes::Origins(origins) => {
                let origin = origins.files.get(path).ok_or_else(|| CopyError::from(missing(path)))?;
                let node = origin.listing.nodes.get(&origin.path);
                let node = node.ok_or_else(|| CopyError::from(missing(path)))?;
                content::write(&origin.listing, &origin.path, node, &self.target, path, cancel)?
            }
            Bytes::Sealed(_) => unreachable!("unpacked as a whole"),
        };
        self.stamp_file(&file, entry)
    }

    fn stamp_file(&self, file: &File, entry: &Entry) -> Result<Applied, SnapshotError> {
        let stamp = file_stamp(entry, self.time(entry)?);
        Ok(self.target.stamp_file(file, &entry.path, &stamp)?)
    }

    /// Writes all files out of a blob.
    fn unpack(
        &self,
        layer: TreeDigest,
        blob: &sealed::SealedRecord,
        count: usize,
    ) -> Result<Vec<(Vec<u8>, Applied)>, SnapshotError> {
        let digest = blob.descriptor.digest;
        let damaged = |what: &str| SnapshotError::Sealed { layer, blob: digest, what: what.to_owned() };
        let file = self.snapshots.store().open_blob(&digest)?;
        let stream = decompress(BufReader::with_capacity(256 << 10, file));
        let mut archive = TarReader::new(stream.map_err(|error| damaged(&error.to_string()))?);
        let mut written = Vec::with_capacity(count);
        let mut entries = self.tree.entries().iter();
        while let Some(found) = archive.next_entry().map_err(|error| damaged(&error.to_string()))? {
            let Some(entry) = entries.next().filter(|entry| entry::is_that_of(&found, entry)) else {
                return Err(damaged(&format!("{} is none of its entries", shown(&found.path))));
            };
            let EntryKind::File { size, content } = &entry.kind else { continue };
            let mut bytes = Hashed { stream: archive.content(), hasher: blake3::Hasher::new() };
            let cancel = self.snapshots.cancel();
            let file = content::write_stream(&mut bytes, *size, &self.target, &entry.path, cancel)?;
            if ContentDigest::from(bytes.hasher.finalize()) != *content {
                return Err(damaged(&format!("{} holds something else", shown(&entry.path))));
            }
            written.push((entry.path.clone(), self.stamp_file(&file, entry)?));
        }
        match entries.next() {
            None => Ok(written),
            Some(missing) => Err(damaged(&format!("it lacks {}", shown(&missing.path)))),
        }
    }

    /// The time of an entry on disk.
    fn time(&self, entry: &Entry) -> Result<(i64, u32), SnapshotError> {
        let path = entry.path.as_slice();
        match (self.bytes, entry.metadata.time) {
            (Bytes::Alone(root), _) => {
                let parent = open_beneath(root, split(path).0, OFlags::PATH | OFlags::DIRECTORY);
                let stat = parent.and_then(|parent| lstat(parent, split(path).1));
                let stat = stat.map_err(failed("reading", path)).map_err(CopyError::from)?;
                Ok(stat.map_or(self.now(), |stat| (stat.st_mtime, stat.st_mtime_nsec as u32)))
            }
            (Bytes::Origins(origins), _) if origins.times.contains_key(path) => Ok(origins.times[path]),
            (_, EntryTime::Kept(seconds)) => Ok((seconds, 0)),
            (_, EntryTime::Epoch | EntryTime::Content) => Ok(self.now()),
        }
    }

    fn now(&self) -> (i64, u32) {
        (self.stamp.seconds, self.stamp.nanoseconds)
    }
}

/// Whether a file is not what was copied any more.
fn has_changed(error: &SnapshotError) -> bool {
    let SnapshotError::Files(error) = error else { return false };
    matches!(**error, CopyError::Source(ListError::Changed(_)))
}

fn missing(path: &[u8]) -> ListError {
    ListError::NotFound(shown(path))
}

fn file_stamp(entry: &Entry, time: (i64, u32)) -> FileStamp<'_> {
    let metadata = &entry.metadata;
    FileStamp { owner: (metadata.uid, metadata.gid), mode: metadata.mode, xattrs: &metadata.xattrs, time }
}

/// Hashes what is read through it.
struct Hashed<R> {
    stream: R,
    hasher: blake3::Hasher,
}

impl<R: std::io::Read> std::io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

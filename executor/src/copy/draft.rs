//! The layer of a copy, drawn up in memory: what would be written, and from that the tree that a look at the written
//! files would give ([`crate::diff`]), without writing any.
//!
//! The same rules as on disk, one for one: names lead to files, so that hard links hold when one of their names is
//! replaced; whatever changes in a directory gives it a new time, which is normalised in layers; what ends up as it
//! was below in everything but a normalised time is not in the tree. What only a disk can tell (what becomes of POSIX
//! ACLs, whether this user can make a device) is refused with [`OnDiskOnly`], and the copy is made there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use oci::{ContentDigest, Entry, EntryKind, EntryTime, Metadata, Tree, tree::TIME_LIMIT};
use rayon::prelude::*;
use solver::Cancel;

use super::{
    CopyError,
    ground::{Ground, Kind, NewFiles, Packed},
    plan::Planned,
    target::Stamp,
};
use crate::{
    beneath::{Beneath, OnDiskOnly, Seen},
    contents::{Origin, Origins},
    diff::{DiffError, entry_kind},
    listing::{
        Listing, NodeKind,
        lookup::{Found, Paths},
    },
    rootfs::{shown, split},
    users::{UserError, file_owner, workdir_owner},
};

const ACCESS_LIST: &[u8] = b"system.posix_acl_";
const DEFAULT_ACCESS_LIST: &[u8] = b"system.posix_acl_default";

/// A layer that is being drawn up.
pub struct Draft<'a> {
    below: &'a Beneath,
    sources: &'a [Arc<Listing>],
    /// What a path leads to, or that something is gone.
    names: BTreeMap<Vec<u8>, Option<usize>>,
    files: Vec<Drawn>,
    /// Directories of the file system below whose contents changed.
    entered: BTreeSet<Vec<u8>>,
}

/// Something of the layer: what a name leads to.
#[derive(Debug, Clone)]
struct Drawn {
    kind: NodeKind,
    mode: u32,
    owner: (u32, u32),
    time: Time,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether it is a directory of which nothing is below.
    is_new: bool,
    /// Of a regular file: what it is picked from.
    source: Option<Origin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    /// That of the step.
    Now,
    /// Unix seconds and nanoseconds.
    At(i64, u32),
}

impl<'a> Draft<'a> {
    /// An empty layer on top of a file system. What is copied comes from `sources`.
    pub fn new(below: &'a Beneath, sources: &'a [Arc<Listing>]) -> Self {
        Self { below, sources, names: BTreeMap::new(), files: Vec::new(), entered: BTreeSet::new() }
    }

    fn drawn(&self, path: &[u8]) -> Option<&Drawn> {
        let index = (*self.names.get(path)?)?;
        Some(&self.files[index])
    }

    /// Whether nothing of the file system below can be at a path.
    fn hides_below(&self, path: &[u8]) -> bool {
        self.drawn(split(path).0).is_some_and(|parent| parent.is_new)
    }

    fn seen(&self, path: &[u8]) -> Result<Option<Seen>, CopyError> {
        if self.hides_below(path) { Ok(None) } else { self.below.look(path) }
    }

    fn put(&mut self, path: &[u8], drawn: Drawn) -> Result<(), CopyError> {
        self.enter(split(path).0)?;
        self.names.insert(path.to_vec(), Some(self.files.len()));
        self.files.push(drawn);
        Ok(())
    }

    /// Something changes in a directory.
    fn enter(&mut self, dir: &[u8]) -> Result<(), CopyError> {
        if let Some(Some(index)) = self.names.get(dir) {
            let drawn = &mut self.files[*index];
            drawn.time = Time::Now;
            return refuse_inherited(&drawn.xattrs);
        }
        if self.entered.contains(dir) {
            return Ok(());
        }
        if !dir.is_empty()
            && let Some(seen) = self.below.look(dir)?
        {
            refuse_inherited(&self.below.xattrs(dir, &seen)?)?;
        }
        self.entered.insert(dir.to_vec());
        Ok(())
    }

    /// What is at a path, to be changed: a directory of the file system below becomes one of the layer.
    fn adopt(&mut self, path: &[u8]) -> Result<&mut Drawn, CopyError> {
        let index = match self.names.get(path) {
            Some(Some(index)) => *index,
            _ => {
                let seen = self.below.look(path)?.ok_or(OnDiskOnly("a path that is gone"))?;
                let xattrs = self.below.xattrs(path, &seen)?;
                let Seen { mode, owner, seconds, .. } = seen;
                let kind = seen.kind.ok_or(OnDiskOnly("a socket"))?;
                let time = if self.entered.contains(path) { Time::Now } else { Time::At(seconds, 0) };
                self.files.push(Drawn { kind, mode, owner, time, xattrs, is_new: false, source: None });
                self.names.insert(path.to_vec(), Some(self.files.len() - 1));
                self.files.len() - 1
            }
        };
        Ok(&mut self.files[index])
    }

    /// The layer that has been drawn.
    ///
    /// # Errors
    /// A name that no layer can hold; or the file system below cannot be read.
    pub fn finish(self, cancel: &Cancel) -> Result<Planned, CopyError> {
        let mut entries = Vec::new();
        let mut groups: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
        for (path, index) in &self.names {
            match index {
                None if self.seen(path)?.is_some() => entries.push(Entry {
                    path: path.clone(),
                    kind: EntryKind::Whiteout,
                    metadata: Metadata::default(),
                }),
                None => {}
                Some(_) if split(path).1.starts_with(b".wh.") => {
                    return Err(DiffError::WhiteoutName(format!("/{}", shown(path))).into());
                }
                Some(index) => groups.entry(*index).or_default().push(path),
            }
        }
        let mut origins = Origins::default();
        let changed = groups.par_iter().map(|(index, names)| {
            if cancel.is_requested() {
                return Err(CopyError::Cancelled);
            }
            Ok(!self.is_unchanged(&self.files[*index], names, cancel)?)
        });
        let changed: Vec<bool> = changed.collect::<Result<_, _>>()?;
        for ((index, names), _) in groups.iter().zip(changed).filter(|(_, changed)| *changed) {
            self.files[*index].enter(names, &mut entries, &mut origins);
        }
        let tree = Tree::new(entries).map_err(DiffError::from)?;
        Ok(Planned { tree, origins })
    }

    /// Whether something is, under all its names, what was there before: all but a normalised time.
    fn is_unchanged(&self, drawn: &Drawn, names: &[&[u8]], cancel: &Cancel) -> Result<bool, CopyError> {
        let mut first: Option<Seen> = None;
        for path in names {
            let Some(seen) = self.seen(path)?.filter(|seen| drawn.looks_like(seen)) else { return Ok(false) };
            match &first {
                Some(first) if first.file != seen.file => return Ok(false),
                Some(_) => {}
                None => first = Some(seen),
            }
        }
        let (path, seen) = (names[0], first.expect("a file has a name"));
        match &drawn.kind {
            NodeKind::Directory => Ok(drawn.xattrs == self.below.xattrs(path, &seen)?),
            NodeKind::File { content, .. } => Ok(drawn.xattrs == self.below.xattrs(path, &seen)?
                && *content == Some(self.below.content(path, &seen, cancel)?)),
            _ => Ok(drawn.xattrs == self.below.xattrs(path, &seen)?),
        }
    }
}

impl Drawn {
    fn new(kind: NodeKind, mode: u32) -> Self {
        let (owner, time, xattrs) = ((0, 0), Time::Now, BTreeMap::new());
        Self { kind, mode, owner, time, xattrs, is_new: true, source: None }
    }

    /// Kind, mode, owner, kept time, link target; of files the size.
    fn looks_like(&self, seen: &Seen) -> bool {
        let same_kind = match (&self.kind, &seen.kind) {
            (NodeKind::File { size, .. }, Some(NodeKind::File { size: before, .. })) => size == before,
            (kind, before) => Some(kind) == before.as_ref(),
        };
        let same_mode = matches!(self.kind, NodeKind::Symlink { .. }) || self.mode == seen.mode;
        // A normalised time is no change, whatever was there before.
        let same_time = self.kept_time().is_none_or(|kept| kept == seen.seconds);
        same_kind && same_mode && self.owner == seen.owner && same_time
    }

    fn kept_time(&self) -> Option<i64> {
        match self.time {
            Time::At(seconds, _) => Some(seconds).filter(|seconds| *seconds < TIME_LIMIT),
            Time::Now => None,
        }
    }

    fn stamp(&mut self, stamp: &Stamp<'_>) -> Result<(), CopyError> {
        if stamp.xattrs.keys().any(|name| name.starts_with(ACCESS_LIST)) {
            return Err(OnDiskOnly("a POSIX ACL").into());
        }
        self.owner = stamp.owner;
        self.time = Time::At(stamp.time.0, stamp.time.1);
        if !matches!(self.kind, NodeKind::Symlink { .. }) {
            self.mode = stamp.mode;
        }
        self.xattrs.extend(stamp.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())));
        Ok(())
    }

    /// Adds what it is to a layer, under all its names.
    fn enter(&self, names: &[&[u8]], entries: &mut Vec<Entry>, origins: &mut Origins) {
        let (first, others) = names.split_first().expect("a file has a name");
        let (kind, is_file) = match &self.kind {
            NodeKind::File { size, content } => {
                let content = content.unwrap_or(ContentDigest::of(b""));
                (EntryKind::File { size: *size, content }, true)
            }
            kind => (entry_kind(kind), false),
        };
        let time = match self.kept_time() {
            Some(kept) => EntryTime::Kept(kept),
            None if is_file => EntryTime::Content,
            None => EntryTime::Epoch,
        };
        let mode = if matches!(self.kind, NodeKind::Symlink { .. }) { 0o777 } else { self.mode };
        let metadata =
            Metadata { mode, uid: self.owner.0, gid: self.owner.1, time, xattrs: self.xattrs.clone() };
        // A kept time is on disk as it is in the layer: in whole seconds.
        if let Time::At(seconds, nanoseconds) = self.time
            && self.kept_time().is_none()
        {
            origins.times.insert(first.to_vec(), (seconds, nanoseconds));
        }
        if let Some(source) = &self.source {
            origins.files.insert(first.to_vec(), source.clone());
        }
        for name in others {
            let kind = EntryKind::HardLink { target: first.to_vec() };
            entries.push(Entry { path: name.to_vec(), kind, metadata: metadata.clone() });
        }
        entries.push(Entry { path: first.to_vec(), kind, metadata });
    }
}

/// What a directory hands down to new files: the disk works that out.
fn refuse_inherited(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), CopyError> {
    match xattrs.contains_key(DEFAULT_ACCESS_LIST) {
        true => Err(OnDiskOnly("a default ACL").into()),
        false => Ok(()),
    }
}

impl Paths for Draft<'_> {
    type Error = CopyError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, CopyError> {
        let kind = match self.names.get(path) {
            Some(None) => return Ok(None),
            Some(Some(index)) => &self.files[*index].kind,
            None if self.hides_below(path) => return Ok(None),
            None => return self.below.find(path),
        };
        Ok(Some(match kind {
            NodeKind::Directory => Found::Directory,
            NodeKind::Symlink { target } => Found::Link(target.clone()),
            _ => Found::Other,
        }))
    }

    fn told(&self, path: &[u8]) -> String {
        format!("/{}", shown(path).trim_start_matches('/'))
    }
}

impl Ground for Draft<'_> {
    fn kind_at(&self, path: &[u8]) -> Result<Option<Kind>, CopyError> {
        Ok(self.find(path)?.map(Kind::from))
    }

    fn old_kind_at(&self, path: &[u8]) -> Result<Option<Kind>, CopyError> {
        self.kind_at(path)
    }

    fn forget_made(&mut self) {}

    fn make_dir(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError> {
        self.put(path, Drawn::new(NodeKind::Directory, mode))
    }

    fn set_owner(&mut self, path: &[u8], owner: (u32, u32)) -> Result<(), CopyError> {
        self.adopt(path)?.owner = owner;
        Ok(())
    }

    fn change_mode(&mut self, path: &[u8], mode: u32) -> Result<(), CopyError> {
        self.adopt(path)?.mode = mode;
        Ok(())
    }

    fn unlink(&mut self, path: &[u8]) -> Result<(), CopyError> {
        self.enter(split(path).0)?;
        self.names.insert(path.to_vec(), None);
        Ok(())
    }

    fn create_node(&mut self, path: &[u8], kind: &NodeKind) -> Result<(), CopyError> {
        match kind {
            NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } => Err(OnDiskOnly("a device").into()),
            kind => self.put(path, Drawn::new(kind.clone(), 0o600)),
        }
    }

    fn create_files(&mut self, new: NewFiles<'_>, cancel: &Cancel) -> Result<(), CopyError> {
        let listing = self.sources.iter().find(|source| std::ptr::eq(source.as_ref(), new.listing));
        let listing = listing.expect("what is copied comes from the sources").clone();
        for (source, path, node) in new.files {
            if cancel.is_requested() {
                return Err(CopyError::Cancelled);
            }
            let NodeKind::File { content: Some(_), .. } = &node.kind else {
                return Err(OnDiskOnly("a file that was not read yet").into());
            };
            let mut drawn = Drawn::new(node.kind.clone(), 0o600);
            drawn.source = Some(Origin { listing: Arc::clone(&listing), path: source.clone() });
            drawn.stamp(&(new.stamp)(node))?;
            self.put(path, drawn)?;
        }
        Ok(())
    }

    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<(), CopyError> {
        let file = *self.names.get(existing).expect("links are made to what was copied before");
        self.enter(split(path).0)?;
        self.names.insert(path.to_vec(), file);
        Ok(())
    }

    fn stamp(&mut self, path: &[u8], stamp: &Stamp<'_>) -> Result<(), CopyError> {
        self.adopt(path)?.stamp(stamp)
    }

    fn unpack(&mut self, _: Packed<'_>, _: &Cancel) -> Result<(), CopyError> {
        Err(OnDiskOnly("an archive").into())
    }

    fn file_owner(&self, owner: &str) -> Result<(u32, u32), UserError> {
        file_owner(self.below, owner)
    }

    fn workdir_owner(&self, owner: &str, warn: &dyn Fn(UserError)) -> Result<(u32, u32), UserError> {
        workdir_owner(self.below, owner, warn)
    }
}

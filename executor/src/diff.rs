//! From an overlay's upper directory, or a whole copy that a step has changed, to the tree of a layer: what a step changed,
//! and nothing else.
//!
//! - What equals the file system below in everything but a normalised time is no change: a directory that was
//!   touched or only led to a change, a file that was copied up and written back as it was.
//! - What is gone is a whiteout for each name. Overlay's opaque directories become that too, name by name, as the
//!   image-spec recommends (layer.md, "Opaque Whiteout": "SHOULD ... explicit"): so a directory that was removed and made
//!   anew is the same layer however the file system noted it down. Nothing hides what is not there.
//! - Names of one file are one entry and links to it, whose target is the first name in byte order. A file of which
//!   any name changed is there with all its names.
//! - A file that a directory made anew keeps in sight is unchanged only if it has all the names that the one below has: two equal
//!   files are no change from two names of one only where those show again.
//! - Sockets are left out. (The mount points that the sandbox has to make it takes away itself.)
//! - Extended attributes are those that [reach layers](crate::rootfs::reaches_layer).
//! - What an opaque directory is says the mark of this mount; the other family's is an attribute like any other.
//! - Of a whole copy everything is compared but what nobody has touched; what is the same inode as before stands for what an
//!   overlay would have left in the layer below, and a directory that is another one for an opaque one.
//! - The root directory itself is no entry: a step's change of its mode or owner is lost, as with BuildKit.
//!
//! **Times.** A time below [`TIME_LIMIT`] is kept. Any other is normalised: [`EntryTime::Content`] for regular files that
//! were brought by COPY or ADD, by this step or, told by their content, by an earlier one; [`EntryTime::Epoch`] else.
//! `--timestamps=preserve` keeps all, and then a touched file is a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, Metadata, Tree,
    tree::{TIME_LIMIT, TreeError},
};
use rayon::prelude::*;
use rustix::fs::{Mode, OFlags};
use solver::{Cancel, op::Timestamps};

use crate::{
    copies::Twins,
    listing::{NodeKind, Owners},
    mount::OverlayMarks,
    rootfs::{PathError, failed},
};

mod compare;
mod parted;
mod settle;
mod walk;

use compare::{Content, Leader};
use parted::Copied;
use walk::{Found, Present};

/// How the times of a step's files enter its layer.
#[derive(Debug, Clone, Copy)]
pub struct TimeRules<'a> {
    /// Whether times are normalised at all.
    pub timestamps: Timestamps,
    /// Which regular files were brought by COPY or ADD.
    pub brought: Brought<'a>,
}

/// How a directory says what a step did.
#[derive(Debug, Clone, Copy)]
pub enum UpperKind<'a> {
    /// As overlayfs writes it down, with these marks on opaque directories.
    Overlay(OverlayMarks),
    /// It is all of the file system: a copy of the one below that the step has changed.
    Copy(&'a Twins),
}

/// What a step wrote.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// The directory.
    pub path: &'a Path,
    /// How it says so.
    pub kind: UpperKind<'a>,
    /// Owners that the step's disk could not hold.
    pub owners: &'a Owners,
}

/// Which regular files of a step were brought by COPY or ADD, and so get a time derived from their content.
#[derive(Debug, Clone, Copy)]
pub enum Brought<'a> {
    /// All: the step is a COPY or ADD.
    All,
    /// Those with these contents, which came with an earlier step.
    Contents(&'a BTreeSet<ContentDigest>),
}

/// The file system that a step started from.
#[derive(Debug, Clone, Copy)]
pub struct Lower<'a> {
    /// Its root directory.
    pub root: BorrowedFd<'a>,
    /// Owners that its disk could not hold.
    pub owners: &'a Owners,
}

/// What a step changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The layer.
    pub tree: Tree,
    /// Contents of its files with [`EntryTime::Content`].
    pub brought: BTreeSet<ContentDigest>,
    /// The names of a file, in a copy, that an overlay would have parted from each other; none of one that is gone since.
    pub held_together: Option<Vec<Vec<u8>>>,
}

/// Why an upper directory is not a layer.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A device that says in the store that a file is gone. On an overlay nobody can make one.
    #[error("{0} cannot be part of a layer: a character device 0:0 is overlayfs's mark of a removed file")]
    WhiteoutDevice(String),
    /// A file's name says in a layer that another file is gone (image-spec, layer.md, "Whiteouts").
    #[error("{0} cannot be part of a layer: names that begin with .wh. stand for removed files")]
    WhiteoutName(String),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The system said no.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The entries do not make a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Reads what a step wrote on top of `lower`, and takes out of the upper directory what turned out to be no change.
/// Nothing may be mounted on it any more, and afterwards it is a layer below others, never again one that overlay writes into:
/// it would take a file that was copied up and moved for the one it was copied from, where that shows again. Stops when
/// `cancel` asks.
///
/// # Errors
/// See [`DiffError`].
pub fn scan(
    upper: Upper<'_>,
    lower: Lower<'_>,
    rules: TimeRules<'_>,
    cancel: &Cancel,
) -> Result<Changes, DiffError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(upper.path, flags, Mode::empty()).map_err(failed("opening the changes of", b"/"))?;
    let found = walk::walk(&root, upper, lower, cancel)?;
    let mut builder = Builder {
        root,
        lower,
        twins: match upper.kind {
            UpperKind::Copy(twins) => Some(twins),
            UpperKind::Overlay(_) => None,
        },
        rules,
        changes: Vec::new(),
        unchanged: BTreeSet::new(),
        brought: BTreeSet::new(),
        held_together: None,
    };
    builder.directories_and_whiteouts(&found)?;
    builder.files(&found, cancel)?;
    let Builder { root, changes, unchanged, brought, mut held_together, twins, .. } = builder;
    if let Some(twins) = twins
        && twins.has_lost_a_changed_one().map_err(failed("looking at the changes of", b"/"))?
    {
        held_together.get_or_insert_default();
    }
    settle::settle(&root, upper.kind, &found, &unchanged, rules.timestamps)?;
    Ok(Changes { tree: Tree::new(changes)?, brought, held_together })
}

/// Everything in an upper directory by path, and what it hides.
type Changed = BTreeMap<Vec<u8>, Found>;

struct Builder<'a> {
    root: OwnedFd,
    lower: Lower<'a>,
    /// Of a copy.
    twins: Option<&'a Twins>,
    rules: TimeRules<'a>,
    changes: Vec<Entry>,
    unchanged: BTreeSet<&'a [u8]>,
    brought: BTreeSet<ContentDigest>,
    held_together: Option<Vec<Vec<u8>>>,
}

impl<'a> Builder<'a> {
    fn directories_and_whiteouts(&mut self, found: &'a Changed) -> Result<(), DiffError> {
        for (path, found) in found {
            let (kind, metadata) = match found {
                Found::Gone => (EntryKind::Whiteout, Metadata::default()),
                Found::Present(present) if present.is_directory() => {
                    if compare::directory_is_unchanged(self.lower, path, present, self.rules.timestamps)? {
                        self.unchanged.insert(path);
                        continue;
                    }
                    (EntryKind::Directory, self.metadata(present, None))
                }
                Found::Present(present) if present.kind.is_none() && present.before.is_some() => {
                    (EntryKind::Whiteout, Metadata::default())
                }
                Found::Present(_) => continue,
            };
            self.changes.push(Entry { path: path.clone(), kind, metadata });
        }
        Ok(())
    }

    /// Everything else, file by file with all its names. Files are read several at a time.
    fn files(&mut self, found: &'a Changed, cancel: &Cancel) -> Result<(), DiffError> {
        let leaders = compare::leaders(found);
        let (root, lower, timestamps) = (self.root.as_fd(), self.lower, self.rules.timestamps);
        let read = leaders.par_iter().map(|leader| compare::read(root, lower, leader, timestamps, cancel));
        let read = read.collect::<Result<Vec<_>, DiffError>>()?;
        for (leader, content) in leaders.iter().zip(read) {
            if let (Some(twins), None) = (self.twins, &self.held_together) {
                let copied = Copied { root: self.root.as_fd(), original: lower.root, twins };
                self.held_together = copied.held_together(leader, content.is_some())?;
            }
            match content {
                Some(content) => self.add_file(leader, content),
                None => self.unchanged.extend(&leader.names),
            }
        }
        Ok(())
    }

    fn add_file(&mut self, leader: &Leader<'_>, content: Content) {
        let (first, others) = leader.names.split_first().expect("a file has a name");
        let (kind, xattrs) = match (&leader.present.kind, content) {
            (_, Content::Bytes { size, digest, xattrs }) => {
                (EntryKind::File { size, content: digest }, xattrs)
            }
            (Some(kind), Content::None) => (entry_kind(kind), leader.present.xattrs.clone()),
            (None, Content::None) => unreachable!("a socket leads nothing"),
        };
        let digest = match &kind {
            EntryKind::File { content, .. } => Some(*content),
            _ => None,
        };
        let metadata = Metadata { xattrs, ..self.metadata(leader.present, digest) };
        for name in others {
            let kind = EntryKind::HardLink { target: first.to_vec() };
            self.changes.push(Entry { path: name.to_vec(), kind, metadata: metadata.clone() });
        }
        self.changes.push(Entry { path: first.to_vec(), kind, metadata });
    }

    fn metadata(&mut self, present: &Present, content: Option<ContentDigest>) -> Metadata {
        let Present { stat, mode, owner: (uid, gid), xattrs, .. } = present;
        let time = self.time(stat.st_mtime, content);
        Metadata { mode: *mode, uid: *uid, gid: *gid, time, xattrs: xattrs.clone() }
    }

    fn time(&mut self, seconds: i64, content: Option<ContentDigest>) -> EntryTime {
        if let Some(kept) = kept_time(seconds, self.rules.timestamps) {
            return EntryTime::Kept(kept);
        }
        let is_brought = |content: &ContentDigest| match self.rules.brought {
            Brought::All => true,
            Brought::Contents(contents) => contents.contains(content),
        };
        match content.filter(is_brought) {
            Some(content) => {
                self.brought.insert(content);
                EntryTime::Content
            }
            None => EntryTime::Epoch,
        }
    }
}

/// The entry of something without bytes.
pub(crate) fn entry_kind(kind: &NodeKind) -> EntryKind {
    match kind {
        NodeKind::Directory => EntryKind::Directory,
        NodeKind::Symlink { target } => EntryKind::Symlink { target: target.clone() },
        NodeKind::CharDevice { major, minor } => EntryKind::CharDevice { major: *major, minor: *minor },
        NodeKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major: *major, minor: *minor },
        NodeKind::Fifo => EntryKind::Fifo,
        NodeKind::File { .. } => unreachable!("a file has bytes"),
    }
}

fn go_on(cancel: &Cancel) -> Result<(), DiffError> {
    if cancel.is_requested() { Err(DiffError::Cancelled) } else { Ok(()) }
}

/// The time that is kept, if it is; in a layer there are whole seconds.
fn kept_time(seconds: i64, timestamps: Timestamps) -> Option<i64> {
    match timestamps {
        Timestamps::Preserve => Some(seconds),
        Timestamps::Auto => Some(seconds).filter(|seconds| *seconds < TIME_LIMIT),
    }
}

#[cfg(test)]
mod alike;
#[cfg(test)]
mod tests;

//! The contents of a context's files: remembered where nothing has changed, else read, several at a time.
//!
//! What is read is one state of a file, or nothing: a file that has another state after it was read than before is
//! read again, and after a few times given up as [`ListError::Changed`].

use std::{fs::File, os::fd::BorrowedFd};

use oci::ContentDigest;
use rayon::prelude::*;
use rustix::fs::fstat;
use solver::Cancel;

use super::{
    CAPABILITY,
    clock::Horizon,
    index::{Index, Known},
};
use crate::{
    listing::{
        ListError, Node, NodeKind,
        disk::inode,
        hash_until, open_regular,
        state::FileState,
        walk::{Seen, is_unread},
    },
    rootfs::{failed, permissions, shown, xattr},
};

/// So often a file is read that changes all the time.
const TRIES: usize = 5;
/// So many files are looked up in the index by one thread.
const FILES_A_THREAD: usize = 512;

/// Completes the nodes of regular files. `seen` is in the order of its paths. Says whether the states in which they were
/// seen are such as are remembered: no file was read in another state, and none was written to after the horizon.
///
/// # Errors
/// A file cannot be read or changes all the time; or `cancel` asks to stop.
pub fn complete(
    root: BorrowedFd<'_>,
    seen: &mut [Seen],
    index: &Index,
    cancel: &Cancel,
) -> Result<bool, ListError> {
    let horizon = Horizon::of(root).map_err(failed("reading", b"/"))?;
    complete_after(root, seen, index, cancel, &horizon)
}

/// As above; what was written to after the horizon is not remembered for later builds.
pub(super) fn complete_after(
    root: BorrowedFd<'_>,
    seen: &mut [Seen],
    index: &Index,
    cancel: &Cancel,
    horizon: &Horizon,
) -> Result<bool, ListError> {
    let is_before = |thing: &Seen| thing.state.is_none_or(|state| horizon.is_before(&state));
    let settled = seen.par_chunks_mut(FILES_A_THREAD).map(|seen| {
        recall(seen, index);
        seen.iter().all(is_before)
    });
    let settled = settled.reduce(|| true, |one, other| one && other);
    let unknown: Vec<&mut Seen> = seen.iter_mut().filter(|thing| is_unread(&thing.node)).collect();
    if unknown.is_empty() {
        return Ok(settled);
    }
    let read = unknown.into_par_iter().map(|thing| {
        let known = read(root, thing, cancel)?;
        // Where the length is not what the system says (files of /proc), nothing else it says can be relied on.
        let is_told = thing.size() == Some(known.state.size);
        let alike = if thing.state == Some(known.state) { Alike::AsSeen } else { Alike::Another };
        Ok(is_told.then(|| (thing.path.clone(), known, alike)))
    });
    let read = read.collect::<Result<Vec<_>, ListError>>()?;
    let as_seen = read.iter().all(|read| matches!(read, Some((_, _, Alike::AsSeen))));
    index.learn(read.into_iter().flatten().map(|(path, known, _)| (path, known)), horizon);
    Ok(settled && as_seen)
}

/// Whether a file was read in the state in which it was seen.
enum Alike {
    AsSeen,
    Another,
}

/// Completes what is remembered.
fn recall(seen: &mut [Seen], index: &Index) {
    let mut cursor = index.cursor();
    for Seen { path, node, state, .. } in seen {
        let Some(state) = state else { continue };
        if let Some(known) = cursor.find(path, state).or_else(|| index.learned(path, state)) {
            complete_node(node, state.size, known);
        }
    }
}

fn complete_node(node: &mut Node, length: u64, Known { content, capability, .. }: Known) {
    node.kind = NodeKind::File { size: length, content: Some(content) };
    node.xattrs = capability.into_iter().map(|value| (CAPABILITY.to_vec(), value)).collect();
}

/// Reads a file, and takes the node to be what was read: the file may be another one by now than when it was listed.
fn read(root: BorrowedFd<'_>, thing: &mut Seen, cancel: &Cancel) -> Result<Known, ListError> {
    let Seen { path, node, .. } = thing;
    for _ in 0..TRIES {
        let file = open_regular(root, path)?;
        let before = fstat(&file).map_err(failed("reading", path))?;
        let state = FileState::of(&before);
        let (length, content) = content(&file, path, state.size, cancel)?;
        let capability = xattr(&file, CAPABILITY).map_err(failed("reading the capabilities of", path))?;
        let after = fstat(&file).map_err(failed("reading", path))?;
        if FileState::of(&after) != state {
            continue;
        }
        let known = Known { state, content, capability };
        complete_node(node, length, known.clone());
        (node.mode, node.inode) = (permissions(&before), inode(&node.kind, &before));
        (node.seconds, node.nanoseconds) = (before.st_mtime, before.st_mtime_nsec as u32);
        return Ok(known);
    }
    Err(ListError::Changed(shown(path)))
}

fn content(file: &File, path: &[u8], size: u64, cancel: &Cancel) -> Result<(u64, ContentDigest), ListError> {
    let mut hasher = blake3::Hasher::new();
    let length = hash_until(file, path, size, &mut hasher, cancel)?;
    Ok((length, hasher.finalize().into()))
}

impl Seen {
    fn size(&self) -> Option<u64> {
        match self.node.kind {
            NodeKind::File { size, .. } => Some(size),
            _ => None,
        }
    }
}

//! Walks what was picked of a directory on disk, several directories at a time.
//!
//! The tree is taken level by level, so that depth costs neither stack nor open directories; a large directory is split
//! among threads, too. What the rules leave out is not looked at, where the directory itself says what it is. The order
//! in which things are found reaches nobody: [`settle`] sorts them.

use std::{collections::BTreeSet, ffi::CStr, os::fd::OwnedFd};

use rayon::prelude::*;
use rustix::{
    fs::{Dir, FileType},
    io::Errno,
};
use solver::pattern::ignore::{Matcher, Verdict};

use super::{
    ListError, Node, NodeKind,
    disk::{Disk, DiskKind, Sight, go_on},
    filter::{Admission, Filter},
    state::FileState,
};
use crate::rootfs::{failed, file_type, lstat, shown, split};

/// So many names of one directory are looked at by one thread.
const NAMES_A_THREAD: usize = 256;

/// Something that a walk came across.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where, from the source's root.
    pub path: Vec<u8>,
    /// What.
    pub node: Node,
    /// Of regular files: the state they were in.
    pub state: Option<FileState>,
    /// Why it is listed.
    pub standing: Standing,
}

/// Why something is listed. Where a path is listed twice, the first of these counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is picked.
    Picked,
    /// It is a directory on the way to something that is picked, or might be.
    Way,
    /// It is a directory that was named itself: nothing but its being there matters.
    Named,
}

/// A directory that is still to be read.
struct Directory {
    path: Vec<u8>,
    /// What the ignore rules say of it, where there are any.
    verdict: Option<Verdict>,
}

/// What a name stands for; a directory is still to be read.
type Found = (Seen, Option<Directory>);

/// A name of a directory.
struct Entry {
    path: Vec<u8>,
    /// Whether it is a directory, where the file system says so.
    is_directory: Option<bool>,
}

/// Adds everything below `at` that is admitted.
///
/// # Errors
/// A directory cannot be read, or is gone by now; or it is time to stop.
pub fn walk(disk: &Disk<'_>, at: &[u8], filter: &Filter, sight: &mut Sight) -> Result<(), ListError> {
    let verdict = disk.ignore().map(|ignore| verdict(ignore, at));
    let mut level = vec![Directory { path: at.to_vec(), verdict }];
    while !level.is_empty() {
        let read = level.par_iter().map(|directory| disk.read(at, directory, filter));
        let read = read.collect::<Result<Vec<_>, ListError>>()?;
        sight.directories.extend(level.drain(..).map(|directory| directory.path));
        for (thing, directory) in read.into_iter().flatten().flatten() {
            sight.seen.push(thing);
            level.extend(directory);
        }
    }
    Ok(())
}

/// Sorts what was seen by path, each path once, without the directories that lead to nothing.
pub fn settle(seen: &mut Vec<Seen>) {
    seen.sort_by(|a, b| a.path.cmp(&b.path).then(a.standing.cmp(&b.standing)));
    if seen.iter().any(|thing| thing.standing == Standing::Way) {
        forget_ways_to_nothing(seen);
    }
    seen.dedup_by(|later, first| later.path == first.path);
}

fn forget_ways_to_nothing(seen: &mut Vec<Seen>) {
    let mut used: BTreeSet<&[u8]> = BTreeSet::new();
    for thing in seen.iter().filter(|thing| thing.standing != Standing::Way) {
        let mut parent = split(&thing.path).0;
        while !parent.is_empty() && used.insert(parent) {
            parent = split(parent).0;
        }
    }
    let kept = seen.iter().map(|thing| thing.standing != Standing::Way || used.contains(&thing.path[..]));
    let mut kept = kept.collect::<Vec<_>>().into_iter();
    seen.retain(|_| kept.next().unwrap_or(false));
}

/// What the ignore rules say of a path, seen from the root.
fn verdict(ignore: &Matcher, path: &[u8]) -> Verdict {
    let path = String::from_utf8_lossy(path);
    let slashes = path.match_indices('/').map(|(at, _)| at);
    let ends = slashes.chain((!path.is_empty()).then_some(path.len()));
    ends.fold(ignore.root(), |parent, end| ignore.enter(&parent, &path[..end]))
}

impl Disk<'_> {
    fn ignore(&self) -> Option<&Matcher> {
        match self.kind {
            DiskKind::Context { ignore } => ignore,
            DiskKind::Snapshot { .. } => None,
        }
    }

    /// What is admitted of a directory's names, with those that are directories themselves.
    fn read(
        &self,
        at: &[u8],
        directory: &Directory,
        filter: &Filter,
    ) -> Result<Vec<Option<Found>>, ListError> {
        let opened = self.open_directory(&directory.path)?;
        let entries = entries(&opened, &directory.path)?;
        let look = |entry| self.entry(at, &opened, directory, filter, entry);
        entries.into_par_iter().with_min_len(NAMES_A_THREAD).map(look).collect()
    }

    fn entry(
        &self,
        at: &[u8],
        opened: &OwnedFd,
        directory: &Directory,
        filter: &Filter,
        entry: Entry,
    ) -> Result<Option<Found>, ListError> {
        go_on(self.cancel)?;
        let Entry { path, is_directory } = entry;
        let mut ruled = is_directory.map(|kind| (kind, self.rule(at, directory, &path, kind, filter)));
        if matches!(ruled, Some((_, (Admission::No, _)))) {
            return Ok(None);
        }
        let Some(stat) = lstat(opened, split(&path).1).map_err(failed("reading", &path))? else {
            return Err(ListError::Changed(shown(&path)));
        };
        let is_directory = file_type(&stat) == FileType::Directory;
        // It may have become something else since the directory was read.
        let (_, (admission, verdict)) = ruled
            .take_if(|(kind, _)| *kind == is_directory)
            .unwrap_or_else(|| (is_directory, self.rule(at, directory, &path, is_directory, filter)));
        let standing = match admission {
            Admission::No => return Ok(None),
            Admission::Yes => Standing::Picked,
            Admission::AsParent => Standing::Way,
        };
        let Some(node) = self.node(opened, &path, &stat)? else { return Ok(None) };
        let below = is_directory.then(|| Directory { path: path.clone(), verdict });
        let is_file = file_type(&stat) == FileType::RegularFile;
        let state = is_file.then(|| FileState::of(&stat));
        Ok(Some((Seen { path, node, state, standing }, below)))
    }

    /// What the ignore rules and the filter together say of a name in a directory.
    fn rule(
        &self,
        at: &[u8],
        directory: &Directory,
        path: &[u8],
        is_directory: bool,
        filter: &Filter,
    ) -> (Admission, Option<Verdict>) {
        let (scope, verdict) = match (self.ignore(), &directory.verdict) {
            (Some(ignore), Some(parent)) => {
                let path = String::from_utf8_lossy(path);
                let verdict = ignore.enter(parent, &path);
                (scope(ignore, &verdict, &path, is_directory), Some(verdict))
            }
            _ => (Admission::Yes, None),
        };
        let relative = path[at.len()..].strip_prefix(b"/").unwrap_or(&path[at.len()..]);
        let filtered = if is_directory { filter.directory(relative) } else { filter.file(relative) };
        let admission = match (scope, filtered) {
            (Admission::No, _) | (_, Admission::No) => Admission::No,
            (Admission::Yes, Admission::Yes) => Admission::Yes,
            _ => Admission::AsParent,
        };
        (admission, verdict)
    }

    /// Whether the ignore rules leave a path in the context.
    pub(super) fn scope(&self, path: &[u8], is_directory: bool) -> Admission {
        let Some(ignore) = self.ignore() else { return Admission::Yes };
        scope(ignore, &verdict(ignore, path), &String::from_utf8_lossy(path), is_directory)
    }
}

fn scope(ignore: &Matcher, verdict: &Verdict, path: &str, is_directory: bool) -> Admission {
    match (verdict.excluded(), is_directory) {
        (false, _) => Admission::Yes,
        (true, true) if !ignore.can_prune_at(verdict, path) => Admission::AsParent,
        _ => Admission::No,
    }
}

/// The names in a directory, in its own order.
fn entries(opened: &OwnedFd, dir: &[u8]) -> Result<Vec<Entry>, ListError> {
    let mut entries = Vec::new();
    let unreadable = |error: Errno| failed("reading directory", dir)(error);
    for entry in Dir::read_from(opened).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = CStr::to_bytes(entry.file_name());
        if name == b"." || name == b".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Unknown => None,
            kind => Some(kind == FileType::Directory),
        };
        entries.push(Entry { path: crate::rootfs::join(dir, name), is_directory });
    }
    Ok(entries)
}

/// A file's node that nobody has looked into yet.
pub fn is_unread(node: &Node) -> bool {
    matches!(node.kind, NodeKind::File { content: None, .. })
}

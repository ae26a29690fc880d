//! Walks what was picked of a place with directories, several of them at a time.
//!
//! The tree is taken level by level, so that depth costs neither stack nor open directories; a large directory is split
//! among threads, too. What the rules leave out is not looked at, where the directory itself says what it is. The order
//! in which things are found reaches nobody: [`settle`] sorts them.

use std::collections::BTreeSet;

use rayon::prelude::*;
use solver::pattern::ignore::{Matcher, Verdict};

use super::{
    ListError, Node, NodeKind,
    filter::{Admission, Filter},
    sight::{Entry, Sight, Terrain, go_on},
    state::FileState,
};
use crate::rootfs::{shown, split};

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

/// Adds everything below `at` that is admitted.
///
/// # Errors
/// A directory cannot be read, or is gone by now; or it is time to stop.
pub fn walk<T: Terrain>(terrain: &T, at: &[u8], filter: &Filter, sight: &mut Sight) -> Result<(), ListError> {
    let verdict = terrain.ignore().map(|ignore| verdict(ignore, at));
    let mut level = vec![Directory { path: at.to_vec(), verdict }];
    while !level.is_empty() {
        let read = level.par_iter().map(|directory| Walk { terrain, at, filter }.read(directory));
        let read = read.collect::<Result<Vec<_>, ListError>>()?;
        sight.directories.extend(level.drain(..).map(|directory| directory.path));
        for (things, directories) in read {
            sight.lists.push(things);
            level.extend(directories);
        }
    }
    Ok(())
}

/// Appends what is in directories, each list in the order of its paths, in the order of all paths. Each thing is moved
/// once: what lies between two names of a directory is one subtree or more, so that few pieces have to be sorted.
pub(super) fn append_in_order(lists: Vec<Vec<Seen>>, seen: &mut Vec<Seen>) {
    let mut pieces: Vec<(&[u8], usize, usize)> = Vec::new();
    for (number, list) in lists.iter().enumerate() {
        // Directories whose content is still to come.
        let mut open: Vec<&[u8]> = Vec::new();
        for (at, thing) in list.iter().enumerate() {
            let path = thing.path.as_slice();
            let still_open = open.len();
            open.retain(|dir| !is_after_content(path, dir));
            match pieces.last_mut() {
                Some((_, _, length)) if at > 0 && open.len() == still_open => *length += 1,
                _ => pieces.push((path, number, 1)),
            }
            if thing.node.kind == NodeKind::Directory {
                open.push(path);
            }
        }
    }
    pieces.sort_unstable();
    let pieces: Vec<_> = pieces.into_iter().map(|(_, number, length)| (number, length)).collect();
    seen.reserve(lists.iter().map(Vec::len).sum());
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    for (number, length) in pieces {
        seen.extend(lists[number].by_ref().take(length));
    }
}

/// Whether a path that comes after a directory of the same parent comes after what is in it, too.
fn is_after_content(path: &[u8], dir: &[u8]) -> bool {
    !path.starts_with(dir) || path[dir.len()..].first().is_some_and(|next| *next > b'/')
}

/// Sorts what was seen by path, each path once, without the directories that lead to nothing.
pub fn settle(seen: &mut Vec<Seen>) {
    if !seen.is_sorted_by(|a, b| a.path < b.path) {
        seen.sort_by(|a, b| a.path.cmp(&b.path).then(a.standing.cmp(&b.standing)));
    }
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

/// One walk.
struct Walk<'a, T> {
    terrain: &'a T,
    at: &'a [u8],
    filter: &'a Filter,
}

impl<T: Terrain> Walk<'_, T> {
    /// What is admitted of a directory's names, in their order, and the directories among that.
    fn read(&self, directory: &Directory) -> Result<(Vec<Seen>, Vec<Directory>), ListError> {
        go_on(self.terrain.cancel())?;
        let opened = self.terrain.directory(&directory.path)?;
        let mut entries = self.terrain.entries(&opened, &directory.path)?;
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let look = |entry| self.entry(&opened, directory, entry);
        let (mut seen, mut directories) = (Vec::with_capacity(entries.len()), Vec::new());
        let mut add = |found: Option<Found>| {
            let Some((thing, directory)) = found else { return };
            seen.push(thing);
            directories.extend(directory);
        };
        if entries.len() <= NAMES_A_THREAD {
            entries.into_iter().try_for_each(|entry| look(entry).map(&mut add))?;
        } else {
            let found = entries.into_par_iter().with_min_len(NAMES_A_THREAD).map(look);
            found.collect::<Result<Vec<_>, ListError>>()?.into_iter().for_each(add);
        }
        Ok((seen, directories))
    }

    fn entry(
        &self,
        opened: &T::Directory,
        directory: &Directory,
        entry: Entry,
    ) -> Result<Option<Found>, ListError> {
        go_on(self.terrain.cancel())?;
        let Entry { path, is_directory } = entry;
        let mut ruled = is_directory.map(|kind| (kind, self.rule(directory, &path, kind)));
        if matches!(ruled, Some((_, (Admission::No, _)))) {
            return Ok(None);
        }
        let Some(status) = self.terrain.status(opened, &path)? else {
            return Err(ListError::Changed(shown(&path)));
        };
        let is_directory = T::is_directory(&status);
        // It may have become something else since the directory was read.
        let (_, (admission, verdict)) = ruled
            .take_if(|(kind, _)| *kind == is_directory)
            .unwrap_or_else(|| (is_directory, self.rule(directory, &path, is_directory)));
        let standing = match admission {
            Admission::No => return Ok(None),
            Admission::Yes => Standing::Picked,
            Admission::AsParent => Standing::Way,
        };
        let Some((node, state)) = self.terrain.thing(opened, &path, status)? else { return Ok(None) };
        let below = is_directory.then(|| Directory { path: path.clone(), verdict });
        Ok(Some((Seen { path, node, state, standing }, below)))
    }

    /// What the ignore rules and the filter together say of a name in a directory.
    fn rule(&self, directory: &Directory, path: &[u8], is_directory: bool) -> (Admission, Option<Verdict>) {
        let (scope, verdict) = match (self.terrain.ignore(), &directory.verdict) {
            (Some(ignore), Some(parent)) => {
                let path = String::from_utf8_lossy(path);
                let verdict = ignore.enter(parent, &path);
                (scope(ignore, &verdict, &path, is_directory), Some(verdict))
            }
            _ => (Admission::Yes, None),
        };
        let from = self.at.len();
        let relative = path[from..].strip_prefix(b"/").unwrap_or(&path[from..]);
        let filtered =
            if is_directory { self.filter.directory(relative) } else { self.filter.file(relative) };
        let admission = match (scope, filtered) {
            (Admission::No, _) | (_, Admission::No) => Admission::No,
            (Admission::Yes, Admission::Yes) => Admission::Yes,
            _ => Admission::AsParent,
        };
        (admission, verdict)
    }
}

/// Whether the ignore rules leave a path in the place.
pub(super) fn scope_at<T: Terrain>(terrain: &T, path: &[u8], is_directory: bool) -> Admission {
    let Some(ignore) = terrain.ignore() else { return Admission::Yes };
    scope(ignore, &verdict(ignore, path), &String::from_utf8_lossy(path), is_directory)
}

fn scope(ignore: &Matcher, verdict: &Verdict, path: &str, is_directory: bool) -> Admission {
    match (verdict.excluded(), is_directory) {
        (false, _) => Admission::Yes,
        (true, true) if !ignore.can_prune_at(verdict, path) => Admission::AsParent,
        _ => Admission::No,
    }
}

/// A file's node that nobody has looked into yet.
pub fn is_unread(node: &Node) -> bool {
    matches!(node.kind, NodeKind::File { content: None, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(path: &str) -> Seen {
        let (path, kind) = match path.strip_suffix('/') {
            Some(path) => (path, NodeKind::Directory),
            None => (path, NodeKind::Fifo),
        };
        let node = Node { kind, ..Node::bare_directory() };
        Seen { path: path.into(), node, state: None, standing: Standing::Picked }
    }

    #[test]
    fn lists_of_directories_are_put_in_the_order_of_paths() {
        let lists: [&[&str]; 7] = [
            &["a/", "a!", "a-/", "a-b", "a0", "b/", "c"],
            &["a/a", "a/b/", "a/b-", "a/c"],
            &["a-/a", "a-/z"],
            &["a/b/0", "a/b/1/"],
            &["b/x/"],
            &["b/x/y"],
            &[],
        ];
        let mut expected: Vec<Vec<u8>> = lists.concat().into_iter().map(|path| thing(path).path).collect();
        expected.sort();
        for turn in 0..lists.len() {
            let mut lists = lists.map(|list| list.iter().map(|path| thing(path)).collect::<Vec<_>>());
            for list in &mut lists {
                list.sort_by(|a, b| a.path.cmp(&b.path));
            }
            lists.rotate_left(turn);
            let mut seen = Vec::new();
            append_in_order(lists.into(), &mut seen);
            assert_eq!(seen.into_iter().map(|thing| thing.path).collect::<Vec<_>>(), expected);
        }
    }
}

//! What a selector leads to in a place with directories: one on disk, or the tree of a commit.
//!
//! A [`Terrain`] says what is in one directory; which of them are entered, and what of their names counts, is the same for
//! all. The [walk] goes no further than the selector and the ignore rules let it, and enters no link: those in a
//! source's own path are followed by [`lookup`](super::lookup), inside the root.

use std::{cell::RefCell, collections::BTreeMap};

use oci::{
    TreeDigest,
    canonical::{Bytes, Encoder},
};
use rayon::prelude::*;
use solver::{Cancel, op::Selector, pattern::ignore::Matcher};

use super::{
    ListError, Node, NodeKind, Nodes,
    filter::{Admission, Filter, Pattern},
    lookup::{Found, LastLink, Names, Paths, Pick, Picked, has_wildcard, pick, resolve},
    state::FileState,
    walk::{Seen, Standing, append_in_order, scope_at, settle, walk},
};
use crate::rootfs::{join, shown};

/// A place with directories. Paths are relative to its root, hold no links and are empty for the root; what is found at one
/// may be something else at the next look, if somebody changes the place meanwhile.
pub trait Terrain: Names<Error = ListError> + Sync {
    /// An open directory.
    type Directory: Sync;
    /// What is known of a name without looking into it.
    type Status;

    /// What is not part of the place at all.
    fn ignore(&self) -> Option<&Matcher>;

    /// Says when to stop looking.
    fn cancel(&self) -> &Cancel;

    /// Opens a directory that was there a moment ago, to read its names.
    fn directory(&self, path: &[u8]) -> Result<Self::Directory, ListError>;

    /// The names in an open directory, in any order.
    fn entries(&self, opened: &Self::Directory, dir: &[u8]) -> Result<Vec<Entry>, ListError>;

    /// What is there in an open directory at the path that ends in one of its names.
    fn status(&self, opened: &Self::Directory, path: &[u8]) -> Result<Option<Self::Status>, ListError>;

    /// Whether that is a directory.
    fn is_directory(status: &Self::Status) -> bool;

    /// What a step can pick of it; `None` for what is in no layer.
    fn thing(
        &self,
        opened: &Self::Directory,
        path: &[u8],
        status: Self::Status,
    ) -> Result<Option<(Node, Option<FileState>)>, ListError>;

    /// The same of a path by itself; directories on its way need not be readable.
    fn thing_at(&self, path: &[u8]) -> Result<Option<(Node, Option<FileState>)>, ListError>;
}

/// A name of a directory.
pub struct Entry {
    /// Its path from the root.
    pub path: Vec<u8>,
    /// Whether it is a directory, where that shows without looking.
    pub is_directory: Option<bool>,
}

/// What was found where a selector leads.
#[derive(Debug, Default)]
pub struct Sight {
    /// Everything that it can pick, some perhaps twice. Lists and what is in them come in an order that only depends on
    /// what is there; each list is in the order of its paths.
    pub(super) lists: Vec<Vec<Seen>>,
    /// The directories whose names were read, some perhaps twice: what comes or goes in them changes what is seen.
    pub(super) directories: Vec<Vec<u8>>,
}

impl Sight {
    /// Everything that was seen, each path once, in order; and the directories whose names were read.
    pub fn settled(self) -> (Vec<Seen>, Vec<Vec<u8>>) {
        let mut seen = Vec::new();
        append_in_order(self.lists, &mut seen);
        settle(&mut seen);
        (seen, self.directories)
    }

    /// Stands for all that was seen: paths, kinds, modes, link targets, which names are one file, and the states of
    /// files. Two equal ones of one place and selector are the same listing, as far as states can be relied on.
    pub fn print(&self) -> TreeDigest {
        let lists: Vec<TreeDigest> = self.lists.par_iter().map(|list| print(list)).collect();
        let mut encoder = Encoder::new("sight");
        encoder.field(1, &lists);
        encoder.digest()
    }
}

fn print(list: &[Seen]) -> TreeDigest {
    let mut encoder = Encoder::new("sight-list");
    for Seen { path, node, state, standing } in list {
        let Node { kind, mode, uid, gid, seconds: _, nanoseconds: _, xattrs, inode } = node;
        let inode = inode.map(|(device, inode)| [device, inode].to_vec());
        encoder
            .field(1, &Bytes(path))
            .field(2, kind)
            .field(3, mode)
            .field(4, uid)
            .field(5, gid)
            .field(6, &inode);
        encoder.field(7, &xattrs.iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect::<Vec<_>>());
        encoder.field(8, &(*standing as u64)).field(9, state);
    }
    encoder.digest()
}

/// By path, without what only matters while they are made.
pub fn nodes(seen: Vec<Seen>) -> Nodes {
    seen.into_iter().map(|Seen { path, node, .. }| (path, node)).collect()
}

/// That a file has other names outside of what is listed is no part of a context.
pub fn forget_names_elsewhere(seen: &mut [Seen]) {
    let mut names: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for inode in seen.iter().filter_map(|thing| thing.node.inode) {
        *names.entry(inode).or_default() += 1;
    }
    for Seen { node, .. } in seen {
        node.inode = node.inode.filter(|inode| names[inode] > 1);
    }
}

/// Where a selector leads: what it picks, by the names it has there, and the links on the way. Nothing is looked into.
///
/// # Errors
/// A source is not there, or cannot be looked at.
pub fn reach<T: Terrain>(terrain: &T, selector: &Selector) -> Result<(Vec<Pick>, Vec<Vec<u8>>), ListError> {
    let last = if selector.follow_links { LastLink::Follow } else { LastLink::Keep };
    let (mut picks, mut links) = (Vec::new(), Vec::new());
    for include in &selector.include {
        let source = if selector.parents { Pattern::with_parents(include) } else { Pattern::plain(include) };
        match pick(terrain, source.base, last, &mut links)? {
            Picked::Missing(path) => return Err(ListError::NotFound(shown(&path))),
            Picked::Path(pick) => picks.push(pick),
            Picked::Matches(matched) => picks.extend(matched),
        }
    }
    Ok((picks, links))
}

/// Everything that a selector can pick. No file is opened.
///
/// # Errors
/// A source is not there, or cannot be looked at; or it is time to stop.
pub fn see<T: Terrain>(terrain: &T, selector: &Selector) -> Result<Sight, ListError> {
    let last = if selector.follow_links { LastLink::Follow } else { LastLink::Keep };
    let mut sight = Sight::default();
    let mut links = Vec::new();
    let noting = Noting { terrain, directories: RefCell::default() };
    for include in &selector.include {
        let source = if selector.parents { Pattern::with_parents(include) } else { Pattern::plain(include) };
        let filter = Filter::new(source.rest, &selector.exclude)?;
        let picks = match pick(&noting, source.base, last, &mut links)? {
            Picked::Missing(path) => return Err(ListError::NotFound(shown(&path))),
            Picked::Path(pick) => vec![pick],
            Picked::Matches(picks) => picks,
        };
        for Pick { at, .. } in &picks {
            require(terrain, at, source.rest)?;
            enter(terrain, at, &filter, &mut sight)?;
        }
    }
    for link in links {
        sight.lists.extend(look(terrain, &link)?.map(|thing| vec![thing]));
    }
    sight.directories.append(&mut noting.directories.into_inner());
    Ok(sight)
}

/// Looks paths up, and notes of which directories the names were asked for.
struct Noting<'a, T> {
    terrain: &'a T,
    directories: RefCell<Vec<Vec<u8>>>,
}

impl<T: Terrain> Paths for Noting<'_, T> {
    type Error = ListError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, ListError> {
        self.terrain.find(path)
    }
}

impl<T: Terrain> Names for Noting<'_, T> {
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, ListError> {
        self.directories.borrow_mut().push(dir.to_vec());
        self.terrain.children(dir)
    }
}

/// With `--parents`, a source without wildcards must be there.
fn require<T: Terrain>(terrain: &T, base: &[u8], rest: Option<&str>) -> Result<(), ListError> {
    let Some(rest) = rest.filter(|rest| !has_wildcard(rest)) else { return Ok(()) };
    let path = join(base, rest.as_bytes());
    match resolve(terrain, &path, LastLink::Keep, &mut Vec::new())? {
        Some(_) => Ok(()),
        None => Err(ListError::NotFound(shown(&path))),
    }
}

/// Adds what a picked path stands for. Of a picked directory itself only that it is one can reach the copy, so that is all
/// that is listed of it.
fn enter<T: Terrain>(terrain: &T, at: &[u8], filter: &Filter, sight: &mut Sight) -> Result<(), ListError> {
    if at.is_empty() {
        return walk(terrain, at, filter, sight);
    }
    let top = look(terrain, at)?.ok_or_else(|| ListError::Changed(shown(at)))?;
    if top.node.kind != NodeKind::Directory {
        sight.lists.push(vec![top]);
        return Ok(());
    }
    let (node, standing) = (Node::bare_directory(), Standing::Named);
    sight.lists.push(vec![Seen { node, standing, ..top }]);
    walk(terrain, at, filter, sight)
}

fn look<T: Terrain>(terrain: &T, path: &[u8]) -> Result<Option<Seen>, ListError> {
    let picked = |(node, state)| Seen { path: path.to_vec(), node, state, standing: Standing::Picked };
    Ok(terrain.thing_at(path)?.map(picked))
}

/// Whether a path that is there is so for a selector: an ignored directory is if something below it is.
pub(crate) fn is_present<T: Terrain>(
    terrain: &T,
    path: &[u8],
    is_directory: bool,
) -> Result<bool, ListError> {
    match scope_at(terrain, path, is_directory) {
        Admission::Yes => return Ok(true),
        Admission::No => return Ok(false),
        Admission::AsParent => {}
    }
    let mut todo = vec![path.to_vec()];
    while let Some(dir) = todo.pop() {
        go_on(terrain.cancel())?;
        let opened = terrain.directory(&dir)?;
        for Entry { path, .. } in terrain.entries(&opened, &dir)? {
            let is_directory = terrain.status(&opened, &path)?.is_some_and(|status| T::is_directory(&status));
            match scope_at(terrain, &path, is_directory) {
                Admission::Yes => return Ok(true),
                Admission::AsParent => todo.push(path),
                Admission::No => {}
            }
        }
    }
    Ok(false)
}

/// Stops where it is time to.
pub(crate) fn go_on(cancel: &Cancel) -> Result<(), ListError> {
    if cancel.is_requested() { Err(ListError::Cancelled) } else { Ok(()) }
}

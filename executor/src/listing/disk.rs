//! Lists what a selector can pick of a directory on disk: a context, or a snapshot's file system.
//!
//! The [walk] goes no further than the selector and the ignore rules let it, and enters no link: those in a source's own
//! path are followed by [`lookup`](super::lookup), inside the root. What a context may not hold (a device) is an error
//! where it would be copied.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    os::fd::{BorrowedFd, OwnedFd},
};

use oci::{
    ContentDigest, TreeDigest,
    canonical::{Bytes, Encoder},
};
use rayon::prelude::*;
use rustix::{
    fs::{FileType, OFlags, Stat, readlinkat},
    io::Errno,
};
use solver::{Cancel, op::Selector, pattern::ignore::Matcher};

use super::{
    ListError, Node, NodeKind, Nodes, Owners,
    filter::{Admission, Filter, Pattern},
    lookup::{Found, LastLink, Names, Paths, Pick, Picked, has_wildcard, pick},
    state::FileState,
    walk::{Seen, Standing, append_in_order, settle, walk},
};
use crate::rootfs::{
    failed, file_type, join, lstat, names, open_beneath, permissions, shown, split, xattrs, xattrs_at,
};

/// A directory to list, and how.
pub struct Disk<'a> {
    /// The root of the source.
    pub root: BorrowedFd<'a>,
    /// What the source is.
    pub kind: DiskKind<'a>,
    /// Says when to stop looking.
    pub cancel: &'a Cancel,
}

/// What a source on disk is, and what that makes of the things in it.
pub enum DiskKind<'a> {
    /// Files of whoever runs the build: all become root's, and may change while they are read.
    Context {
        /// What is not part of the context at all.
        ignore: Option<&'a Matcher>,
    },
    /// A file system of an image, which nobody changes.
    Snapshot {
        /// Owners that the disk could not hold.
        owners: &'a Owners,
    },
}

/// Everything that a selector can pick of a snapshot. File contents are not read.
///
/// # Errors
/// A source is not there, or cannot be looked at; or it is time to stop.
pub fn list(disk: &Disk<'_>, selector: &Selector) -> Result<Nodes, ListError> {
    let (mut seen, _) = see(disk, selector)?.settled();
    let read = seen.par_iter_mut().map(|thing| read_attributes(disk, thing));
    read.collect::<Result<(), ListError>>()?;
    Ok(nodes(seen))
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

/// Everything that a selector can pick. Nothing is opened but directories.
///
/// # Errors
/// A source is not there, or cannot be looked at; or it is time to stop.
pub fn see(disk: &Disk<'_>, selector: &Selector) -> Result<Sight, ListError> {
    let last = if selector.follow_links { LastLink::Follow } else { LastLink::Keep };
    let mut sight = Sight::default();
    let mut links = Vec::new();
    let noting = Noting { disk, directories: RefCell::default() };
    for include in &selector.include {
        let source = if selector.parents { Pattern::with_parents(include) } else { Pattern::plain(include) };
        let filter = Filter::new(source.rest, &selector.exclude)?;
        let picks = match pick(&noting, source.base, last, &mut links)? {
            Picked::Missing(path) => return Err(ListError::NotFound(shown(&path))),
            Picked::Path(pick) => vec![pick],
            Picked::Matches(picks) => picks,
        };
        for Pick { at, .. } in &picks {
            disk.require(at, source.rest)?;
            disk.walk(at, &filter, &mut sight)?;
        }
    }
    for link in links {
        sight.lists.extend(disk.look(&link)?.map(|thing| vec![thing]));
    }
    sight.directories.append(&mut noting.directories.into_inner());
    Ok(sight)
}

/// Looks paths up on a disk, and notes of which directories the names were asked for.
struct Noting<'a> {
    disk: &'a Disk<'a>,
    directories: RefCell<Vec<Vec<u8>>>,
}

impl Paths for Noting<'_> {
    type Error = ListError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, ListError> {
        self.disk.find(path)
    }
}

impl Names for Noting<'_> {
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, ListError> {
        self.directories.borrow_mut().push(dir.to_vec());
        self.disk.children(dir)
    }
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

/// Stops where it is time to.
pub(super) fn go_on(cancel: &Cancel) -> Result<(), ListError> {
    if cancel.is_requested() { Err(ListError::Cancelled) } else { Ok(()) }
}

/// Of a named directory nothing is copied; what is no file nor directory must not be opened.
fn read_attributes(disk: &Disk<'_>, Seen { path, node, standing, .. }: &mut Seen) -> Result<(), ListError> {
    go_on(disk.cancel)?;
    if *standing == Standing::Named {
        return Ok(());
    }
    let read = match node.kind {
        NodeKind::File { .. } | NodeKind::Directory => {
            let file = open_beneath(disk.root, path, OFlags::RDONLY | OFlags::NONBLOCK);
            xattrs(file.map_err(failed("opening", path))?)
        }
        _ => {
            let (parent, name) = split(path);
            let dir = open_beneath(disk.root, parent, OFlags::PATH | OFlags::DIRECTORY);
            xattrs_at(dir.map_err(failed("opening", parent))?, name)
        }
    };
    node.xattrs = read.map_err(failed("reading attributes of", path))?;
    Ok(())
}

impl Paths for Disk<'_> {
    type Error = ListError;

    fn find(&self, path: &[u8]) -> Result<Option<Found>, ListError> {
        if path.is_empty() {
            return Ok(Some(Found::Directory));
        }
        let Some((dir, stat)) = self.stat(path)? else { return Ok(None) };
        let found = match file_type(&stat) {
            FileType::Directory => Found::Directory,
            FileType::Symlink => Found::Link(read_link(&dir, path)?),
            _ => Found::Other,
        };
        Ok(self.is_present(path, found == Found::Directory)?.then_some(found))
    }
}

impl Names for Disk<'_> {
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, ListError> {
        let opened = match open_beneath(self.root, dir, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOTDIR) => return Ok(Vec::new()),
            answer => answer.map_err(failed("reading directory", dir))?,
        };
        Ok(names(&opened).map_err(failed("reading directory", dir))?)
    }
}

impl Disk<'_> {
    /// With `--parents`, a source without wildcards must be there.
    fn require(&self, base: &[u8], rest: Option<&str>) -> Result<(), ListError> {
        let Some(rest) = rest.filter(|rest| !has_wildcard(rest)) else { return Ok(()) };
        let path = join(base, rest.as_bytes());
        match super::lookup::resolve(self, &path, LastLink::Keep, &mut Vec::new())? {
            Some(_) => Ok(()),
            None => Err(ListError::NotFound(shown(&path))),
        }
    }

    /// Adds what a picked path stands for. Of a picked directory itself only that it is one can reach the copy, so
    /// that is all that is listed of it.
    fn walk(&self, at: &[u8], filter: &Filter, sight: &mut Sight) -> Result<(), ListError> {
        if at.is_empty() {
            return walk(self, at, filter, sight);
        }
        let top = self.look(at)?.ok_or_else(|| ListError::Changed(shown(at)))?;
        if top.node.kind != NodeKind::Directory {
            sight.lists.push(vec![top]);
            return Ok(());
        }
        let (node, standing) = (Node::bare_directory(), Standing::Named);
        sight.lists.push(vec![Seen { node, standing, ..top }]);
        walk(self, at, filter, sight)
    }

    /// Opens a directory on the way through all of them, unless it is time to stop.
    pub(super) fn open_directory(&self, dir: &[u8]) -> Result<OwnedFd, ListError> {
        go_on(self.cancel)?;
        match open_beneath(self.root, dir, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(ListError::Changed(shown(dir))),
            answer => Ok(answer.map_err(failed("reading directory", dir))?),
        }
    }

    /// Whether a path is there for a selector: an ignored directory is if something below it is.
    fn is_present(&self, path: &[u8], is_directory: bool) -> Result<bool, ListError> {
        match self.scope(path, is_directory) {
            Admission::Yes => return Ok(true),
            Admission::No => return Ok(false),
            Admission::AsParent => {}
        }
        let mut todo = vec![path.to_vec()];
        while let Some(dir) = todo.pop() {
            let opened = self.open_directory(&dir)?;
            for name in names(&opened).map_err(failed("reading directory", &dir))? {
                let path = join(&dir, &name);
                let stat = lstat(&opened, &name).map_err(failed("reading", &path))?;
                let is_directory = stat.is_some_and(|stat| file_type(&stat) == FileType::Directory);
                match self.scope(&path, is_directory) {
                    Admission::Yes => return Ok(true),
                    Admission::AsParent => todo.push(path),
                    Admission::No => {}
                }
            }
        }
        Ok(false)
    }

    /// The open parent of a path and what is there.
    fn stat(&self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>, ListError> {
        let (parent, name) = split(path);
        let dir = match open_beneath(self.root, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            answer => answer.map_err(failed("reading directory", parent))?,
        };
        let stat = lstat(&dir, name).map_err(failed("reading", path))?;
        Ok(stat.map(|stat| (dir, stat)))
    }

    fn look(&self, path: &[u8]) -> Result<Option<Seen>, ListError> {
        let Some((dir, stat)) = self.stat(path)? else { return Ok(None) };
        let node = self.node(&dir, path, &stat)?;
        let is_file = file_type(&stat) == FileType::RegularFile;
        let state = is_file.then(|| FileState::of(&stat));
        Ok(node.map(|node| Seen { path: path.to_vec(), node, state, standing: Standing::Picked }))
    }

    /// The node of a path in an open directory. A socket of a context becomes an empty file, as with BuildKit; a device
    /// of one is refused, for no ordinary user could make it.
    pub(super) fn node(&self, dir: &OwnedFd, path: &[u8], stat: &Stat) -> Result<Option<Node>, ListError> {
        let special = |what| Err(ListError::Special { path: shown(path), what });
        let kind = NodeKind::of(dir, path, stat)?;
        let DiskKind::Snapshot { owners } = &self.kind else {
            return match kind {
                None => {
                    let content = Some(ContentDigest::of(b""));
                    Ok(Some(context_node(NodeKind::File { size: 0, content }, stat)))
                }
                Some(NodeKind::CharDevice { .. }) => special("a character device"),
                Some(NodeKind::BlockDevice { .. }) => special("a block device"),
                Some(kind) => Ok(Some(context_node(kind, stat))),
            };
        };
        Ok(kind.map(|kind| snapshot_node(path, kind, owners, stat)))
    }
}

fn read_link(dir: &OwnedFd, path: &[u8]) -> Result<Vec<u8>, ListError> {
    let target = readlinkat(dir, split(path).1, Vec::new()).map_err(failed("reading link", path))?;
    Ok(target.into_bytes())
}

/// Permission bits; those of links mean nothing.
fn mode(kind: &NodeKind, stat: &Stat) -> u32 {
    if matches!(kind, NodeKind::Symlink { .. }) { 0o777 } else { permissions(stat) }
}

fn context_node(kind: NodeKind, stat: &Stat) -> Node {
    Node {
        mode: mode(&kind, stat),
        inode: inode(&kind, stat),
        kind,
        uid: 0,
        gid: 0,
        seconds: stat.st_mtime,
        nanoseconds: stat.st_mtime_nsec as u32,
        xattrs: BTreeMap::new(),
    }
}

/// Of something that has several names.
pub fn inode(kind: &NodeKind, stat: &Stat) -> Option<(u64, u64)> {
    let has_names = *kind != NodeKind::Directory && stat.st_nlink > 1;
    has_names.then_some((stat.st_dev, stat.st_ino))
}

fn snapshot_node(path: &[u8], kind: NodeKind, owners: &Owners, stat: &Stat) -> Node {
    let (uid, gid) = owners.get(path).copied().unwrap_or((stat.st_uid, stat.st_gid));
    Node {
        mode: mode(&kind, stat),
        inode: inode(&kind, stat),
        kind,
        uid,
        gid,
        seconds: stat.st_mtime,
        nanoseconds: stat.st_mtime_nsec as u32,
        xattrs: BTreeMap::new(),
    }
}

//! What a command sees of one file system: which files are there, what they are, and when they were changed.
//!
//! What steps have made is known from the trees of their layers, without reading a byte of it. Of the base image only
//! those files count that have a time of unpacking, which are those that reproducible builds have made: all others
//! have the times that their packages gave them, and are treated as make and cargo treat them on any machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use oci::{Snapshot, TreeDigest, tree::TIME_LIMIT};
use rayon::prelude::*;
use rustix::{
    fs::{FileType, OFlags, Stat, readlinkat},
    io::Errno,
};
use solver::Cancel;

use super::{CacheMountError, ledger::Face};
use crate::{
    Snapshots, View,
    listing::{
        Until,
        disk::{Disk, DiskKind},
        lookup::{LastLink, resolve},
    },
    rootfs::{failed, file_type, join, lstat, names, open_beneath, permissions, split},
    snapshot::Stamp,
};

mod made;

use made::{Above, Made, directories, file_face, layers, symlink_face};

/// Files that the command sees beside its cache mounts: the step's parent at `/`, a bind mount at its target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visible<'a> {
    /// The file system.
    pub(super) snapshot: &'a Snapshot,
    /// Absolute clean path in it: a directory or a file.
    pub(super) source: &'a str,
    /// Absolute clean path where the command sees it.
    pub(super) target: &'a str,
}

/// One file, link or directory.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) kind: Kind,
    pub(super) face: Face,
    /// The time it has on disk.
    pub(super) time: Stamp,
    pub(super) size: u64,
    pub(super) from_base: bool,
    /// Device and inode of a file that has several names.
    pub(super) inode: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Symlink,
    Directory,
}

/// What is seen of one file system. Paths are those in the file system, without a slash in front.
pub(super) struct Sight {
    pub(super) view: View,
    /// Where what is seen begins in the file system.
    source: Vec<u8>,
    /// Where the command sees that, without a slash in front.
    target: Vec<u8>,
    /// Targets of other mounts that cover parts of it.
    covered: Vec<Vec<u8>>,
    /// The layers that no step here has made.
    pub(super) base: TreeDigest,
    /// What steps have hidden of those.
    pub(super) hidden: BTreeSet<Vec<u8>>,
    pub(super) items: BTreeMap<Vec<u8>, Item>,
    /// What changed links lead to: tools look through them.
    led_to: BTreeSet<Vec<u8>>,
}

impl Sight {
    /// Looks at what steps have made. `targets` are those of all mounts.
    pub(super) fn look(
        snapshots: &Snapshots,
        visible: &Visible<'_>,
        targets: &[&str],
        cancel: &Cancel,
    ) -> Result<Self, CacheMountError> {
        let view = snapshots.view(visible.snapshot)?;
        let (base, above) = layers(snapshots, visible.snapshot)?;
        let plain = |path: &str| path.trim_start_matches('/').as_bytes().to_vec();
        let target = plain(visible.target);
        let is_below = |path: &Vec<u8>| *path != target && is_within(path, &target);
        let covered = targets.iter().map(|path| plain(path)).filter(is_below).collect();
        let source = real_path(&view, &plain(visible.source), cancel)?;
        let Above { files, hidden } = above;
        let mut sight = Self {
            view,
            source,
            target,
            covered,
            base,
            hidden,
            items: BTreeMap::new(),
            led_to: BTreeSet::new(),
        };
        sight.hidden.retain(|path| is_within(path, &sight.source));
        sight.add_known(files)?;
        Ok(sight)
    }

    /// The path under which the command sees a file; `None` if it does not.
    pub(super) fn shown(&self, path: &[u8]) -> Option<Vec<u8>> {
        let shown = join_below(&self.target, below(path, &self.source)?);
        let is_covered = self.covered.iter().any(|covered| is_within(&shown, covered));
        (!is_covered).then_some(shown)
    }

    /// The other way round.
    pub(super) fn path(&self, shown: &[u8]) -> Option<Vec<u8>> {
        let path = join_below(&self.source, below(shown, &self.target)?);
        self.shown(&path).map(|_| path)
    }

    /// Where the command sees the whole.
    pub(super) fn target(&self) -> &[u8] {
        &self.target
    }

    fn add_known(&mut self, files: BTreeMap<Vec<u8>, Made>) -> Result<(), CacheMountError> {
        let directories = directories(&files, &self.hidden);
        let others = files.into_iter().filter_map(|(path, made)| match made {
            Made::File(face) => Some((path, (Kind::File, face))),
            Made::Symlink(face) => Some((path, (Kind::Symlink, face))),
            Made::Directory | Made::Special => None,
        });
        let directories = directories.into_iter().map(|(path, face)| (path, (Kind::Directory, face)));
        let mut found = Parents::of(&self.view);
        for (path, (kind, face)) in others.chain(directories) {
            if self.shown(&path).is_none() {
                continue;
            }
            let Some(stat) = found.lstat(&path)?.filter(|stat| kind_of(stat) == Some(kind)) else { continue };
            self.items.insert(path, item(kind, face, &stat, false));
        }
        Ok(())
    }

    /// Adds the files of the base image that have a time of unpacking.
    pub(super) fn add_unpacked(&mut self, cancel: &Cancel) -> Result<(), CacheMountError> {
        let was_unpacked = |stat: &Stat| stat.st_mtime >= TIME_LIMIT;
        let found = self.walk(&self.source.clone(), was_unpacked, cancel)?;
        self.add_base(found, cancel)
    }

    /// Adds all files of the base image at and below a path.
    pub(super) fn add_uncovered(&mut self, path: &[u8], cancel: &Cancel) -> Result<(), CacheMountError> {
        let found = self.walk(path, |_| true, cancel)?;
        self.add_base(found, cancel)
    }

    /// Adds one file of the base image that is known to be what it was.
    pub(super) fn add_same(&mut self, path: Vec<u8>, face: Face) -> Result<(), CacheMountError> {
        if let Some(stat) = Parents::of(&self.view).lstat(&path)?
            && let Some(kind) = kind_of(&stat)
        {
            self.items.entry(path).or_insert(item(kind, face, &stat, true));
        }
        Ok(())
    }

    /// Notes that a link is another one: what it leads to now is seen anew. Of a directory that is what steps have
    /// made; one of the base image is left alone, for it would be a tool or its library.
    pub(super) fn follow(&mut self, link: &[u8], cancel: &Cancel) -> Result<(), CacheMountError> {
        let real = real_path(&self.view, link, cancel)?;
        let is_file = |stat: Stat| kind_of(&stat) == Some(Kind::File);
        if real != link && Parents::of(&self.view).lstat(&real)?.is_some_and(is_file) {
            self.add_uncovered(&real, cancel)?;
        }
        self.led_to.insert(real);
        Ok(())
    }

    /// Whether a changed link leads to something, or to a directory that it is in.
    pub(super) fn is_led_to(&self, path: &[u8]) -> bool {
        !self.led_to.is_empty() && self.led_to.iter().any(|top| is_within(path, top))
    }

    /// Files and links at and below a path that are no items yet.
    fn walk(
        &self,
        top: &[u8],
        counts: impl Fn(&Stat) -> bool,
        cancel: &Cancel,
    ) -> Result<Vec<(Vec<u8>, Stat)>, CacheMountError> {
        let (mut found, mut todo) = (Vec::new(), vec![top.to_vec()]);
        let mut parents = Parents::of(&self.view);
        while let Some(path) = todo.pop() {
            go_on(cancel)?;
            let Some(stat) = parents.lstat(&path)? else { continue };
            match kind_of(&stat) {
                Some(Kind::Directory) if self.shown(&path).is_some() => {
                    let directory = open_beneath(&self.view, &path, OFlags::RDONLY | OFlags::DIRECTORY);
                    let directory = directory.map_err(failed("reading", &path))?;
                    let names = names(&directory).map_err(failed("reading", &path))?;
                    todo.extend(names.iter().rev().map(|name| join(&path, name)));
                }
                Some(Kind::File | Kind::Symlink) if counts(&stat) && !self.items.contains_key(&path) => {
                    found.push((path, stat));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn add_base(&mut self, found: Vec<(Vec<u8>, Stat)>, cancel: &Cancel) -> Result<(), CacheMountError> {
        let read =
            found.into_par_iter().filter(|(path, _)| self.shown(path).is_some()).map(|(path, stat)| {
                let kind = kind_of(&stat).expect("the walk finds files and links only");
                let face = read_face(&self.view, &path, kind, &stat, cancel)?;
                Ok((path, item(kind, face, &stat, true)))
            });
        let read = read.collect::<Result<Vec<_>, CacheMountError>>()?;
        for (path, item) in read {
            self.items.entry(path).or_insert(item);
        }
        Ok(())
    }
}

fn item(kind: Kind, face: Face, stat: &Stat, from_base: bool) -> Item {
    let has_names = kind == Kind::File && stat.st_nlink > 1;
    Item {
        kind,
        face,
        time: time(stat),
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        from_base,
        inode: has_names.then_some((stat.st_dev, stat.st_ino)),
    }
}

/// The modification time of something.
pub(super) fn time(stat: &Stat) -> Stamp {
    Stamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

pub(super) fn kind_of(stat: &Stat) -> Option<Kind> {
    match file_type(stat) {
        FileType::RegularFile => Some(Kind::File),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Directory => Some(Kind::Directory),
        _ => None,
    }
}

/// Looks at names, and remembers the directory that the last one was in.
struct Parents<'a> {
    view: &'a View,
    last: Option<(Vec<u8>, Option<OwnedFd>)>,
}

impl<'a> Parents<'a> {
    fn of(view: &'a View) -> Self {
        Self { view, last: None }
    }

    /// What stands at a path; `None` where nothing is, or where a part of it is no directory.
    fn lstat(&mut self, path: &[u8]) -> Result<Option<Stat>, CacheMountError> {
        let (parent, name) = split(path);
        if self.last.as_ref().is_none_or(|(last, _)| last != parent) {
            let opened = match open_beneath(self.view, parent, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                opened => Some(opened.map_err(failed("opening", parent))?),
            };
            self.last = Some((parent.to_vec(), opened));
        }
        let Some((_, Some(parent))) = &self.last else { return Ok(None) };
        let name = if name.is_empty() { b"." } else { name };
        Ok(lstat(parent, name).map_err(failed("looking at", path))?)
    }
}

/// The face of something that no tree tells of.
fn read_face(
    view: &View,
    path: &[u8],
    kind: Kind,
    stat: &Stat,
    cancel: &Cancel,
) -> Result<Face, CacheMountError> {
    if kind == Kind::Symlink {
        let (parent, name) = split(path);
        let parent = open_beneath(view, parent, OFlags::PATH | OFlags::DIRECTORY);
        let parent = parent.map_err(failed("opening", path))?;
        let target = readlinkat(parent, OsStr::from_bytes(name), Vec::new());
        return Ok(symlink_face(target.map_err(failed("reading link", path))?.as_bytes()));
    }
    let file =
        open_beneath(view, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed("reading", path))?;
    let mut hasher = blake3::Hasher::new();
    let read = hasher.update_reader(Until { stream: &mut File::from(file), cancel });
    go_on(cancel)?;
    read.map_err(failed("reading", path))?;
    Ok(file_face(permissions(stat), &hasher.finalize().into()))
}

fn real_path(view: &View, path: &[u8], cancel: &Cancel) -> Result<Vec<u8>, CacheMountError> {
    let owners = BTreeMap::new();
    let disk = Disk { root: view.as_fd(), kind: DiskKind::Snapshot { owners: &owners }, cancel };
    let real = resolve(&disk, path, LastLink::Follow, &mut Vec::new())?;
    // A source that is not there is told by who mounts it.
    Ok(real.unwrap_or_else(|| path.to_vec()))
}

/// Whether a path is another one, or lies below it.
pub(super) fn is_within(path: &[u8], top: &[u8]) -> bool {
    below(path, top).is_some()
}

/// What is left of a path below another one: nothing if it is that.
fn below<'a>(path: &'a [u8], top: &[u8]) -> Option<&'a [u8]> {
    if top.is_empty() {
        return Some(path);
    }
    match path.strip_prefix(top)? {
        b"" => Some(b""),
        rest => rest.strip_prefix(b"/"),
    }
}

fn join_below(top: &[u8], rest: &[u8]) -> Vec<u8> {
    if rest.is_empty() { top.to_vec() } else { join(top, rest) }
}

pub(super) fn go_on(cancel: &Cancel) -> Result<(), CacheMountError> {
    if cancel.is_requested() { Err(CacheMountError::Cancelled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_others() {
        for (path, top, rest) in [
            ("a/b", "a", Some("b")),
            ("a", "a", Some("")),
            ("ab", "a", None),
            ("a/b", "", Some("a/b")),
            ("", "", Some("")),
            ("", "a", None),
        ] {
            assert_eq!(below(path.as_bytes(), top.as_bytes()), rest.map(str::as_bytes), "{path} below {top}");
        }
    }
}

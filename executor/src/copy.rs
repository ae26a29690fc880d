//! COPY, ADD and WORKDIR: what they pick, where it goes and what it looks like there, as BuildKit does it.
//!
//! The rules, for one source after the other:
//! - A directory's contents are merged into the destination, never the directory itself; anything else becomes the
//!   destination, or lies in it under its own name where that is a directory or must be one.
//! - Links are followed in the destination's path and, where the selector says so, in the source's; links inside a
//!   picked directory are copied as links. A destination path may lead through links that dangle.
//! - Directories that have to be made have an octal `--chmod`'s mode, else 0755, and `--chown`'s owner. The directory
//!   that contents are merged into keeps what it has; directories below it take mode, owner and time of the source,
//!   existing ones too.
//! - A file, link or device is replaced; a directory never is, and never replaces anything.
//! - Several things that would go to one name, one over the other, are refused before anything is copied. BuildKit leaves
//!   the last one.
//! - Files of a context are root's, files of images keep their owner; `--chown` overrides both, `--chmod` the mode.
//! - Things of images keep their time, those of a context too with `--timestamps=preserve`.
//! - Names of one file within one picked directory stay names of one file.
//!
//! Sources are looked up in a [`Listing`] and never on disk, and what is read of a context is compared with what was
//! keyed (see there).

use std::{collections::BTreeMap, os::fd::BorrowedFd, sync::Arc};

use oci::{TreeDigest, tree::TIME_LIMIT};
use solver::{
    Cancel,
    op::{Chmod, Copy, CopyItem, MakeDir, Selector, Timestamps},
};

use crate::{
    archive::{self},
    listing::{
        Content, ListError, Listing, Node, NodeKind, Owners, below,
        disk::{self, Disk, DiskKind},
        filter::{Admission, Filter, Pattern},
        lookup::{Found, LastLink, Paths, Pick, Picked, has_wildcard, pick},
    },
    rootfs::{failed, join, shown, split},
    users::UserError,
};

mod chmod;
pub(crate) mod content;
mod draft;
mod error;
pub mod ground;
pub mod plan;
pub mod target;

pub use chmod::BadMode;
use chmod::ModeChange;
pub use error::CopyError;
use ground::{Ground, Kind, NewFiles, Packed};
pub use plan::{Planned, plan, plan_dir};
use target::{Stamp, Target};

/// Mode of directories that have to be made for a destination, if nobody says otherwise.
const MADE_MODE: u32 = 0o755;

/// What a selector can pick of a snapshot. `owners` are those that the snapshot's disk could not hold.
///
/// # Errors
/// A source is not there, or cannot be read; or `cancel` asked to stop.
pub fn list(
    view: BorrowedFd<'_>,
    owners: &Owners,
    selector: &Selector,
    cancel: &Cancel,
) -> Result<Listing, CopyError> {
    let nodes = disk::list(&Disk { root: view, kind: DiskKind::Snapshot { owners }, cancel }, selector)?;
    let root = view.try_clone_to_owned().map_err(failed("opening", b"/"))?;
    Ok(Listing { nodes, content: Content::Snapshot(Arc::new(root)) })
}

/// Digest of what a selector picks of a snapshot: paths, kinds, modes, owners, layer times, contents, link targets,
/// attributes, hard-link groups, device numbers.
///
/// # Errors
/// A source is not there, or cannot be read; or `cancel` asked to stop.
pub fn select(
    view: BorrowedFd<'_>,
    owners: &Owners,
    selector: &Selector,
    cancel: &Cancel,
) -> Result<TreeDigest, CopyError> {
    Ok(list(view, owners, selector, cancel)?.digest(cancel)?)
}

/// Copies all that is in a directory of the store into another one, as it is. `owners` are those that the disk of the
/// first could not hold; returns those that the disk of the second cannot.
///
/// # Errors
/// See [`CopyError`]; what was copied until then stays.
pub fn copy_contents(
    from: BorrowedFd<'_>,
    owners: &Owners,
    to: BorrowedFd<'_>,
    cancel: &Cancel,
) -> Result<Owners, CopyError> {
    let selector = Selector { include: vec![String::new()], ..Selector::default() };
    let listing = list(from, owners, &selector, cancel)?;
    let all = Copy {
        items: vec![CopyItem { input: 1, selector, unpack: false }],
        destination: "/".to_owned(),
        into_directory: true,
        chown: None,
        chmod: None,
        timestamps: Timestamps::Preserve,
    };
    copy(&all, &[&listing], to, &Owners::new(), cancel)
}

/// Copies into a mounted file system. `sources` are listings that hold at least what each item picks, one for each of
/// `copy.items`, in their order. `below` are the owners that the disk of the file system as it was could not hold.
/// Returns those that could not be set now, and what became of those.
///
/// # Errors
/// See [`CopyError`]; what was copied until then stays.
pub fn copy(
    copy: &Copy,
    sources: &[&Listing],
    root: BorrowedFd<'_>,
    below: &Owners,
    cancel: &Cancel,
) -> Result<Owners, CopyError> {
    let target = Target::new(root, Some(below));
    Ok(copy_onto(target, copy, sources, cancel)?.owners)
}

/// [`copy`] on any ground; returns that.
fn copy_onto<G: Ground>(
    ground: G,
    copy: &Copy,
    sources: &[&Listing],
    cancel: &Cancel,
) -> Result<G, CopyError> {
    let owner = copy.chown.as_deref().map(|owner| ground.file_owner(owner)).transpose()?;
    let mode = copy.chmod.as_ref().map(ModeChange::new).transpose()?;
    let mut picked = Vec::new();
    for (item, listing) in copy.items.iter().zip(sources) {
        picked.extend(pick_all(item, listing)?);
    }
    let mut copier = Copier { stamps: Stamps { copy, owner, mode }, cancel, target: ground };
    copier.refuse_several(&picked)?;
    for source in &picked {
        copier.source(source)?;
    }
    Ok(copier.target)
}

/// Makes a directory and its parents where they are missing (WORKDIR). A user or group that the image does not know is
/// told to `warn`; the directory is root's then, as BuildKit makes it.
///
/// # Errors
/// See [`CopyError`].
pub fn make_dir(make: &MakeDir, root: BorrowedFd<'_>, warn: &dyn Fn(UserError)) -> Result<Owners, CopyError> {
    Ok(make_dir_onto(Target::new(root, None), make, warn)?.owners)
}

/// [`make_dir`] on any ground; returns that.
fn make_dir_onto<G: Ground>(mut ground: G, make: &MakeDir, warn: &dyn Fn(UserError)) -> Result<G, CopyError> {
    let path = ground.resolve(make.path.as_bytes())?;
    if ground.kind_at(&path)? != Some(Kind::Directory) {
        let owner = ground.workdir_owner(&make.owner, warn)?;
        ground.make_dirs(&path, owner, MADE_MODE)?;
    }
    Ok(ground)
}

/// What one source names.
struct Source<'a> {
    listing: &'a Listing,
    filter: Filter,
    things: Vec<Thing>,
}

/// One thing that a source names.
struct Thing {
    pick: Pick,
    shape: Shape,
}

/// What becomes of a thing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Its contents go into the destination.
    Directory,
    /// It is unpacked into the destination.
    Archive,
    /// It becomes the destination, or goes into it.
    Other,
}

struct Copier<'a, G> {
    stamps: Stamps<'a>,
    cancel: &'a Cancel,
    target: G,
}

/// What the things of one copy get.
struct Stamps<'a> {
    copy: &'a Copy,
    owner: Option<(u32, u32)>,
    mode: Option<ModeChange>,
}

/// Files, links and directories of one picked source that are still to be done, in that order.
struct Work<'a> {
    listing: &'a Listing,
    /// Source and target of files to be written.
    files: Vec<(Vec<u8>, Vec<u8>, &'a Node)>,
    /// Names of files to be written: the first name and this one.
    links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories to be stamped once nothing is written into them any more.
    directories: Vec<(Vec<u8>, &'a Node)>,
    /// Where the first name of each inode goes.
    first_names: BTreeMap<(u64, u64), Vec<u8>>,
}

impl<'a> Work<'a> {
    fn of(listing: &'a Listing) -> Self {
        let first_names = BTreeMap::new();
        Self { listing, files: Vec::new(), links: Vec::new(), directories: Vec::new(), first_names }
    }
}

impl<G: Ground> Copier<'_, G> {
    /// Two things cannot have one name, unless it is that of a directory that is there.
    fn refuse_several(&self, sources: &[Source<'_>]) -> Result<(), CopyError> {
        let things: Vec<&Thing> = sources.iter().flat_map(|source| &source.things).collect();
        let takes_the_name = |thing: &&Thing| thing.shape == Shape::Other;
        if self.stamps.copy.into_directory || things.len() < 2 || !things.iter().any(takes_the_name) {
            return Ok(());
        }
        let destination = self.target.resolve(self.stamps.copy.destination.as_bytes())?;
        if self.target.kind_at(&destination)? == Some(Kind::Directory) {
            return Ok(());
        }
        let name = |thing: &Thing| shown(&thing.pick.named);
        let (first, second) = (name(things[0]), name(things[1]));
        Err(CopyError::SeveralSources { destination: self.target.told(&destination), first, second })
    }

    fn source(&mut self, source: &Source<'_>) -> Result<(), CopyError> {
        for Thing { pick, shape } in &source.things {
            match shape {
                Shape::Archive => self.unpack(source.listing, pick)?,
                Shape::Directory | Shape::Other => self.pick(source, pick, *shape)?,
            }
        }
        Ok(())
    }

    fn unpack(&mut self, listing: &Listing, pick: &Pick) -> Result<(), CopyError> {
        let destination = self.target.resolve(self.stamps.copy.destination.as_bytes())?;
        self.target.make_dirs(&destination, self.stamps.made_owner(), MADE_MODE)?;
        let (path, owner) = (pick.at.as_slice(), self.stamps.owner);
        self.target.unpack(Packed { listing, path, destination: &destination, owner }, self.cancel)
    }

    fn pick(&mut self, source: &Source<'_>, pick: &Pick, shape: Shape) -> Result<(), CopyError> {
        self.target.forget_made();
        let target = self.destination(pick, shape == Shape::Directory)?;
        let mut work = Work::of(source.listing);
        match source.listing.nodes.get(&pick.at) {
            _ if shape == Shape::Directory => self.contents(&pick.at, &target, &source.filter, &mut work)?,
            Some(node) => self.place(&pick.at, &target, node, &mut work)?,
            None => return Err(ListError::NotFound(shown(&pick.named)).into()),
        }
        self.finish(work)
    }

    /// Where a picked source goes. Makes the directories that are missing on the way.
    fn destination(&mut self, pick: &Pick, is_directory: bool) -> Result<Vec<u8>, CopyError> {
        let written = self.stamps.copy.destination.as_bytes();
        let (owner, mode) = (self.stamps.made_owner(), self.stamps.made_mode());
        let required = if self.stamps.copy.into_directory { written } else { split(written).0 };
        let required = self.target.resolve(required)?;
        self.target.make_dirs(&required, owner, mode)?;

        let destination = self.target.resolve(written)?;
        let found = self.target.kind_at(&destination)?;
        match (is_directory, found) {
            (true, None) => self.target.make_dirs(&destination, owner, mode)?,
            (true, Some(Kind::Directory)) => {}
            (true, Some(Kind::Other)) => return Err(CopyError::NonDirectory(self.target.told(&destination))),
            (false, Some(Kind::Directory)) => return Ok(join(&destination, split(&pick.named).1)),
            (false, _) => self.target.make_dirs(split(&destination).0, owner, mode)?,
        }
        Ok(destination)
    }

    /// Merges the contents of a picked directory into the target.
    fn contents<'a>(
        &mut self,
        at: &[u8],
        target: &[u8],
        filter: &Filter,
        work: &mut Work<'a>,
    ) -> Result<(), CopyError> {
        let mut parents: BTreeMap<&[u8], &'a Node> = BTreeMap::new();
        for (path, node) in below(&work.listing.nodes, at) {
            let admission = match node.kind {
                NodeKind::Directory => filter.directory(path),
                _ => filter.file(path),
            };
            match admission {
                Admission::No => continue,
                Admission::AsParent => {
                    parents.insert(path, node);
                    continue;
                }
                Admission::Yes => {}
            }
            for (index, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                if let Some(parent) = parents.remove(&path[..index]) {
                    self.parent(&join(target, &path[..index]), parent, work)?;
                }
            }
            self.place(&join(at, path), &join(target, path), node, work)?;
        }
        Ok(())
    }

    /// Makes a directory that is only there for what is copied into it. One that exists takes nothing but the mode.
    fn parent<'a>(&mut self, target: &[u8], node: &'a Node, work: &mut Work<'a>) -> Result<(), CopyError> {
        if self.merge_directory(target)? {
            work.directories.push((target.to_vec(), node));
            return Ok(());
        }
        self.target.change_mode(target, node.mode)
    }

    /// Whether a directory had to be made.
    fn merge_directory(&mut self, target: &[u8]) -> Result<bool, CopyError> {
        match self.target.old_kind_at(target)? {
            Some(Kind::Directory) => Ok(false),
            Some(Kind::Other) => Err(CopyError::NonDirectory(self.target.told(target))),
            None => self.target.make_dir(target, 0o700).map(|()| true),
        }
    }

    /// Puts one thing in its place. What takes long, or must come last, is left for later.
    fn place<'a>(
        &mut self,
        source: &[u8],
        target: &[u8],
        node: &'a Node,
        work: &mut Work<'a>,
    ) -> Result<(), CopyError> {
        if node.kind == NodeKind::Directory {
            self.merge_directory(target)?;
            work.directories.push((target.to_vec(), node));
            return Ok(());
        }
        self.target.make_way(target)?;
        if !matches!(node.kind, NodeKind::File { .. }) {
            self.target.create_node(target, &node.kind)?;
            return self.target.stamp(target, &self.stamps.of(work.listing, node));
        }
        let first =
            node.inode.map(|inode| &*work.first_names.entry(inode).or_insert_with(|| target.to_vec()));
        match first {
            Some(first) if first != target => work.links.push((first.clone(), target.to_vec())),
            _ => work.files.push((source.to_vec(), target.to_vec(), node)),
        }
        Ok(())
    }

    /// Writes files, then links them, then stamps directories from the deepest up.
    fn finish(&mut self, work: Work<'_>) -> Result<(), CopyError> {
        let (stamps, listing) = (&self.stamps, work.listing);
        let stamp = &|node| stamps.of(listing, node);
        self.target.create_files(NewFiles { listing, files: &work.files, stamp }, self.cancel)?;
        for (first, target) in &work.links {
            self.target.link(first, target)?;
        }
        for (target, node) in work.directories.iter().rev() {
            self.target.stamp(target, &self.stamps.of(work.listing, node))?;
        }
        Ok(())
    }
}

impl Stamps<'_> {
    fn made_owner(&self) -> (u32, u32) {
        self.owner.unwrap_or((0, 0))
    }

    /// Of `--chmod`, what is more than permissions is for what is copied.
    fn made_mode(&self) -> u32 {
        match &self.copy.chmod {
            Some(Chmod::Octal(mode)) => mode & 0o777,
            Some(Chmod::Symbolic(_)) | None => MADE_MODE,
        }
    }

    fn of<'a>(&self, listing: &Listing, node: &'a Node) -> Stamp<'a> {
        let is_directory = node.kind == NodeKind::Directory;
        Stamp {
            owner: self.owner.unwrap_or((node.uid, node.gid)),
            mode: self.mode.as_ref().map_or(node.mode, |mode| mode.apply(node.mode, is_directory)),
            xattrs: &node.xattrs,
            time: self.time(listing, node),
        }
    }

    /// On disk a context's file is never older than the limit, so that its layer time is normalised, whatever the
    /// checkout has made of it.
    fn time(&self, listing: &Listing, node: &Node) -> (i64, u32) {
        match (&listing.content, self.copy.timestamps) {
            (Content::Context(_) | Content::Commit(_), Timestamps::Auto) if node.seconds < TIME_LIMIT => {
                (TIME_LIMIT, 0)
            }
            _ => (node.seconds, node.nanoseconds),
        }
    }
}

/// Everything that an item names in its listing.
fn pick_all<'a>(item: &CopyItem, listing: &'a Listing) -> Result<Vec<Source<'a>>, CopyError> {
    let of = |include: &String| {
        let pattern = match item.selector.parents {
            true => Pattern::with_parents(include),
            false => Pattern::plain(include),
        };
        let filter = Filter::new(pattern.rest, &item.selector.exclude).map_err(ListError::from)?;
        let picks = picks(listing, pattern.base, &item.selector)?.into_iter();
        let things = picks.map(|pick| thing(item, listing, pick)).collect::<Result<_, _>>()?;
        Ok(Source { listing, filter, things })
    };
    item.selector.include.iter().map(of).collect()
}

fn thing(item: &CopyItem, listing: &Listing, pick: Pick) -> Result<Thing, CopyError> {
    let shape = match listing.find(&pick.at)? {
        Some(Found::Directory) => Shape::Directory,
        Some(Found::Other) if item.unpack && archive::is_archive(listing, &pick.at)? => Shape::Archive,
        _ => Shape::Other,
    };
    Ok(Thing { pick, shape })
}

/// What a source names in a listing that was made for it: what is missing was reported then.
fn picks(listing: &Listing, source: &str, selector: &Selector) -> Result<Vec<Pick>, CopyError> {
    if listing.content.has_plain_names() {
        return Ok(vec![Pick { named: source.into(), at: source.into() }]);
    }
    let last = if selector.follow_links { LastLink::Follow } else { LastLink::Keep };
    match pick(listing, source, last, &mut Vec::new())? {
        Picked::Path(pick) => Ok(vec![pick]),
        Picked::Matches(picks) => Ok(picks),
        Picked::Missing(_) if source.split('/').any(has_wildcard) => Ok(Vec::new()),
        Picked::Missing(path) => Err(ListError::NotFound(shown(&path)).into()),
    }
}

#[cfg(test)]
mod alike;
#[cfg(test)]
mod tests;

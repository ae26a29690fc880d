//! The files of contexts, heredocs and places elsewhere, each looked at once a build: the digest that enters a key and the
//! files that are copied come from the same look.
//!
//! A place elsewhere is contacted when a step first looks at it, never where none does. The ignore file at the root
//! of a context applies to every kind of context; to what ADD brings, nothing does.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use oci::{TreeDigest, store::Store};
use rustix::fs::{Mode, OFlags};
use solver::{
    Cancel, Event, FailureKind, StepFailure,
    op::{ContextSource, HttpFile, Place, Selector, Source},
    remote::{GitAddress, GitTimes},
};

use super::{
    glance::Glance,
    reads::{Noted, Read, Reads},
    remember::Memory,
};
use crate::{
    context::{
        CommitContext, ContextDirectory, ContextFiles, ContextModes, ContextOrigin, ContextSight, IgnoreFile,
    },
    copy,
    listing::{Content, Listing, Owners},
    once::OnceMap,
    remote::{Download, Fetched, FetchedFiles, Remotes},
    snapshot::Events,
};

/// What BuildKit calls the file of a context that is a URL.
const URL_CONTEXT: &str = "context";

/// Files and their digest.
#[derive(Clone)]
pub(super) struct Identified {
    pub(super) digest: TreeDigest,
    pub(super) listing: Arc<Listing>,
}

pub(super) struct Contexts {
    origins: BTreeMap<String, ContextOrigin>,
    remotes: Remotes,
    looks: OnceMap<ContextSource, Identified>,
    glances: OnceMap<ContextSource, TreeDigest>,
    memory: Memory,
    reads: Option<Noted>,
    noticed: Mutex<bool>,
    events: Events,
}

impl Contexts {
    pub(super) fn new(
        origins: BTreeMap<String, ContextOrigin>,
        remotes: Remotes,
        store: Arc<Store>,
        reads: Option<Noted>,
        events: Events,
    ) -> Self {
        let (memory, noticed) = (Memory::new(store), Mutex::new(false));
        let (looks, glances) = (OnceMap::default(), OnceMap::default());
        Self { origins, remotes, looks, glances, memory, reads, noticed, events }
    }

    /// Identity of a source that has content of its own. A directory in which nothing has changed is not listed for it.
    pub(super) fn digest(&self, source: &Source, cancel: &Cancel) -> Result<TreeDigest, StepFailure> {
        match source {
            Source::Context(place) if self.reads.is_none() && self.directory(place).is_some() => {
                self.glances.get_or_make(place, || self.glance(source, place, cancel))
            }
            Source::Context(place) => match self.commit(&place.place, cancel)? {
                Some(commit) => {
                    let glance = || self.glance_at_commit(source, place, &commit, cancel);
                    self.glances.get_or_make(place, glance)
                }
                None => self.identify(source, cancel).map(|identified| identified.digest),
            },
            _ => self.identify(source, cancel).map(|identified| identified.digest),
        }
    }

    fn directory(&self, source: &ContextSource) -> Option<&ContextDirectory> {
        let Place::Context(name) = &source.place else { return None };
        match self.origins.get(name)? {
            ContextOrigin::Directory(directory) if !self.memory.is_passing(directory.path()) => {
                Some(directory)
            }
            _ => None,
        }
    }

    /// The commit that a place is, fetched where it is elsewhere; `None` for anything else, and for a commit with `.git`.
    fn commit(&self, place: &Place, cancel: &Cancel) -> Result<Option<Cow<'_, CommitContext>>, StepFailure> {
        let (address, ignores) = match (place, origin_of(&self.origins, place)) {
            (Place::Git(address), _) => (address, Ignores::None),
            (_, Some(ContextOrigin::Commit(commit))) => return Ok(Some(Cow::Borrowed(commit))),
            (_, Some(ContextOrigin::Git(address))) => (address, Ignores::Its),
            _ => return Ok(None),
        };
        let FetchedFiles::Commit(revision) = self.remotes.until(cancel).git(address)?.files else {
            return Ok(None);
        };
        let ignore = match ignores {
            Ignores::None => None,
            Ignores::Its => IgnoreFile::of_commit(&revision)?,
        };
        let commit = CommitContext::new(Arc::clone(revision.context()), ignore)?.with_times(address.times);
        Ok(Some(Cow::Owned(commit)))
    }

    /// Identity of what a selector picks of a commit. What was picked of the same trees before is not listed.
    fn glance_at_commit(
        &self,
        source: &Source,
        place: &ContextSource,
        commit: &CommitContext,
        cancel: &Cancel,
    ) -> Result<TreeDigest, StepFailure> {
        let Some(name) = commit.name_of_look(&place.selector, cancel) else {
            return Ok(self.identify(source, cancel)?.digest);
        };
        // All that can be seen is in the name.
        if let Some(Glance { digest, .. }) = self.memory.glance(&name, &name)
            && self.memory.has_inventory(&solver::key::source_key(source, Some(&digest)))
        {
            return Ok(digest);
        }
        let identified = self.identify(source, cancel)?;
        self.memory.keep(name, Glance { print: name, digest: identified.digest, normalised: None });
        Ok(identified.digest)
    }

    /// What a selector picks of a commit, with what earlier builds have learned of its blobs.
    fn files_of_commit(
        &self,
        commit: &CommitContext,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<Listing, StepFailure> {
        let known = self.memory.blobs(commit.tree().repository());
        let files = commit.files(selector, &known, cancel);
        self.memory.save_blobs(&known);
        Ok(files?)
    }

    fn glance(
        &self,
        source: &Source,
        place: &ContextSource,
        cancel: &Cancel,
    ) -> Result<TreeDigest, StepFailure> {
        let directory = self.directory(place).expect("only directories are glanced at");
        let (name, sight) =
            (directory.name_of_look(&place.selector), directory.see(&place.selector, cancel)?);
        let print = sight.print();
        let known = self.memory.glance(&name, &print);
        if let Some(glance) = known
            && self.memory.has_inventory(&solver::key::source_key(source, Some(&glance.digest)))
        {
            // To free what so many names hold takes longer than all that is left to do.
            rayon::spawn(move || drop(sight));
            glance.normalised.into_iter().for_each(|path| self.notice(&path));
            return Ok(glance.digest);
        }
        let identified = self.looks.get_or_make(place, || {
            let files = self.completed(directory, sight, cancel)?;
            let (normalised, is_settled) = (files.normalised.clone(), files.is_settled);
            let identified = self.identified(source, files.listing, cancel)?;
            normalised.iter().for_each(|path| self.notice(path));
            if is_settled {
                self.memory.keep(name, Glance { print, digest: identified.digest, normalised });
            }
            Ok::<_, StepFailure>(identified)
        })?;
        Ok(identified.digest)
    }

    /// What a source that has content of its own holds.
    pub(super) fn identify(&self, source: &Source, cancel: &Cancel) -> Result<Identified, StepFailure> {
        match source {
            Source::Context(place) => self.looks.get_or_make(place, || {
                let (listing, read) = self.look(place, cancel)?;
                let identified = self.identified(source, listing, cancel)?;
                if let (Some(reads), Some(read)) = (&self.reads, read) {
                    reads.note(read, &identified.listing);
                }
                Ok(identified)
            }),
            Source::Inline(files) => identified(Listing::inline(files), cancel),
            Source::Scratch | Source::Image(_) => {
                Err(super::planner_mistake("an image has no content of its own"))
            }
        }
    }

    /// The identity of files, and a note of what they are for whoever asks why it has changed.
    fn identified(
        &self,
        source: &Source,
        listing: Listing,
        cancel: &Cancel,
    ) -> Result<Identified, StepFailure> {
        let identified = identified(listing, cancel)?;
        let files = solver::key::source_key(source, Some(&identified.digest));
        self.memory.take_inventory(files, &identified.listing);
        Ok(identified)
    }

    /// What was read so far of directories of the command line, where that is noted.
    pub(super) fn reads(&self) -> Reads {
        self.reads.as_ref().map(Noted::all).unwrap_or_default()
    }

    /// What there is, and what was read of this machine to know it.
    fn look(&self, source: &ContextSource, cancel: &Cancel) -> Result<(Listing, Option<Read>), StepFailure> {
        let ContextSource { place, selector } = source;
        if let Some(commit) = self.commit(place, cancel)? {
            return Ok((self.files_of_commit(&commit, selector, cancel)?, None));
        }
        let name = match place {
            Place::Context(name) => name,
            Place::Git(address) => {
                return Ok((self.look_at_checkout(address, selector, Ignores::None, cancel)?, None));
            }
            Place::Http(file) => return Ok((downloaded(&self.remotes.until(cancel).http(file)?)?, None)),
        };
        let missing = || StepFailure::new(FailureKind::Usage, format!("there is no build context {name:?}"));
        match self.origins.get(name).ok_or_else(missing)? {
            ContextOrigin::Directory(directory) => {
                let ContextFiles { listing, directories, normalised, is_settled: _ } =
                    self.files(directory, selector, cancel)?;
                normalised.into_iter().for_each(|path| self.notice(&path));
                Ok((listing, Some(Read { context: directory.path().to_owned(), directories })))
            }
            ContextOrigin::Commit(_) => Err(super::planner_mistake("a commit was looked at")),
            ContextOrigin::Git(address) => {
                Ok((self.look_at_checkout(address, selector, Ignores::Its, cancel)?, None))
            }
            ContextOrigin::Url(url) => Ok((self.look_at_url(url, selector, cancel)?, None)),
        }
    }

    /// What a selector picks of a directory, with what earlier looks have found out.
    fn files(
        &self,
        directory: &ContextDirectory,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<ContextFiles, StepFailure> {
        self.completed(directory, directory.see(selector, cancel)?, cancel)
    }

    fn completed(
        &self,
        directory: &ContextDirectory,
        sight: ContextSight,
        cancel: &Cancel,
    ) -> Result<ContextFiles, StepFailure> {
        let index = self.memory.index(directory.path());
        let files = directory.complete(sight, &index, cancel);
        // Also where one file could not be read: the others were.
        self.memory.save(&index);
        Ok(files?)
    }

    fn look_at_checkout(
        &self,
        address: &GitAddress,
        selector: &Selector,
        ignores: Ignores,
        cancel: &Cancel,
    ) -> Result<Listing, StepFailure> {
        let Fetched { files, time, .. } = self.remotes.until(cancel).git(address)?;
        let FetchedFiles::Checkout(directory) = files else {
            return Err(super::planner_mistake("a commit was looked at"));
        };
        let ignore = match ignores {
            Ignores::None => None,
            Ignores::Its => IgnoreFile::at_root(&directory)?,
        };
        let context = ContextDirectory::new(directory, ignore, ContextModes::Preserve)?;
        let listing = self.files(&context, selector, cancel)?.listing;
        Ok(match address.times {
            GitTimes::Checkout => listing,
            GitTimes::Commit => with_time(listing, time),
        })
    }

    fn look_at_url(&self, url: &str, selector: &Selector, cancel: &Cancel) -> Result<Listing, StepFailure> {
        let file = HttpFile { url: url.to_owned(), name: URL_CONTEXT.to_owned(), checksum: None };
        let root = open(&self.remotes.until(cancel).http(&file)?.directory)?;
        // Root's, also where the disk cannot say so.
        let owners = Owners::from([(URL_CONTEXT.as_bytes().to_vec(), (0, 0))]);
        Ok(copy::list(root.as_fd(), &owners, selector, cancel)?)
    }

    fn notice(&self, path: &str) {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *noticed, true) {
            let text = "files of the build context that their group may write (umask 002) lose that bit in the image, so \
                        that every machine makes the same one; the first is";
            (self.events)(Event::Warning(format!("{text} {path}")));
        }
    }
}

fn origin_of<'a>(origins: &'a BTreeMap<String, ContextOrigin>, place: &Place) -> Option<&'a ContextOrigin> {
    match place {
        Place::Context(name) => origins.get(name),
        Place::Git(_) | Place::Http(_) => None,
    }
}

/// Which ignore file applies to a commit's files.
#[derive(Clone, Copy)]
enum Ignores {
    /// None: ADD brings what is there.
    None,
    /// The one at its root.
    Its,
}

fn identified(listing: Listing, cancel: &Cancel) -> Result<Identified, StepFailure> {
    Ok(Identified { digest: listing.digest(cancel)?, listing: Arc::new(listing) })
}

fn downloaded(download: &Download) -> Result<Listing, StepFailure> {
    Ok(Listing::download(&download.directory, &download.name, download.modified)?)
}

/// The files with a time that is part of what they are (`mtime=commit`).
fn with_time(listing: Listing, seconds: i64) -> Listing {
    let Listing { mut nodes, content } = listing;
    for node in nodes.values_mut() {
        (node.seconds, node.nanoseconds) = (seconds, 0);
    }
    let content = match content {
        Content::Context(root) => Content::Snapshot(root),
        other => other,
    };
    Listing { nodes, content }
}

fn open(directory: &Path) -> Result<OwnedFd, StepFailure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| {
        StepFailure::caused(
            FailureKind::Machine,
            format!("cannot open {}", directory.display()),
            std::io::Error::from(error),
        )
    })
}

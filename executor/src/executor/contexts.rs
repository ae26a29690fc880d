//! The files of contexts and heredocs, each looked at once a build: the digest that enters a key and the files that are
//! copied come from the same look.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use oci::TreeDigest;
use solver::{
    Cancel, Event, FailureKind, StepFailure,
    op::{ContextSource, Place, Source},
};

use crate::{
    context::{ContextDirectory, ContextModes, ContextOrigin},
    listing::Listing,
    remote::{Download, Remotes},
    snapshot::Events,
};

/// Files and their digest.
#[derive(Clone)]
pub(super) struct Identified {
    pub(super) digest: TreeDigest,
    pub(super) listing: Arc<Listing>,
}

/// A look that is being taken, or was. Who wants the same one waits.
type Look = Arc<Mutex<Option<Identified>>>;

pub(super) struct Contexts {
    origins: BTreeMap<String, ContextOrigin>,
    remotes: Remotes,
    looks: Mutex<BTreeMap<ContextSource, Look>>,
    noticed: Mutex<bool>,
    events: Events,
}

impl Contexts {
    pub(super) fn new(origins: BTreeMap<String, ContextOrigin>, remotes: Remotes, events: Events) -> Self {
        Self { origins, remotes, looks: Mutex::default(), noticed: Mutex::new(false), events }
    }

    /// What a source that has content of its own holds.
    pub(super) fn identify(&self, source: &Source, cancel: &Cancel) -> Result<Identified, StepFailure> {
        match source {
            Source::Context(source) => self.look_once(source, cancel),
            Source::Inline(files) => identified(Listing::inline(files), cancel),
            Source::Scratch | Source::Image(_) => {
                Err(super::planner_mistake("an image has no content of its own"))
            }
        }
    }

    fn look_once(&self, source: &ContextSource, cancel: &Cancel) -> Result<Identified, StepFailure> {
        let look = {
            let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
            looks.entry(source.clone()).or_default().clone()
        };
        let mut look = look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identified) = &*look {
            return Ok(identified.clone());
        }
        let identified = self.look(source, cancel)?;
        Ok(look.insert(identified).clone())
    }

    fn look(&self, source: &ContextSource, cancel: &Cancel) -> Result<Identified, StepFailure> {
        let name = match &source.place {
            Place::Context(name) => name,
            Place::Git(address) => {
                let checkout = self.remotes.git(address)?;
                let directory = ContextDirectory::new(checkout.directory, None, ContextModes::Preserve)?;
                return identified(directory.files(&source.selector, cancel)?.listing, cancel);
            }
            Place::Http(file) => {
                let Download { directory, name, modified, .. } = self.remotes.http(file)?;
                return identified(Listing::download(&directory, &name, modified)?, cancel);
            }
        };
        let missing = || StepFailure::new(FailureKind::Usage, format!("there is no build context {name:?}"));
        let directory = match self.origins.get(name).ok_or_else(missing)? {
            ContextOrigin::Directory(directory) => directory,
            ContextOrigin::Git(address) => {
                return Err(self.remotes.git(address).expect_err("it is not there yet"));
            }
            ContextOrigin::Url(_) => {
                return Err(StepFailure::new(FailureKind::Usage, "contexts behind URLs are not there yet"));
            }
        };
        let files = directory.files(&source.selector, cancel)?;
        if let Some(path) = files.normalised {
            self.notice(&path);
        }
        identified(files.listing, cancel)
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

fn identified(listing: Listing, cancel: &Cancel) -> Result<Identified, StepFailure> {
    Ok(Identified { digest: listing.digest(cancel)?, listing: Arc::new(listing) })
}

//! What remote caches know of builds on other machines, for who explains this one.
//!
//! What the caches have told while the build ran is compared with the steps that ran, and what those are compared with is kept
//! with the build. A list of files is fetched only for an explanation that must name one, and kept in the store; what
//! cannot be had, or takes long, stays unknown. All of it is somebody else's word: it is shown, and never believed.

use std::{
    collections::BTreeSet,
    io::{self, Read as _},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use exporter::cache::Seen;
use oci::{
    BlobOrigin, Descriptor, Fetcher, TreeDigest,
    packed::{self, INVENTORY_MAX},
};
use solver::{
    Record,
    explain::{self, Fate, Inventory, Known, Origin, Project},
};

use super::{shown, steps};
use crate::{history::Entry, redact::redact};

/// How long a list of files may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// What remote caches have told. Cheap to clone; a clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Elsewhere {
    told: Arc<OnceLock<Told>>,
}

#[derive(Debug)]
struct Told {
    read: Read,
    fetcher: Fetcher,
}

/// What a build has read of remote caches, and what it has not.
#[derive(Debug)]
pub struct Read {
    /// What it could use.
    pub seen: Seen,
    /// Content keys of what nobody who is trusted has signed, in a cache or in this store. Nothing else of it is kept.
    pub distrusted: BTreeSet<TreeDigest>,
    /// What the caches are called that may have more.
    pub unanswered: Vec<String>,
}

impl Elsewhere {
    /// The build has ended, and this is what it has read.
    pub fn learn(&self, read: Read, fetcher: &Fetcher) {
        // Nobody is patient any more.
        let registry = fetcher.registry().direct().briefly();
        let fetcher = Fetcher::new(Arc::clone(fetcher.store()), registry);
        let _ = self.told.set(Told { read, fetcher });
    }

    /// Completes what is kept of a build: with the steps of other machines that its own are compared with.
    pub fn complete(&self, entry: &mut Entry) {
        let Some(Told { read, .. }) = self.told.get() else { return };
        let records = read.seen.records();
        let known: Vec<Known> = records.iter().filter_map(|(seen, _)| known(&seen.remote.record)).collect();
        let ran = entry.steps.iter().filter_map(|step| step.miss.as_ref());
        entry.distrusted =
            ran.map(|miss| miss.content).filter(|content| read.distrusted.contains(content)).collect();
        entry.elsewhere = explain::compared(&steps(entry), &known).into_iter().cloned().collect();
        entry.unanswered = read.unanswered.iter().map(|name| redact(name).into_owned()).collect();
    }

    /// The files behind a digest, as the store knows them, or else a cache.
    pub fn inventory(&self, root: &Path, files: &TreeDigest) -> Option<Inventory> {
        executor::inventory::read(root, files).or_else(|| self.told.get()?.fetch(files))
    }
}

impl Told {
    fn fetch(&self, files: &TreeDigest) -> Option<Inventory> {
        let records = self.read.seen.records();
        let mut lists =
            records.iter().filter_map(|(seen, origin)| Some((seen.remote.inventories.get(files)?, origin)));
        let (blob, origin) = lists.next()?;
        let inventory = self.bring(blob, origin).ok()?;
        // A store that does not take it is asked again next time, and so is the cache.
        let _ = executor::inventory::write(self.fetcher.store(), files, &inventory);
        Some(inventory)
    }

    fn bring(&self, blob: &Descriptor, origin: &BlobOrigin) -> io::Result<Inventory> {
        let begun = Instant::now();
        let fetcher = self.fetcher.until(move || begun.elapsed() > PATIENCE);
        let mut bytes = Vec::new();
        fetcher.open(blob, origin)?.take(INVENTORY_MAX).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&packed::unpack(&bytes, INVENTORY_MAX)?)?)
    }
}

/// A step as a cache knows it; what says nothing of how it came about (that of an image) is not known.
fn known(record: &Record) -> Option<Known> {
    let by = &record.made.by;
    let origin = Origin { at: by.at, build: by.build.clone(), host: by.host.clone() };
    (!record.pre_image.is_empty()).then(|| Known {
        content: record.content,
        pre_image: shown(&record.pre_image),
        origin,
        fate: Fate::Elsewhere,
        // Who reads a cache says that it is of the same thing.
        project: Project::Same,
    })
}

//! The bundle: all records that a build has used, so that the next one needs a single look.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use oci::{Descriptor, Sha256Digest, Snapshot, TreeDigest};
use solver::Record;

use super::{BuildEnd, Item, Look, Shared, Trouble};
use crate::cache::{
    bundle::{Bundle, SignedRecord},
    seen::{SeenBundle, SeenRecord},
    sign::TrustKeys,
    storage::{Artifact, ArtifactKind, Named},
};
use crate::parallel::in_parallel;

/// Manifests and configs are small; what is longer is none.
const DOCUMENT_MAX: u64 = 1 << 20;

/// Blobs that are looked for at the same time.
const LOOKING: usize = 16;

/// What a bundle will hold, and what it names.
#[derive(Default)]
struct Content {
    records: BTreeMap<SignedRecord, Vec<Descriptor>>,
    documents: BTreeMap<Sha256Digest, Vec<u8>>,
}

impl Content {
    fn document(&self) -> Vec<u8> {
        let (records, documents) = (self.records.keys().cloned().collect(), self.documents.clone());
        Bundle { records, documents }.encode()
    }
}

/// The steps that a build has used, and the file systems below them.
struct Used {
    definitions: BTreeSet<TreeDigest>,
    systems: BTreeSet<(usize, TreeDigest)>,
    below: BTreeSet<(usize, TreeDigest)>,
}

impl Used {
    fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut used =
            Self { definitions: BTreeSet::new(), systems: BTreeSet::new(), below: BTreeSet::new() };
        for record in records {
            used.definitions.insert(record.definition);
            let mut systems: Vec<_> = systems(&record.snapshot).collect();
            used.systems.extend(systems.pop());
            used.below.extend(systems);
        }
        used
    }

    fn has(&self, record: &Record) -> bool {
        self.definitions.contains(&record.definition)
    }

    /// Whether a record is of a step whose result is part of another's, and that nothing is known of itself.
    fn is_below(&self, record: &Record) -> bool {
        let own = systems(&record.snapshot).last();
        own.is_some_and(|own| self.below.contains(&own) && !self.systems.contains(&own))
    }
}

/// A file system and all that it grew from but the first, the lowest first. The number of layers tells apart what a step
/// that wrote nothing has made.
fn systems(snapshot: &Snapshot) -> impl Iterator<Item = (usize, TreeDigest)> {
    let mut digest = Snapshot::default().digest();
    snapshot.layers.iter().zip(1..).map(move |(layer, count)| {
        digest = Snapshot::digest_with(&digest, layer);
        (count, digest)
    })
}

impl Shared {
    /// Finds out what the place has already. Whatever comes of it, what has waited for it goes on.
    pub(super) fn look(&self) {
        match &self.options.reader {
            Some(reader) => reader.wait(&|| self.trying.is_requested()),
            None => self.read_bundle(),
        }
        let mut state = self.state.lock();
        if let Look::Running(waiting) = std::mem::replace(&mut state.look, Look::Over) {
            for record in waiting {
                self.want(&mut state, record);
            }
        }
        drop(state);
        self.state.tell();
    }

    fn read_bundle(&self) {
        let found = self.options.storage.get(&self.options.bundle, &self.trying);
        // What cannot be read is written anew, and what cannot be written says so.
        let artifact = found.ok().flatten().and_then(Named::artifact);
        let bundle = artifact.filter(|artifact| artifact.kind == ArtifactKind::Bundle);
        if let Some(Artifact { document, .. }) = bundle {
            self.note(document);
        }
    }

    /// What a bundle has, as far as we would believe it: what we sign and others have not is written anew.
    fn note(&self, document: Vec<u8>) {
        let Ok(bundle) = Bundle::decode(&document) else { return };
        let trusted = self.options.sign.as_ref().map_or_else(TrustKeys::default, |key| key.trusted());
        let origin = self.options.storage.origin();
        let open = |signed: &SignedRecord| {
            let remote = signed.open(None, &trusted, &origin).ok()?;
            Some(SeenRecord { remote, signed: signed.clone() }.into())
        };
        let records = bundle.records.iter().filter_map(open).collect();
        self.options.seen.note_bundle(&origin, &self.options.bundle, SeenBundle { document, records });
    }

    /// Brings what the bundle will say if all that is under way gets to the place; what names it comes later.
    pub(super) fn write_bundle_document(
        &self,
        end: BuildEnd,
        documents: &[Sha256Digest],
    ) -> Result<(), Trouble> {
        let content = self.content(end, documents);
        if content.records.is_empty() || self.state.lock().failure.is_some() {
            return Ok(());
        }
        match content.document() {
            document if self.is_bundle(&document) => Ok(()),
            document => self.bring_bundle(&document),
        }
    }

    /// Whether this is the bundle that is there.
    fn is_bundle(&self, document: &[u8]) -> bool {
        let there = self.options.seen.bundle(&self.options.storage.origin(), &self.options.bundle);
        there.is_some_and(|there| there.document == document)
    }

    fn bring_bundle(&self, document: &[u8]) -> Result<(), Trouble> {
        let put = || Ok(self.options.storage.put_document(ArtifactKind::Bundle, document, &self.trying)?);
        self.blobs.once(Sha256Digest::of(document), &self.trying, put)
    }

    /// Writes the bundle, unless the one that is there is the same. If the place has lost what one of its records names, those
    /// that can be had go without the others.
    pub(super) fn write_bundle(&self, end: BuildEnd, documents: &[Sha256Digest]) -> Result<(), Trouble> {
        let mut content = self.content(end, documents);
        if content.records.is_empty() || self.state.lock().failure.is_some() {
            return Ok(());
        }
        match self.put_bundle(&content) {
            Err(Trouble::Place(_)) if !self.trying.is_requested() && self.drop_lost(&mut content)? => {
                self.put_bundle(&content)
            }
            put => put,
        }
    }

    fn put_bundle(&self, content: &Content) -> Result<(), Trouble> {
        let document = content.document();
        if self.is_bundle(&document) {
            return Ok(());
        }
        self.bring_bundle(&document)?;
        let blobs: BTreeMap<_, _> =
            content.records.values().flatten().map(|blob| (blob.digest, blob.clone())).collect();
        let artifact = Artifact {
            kind: ArtifactKind::Bundle,
            document,
            signature: None,
            blobs: blobs.into_values().collect(),
        };
        Ok(self.options.storage.put_names(&[&self.options.bundle], &artifact, &self.trying)?)
    }

    /// What the build has used, and what the bundle that was read has of steps that this one has not come to.
    fn content(&self, end: BuildEnd, documents: &[Sha256Digest]) -> Content {
        let state = self.state.lock();
        let there: Vec<&Item> = state.ledger.kept().map(|item| &**item).collect();
        let mut records: BTreeMap<_, _> = there.iter().filter_map(|item| item.put.get().cloned()).collect();
        let used = Used::of(there.iter().map(|item| &item.record));
        drop(there);
        drop(state);
        let before = self.options.seen.bundle(&self.options.storage.origin(), &self.options.bundle);
        if let Some(before) = before {
            let others = before.records.iter().filter(|seen| {
                let stays = match end {
                    BuildEnd::Made => used.is_below(&seen.remote.record),
                    BuildEnd::Failed => !used.has(&seen.remote.record),
                };
                stays && self.is_whole(seen)
            });
            records.extend(others.map(|seen| (seen.signed.clone(), seen.remote.blobs())));
        }
        let documents = documents.iter().filter_map(|digest| Some((*digest, self.document(digest)?)));
        Content { records, documents: documents.collect() }
    }

    /// A small blob of the store, if it is there and what it should be.
    fn document(&self, digest: &Sha256Digest) -> Option<Vec<u8>> {
        let path = self.options.fetcher.store().blob_path(digest);
        let is_small = std::fs::metadata(&path).is_ok_and(|file| file.len() <= DOCUMENT_MAX);
        let bytes = is_small.then(|| std::fs::read(path).ok())??;
        (Sha256Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Looks for every blob, brings what is here, and leaves out the records of the others. Says whether that may help.
    fn drop_lost(&self, content: &mut Content) -> Result<bool, Trouble> {
        let lost = Mutex::new(BTreeSet::new());
        let blobs: BTreeMap<_, _> =
            content.records.values().flatten().map(|blob| (blob.digest, blob)).collect();
        let blobs: Vec<_> = blobs.into_values().collect();
        in_parallel(&blobs, LOOKING, |blob| {
            let open = || self.options.fetcher.open_stored(blob).map_err(std::io::Error::other);
            match self.put(blob, None, &open) {
                Err(Trouble::Blob { .. }) => {
                    lost.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest);
                    Ok(())
                }
                put => put,
            }
        })?;
        let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        content.records.retain(|_, blobs| !blobs.iter().any(|blob| lost.contains(&blob.digest)));
        Ok(!content.records.is_empty())
    }
}

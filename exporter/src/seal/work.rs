//! Seals one layer: finds its files, and what an older blob has of it, makes the blob, and remembers it.
//!
//! The bytes of the files come from the first of these that is there: the directory of the snapshot, or that in which
//! COPY --link made the layer; the step of this build that made it without writing it down; another blob of the same
//! layer, which is brought if only a remote cache has one. Before all of them goes the blob of a layer much like this one
//! ([`crate::seed`]): what both have in common is neither read nor compressed again. If anything goes wrong with that help,
//! all is done again without.

use std::{
    io::{self, Read},
    sync::Arc,
};

use oci::{
    FileSource, Layer, Snapshot, Tree, TreeDigest,
    elsewhere::bring,
    store::{
        Store,
        sealed::{self, SealedRecord},
    },
};
use rustix::io::Errno;
use solver::{Event, StepFailure};

use super::{Built, SealError, SealOptions, SealedLayer, Shared, progress::Progress, read_tree, turn::turn};
use crate::{
    archive::ArchiveError,
    layer::{LayerError, LayerTar},
    old::{self, OldBlob, OldFirst, UnpackError},
    pipeline::{EncodeError, Encoded, Encoding, Pipeline},
    places::{self, Places, Run},
    produce::Production,
    seed,
    source::DirectorySource,
};

/// What sealing a layer needs.
pub(super) struct Work<'a> {
    pub(super) shared: &'a Shared,
    pub(super) options: &'a SealOptions,
    pub(super) job: Built,
}

/// Where the files of a layer are.
enum Files<'a> {
    /// In the directory of the snapshot with this digest.
    Directory(TreeDigest, DirectorySource),
    /// Where the step of this process took them from.
    Contents(Box<dyn FileSource + Send>),
    /// In a blob of the same layer.
    Blob(OldFirst<'a>),
    /// In nothing we know.
    Nowhere,
}

/// Has no file.
struct Nowhere;

impl FileSource for Nowhere {
    fn open(&self, _path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

impl<'a> Work<'a> {
    /// The sealed layer.
    pub(super) fn seal(&self) -> Result<SealedLayer, SealError> {
        if let Some(layer) = self.recorded().or_else(|| self.elsewhere()) {
            return Ok(layer);
        }
        let _turn = turn(self.shared, &self.job.tree, &self.name())?;
        if let Some(layer) = self.recorded() {
            return Ok(layer);
        }
        let (store, digest) = (&*self.options.store, &self.job.tree);
        if let Some(damage) = sealed::damage(store, digest, &self.name()) {
            (self.options.events)(Event::Warning(format!("{damage}; the layer is packed again")));
        }
        bring::tree(&self.options.fetcher, digest)?;
        let tree = read_tree(store, *digest)?;
        let seed = seed::find(store, digest, &tree, &self.name()).map(Arc::new);
        let Encoded { diff_id, descriptor, chunks } = match seed {
            None => self.encode(&tree, None)?,
            Some(seed) => self.encode_with(&tree, &seed)?,
        };
        let record = SealedRecord { diff_id, descriptor };
        if !chunks.is_empty() {
            old::write_table(store, digest, &self.name(), &chunks)?;
        }
        sealed::write(store, digest, &self.name(), &record)?;
        seed::leave(store, digest, &tree, &self.name())?;
        Ok(record.into())
    }

    /// What the store remembers, if its blob is still there. What came out of a cache can be mounted from there.
    pub(super) fn recorded(&self) -> Option<SealedLayer> {
        let (store, tree) = (&self.options.store, &self.job.tree);
        let record = sealed::read(store, tree, &self.name()).or_else(|| self.brought())?;
        if record.descriptor.media_type != self.options.encoder.media_type() {
            return None;
        }
        let cached = self.cached().filter(|cached| cached.descriptor.digest == record.descriptor.digest);
        Some(SealedLayer { origin: cached.and_then(|cached| cached.origin), ..record.into() })
    }

    /// What came out of a cache counts only for a build that is told the same; and where the files are here, which may be
    /// those that a step has written since, only if they have been compared. Else the layer is packed anew.
    fn brought(&self) -> Option<SealedRecord> {
        let cached = self.cached()?;
        let encoder = self.options.encoder.id();
        let name =
            if self.is_here() { sealed::name_if_read(&encoder) } else { sealed::name_if_told(&encoder) };
        let record = sealed::read(&self.options.store, &self.job.tree, &name)?;
        let is_told = (cached.diff_id, &cached.descriptor.digest, cached.descriptor.size)
            == (record.diff_id, &record.descriptor.digest, record.descriptor.size);
        is_told.then_some(record)
    }

    /// The layer as a remote cache has it, unless its files are here: these are known to be right.
    fn elsewhere(&self) -> Option<SealedLayer> {
        if self.is_here() { None } else { self.cached() }
    }

    /// Whether the store has the layer's files.
    fn is_here(&self) -> bool {
        let snapshots = self.options.store.area("snapshots");
        let is_known =
            || self.options.contents.as_ref().is_some_and(|known| known.files_of(&self.job.tree).is_some());
        self.chains().into_iter().any(|chain| snapshots.join(chain.hex()).is_dir()) || is_known()
    }

    /// The blob that is wanted, in a remote cache.
    fn cached(&self) -> Option<SealedLayer> {
        let SealOptions { fetcher, encoder, times, .. } = self.options;
        if times.id() != sealed::NORMAL {
            return None;
        }
        let (layer, descriptor) = fetcher.elsewhere().sealed_by(&self.job.tree, &encoder.id())?;
        let is_wanted = descriptor.media_type == encoder.media_type();
        is_wanted.then_some(SealedLayer { diff_id: layer.diff_id, descriptor, origin: Some(layer.origin) })
    }

    /// The snapshots that may hold the layer's files: that of its chain, and that of the layer alone.
    fn chains(&self) -> [TreeDigest; 2] {
        [self.job.chain, Snapshot::digest_of_one(&Layer::Built(self.job.tree))]
    }

    /// Under which name blobs are remembered that this sealer makes.
    fn name(&self) -> String {
        format!("{}.{}", self.options.encoder.id(), self.options.times.id())
    }

    /// Encodes with the help of a blob that need not be what it should be.
    fn encode_with(&self, tree: &Tree, seed: &Arc<OldBlob>) -> Result<Encoded, SealError> {
        let failed = match self.encode(tree, Some(seed)) {
            Err(failed) if !self.shared.is_unwanted() => failed,
            encoded => return encoded,
        };
        let encoded = self.encode(tree, None)?;
        // Without it all went well, so a file that was not what it should be was one of its.
        if seed.is_spoiled() || matches!(failed, SealError::Damaged { .. } | SealError::Changed { .. }) {
            seed.remove(&self.options.store)?;
        }
        Ok(encoded)
    }

    fn encode(&self, tree: &Tree, seed: Option<&Arc<OldBlob>>) -> Result<Encoded, SealError> {
        let files = self.files(tree)?;
        let seeded = seed.map(|seed| OldFirst { tree, old: Arc::clone(seed), rest: &files });
        let all: &dyn FileSource = seeded.as_ref().map_or(&files, |seeded| seeded);
        let encoded = self.encode_files(tree, all, seed.map(|seed| &**seed), self.shared.pipeline()?);
        encoded.map_err(|error| match error {
            _ if self.options.cancel.is_requested() => SealError::Cancelled,
            EncodeError::Store(error) => error.into(),
            EncodeError::Write(source) => {
                SealError::Write { root: self.options.store.root().to_owned(), source }
            }
            EncodeError::Produce(error) => self.explained(error, &files),
            EncodeError::DiffId(_) => unreachable!("nobody knows the diff ID of a built layer"),
        })
    }

    fn encode_files(
        &self,
        tree: &Tree,
        files: &dyn FileSource,
        seed: Option<&OldBlob>,
        pipeline: &Pipeline,
    ) -> Result<Encoded, EncodeError<LayerError>> {
        let SealOptions { store, encoder, times, .. } = self.options;
        let tar = LayerTar::new(tree, *times).map_err(EncodeError::Produce)?;
        let chunked = seed.filter(|seed| seed.has_chunks_of(&self.name()));
        let runs = runs(&tar, chunked).map_err(|error| EncodeError::Produce(error.into()))?;
        let progress = Progress::new(&self.options.events, self.job.tree, tree);
        let watch = |count: usize| {
            if self.shared.is_unwanted() {
                return Err(io::Error::other("nobody waits for this layer any more"));
            }
            progress.add(count);
            Ok(())
        };
        let wanted = tar_bytes(tree);
        let encoding =
            Encoding { encoder: *encoder, store, wanted, old: chunked, diff_id: None, watch: &watch };
        let production = Production { tar, files, old: chunked };
        let encoded = pipeline.encode(encoding, |sink| production.write(&runs, sink))?;
        progress.finish();
        Ok(encoded)
    }

    /// Where the layer's files are.
    fn files<'t>(&self, tree: &'t Tree) -> Result<Files<'t>, SealError> {
        let store = &*self.options.store;
        for chain in self.chains() {
            let directory = store.area("snapshots").join(chain.hex()).join("fs");
            match DirectorySource::open(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => {
                    let failed = |source| SealError::Read { path: directory, source };
                    return opened.map(|source| Files::Directory(chain, source)).map_err(failed);
                }
            }
        }
        if let Some(files) = self.options.contents.as_ref().and_then(|known| known.files_of(&self.job.tree)) {
            return Ok(Files::Contents(files));
        }
        let mut old = self.other_blob(store)?;
        if old.is_none() && self.bring(tree)? {
            old = self.other_blob(store)?;
        }
        let blob = old.map(|old| OldFirst { tree, old, rest: &Nowhere });
        Ok(blob.map_or(Files::Nowhere, Files::Blob))
    }

    /// Brings a blob of the layer, if a remote cache has one.
    fn bring(&self, tree: &Tree) -> Result<bool, SealError> {
        let SealOptions { fetcher, events, .. } = self.options;
        let Some(layer) = fetcher.elsewhere().get(&self.job.tree) else { return Ok(false) };
        let Some((_, blob)) = bring::best(&layer, None) else { return Ok(false) };
        let progress = Progress::of_cached(events, blob);
        let watch = |count: usize| {
            if self.shared.is_unwanted() {
                return Err(io::Error::other("nobody waits for this layer any more"));
            }
            progress.add(count);
            Ok(())
        };
        let brought = bring::blob(fetcher, &tree.digest(), None, &watch)?;
        progress.finish();
        Ok(brought.is_some())
    }

    /// Another blob of the same layer.
    fn other_blob(&self, store: &Store) -> Result<Option<Arc<OldBlob>>, SealError> {
        let tree = &self.job.tree;
        let all = sealed::all(store, tree);
        let open = |(name, record): &(String, SealedRecord)| OldBlob::open(store, tree, name, record);
        if let Some(old) = all.iter().find_map(open) {
            return Ok(Some(Arc::new(old)));
        }
        for (name, record) in &all {
            let unpacked = OldBlob::unpack(store, tree, name, record).map_err(|error| match error {
                UnpackError::Store(error) => error.into(),
                UnpackError::Write(source) => SealError::Write { root: store.root().to_owned(), source },
            })?;
            if let Some(old) = unpacked {
                return Ok(Some(Arc::new(old)));
            }
        }
        Ok(None)
    }

    /// What it means for the layer that its tar could not be written.
    fn explained(&self, error: LayerError, files: &Files) -> SealError {
        let Built { tree, chain } = self.job;
        let error = match told_by_origin(error) {
            Ok(told) => return told,
            Err(error) => error,
        };
        let (path, what) = match &error {
            LayerError::Archive(ArchiveError::Changed { path, what }) => (path.clone(), (*what).to_owned()),
            LayerError::Archive(ArchiveError::Read { path, source }) if is_gone(source) => {
                (path.clone(), format!("cannot be read: {source}"))
            }
            _ => return error.into(),
        };
        match files {
            Files::Directory(chain, _) => SealError::Damaged { chain: *chain, tree, path, what },
            Files::Contents(_) => SealError::Changed { path },
            Files::Nowhere => SealError::Gone { chain, tree },
            // One that stays will be found damaged again.
            Files::Blob(blob) => {
                self.options.fetcher.elsewhere().lose_blob(&blob.old.digest());
                match blob.old.remove(&self.options.store) {
                    Ok(()) => SealError::Gone { chain, tree },
                    Err(error) => error.into(),
                }
            }
        }
    }
}

/// What whoever has the file has said, if it has said more than the system does.
fn told_by_origin(error: LayerError) -> Result<SealError, LayerError> {
    match error {
        LayerError::Archive(ArchiveError::Read { path, source }) => match source.downcast::<StepFailure>() {
            Ok(failure) => Ok(SealError::Origin { path, source: Box::new(failure) }),
            Err(source) => Err(ArchiveError::Read { path, source }.into()),
        },
        error => Err(error),
    }
}

/// What a layer's tar takes, at most unless names or attributes are very long: each entry has a header, and an extended
/// one of two blocks.
fn tar_bytes(tree: &Tree) -> u64 {
    const BLOCK: u64 = 512;
    let bytes = |entry: &oci::Entry| match entry.kind {
        oci::EntryKind::File { size, .. } => size.next_multiple_of(BLOCK),
        _ => 0,
    };
    tree.entries().iter().map(|entry| bytes(entry) + 3 * BLOCK).sum::<u64>() + 2 * BLOCK
}

impl FileSource for Files<'_> {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Directory(_, files) => files.open(path),
            Self::Contents(files) => files.open(path),
            Self::Blob(files) => files.open(path),
            Self::Nowhere => Nowhere.open(path),
        }
    }
}

/// How a tar is made of what is there already.
fn runs(tar: &LayerTar<'_>, old: Option<&OldBlob>) -> Result<Vec<Run>, ArchiveError> {
    match old {
        None => Ok(vec![Run::New(0..tar.entries().len() + 1)]),
        Some(old) => Ok(places::shared(&Places::of(tar)?, old.places())),
    }
}

/// Whether a failed read says something about the file, and not about this process or machine at the moment.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, Other, UnexpectedEof};
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    let kinds = [InvalidData, IsADirectory, NotADirectory, NotFound, Other, UnexpectedEof];
    match code {
        Some(code) => matches!(
            code,
            Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::XDEV | Errno::IO
        ),
        None => kinds.contains(&error.kind()),
    }
}

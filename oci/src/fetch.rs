//! A blob from wherever it lies: the store, an OCI layout or a registry.
//!
//! Whatever comes out has been verified: a reader that reaches its end has read the bytes of the descriptor. A damaged
//! blob in the store is removed and counts as missing from then on; a download is done once, and who else wants the
//! blob waits for it.

use std::{
    collections::HashMap,
    error::Error,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    descriptor::Descriptor,
    digest::Sha256Digest,
    elsewhere::{RemoteLayers, told::Told},
    layer::BlobOrigin,
    layout::{self, LayoutArchive, LayoutError},
    registry::{Registry, RegistryError, find},
    store::{BlobCopy, Store, StoreError},
    verify::Verified,
};

/// How often a blob is asked for when what came was not it.
const ATTEMPTS: usize = 3;

/// Why a blob could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The bytes broke off, are the wrong ones, or could not be written.
    #[error("cannot copy blob {digest} into the store")]
    Copy {
        /// Which blob.
        digest: Sha256Digest,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl FetchError {
    /// Whether the bytes that came were others than those of the blob: asked for again they may be right.
    pub fn is_damage(&self) -> bool {
        let damaged = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
        matches!(self, Self::Copy { source, .. } if damaged.contains(&source.kind()))
    }
}

/// What the registry has failed with, behind an error of a [`Fetcher`] or of one of its readers. An error that is
/// transparent does not stand among the causes beside the one it holds, so a [`FetchError`] is looked into.
pub(crate) fn registry_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a RegistryError> {
    find(error).or_else(|| match find(error)? {
        FetchError::Registry(error) => Some(error),
        _ => None,
    })
}

/// Brings blobs. Cheap to clone; clones share what is under way.
#[derive(Debug, Clone)]
pub struct Fetcher {
    store: Arc<Store>,
    registry: Registry,
    under_way: Arc<Mutex<HashMap<Sha256Digest, Arc<Mutex<()>>>>>,
    elsewhere: RemoteLayers,
}

impl Fetcher {
    /// Brings blobs into `store`.
    pub fn new(store: Arc<Store>, registry: Registry) -> Self {
        Self { store, registry, under_way: Arc::default(), elsewhere: RemoteLayers::default() }
    }

    /// The same, which finds built layers in this list.
    pub fn with_elsewhere(self, elsewhere: RemoteLayers) -> Self {
        Self { elsewhere, ..self }
    }

    /// The same, whose transfers end once this says so (see [`Registry::until`]).
    pub fn until(&self, is_cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { registry: self.registry.until(is_cancelled), ..self.clone() }
    }

    /// The store that is looked into first, and filled.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The client behind [`BlobOrigin::Registry`].
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The built layers that remote caches have: whoever reads a cache notes them here, and whoever holds this fetcher, or
    /// a clone of it, finds them.
    pub fn elsewhere(&self) -> &RemoteLayers {
        &self.elsewhere
    }

    /// A verified stream of a blob: from the store, else from its origin. Nothing is stored. What comes out of a remote cache
    /// must have the tar that the cache has told of, too.
    ///
    /// # Errors
    /// An [`io::Error`] around a [`FetchError`]. The reader fails with one around a [`crate::verify::BlobError`], or
    /// around a [`RegistryError::Damaged`] that holds one, when the bytes are not the blob's; with one around a
    /// [`crate::elsewhere::bring::Loss`] when they are not the layer's.
    pub fn open(&self, descriptor: &Descriptor, origin: &BlobOrigin) -> io::Result<Box<dyn Read + Send>> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let is_stored = self.store.has_blob(digest, size);
        let cached = (!is_stored).then(|| self.elsewhere.of_blob(digest, origin)).flatten();
        let stream = self.open_as_it_is(descriptor, origin)?;
        match cached {
            Some(layer) if layer.tree_blob.digest != *digest => {
                Ok(Box::new(Told::new(stream, size, layer.diff_id)?))
            }
            _ => Ok(stream),
        }
    }

    /// The same for somebody who looks at a layer's tar himself.
    pub(crate) fn open_as_it_is(
        &self,
        descriptor: &Descriptor,
        origin: &BlobOrigin,
    ) -> io::Result<Box<dyn Read + Send>> {
        if self.store.has_blob(&descriptor.digest, descriptor.size) {
            return self.open_stored(descriptor).map_err(io::Error::other);
        }
        self.open_origin(descriptor, origin).map_err(io::Error::other)
    }

    /// The same for somebody who reads all of it: a blob of a registry is copied into the store on its way.
    ///
    /// # Errors
    /// As those of [`Fetcher::open`].
    pub fn arrive(&self, descriptor: &Descriptor, origin: &BlobOrigin) -> io::Result<Arriving> {
        let is_stored = self.store.has_blob(&descriptor.digest, descriptor.size);
        let is_remote = matches!(origin, BlobOrigin::Registry(_)) && !is_stored;
        let copy = is_remote.then(|| self.store.blob_copy()).transpose().map_err(io::Error::other)?;
        let copy = copy.map(|copy| copy.expecting(descriptor.size));
        Ok(Arriving::new(self.open(descriptor, origin)?, descriptor, copy))
    }

    /// Makes sure the store holds a blob. Its bytes are verified when they are copied, not when they are there already.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn ensure(&self, descriptor: &Descriptor, origin: &BlobOrigin) -> Result<(), FetchError> {
        self.in_turn(descriptor.digest, || self.copy_if_missing(descriptor, origin))
    }

    /// Does something with a blob while nobody else who asks in this way does.
    pub(crate) fn in_turn<T>(&self, digest: Sha256Digest, work: impl FnOnce() -> T) -> T {
        let turn = self.turn(digest);
        let done = {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        self.under_way().remove(&digest);
        done
    }

    /// What callers that want the same blob wait on.
    fn turn(&self, digest: Sha256Digest) -> Arc<Mutex<()>> {
        self.under_way().entry(digest).or_default().clone()
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<Sha256Digest, Arc<Mutex<()>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy_if_missing(&self, descriptor: &Descriptor, origin: &BlobOrigin) -> Result<(), FetchError> {
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
            if self.store.has_blob(&descriptor.digest, descriptor.size) {
                return Ok(());
            }
            result = self.copy(descriptor, origin);
            match &result {
                Err(error) if error.is_damage() => {}
                _ => return result,
            }
        }
        result
    }

    fn copy(&self, descriptor: &Descriptor, origin: &BlobOrigin) -> Result<(), FetchError> {
        let copy = Some(self.store.blob_copy()?.expecting(descriptor.size));
        Arriving::new(self.open_origin(descriptor, origin)?, descriptor, copy).keep()
    }

    fn open_origin(
        &self,
        descriptor: &Descriptor,
        origin: &BlobOrigin,
    ) -> Result<Box<dyn Read + Send>, FetchError> {
        match origin {
            // What a cache does not give is made; and nobody mirrors caches.
            BlobOrigin::Registry(cache) if self.elsewhere.of_blob(&descriptor.digest, origin).is_some() => {
                Ok(self.registry.direct().briefly().pull_blob(cache, descriptor)?)
            }
            BlobOrigin::Registry(reference) => Ok(self.registry.pull_blob(reference, descriptor)?),
            BlobOrigin::OciLayout(archive) if archive.is_file() => {
                let blob = LayoutArchive::open(archive)?.open_blob(&descriptor.digest)?;
                Ok(Box::new(Verified::new(blob, descriptor)))
            }
            BlobOrigin::OciLayout(directory) => {
                let file = layout::open_blob(directory, &descriptor.digest)?;
                Ok(Box::new(Verified::new(file, descriptor)))
            }
        }
    }

    /// A verified stream of a blob that is in the store; one that turns out to be damaged is removed from it.
    ///
    /// # Errors
    /// [`StoreError`]. The reader fails as that of [`Fetcher::open`] does.
    pub fn open_stored(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, StoreError> {
        let file = self.store.open_blob(&descriptor.digest)?;
        let inner = Verified::new(file, descriptor);
        Ok(Box::new(Stored { inner, store: self.store.clone(), digest: descriptor.digest }))
    }
}

/// A verified stream of a blob, and the copy of it that is to stay in the store, if there is one. The bytes are hashed
/// once: what the verifying reader hands out is what is written. Dropped without [`Arriving::keep`], it leaves nothing.
pub struct Arriving {
    inner: Box<dyn Read + Send>,
    copy: Option<BlobCopy>,
    digest: Sha256Digest,
    size: u64,
}

impl Arriving {
    /// `inner` ends without an error only after all bytes of the blob, and only if they were the right ones.
    fn new(inner: Box<dyn Read + Send>, descriptor: &Descriptor, copy: Option<BlobCopy>) -> Self {
        Self { inner, copy, digest: descriptor.digest, size: descriptor.size }
    }

    /// Whether a copy will stay.
    pub fn is_copied(&self) -> bool {
        self.copy.is_some()
    }

    /// Reads what is left, which verifies the blob, and puts the copy in place.
    ///
    /// # Errors
    /// [`FetchError::Copy`] or [`FetchError::Store`].
    pub fn keep(mut self) -> Result<(), FetchError> {
        let rest = io::copy(&mut self, &mut io::sink());
        rest.map_err(|source| FetchError::Copy { digest: self.digest, source })?;
        match self.copy {
            Some(copy) => Ok(copy.commit_verified(&self.digest, self.size)?),
            None => Ok(()),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        Ok(count)
    }
}

/// A blob of the store that has turned out to be damaged; found inside the [`io::Error`] of a reader. It is gone from
/// there by now.
#[derive(Debug, thiserror::Error)]
#[error("the store's copy of blob {digest} is damaged and was removed")]
pub struct DamagedBlob {
    digest: Sha256Digest,
    #[source]
    source: io::Error,
}

impl DamagedBlob {
    /// What the reader of a blob has found.
    pub fn new(digest: Sha256Digest, source: io::Error) -> Self {
        Self { digest, source }
    }
}

/// A blob of the store that is removed from it when it turns out to be damaged.
struct Stored<R> {
    inner: Verified<R>,
    store: Arc<Store>,
    digest: Sha256Digest,
}

impl<R: Read> Read for Stored<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        if let Err(error) = &result
            && matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        {
            // The damage is what the caller must hear of; a blob that stays will be found damaged again.
            let _ = self.store.remove_blob(&self.digest);
            let damaged =
                |error: io::Error| io::Error::new(error.kind(), DamagedBlob::new(self.digest, error));
            return result.map_err(damaged);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Barrier};

    use super::*;
    use crate::{descriptor::MediaType, registry::RegistryOptions};

    struct Fixture {
        _root: tempfile::TempDir,
        layout: tempfile::TempDir,
        fetcher: Fetcher,
    }

    fn fixture(blobs: &[(&[u8], &[u8])]) -> Fixture {
        let (root, layout) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let directory = layout.path().join("blobs/sha256");
        fs::create_dir_all(&directory).expect("writable");
        for (name, content) in blobs {
            fs::write(directory.join(Sha256Digest::of(name).hex()), content).expect("writable");
        }
        let store = Arc::new(Store::open(root.path()).expect("a store"));
        let registry = Registry::new(RegistryOptions::default()).expect("a client");
        Fixture { fetcher: Fetcher::new(store, registry), _root: root, layout }
    }

    fn layer(content: &[u8]) -> Descriptor {
        Descriptor::of(MediaType::OciLayer, content)
    }

    fn origin(directory: &Path) -> BlobOrigin {
        BlobOrigin::OciLayout(directory.to_owned())
    }

    #[test]
    fn a_blob_is_brought_once_and_then_read_from_the_store() {
        let fixture = fixture(&[(b"layer", b"layer")]);
        let (descriptor, origin) = (layer(b"layer"), origin(fixture.layout.path()));
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    fixture.fetcher.ensure(&descriptor, &origin).expect("fetched");
                });
            }
        });
        fs::remove_dir_all(fixture.layout.path().join("blobs")).expect("ours");
        let mut bytes = Vec::new();
        fixture.fetcher.open(&descriptor, &origin).expect("stored").read_to_end(&mut bytes).expect("whole");
        assert_eq!(bytes, b"layer");
        assert!(fixture.fetcher.under_way().is_empty());
    }

    #[test]
    fn what_was_read_of_a_blob_that_is_kept_is_not_lost_and_not_trusted() {
        let fixture = fixture(&[(b"layer", b"layer"), (b"wrong", b"wr0ng"), (b"short", b"shor")]);
        let (fetcher, origin) = (&fixture.fetcher, origin(fixture.layout.path()));
        let arriving = |name: &[u8]| {
            let copy = Some(fetcher.store.blob_copy().expect("a temporary"));
            let descriptor = layer(name);
            Arriving::new(fetcher.open_origin(&descriptor, &origin).expect("it is there"), &descriptor, copy)
        };
        let mut some = arriving(b"layer");
        some.read_exact(&mut [0; 2]).expect("two bytes");
        some.keep().expect("it reads the others");
        let stored = fetcher.store.blob_path(&Sha256Digest::of(b"layer"));
        assert_eq!(fs::read(stored).expect("stored"), b"layer");
        for name in [b"wrong", b"short"] {
            let mut bad = arriving(name);
            bad.read_to_end(&mut Vec::new()).expect_err("not these bytes");
            // Who does not look at that error does not get around it either.
            assert!(matches!(bad.keep(), Err(FetchError::Copy { .. })));
            assert!(!fetcher.store.has_blob(&Sha256Digest::of(name), 5));
        }
        assert!(!fetcher.arrive(&layer(b"layer"), &origin).expect("stored").is_copied());
    }

    #[test]
    fn wrong_bytes_of_a_layout_are_noticed_and_not_stored() {
        let fixture = fixture(&[(b"layer", b"l4yer"), (b"long", b"longer")]);
        let origin = origin(fixture.layout.path());
        for name in [b"layer".as_slice(), b"long"] {
            let error = fixture.fetcher.ensure(&layer(name), &origin).expect_err("not these bytes");
            assert!(matches!(error, FetchError::Copy { .. }), "{error}");
            assert!(!fixture.fetcher.store().has_blob(&Sha256Digest::of(name), name.len() as u64));
        }
        assert!(matches!(fixture.fetcher.ensure(&layer(b"absent"), &origin), Err(FetchError::Layout(_))));
    }

    #[test]
    fn a_blob_that_was_damaged_in_the_store_is_a_miss_from_then_on() {
        let fixture = fixture(&[(b"layer", b"layer")]);
        let (descriptor, origin) = (layer(b"layer"), origin(fixture.layout.path()));
        let (fetcher, store) = (&fixture.fetcher, fixture.fetcher.store());
        fetcher.ensure(&descriptor, &origin).expect("fetched");
        store.write_atomic(&store.blob_path(&descriptor.digest), b"l4yer").expect("damaged");

        let read = || fetcher.open(&descriptor, &origin).expect("opened").read_to_end(&mut Vec::new());
        assert_eq!(read().expect_err("damaged").kind(), io::ErrorKind::InvalidData);
        assert_eq!(read().expect("from the layout"), 5);
        fetcher.ensure(&descriptor, &origin).expect("fetched again");
        assert!(store.has_blob(&descriptor.digest, 5));
    }
}

//! Brings a layer out of a remote cache into the store: its tree, or a blob of it. From then on no cache is asked for it.
//!
//! Nothing that comes is believed. The tree must have the digest that names the layer; a blob has the size and digest of
//! its descriptor, and is unpacked on its way, since its tar must have the diff ID that the cache has told. That the files in
//! it are those of the tree is seen by whoever writes them, and that its bytes are those which this builder would have made is
//! seen by nobody: the store remembers it under a name of its own ([`sealed::name_if_told`]). What is missing or wrong is
//! *lost* at once, so that who tries again does without; when everything in a cache is, [`super::row`] says.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{RemoteLayer, told::diff_id};
use crate::{
    descriptor::Descriptor,
    digest::{DiffId, TreeDigest},
    fetch::{Fetcher, registry_error},
    packed::TREE_MAX,
    registry::{RegistryError, find},
    store::{
        BlobCopy, StoreError,
        sealed::{self, SealedRecord},
    },
    tree::{Tree, TreeError},
    verify::BlobError,
};

/// How often a blob is asked for when what came was not it.
const ATTEMPTS: usize = 3;

/// Is told how many bytes have come; an error ends the transfer, and means that the build is stopped.
pub type Watch<'a> = &'a (dyn Fn(usize) -> io::Result<()> + Sync);

/// Why a layer did not come.
#[derive(Debug, thiserror::Error)]
pub enum BringError {
    /// It cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its bytes cannot be written.
    #[error("cannot copy a layer out of the cache {from} into the store")]
    Write {
        /// What the cache is called.
        from: Box<str>,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cache does not have it after all, or something else in its place. [`super::RemoteLayers`] tells nobody of it any
    /// more.
    #[error("layer {:.12} cannot be had from the cache {from}", layer.hex())]
    Lost {
        /// The layer.
        layer: TreeDigest,
        /// What the cache is called.
        from: Box<str>,
        /// What is wrong.
        #[source]
        source: Loss,
    },
    /// The user stopped the build.
    #[error("cancelled")]
    Cancelled,
}

/// What is wrong with a layer in a cache.
#[derive(Debug, thiserror::Error)]
pub enum Loss {
    /// A blob cannot be had, or cannot be read.
    #[error("cannot read blob {}", blob.digest)]
    Blob {
        /// Which.
        blob: Box<Descriptor>,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its tree is none.
    #[error("its tree makes no sense")]
    Tree(#[source] TreeError),
    /// Its tree is another layer's.
    #[error("its tree is that of layer {:.12}", .0.hex())]
    OtherTree(TreeDigest),
    /// Its blob is another layer's.
    #[error("its tar is {found}, and the cache says {told}")]
    DiffId {
        /// What the cache says.
        told: DiffId,
        /// What it is.
        found: DiffId,
    },
    /// The cache names an encoder that cannot be one.
    #[error("its encoder has the impossible name {0:?}")]
    Encoder(String),
}

/// Makes sure that the store has the tree of a layer. `false` where it has not, and no cache is known to have it.
///
/// # Errors
/// [`BringError`]
pub fn tree(fetcher: &Fetcher, tree: &TreeDigest) -> Result<bool, BringError> {
    let path = tree_path(tree);
    fetcher.store().pin(&[&path])?;
    let is_there = || fetcher.store().root().join(&path).is_file();
    if is_there() {
        return Ok(true);
    }
    let Some(layer) = fetcher.elsewhere().get(tree) else { return Ok(false) };
    fetcher.in_turn(layer.tree_blob.digest, || {
        if is_there() {
            return Ok(true);
        }
        let brought = bring_tree(fetcher, &layer, &path);
        brought.map(|()| true).map_err(|failed| failed.of(fetcher, &layer))
    })
}

/// Makes sure that the store has a blob of a layer: one by this encoder where the cache has one, else the smallest. `None`
/// where no cache is known to have the layer.
///
/// # Errors
/// [`BringError`]
pub fn blob(
    fetcher: &Fetcher,
    tree: &TreeDigest,
    encoder: Option<&str>,
    watch: Watch<'_>,
) -> Result<Option<SealedRecord>, BringError> {
    let Some(layer) = fetcher.elsewhere().get(tree) else { return Ok(None) };
    let Some((encoder, descriptor)) = best(&layer, encoder) else { return Ok(None) };
    let name = sealed::name_if_told(encoder);
    fetcher.in_turn(descriptor.digest, || {
        if let Some(record) = sealed::read(fetcher.store(), tree, &name) {
            return Ok(Some(record));
        }
        let copied = named(encoder).and_then(|()| copy(fetcher, &layer, descriptor, watch));
        copied.map_err(|failed| failed.of(fetcher, &layer))?;
        let record = SealedRecord { diff_id: layer.diff_id, descriptor: descriptor.clone() };
        sealed::write(fetcher.store(), tree, &name, &record)?;
        Ok(Some(record))
    })
}

/// The blob of a layer that is brought.
pub fn best<'a>(layer: &'a RemoteLayer, encoder: Option<&str>) -> Option<(&'a str, &'a Descriptor)> {
    let wanted = encoder.and_then(|encoder| layer.blobs.get_key_value(encoder));
    let chosen = wanted.or_else(|| layer.blobs.iter().min_by_key(|(_, blob)| blob.size));
    chosen.map(|(encoder, blob)| (encoder.as_str(), blob))
}

/// Why a layer did not come, before it is known of which cache that is told.
enum Failed {
    Store(StoreError),
    Write(io::Error),
    Loss(Loss),
    Cancelled,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failed {
    /// A blob could not be read.
    fn reading(blob: &Descriptor, source: io::Error) -> Self {
        match registry_error(&source) {
            Some(RegistryError::Cancelled) => Self::Cancelled,
            _ => Self::Loss(Loss::Blob { blob: Box::new(blob.clone()), source }),
        }
    }

    /// What it means for the layer.
    fn of(self, fetcher: &Fetcher, layer: &RemoteLayer) -> BringError {
        let from = layer.origin.to_string().into_boxed_str();
        match self {
            Self::Store(error) => error.into(),
            Self::Write(source) => BringError::Write { from, source },
            Self::Cancelled => BringError::Cancelled,
            Self::Loss(source) => {
                fetcher.elsewhere().lose(layer.tree);
                match &source {
                    Loss::Blob { blob, source } => {
                        fetcher.elsewhere().failed(&layer.origin, &blob.digest, source);
                    }
                    // It has come, whatever it is.
                    _ => fetcher.elsewhere().answered(&layer.origin),
                }
                BringError::Lost { layer: layer.tree, from, source }
            }
        }
    }

    fn is_damage(&self) -> bool {
        matches!(self, Self::Loss(loss) if find::<BlobError>(loss).is_some())
    }
}

/// Names of encoders are names of files in the store.
fn named(encoder: &str) -> Result<(), Failed> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = encoder.len() <= 100 && encoder.starts_with(|c: char| c.is_ascii_alphanumeric());
    match is_name && encoder.chars().all(is_plain) {
        true => Ok(()),
        false => Err(Failed::Loss(Loss::Encoder(encoder.chars().take(100).collect()))),
    }
}

fn tree_path(tree: &TreeDigest) -> PathBuf {
    Path::new("trees").join(tree.hex())
}

/// Writes the canonical encoding of a layer's tree into the store.
fn bring_tree(fetcher: &Fetcher, layer: &RemoteLayer, path: &Path) -> Result<(), Failed> {
    let blob = &layer.tree_blob;
    let wrong = |source| Failed::reading(blob, source);
    let fetch = || again_if_damaged(|| read(fetcher, layer, blob).map_err(wrong));
    fetcher.elsewhere().turns.tree(blob.size, fetch, |bytes| {
        let bytes = bytes.map_err(wrong)?;
        let tree = Tree::from_bytes(&bytes).map_err(|error| Failed::Loss(Loss::Tree(error)))?;
        match tree.digest() {
            digest if digest == layer.tree => Ok(fetcher.store().write_atomic(path, &bytes)?),
            other => Err(Failed::Loss(Loss::OtherTree(other))),
        }
    })
}

fn read(fetcher: &Fetcher, layer: &RemoteLayer, blob: &Descriptor) -> io::Result<Vec<u8>> {
    if blob.size > TREE_MAX {
        return Err(io::Error::other(format!("it has {} bytes, which no tree has", blob.size)));
    }
    let mut bytes = Vec::new();
    fetcher.open_as_it_is(blob, &layer.origin)?.read_to_end(&mut bytes)?;
    fetcher.elsewhere().answered(&layer.origin);
    Ok(bytes)
}

/// Tries again as long as what comes is not what was asked for.
fn again_if_damaged<T>(attempt: impl Fn() -> Result<T, Failed>) -> Result<T, Failed> {
    let mut done = attempt();
    for _ in 1..ATTEMPTS {
        if !done.as_ref().is_err_and(Failed::is_damage) {
            break;
        }
        done = attempt();
    }
    done
}

/// Copies a blob into the store if it is not there, once its tar has turned out to be that of the layer.
fn copy(fetcher: &Fetcher, layer: &RemoteLayer, blob: &Descriptor, watch: Watch<'_>) -> Result<(), Failed> {
    again_if_damaged(|| copy_once(fetcher, layer, blob, watch))
}

fn copy_once(
    fetcher: &Fetcher,
    layer: &RemoteLayer,
    blob: &Descriptor,
    watch: Watch<'_>,
) -> Result<(), Failed> {
    let store = fetcher.store();
    let is_stored = store.has_blob(&blob.digest, blob.size);
    let copy = (!is_stored).then(|| store.blob_copy()).transpose()?;
    let copy = copy.map(|copy| copy.expecting(blob.size));
    let inner = fetcher.open_as_it_is(blob, &layer.origin).map_err(|error| Failed::reading(blob, error))?;
    let mut arriving = Arriving { inner, copy, watch, failed: None };
    let found = diff_id(&mut arriving);
    if let Some(failed) = arriving.failed {
        return Err(failed);
    }
    let found = found.map_err(|error| Failed::reading(blob, error))?;
    if found != layer.diff_id {
        return Err(Failed::Loss(Loss::DiffId { told: layer.diff_id, found }));
    }
    match arriving.copy {
        Some(copy) => {
            fetcher.elsewhere().answered(&layer.origin);
            Ok(copy.commit_verified(&blob.digest, blob.size)?)
        }
        None => Ok(()),
    }
}

/// A verified blob that is written to the store while it is read.
struct Arriving<'a> {
    inner: Box<dyn Read + Send>,
    copy: Option<BlobCopy>,
    watch: Watch<'a>,
    /// What failed on this side.
    failed: Option<Failed>,
}

impl Arriving<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        (self.watch)(bytes.len()).map_err(|_| Failed::Cancelled)?;
        match &mut self.copy {
            Some(copy) => copy.write_all(bytes).map_err(Failed::Write),
            None => Ok(()),
        }
    }
}

impl Read for Arriving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.take(&buffer[..count]).map_err(|failed| {
            self.failed = Some(failed);
            io::Error::other("nobody takes the bytes any more")
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, sync::Arc};

    use super::*;
    use crate::{
        BlobOrigin, Entry, EntryKind, MediaType, Metadata, Sha256Digest,
        packed::{TREE_MEDIA_TYPE, pack},
        registry::{Registry, RegistryOptions},
        store::Store,
    };

    const ENCODER: &str = "gzip-test";

    /// A store that lacks a layer, and a directory that has it.
    struct Ground {
        _root: tempfile::TempDir,
        cache: tempfile::TempDir,
        fetcher: Fetcher,
        layer: RemoteLayer,
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn a_tree(path: &str) -> Tree {
        let entry = Entry { path: path.into(), kind: EntryKind::Directory, metadata: Metadata::default() };
        Tree::new(vec![entry]).expect("one entry")
    }

    fn ground(change: impl FnOnce(&mut RemoteLayer, &dyn Fn(MediaType, &[u8]) -> Descriptor)) -> Ground {
        let (root, cache) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        fs::create_dir_all(cache.path().join("blobs/sha256")).expect("made");
        let put = |media_type: MediaType, bytes: &[u8]| {
            let blob = Descriptor::of(media_type, bytes);
            fs::write(cache.path().join("blobs/sha256").join(blob.digest.hex()), bytes).expect("written");
            blob
        };
        let (tree, tar) = (a_tree("d"), vec![7; 100_000]);
        let tree_type = || MediaType::Other(TREE_MEDIA_TYPE.to_owned());
        let mut layer = RemoteLayer {
            tree: tree.digest(),
            diff_id: Sha256Digest::of(&tar).into(),
            blobs: [(ENCODER.to_owned(), put(MediaType::OciLayerGzip, &gzip(&tar)))].into(),
            tree_blob: put(tree_type(), &pack(&tree.to_bytes())),
            origin: BlobOrigin::OciLayout(cache.path().to_owned()),
        };
        change(&mut layer, &put);
        let store = Arc::new(Store::open(root.path()).expect("a store"));
        let fetcher = Fetcher::new(store, Registry::new(RegistryOptions::default()).expect("a client"));
        fetcher.elsewhere().note(layer.clone());
        Ground { _root: root, cache, fetcher, layer }
    }

    impl Ground {
        fn tree(&self) -> Result<bool, BringError> {
            tree(&self.fetcher, &self.layer.tree)
        }

        fn blob(&self) -> Result<Option<SealedRecord>, BringError> {
            blob(&self.fetcher, &self.layer.tree, None, &|_| Ok(()))
        }

        /// Nothing of the layer has come, and nobody is told of it any more.
        fn has_lost(&self, error: &BringError) -> bool {
            let (store, tree) = (self.fetcher.store(), &self.layer.tree);
            let is_stored =
                !sealed::all(store, tree).is_empty() || store.root().join(tree_path(tree)).exists();
            let blobs = fs::read_dir(store.area("blobs/sha256")).expect("listed").count();
            let is_lost =
                self.fetcher.elsewhere().is_lost(tree) && self.fetcher.elsewhere().get(tree).is_none();
            matches!(error, BringError::Lost { .. }) && is_lost && !is_stored && blobs == 0
        }

        fn damage(&self, blob: &Descriptor, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
            let path = self.cache.path().join("blobs/sha256").join(blob.digest.hex());
            let bytes = fs::read(&path).expect("there");
            fs::remove_file(&path).expect("ours");
            if let Some(bytes) = change(bytes) {
                fs::write(&path, bytes).expect("ours");
            }
        }
    }

    #[test]
    fn what_was_brought_is_in_the_store_and_not_asked_for_again() {
        let ground = ground(|_, _| {});
        assert!(ground.tree().expect("brought"));
        let record = ground.blob().expect("brought").expect("known");
        assert_eq!(record.descriptor, ground.layer.blobs[ENCODER]);
        let name = sealed::name_if_told(ENCODER);
        assert_eq!(sealed::read(ground.fetcher.store(), &ground.layer.tree, &name), Some(record.clone()));
        fs::remove_dir_all(ground.cache.path().join("blobs")).expect("ours");
        assert!(ground.tree().expect("there"));
        assert_eq!(ground.blob().expect("there"), Some(record));
        assert!(!tree(&ground.fetcher, &TreeDigest::new([1; 32])).expect("nobody has it"));
    }

    #[test]
    fn what_is_gone_or_damaged_is_lost() {
        type Change = fn(Vec<u8>) -> Option<Vec<u8>>;
        let flip = |mut bytes: Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        };
        let changes: [Change; 4] = [
            |_| None,
            |bytes| Some(bytes[..bytes.len() / 2].to_vec()),
            flip,
            |bytes| Some([bytes, vec![0]].concat()),
        ];
        for change in changes {
            let cache = ground(|_, _| {});
            cache.damage(&cache.layer.tree_blob, change);
            assert!(cache.has_lost(&cache.tree().expect_err("not the tree")));
            let cache = ground(|_, _| {});
            cache.damage(&cache.layer.blobs[ENCODER], change);
            assert!(cache.has_lost(&cache.blob().expect_err("not the blob")));
        }
    }

    #[test]
    fn what_is_another_layers_is_lost() {
        type Put<'a> = &'a dyn Fn(MediaType, &[u8]) -> Descriptor;
        let other_tree = |layer: &mut RemoteLayer, put: Put<'_>| {
            layer.tree_blob = put(layer.tree_blob.media_type.clone(), &pack(&a_tree("e").to_bytes()));
        };
        let no_tree = |layer: &mut RemoteLayer, put: Put<'_>| {
            layer.tree_blob = put(layer.tree_blob.media_type.clone(), &pack(b"no tree"));
        };
        let unpacked_tree = |layer: &mut RemoteLayer, put: Put<'_>| {
            layer.tree_blob = put(layer.tree_blob.media_type.clone(), &a_tree("d").to_bytes());
        };
        for (change, what) in [
            (&other_tree as &dyn Fn(&mut RemoteLayer, Put<'_>), "OtherTree"),
            (&no_tree, "Tree"),
            (&unpacked_tree, "Blob"),
        ] {
            let ground = ground(|layer, put| change(layer, put));
            let error = ground.tree().expect_err("not the tree");
            let is_it =
                matches!(&error, BringError::Lost { source, .. } if format!("{source:?}").starts_with(what));
            assert!(is_it && ground.has_lost(&error), "{error:?}");
        }
        let other_blob = ground(|layer, put| {
            layer.blobs.insert(ENCODER.to_owned(), put(MediaType::OciLayerGzip, &gzip(b"another tar")));
        });
        let error = other_blob.blob().expect_err("not the blob");
        assert!(matches!(error, BringError::Lost { source: Loss::DiffId { .. }, .. }), "{error:?}");
        assert!(other_blob.has_lost(&error));
        for name in ["../../x", "a/b", "", ".x"] {
            let ground = ground(|layer, _| {
                let (_, blob) = layer.blobs.pop_first().expect("one");
                layer.blobs.insert(name.to_owned(), blob);
            });
            assert!(ground.has_lost(&ground.blob().expect_err("no file name")), "{name}");
        }
    }

    #[test]
    fn who_stops_loses_nothing() {
        let ground = ground(|_, _| {});
        let stopped = blob(&ground.fetcher, &ground.layer.tree, None, &|_| Err(io::Error::other("stop")));
        assert!(matches!(stopped, Err(BringError::Cancelled)));
        assert!(ground.fetcher.elsewhere().get(&ground.layer.tree).is_some());
        assert!(ground.blob().expect("still there").is_some());
    }

    #[test]
    fn the_wanted_encoder_goes_before_the_smallest_blob() {
        let ground = ground(|layer, put| {
            layer.blobs.insert("uncompressed".to_owned(), put(MediaType::OciLayer, &[7; 100_000]));
        });
        let name = |wanted| best(&ground.layer, wanted).expect("two").0.to_owned();
        assert_eq!(name(None), ENCODER);
        assert_eq!(name(Some("uncompressed")), "uncompressed");
        assert_eq!(name(Some("zstd")), ENCODER);
    }
}

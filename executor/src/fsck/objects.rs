//! Blobs, trees, what is remembered of sealed layers, cache records, and all other files that prove themselves.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use oci::{
    Layer, Sha256Digest, Snapshot, Tree, TreeDigest,
    digest::Sha256Hasher,
    store::{
        checked::{self, CheckedError},
        sealed::{self, SealedRecord},
    },
};
use rayon::prelude::*;
use solver::{Key, Record};

use super::{Check, Found, FsckError, damage, digest_of, names};
use crate::{
    cache,
    catalogue::{self, Catalogue, CatalogueError},
    gc,
    snapshot::Meta,
};

/// Read at a time.
const BLOCK: usize = 256 << 10;

const MADE_AGAIN: &str = "the layer is fetched or made again when a build needs it";
const RUN_AGAIN: &str = "the step runs again";
const SEALED_AGAIN: &str = "the layer is packed again when a build needs its blob";
const READ_AGAIN: &str = "the layer is read again when a build looks at what it holds";
const FORGOTTEN: &str = "it is forgotten; no build needs it";

impl Check<'_> {
    /// Blobs and trees, whose names are their digests.
    pub(super) fn objects(&self, found: &mut Found) -> Result<(), FsckError> {
        let blobs = self.each("blobs/sha256", |name| self.blob(name))?;
        for (path, (digest, what)) in blobs {
            found.bad_blobs.insert(digest);
            found.add(path, what, MADE_AGAIN);
        }
        let trees = self.each("trees", |name| self.tree(name))?;
        for (path, (digest, what)) in trees {
            found.bad_trees.insert(digest);
            found.add(path, what, RUN_AGAIN);
        }
        Ok(())
    }

    fn blob(&self, name: &str) -> Result<Option<(Sha256Digest, String)>, FsckError> {
        let Ok(digest) = format!("sha256:{name}").parse::<Sha256Digest>() else { return Ok(None) };
        let path = self.store.blob_path(&digest);
        let wrong = match File::open(&path).and_then(|file| self.sha256(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(unreadable(&path, error)?),
            Ok(found) if found == digest => None,
            Ok(found) => Some(format!("its content has the digest {found}")),
        };
        Ok(wrong.map(|what| (digest, what)))
    }

    fn sha256(&self, mut file: File) -> io::Result<Sha256Digest> {
        let (mut hasher, mut block) = (Sha256Hasher::default(), vec![0; BLOCK]);
        loop {
            match file.read(&mut block) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => {
                    hasher.update(&block[..count]);
                    self.count("blobs/sha256", 0, count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn tree(&self, name: &str) -> Result<Option<(TreeDigest, String)>, FsckError> {
        let Some(digest) = digest_of(name) else { return Ok(None) };
        let path = self.store.area("trees").join(name);
        let wrong = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(unreadable(&path, error)?),
            Ok(bytes) => {
                self.count("trees", 0, bytes.len() as u64);
                match Tree::from_bytes(&bytes) {
                    Err(error) => Some(error.to_string()),
                    Ok(tree) if tree.digest() != digest => Some("it is another tree".to_owned()),
                    Ok(_) => None,
                }
            }
        };
        Ok(wrong.map(|what| (digest, what)))
    }

    /// What is remembered of sealed layers, and that their blobs are there.
    pub(super) fn sealed(&self, found: &mut Found) -> Result<(), FsckError> {
        let directories = self.names("sealed")?;
        let directories: Vec<_> = directories.iter().filter_map(|name| digest_of(name.to_str()?)).collect();
        let bad = &found.bad_blobs;
        let look = |tree: &TreeDigest| {
            let directory = sealed::directory(tree);
            let names = self.names(&directory.display().to_string())?;
            let mut wrong = Vec::new();
            for path in names.iter().map(|name| directory.join(name)) {
                let what = self.sealed_file(&path, bad)?;
                self.count("sealed", 1, 0);
                wrong.extend(what.map(|what| (path, what)));
            }
            Ok(wrong)
        };
        let wrong = directories.par_iter().map(look).collect::<Result<Vec<_>, FsckError>>()?;
        wrong.into_iter().flatten().for_each(|(path, what)| found.add(path, what, SEALED_AGAIN));
        Ok(())
    }

    /// A record; or what is kept beside it of the blob's making, which proves itself and names nothing.
    fn sealed_file(&self, path: &Path, bad: &BTreeSet<Sha256Digest>) -> Result<Option<String>, FsckError> {
        let file = self.store.root().join(path);
        if path.extension().is_none_or(|extension| extension != "json") {
            return checked::verify(&file).map(|_| None).or_else(|error| damage(error).map(Some));
        }
        match checked::read(&file, sealed::VERSION) {
            Ok(None) => Ok(None),
            Ok(Some(record)) => Ok(self.lacking_blob(&record, bad, path)),
            Err(error) => damage(error).map(Some),
        }
    }

    fn lacking_blob(
        &self,
        record: &SealedRecord,
        bad: &BTreeSet<Sha256Digest>,
        path: &Path,
    ) -> Option<String> {
        let digest = &record.descriptor.digest;
        if bad.contains(digest) {
            return Some(format!("its blob {digest} is damaged"));
        }
        let is_lacking = !record.is_held(self.store) && self.is_there(path);
        is_lacking.then(|| format!("its blob {digest} is missing"))
    }

    /// Cache records, and that their layers can be had.
    pub(super) fn records(&self, found: &mut Found) -> Result<(), FsckError> {
        for area in ["records/definition", "records/content"] {
            let key = if area.ends_with("content") { Key::Content } else { Key::Definition };
            let wrong = self.each(area, |name| {
                let Some(digest) = name.strip_suffix(".json").and_then(digest_of) else { return Ok(None) };
                match cache::read_record(self.store, &key(digest)) {
                    Ok(None) => Ok(None),
                    Ok(Some(kept)) => {
                        Ok(self.lacking_layer(&kept.record, found, &Path::new(area).join(name)))
                    }
                    Err(cache::RecordError::File(error)) => damage(error).map(Some),
                    Err(error) => Ok(Some(error.to_string())),
                }
            })?;
            wrong.into_iter().for_each(|(path, what)| found.add(path, what, RUN_AGAIN));
        }
        Ok(())
    }

    /// The first layer of a record that a step made and that is not in the store, whole.
    fn lacking_layer(&self, record: &Record, found: &Found, path: &Path) -> Option<String> {
        let lacking = record.snapshot.chain().find_map(|(chain, layer)| {
            let Layer::Built(tree) = layer else { return None };
            self.lack(&chain, layer, tree, found)
        })?;
        self.is_there(path).then_some(lacking)
    }

    fn lack(&self, chain: &TreeDigest, layer: &Layer, tree: &TreeDigest, found: &Found) -> Option<String> {
        let file = Path::new("trees").join(tree.hex());
        if found.bad_trees.contains(tree) || !self.is_there(&file) {
            return Some(format!("its layer {tree} is not there: {} is damaged or missing", file.display()));
        }
        let alone = Snapshot::digest_of_one(layer);
        let is_good = |digest: &TreeDigest| {
            let directory = self.store.area("snapshots").join(digest.hex());
            !found.bad_snapshots.contains(digest) && Meta::read(&directory).is_ok_and(|meta| meta.is_some())
        };
        if is_good(chain) || is_good(&alone) || self.has_good_blob(tree, found) {
            return None;
        }
        let directory = Path::new("snapshots").join(chain.hex());
        Some(format!("its layer {tree} is not there: {} is damaged or missing", directory.display()))
    }

    fn has_good_blob(&self, tree: &TreeDigest, found: &Found) -> bool {
        let records = sealed::all(self.store, tree);
        records.iter().any(|(_, record)| !found.bad_blobs.contains(&record.descriptor.digest))
    }

    /// Files that prove themselves and that nothing but themselves depends on.
    pub(super) fn small_files(&self, found: &mut Found) -> Result<(), FsckError> {
        for area in ["history", "inventories", "glances", "seeds"] {
            let wrong = self.each(area, |name| {
                if area == "history" && !name.ends_with(".json") {
                    return Ok(None);
                }
                self.checked(&Path::new(area).join(name))
            })?;
            wrong.into_iter().for_each(|(path, what)| found.add(path, what, FORGOTTEN));
        }
        let sizes = Path::new(gc::SIZES);
        if let Some(what) = self.checked(sizes)? {
            found.add(sizes, what, "everything is measured again");
        }
        let catalogues = self.each(catalogue::AREA, |name| self.catalogue(name))?;
        catalogues.into_iter().for_each(|(path, what)| found.add(path, what, READ_AGAIN));
        let indices = self.each("contexts", |name| self.index(name))?;
        indices
            .into_iter()
            .for_each(|(path, what)| found.add(path, what, "all files of the context are read"));
        Ok(())
    }

    /// What is wrong with a file that proves itself, relative to the root.
    fn checked(&self, path: &Path) -> Result<Option<String>, FsckError> {
        match checked::verify(&self.store.root().join(path)) {
            Ok(_) => Ok(None),
            Err(error) => damage(error).map(Some),
        }
    }

    fn catalogue(&self, name: &str) -> Result<Option<String>, FsckError> {
        let path = Path::new(catalogue::AREA).join(name);
        match Catalogue::kept(&self.store.root().join(path)) {
            Ok(_) => Ok(None),
            Err(CatalogueError::File(error)) => damage(error).map(Some),
            Err(error) => Ok(Some(error.to_string())),
        }
    }

    /// What is remembered of a context: eight bytes that say what it is, then the BLAKE3 of all that follows.
    fn index(&self, name: &str) -> Result<Option<String>, FsckError> {
        let path = self.store.root().join("contexts").join(name);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return unreadable(&path, error).map(Some),
            Ok(bytes) => bytes,
        };
        self.count("contexts", 0, bytes.len() as u64);
        let parts = bytes.split_first_chunk::<8>().and_then(|(_, rest)| rest.split_first_chunk::<32>());
        let is_whole = parts.is_some_and(|(digest, body)| blake3::hash(body).as_bytes() == digest);
        Ok((!is_whole).then(|| "its digest is wrong".to_owned()))
    }
}

/// What is wrong with a file that cannot be read, if that is not this machine's fault.
pub(super) fn unreadable(path: &Path, error: io::Error) -> Result<String, FsckError> {
    damage(CheckedError::Io { path: path.to_owned(), source: error })
}

/// The names in a directory that stands around `fs/`.
pub(super) fn unknown_names(directory: &Path, known: &[&str]) -> io::Result<Option<PathBuf>> {
    let names = names(directory)?;
    Ok(names.iter().find(|name| !known.iter().any(|known| *name == *known)).map(PathBuf::from))
}

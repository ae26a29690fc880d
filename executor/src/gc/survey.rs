//! Lists all things of a store: one look at each, in whatever order the disk has those of an area.
//!
//! What stands on other things is listed before them: it was written after them, so whatever it stands on is listed, too.
//! What comes and goes while it is looked at is left out; what cannot be read otherwise is an error, for a store that is
//! counted wrong is cut wrong. Names that are none of ours are listed like the others: [`super::stands_on`] says that
//! nobody needs them.

use std::{
    fs::{self, DirEntry, Metadata},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use oci::store::Store;

use super::{
    Detail, GcError, Kind, Thing,
    size::{Sizes, blocks, on_disk},
};
use crate::{cache_mounts, snapshot::Meta};

/// Areas whose entries are things by themselves, each a file or a small directory: those that stand on snapshots or on what
/// comes after them here.
const UPPER: [(&str, Kind); 5] = [
    ("records/definition", Kind::Records),
    ("records/content", Kind::Records),
    ("seeds", Kind::Records),
    ("sealed", Kind::Records),
    ("downloads/records", Kind::Downloads),
];

/// The others, which snapshots may stand on.
const LOWER: [(&str, Kind); 7] = [
    ("catalogues", Kind::BaseLayers),
    ("inventories", Kind::Records),
    ("trees", Kind::Records),
    ("blobs/sha256", Kind::Blobs),
    ("contexts", Kind::Contexts),
    ("glances", Kind::Contexts),
    ("history", Kind::History),
];

/// Areas whose entries are large directories.
const DEEP: [(&str, Kind); 3] =
    [("git/remotes", Kind::Git), ("git/checkouts", Kind::Git), ("downloads/files", Kind::Downloads)];

/// All things of a store.
///
/// # Errors
/// A directory of the store cannot be read.
pub(super) fn list(store: &Store, sizes: &mut Sizes, detail: Detail) -> Result<Vec<Thing>, GcError> {
    let mut survey = Survey { root: store.root(), sizes, detail, things: Vec::new() };
    UPPER.into_iter().try_for_each(|area| survey.flat(area))?;
    survey.each(Path::new("snapshots"), Survey::snapshot)?;
    LOWER.into_iter().try_for_each(|area| survey.flat(area))?;
    for (area, kind) in DEEP {
        survey.each(Path::new(area), |survey, path, metadata| {
            let changed = newest(metadata);
            // Only the repositories change, and what they hold is renamed into place in there.
            let packs = fs::metadata(survey.root.join(&path).join("objects/pack")).ok();
            let version = packs.as_ref().map(newest);
            let bytes = survey.sizes.of(survey.root, &path, version, None, survey.detail);
            survey.add(kind, path, bytes, changed);
        })?;
    }
    survey.cache_mounts()?;
    if detail == Detail::Exact {
        survey.each(Path::new("tmp"), |survey, path, metadata| {
            let bytes = on_disk(&survey.root.join(&path));
            survey.add(Kind::Temporary, path, bytes, newest(metadata));
        })?;
        survey.rest(Path::new(""))?;
    }
    survey.each(Path::new("locks"), |survey, path, metadata| {
        survey.add(Kind::Store, path, blocks(metadata), newest(metadata));
    })?;
    Ok(survey.things)
}

struct Survey<'a> {
    root: &'a Path,
    sizes: &'a mut Sizes,
    detail: Detail,
    things: Vec<Thing>,
}

impl Survey<'_> {
    fn add(&mut self, kind: Kind, path: PathBuf, bytes: u64, used: SystemTime) {
        self.things.push(Thing { kind, path, bytes, used, what: None, is_reclaimable: true });
    }

    /// Looks at each entry of a directory; one that is not there has none.
    fn each(
        &mut self,
        area: &Path,
        mut look: impl FnMut(&mut Self, PathBuf, &Metadata),
    ) -> Result<(), GcError> {
        for (entry, metadata) in entries(&self.root.join(area))? {
            look(self, area.join(entry.file_name()), &metadata);
        }
        Ok(())
    }

    fn flat(&mut self, (area, kind): (&str, Kind)) -> Result<(), GcError> {
        self.each(Path::new(area), |survey, path, metadata| {
            let (bytes, used) = match metadata.is_dir() {
                true => small_directory(&survey.root.join(&path), metadata),
                false => (blocks(metadata), newest(metadata)),
            };
            survey.add(kind, path, bytes, used);
        })
    }

    fn snapshot(&mut self, path: PathBuf, metadata: &Metadata) {
        let whole = self.root.join(&path);
        let meta = Meta::read(&whole).ok().flatten();
        let kind = match &meta {
            Some(meta) if self.root.join("trees").join(meta.layer.hex()).exists() => Kind::BuiltLayers,
            _ => Kind::BaseLayers,
        };
        // Beside its files it has two small ones and two directories.
        let noted = meta.map(|meta| meta.bytes + 4 * 4096);
        let bytes = self.sizes.of(self.root, &path, None, noted, self.detail);
        self.add(kind, path, bytes, newest(metadata));
    }

    /// `mounts/ID/VARIANT/NUMBER`
    fn cache_mounts(&mut self) -> Result<(), GcError> {
        for (id, _) in entries(&self.root.join("mounts"))? {
            let id = Path::new("mounts").join(id.file_name());
            for (variant, metadata) in entries(&self.root.join(&id))? {
                if metadata.is_dir() {
                    self.each(&id.join(variant.file_name()), |survey, path, _| {
                        let used = cache_mounts::last_use(&survey.root.join(&path));
                        let changed = used.unwrap_or_else(SystemTime::now);
                        let bytes = survey.sizes.of(survey.root, &path, Some(changed), None, survey.detail);
                        survey.add(Kind::CacheMounts, path, bytes, changed);
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Directories that hold things, and files that are none: what is left when all things are counted.
    fn rest(&mut self, directory: &Path) -> Result<(), GcError> {
        let whole = self.root.join(directory);
        let own = fs::symlink_metadata(&whole).map_err(GcError::io("read", &whole))?;
        let mut bytes = blocks(&own);
        let is_area = |path: &Path| {
            UPPER.iter().chain(&LOWER).chain(&DEEP).any(|(area, _)| Path::new(area) == path)
                || ["snapshots", "tmp", "locks"].iter().any(|area| Path::new(area) == path)
        };
        for (entry, metadata) in entries(&whole)? {
            let path = directory.join(entry.file_name());
            let depth = path.components().count();
            match () {
                () if is_area(&path) => bytes += blocks(&metadata),
                // Above a cache mount are two more directories with its lock and its name.
                () if path.starts_with("mounts") && metadata.is_dir() && depth < 4 => self.rest(&path)?,
                () if path.starts_with("mounts") && metadata.is_dir() => {}
                () if metadata.is_dir() => self.rest(&path)?,
                () => bytes += blocks(&metadata),
            }
        }
        self.add(Kind::Store, directory.to_owned(), bytes, newest(&own));
        Ok(())
    }
}

/// The entries of a directory with what is known of each; none where there is no directory.
fn entries(directory: &Path) -> Result<Vec<(DirEntry, Metadata)>, GcError> {
    let mut found = Vec::new();
    let read = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        read => read.map_err(GcError::io("read", directory))?,
    };
    for entry in read {
        let entry = entry.map_err(GcError::io("read", directory))?;
        match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            metadata => found.push((entry, metadata.map_err(GcError::io("read", directory))?)),
        }
    }
    Ok(found)
}

/// What a directory of a few files takes, and when one of them was used last.
fn small_directory(path: &Path, own: &Metadata) -> (u64, SystemTime) {
    let mut found = (blocks(own), newest(own));
    for (_, metadata) in entries(path).unwrap_or_default() {
        found = (found.0 + blocks(&metadata), found.1.max(newest(&metadata)));
    }
    found
}

/// When something was used last.
fn newest(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

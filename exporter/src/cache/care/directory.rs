//! A directory: names are files, and blobs that nothing names are removed here.
//!
//! Others may write at the same time, without a lock that a file system far away might not keep. What is to go is renamed
//! first and looked at once more: a name that stands for something else by now, or a blob that somebody has touched since,
//! gets its name back. Who finds a blob there that he is about to name touches it, and looks whether it still has its name
//! then (`DirectoryStorage::put_blob`). So either he sees that it has gone, and writes it anew, or we see that it is young.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use oci::{
    Sha256Digest,
    document::{self, Document},
};
use solver::Cancel;

use super::{Standing, Swept, Tidy};
use crate::cache::{
    directory::{DirectoryStorage, failed, read},
    storage::{Storage, StorageError},
};

/// Who has written a blob names it within this time, or never does.
const YOUNG: Duration = Duration::from_secs(3600);
/// Ends the name of what is going.
const GOING: &str = ".going";

impl Tidy for DirectoryStorage {
    fn names(&self, _: &Cancel) -> Result<Vec<String>, StorageError> {
        let named = |name: OsString| Some(name.to_str()?.strip_suffix(".json")?.to_owned());
        let files = files(&self.names_directory());
        let mut names: Vec<String> =
            files.map_err(|error| self.untidy(error))?.into_iter().filter_map(named).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn look(&self, name: &str, _: &Cancel) -> Result<Option<Standing>, StorageError> {
        let Some(path) = self.name_path(name) else { return Ok(None) };
        let bytes = read(&path, document::MAX_SIZE);
        let what = || format!("cannot read {name} in {}", self.name());
        let Some(bytes) = bytes.map_err(|error| failed(what(), error))? else { return Ok(None) };
        let named = self.named(name, &bytes).map_err(|error| failed(what(), error));
        Ok(Some(Standing { digest: Sha256Digest::of(&bytes), size: bytes.len() as u64, named }))
    }

    fn remove(&self, names: &[String], digest: &Sha256Digest, _: &Cancel) -> Result<(), StorageError> {
        let stands_for_it = |path: &Path| {
            let bytes = read(path, document::MAX_SIZE)?;
            Ok(bytes.is_some_and(|bytes| Sha256Digest::of(&bytes) == *digest))
        };
        let paths = names.iter().filter_map(|name| self.name_path(name));
        let removed = paths.map(|path| take_away(&path, stands_for_it)).collect::<io::Result<Vec<_>>>();
        removed.map(drop).map_err(|error| self.untidy(error))
    }

    fn sweep(&self, cancel: &Cancel) -> Result<Swept, StorageError> {
        self.swept(cancel).map_err(|error| self.untidy(error))
    }
}

impl DirectoryStorage {
    fn untidy(&self, source: io::Error) -> StorageError {
        failed(format!("cannot tidy up {}", self.name()), source)
    }

    fn swept(&self, cancel: &Cancel) -> io::Result<Swept> {
        for name in files(&self.names_directory())?.iter().filter(|name| !is_name(name)) {
            take_away(&self.names_directory().join(name), is_old)?;
        }
        let directory = self.blobs_directory();
        let blobs = files(&directory)?;
        // After the blobs are listed: what is written from here on is not among them.
        let kept = self.named_blobs()?;
        let (mut count, mut freed, mut young) = (0, 0, 0);
        for name in blobs.iter().filter(|name| !kept.contains(*name)) {
            let path = directory.join(name);
            let Ok(found) = path.symlink_metadata() else { continue };
            if !found.is_file() {
                continue;
            }
            if cancel.is_requested() || !is_old(&path)? {
                young += found.len();
            } else if take_away(&path, is_old)? {
                (count, freed) = (count + 1, freed + found.len());
            }
        }
        Ok(Swept::Freed { count, bytes: freed, young })
    }

    /// The files of all blobs that anything names.
    fn named_blobs(&self) -> io::Result<BTreeSet<OsString>> {
        let mut kept = BTreeSet::new();
        for name in files(&self.names_directory())?.iter().filter(|name| is_name(name)) {
            let bytes = read(&self.names_directory().join(name), document::MAX_SIZE)?.unwrap_or_default();
            let document = document::media_type(None, &bytes).and_then(|kind| Document::parse(&kind, &bytes));
            let descriptors = match document {
                Ok(Document::Manifest(manifest)) => [vec![manifest.config], manifest.layers].concat(),
                Ok(Document::Index(index)) => index.manifests,
                // Nobody can read what it says.
                Err(_) => Vec::new(),
            };
            kept.extend(descriptors.iter().map(|descriptor| OsString::from(descriptor.digest.hex())));
        }
        Ok(kept)
    }
}

/// Removes a file if it still fits; whether it did.
fn take_away(path: &Path, fits: impl Fn(&Path) -> io::Result<bool>) -> io::Result<bool> {
    let mut going = path.as_os_str().to_owned();
    going.push(GOING);
    let going = Path::new(&going);
    match fs::rename(path, going) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        renamed => renamed?,
    }
    let fits = fits(going);
    if !matches!(fits, Ok(true)) {
        // Where somebody has written it anew, that one stays.
        match fs::hard_link(going, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                // A file system without hard links.
                fs::rename(going, path)?;
                return fits;
            }
            _ => {}
        }
    }
    fs::remove_file(going)?;
    fits
}

/// Whether this is the file of a name, and nothing that somebody was killed over.
fn is_name(file: &OsStr) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "json")
}

/// Whether nobody can be about to name it any more.
fn is_old(path: &Path) -> io::Result<bool> {
    let modified = path.symlink_metadata()?.modified()?;
    Ok(SystemTime::now().duration_since(modified).is_ok_and(|age| age > YOUNG))
}

/// The names of the files in a directory, sorted; none where there is no directory.
fn files(directory: &Path) -> io::Result<Vec<OsString>> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed?,
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name());
    let mut names = listed.map(name).collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| name != OsStr::new("."));
    names.sort_unstable();
    Ok(names)
}

//! Verifies everything in a store, and takes what is damaged out of the way, with all that needs it, so that the next
//! build finds nothing there and makes it again.
//!
//! What is verified: blobs, trees and small files against their digests; the files of snapshots against the trees of their
//! layers, those of unpacked base layers and git checkouts against what was kept when they were written; downloads against
//! what is known of them; that what a record names is there. What commands have put into cache mounts is theirs.
//!
//! It works beside running builds and `gc`. Nothing is held while things are read, so what vanishes meanwhile is no
//! finding, and is looked at again before it is called missing. What is removed goes through [`Store::removal`], which
//! leaves alone what a living process has pinned.

mod differences;
mod objects;
mod remote;
mod snapshots;
mod strays;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use oci::{
    Sha256Digest, TreeDigest,
    store::{Store, StoreError, Taken, checked::CheckedError},
};
use rayon::prelude::*;

/// Things that are removed under one lock: others wait that long.
const BATCH: usize = 64;

/// Something in the store that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where, relative to the root.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// What that means for builds once it is out of the way.
    pub follows: &'static str,
    /// What was done about it.
    pub outcome: Outcome,
}

/// What was done about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: nobody asked for it.
    Found,
    /// It is out of the way.
    Repaired,
    /// A running build uses it.
    InUse,
    /// It could not be removed.
    Failed(String),
}

/// What to do about findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Tell.
    Nothing,
    /// Remove them.
    Remove,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The directory that is being looked at.
    pub area: &'static str,
    /// Things looked at so far, in all of the store.
    pub things: u64,
    /// Bytes read so far.
    pub bytes: u64,
}

/// What a check has found.
#[derive(Debug, Default)]
pub struct Report {
    /// By path.
    pub findings: Vec<Finding>,
    /// Things looked at.
    pub things: u64,
    /// Bytes read of them.
    pub bytes: u64,
}

/// Why a store cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something cannot be read, and that says nothing about what is in it.
    #[error("cannot read {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl FsckError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Checks a store. `progress` is told after each thing, from several threads.
///
/// # Errors
/// Something could not be looked at; what was found until then is not told.
pub fn check(
    store: &Store,
    repair: Repair,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, FsckError> {
    let check = Check { store, progress, things: AtomicU64::new(0), bytes: AtomicU64::new(0) };
    let mut found = Found::default();
    check.objects(&mut found)?;
    check.snapshots(&mut found)?;
    // What these name is known to be good or bad by now.
    check.sealed(&mut found)?;
    check.records(&mut found)?;
    check.remote(&mut found)?;
    check.small_files(&mut found)?;
    check.mounts(&mut found)?;
    check.strays(&mut found)?;
    let mut findings = found.findings;
    findings.sort_by(|a, b| a.path.cmp(&b.path));
    if repair == Repair::Remove {
        remove(store, &mut findings)?;
    }
    Ok(Report { findings, things: check.things.into_inner(), bytes: check.bytes.into_inner() })
}

/// Takes findings out of the way. What needs another goes with it or stays with it, since it is found again.
fn remove(store: &Store, findings: &mut [Finding]) -> Result<(), FsckError> {
    // What looking at things has pinned is ours.
    store.release_pins()?;
    for batch in findings.chunks_mut(BATCH) {
        let mut removal = store.removal()?;
        for finding in batch {
            finding.outcome = match removal.take(&finding.path) {
                Ok(Taken::Yes | Taken::Gone) => Outcome::Repaired,
                Ok(Taken::InUse) => Outcome::InUse,
                Err(error) => Outcome::Failed(told(&error)),
            };
        }
        removal.finish()?;
    }
    Ok(())
}

/// What has been found so far.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    bad_blobs: BTreeSet<Sha256Digest>,
    bad_trees: BTreeSet<TreeDigest>,
    bad_snapshots: BTreeSet<TreeDigest>,
}

impl Found {
    fn add(&mut self, path: impl Into<PathBuf>, what: impl Into<String>, follows: &'static str) {
        let (path, what) = (path.into(), what.into());
        self.findings.push(Finding { path, what, follows, outcome: Outcome::Found });
    }
}

struct Check<'a> {
    store: &'a Store,
    progress: &'a (dyn Fn(Progress) + Sync),
    things: AtomicU64,
    bytes: AtomicU64,
}

impl Check<'_> {
    /// The names in a directory of the store, sorted; none where it is not there.
    fn names(&self, directory: &str) -> Result<Vec<OsString>, FsckError> {
        let path = self.store.root().join(directory);
        names(&path).map_err(FsckError::io(&path))
    }

    /// Looks at all things in a directory of the store, several at a time. `look` says what is wrong with one, if anything.
    fn each<T: Send>(
        &self,
        area: &'static str,
        look: impl Fn(&str) -> Result<Option<T>, FsckError> + Sync,
    ) -> Result<Vec<(PathBuf, T)>, FsckError> {
        let names = self.names(area)?;
        let found = names.par_iter().map(|name| {
            // Names that are no text are strays, and found with those.
            let Some(name) = name.to_str() else { return Ok(None) };
            let found = look(name)?;
            self.count(area, 1, 0);
            Ok(found.map(|found| (Path::new(area).join(name), found)))
        });
        found.filter_map(Result::transpose).collect()
    }

    fn count(&self, area: &'static str, things: u64, bytes: u64) {
        let things = self.things.fetch_add(things, Ordering::Relaxed) + things;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress { area, things, bytes });
    }

    /// Whether something is still there: others may have removed it since it was listed.
    fn is_there(&self, path_in_root: &Path) -> bool {
        fs::symlink_metadata(self.store.root().join(path_in_root)).is_ok()
    }
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// What is wrong with a checked file, if that is what the error says; else the error.
fn damage(error: CheckedError) -> Result<String, FsckError> {
    match error {
        CheckedError::Io { path, source } if !CheckedError::is_unreadable(&source) => {
            Err(FsckError::Io { path, source })
        }
        CheckedError::Io { source, .. } => Ok(format!("it cannot be read: {source}")),
        CheckedError::Damaged { what, .. } => Ok(what.to_string()),
        CheckedError::Version { found, wanted, .. } => {
            Ok(format!("it has version {found}, and this program reads version {wanted}"))
        }
    }
}

/// An error and what caused it.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// 32 bytes in hex, as file names have them.
fn digest_of(name: &str) -> Option<TreeDigest> {
    format!("blake3:{name}").parse().ok()
}

#[cfg(test)]
mod tests;

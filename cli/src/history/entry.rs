//! What is remembered of a build: one entry, `ROOT/history/ID.json`, and the log it kept, `ROOT/history/ID.log`.
//!
//! An ID is the time at which the build began, to the microsecond, and three random digits: names sort by age, and builds
//! that begin at once do not meet. An entry is written once, when its build has ended, and never changed. It holds no
//! secret and no credentials: [`super::Recorder`] takes them out of every text.

use std::{
    collections::hash_map::RandomState,
    fmt, fs,
    hash::{BuildHasher, Hasher},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use oci::{
    TreeDigest,
    store::{
        Store, StoreError,
        checked::{self, CheckedError},
    },
};
use serde::{Deserialize, Serialize};
use solver::{Made, Miss, explain::Known};

/// Where entries lie in the store.
pub const AREA: &str = "history";

/// Names a build of a store: `20261121T140501Z-3f9c21ab`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(String);

/// A text that names no build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no ID of a build: expected one like 20261121T140501Z-3f9c21ab")]
pub struct BuildIdError(String);

impl BuildId {
    /// A new ID for a build that begins now.
    pub fn now() -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Keyed by the kernel's random bytes, anew in every process.
        let mut random = RandomState::new().build_hasher();
        random.write_u32(std::process::id());
        let (micros, random) = (at.subsec_micros(), random.finish() & 0xfff);
        Self(format!("{}-{micros:05x}{random:03x}", compact(at.as_secs())))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether somebody who writes this means this build: the beginning of the ID, or of what follows the second.
    pub fn is_meant_by(&self, text: &str) -> bool {
        let fraction = self.0.split_once('-').map_or("", |(_, fraction)| fraction);
        !text.is_empty() && (self.0.starts_with(text) || fraction.starts_with(text))
    }
}

impl FromStr for BuildId {
    type Err = BuildIdError;

    fn from_str(text: &str) -> Result<Self, BuildIdError> {
        let is_hex =
            |part: &str| part.len() == 8 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_time = |part: &str| {
            let bytes = part.as_bytes();
            let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
            bytes.len() == 16 && digits(0..8) && bytes[8] == b'T' && digits(9..15) && bytes[15] == b'Z'
        };
        match text.split_once('-') {
            Some((time, random)) if is_time(time) && is_hex(random) => Ok(Self(text.to_owned())),
            _ => Err(BuildIdError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for BuildId {
    type Error = BuildIdError;

    fn try_from(text: String) -> Result<Self, BuildIdError> {
        text.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A build that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its ID; records it made are signed with it.
    pub id: BuildId,
    /// When it began, Unix seconds.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What it was asked for.
    pub asked: Asked,
    /// How it ended.
    pub result: Ending,
    /// Its steps, in graph order; none where it ended before it was planned.
    pub steps: Vec<Step>,
    /// What its commands ran in; none where none ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Steps of builds on other machines that those that ran are compared with, as far as remote caches have told of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Known>,
    /// Content keys of steps that ran though somebody remembers them who is not trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distrusted: Vec<TreeDigest>,
    /// What the remote caches are called that have not answered all that they were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<String>,
}

/// What a build was asked for, as far as people tell builds from each other by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The Dockerfile.
    pub dockerfile: String,
    /// The main context.
    pub context: String,
    /// `--target`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `--platform`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Names that the image was to have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "status")]
pub enum Ending {
    /// Well.
    Completed {
        /// Digest of the manifest or index; `None` where only files were wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        /// Where it went, in words.
        destinations: Vec<String>,
    },
    /// With an error.
    Error {
        /// The exit code.
        exit_code: u8,
        /// Why, in one line.
        message: String,
    },
    /// By a signal.
    Canceled {
        /// The exit code.
        exit_code: u8,
    },
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its place in the graph.
    pub vertex: usize,
    /// `[build 2/4] RUN make`
    pub label: String,
    /// The stage in the label; empty where it names none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it ran, in milliseconds; 0 for what did not run.
    pub took_ms: u64,
    /// Its definition key, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<TreeDigest>,
    /// Who made the result that the cache had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// What the remote cache is called that had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the cache was asked in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<Miss>,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "why")]
pub enum Outcome {
    /// The build ended before it.
    Waiting,
    /// A source: its content became known.
    Source,
    /// The cache had it.
    Cached,
    /// It ran.
    Ran,
    /// It failed, and why.
    Failed(String),
    /// It was stopped.
    Canceled,
}

impl Entry {
    /// Steps that are no sources.
    pub fn counted(&self) -> impl Iterator<Item = &Step> {
        // A context that could not be read was a source, too.
        let is_source =
            |step: &Step| step.outcome == Outcome::Source || step.label.starts_with("[internal] ");
        self.steps.iter().filter(move |step| !is_source(step))
    }

    /// How many steps the cache had.
    pub fn cached(&self) -> usize {
        self.steps.iter().filter(|step| step.outcome == Outcome::Cached).count()
    }

    /// How long the steps that the cache had took when they ran, in milliseconds.
    pub fn saved_ms(&self) -> u64 {
        self.steps.iter().filter_map(|step| step.made.as_ref()).map(|made| made.took_ms).sum()
    }
}

/// Version of the file format.
const VERSION: u32 = 1;
/// How many entries are kept.
const MOST: usize = 200;
/// How many bytes they and their logs may have, in all.
const MOST_BYTES: u64 = 64 << 20;
/// Which part of its disk the history may have at most, but for the last entry: on a small one builds need the room.
const PART_OF_DISK: u64 = 16;

/// Why an entry cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No build of that name.
    #[error("the history in {} has no build {name:?}", root.display())]
    NoBuild {
        /// The store.
        root: PathBuf,
        /// What was asked for.
        name: String,
    },
    /// No build at all.
    #[error("the history in {} has no builds", root.display())]
    Empty {
        /// The store.
        root: PathBuf,
    },
    /// A name of several builds.
    #[error("{name:?} means {count} builds, among them {first} and {second}")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// How many it means.
        count: usize,
        /// The newest of them.
        first: BuildId,
        /// The one before that.
        second: BuildId,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An entry cannot be read, or is damaged.
    #[error(transparent)]
    Entry(#[from] CheckedError),
    /// A file cannot be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store does not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HistoryError {
    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoBuild { .. } => Some("layerwright history lists the builds of a store"),
            Self::Empty { .. } => {
                Some("every build leaves an entry; --root or LAYERWRIGHT_ROOT says which store is meant")
            }
            Self::Ambiguous { .. } => Some("write more of the ID"),
            Self::Entry(_) => Some("layerwright history rm forgets the build; nothing else needs its entry"),
            Self::Read { .. } | Self::Remove { .. } | Self::Store(_) => None,
        }
    }
}

/// The builds of a store, newest first; of a store that is not there, none.
///
/// # Errors
/// [`HistoryError::Read`].
pub fn list(root: &Path) -> Result<Vec<BuildId>, HistoryError> {
    let area = root.join(AREA);
    let failed = |source| HistoryError::Read { path: area.clone(), source };
    let names = match fs::read_dir(&area) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for name in names {
        let name = name.map_err(failed)?.file_name();
        // Whatever else lies there is none of ours.
        ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<BuildId>().ok()));
    }
    ids.sort_unstable_by(|a, b| b.cmp(a));
    Ok(ids)
}

/// What is remembered of a build.
///
/// # Errors
/// [`HistoryError::NoBuild`] or [`HistoryError::Entry`].
pub fn read(root: &Path, id: &BuildId) -> Result<Entry, HistoryError> {
    let entry = checked::read(&file(root, id, "json"), VERSION)?;
    entry.ok_or_else(|| HistoryError::NoBuild { root: root.to_owned(), name: id.to_string() })
}

/// The build that somebody means: an ID or the beginning of one, `last`, or `^N` for the Nth before the last.
///
/// # Errors
/// [`HistoryError::Empty`], [`HistoryError::NoBuild`], [`HistoryError::Ambiguous`] or [`HistoryError::Read`].
pub fn find(root: &Path, name: &str) -> Result<BuildId, HistoryError> {
    let ids = list(root)?;
    if ids.is_empty() {
        return Err(HistoryError::Empty { root: root.to_owned() });
    }
    let nothing = || HistoryError::NoBuild { root: root.to_owned(), name: name.to_owned() };
    let back = match name {
        "last" => Some(0),
        _ => name.strip_prefix('^').and_then(|number| number.parse::<usize>().ok()),
    };
    if let Some(back) = back {
        return ids.get(back).cloned().ok_or_else(nothing);
    }
    let meant: Vec<&BuildId> = ids.iter().filter(|id| id.is_meant_by(name)).collect();
    match meant[..] {
        [] => Err(nothing()),
        [id] => Ok(id.clone()),
        [first, second, ..] => Err(HistoryError::Ambiguous {
            name: name.to_owned(),
            count: meant.len(),
            first: first.clone(),
            second: second.clone(),
        }),
    }
}

/// A time of Unix seconds as `20261121T140501Z`.
fn compact(at: u64) -> String {
    let text = exporter::assemble::rfc3339(i64::try_from(at).unwrap_or(i64::MAX));
    text.replace(['-', ':'], "")
}

/// The kept log of a build.
///
/// # Errors
/// [`HistoryError::Read`].
pub fn read_log(root: &Path, id: &BuildId) -> Result<Vec<u8>, HistoryError> {
    let path = file(root, id, "log");
    fs::read(&path).map_err(|source| HistoryError::Read { path, source })
}

/// Writes an entry and its log, and removes the oldest where there are too many. Not synced to disk: a history that a
/// power loss takes is missed by nobody. Where the disk is full the oldest make room, down to the last.
///
/// # Errors
/// [`HistoryError::Store`]; then nothing of the entry is left.
pub fn write(store: &Store, entry: &Entry, log: &[u8]) -> Result<(), HistoryError> {
    let bytes = checked::encode(VERSION, entry).expect("plain data with string keys");
    let (size, root) = ((log.len() + bytes.len()) as u64, store.root());
    while let Err(error) = place(store, &entry.id, &bytes, log) {
        remove(root, &entry.id)?;
        match list(root)?.last() {
            Some(oldest) if lacks_room(&error) => remove(root, oldest)?,
            _ => return Err(error.into()),
        }
    }
    prune(root, size)
}

fn place(store: &Store, id: &BuildId, entry: &[u8], log: &[u8]) -> Result<(), StoreError> {
    store.write_loose(&file(Path::new(""), id, "log"), log)?;
    store.write_loose(&file(Path::new(""), id, "json"), entry)
}

fn lacks_room(error: &StoreError) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, StoreError::Io { source, .. } if full.contains(&source.kind()))
}

/// Removes an entry and its log.
///
/// # Errors
/// [`HistoryError::Remove`]; what is gone already is none.
pub fn remove(root: &Path, id: &BuildId) -> Result<(), HistoryError> {
    for extension in ["json", "log"] {
        let path = file(root, id, extension);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(HistoryError::Remove { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keeps [`MOST`] entries, and of those as many of the newest as fit into [`most_bytes`]. Sizes are only looked at after
/// an entry that is larger than the average may be, so that a small build pays for one listing.
fn prune(root: &Path, bytes: u64) -> Result<(), HistoryError> {
    let mut ids = list(root)?;
    for id in ids.split_off(MOST.min(ids.len())) {
        remove(root, &id)?;
    }
    let most = most_bytes(root);
    if bytes <= most / MOST as u64 {
        return Ok(());
    }
    let mut sum = 0;
    for (index, id) in ids.iter().enumerate() {
        sum += ["json", "log"].map(|extension| file_size(&file(root, id, extension))).iter().sum::<u64>();
        if sum > most && index > 0 {
            remove(root, id)?;
        }
    }
    Ok(())
}

/// How many bytes all entries may have on this disk.
fn most_bytes(root: &Path) -> u64 {
    let whole =
        rustix::fs::statvfs(root).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
    MOST_BYTES.min(whole / PART_OF_DISK)
}

fn file_size(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}

fn file(root: &Path, id: &BuildId, extension: &str) -> PathBuf {
    root.join(AREA).join(format!("{id}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        let result = Ending::Completed { digest: None, destinations: Vec::new() };
        let id = id.parse().expect("an ID");
        Entry {
            id,
            at: 0,
            took_ms: 0,
            asked: Asked::default(),
            result,
            steps: Vec::new(),
            sandbox: None,
            elsewhere: Vec::new(),
            distrusted: Vec::new(),
            unanswered: Vec::new(),
        }
    }

    fn store_with(ids: &[&str]) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().expect("made");
        let store = Store::open(root.path()).expect("a store");
        ids.iter().for_each(|id| write(&store, &entry(id), b"log\n").expect("written"));
        (root, store)
    }

    #[test]
    fn ids_sort_by_age_and_do_not_meet() {
        let ids: Vec<BuildId> = (0..1000).map(|_| BuildId::now()).collect();
        let mut sorted = ids.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), ids.len());
        let micros = |id: &BuildId| id.0[..id.0.len() - 3].to_owned();
        assert!(ids.windows(2).all(|pair| micros(&pair[0]) <= micros(&pair[1])));
        assert!(ids.iter().all(|id| id.as_str().parse().as_ref() == Ok(id)));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in
            ["", "last", "20261121T140501Z", "20261121T140501Z-3f9c21aG", "../20261121T140501Z-3f9c21ab"]
        {
            assert!(text.parse::<BuildId>().is_err(), "{text}");
        }
    }

    #[test]
    fn builds_are_found_by_what_people_write() {
        let ids = ["20261121T140501Z-3f9c21ab", "20261121T140502Z-aaaaaaaa", "20261122T000000Z-3f000000"];
        let (root, _store) = store_with(&ids);
        for (name, want) in [
            ("last", Ok(2)),
            ("^0", Ok(2)),
            ("^2", Ok(0)),
            ("^3", Err("no build")),
            ("20261122", Ok(2)),
            ("3f9", Ok(0)),
            (ids[1], Ok(1)),
            ("3f", Err("means 2 builds, among them 20261122T000000Z-3f000000 and 20261121T140501Z-3f9c21ab")),
            ("", Err("no build")),
            ("b", Err("no build")),
        ] {
            match (find(root.path(), name), want) {
                (Ok(found), Ok(index)) => assert_eq!(found.as_str(), ids[index], "{name}"),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{name}: {error}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_they_are_too_big() {
        let id = |number: usize| format!("20261121T140501Z-{number:08x}");
        let ids: Vec<String> = (0..MOST + 3).map(id).collect();
        let (root, store) = store_with(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let left = list(root.path()).expect("listed");
        assert_eq!((left.len(), left[0].as_str()), (MOST, ids[MOST + 2].as_str()));
        assert!(!root.path().join(AREA).join(format!("{}.log", ids[0])).exists());

        let big = vec![b'x'; usize::try_from(MOST_BYTES / 2).expect("it fits")];
        for number in 1000..1003 {
            write(&store, &entry(&id(number)), &big).expect("written");
        }
        let left = list(root.path()).expect("listed");
        assert_eq!(
            left,
            [id(1002).parse().expect("an ID")],
            "two of half the size and a little more are too much"
        );
    }

    #[test]
    fn a_damaged_entry_is_an_error() {
        let id = "20261121T140501Z-3f9c21ab";
        let (root, _store) = store_with(&[id]);
        let (path, id) = (root.path().join(AREA).join(format!("{id}.json")), id.parse().expect("an ID"));
        let text = fs::read_to_string(&path).expect("read");
        assert_eq!(read(root.path(), &id).expect("whole"), entry(id.as_str()));
        fs::remove_file(&path).expect("removed");
        fs::write(&path, text.replace("\"at\":0", "\"at\":1")).expect("written");
        assert!(matches!(read(root.path(), &id), Err(HistoryError::Entry(CheckedError::Damaged { .. }))));
    }
}

//! Where the history lies: of each build one entry, `ROOT/history/ID.json`, and the log it kept, `ROOT/history/ID.log`.
//!
//! An entry is whole or not there. The newest are kept, as many as there is room for: what the history takes is bounded, and on a
//! small disk builds come first.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci::store::{
    Store, StoreError,
    checked::{self, CheckedError},
};

use super::entry::{BuildId, Entry};

/// Where entries lie in the store.
pub const AREA: &str = "history";
/// Version of the file format.
const VERSION: u32 = 1;
/// How many entries are kept.
const MOST: usize = 200;
/// How many bytes they and their logs may have, in all.
const MOST_BYTES: u64 = 64 << 20;
/// Which part of its disk the history may have at most, but for the last entry: on a small one builds need the room.
const PART_OF_DISK: u64 = 16;

/// Files of an entry.
const FILES: u64 = 2;

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

/// The kept log of a build.
///
/// # Errors
/// [`HistoryError::Read`].
pub fn read_log(root: &Path, id: &BuildId) -> Result<Vec<u8>, HistoryError> {
    let path = file(root, id, "log");
    fs::read(&path).map_err(|source| HistoryError::Read { path, source })
}

/// Writes an entry and its log, and removes the oldest where there are too many. Not synced to disk: a history that a
/// power loss takes is missed by nobody. Where the disk is full the oldest make room, if all of them
/// together can.
///
/// # Errors
/// [`HistoryError::Store`]; then nothing of the entry is left.
pub fn write(store: &Store, entry: &Entry, log: &[u8]) -> Result<(), HistoryError> {
    let bytes = checked::encode(VERSION, entry).expect("plain data with string keys");
    let (size, root) = ((log.len() + bytes.len()) as u64, store.root());
    while let Err(error) = place(store, &entry.id, &bytes, log) {
        // On a disk that has become read-only that fails, too, and says less.
        remove(root, &entry.id).unwrap_or_default();
        let kept = list(root)?;
        match kept.last() {
            Some(oldest) if lacks_room(&error) && can_make_room(root, &kept, size, &error) => {
                remove(root, oldest)?
            }
            _ => return Err(error.into()),
        }
    }
    prune(root, size)
}

/// Whether so many bytes, and two more files, would fit if all that is kept went: nothing goes in vain. What is free on the disk
/// is no room for whom a quota stops.
fn can_make_room(root: &Path, kept: &[BuildId], size: u64, error: &StoreError) -> bool {
    let disk = match error {
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Room::on(root),
        _ => Room::default(),
    };
    let bytes = kept.iter().map(|id| entry_size(root, id)).sum();
    disk.suffices(size, &Room { bytes, files: FILES * kept.len() as u64 })
}

/// What is free, or would be.
#[derive(Debug, Default)]
struct Room {
    bytes: u64,
    files: u64,
}

impl Room {
    /// Nothing where the disk does not say: then only what goes counts.
    fn on(root: &Path) -> Self {
        rustix::fs::statvfs(root).map_or_else(
            |_| Self::default(),
            |disk| Self {
                bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
                // None at all is said by file systems that do not count them.
                files: if disk.f_files == 0 { FILES } else { disk.f_favail },
            },
        )
    }

    /// Whether an entry of so many bytes fits once this goes. One that finds both there although the disk is full is stopped by
    /// something else, and only what goes counts.
    fn suffices(&self, size: u64, gone: &Self) -> bool {
        let is_there = self.bytes >= size && self.files >= FILES;
        let free = if is_there { &Self::default() } else { self };
        gone.files >= FILES
            && free.bytes.saturating_add(gone.bytes) >= size
            && free.files.saturating_add(gone.files) >= FILES
    }
}

fn entry_size(root: &Path, id: &BuildId) -> u64 {
    ["json", "log"].map(|extension| file_size(&file(root, id, extension))).iter().sum()
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
        sum += entry_size(root, id);
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
    use super::{
        super::entry::{Asked, Ending},
        *,
    };

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
    fn entries_go_only_where_that_makes_room() {
        let room = |bytes, files| Room { bytes, files };
        for (what, disk, gone, want) in [
            ("bytes", room(50, 9), room(50, 2), true),
            ("too few bytes", room(50, 9), room(49, 2), false),
            ("files, of which a small entry has as many as a large one", room(1000, 1), room(10, 2), true),
            ("files, and too few bytes", room(50, 0), room(10, 2), false),
            ("a quota, or what else the disk does not tell", room(1000, 9), room(99, 4), false),
            ("a quota and entries that suffice", room(0, 0), room(100, 4), true),
            ("nothing that could go", room(50, 0), room(0, 0), false),
        ] {
            assert_eq!(disk.suffices(100, &gone), want, "{what}");
        }
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

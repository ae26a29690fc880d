//! Small files that prove themselves: one line of JSON that holds its version and the BLAKE3 of all that follows it.
//!
//! ```text
//! {"digest":"blake3:HEX","version":2,"content":{...}}
//! ```
//!
//! The digest covers the bytes as they stand in the file, from the version on, so that no flipped bit, cut end or merged
//! pair of files is ever taken for something that somebody wrote. What of that makes a miss, what a warning and what
//! an error is the caller's to say: [`CheckedError::is_damage`] tells a bad file from a machine that cannot read now.
//! A version is looked at once the digest is right; it is another build's file then, not a damaged one.
//!
//! What is long and has a form of its own is binary instead, with the BLAKE3 of its bytes at its end
//! ([`write_binary`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{Store, StoreError, write_new};
use crate::digest::ContentDigest;

const OPENING: &str = "{\"digest\":\"";
const VERSION: &str = "\"version\":";
const CONTENT: &str = ",\"content\":";
/// Longer files are none of ours: an inventory of ten million files.
const LENGTH_MAX: u64 = 2 << 30;

/// Why there is nothing to be had from a checked file.
#[derive(Debug, thiserror::Error)]
pub enum CheckedError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: Damage,
    },
    /// It was written by another version of this program.
    #[error("{} has version {found}, and this program reads version {wanted}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What is read.
        wanted: u32,
    },
}

/// What is wrong with the bytes of a checked file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// There is no digest in it.
    #[error("it is cut, or no such file")]
    Form,
    /// Nothing of ours is so long.
    #[error("it has {0} bytes")]
    Length(u64),
    /// The digest in it is not that of the rest.
    #[error("its digest is wrong")]
    Digest,
    /// It is what was written, but not what is asked for here.
    #[error("{0}")]
    Content(serde_json::Error),
}

impl CheckedError {
    /// Whether the error says something about the file, and not about this process or this machine at the moment (out of
    /// descriptors, out of memory), for which nothing may be given up. Another version is no damage.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => Self::is_unreadable(source),
            Self::Version { .. } => false,
        }
    }

    /// Whether a failed read means that what is on disk will not be had again: a bad block, or another kind of file.
    pub fn is_unreadable(error: &io::Error) -> bool {
        use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, UnexpectedEof};
        let is_bad_block = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        is_bad_block || matches!(error.kind(), InvalidData | UnexpectedEof | IsADirectory | NotADirectory)
    }
}

/// Reads what [`write`], [`write_beside`] or [`encode`] made; `None` where there is no file.
///
/// # Errors
/// [`CheckedError`].
pub fn read<T: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>, CheckedError> {
    bytes_of(path)?.map(|bytes| decode(&bytes, path, version)).transpose()
}

/// Writes a checked file of the store, by rename. The path is relative to the root, or begins with it.
///
/// # Errors
/// Those of [`Store::write_atomic`]; a value that has no JSON (a map whose keys are no text) cannot be written.
pub fn write<T: Serialize>(
    store: &Store,
    path_in_root: &Path,
    version: u32,
    value: &T,
) -> Result<(), StoreError> {
    let bytes = encode(version, value).map_err(StoreError::io("encode", path_in_root))?;
    store.write_atomic(path_in_root, &bytes)
}

/// Writes a checked file that is not there yet, in a directory that nobody else can see yet (see
/// [`Store::rename_into`]).
///
/// # Errors
/// It is there, or cannot be written.
pub fn write_beside<T: Serialize>(path: &Path, version: u32, value: &T) -> Result<(), StoreError> {
    let bytes = encode(version, value).map_err(StoreError::io("encode", path))?;
    write_new(path, &bytes).map_err(StoreError::io("write", path))
}

/// The bytes of a checked file.
///
/// # Errors
/// The value has no JSON.
pub fn encode<T: Serialize>(version: u32, value: &T) -> io::Result<Vec<u8>> {
    let content = serde_json::to_string(value)?;
    let covered = format!("{VERSION}{version}{CONTENT}{content}}}");
    Ok(format!("{OPENING}{}\",{covered}\n", ContentDigest::of(covered.as_bytes())).into_bytes())
}

/// Reads the bytes of a checked file; `path` is for the error.
///
/// # Errors
/// [`CheckedError::Damaged`] or [`CheckedError::Version`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8], path: &Path, version: u32) -> Result<T, CheckedError> {
    let (found, content) = open(bytes, path)?;
    if found != version {
        return Err(CheckedError::Version { path: path.to_owned(), found, wanted: version });
    }
    let damaged = |what| CheckedError::Damaged { path: path.to_owned(), what };
    serde_json::from_str(content).map_err(|error| damaged(Damage::Content(error)))
}

/// The version of a checked file that is what was written, whatever it holds; `None` where there is no file.
///
/// # Errors
/// [`CheckedError::Io`] or [`CheckedError::Damaged`].
pub fn verify(path: &Path) -> Result<Option<u32>, CheckedError> {
    bytes_of(path)?.map(|bytes| open(&bytes, path).map(|(version, _)| version)).transpose()
}

/// Version and content of a checked file whose digest is right.
fn open<'a>(bytes: &'a [u8], path: &Path) -> Result<(u32, &'a str), CheckedError> {
    let damaged = |what| CheckedError::Damaged { path: path.to_owned(), what };
    let (digest, covered) = split(bytes).ok_or_else(|| damaged(Damage::Form))?;
    match ContentDigest::of(covered.as_bytes()) == digest {
        true => versioned(covered).ok_or_else(|| damaged(Damage::Form)),
        false => Err(damaged(Damage::Digest)),
    }
}

/// Writes bytes and their digest into a file that is not there yet, as [`write_beside`] does.
///
/// # Errors
/// It is there, or cannot be written.
pub fn write_binary(path: &Path, mut bytes: Vec<u8>) -> Result<(), StoreError> {
    bytes.extend_from_slice(ContentDigest::of(&bytes).as_bytes());
    write_new(path, &bytes).map_err(StoreError::io("write", path))
}

/// Writes bytes and their digest into a file of the store, by rename, as [`write`] does.
///
/// # Errors
/// Those of [`Store::write_atomic`].
pub fn put_binary(store: &Store, path_in_root: &Path, mut bytes: Vec<u8>) -> Result<(), StoreError> {
    bytes.extend_from_slice(ContentDigest::of(&bytes).as_bytes());
    store.write_atomic(path_in_root, &bytes)
}

/// Reads what [`write_binary`] or [`put_binary`] made; `None` where there is no file.
///
/// # Errors
/// [`CheckedError::Io`] or [`CheckedError::Damaged`].
pub fn read_binary(path: &Path) -> Result<Option<Vec<u8>>, CheckedError> {
    let Some(mut bytes) = bytes_of(path)? else { return Ok(None) };
    let damaged = |what| CheckedError::Damaged { path: path.to_owned(), what };
    let (body, check) = bytes.split_last_chunk::<32>().ok_or_else(|| damaged(Damage::Form))?;
    if ContentDigest::of(body).as_bytes() != check {
        return Err(damaged(Damage::Digest));
    }
    bytes.truncate(bytes.len() - 32);
    Ok(Some(bytes))
}

/// All bytes of a file; `None` where there is none. One that is longer than any of ours is not read.
fn bytes_of(path: &Path) -> Result<Option<Vec<u8>>, CheckedError> {
    let failed = |source| CheckedError::Io { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let length = file.metadata().map_err(failed)?.len();
    if length > LENGTH_MAX {
        return Err(CheckedError::Damaged { path: path.to_owned(), what: Damage::Length(length) });
    }
    let mut bytes = Vec::with_capacity(length as usize);
    io::Read::read_to_end(&mut io::Read::take(file, LENGTH_MAX), &mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// The digest at the beginning, and what it covers.
fn split(bytes: &[u8]) -> Option<(ContentDigest, &str)> {
    let text = str::from_utf8(bytes).ok()?.strip_prefix(OPENING)?.strip_suffix('\n')?;
    let (digest, covered) = text.split_once("\",")?;
    Some((digest.parse().ok()?, covered))
}

fn versioned(covered: &str) -> Option<(u32, &str)> {
    let (version, content) = covered.strip_prefix(VERSION)?.split_once(CONTENT)?;
    Some((version.parse().ok()?, content.strip_suffix('}')?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Value = BTreeMap<String, Vec<u32>>;

    fn value() -> Value {
        [("a \"quoted\" key, \"content\":".to_owned(), vec![1, 2]), ("ä".to_owned(), vec![])].into()
    }

    fn decoded(bytes: &[u8]) -> Result<Value, CheckedError> {
        decode(bytes, Path::new("f"), 7)
    }

    #[test]
    fn what_was_written_is_read_and_is_json() {
        let bytes = encode(7, &value()).expect("text keys");
        assert_eq!(decoded(&bytes).expect("undamaged"), value());
        let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(json["version"], 7);
        assert_eq!(json["content"]["ä"], serde_json::json!([]));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let bytes = encode(7, &value()).expect("text keys");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = decoded(&damaged).expect_err("damaged");
            assert!(error.is_damage(), "bit {bit}: {error}");
        }
        for length in 0..bytes.len() {
            assert!(decoded(&bytes[..length]).is_err_and(|error| error.is_damage()), "{length} bytes");
        }
        assert!(decoded(&[&bytes[..], &bytes[..]].concat()).is_err_and(|error| error.is_damage()));
    }

    #[test]
    fn another_version_is_told_and_no_damage_whatever_it_holds() {
        let bytes = encode(8, &"another shape").expect("text");
        let error = decoded(&bytes).expect_err("another version");
        assert_eq!(error.to_string(), "f has version 8, and this program reads version 7");
        assert!(!error.is_damage());
    }

    #[test]
    fn another_shape_of_the_same_version_is_damage() {
        let bytes = encode(7, &"another shape").expect("text");
        let error = decoded(&bytes).expect_err("another shape");
        assert!(error.is_damage() && error.to_string().contains("expected a map"), "{error}");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_gives_other_bytes() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("f");
        assert!(read_binary(&path).expect("readable").is_none());
        write_binary(&path, b"bytes".to_vec()).expect("written");
        assert_eq!(read_binary(&path).expect("readable").as_deref(), Some(&b"bytes"[..]));
        let bytes = fs::read(&path).expect("read");
        let flipped = (0..bytes.len() * 8).map(|bit| {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            damaged
        });
        for damaged in flipped.chain((0..bytes.len()).map(|length| bytes[..length].to_vec())) {
            fs::remove_file(&path).expect("removed");
            fs::write(&path, &damaged).expect("written");
            assert!(read_binary(&path).is_err_and(|error| error.is_damage()), "{damaged:?}");
        }
    }

    #[test]
    fn files_come_and_go_in_a_store() {
        let directory = tempfile::tempdir().expect("made");
        let store = Store::open(directory.path()).expect("a store");
        let path = store.area("records/content").join("x.json");
        assert!(read::<Value>(&path, 7).expect("readable").is_none());
        write(&store, &path, 7, &value()).expect("written");
        assert_eq!(read::<Value>(&path, 7).expect("readable"), Some(value()));
        let held = store.temp_dir("test").expect("made").path().to_owned();
        fs::create_dir(&held).expect("made");
        write_beside(&held.join("y"), 7, &value()).expect("written");
        assert!(write_beside(&held.join("y"), 7, &value()).is_err(), "it is there");
        assert_eq!(verify(&held.join("y")).expect("readable"), Some(7));
        let directory = store.area("records/content");
        assert!(read::<Value>(&directory, 7).is_err_and(|error| error.is_damage()), "a directory");
        let long = held.join("long");
        fs::File::create(&long).and_then(|file| file.set_len(LENGTH_MAX + 1)).expect("a hole");
        assert!(verify(&long).is_err_and(|error| error.is_damage()), "too long to be read");
    }
}

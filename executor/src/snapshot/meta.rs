//! What stands beside a snapshot's `fs/`: what is known of the layer that its files do not say. `meta.json` is read
//! whenever the snapshot is used; `brought`, which can be long, only where it is asked for: 32 bytes a digest.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use oci::{ContentDigest, TreeDigest, tree::TIME_LIMIT};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::listing::Owners;

const META: &str = "meta.json";
const BROUGHT: &str = "brought";

/// Version of the format of `meta.json` and of the directories beside it.
pub(super) const META_VERSION: u32 = 1;

/// The content of `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Version of the format; another one is not read.
    pub version: u32,
    /// The layer's own digest.
    pub layer: TreeDigest,
    /// No file of the layer was stamped later; later than the stamps of all layers below.
    pub stamp: Stamp,
    /// Whether nothing of the layers below is left.
    pub opaque_root: bool,
    /// Owners, in the whole snapshot, that the disk could not hold.
    pub owners: Vec<Owned>,
}

/// One of [`Owners`] in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owned {
    path: PathText,
    uid: u32,
    gid: u32,
}

/// A path as people read it, or its bytes where it is not text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl Meta {
    /// Reads the file in a snapshot's directory; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or has another version.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(directory.join(META)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let meta: Self = serde_json::from_slice(&bytes)?;
        if meta.version != META_VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its version is {}", meta.version),
            ));
        }
        Ok(Some(meta))
    }

    /// Writes the file into a directory that is not a snapshot yet.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::write(directory.join(META), serde_json::to_vec(self)?)
    }

    /// Owners, in the whole snapshot, that the disk could not hold.
    pub fn owners(&self) -> Owners {
        let owner = |owned: &Owned| {
            let path = match &owned.path {
                PathText::Text(text) => text.clone().into_bytes(),
                PathText::Bytes(bytes) => bytes.clone(),
            };
            (path, (owned.uid, owned.gid))
        };
        self.owners.iter().map(owner).collect()
    }
}

/// Whether an error of [`Meta::read`] says something about the file, and not about this process or this machine at
/// the moment (out of descriptors, out of memory), for which no snapshot may be given up.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, UnexpectedEof};
    let is_unreadable = error.raw_os_error() == Some(Errno::IO.raw_os_error());
    is_unreadable || matches!(error.kind(), InvalidData | UnexpectedEof | IsADirectory | NotADirectory)
}

/// Reads the contents that were brought with one layer.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read_brought(directory: &Path) -> io::Result<BTreeSet<ContentDigest>> {
    let bytes = fs::read(directory.join(BROUGHT))?;
    let (digests, rest) = bytes.as_chunks::<32>();
    match rest.is_empty() {
        true => Ok(digests.iter().copied().map(ContentDigest::new).collect()),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Writes the contents that were brought with one layer.
///
/// # Errors
/// The file cannot be written.
pub fn write_brought(directory: &Path, brought: &BTreeSet<ContentDigest>) -> io::Result<()> {
    let bytes: Vec<u8> = brought.iter().flat_map(|digest| *digest.as_bytes()).collect();
    fs::write(directory.join(BROUGHT), bytes)
}

/// The form of [`Owners`] that stands in [`Meta`].
pub fn owned(owners: Owners) -> Vec<Owned> {
    let owned = |(path, (uid, gid))| {
        let path =
            String::from_utf8(path).map_or_else(|bytes| PathText::Bytes(bytes.into_bytes()), PathText::Text);
        Owned { path, uid, gid }
    };
    owners.into_iter().map(owned).collect()
}

/// A moment of this machine's clock, as a file's time on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Whole Unix seconds, rounded down.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

impl Stamp {
    /// Now, but later than `before`; `None` if the clock is before 2025, when no layer can have been made.
    pub fn now_after(before: Option<Stamp>) -> Option<Stamp> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let now = Self { seconds: i64::try_from(now.as_secs()).ok()?, nanoseconds: now.subsec_nanos() };
        let next = before.map_or(now, Stamp::next).max(now);
        (now.seconds >= TIME_LIMIT).then_some(next)
    }

    /// A millisecond later: file systems and tools round, but none of those we know more than that.
    fn next(self) -> Stamp {
        self.later(1_000_000)
    }

    /// So many nanoseconds later.
    pub(crate) fn later(self, nanoseconds: u64) -> Stamp {
        let nanoseconds = u64::from(self.nanoseconds) + nanoseconds;
        let (seconds, nanoseconds) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
        Self { seconds: self.seconds.saturating_add_unsigned(seconds), nanoseconds: nanoseconds as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_file_is_damage() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for bad in ["", "{", "[1]", "{\"version\":99}", "\0\0\0\0"] {
            fs::write(directory.path().join(META), bad).expect("it is written");
            let error = Meta::read(directory.path()).expect_err(bad);
            assert!(is_damage(&error), "{bad:?}: {error}");
        }
        for (errno, expected) in [
            (Errno::IO, true),
            (Errno::ISDIR, true),
            (Errno::MFILE, false),
            (Errno::NFILE, false),
            (Errno::NOMEM, false),
            (Errno::ACCESS, false),
        ] {
            assert_eq!(is_damage(&errno.into()), expected, "{errno}");
        }
    }

    #[test]
    fn a_stamp_is_later_than_the_one_before_even_if_the_clock_goes_back() {
        let future = Stamp { seconds: i64::from(u32::MAX), nanoseconds: 999_500_000 };
        let after = Stamp::now_after(Some(future)).expect("the clock is set");
        assert_eq!(after, Stamp { seconds: future.seconds + 1, nanoseconds: 500_000 });
        let now = Stamp::now_after(None).expect("the clock is set");
        assert!(Stamp::now_after(Some(now)).expect("the clock is set") > now);
    }
}

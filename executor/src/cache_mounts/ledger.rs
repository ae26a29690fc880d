//! What the users of a cache mount have seen beside it: every file that steps have made, with a hash of what it is and
//! the time it was shown with.
//!
//! A tool that keeps its results in a cache mount (make, cargo, ninja) compares their times with those of the files
//! they were made from. So the times that a cache mount has seen may never go back: a file is shown with the time it
//! had when it was first seen as it is, however often its layer is made again, comes from elsewhere, or is an older
//! one. The ledger is written *before* a step runs, so that a step that is killed leaves no results that are newer than
//! what is written down.
//!
//! Two steps that use a mount at the same time may see different files under one path, and no time tells whose results
//! are there afterwards. What changes while somebody else is there is *contested*: it counts as changed for whoever comes
//! next.
//!
//! The file is `ROOT/mounts/ID/VARIANT/NUMBER/seen`; one that cannot be read counts as if somebody unknown had used
//! the mount.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use oci::{ContentDigest, TreeDigest};

use crate::snapshot::Stamp;

/// Name of the file.
pub const FILE: &str = "seen";
/// How it begins.
const HEAD: &[u8; 8] = b"lwseen1\n";
/// Its digest, at its end.
const CHECK: usize = 32;

/// A hash of all of a file that its readers can see but times and owner.
pub(super) type Face = ContentDigest;

/// The face of a contested file: no file has it.
pub(super) fn contested() -> Face {
    ContentDigest::new([0; 32])
}

/// One file that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// What it was.
    pub(super) face: Face,
    /// With which time.
    pub(super) time: Stamp,
    /// Whether it came from the base image, where it is the same for as long as that is.
    pub(super) from_base: bool,
    /// Whether it was a directory.
    pub(super) is_directory: bool,
}

/// All that the users of one cache mount have seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ledger {
    /// Hash of all file systems, as they were on disk.
    pub(super) view: TreeDigest,
    /// Whether that view shows all that was seen with its time, and nothing is contested: then there is nothing to do
    /// for somebody with the same view.
    pub(super) is_settled: bool,
    /// The base image of each file system, by where it is mounted.
    pub(super) bases: BTreeMap<Vec<u8>, TreeDigest>,
    /// Files by their path as the command sees it, without the slash in front.
    pub(super) seen: BTreeMap<Vec<u8>, Seen>,
    /// What steps had hidden of the base images, each with all below it.
    pub(super) hidden: BTreeSet<Vec<u8>>,
}

impl Ledger {
    /// Reads the ledger of a directory; `None` where it cannot be had.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let bytes = fs::read(directory.join(FILE)).ok()?;
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK)?)?;
        if blake3::hash(body).as_bytes() != check {
            return None;
        }
        let mut reader = Reader(body.strip_prefix(HEAD)?);
        let ledger = Self {
            view: TreeDigest::new(reader.array()?),
            is_settled: reader.flag()?,
            bases: reader.list(|reader| Some((reader.path()?, TreeDigest::new(reader.array()?))))?,
            seen: reader.list(|reader| Some((reader.path()?, reader.seen()?)))?,
            hidden: reader.list(Reader::path)?,
        };
        reader.0.is_empty().then_some(ledger)
    }

    /// The file's content and where it belongs in a directory.
    pub(super) fn to_file(&self, directory: &Path) -> (PathBuf, Vec<u8>) {
        let mut bytes = HEAD.to_vec();
        bytes.extend_from_slice(self.view.as_bytes());
        bytes.push(u8::from(self.is_settled));
        write_list(&mut bytes, &self.bases, |bytes, (path, base)| {
            write_path(bytes, path);
            bytes.extend_from_slice(base.as_bytes());
        });
        write_list(&mut bytes, &self.seen, |bytes, (path, seen)| {
            write_path(bytes, path);
            bytes.extend_from_slice(seen.face.as_bytes());
            bytes.extend_from_slice(&seen.time.seconds.to_le_bytes());
            bytes.extend_from_slice(&seen.time.nanoseconds.to_le_bytes());
            bytes.extend_from_slice(&[u8::from(seen.from_base), u8::from(seen.is_directory)]);
        });
        write_list(&mut bytes, &self.hidden, |bytes, path| write_path(bytes, path));
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        (directory.join(FILE), bytes)
    }
}

fn write_list<T>(
    bytes: &mut Vec<u8>,
    list: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    let list = list.into_iter();
    bytes.extend_from_slice(&(list.len() as u64).to_le_bytes());
    list.for_each(|item| write(bytes, item));
}

fn write_path(bytes: &mut Vec<u8>, path: &[u8]) {
    bytes.extend_from_slice(&(path.len() as u64).to_le_bytes());
    bytes.extend_from_slice(path);
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).ok()
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        let length = self.length()?;
        let (path, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(path.to_vec())
    }

    fn seen(&mut self) -> Option<Seen> {
        Some(Seen {
            face: ContentDigest::new(self.array()?),
            time: Stamp {
                seconds: i64::from_le_bytes(self.array()?),
                nanoseconds: u32::from_le_bytes(self.array()?),
            },
            from_base: self.flag()?,
            is_directory: self.flag()?,
        })
    }

    fn list<T, L: FromIterator<T>>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<L> {
        let length = self.length()?;
        (0..length).map(|_| read(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let time = Stamp { seconds: -7, nanoseconds: 999_999_999 };
        let seen = Seen { face: ContentDigest::of(b"x"), time, from_base: true, is_directory: false };
        Ledger {
            view: TreeDigest::new([7; 32]),
            is_settled: true,
            bases: BTreeMap::from([(b"src".to_vec(), TreeDigest::new([1; 32]))]),
            seen: BTreeMap::from([
                (b"a\xff\n".to_vec(), seen),
                (b"b".to_vec(), Seen { from_base: false, is_directory: true, ..seen }),
            ]),
            hidden: BTreeSet::from([b"etc/x".to_vec()]),
        }
    }

    #[test]
    fn it_reads_what_it_wrote_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (path, bytes) = ledger().to_file(directory.path());
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Ledger::read(directory.path()), Some(ledger()));
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(Ledger::read(directory.path()), None, "the first {length} bytes");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(Ledger::read(directory.path()), None, "byte {at} is another");
        }
        fs::remove_file(path).unwrap();
        assert_eq!(Ledger::read(directory.path()), None);
    }
}

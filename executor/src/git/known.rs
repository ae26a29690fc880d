//! What blobs hold, remembered between builds: from an object id to a content digest and a length.
//!
//! An object id says what a blob holds as well as our own digest does, but keys are made of ours. Each blob is read once to
//! learn that, and is verified when it is, so that an id stands for the same bytes in every repository; from then on a
//! listing needs no blob.
//!
//! It is [kept](crate::context::kept) beside the indices of other contexts, under the repository's directory.
//!
//! On disk, integers in little endian: the entries ([`ENTRY`] bytes each) in the order of their ids, those of SHA-1 filled up
//! with zeros.

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use gix::ObjectId;
use oci::{ContentDigest, store::Store};

use crate::context::kept::{self, HEADER, Kept, Magic, aged};

/// Also the version of the format.
const MAGIC: &Magic = b"lw-oid1\n";
/// Id, content, length, writings without use, and what fills up to a multiple of eight.
const ENTRY: usize = 80;

type Id = [u8; 32];

/// What is known of the blobs of one repository.
#[derive(Default)]
pub struct Known {
    /// Where it is kept; `None` for a repository that nobody will see again.
    kept: Option<Kept>,
    old: Records,
    learned: RwLock<BTreeMap<Id, (ContentDigest, u64)>>,
    has_news: AtomicBool,
}

impl Known {
    /// What is remembered of the repository in a directory.
    pub fn load(store: &Arc<Store>, repository: &Path) -> Self {
        let kept = Kept::new(store, &[b"git\0", repository.as_os_str().as_bytes()].concat());
        let old = kept.read().and_then(Records::new).unwrap_or_default();
        Self { kept: Some(kept), old, ..Self::default() }
    }

    /// What a blob holds, and how much that is, if it was read before.
    pub fn find(&self, id: &ObjectId) -> Option<(ContentDigest, u64)> {
        let id = filled(id);
        self.old
            .find(&id)
            .or_else(|| self.learned.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied())
    }

    /// Takes note of what blobs hold. Their bytes were verified.
    pub fn learn(&self, blobs: impl IntoIterator<Item = (ObjectId, ContentDigest, u64)>) {
        let mut learned = self.learned.write().unwrap_or_else(PoisonError::into_inner);
        let before = learned.len();
        learned.extend(blobs.into_iter().map(|(id, content, size)| (filled(&id), (content, size))));
        if learned.len() > before {
            self.has_news.store(true, Ordering::Relaxed);
        }
    }

    /// Whether something was learned since it was read or written.
    pub fn has_news(&self) -> bool {
        self.kept.is_some() && self.has_news.load(Ordering::Relaxed)
    }

    /// Writes what was learned since the last time, if anything was.
    pub fn save(&self) {
        let Some(kept) = &self.kept else { return };
        if self.has_news.swap(false, Ordering::Relaxed) {
            kept.write(&self.encode());
        }
    }

    fn encode(&self) -> Vec<u8> {
        let learned = self.learned.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: BTreeMap<Id, (ContentDigest, u64, u8)> = self.old.kept().collect();
        all.extend(learned.iter().map(|(id, (content, size))| (*id, (*content, *size, 0))));
        kept::sealed(MAGIC, |bytes| {
            bytes.reserve(all.len() * ENTRY);
            for (id, (content, size, unused)) in all {
                bytes.extend(id);
                bytes.extend(content.as_bytes());
                bytes.extend(size.to_le_bytes());
                bytes.extend([unused, 0, 0, 0, 0, 0, 0, 0]);
            }
        })
    }
}

fn filled(id: &ObjectId) -> Id {
    let mut filled = [0; 32];
    filled[..id.as_slice().len()].copy_from_slice(id.as_slice());
    filled
}

/// As they are on disk.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    /// Which entries were asked for.
    used: Vec<AtomicBool>,
}

impl Records {
    /// `None` where that is nothing sound.
    fn new(bytes: Vec<u8>) -> Option<Self> {
        let entries = bytes.get(HEADER..)?.len();
        let used = (0..entries / ENTRY).map(|_| AtomicBool::new(false)).collect();
        let is_whole = entries.is_multiple_of(ENTRY) && kept::is_sound(&bytes, MAGIC);
        is_whole.then_some(Self { bytes, used })
    }

    fn find(&self, id: &Id) -> Option<(ContentDigest, u64)> {
        let (mut low, mut high) = (0, self.used.len());
        while low < high {
            let middle = low.midpoint(high);
            let (found, content, size, _) = self.get(middle);
            match found.cmp(id) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    self.used[middle].store(true, Ordering::Relaxed);
                    return Some((content, size));
                }
            }
        }
        None
    }

    fn get(&self, at: usize) -> (Id, ContentDigest, u64, u8) {
        let entry = &self.bytes[HEADER + at * ENTRY..][..ENTRY];
        let field = |at: usize| -> [u8; 32] { entry[at..][..32].try_into().expect("as long as it says") };
        let size = u64::from_le_bytes(entry[64..72].try_into().expect("as long as it says"));
        (field(0), ContentDigest::from(blake3::Hash::from_bytes(field(32))), size, entry[72])
    }

    /// What is to be remembered further on.
    fn kept(&self) -> impl Iterator<Item = (Id, (ContentDigest, u64, u8))> {
        (0..self.used.len()).filter_map(|at| {
            let (id, content, size, unused) = self.get(at);
            let unused = aged(unused, self.used[at].load(Ordering::Relaxed))?;
            Some((id, (content, size, unused)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::kept::KEPT_UNUSED;

    fn id(number: u8) -> ObjectId {
        ObjectId::from_bytes_or_panic(&[number; 20])
    }

    fn content(number: u8) -> (ContentDigest, u64) {
        (ContentDigest::of(&[number]), u64::from(number))
    }

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let directory = tempfile::tempdir().expect("made");
        let store = Store::open(&directory.path().join("store")).expect("opened");
        (directory, Arc::new(store))
    }

    fn learn(known: &Known, number: u8) {
        let (content, size) = content(number);
        known.learn([(id(number), content, size)]);
    }

    #[test]
    fn what_was_learned_is_known_to_the_next_build() {
        let (_directory, store) = store();
        let load = || Known::load(&store, Path::new("/repository"));
        let known = load();
        [3, 1, 2].into_iter().for_each(|number| learn(&known, number));
        assert_eq!(known.find(&id(3)), Some(content(3)));
        assert!(known.has_news());
        known.save();
        assert!(!known.has_news());
        let next = load();
        assert_eq!(
            [1, 2, 3, 4].map(|number| next.find(&id(number))),
            [Some(content(1)), Some(content(2)), Some(content(3)), None]
        );
        assert!(Known::load(&store, Path::new("/another")).find(&id(1)).is_none());
    }

    #[test]
    fn damage_is_not_believed() {
        let (_directory, store) = store();
        let known = Known::load(&store, Path::new("/repository"));
        learn(&known, 1);
        let bytes = known.encode();
        let is_sound = |bytes: &[u8]| Records::new(bytes.to_vec()).is_some();
        assert!(is_sound(&bytes));
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(!is_sound(&bytes), "{at}");
        }
        assert!(!is_sound(&bytes[..bytes.len() - 1]));
    }

    #[test]
    fn what_nobody_asks_for_is_dropped() {
        let (_directory, store) = store();
        let load = || Known::load(&store, Path::new("/repository"));
        let known = load();
        [1, 2].into_iter().for_each(|number| learn(&known, number));
        known.save();
        for number in 10..=10 + KEPT_UNUSED {
            let known = load();
            assert!(known.find(&id(1)).is_some());
            learn(&known, number);
            known.save();
        }
        let known = load();
        assert!(known.find(&id(1)).is_some() && known.find(&id(2)).is_none());
    }
}

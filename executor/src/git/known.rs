//! What blobs hold, remembered between builds: from an object id to a content digest and a length.
//!
//! An object id says what a blob holds as well as our own digest does, but keys are made of ours. Each blob is read once to
//! learn that, and is verified when it is, so that an id stands for the same bytes in every repository; from then on a
//! listing needs no blob.
//!
//! It lies beside the indices of other contexts, in `contexts/HEX` of the store, and is named after the repository's
//! directory. It is replaced as a whole when something was
//! learned, in the background; of two builds that do so the last one stays. One that is damaged or of another version
//! counts as none. What no build has asked for in [`KEPT_UNUSED`] writings is dropped.
//!
//! On disk, integers in little endian: [`MAGIC`], BLAKE3 of all that follows, then the entries ([`ENTRY`] bytes each) in the
//! order of their ids, those of SHA-1 filled up with zeros.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use gix::ObjectId;
use oci::{ContentDigest, store::Store};

/// Also the version of the format.
const MAGIC: &[u8; 8] = b"lw-oid1\n";
const DIGEST: usize = 32;
const HEADER: usize = MAGIC.len() + DIGEST;
/// Id, content, length, writings without use, and what fills up to a multiple of eight.
const ENTRY: usize = 80;
/// So many writings an entry survives without being asked for.
const KEPT_UNUSED: u8 = 16;
/// Larger files are none of ours: some ten million entries.
const SIZE_MAX: u64 = 1 << 30;

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

struct Kept {
    store: Arc<Store>,
    path: PathBuf,
}

impl Known {
    /// What is remembered of the repository in a directory.
    pub fn load(store: &Arc<Store>, repository: &Path) -> Self {
        let name = blake3::hash(&[b"git\0", repository.as_os_str().as_bytes()].concat()).to_hex();
        let path = store.area("contexts").join(name.as_str());
        let old = Records::read(&path).unwrap_or_default();
        store.touch(&path);
        Self { kept: Some(Kept { store: Arc::clone(store), path }), old, ..Self::default() }
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
        let Some(Kept { store, path }) = &self.kept else { return };
        if self.has_news.swap(false, Ordering::Relaxed) {
            // One that cannot be written costs the next build time and nothing else.
            let _ = store.write_loose(path, &self.encode());
        }
    }

    fn encode(&self) -> Vec<u8> {
        let learned = self.learned.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: BTreeMap<Id, (ContentDigest, u64, u8)> = self.old.kept().collect();
        all.extend(learned.iter().map(|(id, (content, size))| (*id, (*content, *size, 0))));
        let mut bytes = [&MAGIC[..], &[0; DIGEST]].concat();
        bytes.reserve(all.len() * ENTRY);
        for (id, (content, size, unused)) in all {
            bytes.extend(id);
            bytes.extend(content.as_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend([unused, 0, 0, 0, 0, 0, 0, 0]);
        }
        let digest = blake3::hash(&bytes[HEADER..]);
        bytes[MAGIC.len()..HEADER].copy_from_slice(digest.as_bytes());
        bytes
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
    /// `None` where there is nothing sound.
    fn read(path: &Path) -> Option<Self> {
        let size = fs::metadata(path).ok()?.len();
        (size <= SIZE_MAX).then(|| fs::read(path).ok()).flatten().and_then(Self::new)
    }

    fn new(bytes: Vec<u8>) -> Option<Self> {
        let (digest, entries) = bytes.strip_prefix(MAGIC)?.split_at_checked(DIGEST)?;
        let is_whole = entries.len().is_multiple_of(ENTRY)
            && blake3::hash(entries) == *<&[u8; DIGEST]>::try_from(digest).ok()?;
        let used = (0..entries.len() / ENTRY).map(|_| AtomicBool::new(false)).collect();
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
        let aged = (0..self.used.len()).map(|at| {
            let (id, content, size, unused) = self.get(at);
            let is_used = self.used[at].load(Ordering::Relaxed);
            (id, (content, size, if is_used { 0 } else { unused.saturating_add(1) }))
        });
        aged.filter(|(_, (_, _, unused))| *unused <= KEPT_UNUSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! What the files of a context hold, remembered between builds: git's index, for contexts.
//!
//! A file whose [state](FileState) is the one that is remembered holds what is remembered, and is not opened. Two rules
//! make that safe:
//! - A state is remembered only if it was the same before and after the file was read.
//! - A file that was written to a moment ago may be written to again without another time: clocks of file systems tick
//!   every few milliseconds, some every two seconds. So a state is remembered only once its times are a margin older than
//!   the look that saw it; until then the file is read again, as are files with times in the future.
//!   Where times are another machine's (network file systems), the margin is an hour. Where the time of change can be
//!   set or is none (FUSE, FAT, images), nothing is remembered.
//!
//! As with git, who writes through a shared mapping that was dirty before can change bytes without changing the state.
//!
//! There is one index a context, [kept](super::kept) under the context's absolute path.
//!
//! On disk, integers in little endian: the number of entries (8 bytes), the
//! entries in the order of their paths ([`ENTRY`] bytes each), then for each the bytes of its path and of its
//! capabilities. So 20,000 entries are there as soon as they are read and hashed, which takes about two milliseconds.

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use oci::{ContentDigest, store::Store};

use super::{
    clock::Horizon,
    kept::{self, Kept, Magic, aged},
};
use crate::listing::state::FileState;

/// Also the version of the format.
const MAGIC: &Magic = b"lw-ctx1\n";
/// Up to the entries.
const HEADER: usize = kept::HEADER + 8;
/// Bytes of an entry: see [`Record::encode`].
const ENTRY: usize = 96;

/// What is known of a file: as much as enters a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The state in which it was read.
    pub state: FileState,
    /// What it holds.
    pub content: ContentDigest,
    /// Its capabilities.
    pub capability: Option<Vec<u8>>,
}

/// What is known of the files of one context.
#[derive(Default)]
pub struct Index {
    /// Where it is kept; `None` for a context that nobody will see again.
    kept: Option<Kept>,
    /// What earlier builds have learned.
    old: Records,
    /// What this one has.
    learned: Mutex<BTreeMap<Vec<u8>, Learned>>,
}

struct Learned {
    known: Known,
    is_settled: bool,
    is_written: bool,
}

impl Learned {
    fn is_news(&self) -> bool {
        self.is_settled && !self.is_written
    }
}

impl Index {
    /// What is remembered of a context in a directory. What cannot be read is not remembered.
    pub fn load(store: &Arc<Store>, directory: &Path) -> Self {
        let Ok(directory) = directory.canonicalize() else { return Self::default() };
        if directory.starts_with(store.root().join("tmp")) {
            return Self::default();
        }
        let kept = Kept::new(store, directory.as_os_str().as_bytes());
        let old = kept.read().and_then(Records::new).unwrap_or_default();
        Self { kept: Some(kept), old, learned: Mutex::default() }
    }

    /// What a file holds whose state is this one, if that is known. Paths must be asked for in ascending order.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { records: &self.old, at: None }
    }

    /// What this build has learned of a file with this state.
    pub fn learned(&self, path: &[u8], state: &FileState) -> Option<Known> {
        let learned = self.lock();
        learned.get(path).filter(|learned| learned.known.state == *state).map(|learned| learned.known.clone())
    }

    /// Takes note of what files hold. What was written to after the horizon is known to this build only.
    pub fn learn(&self, files: impl IntoIterator<Item = (Vec<u8>, Known)>, horizon: &Horizon) {
        let files = files.into_iter().map(|(path, known)| {
            let is_settled = horizon.is_before(&known.state);
            (path, Learned { known, is_settled, is_written: false })
        });
        let mut learned = self.lock();
        match learned.is_empty() {
            // All at once is many times faster than one by one.
            true => *learned = files.collect(),
            false => learned.extend(files),
        }
    }

    /// Whether something was learned since it was read or written.
    pub fn has_news(&self) -> bool {
        self.kept.is_some() && self.lock().values().any(Learned::is_news)
    }

    /// Writes what was learned since the last time, if anything was.
    pub fn save(&self) {
        let Some(kept) = &self.kept else { return };
        self.encode().into_iter().for_each(|bytes| kept.write(&bytes));
    }

    /// The bytes of what is worth remembering; `None` where that is what is on disk.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut learned = self.lock();
        let news = learned.values_mut().filter(|learned| learned.is_news());
        if news.map(|learned| learned.is_written = true).count() == 0 {
            return None;
        }
        let settled = learned.iter().filter(|(_, learned)| learned.is_settled);
        let mut all: BTreeMap<&[u8], Record<'_>> = self.old.kept().map(|old| (old.path, old)).collect();
        all.extend(settled.map(|(path, learned)| (path.as_slice(), Record::new(path, &learned.known))));
        Some(encode(all.values()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Learned>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes through what is remembered, together with somebody who goes through files.
pub struct Cursor<'a> {
    records: &'a Records,
    at: Option<usize>,
}

impl Cursor<'_> {
    /// What the file at a path holds, if its state is the one that is remembered. Paths are asked for in ascending
    /// order.
    pub fn find(&mut self, path: &[u8], state: &FileState) -> Option<Known> {
        let records = self.records;
        let mut at = self.at.unwrap_or_else(|| records.first_from(path));
        while at < records.count && records.path(at) < path {
            at += 1;
        }
        self.at = Some(at);
        if at == records.count || records.path(at) != path {
            return None;
        }
        records.used[at].store(true, Ordering::Relaxed);
        let record = records.get(at);
        (record.state == *state).then(|| record.known())
    }
}

/// An index as it is on disk.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    count: usize,
    /// Which entries were asked for.
    used: Vec<AtomicBool>,
}

impl Records {
    /// `None` where that is no sound index.
    fn new(bytes: Vec<u8>) -> Option<Self> {
        if !kept::is_sound(&bytes, MAGIC) {
            return None;
        }
        let (count, rest) = bytes.get(kept::HEADER..)?.split_first_chunk()?;
        let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
        // Who has the digest right has the rest right; this only keeps a bug of ours from being a panic.
        if count > rest.len() / ENTRY {
            return None;
        }
        let records = Self { count, used: (0..count).map(|_| AtomicBool::new(false)).collect(), bytes };
        records.is_whole().then_some(records)
    }

    /// Whether all texts are there, one after the other, and nothing else is.
    fn is_whole(&self) -> bool {
        let mut at = Some(0);
        for number in 0..self.count {
            at = self.ends(number).filter(|(path, end)| at <= Some(*path) && path <= end).map(|(_, end)| end);
            if at.is_none() {
                return false;
            }
        }
        at.is_some_and(|end| self.texts() + end == self.bytes.len())
    }

    /// Where paths and capabilities begin.
    fn texts(&self) -> usize {
        HEADER + self.count * ENTRY
    }

    fn entry(&self, at: usize) -> Option<&[u8; ENTRY]> {
        self.bytes.get(HEADER + at.checked_mul(ENTRY)?..)?.first_chunk()
    }

    /// Where the path of an entry ends, and where its capabilities do; from where texts begin.
    fn ends(&self, at: usize) -> Option<(usize, usize)> {
        let mut fields = Fields(self.entry(at)?);
        Some((fields.u32() as usize, fields.u32() as usize))
    }

    fn start(&self, at: usize) -> usize {
        let before = at.checked_sub(1).and_then(|before| self.ends(before));
        before.map_or(0, |(_, end)| end)
    }

    fn path(&self, at: usize) -> &[u8] {
        let (end, _) = self.ends(at).expect("looked at when it was read");
        &self.bytes[self.texts() + self.start(at)..self.texts() + end]
    }

    /// The first entry whose path is not before this one.
    fn first_from(&self, path: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            match self.path(middle) < path {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    fn get(&self, at: usize) -> Record<'_> {
        let (path_end, end) = self.ends(at).expect("looked at when it was read");
        let capability = &self.bytes[self.texts() + path_end..self.texts() + end];
        Record::decode(self.entry(at).expect("looked at when it was read"), self.path(at), capability)
    }

    /// What is to be remembered further on.
    fn kept(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.count).filter_map(|at| {
            let record = self.get(at);
            let unused = aged(record.unused, self.used[at].load(Ordering::Relaxed))?;
            Some(Record { unused, ..record })
        })
    }
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record<'a> {
    path: &'a [u8],
    state: FileState,
    content: ContentDigest,
    /// Empty where there are none.
    capability: &'a [u8],
    /// Writings since it was last asked for.
    unused: u8,
}

impl<'a> Record<'a> {
    fn new(path: &'a [u8], known: &'a Known) -> Self {
        let Known { state, content, capability } = known;
        Self {
            path,
            state: *state,
            content: *content,
            capability: capability.as_deref().unwrap_or_default(),
            unused: 0,
        }
    }

    fn known(&self) -> Known {
        let capability = (!self.capability.is_empty()).then(|| self.capability.to_vec());
        Known { state: self.state, content: self.content, capability }
    }

    /// `ends` are those of its path and its capabilities.
    fn encode(&self, ends: (u32, u32), out: &mut Vec<u8>) {
        let Self { path: _, state, content, capability: _, unused } = self;
        let FileState { device, inode, size, mode, modified, changed } = state;
        out.extend(ends.0.to_le_bytes());
        out.extend(ends.1.to_le_bytes());
        [device, inode, size].into_iter().for_each(|number| out.extend(number.to_le_bytes()));
        for (seconds, nanoseconds) in [modified, changed] {
            out.extend(seconds.to_le_bytes());
            out.extend(nanoseconds.to_le_bytes());
        }
        out.extend(mode.to_le_bytes());
        out.extend(content.as_bytes());
        // Filled up to a multiple of eight.
        out.extend([*unused, 0, 0, 0]);
    }

    fn decode(entry: &[u8; ENTRY], path: &'a [u8], capability: &'a [u8]) -> Self {
        let mut fields = Fields(entry);
        let _ends = (fields.u32(), fields.u32());
        let (device, inode, size) = (fields.u64(), fields.u64(), fields.u64());
        let modified = (fields.u64() as i64, fields.u32());
        let changed = (fields.u64() as i64, fields.u32());
        let mode = fields.u32();
        let content = ContentDigest::from(blake3::Hash::from_bytes(fields.take()));
        let [unused] = fields.take();
        let state = FileState { device, inode, size, mode, modified, changed };
        Self { path, state, content, capability, unused }
    }
}

/// Takes an entry apart, which is longer than all that is taken of it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("an entry is as long as its fields");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

fn encode<'a>(records: impl ExactSizeIterator<Item = &'a Record<'a>>) -> Vec<u8> {
    kept::sealed(MAGIC, |bytes| {
        bytes.extend((records.len() as u64).to_le_bytes());
        bytes.reserve(records.len() * (ENTRY + 64));
        let mut texts = Vec::with_capacity(records.len() * 64);
        for record in records {
            texts.extend_from_slice(record.path);
            let path_end = texts.len() as u32;
            texts.extend_from_slice(record.capability);
            record.encode((path_end, texts.len() as u32), bytes);
        }
        bytes.append(&mut texts);
    })
}

#[cfg(test)]
mod tests;

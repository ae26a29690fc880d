//! What goes and what stays: decided on what a survey found, without asking anybody.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use oci::{DiffId, Sha256Digest, TreeDigest};

use super::{Content, Entry, Kept};

/// What is to stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// What was used within this time.
    pub within: Option<Duration>,
    /// So many bytes, what was used last before everything else.
    pub storage: Option<u64>,
    /// The records whose file systems are below these images: the diff IDs of each.
    pub images: Vec<Vec<DiffId>>,
}

/// Places in `entries` of what goes, in the order in which it is to go. What cannot be used goes in any case. `now` is in
/// Unix seconds.
pub fn choose(entries: &[Entry], keep: &Keep, now: u64) -> Vec<usize> {
    let used = uses(entries);
    let stays = |entry: &Entry| {
        let is_young = |within: Duration| last_used(entry, &used).saturating_add(within.as_secs()) > now;
        let is_empty = entry.records().is_empty();
        !is_empty
            && (keep.within.is_some_and(is_young)
                || entry.records().iter().all(|kept| is_below(kept, &keep.images)))
    };
    let mut order: Vec<usize> = (0..entries.len()).filter(|&place| !stays(&entries[place])).collect();
    order.sort_by_key(|&place| rank(&entries[place], &used));
    let mut room = Room::of(entries);
    let is_over = |room: &Room| keep.storage.is_none_or(|most| room.bytes > most);
    order.retain(|&place| {
        let goes = matches!(entries[place].content, Content::Unusable(_)) || is_over(&room);
        if goes {
            room.give_up(&entries[place]);
        }
        goes
    });
    order
}

/// Bytes of these documents and of all that they keep alive, each counted once.
pub fn distinct<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    let things: BTreeMap<Sha256Digest, u64> = entries.into_iter().flat_map(things).collect();
    things.values().sum()
}

/// When each record was used last, as far as that can be known; by content key.
fn uses(entries: &[Entry]) -> BTreeMap<TreeDigest, u64> {
    let mut used = BTreeMap::new();
    for entry in entries {
        for kept in entry.records() {
            let at = used.entry(kept.remote.record.content).or_insert(0);
            *at = entry.made_at().max(*at);
        }
    }
    used
}

/// A bundle that was not written again since is of no use to anybody, whoever has used its records.
fn last_used(entry: &Entry, used: &BTreeMap<TreeDigest, u64>) -> u64 {
    match &entry.content {
        Content::Record(kept) => used[&kept.remote.record.content],
        Content::Bundle(_) | Content::Unusable(_) => entry.made_at(),
    }
}

/// What goes first: what cannot be used, then what was used least recently; of the same time bundles before the records
/// in them, and a record before those it stands on, whose layers it keeps alive.
fn rank<'a>(entry: &'a Entry, used: &BTreeMap<TreeDigest, u64>) -> impl Ord + use<'a> {
    let names = &entry.names;
    let (is_usable, height) = match &entry.content {
        Content::Unusable(_) => (false, usize::MAX),
        Content::Bundle(_) => (true, usize::MAX),
        Content::Record(kept) => (true, kept.remote.record.snapshot.layers.len()),
    };
    (is_usable, last_used(entry, used), Reverse(height), names)
}

/// Whether the record's file system is the lower part of one of the images.
fn is_below(kept: &Kept, images: &[Vec<DiffId>]) -> bool {
    let own = kept.diff_ids();
    images.iter().any(|image| image.starts_with(&own))
}

/// What a document takes: its manifest, its content, and what these keep alive.
fn things(entry: &Entry) -> impl Iterator<Item = (Sha256Digest, u64)> {
    let blobs = entry.blobs.iter().map(|(digest, size)| (*digest, *size));
    blobs.chain([(entry.digest, entry.size)])
}

/// What is taken by all that has not gone yet.
struct Room {
    users: BTreeMap<Sha256Digest, usize>,
    bytes: u64,
}

impl Room {
    fn of(entries: &[Entry]) -> Self {
        let mut users = BTreeMap::new();
        for (digest, _) in entries.iter().flat_map(things) {
            *users.entry(digest).or_insert(0) += 1;
        }
        Self { users, bytes: distinct(entries) }
    }

    fn give_up(&mut self, entry: &Entry) {
        for (digest, size) in things(entry) {
            let users = self.users.get_mut(&digest).expect("every document is counted");
            *users -= 1;
            if *users == 0 {
                self.bytes -= size;
            }
        }
    }
}

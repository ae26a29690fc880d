//! Removes things until enough is gone: what is useless first, then what was used longest ago.
//!
//! A thing is eligible once nothing stands on it any more, so what is left after any number of removals is whole. Pins are
//! read anew for every batch, while nobody can set one; what was pinned since the survey stays, and so does all that
//! it stands on, since it stays eligible for nobody.
//!
//! A build may have ended between the survey and a batch, and left a record of things that the survey saw without it. So
//! what was pinned or has come since the survey began ([`Before`]) stays this time, too.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use oci::{
    Snapshot,
    store::{Pinned, Removal, Store, Taken},
};

use super::{
    Collected, GcError, Keep, Kind, Mode, Relations, Thing, counts, name_of, stands_on::is_recent, total,
};
use crate::{cache_mounts, snapshot::Stamp};

/// For this long at most nobody can pin anything.
const BATCH: Duration = Duration::from_millis(5);

/// For this many milliseconds at most the clock of files is waited for: ten of its ticks where they are the longest.
const TICKS: usize = 100;

/// In which order things go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Nobody can need it: it goes whatever the limit.
    Useless,
    /// By its last use.
    Cached,
    /// The same, but it is dear to make again: when nothing else is left.
    Dear,
    /// Goes only when everything does.
    Kept,
}

/// The moment before a survey.
#[derive(Debug)]
pub(super) struct Before {
    at: SystemTime,
    pinned: Pinned,
}

impl Before {
    /// To be called before anything is listed.
    pub(super) fn now(store: &Store) -> Result<Self, GcError> {
        Ok(Self { at: next_tick(), pinned: store.pinned()? })
    }

    /// Whether somebody may have done something with a thing that the survey has not seen.
    fn may_have_changed(&self, thing: &Thing) -> bool {
        // What has a time in the future has it from a clock that went wrong.
        let is_new = (self.at..=SystemTime::now()).contains(&thing.used);
        // Nothing stands on a cache mount, and one that is used is locked.
        thing.kind != Kind::CacheMounts && (is_new || self.pinned.holds(&thing.path))
    }
}

/// The next time of the clock that dates files, which comes at once: what is there is older, what comes from then on is
/// not. If somebody has set the clock back meanwhile, it is not waited for.
fn next_tick() -> SystemTime {
    let begun = SystemTime::now();
    let mut time = begun;
    for _ in 0..TICKS {
        time = Stamp::of_files_now().into();
        if time > begun {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    time
}

pub(super) struct Eviction<'a> {
    store: &'a Store,
    before: Before,
    things: Vec<Thing>,
    relations: Relations,
    /// How many things that are left stand on each.
    users: Vec<usize>,
    is_gone: Vec<bool>,
    /// Things that may go, the next one on top.
    eligible: BinaryHeap<Reverse<(Class, SystemTime, Kind, usize)>>,
    keep: Keep,
    /// How much of all that counts may stay.
    limit: Option<u64>,
    /// What is left of all that counts.
    left: u64,
}

impl<'a> Eviction<'a> {
    pub(super) fn new(
        store: &'a Store,
        before: Before,
        things: Vec<Thing>,
        relations: Relations,
        keep: Keep,
    ) -> Result<Self, GcError> {
        let left = total(&things);
        let limit = match keep {
            Keep::Nothing => Some(0),
            Keep::Under { cap, .. } => cap.limit(store, left)?,
        };
        let users = relations.users();
        let is_gone = vec![false; things.len()];
        let mut eviction = Self {
            store,
            before,
            things,
            relations,
            users,
            is_gone,
            eligible: BinaryHeap::new(),
            keep,
            limit,
            left,
        };
        (0..eviction.things.len()).for_each(|at| eviction.consider(at));
        Ok(eviction)
    }

    pub(super) fn run(mut self, mode: Mode) -> Result<Collected, GcError> {
        let mut gone = Vec::new();
        match mode {
            Mode::Pretend => self.pretend(&mut gone)?,
            Mode::Remove => {
                while self.batch(&mut gone)? {}
                self.remove_empty_mounts()?;
            }
        }
        let mut things: Vec<Option<Thing>> = self.things.into_iter().map(Some).collect();
        let removed = gone.into_iter().filter_map(|at: usize| things[at].take()).collect();
        Ok(Collected { removed, left: self.left, limit: self.limit })
    }

    /// Removes what fits into one batch; says whether there may be more.
    fn batch(&mut self, gone: &mut Vec<usize>) -> Result<bool, GcError> {
        if self.eligible.peek().is_none_or(|Reverse((class, ..))| self.is_enough(*class)) {
            return Ok(false);
        }
        let mut removal = self.store.removal()?;
        let began = Instant::now();
        let mut taken = Ok(());
        while began.elapsed() < BATCH && taken.is_ok() {
            let Some(at) = self.next() else { break };
            taken = take(&mut removal, self.store.root(), &self.things[at]).map(|taken| match taken {
                Taken::InUse => {}
                Taken::Gone => self.settle(at),
                Taken::Yes => {
                    self.settle(at);
                    gone.push(at);
                }
            });
        }
        // Also after a failure: what was taken is gone.
        removal.finish()?;
        taken.map(|()| true)
    }

    fn pretend(&mut self, gone: &mut Vec<usize>) -> Result<(), GcError> {
        let pinned = self.store.pinned()?;
        while let Some(at) = self.next() {
            let thing = &self.things[at];
            let is_free = || match thing.kind {
                Kind::CacheMounts => is_free(&self.store.root().join(&thing.path)),
                _ => Ok(true),
            };
            if !pinned.holds(&thing.path) && is_free()? {
                self.settle(at);
                gone.push(at);
            }
        }
        Ok(())
    }

    /// The next thing to go; `None` when enough is gone.
    fn next(&mut self) -> Option<usize> {
        let Reverse((class, .., at)) = *self.eligible.peek()?;
        if self.is_enough(class) {
            return None;
        }
        self.eligible.pop();
        Some(at)
    }

    fn is_enough(&self, class: Class) -> bool {
        match (class, self.keep) {
            (Class::Useless, _) | (_, Keep::Nothing) => false,
            (Class::Kept, _) => true,
            _ => self.limit.is_none_or(|limit| self.left <= limit),
        }
    }

    /// A thing is gone: what it stood on may follow.
    fn settle(&mut self, at: usize) {
        self.is_gone[at] = true;
        if counts(&self.things[at]) {
            self.left = self.left.saturating_sub(self.things[at].bytes);
        }
        for need in std::mem::take(&mut self.relations.needs[at]) {
            self.users[need] -= 1;
            self.consider(need);
        }
    }

    /// Makes a thing eligible, if it may go at all.
    fn consider(&mut self, at: usize) {
        let thing = &self.things[at];
        // What is damaged goes also from under those that would stand on it: it is made again when they are wanted.
        let is_damaged = self.relations.useless[at];
        if self.is_gone[at] || (self.users[at] > 0 && !is_damaged) {
            return;
        }
        let is_useless = is_damaged || self.relations.wants_users[at];
        let class = match (thing.kind, self.keep) {
            _ if !can_go(thing) || self.before.may_have_changed(thing) => return,
            _ if is_useless => Class::Useless,
            (_, Keep::Under { unused_for, .. }) if is_recent(thing.used, unused_for) => return,
            (Kind::CacheMounts, _) => Class::Dear,
            (Kind::History, _) => Class::Kept,
            _ if is_scratch(thing) => Class::Kept,
            _ => Class::Cached,
        };
        self.eligible.push(Reverse((class, thing.used, thing.kind, at)));
    }

    /// What is left of ids all of whose directories are gone: a lock and a name.
    fn remove_empty_mounts(&self) -> Result<(), GcError> {
        let empty = empty_mounts(&self.store.area("mounts"));
        if empty.is_empty() {
            return Ok(());
        }
        let mut removal = self.store.removal()?;
        let mut taken = Ok(Taken::Gone);
        for id in empty {
            // Somebody may have made one since we looked; who does so now has pinned the id.
            if is_empty_mount(&id) && taken.is_ok() {
                taken = removal.take(&id);
            }
        }
        removal.finish()?;
        taken?;
        Ok(())
    }
}

/// Tells which things could go now: nobody has pinned them, nor anything that stands on them.
pub(super) fn mark_reclaimable(
    store: &Store,
    things: &mut [Thing],
    relations: &Relations,
) -> Result<(), GcError> {
    let pinned = store.pinned()?;
    let mut held: Vec<usize> = Vec::new();
    for (at, thing) in things.iter_mut().enumerate() {
        let is_free = thing.kind != Kind::CacheMounts || is_free(&store.root().join(&thing.path))?;
        thing.is_reclaimable = can_go(thing) && is_free;
        if pinned.holds(&thing.path) {
            held.push(at);
        }
    }
    while let Some(at) = held.pop() {
        // What is pinned by itself has not been looked through yet, though it may be marked.
        things[at].is_reclaimable = false;
        held.extend(relations.needs[at].iter().filter(|need| things[**need].is_reclaimable));
    }
    Ok(())
}

fn take(removal: &mut Removal<'_>, root: &Path, thing: &Thing) -> Result<Taken, GcError> {
    if thing.path.starts_with("locks") {
        return Ok(removal.take_lock(&thing.path)?);
    }
    if thing.kind != Kind::CacheMounts {
        return Ok(removal.take(&thing.path)?);
    }
    let directory = root.join(&thing.path);
    let lock = cache_mounts::take_if_free(&directory).map_err(GcError::io("lock", &directory))?;
    match lock {
        // Held until the directory is out of reach.
        Some(_lock) => Ok(removal.take(&thing.path)?),
        None => Ok(Taken::InUse),
    }
}

fn is_free(directory: &Path) -> Result<bool, GcError> {
    let lock = cache_mounts::take_if_free(directory).map_err(GcError::io("lock", directory))?;
    Ok(lock.is_some())
}

/// Whether a thing is any of those that come and go.
fn can_go(thing: &Thing) -> bool {
    match thing.kind {
        Kind::Temporary => false,
        Kind::Store => thing.path.starts_with("locks") && thing.path.components().count() == 2,
        _ => true,
    }
}

/// The empty directory that is the file system `scratch`.
fn is_scratch(thing: &Thing) -> bool {
    thing.path.starts_with("snapshots") && name_of(&thing.path) == Snapshot::default().digest().hex()
}

fn empty_mounts(mounts: &Path) -> Vec<PathBuf> {
    let ids = fs::read_dir(mounts).into_iter().flatten().flatten().map(|entry| entry.path());
    ids.filter(|id| is_empty_mount(id)).collect()
}

/// Whether nothing but a lock, a name and empty directories is left of an id.
fn is_empty_mount(id: &Path) -> bool {
    let holds_nothing = |path: &Path| -> io::Result<bool> { Ok(fs::read_dir(path)?.next().is_none()) };
    let is_empty = || -> io::Result<bool> {
        for entry in fs::read_dir(id)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && !holds_nothing(&entry.path())? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    is_empty().unwrap_or(false)
}

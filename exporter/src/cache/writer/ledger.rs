//! Which records are to be written, what has to be at the cache's place before, and how far that is. Pure bookkeeping:
//! nothing is sent here.
//!
//! A need is met once, however many records have it. As soon as all needs of a record are *described*, that is known by
//! digest and size, its document can be written, and goes beside what it names. A record is ready as soon as all of it is
//! there, and goes before needs of others: what is published is not lost when the build is killed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use oci::{Sha256Digest, TreeDigest};

use super::Fate;

/// Needs that are met at the same time; those who meet them wait most of the time, and records must get through.
const BRINGING: usize = 6;

/// What must be at the place before a record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Blob and tree of a built layer.
    Layer(TreeDigest),
    /// The blob that the image has of a built layer, beside those that the place has.
    Packing(TreeDigest),
    /// The list of the files that this digest stands for in a pre-image.
    Inventory(TreeDigest),
    /// A blob that another cache has.
    Blob(Sha256Digest),
    /// What the record with this number says.
    Document(usize),
}

/// What a worker is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task<R> {
    /// Bring something to the place.
    Bring(Need),
    /// Bring the document of a record.
    Write(usize, Arc<R>),
    /// Put a record there: all that it names is there.
    Publish(usize, Arc<R>),
}

/// The records of a build on their way to a cache.
pub(super) struct Ledger<R> {
    entries: Vec<Entry<R>>,
    needs: BTreeMap<Need, State>,
    /// Needs that nobody is at.
    open: VecDeque<Need>,
    /// Records that nobody is at and that need nothing more.
    ready: VecDeque<usize>,
    bringing: usize,
    publishing: usize,
}

struct Entry<R> {
    record: Arc<R>,
    /// What is not known yet.
    unknown: BTreeSet<Need>,
    /// What is not there yet.
    missing: BTreeSet<Need>,
    state: Progress,
    /// What the place has of it already, and keeps if this does not get there.
    before: Option<Arc<R>>,
}

impl<R> Entry<R> {
    /// It does not get there.
    fn lose(&mut self) {
        self.state = Progress::Lost;
        if let Some(before) = self.before.take() {
            (self.record, self.state) = (before, Progress::There);
        }
    }
}

/// How far a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    There,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Described,
    There,
    Failed,
}

impl<R> Default for Ledger<R> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            needs: BTreeMap::new(),
            open: VecDeque::new(),
            ready: VecDeque::new(),
            bringing: 0,
            publishing: 0,
        }
    }
}

impl<R> Ledger<R> {
    /// Wants a record at the place; says how much more there is to do.
    pub(super) fn want(&mut self, record: R, needs: impl IntoIterator<Item = Need>) -> usize {
        let (entry, work) = self.entry(self.entries.len(), record, needs);
        self.entries.push(entry);
        work
    }

    /// Wants another record in the place of one that is there, which stays if that does not get there; says how much more
    /// there is to do.
    pub(super) fn replace(
        &mut self,
        index: usize,
        record: R,
        needs: impl IntoIterator<Item = Need>,
    ) -> usize {
        let (mut entry, work) = self.entry(index, record, needs);
        entry.before = Some(Arc::clone(&self.entries[index].record));
        if entry.state == Progress::Lost {
            entry.lose();
        }
        self.entries[index] = entry;
        work
    }

    fn entry(&mut self, index: usize, record: R, needs: impl IntoIterator<Item = Need>) -> (Entry<R>, usize) {
        let (mut unknown, mut missing) = (BTreeSet::new(), BTreeSet::new());
        let (mut work, mut state) = (1, Progress::Waiting);
        for need in needs {
            let open = &mut self.open;
            let known = self.needs.entry(need).or_insert_with(|| {
                open.push_back(need);
                work += 1;
                match need {
                    Need::Blob(_) => State::Described,
                    _ => State::Open,
                }
            });
            match known {
                State::Open => _ = (unknown.insert(need), missing.insert(need)),
                State::Described => _ = missing.insert(need),
                State::There => {}
                State::Failed => state = Progress::Lost,
            }
        }
        let document = Need::Document(index);
        missing.insert(document);
        if unknown.is_empty() && state == Progress::Waiting {
            self.open.push_front(document);
        }
        (Entry { record: Arc::new(record), unknown, missing, state, before: None }, work)
    }

    /// A record that is at the place already.
    pub(super) fn know(&mut self, record: R) {
        self.entries.push(Entry {
            record: Arc::new(record),
            unknown: BTreeSet::new(),
            missing: BTreeSet::new(),
            state: Progress::There,
            before: None,
        });
    }

    /// The next thing to do, if anything can be done now.
    pub(super) fn take(&mut self) -> Option<Task<R>> {
        if let Some(index) = self.ready.pop_front() {
            self.publishing += 1;
            return Some(Task::Publish(index, Arc::clone(&self.entries[index].record)));
        }
        if self.bringing == BRINGING {
            return None;
        }
        let need = self.open.pop_front()?;
        self.bringing += 1;
        Some(match need {
            Need::Document(index) => Task::Write(index, Arc::clone(&self.entries[index].record)),
            need => Task::Bring(need),
        })
    }

    /// It is known what a need will be at the place, or that it will be nothing.
    pub(super) fn described(&mut self, need: Need) {
        self.needs.insert(need, State::Described);
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.unknown.remove(&need) && entry.unknown.is_empty() && entry.state == Progress::Waiting {
                self.open.push_front(Need::Document(index));
            }
        }
    }

    /// What came of a need.
    pub(super) fn brought(&mut self, need: Need, is_there: bool) {
        self.bringing -= 1;
        if is_there && self.needs.get(&need) == Some(&State::Open) {
            self.described(need);
        }
        self.needs.insert(need, if is_there { State::There } else { State::Failed });
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if !entry.missing.remove(&need) {
                continue;
            }
            match entry.state {
                Progress::Waiting if !is_there => entry.lose(),
                Progress::Waiting if entry.missing.is_empty() => self.ready.push_back(index),
                _ => {}
            }
        }
    }

    /// What came of a record.
    pub(super) fn published(&mut self, index: usize, is_there: bool) {
        self.publishing -= 1;
        match is_there {
            true => self.entries[index].state = Progress::There,
            false => self.entries[index].lose(),
        }
    }

    /// Begins nothing more.
    pub(super) fn give_up(&mut self) {
        self.open.clear();
        self.ready.clear();
        let waiting = self.entries.iter_mut().filter(|entry| entry.state == Progress::Waiting);
        waiting.for_each(Entry::lose);
    }

    /// Whether everything is there but names of records.
    pub(super) fn is_brought(&self) -> bool {
        self.bringing == 0 && self.open.is_empty()
    }

    /// Whether there is nothing under way and nothing to begin.
    pub(super) fn is_idle(&self) -> bool {
        self.is_brought() && self.publishing == 0 && self.ready.is_empty()
    }

    /// All records so far, in the order in which they came.
    pub(super) fn records(&self) -> impl Iterator<Item = &Arc<R>> {
        self.entries.iter().map(|entry| &entry.record)
    }

    /// Those that are at the place by now, with their numbers.
    pub(super) fn there(&self) -> impl Iterator<Item = (usize, &Arc<R>)> {
        let there = self.entries.iter().enumerate().filter(|(_, entry)| entry.state == Progress::There);
        there.map(|(index, entry)| (index, &entry.record))
    }

    /// Those that are at the place, or will be if all goes well.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Arc<R>> {
        self.entries.iter().filter(|entry| entry.state != Progress::Lost).map(|entry| &entry.record)
    }

    /// How far the last of some records is.
    pub(super) fn progress(&self, is_one: impl Fn(&R) -> bool) -> Fate {
        let state = self.entries.iter().rev().find(|entry| is_one(&entry.record)).map(|entry| entry.state);
        match state {
            Some(Progress::Waiting) => Fate::Coming,
            Some(Progress::There) => Fate::There,
            Some(Progress::Lost) => Fate::Lost,
            None => Fate::Unknown,
        }
    }

    /// How many will not get there.
    pub(super) fn lost(&self) -> usize {
        self.entries.iter().filter(|entry| entry.state == Progress::Lost).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(name: &str) -> Need {
        Need::Layer(TreeDigest::from(blake3::hash(name.as_bytes())))
    }

    fn kept(ledger: &Ledger<&'static str>) -> Vec<&'static str> {
        ledger.kept().map(|record| **record).collect()
    }

    /// The document of a record is brought.
    fn write(ledger: &mut Ledger<&'static str>, index: usize) {
        assert!(matches!(ledger.take(), Some(Task::Write(found, _)) if found == index));
        ledger.brought(Need::Document(index), true);
    }

    #[test]
    fn a_need_is_met_once_and_a_record_goes_when_all_of_its_are() {
        let mut ledger = Ledger::default();
        let [a, b] = ["a", "b"].map(need);
        assert_eq!(ledger.want("first", [a]), 2);
        assert_eq!(ledger.want("second", [a, b]), 2, "the record, and what is new");
        assert_eq!(
            (ledger.take(), ledger.take(), ledger.take()),
            (Some(Task::Bring(a)), Some(Task::Bring(b)), None)
        );
        ledger.brought(b, true);
        assert_eq!(ledger.take(), None, "the first one is needed by both");
        ledger.brought(a, true);
        write(&mut ledger, 1);
        assert_eq!(ledger.take(), Some(Task::Publish(1, Arc::new("second"))));
        write(&mut ledger, 0);
        assert_eq!(ledger.take(), Some(Task::Publish(0, Arc::new("first"))));
        assert_eq!(ledger.want("third", [b]), 1, "it is there");
        write(&mut ledger, 2);
        assert!(matches!(ledger.take(), Some(Task::Publish(2, _))));
        assert!(ledger.is_brought() && !ledger.is_idle());
        (0..3).for_each(|index| ledger.published(index, true));
        assert!(ledger.is_idle() && ledger.take().is_none() && ledger.lost() == 0);
        assert_eq!(kept(&ledger), ["first", "second", "third"]);
    }

    #[test]
    fn a_document_goes_beside_what_it_names_as_soon_as_that_is_described() {
        let mut ledger = Ledger::default();
        let [a, b] = ["a", "b"].map(need);
        ledger.want("one", [a, b]);
        assert_eq!((ledger.take(), ledger.take()), (Some(Task::Bring(a)), Some(Task::Bring(b))));
        ledger.described(a);
        assert_eq!(ledger.take(), None);
        ledger.described(b);
        write(&mut ledger, 0);
        assert_eq!(ledger.take(), None, "what it names is still under way");
        ledger.brought(b, true);
        ledger.brought(a, true);
        assert!(matches!(ledger.take(), Some(Task::Publish(0, _))));
        assert_eq!(ledger.want("of another cache", [Need::Blob(Sha256Digest::of(b""))]), 2);
        assert!(matches!(ledger.take(), Some(Task::Write(1, _))), "that says what its blobs are");
    }

    #[test]
    fn what_cannot_be_brought_loses_the_records_that_stand_on_it_and_no_other() {
        let mut ledger = Ledger::default();
        let [a, b] = ["a", "b"].map(need);
        ledger.want("lost", [a, b]);
        ledger.want("good", [b]);
        ledger.know("known");
        assert_eq!((ledger.take(), ledger.take()), (Some(Task::Bring(a)), Some(Task::Bring(b))));
        ledger.brought(a, false);
        ledger.want("late", [a]);
        ledger.brought(b, true);
        write(&mut ledger, 1);
        assert!(matches!(ledger.take(), Some(Task::Publish(1, _))));
        ledger.published(1, true);
        assert!(ledger.is_idle());
        assert_eq!((kept(&ledger), ledger.lost()), (vec!["good", "known"], 2));
    }

    #[test]
    fn a_record_that_is_there_can_be_told_anew() {
        let mut ledger = Ledger::default();
        ledger.know("known");
        let packing = Need::Packing(TreeDigest::from(blake3::hash(b"a")));
        assert_eq!(
            ledger.there().map(|(index, record)| (index, **record)).collect::<Vec<_>>(),
            [(0, "known")]
        );
        assert_eq!(ledger.replace(0, "more", [packing]), 2);
        assert_eq!((ledger.take(), ledger.there().count()), (Some(Task::Bring(packing)), 0));
        ledger.brought(packing, true);
        write(&mut ledger, 0);
        assert_eq!(ledger.take(), Some(Task::Publish(0, Arc::new("more"))));
        ledger.published(0, true);
        assert_eq!((kept(&ledger), ledger.is_idle()), (vec!["more"], true));
    }

    #[test]
    fn what_is_there_stays_if_it_cannot_be_told_anew() {
        let [packing, other] = [b"a", b"b"].map(|name| Need::Packing(TreeDigest::from(blake3::hash(name))));
        let mut ledger = Ledger::default();
        ledger.know("known");
        ledger.replace(0, "more", [packing, other]);
        assert_eq!((ledger.take(), ledger.take()), (Some(Task::Bring(packing)), Some(Task::Bring(other))));
        ledger.described(packing);
        ledger.brought(packing, false);
        ledger.brought(other, true);
        assert_eq!((kept(&ledger), ledger.lost(), ledger.is_idle()), (vec!["known"], 0, true));
        ledger.replace(0, "again", [packing]);
        assert_eq!((kept(&ledger), ledger.lost(), ledger.is_idle()), (vec!["known"], 0, true));
        ledger.replace(0, "not named", []);
        write(&mut ledger, 0);
        assert!(matches!(ledger.take(), Some(Task::Publish(0, _))));
        ledger.published(0, false);
        assert_eq!((kept(&ledger), ledger.lost(), ledger.is_idle()), (vec!["known"], 0, true));
        ledger.replace(0, "given up", []);
        ledger.give_up();
        assert_eq!((kept(&ledger), ledger.lost(), ledger.is_idle()), (vec!["known"], 0, true));
    }

    #[test]
    fn records_go_before_needs_and_some_workers_are_left_for_them() {
        let mut ledger = Ledger::default();
        let needs: Vec<_> = (0..BRINGING + 2).map(|number| need(&number.to_string())).collect();
        needs.iter().for_each(|need| _ = ledger.want("one", [*need]));
        let begun: Vec<_> = std::iter::from_fn(|| ledger.take()).collect();
        assert_eq!(begun.len(), BRINGING);
        ledger.brought(needs[0], true);
        write(&mut ledger, 0);
        assert!(matches!(ledger.take(), Some(Task::Publish(0, _))));
        assert!(matches!(ledger.take(), Some(Task::Bring(_))));
        ledger.give_up();
        needs[1..=BRINGING].iter().for_each(|need| ledger.brought(*need, true));
        assert!(!ledger.is_idle(), "one is being published");
        ledger.published(0, true);
        assert_eq!((kept(&ledger).len(), ledger.lost()), (1, BRINGING + 1));
    }
}

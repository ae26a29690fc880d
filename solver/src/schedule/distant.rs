//! What distant caches have been asked, and how long anything waits for their answers.
//!
//! They are asked by threads that nobody waits for, and that share nothing with a build but where they say what they have
//! found: a cache that never comes back cannot hold a build up. Two budgets of [`PATIENCE`] each limit what steps wait: one
//! for definition keys, before any step is begun, and one for content keys, the whole build's. A cache that has shown to be
//! slower than what is left of the second is not waited for at all. An answer that comes later is as good as any.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{Caches, pool::Outside, task::Message};
use crate::{
    cache::Key,
    traits::{Answer, Cancel, DistantCache},
};

/// How long steps wait for definition keys, and again for content keys, in all.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// How long a cache may take to show that it is there, where what came before the schedule has used up all patience.
const NOD: Duration = Duration::from_millis(50);

/// How long whoever waits for a cache does nothing else meanwhile: one that is near has answered by then.
const GRACE: Duration = Duration::from_millis(30);

/// How long somebody waits who has nothing to lose: longer than a cache takes that gives up by itself, and not for ever.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// How many look-ups of one cache are under way at the same time. What comes meanwhile goes into the next.
const AT_ONCE: usize = 4;

/// The distant caches of one build. When this is dropped they are asked to end what they do.
pub(super) struct Distant<'a> {
    clock: &'a (dyn Fn() -> Duration + Sync),
    askers: Vec<Asker>,
    outside: Outside,
    cancel: Cancel,
    /// Keys that no cache has answered with a hit, nor all with a miss.
    open: HashMap<Key, Open>,
    /// Whether any has been answered.
    is_heard: bool,
    /// How long the last answer took.
    pace: Duration,
    /// What is left for content keys, but for the time since steps have begun to wait.
    left: Duration,
    waiting_since: Option<Duration>,
}

/// A key that may be answered yet.
struct Open {
    asked: Duration,
    /// The caches that have said nothing.
    silent: BTreeSet<usize>,
}

/// One cache.
struct Asker {
    cache: Arc<dyn DistantCache>,
    under_way: usize,
    next: Vec<Key>,
}

impl<'a> Distant<'a> {
    pub(super) fn new(caches: &Caches<'a>, outside: Outside) -> Self {
        let asker = |cache: &Arc<_>| Asker { cache: Arc::clone(cache), under_way: 0, next: Vec::new() };
        Self {
            clock: caches.clock,
            askers: caches.distant.iter().map(asker).collect(),
            outside,
            cancel: Cancel::default(),
            open: HashMap::new(),
            is_heard: false,
            pace: Duration::ZERO,
            left: PATIENCE,
            waiting_since: None,
        }
    }

    /// Whether there is any.
    pub(super) fn is_there(&self) -> bool {
        !self.askers.is_empty()
    }

    /// Time since the caches were first asked for anything.
    pub(super) fn now(&self) -> Duration {
        (self.clock)()
    }

    /// What is left, for who has waited since then, of the time in which nothing else is done.
    pub(super) fn grace(&self, since: Duration) -> Option<Duration> {
        let left = GRACE.saturating_sub(self.now().saturating_sub(since));
        Some(left).filter(|left| !left.is_zero())
    }

    /// Asks all caches for keys, the most important first. Each key is asked for once.
    pub(super) fn ask(&mut self, keys: Vec<Key>) {
        if keys.is_empty() || self.askers.is_empty() || self.cancel.is_requested() {
            return;
        }
        let asked = (self.clock)();
        let silent: BTreeSet<usize> = (0..self.askers.len()).collect();
        self.open.extend(keys.iter().map(|key| (*key, Open { asked, silent: silent.clone() })));
        for number in 0..self.askers.len() {
            self.askers[number].next.extend(&keys);
            self.send(number);
        }
    }

    /// Asks for what has come together, unless there is enough under way.
    fn send(&mut self, number: usize) {
        let asker = &mut self.askers[number];
        if asker.next.is_empty() || asker.under_way == AT_ONCE || self.cancel.is_requested() {
            return;
        }
        asker.under_way += 1;
        let (keys, cache) = (mem::take(&mut asker.next), Arc::clone(&asker.cache));
        let untold = Mutex::new(keys.iter().copied().collect());
        let (cancel, untold) =
            (self.cancel.clone(), Untold { number, keys: untold, outside: self.outside.clone() });
        // Where there are no threads, nothing is told, and what asked goes with the closure.
        let thread = thread::Builder::new().name("distant cache".to_owned());
        let _ = thread.spawn(move || look_up(&*cache, &keys, &cancel, &untold));
    }

    /// Takes note of an answer. Whether it is believed is for others to say.
    pub(super) fn answered(&mut self, number: usize, key: &Key, is_hit: bool) {
        let Some(open) = self.open.get_mut(key) else { return };
        self.is_heard = true;
        self.pace = (self.clock)().saturating_sub(open.asked);
        open.silent.remove(&number);
        if is_hit || open.silent.is_empty() {
            self.open.remove(key);
        }
    }

    /// Takes note of the end of a look-up, which has told nothing of some keys.
    pub(super) fn returned(&mut self, number: usize, untold: &[Key]) {
        untold.iter().for_each(|key| self.answered(number, key, false));
        self.askers[number].under_way -= 1;
        self.send(number);
    }

    /// Whether a key may be answered yet.
    pub(super) fn is_open(&self, key: &Key) -> bool {
        self.open.contains_key(key)
    }

    /// Whether anything may be that is not overdue.
    pub(super) fn may_answer(&self) -> bool {
        let asked = self.open.values().map(|open| open.asked).max();
        asked.is_some_and(|asked| (self.clock)().saturating_sub(asked) < LONGEST)
    }

    /// How much longer definition keys are worth waiting for.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        let asked = self.open.values().map(|open| open.asked).min()?;
        let own = if self.is_heard { PATIENCE } else { NOD };
        let until = asked.saturating_add(own).max(PATIENCE);
        let left = until.saturating_sub((self.clock)());
        if left.is_zero() {
            // What it takes is not known yet; it is too long.
            self.pace = PATIENCE;
        }
        Some(left).filter(|left| !left.is_zero())
    }

    /// Whether a step may wait for its content key.
    pub(super) fn is_worth_waiting_for(&self, key: &Key) -> bool {
        self.is_open(key) && self.pace < self.left()
    }

    /// How much longer steps may wait for content keys.
    pub(super) fn left(&self) -> Duration {
        let waited = self.waiting_since.map_or(Duration::ZERO, |since| (self.clock)().saturating_sub(since));
        self.left.saturating_sub(waited)
    }

    /// Steps wait for content keys, or none does any more: time is counted once, however many wait.
    pub(super) fn count(&mut self, somebody_waits: bool) {
        self.left = self.left();
        self.waiting_since = somebody_waits.then(self.clock);
    }

    /// No answer is of any use any more.
    pub(super) fn give_up(&mut self) {
        self.cancel.request();
        self.open.clear();
    }
}

impl Drop for Distant<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Says so when a look-up has ended, also when it has panicked.
struct Untold {
    number: usize,
    keys: Mutex<BTreeSet<Key>>,
    outside: Outside,
}

impl Drop for Untold {
    fn drop(&mut self) {
        let keys = mem::take(self.keys.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.outside.say(Message::Returned(self.number, keys.into_iter().collect()));
    }
}

fn look_up(cache: &dyn DistantCache, keys: &[Key], cancel: &Cancel, untold: &Untold) {
    let tell = |mut answers: Vec<Answer>| {
        let mut keys = untold.keys.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|(key, _)| keys.remove(key));
        drop(keys);
        if answers.is_empty() {
            return;
        }
        untold.outside.say(Message::Answered(untold.number, answers));
    };
    cache.lookup(keys, cancel, &tell);
}

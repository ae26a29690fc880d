//! Keeps builders that share a cache, and no store, from running the same step: each says in the cache which steps it runs, and
//! follows who runs one already.
//!
//! Who does what is [`attendant`]'s to say; here is where it is done: one thread for each step that runs or is followed, which
//! nobody waits for. A place that is slow, fails or may not be written ends the announcing of this build, in silence: it is
//! for those who come at the same moment, and each of them can do without.

mod attendant;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use oci::TreeDigest;
use ring::rand::{SecureRandom, SystemRandom};
use solver::{Bulletin, Cancel, Notice};

use self::attendant::{Act, Attendant};
use super::{
    announcement::{Announcement, Builder, Said, State},
    artifact, names,
    reader::RemoteCache,
    sign::{SignKey, TrustKeys},
    storage::{Named, Storage, StorageError, StorageErrorKind},
    writer::Fate,
};

/// Steps that end sooner are announced nowhere.
const BRIEF: Duration = Duration::from_millis(200);
/// A place that takes longer to say who runs a step is not asked again.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether the record of a step that is over has got where it belongs, and whether one has begun again.
const GLANCE: Duration = Duration::from_millis(50);
/// Who has been seen to live within this time lives.
const LIVELY: Duration = Duration::from_secs(10);
/// How long a build that ends waits until others know that it runs nothing any more.
const FAREWELL: Duration = Duration::from_millis(500);
/// Steps that are announced or followed at the same time.
const AT_ONCE: usize = 32;

/// What announcing needs.
pub struct Joining {
    /// Where announcements are written.
    pub storage: Arc<dyn Storage>,
    /// Reads the same place.
    pub reader: Arc<RemoteCache>,
    /// What becomes of the records that are written there, by content key.
    pub fates: Box<dyn Fn(&TreeDigest) -> Fate + Send + Sync>,
    /// Whom to believe.
    pub trust: TrustKeys,
    /// Signs what we say.
    pub sign: Option<Arc<SignKey>>,
    /// Stops everything.
    pub cancel: Cancel,
}

/// Announcements in one cache. When it is dropped, it is waited for a moment until those of steps that are over say so.
pub struct CacheBulletin {
    shared: Arc<Shared>,
}

struct Shared {
    joining: Joining,
    own: Builder,
    /// Nothing is announced any more.
    is_off: AtomicBool,
    /// Stops what is under way when nobody waits for it any more.
    stop: Cancel,
    /// Whether what every announcement names is there.
    has_empty: AtomicBool,
    /// When others were last seen to live.
    lively: Mutex<BTreeMap<Builder, Instant>>,
    attended: AtomicUsize,
    /// Steps that have begun again.
    begun: Mutex<BTreeSet<TreeDigest>>,
    /// Steps that have failed by themselves.
    failed: Mutex<BTreeSet<TreeDigest>>,
    /// How many steps stand there as ours.
    standing: Mutex<usize>,
    fell: Condvar,
}

impl CacheBulletin {
    /// Contacts nobody yet; `None` where this machine has no random numbers.
    pub fn new(joining: Joining) -> Option<Self> {
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random).ok()?;
        let shared = Shared {
            joining,
            own: Builder(u128::from_le_bytes(random)),
            is_off: AtomicBool::new(false),
            stop: Cancel::default(),
            has_empty: AtomicBool::new(false),
            lively: Mutex::default(),
            attended: AtomicUsize::new(0),
            begun: Mutex::default(),
            failed: Mutex::default(),
            standing: Mutex::new(0),
            fell: Condvar::new(),
        };
        Some(Self { shared: Arc::new(shared) })
    }
}

impl Bulletin for CacheBulletin {
    fn attend(&self, content: &TreeDigest, tell: Box<dyn Fn(Notice) + Send>) -> Box<dyn Send + Sync> {
        let (guard, over) = mpsc::channel::<()>();
        let (shared, content) = (Arc::clone(&self.shared), *content);
        let is_free = shared.attended.fetch_add(1, Ordering::SeqCst) < AT_ONCE;
        let attend = move || {
            let over = Over(over);
            if is_free && !shared.is_off.load(Ordering::SeqCst) && !over.within(BRIEF) {
                let name = names::running(&content);
                Attending { shared: &shared, content, name, over, tell, is_standing: false }.run();
            }
            shared.attended.fetch_sub(1, Ordering::SeqCst);
        };
        // Where there is no thread, nothing is announced.
        if thread::Builder::new().name("bulletin".to_owned()).spawn(attend).is_err() {
            self.shared.attended.fetch_sub(1, Ordering::SeqCst);
        }
        Box::new(guard)
    }

    fn begin(&self, content: &TreeDigest) {
        self.shared.begun().insert(*content);
    }

    fn fail(&self, content: &TreeDigest) {
        self.shared.failed().insert(*content);
    }
}

impl Drop for CacheBulletin {
    fn drop(&mut self) {
        let Shared { stop, standing, fell, .. } = &*self.shared;
        let standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
        drop(fell.wait_timeout_while(standing, FAREWELL, |standing| *standing > 0));
        stop.request();
    }
}

/// Disconnected when the step is over.
struct Over(Receiver<()>);

impl Over {
    /// Waits, unless it is over.
    fn within(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
    }
}

/// One step that is announced or followed.
struct Attending<'a> {
    shared: &'a Shared,
    content: TreeDigest,
    name: String,
    over: Over,
    tell: Box<dyn Fn(Notice) + Send>,
    /// Whether it stands there as ours.
    is_standing: bool,
}

impl Attending<'_> {
    fn run(mut self) {
        let begun = Instant::now();
        let mut attendant = Attendant::new(self.shared.own);
        let mut is_over = false;
        // Once the build is over, nobody would say any more that it is; and what goes on saying that it runs the step is
        // followed.
        while !self.shared.stop.is_requested() {
            if !is_over && let Some(state) = self.ending() {
                attendant.over(state);
                is_over = true;
            }
            if attendant.is_queued() && self.shared.begun().contains(&self.content) {
                attendant.begun();
            }
            let done = match attendant.next(begun.elapsed()) {
                Act::End => return,
                Act::Wait(until) => {
                    let time = until.saturating_sub(begun.elapsed());
                    self.wait(if attendant.is_queued() { GLANCE.min(time) } else { time });
                    Ok(())
                }
                Act::Look => self.look(&mut attendant, begun),
                Act::Say(said) => self.say(said).map(|took| attendant.said(begun.elapsed(), took)),
                Act::Search => self.search().map(|found| {
                    is_over = found;
                    match is_over {
                        true => attendant.over(State::Done),
                        false => attendant.missing(),
                    }
                }),
                Act::Stop => {
                    self.fall();
                    (self.tell)(Notice::Elsewhere);
                    Ok(())
                }
                Act::Resume => {
                    // What has begun before was stopped.
                    self.shared.begun().remove(&self.content);
                    (self.tell)(Notice::Free);
                    Ok(())
                }
            };
            let Err(error) = done else { continue };
            if !is_over && self.shared.joining.cancel.is_requested() {
                attendant.over(State::Left);
                is_over = true;
            } else if error.kind == StorageErrorKind::Denied {
                self.shared.is_off.store(true, Ordering::SeqCst);
                attendant.alone();
            } else if !attendant.failed(begun.elapsed()) {
                self.shared.is_off.store(true, Ordering::SeqCst);
            }
        }
    }

    /// How the step has ended here, if it has: as long as its record is on its way, it has not.
    fn ending(&self) -> Option<State> {
        if !self.over.within(Duration::ZERO) {
            return None;
        }
        let Joining { fates, cancel, .. } = &self.shared.joining;
        match fates(&self.content) {
            Fate::There => Some(State::Done),
            // What is on its way does not get there any more.
            _ if cancel.is_requested() => Some(State::Left),
            Fate::Coming => None,
            Fate::Lost => Some(State::Failed),
            Fate::Unknown if self.shared.failed().contains(&self.content) => Some(State::Failed),
            Fate::Unknown => Some(State::Left),
        }
    }

    fn wait(&self, time: Duration) {
        if self.over.within(Duration::ZERO) {
            thread::sleep(GLANCE.min(time));
        } else {
            self.over.within(time);
        }
    }

    /// Reads what is said of the step. What is no announcement is as good as nothing, and is written over.
    fn look(&self, attendant: &mut Attendant, begun: Instant) -> Result<(), StorageError> {
        let Joining { storage, trust, cancel, .. } = &self.shared.joining;
        let asked = Instant::now();
        let named = match storage.get(&self.name, cancel) {
            Err(error) if error.kind == StorageErrorKind::Damaged => None,
            named => named?,
        };
        let took = asked.elapsed();
        if !attendant.is_following() && took > PATIENCE {
            return Err(slow(storage.name()));
        }
        let said = match named {
            Some(Named::Announcement(announcement)) => announcement.open(&self.name, trust),
            _ => None,
        };
        let lives = said.is_some_and(|said| self.shared.lives(said.builder));
        if attendant.heard(begun.elapsed(), took, said, lives)
            && let Some(Said { builder, .. }) = said
        {
            self.shared.lively().insert(builder, Instant::now());
        }
        Ok(())
    }

    /// Says something of the step; how long that took.
    fn say(&mut self, said: Said) -> Result<Duration, StorageError> {
        let Shared { joining: Joining { storage, sign, cancel, .. }, stop, .. } = self.shared;
        // What is said in the end is for others, who have not been stopped.
        let cancel = if said.state == State::Running { cancel } else { stop };
        self.shared.bring_empty(cancel)?;
        self.stand();
        let begun = Instant::now();
        storage.announce(&self.name, &Announcement::new(said, &self.name, sign.as_deref()), cancel)?;
        Ok(begun.elapsed())
    }

    /// Whether the record is there by now; if so, that is told.
    fn search(&self) -> Result<bool, StorageError> {
        let Joining { reader, cancel, .. } = &self.shared.joining;
        let found = match reader.look_again(&self.content, cancel) {
            Err(error) if error.kind == StorageErrorKind::Damaged => None,
            found => found?,
        };
        let is_there = found.is_some();
        found.into_iter().for_each(|found| (self.tell)(Notice::Found(Box::new(found))));
        Ok(is_there)
    }

    fn stand(&mut self) {
        if !std::mem::replace(&mut self.is_standing, true) {
            *self.shared.standing() += 1;
        }
    }

    fn fall(&mut self) {
        if std::mem::take(&mut self.is_standing) {
            *self.shared.standing() -= 1;
            self.shared.fell.notify_all();
        }
    }
}

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        self.fall();
    }
}

impl Shared {
    fn standing(&self) -> MutexGuard<'_, usize> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lively(&self) -> MutexGuard<'_, BTreeMap<Builder, Instant>> {
        self.lively.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, BTreeSet<TreeDigest>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeSet<TreeDigest>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self, builder: Builder) -> bool {
        self.lively().get(&builder).is_some_and(|seen| seen.elapsed() < LIVELY)
    }

    /// Sees to it, mostly once, that what every announcement names is there.
    fn bring_empty(&self, cancel: &Cancel) -> Result<(), StorageError> {
        if !self.has_empty.load(Ordering::SeqCst) {
            let open = || Ok(Box::new(io::Cursor::new(artifact::EMPTY)) as Box<dyn Read + Send>);
            self.joining.storage.put_blob(&artifact::empty(), None, &open, cancel)?;
            self.has_empty.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn slow(place: &str) -> StorageError {
    let what = format!("{place} takes too long to say who runs a step");
    StorageError { kind: StorageErrorKind::Denied, what, source: None }
}

#[cfg(test)]
mod tests;

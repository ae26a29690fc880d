//! Who runs a step, agreed on by builders that can only read and overwrite one small text: what one of them does next.
//!
//! Each runs the step until it hears of another that lives, and then stops and follows that one. The last who wrote the text
//! is the owner; so whoever has written looks again, and gives way to whom he finds there. From this follows
//!
//! - *somebody runs it*: the last of all writes is not overwritten, so its writer never finds another, and never gives way.
//!   Who has given way writes no more until he runs the step again;
//! - *in the end only one does*: all others who run it look again and again, and find that write;
//! - *nobody waits for himself in the end*: an owner has begun to run the step, has its inputs and a worker, and needs no
//!   other step any more. So builders may follow each other in two steps: each has what the other waits for under way;
//! - *nobody waits for the dead*: what does not change for [`LAPSES`] renewals by the follower's own clock is nobody's any more.
//!   An owner that hangs in its step and goes on saying so is followed, as the step would hang here, too; it is said that it is
//!   waited for, and whoever is stopped stops;
//! - *nobody begins for ever*: who has stopped [`STOPS`] times runs the step to its end, whoever says what.
//!
//! Clocks of different machines are never compared. That is why a text that is there when somebody comes proves nothing: it may
//! have been left behind a year ago. It does when it changes under his eyes, or when its builder has been seen to live a moment
//! ago; until then he goes on with his own run, and has lost nothing if nobody is there.
//!
//! This is pure: what is to be done is [`Attendant::next`], what came of it is told, and time is told with it, from any
//! beginning.

use std::{collections::BTreeMap, time::Duration};

use crate::cache::announcement::{Builder, Said, State};

/// What has not changed for so many times the time until it is to be said again is nobody's any more.
const LAPSES: u32 = 3;
/// At a slow place, this times the longest that an answer took, and never more than this: a request that hangs must not
/// make one that follows wait the longer.
const SLOW: u32 = 6;
const LAPSE_MAX: Duration = Duration::from_secs(90);
/// How often a run is stopped. Who dies in the step is taken over from by one of those who follow, and that is seldom so often; a
/// place whose word comes and goes would have us begin again and again.
const STOPS: u32 = 8;
/// Failures in a row after which the place is left alone, and the time between.
const ENOUGH: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// How long after he has said so an owner says that he lives, but for the first time: others wait for that to stop their own
/// runs. After a minute, each time by a tenth longer: an hour is then worth a hundred times, and who dies late is missed late.
const RENEWAL: Duration = Duration::from_secs(5);
const FIRST_RENEWAL: Duration = Duration::from_secs(2);
const RENEWAL_MAX: Duration = Duration::from_secs(60);
const GROWTH: f64 = 1.1;
const GROWS_AFTER: u64 = 12;
/// How long who has written waits at the least, and at the most, before he looks whether that stands.
const SETTLE_MIN: Duration = Duration::from_millis(100);
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// Time between two looks of those who wait in the beginning; after a while it is this part of the time after which the other is
/// nobody any more.
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: u32 = 8;

/// How long what a builder says for the time of this number stands before it is said again. Everybody knows that by the number.
fn renewal(count: u64) -> Duration {
    let growths = i32::try_from(count.saturating_sub(GROWS_AFTER)).unwrap_or(i32::MAX).min(100);
    RENEWAL.mul_f64(GROWTH.powi(growths)).min(RENEWAL_MAX)
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing before this time.
    Wait(Duration),
    /// Read what is said; [`Attendant::heard`] is the answer.
    Look,
    /// Say this; [`Attendant::said`] is the answer.
    Say(Said),
    /// Stop our run: another builder runs the step.
    Stop,
    /// Look for the record; [`Attendant::missing`] is the answer, where there is none.
    Search,
    /// Run the step again; [`Attendant::begun`] is the answer, whenever that is.
    Resume,
    /// Nothing any more.
    End,
}

/// One builder at one step.
#[derive(Debug)]
pub struct Attendant {
    own: Builder,
    count: u64,
    stage: Stage,
    /// Whether ours may stand there and has not been given up.
    is_owner: bool,
    /// The newest that was heard of each: a place may be asked that is behind.
    heard: BTreeMap<Builder, u64>,
    /// The longest that an answer took: to others it may take as long, and so they may be heard of later.
    slowest: Duration,
    /// Failures in a row.
    failures: u32,
    /// How often our run was stopped.
    stops: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Our run is on; nothing is known.
    Fresh {
        look: Duration,
    },
    /// Our run is on; somebody has said something, and may be long gone.
    Doubting(Vigil),
    /// Our run is on; that is to be said.
    Claiming,
    /// It was said and still stands; it is to be said again.
    Renewing,
    /// It was said; it is to be looked at again, and said again then if it is time.
    Owning {
        renewed: Duration,
        look: Duration,
        is_settled: bool,
    },
    /// Our run is to be stopped.
    Yielding(Vigil),
    /// Another builder runs the step, and ours waits.
    Following(Vigil),
    /// The record may be there.
    Searching {
        otherwise: Otherwise,
        look: Duration,
    },
    /// Our run is to begin again.
    Resuming(Resumed),
    /// The same, as soon as there is a worker for it; another builder may have one before.
    Queued(Vigil),
    /// Our run is over; that is to be said.
    Leaving(State),
    Over,
}

/// Another builder's word that is watched. Where it is gone it has not changed: it may be written anew just now, or somebody has
/// cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Vigil {
    /// When it was first heard.
    since: Duration,
    /// How long after that it is nobody's any more.
    lapse: Duration,
    /// When it is looked at next, and how long after the last time that is.
    look: Duration,
    pause: Duration,
}

/// What is done where there is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    /// Our run is on.
    Claim,
    Resume(Resumed),
}

/// How a run begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resumed {
    /// As one that others may follow.
    Announced,
    /// Everybody by himself: the step fails, as it seems, and nobody is to wait for that twice.
    Alone,
}

impl Stage {
    fn searching(otherwise: Otherwise, now: Duration) -> Self {
        Self::Searching { otherwise, look: now }
    }
}

impl Vigil {
    /// Over what was said for the time of this number.
    fn new(now: Duration, count: u64) -> Self {
        Self { since: now, lapse: LAPSES * renewal(count), look: now + OFTEN, pause: OFTEN }
    }

    /// It was looked at, and is to be looked at again.
    fn later(self, now: Duration) -> Self {
        let pause = self.pause.mul_f64(1.25).min(self.lapse / SELDOM);
        Self { look: now + pause, pause, ..self }
    }

    /// It was looked at and has changed: that was said for the time of this number.
    fn renewed(self, now: Duration, count: u64) -> Self {
        Self { since: now, lapse: LAPSES * renewal(count), ..self.later(now) }
    }

    fn is_dead(&self, now: Duration, slowest: Duration) -> bool {
        now.saturating_sub(self.since) >= (slowest * SLOW).min(LAPSE_MAX).max(self.lapse)
    }
}

/// What somebody who looked has read.
enum Read {
    Nothing,
    Own,
    /// Of another one; whether it is newer than all that was heard of that one.
    Other(Said, bool),
}

impl Attendant {
    /// Whose run of the step has just begun.
    pub fn new(own: Builder) -> Self {
        Self {
            own,
            count: 0,
            stage: Stage::Fresh { look: Duration::ZERO },
            is_owner: false,
            heard: BTreeMap::new(),
            slowest: Duration::ZERO,
            failures: 0,
            stops: 0,
        }
    }

    /// What to do next; each thing but to wait is answered before this is asked again.
    pub fn next(&mut self, now: Duration) -> Act {
        match self.stage {
            Stage::Fresh { look }
            | Stage::Doubting(Vigil { look, .. })
            | Stage::Following(Vigil { look, .. })
            | Stage::Queued(Vigil { look, .. })
            | Stage::Owning { look, .. }
            | Stage::Searching { look, .. }
                if now < look =>
            {
                Act::Wait(look)
            }
            Stage::Fresh { .. }
            | Stage::Doubting(_)
            | Stage::Following(_)
            | Stage::Queued(_)
            | Stage::Owning { .. } => Act::Look,
            Stage::Searching { .. } => Act::Search,
            Stage::Claiming | Stage::Renewing => self.say(State::Running),
            Stage::Leaving(state) => self.say(state),
            Stage::Yielding(_) if self.stops == STOPS => {
                self.stage = Stage::Over;
                Act::End
            }
            Stage::Yielding(vigil) => {
                self.is_owner = false;
                self.stops += 1;
                self.stage = Stage::Following(vigil);
                Act::Stop
            }
            Stage::Resuming(resumed) => {
                self.stage = match resumed {
                    Resumed::Announced => Stage::Queued(Vigil::new(now, 0)),
                    Resumed::Alone => Stage::Over,
                };
                Act::Resume
            }
            Stage::Over => Act::End,
        }
    }

    fn say(&mut self, state: State) -> Act {
        self.count = self.count.saturating_add(1);
        // A place that does not say so may have taken it.
        self.is_owner = true;
        Act::Say(Said { builder: self.own, count: self.count, state })
    }

    /// It was said, and took so long.
    pub fn said(&mut self, now: Duration, took: Duration) {
        (self.failures, self.slowest) = (0, self.slowest.max(took));
        self.stage = match self.stage {
            Stage::Leaving(_) => Stage::Over,
            Stage::Renewing => {
                Stage::Owning { renewed: now, look: now + renewal(self.count), is_settled: true }
            }
            _ => {
                let settle = (took * 3).clamp(SETTLE_MIN, SETTLE_MAX);
                Stage::Owning { renewed: now, look: now + settle, is_settled: false }
            }
        };
    }

    /// What was read, and how long that took; `lives` tells whether the builder of it was seen to be alive a moment ago. Says
    /// whether it is now.
    pub fn heard(&mut self, now: Duration, took: Duration, said: Option<Said>, lives: bool) -> bool {
        let read = self.read(said);
        let before = self.stage;
        (self.failures, self.slowest) = (0, self.slowest.max(took));
        let slowest = self.slowest;
        self.stage = match before {
            Stage::Fresh { .. } => Self::came(now, &read, lives),
            Stage::Doubting(vigil) => Self::doubted(vigil, now, slowest, &read, lives),
            Stage::Owning { renewed, is_settled, .. } => Self::looked(renewed, is_settled, now, &read),
            Stage::Following(vigil) => Self::followed(vigil, now, slowest, &read),
            Stage::Queued(vigil) => Self::queued(vigil, now, &read),
            other => other,
        };
        matches!(read, Read::Other(_, true)) && !matches!(before, Stage::Fresh { .. })
    }

    fn read(&mut self, said: Option<Said>) -> Read {
        let Some(said) = said else { return Read::Nothing };
        if said.builder == self.own {
            // An earlier run of the same build, perhaps.
            self.count = self.count.max(said.count);
            return Read::Own;
        }
        let last = self.heard.insert(said.builder, said.count);
        let is_new = last.is_none_or(|last| last < said.count);
        if !is_new {
            self.heard.extend(last.map(|last| (said.builder, last)));
        }
        Read::Other(said, is_new)
    }

    fn came(now: Duration, read: &Read, lives: bool) -> Stage {
        match read {
            Read::Nothing | Read::Own => Stage::Claiming,
            Read::Other(said, _) => match said.state {
                State::Running if lives => Stage::Yielding(Vigil::new(now, said.count)),
                State::Running => Stage::Doubting(Vigil::new(now, said.count)),
                State::Done => Stage::searching(Otherwise::Claim, now),
                State::Failed | State::Left => Stage::Claiming,
            },
        }
    }

    fn doubted(vigil: Vigil, now: Duration, slowest: Duration, read: &Read, lives: bool) -> Stage {
        match read {
            // It was written since: that is life.
            Read::Other(Said { state: State::Running, count, .. }, is_new) if *is_new || lives => {
                Stage::Yielding(Vigil::new(now, *count))
            }
            Read::Nothing | Read::Other(Said { state: State::Running, .. }, _) => {
                match vigil.is_dead(now, slowest) {
                    true => Stage::searching(Otherwise::Claim, now),
                    false => Stage::Doubting(vigil.later(now)),
                }
            }
            read => Self::came(now, read, lives),
        }
    }

    fn looked(renewed: Duration, is_settled: bool, now: Duration, read: &Read) -> Stage {
        match read {
            Read::Other(Said { state: State::Running, count, .. }, true) => {
                Stage::Yielding(Vigil::new(now, *count))
            }
            Read::Other(Said { state: State::Done, .. }, true) => Stage::searching(Otherwise::Claim, now),
            Read::Other(_, true) => Stage::Claiming,
            // Where it is gone, somebody has cleaned up, or it never is what can be read here: that is no reason to hurry.
            Read::Nothing | Read::Own | Read::Other(_, false) => match is_settled {
                true => Stage::Renewing,
                false => Stage::Owning { renewed, look: now.max(renewed + FIRST_RENEWAL), is_settled: true },
            },
        }
    }

    fn followed(vigil: Vigil, now: Duration, slowest: Duration, read: &Read) -> Stage {
        let search = |resumed| Stage::searching(Otherwise::Resume(resumed), now);
        match read {
            Read::Other(said, true) => match said.state {
                State::Running => Stage::Following(vigil.renewed(now, said.count)),
                State::Done | State::Failed => search(Resumed::Alone),
                State::Left => search(Resumed::Announced),
            },
            _ if vigil.is_dead(now, slowest) => search(Resumed::Announced),
            _ => Stage::Following(vigil.later(now)),
        }
    }

    fn queued(vigil: Vigil, now: Duration, read: &Read) -> Stage {
        match read {
            Read::Other(Said { state: State::Running, count, .. }, true) => {
                Stage::Yielding(Vigil::new(now, *count))
            }
            Read::Other(Said { state: State::Done, .. }, true) => {
                Stage::searching(Otherwise::Resume(Resumed::Alone), now)
            }
            _ => Stage::Queued(vigil.later(now)),
        }
    }

    /// Our run has begun again.
    pub fn begun(&mut self) {
        if let Stage::Queued(_) = self.stage {
            self.stage = Stage::Claiming;
        }
    }

    /// There is no record.
    pub fn missing(&mut self) {
        if let Stage::Searching { otherwise, .. } = self.stage {
            self.stage = match otherwise {
                Otherwise::Claim => Stage::Claiming,
                Otherwise::Resume(resumed) => Stage::Resuming(resumed),
            };
        }
    }

    /// The step is over here, and this is how.
    pub fn over(&mut self, state: State) {
        self.stage = match self.is_owner {
            true => Stage::Leaving(state),
            false => Stage::Over,
        };
    }

    /// What was to be done has failed, and is tried again in a while; whether that is so.
    pub fn failed(&mut self, now: Duration) -> bool {
        self.failures += 1;
        let waits_in_vain = matches!(self.stage, Stage::Following(vigil) if vigil.is_dead(now, self.slowest));
        if self.failures >= ENOUGH || waits_in_vain {
            self.alone();
            return false;
        }
        let look = now + AGAIN;
        self.stage = match self.stage {
            Stage::Fresh { .. } | Stage::Claiming => Stage::Fresh { look },
            Stage::Doubting(vigil) => Stage::Doubting(Vigil { look, ..vigil }),
            Stage::Following(vigil) => Stage::Following(Vigil { look, ..vigil }),
            Stage::Queued(vigil) => Stage::Queued(Vigil { look, ..vigil }),
            Stage::Renewing => Stage::Owning { renewed: now, look, is_settled: true },
            Stage::Owning { renewed, is_settled, .. } => Stage::Owning { renewed, look, is_settled },
            Stage::Searching { otherwise, .. } => Stage::Searching { otherwise, look },
            other => other,
        };
        true
    }

    /// The place cannot be asked, or does not take what is said: everybody for himself.
    pub fn alone(&mut self) {
        self.stage = match self.stage {
            Stage::Following(_)
            | Stage::Searching { otherwise: Otherwise::Resume(_), .. }
            | Stage::Resuming(_) => Stage::Resuming(Resumed::Alone),
            _ => Stage::Over,
        };
    }

    /// Whether our run has yet to begin again.
    pub fn is_queued(&self) -> bool {
        matches!(self.stage, Stage::Queued(_))
    }

    /// Whether our run is stopped.
    pub fn is_following(&self) -> bool {
        matches!(self.stage, Stage::Following(_))
    }
}

#[cfg(test)]
mod tests;

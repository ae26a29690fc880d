//! What a cache has failed with: who is told, and when it is given up.

use crate::cache::{
    record::FormatError,
    storage::{StorageError, StorageErrorKind, told},
};

/// Failures in a row after which nothing is asked any more.
const ENOUGH: u32 = 3;
/// Things in a row that cannot be used, after which the same holds: that is no cache.
const ENOUGH_DAMAGE: u32 = 8;

/// What came of asking.
#[derive(Debug)]
pub enum Outcome {
    /// An answer, if only that there is nothing.
    Answered,
    /// None.
    Failed(String),
    /// None, and there will be none.
    Refused(String),
    /// Something that cannot be used.
    Damaged(String),
    /// Nobody wanted to know any more.
    Cancelled,
}

impl Outcome {
    pub fn of(error: StorageError) -> Self {
        let kind = error.kind;
        let text = error.reason();
        match kind {
            StorageErrorKind::Failed => Self::Failed(text),
            StorageErrorKind::Denied => Self::Refused(text),
            StorageErrorKind::Damaged => Self::Damaged(text),
            StorageErrorKind::Cancelled => Self::Cancelled,
        }
    }

    /// What was read is of no use.
    pub fn unusable(name: &str, error: &FormatError) -> Self {
        match Self::is_quiet(error) {
            true => Self::Answered,
            false => Self::Damaged(format!("{name}: {}", told(error))),
        }
    }

    /// Nobody need hear that another version has written something, and what is not trusted is counted elsewhere.
    pub fn is_quiet(error: &FormatError) -> bool {
        matches!(error, FormatError::Untrusted) || error.is_other_version()
    }
}

/// How a cache has behaved.
#[derive(Debug, Default)]
pub struct Trouble {
    failures: u32,
    damages: u32,
    is_down: bool,
    has_told_failure: bool,
    has_told_damage: bool,
    has_told_spent: bool,
}

impl Trouble {
    /// Whether there is no use in asking.
    pub fn is_down(&self) -> bool {
        self.is_down
    }

    /// Whether a person has been told of any.
    pub fn is_told(&self) -> bool {
        self.has_told_failure || self.has_told_damage
    }

    /// Whether it was asked in vain for something that it may have.
    pub fn has_failed(&self) -> bool {
        self.has_told_failure || self.is_down
    }

    /// How many things may be asked for at the same time: after a failure one, until it has answered again.
    pub fn most_at_once(&self, usually: usize) -> usize {
        if self.failures + self.damages > 0 && !self.is_down { 1 } else { usually }
    }

    /// Takes note, and says what a person should be told, which is so once for each kind of trouble.
    pub fn note(&mut self, cache: &str, outcome: Outcome) -> Option<String> {
        match outcome {
            Outcome::Answered => {
                (self.failures, self.damages) = (0, 0);
                None
            }
            Outcome::Failed(why) => {
                self.failures += 1;
                self.is_down |= self.failures >= ENOUGH;
                let is_news = !std::mem::replace(&mut self.has_told_failure, true);
                is_news.then(|| format!("the cache {cache} fails, and the build goes on without it: {why}"))
            }
            Outcome::Refused(why) => {
                let is_news = !self.is_down && !std::mem::replace(&mut self.has_told_failure, true);
                self.is_down = true;
                is_news.then(|| {
                    format!("the cache {cache} may not be read, and the build goes on without it: {why}")
                })
            }
            Outcome::Damaged(why) => {
                self.damages += 1;
                self.is_down |= self.damages >= ENOUGH_DAMAGE;
                let is_news = !std::mem::replace(&mut self.has_told_damage, true);
                is_news.then(|| format!("something in the cache {cache} is damaged, and passed over: {why}"))
            }
            Outcome::Cancelled => None,
        }
    }

    /// Nothing more is asked for, since enough was; whether that is news.
    pub fn note_spent(&mut self) -> bool {
        !std::mem::replace(&mut self.has_told_spent, true)
    }
}

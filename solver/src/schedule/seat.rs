//! What builders without a common store tell each other of one step ([`Bulletin`]), as messages for the scheduler.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use oci::TreeDigest;

use super::{pool::Outside, task::Message};
use crate::traits::{Bulletin, FailureKind, StepFailure};

/// Where steps that run are announced.
#[derive(Clone)]
pub(super) struct Board {
    bulletin: Arc<dyn Bulletin>,
    outside: Outside,
    seats: Arc<AtomicU64>,
}

/// The place of one step at the board: it is taken when the step begins for the first time, and given back when all clones are
/// dropped. Whoever runs the step holds one, and then who remembers it.
#[derive(Clone)]
pub(super) struct Seat {
    board: Board,
    content: TreeDigest,
    /// What is heard at it says so: at another place of the same step it means nothing.
    number: u64,
    taken: Arc<OnceLock<Box<dyn Send + Sync>>>,
}

impl Board {
    pub(super) fn new(bulletin: &Arc<dyn Bulletin>, outside: Outside) -> Self {
        Self { bulletin: Arc::clone(bulletin), outside, seats: Arc::default() }
    }

    /// Says nothing yet.
    pub(super) fn seat(&self, content: TreeDigest) -> Seat {
        let number = self.seats.fetch_add(1, Ordering::Relaxed);
        Seat { board: self.clone(), content, number, taken: Arc::default() }
    }
}

impl Seat {
    /// The step begins, once more perhaps.
    pub(super) fn take(&self) {
        let Self { board: Board { bulletin, outside, .. }, content, number, taken } = self;
        if taken.get().is_some() {
            return bulletin.begin(content);
        }
        taken.get_or_init(|| {
            let (outside, content, number) = (outside.clone(), *content, *number);
            let tell = move |notice| outside.say(Message::Noticed(content, number, notice));
            bulletin.attend(&content, Box::new(tell))
        });
    }

    /// Whether something was heard at this place.
    pub(super) fn is(&self, number: u64) -> bool {
        self.number == number
    }

    /// The step has come to this end.
    pub(super) fn end(&self, failure: &StepFailure) {
        if matches!(failure.kind, FailureKind::Build | FailureKind::Usage) {
            self.board.bulletin.fail(&self.content);
        }
    }
}

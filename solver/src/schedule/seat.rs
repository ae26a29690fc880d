//! What builders without a common store tell each other of one step ([`Bulletin`]), as messages for the scheduler.

use std::sync::{Arc, OnceLock};

use oci::TreeDigest;

use super::{pool::Outside, task::Message};
use crate::traits::{Bulletin, FailureKind, StepFailure};

/// Where steps that run are announced.
#[derive(Clone)]
pub(super) struct Board {
    bulletin: Arc<dyn Bulletin>,
    outside: Outside,
}

/// The place of one step at the board: it is taken when the step begins for the first time, and given back when all clones are
/// dropped. Whoever runs the step holds one, and then who remembers it.
#[derive(Clone)]
pub(super) struct Seat {
    board: Board,
    content: TreeDigest,
    taken: Arc<OnceLock<Box<dyn Send + Sync>>>,
}

impl Board {
    pub(super) fn new(bulletin: &Arc<dyn Bulletin>, outside: Outside) -> Self {
        Self { bulletin: Arc::clone(bulletin), outside }
    }

    /// Says nothing yet.
    pub(super) fn seat(&self, content: TreeDigest) -> Seat {
        Seat { board: self.clone(), content, taken: Arc::default() }
    }
}

impl Seat {
    /// The step begins, once more perhaps.
    pub(super) fn take(&self) {
        let Self { board: Board { bulletin, outside }, content, taken } = self;
        if taken.get().is_some() {
            return bulletin.begin(content);
        }
        taken.get_or_init(|| {
            let (outside, content) = (outside.clone(), *content);
            bulletin.attend(&content, Box::new(move |notice| outside.say(Message::Noticed(content, notice))))
        });
    }

    /// The step has come to this end.
    pub(super) fn end(&self, failure: &StepFailure) {
        if matches!(failure.kind, FailureKind::Build | FailureKind::Usage) {
            self.board.bulletin.fail(&self.content);
        }
    }
}

//! By which a step is called back that has become needless while it was worked on: a distant cache has answered.
//!
//! It is over for everybody at that moment, although its worker takes a while to notice: nothing is told of it any more.

use std::sync::{Arc, Mutex, PoisonError};

use crate::traits::{Cancel, FailureKind, StepFailure};

/// Held by the scheduler and by the worker of one step.
#[derive(Debug, Clone)]
pub(super) struct Leash {
    cancel: Cancel,
    wanted: Arc<Mutex<bool>>,
}

impl Leash {
    /// For a step that ends with the build, too.
    pub(super) fn new(stop: &Cancel) -> Self {
        Self { cancel: stop.child(), wanted: Arc::new(Mutex::new(true)) }
    }

    /// What the worker polls.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// The step is not needed any more. What its worker tells has been told when this returns.
    pub(super) fn let_go(&self) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.cancel.request();
    }

    /// Tells something of the step, unless it has been let go.
    ///
    /// # Errors
    /// It has been.
    pub(super) fn if_wanted(&self, tell: impl FnOnce()) -> Result<(), StepFailure> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*wanted {
            return Err(StepFailure::new(FailureKind::Cancelled, "a distant cache has the result"));
        }
        tell();
        Ok(())
    }

    /// Whether there is any use in beginning.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn still_wanted(&self) -> Result<(), StepFailure> {
        self.if_wanted(|| ())
    }
}

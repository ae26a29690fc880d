//! Whether the work tree is as the commit that is built, found out beside everything that changes nothing.
//!
//! To ask for the lstat of every tracked file takes longer than all else that a build does where nothing has changed. So it is
//! asked for by a thread of its own while the build is planned and its steps are looked up, and whoever wants to run, write or
//! send something waits for the answer ([`Clean::is_clean`]). A build that comes to nothing for another reason as well is told of
//! the work tree, whichever was found out first ([`Clean::refusal`]).

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

use solver::{Cancel, StepFailure};

use super::place;
use crate::{failure::Failure, request::Places, spec::context::ContextSpec};

/// What is found out of a work tree. Cheap to clone; nothing is asked of a context that is no commit of `--git`.
#[derive(Clone, Default)]
pub struct Clean {
    found: Option<Arc<OnceLock<Refused>>>,
}

/// Why it is not clean, until somebody tells it.
type Refused = Result<(), Mutex<Option<StepFailure>>>;

impl Clean {
    /// Begins to look.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn begin(places: &Places, cancel: &Arc<Cancel>) -> Result<Self, Failure> {
        let (ContextSpec::Commit(spec), Some(opened)) = (&places.context, places.commit.clone()) else {
            return Ok(Self::default());
        };
        if spec.is_dirty {
            return Ok(Self::default());
        }
        let (dockerfile, cancel) = (places.dockerfile.clone(), Arc::clone(cancel));
        let found = Arc::new(OnceLock::new());
        let told = Arc::clone(&found);
        let look = move || {
            let clean = place::clean(opened, &dockerfile, &cancel);
            let _ = told.set(clean.map(drop).map_err(|error| Mutex::new(Some(error.into()))));
        };
        let what = "a thread that looks at the work tree";
        let started = thread::Builder::new().name("work-tree".to_owned()).spawn(look);
        started.map_err(|source| Failure::Start { what, source })?;
        Ok(Self { found: Some(found) })
    }

    /// Whether everything is as it is committed. Waits until that is known.
    pub fn is_clean(&self) -> bool {
        self.found.as_ref().is_none_or(|found| found.wait().is_ok())
    }

    /// Why the build is refused, told once. Waits until that is known.
    pub fn refusal(&self) -> Option<Failure> {
        let refused = self.found.as_ref()?.wait().as_ref().err()?;
        refused.lock().unwrap_or_else(PoisonError::into_inner).take().map(Failure::remote)
    }

    /// What something came to that was done meanwhile, or rather why the build is refused. Waits until that is known.
    ///
    /// # Errors
    /// The refusal, or its own.
    pub fn unless_refused<T>(&self, done: Result<T, Failure>) -> Result<T, Failure> {
        self.refusal().map_or(done, Err)
    }
}

//! An init that is started while a step runs, for the next one: to start our own program takes as long as a small step.
//!
//! Until it is called it knows nothing of any step, and it is called once. All of them are started by one thread, which ends
//! after them: to the kernel a process loses its parent with the *thread* that has started it (PDEATHSIG). Two steps at a time
//! have one between them, and the other starts its own. The first step has none started: as most builds run none or one, it
//! would be for nothing.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use solver::{Cancel, Stream};

use super::{Exit, Wish, init::Init, see_through, watch::Watch};
use crate::sandbox::{SandboxError, SandboxPlan, wire::Call};

/// Runs the steps of a build, with an init that is ready for the next one. Dropped, that one is ended.
#[derive(Default)]
pub struct Spares {
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    NoStepYet,
    OneStep,
    Nursery(Nursery),
}

impl Spares {
    /// As [`super::run`].
    ///
    /// # Errors
    /// As those of [`super::run`].
    pub fn run(
        &self,
        plan: &SandboxPlan,
        log: &(dyn Fn(Stream, &[u8]) + Sync),
        cancel: &Cancel,
    ) -> Result<Exit, SandboxError> {
        let watch = Watch::begin(plan)?;
        let call = Call::Run(Box::new(plan.clone()));
        let init = match self.take().and_then(|spare| spare.call_spare(&call)) {
            Some(init) => init,
            None => Init::start(&call, None)?,
        };
        self.prepare();
        see_through(init, Wish::new(plan, cancel, watch), log)
    }

    /// The one that was asked for, if nobody else has taken it. One that is being started is there sooner than another one would
    /// be. Somebody may have killed it since.
    fn take(&self) -> Option<Init> {
        let started = match &mut *self.state() {
            State::Nursery(nursery) => nursery.promised()?,
            State::NoStepYet | State::OneStep => return None,
        };
        let started = started.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let mut init = started.ok()?.ok()?;
        init.is_alive().then_some(init)
    }

    /// Has one started for the next step. What fails here, that step will say.
    fn prepare(&self) {
        let mut state = self.state();
        match &mut *state {
            State::NoStepYet => *state = State::OneStep,
            State::OneStep => {
                if let Ok(mut nursery) = Nursery::open() {
                    nursery.ask();
                    *state = State::Nursery(nursery);
                }
            }
            State::Nursery(nursery) => nursery.ask(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where inits arrive that were asked for.
type Arrivals = Arc<Mutex<Receiver<Result<Init, SandboxError>>>>;

/// The thread that starts them, as seen by everybody else.
struct Nursery {
    /// Until the end of it all.
    wishes: Option<Sender<()>>,
    /// Each is for who was promised it; waited for without the state, which others want meanwhile.
    started: Arrivals,
    /// Whether it was asked for one that nobody has taken.
    is_asked: bool,
    thread: Option<JoinHandle<()>>,
}

impl Nursery {
    fn open() -> io::Result<Self> {
        let (wishes, wished) = channel();
        let (start, started) = channel();
        let work = move || while wished.recv().is_ok() && start.send(Init::spare()).is_ok() {};
        let thread = thread::Builder::new().name("spare inits".to_owned()).spawn(work)?;
        let started = Arc::new(Mutex::new(started));
        Ok(Self { wishes: Some(wishes), started, is_asked: false, thread: Some(thread) })
    }

    fn ask(&mut self) {
        if !self.is_asked {
            self.is_asked = self.wishes.as_ref().is_some_and(|wishes| wishes.send(()).is_ok());
        }
    }

    /// Where the one that was asked for arrives. It is nobody else's from then on.
    fn promised(&mut self) -> Option<Arrivals> {
        std::mem::take(&mut self.is_asked).then(|| Arc::clone(&self.started))
    }
}

/// Nobody runs a step any more.
impl Drop for Nursery {
    fn drop(&mut self) {
        self.wishes = None;
        let ended = self.thread.take().map(JoinHandle::join);
        debug_assert!(ended.is_none_or(|ended| ended.is_ok()), "the thread does nothing that panics");
        // What it has started last goes with the channel.
    }
}

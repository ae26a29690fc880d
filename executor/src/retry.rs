//! Trying again what failed (`--retry`): a RUN whose command exits otherwise than with zero, and what comes from
//! elsewhere, a layer of a base image included.
//!
//! An attempt leaves nothing to the next but what it wrote into cache mounts: each begins with the same inputs and
//! nothing on top of them. A mistake of the Dockerfile, a full disk and a build that is to stop are not tried again.
//! What registries and HTTP servers refuse for a moment is asked for again in any case, long before this is.

use std::{
    thread,
    time::{Duration, Instant},
};

use solver::{Cancel, FailureKind, StepFailure};

/// Time between two looks at whether the build is to stop.
const TICK: Duration = Duration::from_millis(20);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// How often, and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How many attempts may follow the first.
    pub times: u32,
    /// How long to wait before the second attempt; twice as long before each further one, 30 seconds at most.
    pub pause: Duration,
}

impl Default for Retry {
    /// One attempt.
    fn default() -> Self {
        Self { times: 0, pause: Duration::from_secs(1) }
    }
}

impl Retry {
    /// Makes something in as many attempts as it needs and is given. `tell` hears why an attempt failed and when the
    /// next one comes.
    ///
    /// # Errors
    /// The failure of the last attempt.
    pub fn make<T>(
        self,
        cancel: &Cancel,
        tell: impl Fn(&str),
        mut attempt: impl FnMut() -> Result<T, StepFailure>,
    ) -> Result<T, StepFailure> {
        let mut pause = self.pause;
        for number in 1..=self.times {
            let failure = match attempt() {
                Err(failure) if is_worth_it(&failure) && !cancel.is_requested() => failure,
                done => return done,
            };
            let all = u64::from(self.times) + 1;
            tell(&format!("attempt {number} of {all} failed: {}", chain(&failure)));
            wait(pause, cancel)?;
            tell(&format!("attempt {} of {all}", number + 1));
            pause = (pause * 2).min(LONGEST);
        }
        attempt()
    }
}

/// Whether the next attempt may go better.
fn is_worth_it(failure: &StepFailure) -> bool {
    match failure.kind {
        FailureKind::Registry | FailureKind::Unavailable => true,
        // A command that ran. All other mistakes of this kind are made again.
        FailureKind::Build => failure.exit_code.is_some(),
        FailureKind::Usage | FailureKind::Machine | FailureKind::Cancelled => false,
    }
}

/// A failure and all its causes in one line.
fn chain(failure: &StepFailure) -> String {
    let causes = std::iter::successors(std::error::Error::source(failure), |error| error.source());
    causes.fold(failure.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn wait(pause: Duration, cancel: &Cancel) -> Result<(), StepFailure> {
    let end = Instant::now() + pause;
    while let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        if cancel.is_requested() {
            return Err(StepFailure::new(FailureKind::Cancelled, "cancelled"));
        }
        thread::sleep(rest.min(TICK));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn exits(code: i32) -> StepFailure {
        StepFailure {
            exit_code: Some(code),
            ..StepFailure::new(FailureKind::Build, format!("exit code: {code}"))
        }
    }

    /// How many attempts are made of what fails in this way each time, and what is told.
    fn attempts(times: u32, failure: fn() -> StepFailure) -> (usize, Vec<String>) {
        let (made, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let retry = Retry { times, pause: Duration::ZERO };
        let attempt = || -> Result<(), _> {
            made.set(made.get() + 1);
            Err(failure())
        };
        let failed = retry.make(&Cancel::default(), |text| told.borrow_mut().push(text.to_owned()), attempt);
        assert_eq!(failed.expect_err("it fails").message, failure().message);
        (made.get(), told.into_inner())
    }

    #[test]
    fn only_what_may_go_better_is_tried_again() {
        for (times, failure, expected) in [
            (0, (|| exits(1)) as fn() -> StepFailure, 1),
            (2, || exits(1), 3),
            (2, || StepFailure::new(FailureKind::Registry, "no answer"), 3),
            (2, || StepFailure::new(FailureKind::Unavailable, "no answer"), 3),
            (2, || StepFailure::new(FailureKind::Build, "not found"), 1),
            (2, || StepFailure::new(FailureKind::Usage, "not supported"), 1),
            (2, || StepFailure::new(FailureKind::Machine, "disk full"), 1),
            (2, || StepFailure::new(FailureKind::Cancelled, "stopped"), 1),
        ] {
            assert_eq!(attempts(times, failure).0, expected, "{:?}", failure());
        }
    }

    #[test]
    fn each_attempt_is_told() {
        let (_, told) = attempts(2, || exits(7));
        let expected = [
            "attempt 1 of 3 failed: exit code: 7",
            "attempt 2 of 3",
            "attempt 2 of 3 failed: exit code: 7",
            "attempt 3 of 3",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_attempt_that_goes_well_is_the_last() {
        let made = Cell::new(0);
        let retry = Retry { times: 5, pause: Duration::ZERO };
        let done = retry.make(
            &Cancel::default(),
            |_| (),
            || {
                made.set(made.get() + 1);
                if made.get() < 3 { Err(exits(1)) } else { Ok(made.get()) }
            },
        );
        assert_eq!((done.expect("the third goes well"), made.get()), (3, 3));
    }

    #[test]
    fn a_build_that_is_to_stop_does_not_wait_for_the_next_attempt() {
        let cancel = Cancel::default();
        let retry = Retry { times: 1, pause: Duration::from_secs(3600) };
        let tell = |_: &str| cancel.request();
        let failed = retry.make(&cancel, tell, || -> Result<(), _> { Err(exits(1)) }).expect_err("stopped");
        assert_eq!(failed.kind, FailureKind::Cancelled);
    }
}

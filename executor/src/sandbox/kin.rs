//! The processes of a step where the machine gives it no PID namespace: none is left behind.
//!
//! Both inits are child subreapers, so that whoever loses its parent becomes their child, however it tried to get away. And
//! each is in a Landlock domain that shuts signals in, so that a signal to "all" meets those below it and no stranger. The
//! kernel sends such a one while nobody can fork, so no step begins processes faster than they are ended.

use std::{
    io,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Signal, WaitOptions, getpid, set_child_subreaper, wait},
};

use crate::sandbox::{
    failure::{Failure, NameStep},
    sys,
};

/// How long the kernel may take to end what was killed; it is milliseconds, unless a disk or a network keeps a process.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Everything below this process, which can signal nothing else any more.
pub struct Kin {
    _gathered: (),
}

impl Kin {
    /// Makes this process the parent of everything below it that loses its own, and keeps its signals below it.
    ///
    /// # Errors
    /// The machine has no such domains (Linux 6.12), or refuses one.
    pub fn gather() -> Result<Self, Failure> {
        set_child_subreaper(Some(getpid())).step("adopt orphans")?;
        if sys::landlock_abi() < sys::LANDLOCK_ABI_WITH_SCOPES {
            return Err(Failure::new("landlock scope", "nothing else keeps this step from other processes"));
        }
        sys::landlock_scope().step("landlock scope")?;
        Ok(Self { _gathered: () })
    }

    /// Ends all of it, and waits for it.
    ///
    /// # Errors
    /// A process does not end.
    pub fn end_all(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            sys::signal_all_others(Signal::KILL);
            loop {
                match wait(WaitOptions::NOHANG) {
                    Ok(Some(_)) | Err(Errno::INTR) => {}
                    Ok(None) => break,
                    Err(Errno::CHILD) => return Ok(()),
                    Err(errno) => return Err(errno.into()),
                }
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other(format!(
                    "a process has not ended within {PATIENCE:?} of SIGKILL"
                )));
            }
            sleep(PAUSE);
        }
    }
}

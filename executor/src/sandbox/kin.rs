//! The processes of a step where the machine gives it no PID namespace: none is left behind.
//!
//! Both inits are child subreapers, so that whoever loses its parent becomes their child, however it tried to get away. And
//! each is in a Landlock domain that shuts signals in, so that a signal to "all" meets those below it and no stranger. The
//! kernel sends such a one while nobody can fork, so no step begins processes faster than they are ended.

use std::{
    fs, io,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, set_child_subreaper, wait},
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

    /// Ends all of it, and waits for it. `strangers` are children that are not of it, and stay.
    ///
    /// # Errors
    /// A process does not end.
    pub fn end_all(&self, strangers: &[Pid]) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            sys::signal_all_others(Signal::KILL);
            loop {
                match wait(WaitOptions::NOHANG) {
                    Ok(Some(_)) | Err(Errno::INTR) => {}
                    Ok(None) if !strangers.is_empty() && !has_other_children(strangers)? => return Ok(()),
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

/// Whether this process has other children than these.
fn has_other_children(known: &[Pid]) -> io::Result<bool> {
    let us = getpid().as_raw_nonzero().get();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // One that has ended meanwhile is nobody's child.
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
        if parent_in(&stat) == Some(us) && !known.contains(&process) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The parent in what `/proc/PID/stat` says: behind the name, which can hold anything, and the state.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_behind_the_name() {
        assert_eq!(parent_in("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in(""), None);
    }
}

//! The processes of a step where the machine gives it no PID namespace: none is left behind.
//!
//! Both inits are child subreapers, so that whoever loses its parent becomes their child, however it tried to get away.
//! Only children are ever signalled: the number of a child is its own until we have waited for it, so no signal meets a
//! stranger. Each round ends those that are there, and lays bare theirs, until there is none.

use std::{fs, io};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait},
};

/// Makes this process the parent of everything below it that loses its own.
///
/// # Errors
/// What prctl(2) says.
pub fn adopt_orphans() -> Result<(), Errno> {
    set_child_subreaper(Some(getpid()))
}

/// Ends everything below this process, which must have called [`adopt_orphans`], and waits for it.
///
/// # Errors
/// `/proc` cannot be read.
pub fn end_all() -> io::Result<()> {
    loop {
        for child in children()? {
            // One that has ended meanwhile is as good.
            let _ = kill_process(child, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn children() -> io::Result<Vec<Pid>> {
    let own = getpid();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else {
            continue;
        };
        // One that is gone by now is none of our children.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if parent(&stat) == Some(own) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The parent in `/proc/PID/stat`: `PID (NAME) STATE PARENT ...`, where the name can hold anything.
fn parent(stat: &str) -> Option<Pid> {
    let (_, after_name) = stat.rsplit_once(')')?;
    Pid::from_raw(after_name.split_whitespace().nth(1)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_hold_anything() {
        let pid = |stat| parent(stat).map(Pid::as_raw_nonzero).map(std::num::NonZero::get);
        assert_eq!(pid("12 (sh) S 7 12 12 0 -1"), Some(7));
        assert_eq!(pid("12 (a) S 1 (b) R 9 1"), Some(9));
        assert_eq!((pid("12 (sh) S 0 0"), pid("12"), pid("")), (None, None, None));
    }
}

//! The control group of one step: made before its command starts, joined by that command alone, and taken away after it.
//!
//! The inits stay outside, so that what they use counts for nobody and a step that is out of memory cannot take them
//! along. Whoever makes a group holds a lock on it; a group that nobody holds is left over from a builder that was killed,
//! and goes when the next one is made beside it.

use std::{
    fs,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, Mode, OFlags, Stat, flock, fstat, open, stat},
    io::Errno,
    thread::UnshareFlags,
};

use crate::sandbox::{
    failure::{Failure, NameStep},
    plan::{Amount, Group, GroupLimits, ProcessorTime},
    sys,
};

/// How the names of our groups begin; the rest tells them apart.
const PREFIX: &str = "layerwright-";

/// How many names are tried.
const ATTEMPTS: u32 = 100;

/// How long the kernel may take to notice that a group is empty.
const PATIENCE: Duration = Duration::from_secs(2);
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A group that is there, with its limits, and has no process until [`StepGroup::join`].
pub struct StepGroup {
    directory: PathBuf,
    /// Opened in the namespaces that can see the group; whoever joins it can no more.
    members: fs::File,
    /// Held as long as the group is anybody's.
    _lock: OwnedFd,
}

impl StepGroup {
    /// Makes one.
    pub fn make(group: &Group) -> Result<Self, Failure> {
        remove_strays(&group.parent);
        let step = format!("make control group in {}", group.parent.display());
        let (directory, lock) = new_directory(&group.parent).step(&step)?;
        let members = fs::OpenOptions::new().write(true).open(directory.join("cgroup.procs"));
        let limited = files(&group.limits).into_iter().try_for_each(|(file, text)| {
            write_limit(&directory, file, &text).step(&format!("write {text} to {file} of the control group"))
        });
        match (limited, members.step(&step)) {
            (Ok(()), Ok(members)) => Ok(Self { directory, members, _lock: lock }),
            (Err(failure), _) | (_, Err(failure)) => {
                let _ = fs::remove_dir(&directory);
                Err(failure)
            }
        }
    }

    /// Puts this process into it, as into the topmost group there is.
    pub fn join(&self) -> Result<(), Failure> {
        (&self.members).write_all(b"0").step("join control group")?;
        sys::unshare(UnshareFlags::NEWCGROUP).step("unshare cgroup namespace")
    }

    /// Whether the kernel had to end a process of it for want of memory.
    pub fn was_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills != "0")
    }

    /// Takes it away; everything in it must have ended.
    pub fn remove(self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match fs::remove_dir(&self.directory) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    if Instant::now() >= deadline {
                        return Err(error);
                    }
                    self.wait_for_change()?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                answer => return answer,
            }
        }
    }

    /// Waits until the group's state changes, or for a moment.
    fn wait_for_change(&self) -> io::Result<()> {
        let events = fs::File::open(self.directory.join("cgroup.events"))?;
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&TICK))?;
        Ok(())
    }
}

/// The files of a group and what is written to them. Swap comes after the memory it is more than.
fn files(limits: &GroupLimits) -> Vec<(&'static str, String)> {
    let GroupLimits {
        memory,
        memory_and_swap,
        processor_time,
        processor_shares,
        processors,
        memory_nodes,
        processes,
    } = limits;
    let time = |time: &ProcessorTime| format!("{} {}", amount(time.quota), time.period);
    let all = [
        ("cpuset.cpus", processors.clone()),
        ("cpuset.mems", memory_nodes.clone()),
        ("cpu.max", processor_time.as_ref().map(time)),
        ("cpu.weight", processor_shares.map(|shares| weight(shares).to_string())),
        ("memory.max", memory.map(|bytes| bytes.to_string())),
        ("memory.swap.max", swap(*memory, *memory_and_swap).map(amount)),
        ("pids.max", processes.map(amount)),
    ];
    all.into_iter().filter_map(|(file, text)| Some((file, text?))).collect()
}

/// Swap alone, of which as much may be used as of memory where nobody has said otherwise, as with Docker.
fn swap(memory: Option<u64>, memory_and_swap: Option<Amount>) -> Option<Amount> {
    let memory = memory?;
    Some(match memory_and_swap {
        None => Amount::AtMost(memory),
        Some(Amount::Unlimited) => Amount::Unlimited,
        Some(Amount::AtMost(both)) => Amount::AtMost(both.saturating_sub(memory)),
    })
}

/// Shares of version 1, 2 to 262144, as a weight of version 2, 1 to 10000: the line that runc and crun have drawn.
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

fn amount(amount: Amount) -> String {
    match amount {
        Amount::Unlimited => "max".to_owned(),
        Amount::AtMost(amount) => amount.to_string(),
    }
}

/// Writes a limit. A machine without swap has no file for it, and nothing to limit.
fn write_limit(directory: &Path, file: &str, text: &str) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).open(directory.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && file == "memory.swap.max" => Ok(()),
        opened => opened?.write_all(text.as_bytes()),
    }
}

/// Makes a directory that nobody else has, and locks it.
fn new_directory(parent: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    for number in 0..ATTEMPTS {
        let directory = parent.join(format!("{PREFIX}{}-{number}", process::id()));
        match fs::create_dir(&directory) {
            // Builders that cannot see each other's processes can have the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        // Until it is locked it may be taken for a stray.
        match lock(&directory) {
            Ok(lock) if is_at(&lock, &directory) => return Ok((directory, lock)),
            Ok(_) | Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn is_at(opened: &OwnedFd, path: &Path) -> bool {
    let inode = |stat: Result<Stat, Errno>| stat.map(|stat| (stat.st_dev, stat.st_ino)).ok();
    inode(fstat(opened)) == inode(stat(path))
}

fn lock(directory: &Path) -> Result<OwnedFd, Errno> {
    let opened = open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    flock(&opened, FlockOperation::NonBlockingLockExclusive)?;
    Ok(opened)
}

/// Takes away what killed builders have left. What cannot be taken away is in somebody's use.
fn remove_strays(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && let Ok(_lock) = lock(&entry.path())
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_files() {
        let limits = GroupLimits {
            memory: Some(64),
            memory_and_swap: Some(Amount::AtMost(96)),
            processor_time: Some(ProcessorTime { quota: Amount::AtMost(150_000), period: 100_000 }),
            processor_shares: Some(1024),
            processors: Some("0-1".to_owned()),
            memory_nodes: None,
            processes: Some(Amount::Unlimited),
        };
        let files = files(&limits);
        let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
        let expected = [
            ("cpuset.cpus", "0-1"),
            ("cpu.max", "150000 100000"),
            ("cpu.weight", "39"),
            ("memory.max", "64"),
            ("memory.swap.max", "32"),
            ("pids.max", "max"),
        ];
        assert_eq!(files, expected);
    }

    #[test]
    fn swap_is_what_is_left_of_both() {
        for (memory, both, expected) in [
            (Some(64), None, Some(Amount::AtMost(64))),
            (Some(64), Some(Amount::AtMost(64)), Some(Amount::AtMost(0))),
            (Some(64), Some(Amount::Unlimited), Some(Amount::Unlimited)),
            (None, None, None),
        ] {
            assert_eq!(swap(memory, both), expected, "{memory:?} {both:?}");
        }
    }

    #[test]
    fn shares_are_weights() {
        for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected);
        }
    }

    #[test]
    fn what_nobody_holds_is_a_stray() {
        let parent = tempfile::tempdir().expect("a directory");
        let at = |name: &str| parent.path().join(name);
        for name in ["layerwright-1-0", "layerwright-2-0", "other"] {
            fs::create_dir(at(name)).expect("made");
        }
        let held = lock(&at("layerwright-2-0")).expect("locked");
        remove_strays(parent.path());
        assert_eq!(
            [at("layerwright-1-0"), at("layerwright-2-0"), at("other")].map(|at| at.exists()),
            [false, true, true]
        );
        drop(held);
        // What the thread of another test has just begun holds it, too, until it is another program.
        let deadline = Instant::now() + 10 * PATIENCE;
        while at("layerwright-2-0").exists() && Instant::now() < deadline {
            remove_strays(parent.path());
            std::thread::yield_now();
        }
        assert!(!at("layerwright-2-0").exists());
    }

    #[test]
    fn a_name_that_is_taken_leads_to_the_next() {
        let parent = tempfile::tempdir().expect("a directory");
        let (first, _lock) = new_directory(parent.path()).expect("made");
        let (second, _lock) = new_directory(parent.path()).expect("made");
        assert_ne!(first, second);
    }
}

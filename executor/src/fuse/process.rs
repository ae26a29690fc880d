//! The process that serves a merged file system.

use std::{fmt, fs::File, os::unix::fs::FileExt, process::Child};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid},
};

/// How long it may take to end once its file system is gone; it takes milliseconds, unless a disk keeps it.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// What libfuse says, and ends with 1, where its file system goes while it takes a request from the kernel (`fuse_dev_do_read`,
/// `ECONNABORTED`): mostly that a file was closed, for which nobody waits. A moment later it would have heard `ENODEV` and ended
/// with 0.
const ABORTED: &str = "reading device: Software caused connection abort";

/// What is kept of what it says.
const WORDS_MAX: usize = 4 << 10;

/// The process. Dropped, it is ended.
#[derive(Debug)]
pub struct Merger {
    /// Until it has been waited for.
    process: Option<Pid>,
    words: File,
}

/// One that has ended otherwise than it should, with its last words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    how: String,
    said: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fuse-overlayfs, which merges the layers here, {}", self.how)?;
        if self.said.is_empty() { Ok(()) } else { write!(f, ": {}", self.said) }
    }
}

impl std::error::Error for Ended {}

impl Merger {
    pub(super) fn new(child: &Child, words: File) -> Self {
        Self { process: i32::try_from(child.id()).ok().and_then(Pid::from_raw), words }
    }

    /// Its number, until it has ended.
    pub fn process(&self) -> Option<Pid> {
        self.process
    }

    /// Takes note that it has been waited for.
    ///
    /// # Errors
    /// It has ended otherwise than with its file system.
    pub fn was_waited_for(&mut self, status: WaitStatus) -> Result<(), Ended> {
        self.process = None;
        let said = self.said();
        let how = match (status.terminating_signal(), status.exit_status()) {
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, Some(0)) => return Ok(()),
            (None, Some(1)) if said.ends_with(ABORTED) => return Ok(()),
            (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
        };
        Err(Ended { how, said })
    }

    /// Leaves it to the parent, in a child.
    pub fn disown(mut self) {
        self.process = None;
    }

    /// Waits for its end, when its file system is gone.
    ///
    /// # Errors
    /// It does not end, or has ended for another reason: then what was written may not all be there.
    pub fn end(mut self) -> Result<(), Ended> {
        let Some(process) = self.process else { return Ok(()) };
        let ended = |how: String, said: String| Ended { how, said };
        match has_ended(process) {
            Ok(true) => {}
            Ok(false) => return Err(ended("does not end".to_owned(), self.said())),
            Err(errno) => return Err(ended(format!("cannot be waited for: {errno}"), self.said())),
        }
        match retry_on_intr(|| waitpid(Some(process), WaitOptions::empty())) {
            Ok(Some((_, status))) => self.was_waited_for(status),
            Ok(None) => Ok(()),
            Err(errno) => Err(ended(format!("cannot be waited for: {errno}"), self.said())),
        }
    }

    /// Ends it, and gives its last words.
    pub fn end_at_once(mut self) -> String {
        self.kill();
        self.said()
    }

    /// The last of what it has said, without what it says each time.
    fn said(&self) -> String {
        let length = self.words.metadata().map_or(0, |words| words.len());
        let mut text = vec![0; WORDS_MAX];
        let read = self.words.read_at(&mut text, length.saturating_sub(WORDS_MAX as u64)).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..read]).into_owned();
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("unknown argument ignored"));
        lines.collect::<Vec<_>>().join("; ")
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            // Both fail when it has been waited for.
            let _ = kill_process(process, Signal::KILL);
            let _ = retry_on_intr(|| waitpid(Some(process), WaitOptions::empty()));
        }
    }
}

fn has_ended(process: Pid) -> Result<bool, Errno> {
    let descriptor = pidfd_open(process, PidfdFlags::empty())?;
    let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut fds, Some(&PATIENCE)))? > 0)
}

impl Drop for Merger {
    fn drop(&mut self) {
        self.kill();
    }
}

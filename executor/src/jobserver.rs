//! Jobs that GNU make hands out: how many commands run at the same time in all that one `make -jN` has started.
//!
//! make has a pipe with a byte for every job that nobody has. Whoever is started by make has one job, and takes a byte for each
//! further one, which it must give back (GNU make manual, "Sharing Job Slots with GNU make"). A RUN step is a job here; what
//! else a build does is as much a part of the job it has as what a compiler does beside compiling.
//!
//! `MAKEFLAGS` says where the pipe is: two descriptors, which make leaves open only for recipes that begin with `+`, or the
//! name of a FIFO. Descriptors are opened anew by `/proc/self/fd`, so that nothing that others wait for is changed, and a
//! number that means something else here by now is not taken for a pipe of make.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags, fstat},
};
use solver::Cancel;

use crate::{lock::Told, snapshot::Events};

/// How long is waited for a byte before somebody looks whether the build goes on, or our own job is free.
const PAUSE: Duration = Duration::from_millis(20);
/// What takes longer is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is told then.
const WAITING: &str = "waiting for one of make's jobs";

/// make's pipe.
#[derive(Debug)]
pub struct JobServer {
    /// Never blocks.
    read: File,
    write: File,
    /// Whether the job that we were started with is free.
    own: Mutex<bool>,
}

/// A job, until this is dropped.
#[derive(Debug)]
pub struct Job<'a> {
    server: &'a JobServer,
    /// The byte that was taken for it; the one we were started with has none.
    byte: Option<u8>,
}

impl JobServer {
    /// The one that `MAKEFLAGS` names; none where it names none, or make has kept it from us.
    pub fn named_by(makeflags: &str) -> Option<Self> {
        let (read, write) = place(makeflags)?;
        let open = |path: &Path, flags| {
            let file =
                rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).ok()?;
            let is_pipe = FileType::from_raw_mode(fstat(&file).ok()?.st_mode) == FileType::Fifo;
            is_pipe.then(|| File::from(file))
        };
        let read = open(&read, OFlags::RDONLY | OFlags::NONBLOCK)?;
        // There is a reader now, so this does not block.
        let write = open(&write, OFlags::WRONLY)?;
        Some(Self { read, write, own: Mutex::new(true) })
    }

    /// Waits for a job; `None` when the build is to stop.
    pub(crate) fn job(&self, events: &Events, cancel: &Cancel) -> Option<Job<'_>> {
        let mut told = None;
        let since = Instant::now();
        loop {
            if let Some(byte) = self.try_take() {
                return Some(Job { server: self, byte });
            }
            if cancel.is_requested() {
                return None;
            }
            if told.is_none() && since.elapsed() >= PATIENCE {
                told = Some(Told::new(events, WAITING.to_owned()));
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.as_nanos() as i64 };
            // Whatever it says, the next round finds out.
            let _ = poll(&mut [PollFd::new(&self.read, PollFlags::IN)], Some(&pause));
        }
    }

    /// Our own job first. Where make is gone there is nobody to share with.
    fn try_take(&self) -> Option<Option<u8>> {
        let mut own = self.own();
        if std::mem::take(&mut *own) {
            return Some(None);
        }
        drop(own);
        let mut byte = [0];
        match (&self.read).read(&mut byte) {
            Ok(1) => Some(Some(byte[0])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Ok(_) | Err(_) => Some(None),
        }
    }

    fn own(&self) -> MutexGuard<'_, bool> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        match self.byte {
            // make would count a byte that is lost as a job that never ends; there is nobody to tell.
            Some(byte) => drop((&self.server.write).write_all(&[byte])),
            None => *self.server.own() = true,
        }
    }
}

/// Where to read and where to write; the last that is said counts, and nothing behind `--`, which are variables.
fn place(makeflags: &str) -> Option<(PathBuf, PathBuf)> {
    let words = makeflags.split_whitespace().take_while(|word| *word != "--");
    let named = words.filter_map(|word| {
        word.strip_prefix("--jobserver-auth=").or_else(|| word.strip_prefix("--jobserver-fds="))
    });
    let auth = named.last()?;
    if let Some(path) = auth.strip_prefix("fifo:") {
        return Some((path.into(), path.into()));
    }
    let (read, write) = auth.split_once(',')?;
    let descriptor =
        |number: &str| number.parse::<u32>().ok().map(|number| format!("/proc/self/fd/{number}").into());
    Some((descriptor(read)?, descriptor(write)?))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        os::fd::AsRawFd,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    fn nobody() -> Events {
        Arc::new(drop)
    }

    #[test]
    fn makeflags_say_where_the_pipe_is() {
        let fds = |read: &str, write: &str| {
            let path = |number: &str| PathBuf::from(format!("/proc/self/fd/{number}"));
            Some((path(read), path(write)))
        };
        for (makeflags, expected) in [
            (" -j4 --jobserver-auth=3,4", fds("3", "4")),
            ("rR -j --jobserver-fds=5,6 -- A=--jobserver-auth=7,8", fds("5", "6")),
            ("--jobserver-auth=3,4 --jobserver-auth=8,9", fds("8", "9")),
            ("-j2 --jobserver-auth=fifo:/tmp/x", Some(("/tmp/x".into(), "/tmp/x".into()))),
            ("-j2 --jobserver-auth=-2,-2", None),
            ("-j2 --jobserver-auth=3", None),
            ("k", None),
            ("", None),
        ] {
            assert_eq!(place(makeflags), expected, "{makeflags}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_pipe_is_none_of_makes() {
        let file = tempfile::tempfile().expect("a file");
        let number = file.as_raw_fd();
        assert!(JobServer::named_by(&format!("--jobserver-auth={number},{number}")).is_none());
        assert!(JobServer::named_by("--jobserver-auth=fifo:/nowhere").is_none());
    }

    #[test]
    fn no_more_jobs_than_there_are_bytes_and_all_come_back() {
        let (read, write) = io::pipe().expect("a pipe");
        (&write).write_all(b"+-").expect("room");
        let flags = format!("-j3 --jobserver-auth={},{}", read.as_raw_fd(), write.as_raw_fd());
        let server = JobServer::named_by(&flags).expect("a pipe");
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let job = server.job(&nobody(), &Cancel::default()).expect("not stopped");
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        drop(job);
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        drop((server, write));
        let mut left = Vec::new();
        (&read).read_to_end(&mut left).expect("two bytes");
        left.sort_unstable();
        assert_eq!(left, b"+-");
    }

    #[test]
    fn a_wait_ends_with_the_build_and_without_make_nobody_waits() {
        let (read, write) = io::pipe().expect("a pipe");
        let flags = format!("--jobserver-auth={},{}", read.as_raw_fd(), write.as_raw_fd());
        let server = JobServer::named_by(&flags).expect("a pipe");
        let own = server.job(&nobody(), &Cancel::default()).expect("our own");
        let cancel = Cancel::default();
        cancel.request();
        assert!(server.job(&nobody(), &cancel).is_none());
        drop(own);
        assert!(server.job(&nobody(), &cancel).is_some());
    }
}

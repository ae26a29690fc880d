//! Ctrl-C, SIGTERM and the SIGHUP of a terminal that is gone: the first asks the build to stop, so that steps can end and the
//! store stays clean; the second ends the process at once.

use std::{
    fmt,
    io::{self, PipeReader, Write},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::Signals,
};
use solver::{Cancel, Event};

use crate::{build::Events, terminal};

/// What a command that we run for somebody gets from us.
pub const PASSED_ON: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];
/// What a terminal that we have given away says to us.
pub const OF_THE_TERMINAL: &[i32] = &[SIGWINCH];

/// Watches for signals on a thread of its own, and gives their numbers, a byte each, to whoever reads what is returned.
///
/// # Errors
/// The handlers cannot be set, or the thread cannot be started.
pub fn relay(numbers: &[i32], note: impl Fn(i32) + Send + 'static) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    let mut signals = Signals::new(heard(numbers))?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for number in &mut signals {
            note(number);
            // Nobody reads any more where this fails.
            let _ = writer.write_all(&u8::try_from(number).map_or([0], |byte| [byte]));
        }
    })?;
    Ok(reader)
}

/// These, but for SIGHUP where whoever started us has it ignored, as nohup(1) does: then we go on without a terminal.
fn heard(numbers: &[i32]) -> impl Iterator<Item = i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let goes_on = ignored & (1 << (SIGHUP - 1)) != 0;
    numbers.iter().copied().filter(move |number| *number != SIGHUP || !goes_on)
}

/// A signal that stops a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The terminal is gone.
    Hangup,
    /// Ctrl-C.
    Interrupt,
    /// What `kill` and CI systems send.
    Terminate,
}

impl Signal {
    /// The one of this number.
    pub fn of(number: i32) -> Option<Self> {
        match number {
            SIGHUP => Some(Self::Hangup),
            SIGINT => Some(Self::Interrupt),
            SIGTERM => Some(Self::Terminate),
            _ => None,
        }
    }

    /// 128 and the signal's number, as shells count.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// File too large (signal(7)); signal-hook has no name for it.
const SIGXFSZ: i32 = 25;

/// Makes a write beyond RLIMIT_FSIZE an error of that write, which has a path to tell, and not the end of the process.
/// What is executed later has the default again.
pub fn survive_file_size_limit() {
    // Where this fails, the limit ends us as it would have.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// What is told of the first signal where steps may run.
pub const STEPS_END: &str = "stopping: steps get 10 seconds to end; a second signal ends everything at once";
/// What is told of it where nothing runs that would have to end.
pub const STOPPING: &str = "stopping; a second signal ends everything at once";

/// Remembers the first signal.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    first: Arc<AtomicI32>,
}

impl Watch {
    /// Starts to watch, on a thread of its own. `events` is told so when the build has been asked to stop.
    ///
    /// # Errors
    /// The handlers cannot be set, or the thread cannot be started.
    pub fn start(cancel: Arc<Cancel>, events: Events, told: &'static str) -> io::Result<Self> {
        let mut signals = Signals::new(heard(&[SIGHUP, SIGINT, SIGTERM]))?;
        let watch = Self::default();
        let first = Arc::clone(&watch.first);
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in &mut signals {
                if first.swap(number, Ordering::SeqCst) != 0 {
                    end_at_once(number);
                }
                cancel.request();
                events(Event::Warning(told.to_owned()));
            }
        })?;
        Ok(watch)
    }

    /// Takes a signal that somebody else has heard; whether it is one that stops us. The second ends the process at once.
    pub fn note(&self, number: i32) -> bool {
        if Signal::of(number).is_none() {
            return false;
        }
        if self.first.swap(number, Ordering::SeqCst) != 0 {
            end_at_once(number);
        }
        true
    }

    /// The signal that stopped the build, if one has.
    pub fn received(&self) -> Option<Signal> {
        Signal::of(self.first.load(Ordering::SeqCst))
    }
}

/// The sandbox's processes end with this one, so nothing is left behind but temporaries, which the next run sweeps.
fn end_at_once(number: i32) -> ! {
    terminal::restore();
    std::process::exit(Signal::of(number).map_or(1, |signal| signal.exit_code().into()))
}

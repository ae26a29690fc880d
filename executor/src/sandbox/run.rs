//! The builder's side of a run: starts the init, sends the plan, reads what the command says until it has ended.

mod attach;
mod init;
mod program;
mod spare;
mod watch;

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{ioctl_fionread, retry_on_intr},
};
use solver::{Cancel, Stream};

use self::init::{DRAIN, Ending, Init};
use crate::sandbox::{
    SandboxError, SandboxPlan,
    lines::Lines,
    wire::{Call, INIT_ARGUMENT, Report},
};
pub use attach::{Attachment, attach};
pub use spare::Spares;
pub use watch::Excess;
use watch::Watch;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It could not be executed: 127 where it was not found, 126 where it was; the message is for people.
    NotExecuted {
        /// What a shell would return.
        code: i32,
        /// `exec: "foo": not found in PATH`
        message: String,
    },
    /// The kernel ended a process of it that wanted more memory than the step may have, and it then ended with this code.
    OutOfMemory {
        /// What a shell would return.
        code: i32,
    },
    /// It took longer than it may and was ended.
    TimedOut {
        /// How long it might have taken.
        limit: Duration,
    },
    /// It has written more than it may, and was ended if it had not ended by then.
    TookTooMuchRoom(Excess),
}

impl Exit {
    /// What a shell would return, and timeout(1) of what took too long; of what wrote too much, what SIGXFSZ would have made.
    pub fn code(&self) -> i32 {
        match self {
            Exit::Code(code) | Exit::NotExecuted { code, .. } | Exit::OutOfMemory { code } => *code,
            Exit::Signal(signal) => 128 + signal,
            Exit::TimedOut { .. } => 124,
            Exit::TookTooMuchRoom(_) => 128 + libc::SIGXFSZ,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code: {code}"),
            // What our system call filter does to them.
            Exit::Signal(signal @ libc::SIGSYS) => {
                write!(
                    f,
                    "killed by signal {signal}: programs of a foreign instruction set, as 32-bit ones, cannot run"
                )
            }
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::NotExecuted { message, .. } => f.write_str(message),
            // BuildKit's words.
            Exit::OutOfMemory { code } => write!(f, "exit code: {code}: cannot allocate memory"),
            Exit::TimedOut { limit } => write!(f, "it took longer than {limit:?}"),
            Exit::TookTooMuchRoom(Excess { limit, written, most }) => {
                write!(f, "it has written {written} bytes, and may write {limit}")?;
                match most {
                    Some((path, bytes)) => write!(f, "; the most is in {path} ({bytes} bytes)"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// How often the wish to cancel is looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Whether this process was started as the init of a sandbox; if so, `main` calls [`super::init_main`] at once.
pub fn is_init_call() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == INIT_ARGUMENT)
}

/// Runs a command to its end. `log` takes its output line by line (without the line end; at most 64 KiB, the rest of a
/// longer line comes as the next one) and holds the command back while it blocks. When `cancel` asks, or its time is up, the
/// command gets SIGTERM, ten seconds, and SIGKILL; when it has written too much, SIGKILL at once. When this returns no process
/// of the step is left.
///
/// # Errors
/// The sandbox could not be set up, or the build was cancelled.
pub fn run(
    plan: &SandboxPlan,
    log: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<Exit, SandboxError> {
    let watch = Watch::begin(plan)?;
    let init = Init::start(&Call::Run(Box::new(plan.clone())), None)?;
    see_through(init, Wish::new(plan, cancel, watch), log)
}

/// From the call of an init to its end.
fn see_through(
    mut init: Init,
    wish: Wish<'_>,
    log: &(dyn Fn(Stream, &[u8]) + Sync),
) -> Result<Exit, SandboxError> {
    let heeded = follow(&mut init, log, &wish).map_err(|error| SandboxError::io("read output", &error))?;
    let (reports, status) = init.finish()?;
    wish.settle(heeded, || verdict(reports, &status))
}

/// What can end a command before it does so itself.
struct Wish<'a> {
    cancel: &'a Cancel,
    /// How long it may take, and when that is over.
    deadline: Option<(Duration, Instant)>,
    /// Who looks how much it writes.
    watch: Option<Watch>,
}

/// Why a command was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Cancelled,
    TimedOut(Duration),
    TookTooMuchRoom(Excess),
}

impl End {
    /// Whether the command has no time to end by itself: it would write on.
    fn is_urgent(&self) -> bool {
        matches!(self, Self::TookTooMuchRoom(_))
    }
}

impl<'a> Wish<'a> {
    /// Of a step that begins now. `watch` has begun before it.
    fn new(plan: &SandboxPlan, cancel: &'a Cancel, watch: Option<Watch>) -> Self {
        Self { cancel, deadline: plan.limits.time.map(|limit| (limit, Instant::now() + limit)), watch }
    }

    fn end(&self) -> Option<End> {
        if self.cancel.is_requested() {
            return Some(End::Cancelled);
        }
        let excess = self.watch.as_ref().and_then(Watch::excess).map(End::TookTooMuchRoom);
        let late = self.deadline.filter(|(_, at)| Instant::now() >= *at);
        excess.or(late.map(|(limit, _)| End::TimedOut(limit)))
    }

    /// What became of a step of which no process is left. One that says that all is well may still have written too much: that
    /// is measured now, and nothing can come after it.
    fn settle(
        self,
        end: Option<End>,
        verdict: impl FnOnce() -> Result<Exit, SandboxError>,
    ) -> Result<Exit, SandboxError> {
        match end {
            Some(End::Cancelled) => Err(SandboxError::Cancelled),
            Some(End::TimedOut(limit)) => Ok(Exit::TimedOut { limit }),
            Some(End::TookTooMuchRoom(excess)) => Ok(Exit::TookTooMuchRoom(excess)),
            None => match (verdict()?, self.watch) {
                (Exit::Code(0), Some(watch)) => Ok(watch.end()?.map_or(Exit::Code(0), Exit::TookTooMuchRoom)),
                (exit, _) => Ok(exit),
            },
        }
    }
}

/// Asks an init that only answers, and waits for its reports.
pub(super) fn ask(call: &Call) -> Result<Vec<Report>, SandboxError> {
    let mut init = Init::start(call, None)?;
    let wish = Wish { cancel: &Cancel::default(), deadline: None, watch: None };
    follow(&mut init, &|_, _| {}, &wish).map_err(|error| SandboxError::io("read output", &error))?;
    let (reports, status) = init.finish()?;
    if reports.is_empty() { Err(SandboxError::InitDied(status)) } else { Ok(reports) }
}

/// What the reports say together: a failed step outranks a command that could not be executed, and that the exit of
/// the process that tried.
fn verdict(reports: Vec<Report>, status: &str) -> Result<Exit, SandboxError> {
    let (mut exit, mut was_out_of_memory) = (None, false);
    for report in reports {
        match report {
            Report::Failed { step, message, errno, hint } => {
                return Err(SandboxError::reported(&step, message, errno, hint));
            }
            Report::NoPlace { step, message } => return Err(SandboxError::NoPlace { step, message }),
            Report::NotExecuted { code, message } => exit = Some(Exit::NotExecuted { code, message }),
            Report::Code(code) => exit = exit.or(Some(Exit::Code(code))),
            Report::Signal(signal) => exit = exit.or(Some(Exit::Signal(signal))),
            Report::OutOfMemory => was_out_of_memory = true,
            Report::Begun | Report::Entered(..) | Report::Probes(_) => {}
        }
    }
    let exit = exit.ok_or_else(|| SandboxError::InitDied(status.to_owned()))?;
    match exit.code() {
        code if was_out_of_memory && code != 0 => Ok(Exit::OutOfMemory { code }),
        _ => Ok(exit),
    }
}

/// One output of the command.
struct Output {
    stream: Stream,
    pipe: OwnedFd,
    lines: Lines,
}

/// Reads reports and output until the init has ended; says why, if that was not by itself.
fn follow(init: &mut Init, log: &(dyn Fn(Stream, &[u8]) + Sync), wish: &Wish<'_>) -> io::Result<Option<End>> {
    let output = |(stream, pipe)| Output { stream, pipe, lines: Lines::default() };
    let mut outputs: Vec<Output> = init.outputs().map(output).collect();
    let (mut ending, mut end) = (Ending::NotAsked, None);
    let mut drained_by = None;
    loop {
        if end.is_none() && drained_by.is_none() {
            end = wish.end();
        }
        if end.as_ref().is_some_and(End::is_urgent) {
            ending = init.insist(ending);
        }
        ending = init.press(ending, end.is_some())?;
        if drained_by.is_some_and(|deadline| Instant::now() >= deadline || outputs.is_empty()) {
            break;
        }
        let ready = wait(init, &outputs, drained_by.is_none())?;
        let mut ended = Vec::new();
        for index in ready.outputs {
            if !outputs[index].read(log)? {
                ended.push(index);
            }
        }
        for index in ended.into_iter().rev() {
            outputs.remove(index).finish(log);
        }
        if ready.control && !init.receive()? {
            for output in &mut outputs {
                output.read_what_is_there(log)?;
            }
            drained_by = Some(Instant::now() + DRAIN);
        }
    }
    for output in outputs.drain(..) {
        output.finish(log);
    }
    Ok(end)
}

fn wait(init: &Init, outputs: &[Output], with_control: bool) -> io::Result<Ready> {
    let mut fds: Vec<PollFd<'_>> =
        outputs.iter().map(|output| PollFd::new(&output.pipe, PollFlags::IN)).collect();
    if with_control {
        fds.push(PollFd::new(init, PollFlags::IN));
    }
    retry_on_intr(|| poll(&mut fds, Some(&TICK)))?;
    let is_ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready {
        outputs: (0..outputs.len()).filter(|index| is_ready(fds.get(*index))).collect(),
        control: with_control && is_ready(fds.last()),
    })
}

struct Ready {
    outputs: Vec<usize>,
    control: bool,
}

impl Output {
    /// Reads what is there; `false` at the end.
    fn read(&mut self, log: &(dyn Fn(Stream, &[u8]) + Sync)) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        let length = retry_on_intr(|| rustix::io::read(self.pipe.as_fd(), &mut buffer))?;
        self.lines.feed(&buffer[..length], |line| log(self.stream, line));
        Ok(length > 0)
    }

    /// Reads what the pipe holds, however long the log takes for it. Nobody of the step writes any more, so this is all that
    /// it has said; what comes later is somebody else's.
    fn read_what_is_there(&mut self, log: &(dyn Fn(Stream, &[u8]) + Sync)) -> io::Result<()> {
        let held = usize::try_from(ioctl_fionread(&self.pipe)?).unwrap_or(usize::MAX);
        let mut piece = vec![0; held.min(64 << 10)];
        let mut left = held;
        while left > 0 {
            let most = left.min(piece.len());
            let length = retry_on_intr(|| rustix::io::read(&self.pipe, &mut piece[..most]))?;
            if length == 0 {
                break;
            }
            self.lines.feed(&piece[..length], |line| log(self.stream, line));
            left -= length;
        }
        Ok(())
    }

    fn finish(mut self, log: &(dyn Fn(Stream, &[u8]) + Sync)) {
        self.lines.finish(|line| log(self.stream, line));
    }
}

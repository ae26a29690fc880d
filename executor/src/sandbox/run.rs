//! The builder's side of a run: starts the init, sends the plan, reads what the command says until it has ended.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::{Errno, retry_on_intr},
};
use solver::{Cancel, Stream};

use crate::sandbox::{
    SandboxError, SandboxPlan,
    lines::Lines,
    wire::{self, Call, INIT_ARGUMENT, Order, Report},
};

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
}

impl Exit {
    /// What a shell would return, and timeout(1) of what took too long.
    pub fn code(&self) -> i32 {
        match self {
            Exit::Code(code) | Exit::NotExecuted { code, .. } | Exit::OutOfMemory { code } => *code,
            Exit::Signal(signal) => 128 + signal,
            Exit::TimedOut { .. } => 124,
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
        }
    }
}

/// A resolver configuration of more than this is none.
const RESOLV_CONF_MAX: u64 = 1 << 20;

/// How long a command has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// How long output may take to arrive after the last process has ended, and the inits to end after they were told.
const DRAIN: Duration = Duration::from_secs(2);

/// How often, and how far apart, it is tried to seal the copy of our own program.
const SEAL_ATTEMPTS: u32 = 200;
const SEAL_PAUSE: Duration = Duration::from_millis(10);

/// How often the wish to cancel is looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Whether this process was started as the init of a sandbox; if so, `main` calls [`super::init_main`] at once.
pub fn is_init_call() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == INIT_ARGUMENT)
}

/// The resolver configuration a step gets when it shares the builder's network: the builder's own as it is, since a
/// stub resolver on loopback can be reached there. Nothing where the builder has none: a public resolver is never
/// invented.
pub fn resolv_conf() -> String {
    let mut text = String::new();
    let read =
        File::open("/etc/resolv.conf").and_then(|file| file.take(RESOLV_CONF_MAX).read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

/// Runs a command to its end. `log` takes its output line by line (without the line end; at most 64 KiB, the rest of a
/// longer line comes as the next one) and holds the command back while it blocks. When `cancel` asks, or its time is up, the
/// command gets SIGTERM, ten seconds, and SIGKILL. When this returns no process of the step is left.
///
/// # Errors
/// The sandbox could not be set up, or the build was cancelled.
pub fn run(
    plan: &SandboxPlan,
    log: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<Exit, SandboxError> {
    let mut init = Init::start(&Call::Run(Box::new(plan.clone())))?;
    let wish = Wish { cancel, deadline: plan.limits.time.map(|limit| (limit, Instant::now() + limit)) };
    let heeded = init.follow(log, &wish).map_err(|error| SandboxError::io("read output", &error))?;
    let (reports, status) = init.finish()?;
    match heeded {
        Some(End::Cancelled) => Err(SandboxError::Cancelled),
        Some(End::TimedOut(limit)) => Ok(Exit::TimedOut { limit }),
        None => verdict(reports, &status),
    }
}

/// What can end a command before it does so itself.
struct Wish<'a> {
    cancel: &'a Cancel,
    /// How long it may take, and when that is over.
    deadline: Option<(Duration, Instant)>,
}

/// Why a command was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Cancelled,
    TimedOut(Duration),
}

impl Wish<'_> {
    fn end(&self) -> Option<End> {
        if self.cancel.is_requested() {
            return Some(End::Cancelled);
        }
        self.deadline.filter(|(_, at)| Instant::now() >= *at).map(|(limit, _)| End::TimedOut(limit))
    }
}

/// Asks an init that only answers, and waits for its reports.
pub(super) fn ask(call: &Call) -> Result<Vec<Report>, SandboxError> {
    let mut init = Init::start(call)?;
    let wish = Wish { cancel: &Cancel::default(), deadline: None };
    init.follow(&|_, _| {}, &wish).map_err(|error| SandboxError::io("read output", &error))?;
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
            Report::NotExecuted { code, message } => exit = Some(Exit::NotExecuted { code, message }),
            Report::Code(code) => exit = exit.or(Some(Exit::Code(code))),
            Report::Signal(signal) => exit = exit.or(Some(Exit::Signal(signal))),
            Report::OutOfMemory => was_out_of_memory = true,
            Report::Entered(..) | Report::Probes(_) => {}
        }
    }
    let exit = exit.ok_or_else(|| SandboxError::InitDied(status.to_owned()))?;
    match exit.code() {
        code if was_out_of_memory && code != 0 => Ok(Exit::OutOfMemory { code }),
        _ => Ok(exit),
    }
}

/// A running init. Dropped early, it and everything below it is killed.
struct Init {
    process: Child,
    control: UnixStream,
    outputs: Vec<Output>,
    received: Vec<u8>,
}

/// One output of the command.
struct Output {
    stream: Stream,
    pipe: OwnedFd,
    lines: Lines,
}

impl Init {
    fn start(call: &Call) -> Result<Self, SandboxError> {
        let failed = |error: io::Error| SandboxError::io("start init", &error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let program = sealed_program()?;
        let mut process = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("layerwright")
            .arg(INIT_ARGUMENT)
            .env_clear()
            .current_dir("/")
            // Out of the terminal's foreground: a Ctrl-C is for the builder, which then asks nicely.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut outputs = Vec::new();
        let pipes = (process.stdout.take().map(OwnedFd::from), process.stderr.take().map(OwnedFd::from));
        for (stream, pipe) in [(Stream::Stdout, pipes.0), (Stream::Stderr, pipes.1)] {
            outputs.extend(pipe.map(|pipe| Output { stream, pipe, lines: Lines::default() }));
        }
        let init = Self { process, control: ours, outputs, received: Vec::new() };
        match wire::send_call(&init.control, call) {
            // It has ended already; what it said before is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(init),
            sent => sent.map(|()| init).map_err(failed),
        }
    }

    /// Reads reports and output until the init has ended; says why, if that was not by itself.
    fn follow(&mut self, log: &(dyn Fn(Stream, &[u8]) + Sync), wish: &Wish<'_>) -> io::Result<Option<End>> {
        let (mut ending, mut end) = (Ending::NotAsked, None);
        let mut drained_by = None;
        loop {
            if end.is_none() && drained_by.is_none() {
                end = wish.end();
            }
            ending = self.press(ending, end.is_some())?;
            if drained_by.is_some_and(|deadline| Instant::now() >= deadline || self.outputs.is_empty()) {
                break;
            }
            let ready = self.wait(drained_by.is_none())?;
            let mut ended = Vec::new();
            for index in ready.outputs {
                if !self.outputs[index].read(log)? {
                    ended.push(index);
                }
            }
            for index in ended.into_iter().rev() {
                self.outputs.remove(index).finish(log);
            }
            if ready.control && !self.receive()? {
                drained_by = Some(Instant::now() + DRAIN);
            }
        }
        for output in self.outputs.drain(..) {
            output.finish(log);
        }
        Ok(end)
    }

    /// Asks the step to end when it is time to, ever less politely.
    fn press(&mut self, ending: Ending, is_wanted: bool) -> io::Result<Ending> {
        let now = Instant::now();
        let order = |order: Order| {
            // Fails only when there is nobody left to take it.
            let _ = (&self.control).write_all(&[order.byte()]);
        };
        Ok(match ending {
            Ending::NotAsked if is_wanted => {
                order(Order::Terminate);
                Ending::Asked { until: now + GRACE }
            }
            Ending::Asked { until } if now >= until => {
                order(Order::Kill);
                Ending::Told { until: now + DRAIN }
            }
            Ending::Told { until } if now >= until => {
                self.process.kill()?;
                Ending::Killed
            }
            unchanged => unchanged,
        })
    }

    fn wait(&self, with_control: bool) -> io::Result<Ready> {
        let mut fds: Vec<PollFd<'_>> =
            self.outputs.iter().map(|output| PollFd::new(&output.pipe, PollFlags::IN)).collect();
        if with_control {
            fds.push(PollFd::new(&self.control, PollFlags::IN));
        }
        retry_on_intr(|| poll(&mut fds, Some(&TICK)))?;
        let is_ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            outputs: (0..self.outputs.len()).filter(|index| is_ready(fds.get(*index))).collect(),
            control: with_control && is_ready(fds.last()),
        })
    }

    /// Takes what the init says; `false` at its end.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        match self.control.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.received.extend_from_slice(&buffer[..length]);
                Ok(true)
            }
            // It ended before it had read the plan.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn finish(mut self) -> Result<(Vec<Report>, String), SandboxError> {
        let status = self.process.wait().map_err(|error| SandboxError::io("wait for init", &error))?;
        let received = std::mem::take(&mut self.received);
        let reports =
            wire::parse_reports(&received).map_err(|error| SandboxError::io("read reports", &error))?;
        Ok((reports, status.to_string()))
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // Both do nothing when it has been waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How far a step has been asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    NotAsked,
    Asked { until: Instant },
    Told { until: Instant },
    Killed,
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

    fn finish(mut self, log: &(dyn Fn(Stream, &[u8]) + Sync)) {
        self.lines.finish(|line| log(self.stream, line));
    }
}

/// Our own program, copied into memory that nobody can write. An init runs inside of a container for a moment, and
/// what runs there can be made to hand out its own file, open, to the image (CVE-2019-5736): it gets the copy.
fn sealed_program() -> Result<&'static File, SandboxError> {
    static PROGRAM: OnceLock<File> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let copied = copy_program().map_err(|error| SandboxError::io("copy own program", &error))?;
    Ok(PROGRAM.get_or_init(|| copied))
}

fn copy_program() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 a machine can want to hear that it is meant to be executed; older ones do not know the word.
    let memory = memfd_create("layerwright", flags | MemfdFlags::EXEC).or_else(|errno| match errno {
        Errno::INVAL => memfd_create("layerwright", flags),
        errno => Err(errno),
    })?;
    let mut program = File::from(memory);
    io::copy(&mut File::open("/proc/self/exe")?, &mut program)?;
    seal(&program)?;
    Ok(program)
}

/// Makes memory unchangeable. While the kernel itself still holds one of its pages for a moment (another processor's
/// list of new pages, on a busy machine), it says EBUSY.
fn seal(memory: &File) -> Result<(), Errno> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    for _ in 0..SEAL_ATTEMPTS {
        match fcntl_add_seals(memory, seals) {
            Err(Errno::BUSY) => thread::sleep(SEAL_PAUSE),
            sealed => return sealed,
        }
    }
    fcntl_add_seals(memory, seals)
}

//! A running init, as the builder sees it.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use solver::Stream;

use super::program::sealed_program;
use crate::sandbox::{
    SandboxError,
    stdio::send_descriptor,
    wire::{self, Call, INIT_ARGUMENT, Order, Report},
};

/// How long a command has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// How long output may take to arrive after the last process has ended, and the inits to end after they were told.
pub const DRAIN: Duration = Duration::from_secs(2);

const START: &str = "start init";

/// A running init. Dropped early, it and everything below it is killed.
pub struct Init {
    process: Child,
    control: UnixStream,
    received: Vec<u8>,
}

/// What an init knows of our environment: nothing, unless it looks for other programs as we would, and then it is no step's.
fn environment(call: &Call) -> Option<(&'static str, OsString)> {
    match call {
        Call::Try(..) | Call::TryNetwork(..) | Call::TryPlatforms(..) => {
            std::env::var_os("PATH").map(|path| ("PATH", path))
        }
        Call::Run(_) => None,
    }
}

impl Init {
    /// Starts one and sends it its call, and what goes with that.
    pub fn start(call: &Call, handed: Option<BorrowedFd<'_>>) -> Result<Self, SandboxError> {
        Self::spawn(environment(call))?.call(call, handed)
    }

    /// Starts one that waits for the call of a step.
    pub fn spare() -> Result<Self, SandboxError> {
        Self::spawn(None)
    }

    fn spawn(environment: Option<(&'static str, OsString)>) -> Result<Self, SandboxError> {
        let failed = |error: io::Error| SandboxError::io(START, &error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let program = sealed_program()?;
        let process = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("layerwright")
            .arg(INIT_ARGUMENT)
            .env_clear()
            .envs(environment)
            .current_dir("/")
            // Out of the terminal's foreground: a Ctrl-C is for the builder, which then asks nicely.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        Ok(Self { process, control: ours, received: Vec::new() })
    }

    /// Sends one that waits its call, and what goes with that.
    pub fn call(self, call: &Call, handed: Option<BorrowedFd<'_>>) -> Result<Self, SandboxError> {
        let sent = wire::send_call(&self.control, call).and_then(|()| match handed {
            Some(handed) => Ok(send_descriptor(&self.control, handed)?),
            None => Ok(()),
        });
        match sent {
            // It has ended already; what it said before is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(self),
            sent => sent.map(|()| self).map_err(|error| SandboxError::io(START, &error)),
        }
    }

    /// Sends one that was started before anybody knew what for its call; nothing where it has ended meanwhile.
    pub fn call_spare(self, call: &Call) -> Option<Self> {
        wire::send_call(&self.control, call).is_ok().then_some(self)
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The other ends of the command's standard output and error. To be asked for once.
    pub fn outputs(&mut self) -> impl Iterator<Item = (Stream, OwnedFd)> + use<> {
        let stdout = self.process.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe)));
        let stderr = self.process.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe)));
        stdout.into_iter().chain(stderr)
    }

    /// Says what is wanted of the command.
    pub fn order(&self, order: Order) {
        // Fails only when there is nobody left to take it.
        let _ = (&self.control).write_all(&[order.byte()]);
    }

    /// Asks the step to end when it is time to, ever less politely.
    pub fn press(&mut self, ending: Ending, is_wanted: bool) -> io::Result<Ending> {
        let now = Instant::now();
        Ok(match ending {
            Ending::NotAsked if is_wanted => {
                self.order(Order::Terminate);
                Ending::Asked { until: now + GRACE }
            }
            Ending::Asked { until } if now >= until => self.insist(ending),
            Ending::Told { until } if now >= until => {
                self.process.kill()?;
                Ending::Killed
            }
            unchanged => unchanged,
        })
    }

    /// Ends the step at once; an init that does not obey is killed by [`Init::press`] soon.
    pub fn insist(&mut self, ending: Ending) -> Ending {
        match ending {
            Ending::NotAsked | Ending::Asked { .. } => {
                self.order(Order::Kill);
                Ending::Told { until: Instant::now() + DRAIN }
            }
            Ending::Told { .. } | Ending::Killed => ending,
        }
    }

    /// Takes what the init says; `false` at its end.
    pub fn receive(&mut self) -> io::Result<bool> {
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

    /// Whether it has said that the command is about to be executed.
    pub fn has_begun(&self) -> bool {
        let end = self.received.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        wire::parse_reports(&self.received[..end]).is_ok_and(|reports| reports.contains(&Report::Begun))
    }

    pub fn finish(mut self) -> Result<(Vec<Report>, String), SandboxError> {
        let status = self.process.wait().map_err(|error| SandboxError::io("wait for init", &error))?;
        let received = std::mem::take(&mut self.received);
        let reports =
            wire::parse_reports(&received).map_err(|error| SandboxError::io("read reports", &error))?;
        Ok((reports, status.to_string()))
    }
}

/// Becomes readable when the init has something to say.
impl AsFd for Init {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
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
pub enum Ending {
    NotAsked,
    Asked { until: Instant },
    Told { until: Instant },
    Killed,
}

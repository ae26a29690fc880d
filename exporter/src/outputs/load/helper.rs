//! The helper's side: waits for orders, runs programs, ends with the builder.

use std::{
    io::{self, IoSliceMut, PipeReader, Read, Write, pipe},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, retry_on_intr},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{ATTENTION, Loader, Report};

/// The first argument of a helper.
pub(super) const ARGUMENT: &str = "layerwright-load-helper";
/// The byte that asks to end what runs; every other one is the number of a loader.
pub(super) const STOP: u8 = u8::MAX;
/// How long a program may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);
/// So much of what a program says is kept.
const KEPT: usize = 8 * 1024;

/// Whether this process was started as a helper. The first thing that `main` asks.
pub fn is_helper_call() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT)
}

/// The life of a helper, until the builder is gone.
pub fn serve() -> ! {
    let told = std::env::args().nth(2);
    let loaders: Option<Vec<Loader>> = told.and_then(|told| serde_json::from_str(&told).ok());
    let control = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    if let (Some(loaders), Ok(mut control)) = (loaders, control) {
        // The builder sees the end of the socket, and tells.
        let _ = obey(&mut control, &loaders);
    }
    std::process::exit(0)
}

fn obey(control: &mut UnixStream, loaders: &[Loader]) -> io::Result<()> {
    while let Some(order) = receive(control)? {
        // What is to be stopped has ended already.
        let (Some(loader), Some(input)) = (loaders.get(usize::from(order.number)), order.input) else {
            continue;
        };
        let report = run(loader, input, control).unwrap_or_else(|error| Report {
            status: format!("cannot run {}: {error}", loader.program.display()),
            succeeded: false,
            output: String::new(),
        });
        let mut line = serde_json::to_vec(&report).expect("plain data with string keys");
        line.push(b'\n');
        control.write_all(&line)?;
    }
    Ok(())
}

/// What the builder wants.
struct Order {
    number: u8,
    input: Option<OwnedFd>,
}

/// The next order; `None` when the builder is gone.
fn receive(control: &UnixStream) -> io::Result<Option<Order>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut number = [0];
    let received = retry_on_intr(|| {
        recvmsg(control, &mut [IoSliceMut::new(&mut number)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let input = rights.flatten().next();
    Ok((received.bytes > 0).then_some(Order { number: number[0], input }))
}

fn run(loader: &Loader, input: OwnedFd, control: &UnixStream) -> io::Result<Report> {
    let (output, writer) = pipe()?;
    let mut command = Command::new(&loader.program);
    command.args(&loader.arguments).stdin(input).stdout(writer.try_clone()?).stderr(writer);
    let child = command.spawn()?;
    // It holds the other ends of the pipes.
    drop(command);
    let pid = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    Program { child, pid, output: Some(output), said: Vec::new() }.follow(control)
}

/// A program that runs.
struct Program {
    child: Child,
    pid: OwnedFd,
    /// What it says, until all who can have stopped to.
    output: Option<PipeReader>,
    said: Vec<u8>,
}

/// What a wait has brought.
struct Ready {
    ended: bool,
    spoken: bool,
    asked: bool,
}

impl Program {
    /// Reads what it says until it has ended; asks it to end when the builder says so or is gone.
    fn follow(mut self, control: &UnixStream) -> io::Result<Report> {
        let mut killed_at = None;
        loop {
            let obeyed = killed_at.is_none().then_some(control);
            let Ready { ended, spoken, asked } = self.wait(obeyed)?;
            if spoken {
                self.listen()?;
            }
            if ended {
                let status = self.child.wait()?;
                self.listen_to_the_rest()?;
                return Ok(report(status, &self.said));
            }
            if asked {
                killed_at = Some(Instant::now() + GRACE);
                self.signal(Signal::TERM);
            } else if killed_at.is_some_and(|time| Instant::now() >= time) {
                self.signal(Signal::KILL);
            }
        }
    }

    /// What there is to do. The order is read by nobody else: it asks for nothing when the program has ended.
    fn wait(&self, control: Option<&UnixStream>) -> io::Result<Ready> {
        let mut polled = vec![PollFd::new(&self.pid, PollFlags::IN)];
        polled.extend(self.output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
        polled.extend(control.map(|control| PollFd::new(control, PollFlags::IN)));
        match poll(&mut polled, Some(&ATTENTION)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        Ok(Ready {
            ended: ready.next() == Some(true),
            spoken: self.output.is_some() && ready.next() == Some(true),
            asked: control.is_some() && ready.next() == Some(true),
        })
    }

    /// What a program that has ended had still to say. What it has started may live on, hold the pipe and talk.
    fn listen_to_the_rest(&mut self) -> io::Result<()> {
        const PIPE: usize = 16;
        for _ in 0..PIPE {
            if !self.wait(None)?.spoken {
                break;
            }
            self.listen()?;
        }
        Ok(())
    }

    fn listen(&mut self) -> io::Result<()> {
        let Some(output) = &mut self.output else { return Ok(()) };
        let mut buffer = [0; 4096];
        let count = output.read(&mut buffer)?;
        if count == 0 {
            self.output = None;
        }
        self.said.extend(&buffer[..count]);
        let excess = self.said.len().saturating_sub(KEPT);
        self.said.drain(..excess);
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        // It may have ended just now.
        let _ = pidfd_send_signal(&self.pid, signal);
    }
}

fn report(status: ExitStatus, said: &[u8]) -> Report {
    let output = String::from_utf8_lossy(said).into_owned();
    Report { status: status.to_string(), succeeded: status.success(), output }
}

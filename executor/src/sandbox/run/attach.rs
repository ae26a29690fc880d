//! A run that somebody watches: bytes pass as they are, in both directions, and signals reach the command.
//!
//! One thread waits for everything at once. Each direction is a [`Flow`], which never has more than one piece on its way and
//! waits either for the one side or for the other; so a reader that is slow holds the command back, loses nothing, and
//! keeps no signal away from it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{Errno, fcntl_dupfd_cloexec, ioctl_fionread, retry_on_intr},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    pipe::{PipeFlags, pipe_with},
    process::Signal,
    termios::{tcgetwinsize, tcsetwinsize},
};
use solver::{Cancel, Stream};

use super::{
    End as Ended, Exit, TICK, Wish,
    init::{DRAIN, Ending, Init},
    verdict,
    watch::Watch,
};
use crate::sandbox::{
    SandboxError, SandboxPlan,
    plan::Stdio,
    stdio::receive_descriptor,
    wire::{Call, Order},
};

/// What is written to a pipe in one piece once it says that it takes something (pipe(7), PIPE_BUF): never waits.
const PIECE: usize = 4096;
/// What is passed on beyond what pipes held when the command had ended: it comes from somebody else.
const LATE_MAX: usize = 1 << 20;
/// Whoever asks this often for the end wants it.
const PATIENCE: u32 = 3;

/// The other end of a command's standard streams.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// What the command reads, if its plan says that it reads.
    pub input: Option<BorrowedFd<'a>>,
    /// Where its output goes; all of it, where it has a terminal.
    pub output: BorrowedFd<'a>,
    /// Where its errors go.
    pub errors: BorrowedFd<'a>,
    /// Gives the number of each signal that comes, a byte each. SIGWINCH is about the terminal; all others are passed on to
    /// the command.
    pub signals: BorrowedFd<'a>,
    /// The terminal whose size the command's follows.
    pub terminal: Option<BorrowedFd<'a>>,
}

/// Runs a command to its end, its streams attached as its plan says. When this returns no process of it is left, and all
/// that it has said is written.
///
/// # Errors
/// The sandbox could not be set up; its output cannot be written; [`SandboxError::Cancelled`] when `cancel` asked, when a signal
/// that asks to end came before the command had begun, or the third one after that.
pub fn attach(
    plan: &SandboxPlan,
    attachment: &Attachment<'_>,
    cancel: &Cancel,
) -> Result<Exit, SandboxError> {
    let failed = |step: &'static str| move |errno: Errno| SandboxError::io(step, &errno.into());
    let (theirs, ours) = match plan.stdio {
        Stdio::Logged => (None, Ours::Nothing),
        Stdio::Fed => {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
            (Some(read), Ours::Pipe(write))
        }
        Stdio::Terminal { .. } => {
            let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
            let pair = socketpair(AddressFamily::UNIX, kind, flags, None);
            let (ours, theirs) = pair.map_err(failed("make a socket"))?;
            (Some(theirs), Ours::Channel(ours))
        }
    };
    let watch = Watch::begin(plan)?;
    let mut init = Init::start(&Call::Run(Box::new(plan.clone())), theirs.as_ref().map(AsFd::as_fd))?;
    drop(theirs);
    let wish = Wish::new(plan, cancel, watch);
    let followed = Attached::new(&mut init, attachment, ours).and_then(|mut attached| attached.follow(&wish));
    let ended = followed.map_err(|error| SandboxError::io("pass output on", &error))?;
    let (reports, status) = init.finish()?;
    wish.settle(ended, || verdict(reports, &status))
}

/// What the builder keeps of what it hands over.
enum Ours {
    Nothing,
    Pipe(OwnedFd),
    /// Where the terminal comes from.
    Channel(OwnedFd),
}

struct Attached<'a> {
    init: &'a mut Init,
    to: &'a Attachment<'a>,
    /// The command's input, and then its outputs.
    flows: Vec<Flow<'a>>,
    channel: Option<OwnedFd>,
    /// Our side of the command's terminal.
    terminal: Option<OwnedFd>,
    asked: u32,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Flow(usize),
    Control,
    Channel,
    Signals,
}

impl<'a> Attached<'a> {
    fn new(init: &'a mut Init, to: &'a Attachment<'a>, ours: Ours) -> io::Result<Self> {
        let mut flows = Vec::new();
        for (stream, pipe) in init.outputs() {
            let sink = if stream == Stream::Stdout { to.output } else { to.errors };
            flows.push(Flow::new(End::Own(pipe), End::Lent(sink), Direction::Out));
        }
        let mut channel = None;
        match ours {
            Ours::Nothing => {}
            Ours::Pipe(pipe) => {
                no_waiting(&pipe)?;
                flows
                    .extend(to.input.map(|input| Flow::new(End::Lent(input), End::Own(pipe), Direction::In)));
            }
            Ours::Channel(socket) => channel = Some(socket),
        }
        Ok(Self { init, to, flows, channel, terminal: None, asked: 0 })
    }

    /// Until the init has ended and all output is written, or whoever watches is out of patience; says why, if that was
    /// not by itself.
    fn follow(&mut self, wish: &Wish<'_>) -> io::Result<Option<Ended>> {
        let (mut ending, mut end) = (Ending::NotAsked, None);
        let mut late: Option<Late> = None;
        loop {
            if self.asked >= PATIENCE {
                ending = self.init.insist(ending);
                // Neither output nor an init that does not end is waited for.
                if late.is_some() || ending == Ending::Killed {
                    return Ok(Some(Ended::Cancelled));
                }
            } else if end.is_none() && late.is_none() {
                end = wish.end();
            }
            if end.as_ref().is_some_and(Ended::is_urgent) {
                ending = self.init.insist(ending);
            }
            ending = self.init.press(ending, end.is_some())?;
            if late.as_ref().is_some_and(|late| late.is_over(&self.flows)) {
                return Ok(end);
            }
            for ready in self.wait(late.is_none())? {
                match ready {
                    Ready::Flow(index) => {
                        let moved = self.flows[index].advance()?;
                        late.iter_mut().for_each(|late| late.note(moved));
                    }
                    Ready::Signals => self.pass_signals()?,
                    Ready::Channel => self.take_terminal()?,
                    Ready::Control if !self.init.receive()? => late = Some(Late::new(&self.flows)?),
                    Ready::Control => {}
                }
            }
            self.flows.retain(|flow| !flow.is_over());
        }
    }

    fn wait(&self, with_control: bool) -> io::Result<Vec<Ready>> {
        // Who sends a signal has seen what the command has shown, which the init has announced before.
        let mut waited = Vec::new();
        if with_control {
            waited.push((Ready::Control, PollFd::new(&*self.init, PollFlags::IN)));
        }
        waited.push((Ready::Signals, PollFd::new(&self.to.signals, PollFlags::IN)));
        waited
            .extend(self.channel.iter().map(|channel| (Ready::Channel, PollFd::new(channel, PollFlags::IN))));
        let flows = self.flows.iter().enumerate();
        waited.extend(flows.map(|(index, flow)| (Ready::Flow(index), flow.waits_for())));
        let (names, mut fds): (Vec<Ready>, Vec<PollFd<'_>>) = waited.into_iter().unzip();
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = names.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(name, _)| name).collect())
    }

    /// The command has its terminal now: what it shows goes out, and what is typed goes in.
    fn take_terminal(&mut self) -> io::Result<()> {
        let Some(channel) = self.channel.take() else { return Ok(()) };
        let terminal = match receive_descriptor(&channel) {
            Ok(terminal) => terminal,
            // The init has failed, and says why.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        no_waiting(&terminal)?;
        let another = || fcntl_dupfd_cloexec(&terminal, 3).map(End::Own);
        self.flows.push(Flow::new(another()?, End::Lent(self.to.output), Direction::Out));
        if let Some(input) = self.to.input {
            self.flows.push(Flow::new(End::Lent(input), another()?, Direction::In));
        }
        self.terminal = Some(terminal);
        // It may have changed since the plan was made.
        self.resize();
        Ok(())
    }

    fn pass_signals(&mut self) -> io::Result<()> {
        let mut numbers = [0; 64];
        let length = retry_on_intr(|| rustix::io::read(self.to.signals, &mut numbers))?;
        for number in &numbers[..length] {
            match Signal::from_named_raw(i32::from(*number)) {
                Some(Signal::WINCH) => self.resize(),
                // There is no command yet that could take it, and what is being set up hears nobody.
                Some(Signal::INT | Signal::TERM | Signal::HUP) if !self.init.has_begun() => {
                    self.asked = PATIENCE;
                }
                Some(signal) => {
                    self.asked += u32::from(signal == Signal::INT || signal == Signal::TERM);
                    self.init.order(Order::Pass(signal));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Gives the command's terminal the size of ours. One that is not there has none.
    fn resize(&self) {
        if let (Some(theirs), Some(ours)) = (&self.terminal, self.to.terminal)
            && let Ok(size) = tcgetwinsize(ours)
        {
            let _ = tcsetwinsize(theirs, size);
        }
    }
}

/// What comes after the command has ended: what it has left in pipes, unless somebody else holds their other ends.
struct Late {
    last: Instant,
    bytes: usize,
    /// How many may come: what is there already, and [`LATE_MAX`].
    most: usize,
}

impl Late {
    fn new(flows: &[Flow<'_>]) -> io::Result<Self> {
        let outputs = flows.iter().filter(|flow| flow.direction == Direction::Out);
        let held = outputs.map(Flow::held).sum::<io::Result<usize>>()?;
        Ok(Self { last: Instant::now(), bytes: 0, most: held + LATE_MAX })
    }

    fn note(&mut self, moved: usize) {
        self.bytes += moved;
        self.last = Instant::now();
    }

    /// A reader who takes his time is waited for; silence is not.
    fn is_over(&self, flows: &[Flow<'_>]) -> bool {
        let mut outputs = flows.iter().filter(|flow| flow.direction == Direction::Out).peekable();
        let is_done = outputs.peek().is_none();
        let is_silent = outputs.all(|flow| flow.pending.is_empty()) && self.last.elapsed() >= DRAIN;
        is_done || is_silent || self.bytes > self.most
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// One side of a flow.
enum End<'a> {
    Own(OwnedFd),
    Lent(BorrowedFd<'a>),
}

impl AsFd for End<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            End::Own(descriptor) => descriptor.as_fd(),
            End::Lent(descriptor) => *descriptor,
        }
    }
}

/// Bytes on their way from one descriptor to another.
struct Flow<'a> {
    source: Option<End<'a>>,
    sink: End<'a>,
    pending: Vec<u8>,
    direction: Direction,
}

impl<'a> Flow<'a> {
    fn new(source: End<'a>, sink: End<'a>, direction: Direction) -> Self {
        Self { source: Some(source), sink, pending: Vec::new(), direction }
    }

    /// What it cannot go on without.
    fn waits_for(&self) -> PollFd<'_> {
        match &self.source {
            Some(source) if self.pending.is_empty() => {
                PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)
            }
            _ => PollFd::from_borrowed_fd(self.sink.as_fd(), PollFlags::OUT),
        }
    }

    /// How much can be read at once.
    fn held(&self) -> io::Result<usize> {
        let held = self.source.as_ref().map_or(Ok(0), ioctl_fionread)?;
        Ok(usize::try_from(held).unwrap_or(usize::MAX))
    }

    /// Does what can be done without waiting; how many bytes were read.
    fn advance(&mut self) -> io::Result<usize> {
        if !self.pending.is_empty() {
            return self.write().map(|()| 0);
        }
        let Some(source) = &self.source else { return Ok(0) };
        let mut piece = [0; PIECE];
        match rustix::io::read(source, &mut piece) {
            // A terminal whose other side nobody has any more says so with EIO.
            Ok(0) | Err(Errno::IO) => self.source = None,
            Ok(length) => {
                self.pending.extend_from_slice(&piece[..length]);
                return Ok(length);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Our input cannot be read: there is none. The command's output always can.
            Err(_) if self.direction == Direction::In => self.source = None,
            Err(errno) => return Err(errno.into()),
        }
        Ok(0)
    }

    /// Where nobody reads any more the flow is over, and the command hears of it when it writes again.
    fn write(&mut self) -> io::Result<()> {
        match rustix::io::write(&self.sink, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) if errno == Errno::PIPE || self.direction == Direction::In => {
                self.source = None;
                self.pending.clear();
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.source.is_none() && self.pending.is_empty()
    }
}

fn no_waiting(descriptor: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(descriptor, fcntl_getfl(descriptor)? | OFlags::NONBLOCK)
}

//! The standard streams of a command that is not a step of a build: a person or a pipe at the other end.
//!
//! No descriptor of the builder's ever reaches the command: not its terminal, into which a command could type (TIOCSTI), nor
//! a file it was started with. Input comes through a pipe of ours; a terminal is one that the command's own devpts has made,
//! and the builder gets the other side of it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, fstatfs, makedev, open},
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    termios::{Winsize, tcsetwinsize},
};

use crate::sandbox::{
    failure::{Failure, NameStep},
    plan::Stdio,
};

/// Connects the standard streams of this process, whose child the command will be. `handed` is what the builder sent with
/// the plan: the end of a pipe to read from, or the socket on which it waits for its side of a terminal.
pub fn connect(stdio: Stdio, handed: Option<OwnedFd>, null: impl AsFd) -> Result<(), Failure> {
    match (stdio, handed) {
        (Stdio::Logged, None) => dup2_stdin(null).step("close standard input"),
        (Stdio::Fed, Some(pipe)) => dup2_stdin(pipe).step("take standard input"),
        (Stdio::Terminal { rows, columns }, Some(channel)) => terminal(rows, columns, &channel),
        _ => Err(Failure::new("take standard input", "what came with the plan is not what it names")),
    }
}

fn terminal(rows: u16, columns: u16, channel: &OwnedFd) -> Result<(), Failure> {
    let ours = open_terminal(Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
    let (controller, theirs) = ours.step("make a terminal")?;
    send_descriptor(channel, controller).step("hand over the terminal")?;
    dup2_stdin(&theirs)
        .and_then(|()| dup2_stdout(&theirs))
        .and_then(|()| dup2_stderr(&theirs))
        .step("take the terminal")
}

/// Both sides of a new terminal. What is mounted over `/dev` by the user's own wish may be no devpts (CVE-2025-52565).
fn open_terminal(size: Winsize) -> Result<(OwnedFd, OwnedFd), Errno> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let controller = open("/dev/pts/ptmx", flags, Mode::empty())?;
    let stat = fstat(&controller)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if fstatfs(&controller)?.f_type != DEVPTS_SUPER_MAGIC || !is_device || stat.st_rdev != makedev(5, 2) {
        return Err(Errno::NODEV);
    }
    unlockpt(&controller)?;
    tcsetwinsize(&controller, size)?;
    let theirs =
        ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((controller, theirs))
}

/// Sends a descriptor over a socket, with one byte that carries it.
pub fn send_descriptor(channel: impl AsFd, descriptor: impl AsFd) -> Result<(), Errno> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let io = [IoSlice::new(b"D")];
    retry_on_intr(|| sendmsg(channel.as_fd(), &io, &mut ancillary, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives one. At the end of the stream there is none.
///
/// # Errors
/// What recvmsg(2) says; [`io::ErrorKind::UnexpectedEof`] at the end.
pub fn receive_descriptor(channel: impl AsFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    retry_on_intr(|| recvmsg(channel.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags))?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.flatten().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

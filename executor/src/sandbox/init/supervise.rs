//! What the inner init does while the command runs: hears its builder, reaps, and tells how it ended.

use std::{
    io::{PipeReader, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, retry_on_intr},
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait},
};

use crate::sandbox::{
    plan::{Processes, SandboxPlan},
    sys,
    wire::{Order, Report},
};

/// A command that runs, and who has a say in it.
pub(super) struct Supervised<'a> {
    pub(super) control: &'a UnixStream,
    pub(super) life: &'a PipeReader,
    pub(super) child_signals: &'a OwnedFd,
    pub(super) command: Pid,
    pub(super) plan: &'a SandboxPlan,
}

/// Waits for the command and reaps everything else; ends early, without a report, when the builder or the outer init is
/// gone or says so. What our end brings, the kernel does where we are PID 1: it kills everything in the namespace.
pub(super) fn supervise(supervised: Supervised<'_>) -> Result<Option<Report>, Errno> {
    let Supervised { control, life, child_signals, command, plan } = supervised;
    loop {
        let mut fds = [
            PollFd::new(control, PollFlags::IN),
            PollFd::new(life, PollFlags::IN),
            PollFd::new(child_signals, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut fds, None))?;
        let [ordered, orphaned, children] = [0, 1, 2].map(|index: usize| !fds[index].revents().is_empty());
        if orphaned {
            return Ok(None);
        }
        match ordered.then(|| heard(control)) {
            Some(Order::Kill) => return Ok(None),
            Some(Order::Terminate) => terminate(plan.processes, command),
            // It has ended where this fails, which we are about to hear.
            Some(Order::Pass(signal)) => drop(kill_process(command, signal)),
            None => {}
        }
        if children && let Some(report) = reap(child_signals, command)? {
            return Ok(Some(report));
        }
    }
}

/// What the builder wants. Its end is one as well.
fn heard(mut control: &UnixStream) -> Order {
    let mut byte = [0];
    match control.read(&mut byte) {
        Ok(1) => Order::from_byte(byte[0]),
        _ => Order::Kill,
    }
}

fn terminate(processes: Processes, command: Pid) {
    match processes {
        Processes::Own | Processes::OuterProc => sys::signal_all_others(Signal::TERM),
        // Its group and no more: we are not PID 1, so "all others" would be all of this user's.
        Processes::Shared => drop(kill_process_group(command, Signal::TERM)),
    }
}

fn reap(child_signals: &OwnedFd, command: Pid) -> Result<Option<Report>, Errno> {
    // Signals are merged: one reading stands for any number of children.
    let mut signals = [0; 1024];
    match rustix::io::read(child_signals, &mut signals) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == command => return Ok(Some(ended(status))),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

fn ended(status: WaitStatus) -> Report {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Report::Code(code),
        (None, Some(signal)) => Report::Signal(signal),
        (None, None) => Report::Failed {
            step: "wait for command".to_owned(),
            message: format!("unknown status {status:?}"),
            errno: None,
            hint: None,
        },
    }
}

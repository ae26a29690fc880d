//! What the builder and its inits say to each other, over one socket that is the init's standard input.
//!
//! The builder sends one [`Call`] and later single [`Order`] bytes; the inits answer with [`Report`]s, one JSON value
//! a line. The socket is also the life line: each side takes its end of file for the other's death.

use std::{
    io::{self, BufRead, Read, Write},
    path::PathBuf,
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::sandbox::{
    enter::Mode,
    plan::{Footing, Network, SandboxPlan},
    probe::Probe,
};

/// The hidden first argument that makes the binary an init.
pub const INIT_ARGUMENT: &str = "sandbox-init";

/// What an init is started for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Run a command. Unless its output is only logged, one descriptor follows: see [`super::stdio`].
    Run(Box<SandboxPlan>),
    /// Find out whether a rung works, all the way to a step on an overlay where a store is, or would be.
    Try(Mode, PathBuf),
    /// The same with a network of the step's own.
    TryNetwork(Mode, PathBuf, Network),
    /// Find out on that rung which foreign programs steps can run.
    TryPlatforms(Mode, PathBuf),
}

/// What the builder wants of a running step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Send SIGTERM to everything in it.
    Terminate,
    /// Send a signal to the command itself.
    Pass(Signal),
    /// End it.
    Kill,
}

impl Order {
    /// The byte that stands for it.
    pub fn byte(self) -> u8 {
        match self {
            Order::Terminate => b'T',
            Order::Pass(signal) => u8::try_from(signal.as_raw()).unwrap_or(b'K'),
            Order::Kill => b'K',
        }
    }

    /// The order that a byte stands for; everything unknown is [`Order::Kill`]. The numbers of signals are no letters.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            b'T' => Order::Terminate,
            number => Signal::from_named_raw(number.into()).map_or(Order::Kill, Order::Pass),
        }
    }
}

/// What the inits say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// A named step of the set-up or the clean-up failed; it outranks every other report.
    Failed {
        /// Its name.
        step: String,
        /// What it was about and what the kernel said.
        message: String,
        /// What the kernel said.
        errno: Option<i32>,
        /// The one setting that would lift it, where only the sender knows it.
        hint: Option<String>,
    },
    /// The image, or what the step itself asks for, leaves no place for a part of the step; it ranks as [`Report::Failed`].
    NoPlace {
        /// The name of the step of the set-up.
        step: String,
        /// What is there.
        message: String,
    },
    /// All is set up, and the command is about to be executed: from now on signals are its own matter.
    Begun,
    /// The command could not be executed.
    NotExecuted {
        /// 126 or 127.
        code: i32,
        /// For people.
        message: String,
    },
    /// The command exited.
    Code(i32),
    /// A signal ended the command.
    Signal(i32),
    /// The kernel had to end a process of the step that wanted more memory than its limit.
    OutOfMemory,
    /// What a [`Call::Try`] found: of [`super::Entered`] the footing, the id map and the refusal; and why there are copies.
    Entered(Footing, String, Vec<(String, i32)>, Option<String>),
    /// What was found out about foreign programs.
    Probes(Vec<Probe>),
}

/// Sends a call: its length as four bytes, little-endian, and JSON.
pub fn send_call(mut to: impl Write, call: &Call) -> io::Result<()> {
    let json = serde_json::to_vec(call)?;
    let length = u32::try_from(json.len()).map_err(|_| io::Error::other("a plan of more than 4 GiB"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&json)
}

/// Receives what [`send_call`] sent.
pub fn receive_call(mut from: impl Read) -> io::Result<Call> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut json = Vec::new();
    from.take(u64::from(u32::from_le_bytes(length))).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Sends a report. Reports are short, so a socket takes each in one piece.
pub fn send_report(mut to: impl Write, report: &Report) -> io::Result<()> {
    to.write_all(&report_line(report)?)
}

/// What [`send_report`] sends, for who has no memory left to make it when it is to be sent.
pub fn report_line(report: &Report) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    Ok(line)
}

/// All reports in what was received.
pub fn parse_reports(received: &[u8]) -> io::Result<Vec<Report>> {
    received.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_their_byte_and_everything_else_ends_the_step() {
        for order in [Order::Terminate, Order::Kill, Order::Pass(Signal::INT), Order::Pass(Signal::USR2)] {
            assert_eq!(Order::from_byte(order.byte()), order);
        }
        for byte in [0, 32, b'A', 200] {
            assert_eq!(Order::from_byte(byte), Order::Kill, "{byte}");
        }
    }
}

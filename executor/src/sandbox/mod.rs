//! Runs a step's command where it can see and change nothing but what its [`SandboxPlan`] says.
//!
//! Three processes stand between a build and the command. The *builder* has many threads, so it never forks: it
//! executes its own binary again as the *outer init*, a single-threaded process that gets the plan over a socket,
//! mounts the root file system and becomes the parent of the *inner init*, PID 1 of a new PID namespace. That one
//! performs the list of named steps in [`init`], forks the command and waits for it. The outer init of a build's next step
//! is started while a step runs ([`Spares`]).
//!
//! - Everything fails closed: a step that cannot be performed ends the run with its name and errno.
//! - Nothing outlives the builder: both inits die with the process above them (PDEATHSIG), and the inner one also when
//!   its end of the socket hangs up, and with PID 1 the kernel ends everything in its namespace.
//!   Where the machine gives no PID namespace, [`kin`] does what the kernel does elsewhere.
//! - Nothing of the builder reaches the command: no descriptor but 0, 1 and 2, no variable, keyring or terminal.
//! - No mount outlives anything: the builder lives in a mount namespace of its own ([`enter_builder`]), the command in
//!   another.

mod begun;
mod cgroups;
mod chroot;
mod command;
mod devices;
mod dns;
pub(crate) mod emulation;
mod enter;
mod error;
mod failure;
mod files;
mod filesystem;
mod hint;
mod ids;
mod init;
mod isolated;
mod kin;
mod lacking;
mod lines;
mod mergers;
mod mounts;
mod netlink;
mod network;
mod plan;
mod probe;
mod processes;
mod rlimits;
mod room;
mod run;
mod seccomp;
mod stdio;
mod stubs;
#[allow(unsafe_code)]
pub(crate) mod sys;
mod wire;

pub(crate) use begun::MARKER;
pub use cgroups::{GroupLease, find as find_group, find_usual as find_usual_group};
pub use chroot::enter_for_store;
pub(crate) use chroot::make_directories;
pub use dns::Dns;
pub(crate) use enter::more_ids;
pub use enter::{Entered, Mode, enter_builder};
pub use error::SandboxError;
pub use files::{SettleError, Settled, settle as settle_files};
pub(crate) use hint::READ_ONLY_STORE;
pub use hint::{FEW_FILES, FEW_PROCESSES, SHORT_FILES};
pub use init::init_main;
pub use network::Connection;
pub use plan::{
    Access, Amount, Capability, FileTree, Files, Footing, Group, GroupLimits, Hidden, Keyring, Limits,
    Locked, MountSource, Naming, Need, Nesting, Network, PlanError, PlanInputs, PlannedMount, ProcessLimit,
    Processes, ProcessorTime, ProvidedFile, Root, Rung, SandboxPlan, Scope, SeccompProfile, SecretBytes,
    Security, Shortage, Stdio, StepLimits, User, refuse_beyond_chroot,
};
pub use probe::{CHROOT, Findings, Outcome, Probe, probe};
pub use rlimits::check as check_ulimits;
pub use run::{Attachment, Excess, Exit, Spares, attach, is_init_call, run};

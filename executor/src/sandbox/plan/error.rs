//! Why an operation has no plan: it asks for what no process can be given, or for what the rung does not have.

use super::Rung;

/// Why a step cannot be run in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No command.
    #[error("there is no command to run")]
    NoCommand,
    /// A string that no process can be given.
    #[error("{what} contains a NUL character")]
    Nul {
        /// Which string.
        what: &'static str,
    },
    /// A working directory that is not absolute.
    #[error("the working directory {0:?} is not an absolute path")]
    RelativeDirectory(String),
    /// Where nothing can be mounted: BuildKit's words.
    #[error("invalid mount target {0:?}")]
    MountTarget(String),
    /// An owner that the user namespace does not have.
    #[error(
        "the mount at {target} cannot be given to {uid}:{gid}: this build runs in a {}, which is 0",
        Rung::SingleId
    )]
    MountOwner {
        /// Where it is mounted.
        target: String,
        /// The user id that was asked for.
        uid: u32,
        /// The group id that was asked for.
        gid: u32,
    },
    /// A name that no machine can have.
    #[error("invalid host name {0:?}")]
    HostName(String),
    /// What should be the address of a host and is none.
    #[error("invalid address {address:?} of the host {name}")]
    HostAddress {
        /// Whose.
        name: String,
        /// What was given.
        address: String,
    },
    /// This machine, where a step cannot reach it.
    #[error("{name} cannot be this machine (host-gateway): an isolated network does not reach it")]
    HostGateway {
        /// The name it was to have.
        name: String,
    },
    /// What takes a mount, a namespace or a capability, of which a chroot has none.
    #[error("{what} cannot be had with --sandbox=chroot, which has no mounts and no namespaces")]
    BeyondChroot {
        /// What was asked for, as it was.
        what: String,
    },
    /// An id that the user namespace does not have.
    #[error("user {uid}:{gid} cannot be had: this build runs in a {}, which is 0", Rung::SingleId)]
    OneIdOnly {
        /// The user id that was asked for.
        uid: u32,
        /// The group id that was asked for.
        gid: u32,
    },
}

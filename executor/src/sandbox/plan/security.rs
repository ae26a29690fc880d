//! How much the kernel lets a step do, line by line: capabilities, system calls, files of the kernel, signals and keys.

use serde::{Deserialize, Serialize};
use solver::op::{self, Relaxation, Relaxations};

use super::{Footing, Processes, Rung};

/// How much the kernel lets a step do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// As little as building needs.
    Sandbox {
        /// The capabilities of root inside; other users have none.
        capabilities: Vec<Capability>,
        /// The system call filter.
        seccomp: SeccompProfile,
        /// Whether it lets a command make user namespaces.
        nesting: Nesting,
        /// Whether a step goes without that filter where none can be loaded.
        filter: Need,
        /// What of `/proc` and `/sys` it cannot see.
        hidden: Vec<Hidden>,
        /// What of `/proc` it cannot write.
        locked: Vec<Locked>,
        /// No program has more rights than who runs it: set-user-ID bits and file capabilities give nothing.
        no_new_privileges: bool,
    },
    /// Whatever the builder may do: all its capabilities, every system call, all of `/proc` and `/sys`.
    Insecure,
}

impl Security {
    pub(super) fn new(asked: op::Security, footing: Footing, relaxed: Relaxations) -> Self {
        match asked {
            op::Security::Insecure => Self::Insecure,
            op::Security::Sandbox | op::Security::NoNewPrivileges => Self::Sandbox {
                capabilities: Capability::default_for(footing.rung),
                seccomp: match footing.processes {
                    Processes::Own | Processes::OuterProc => SeccompProfile::Default,
                    Processes::Shared => SeccompProfile::SharedProcesses,
                },
                nesting: match relaxed.contain(Relaxation::Userns) {
                    true => Nesting::Allowed,
                    false => Nesting::Denied,
                },
                filter: Need::unless(relaxed, Relaxation::NoSeccomp),
                hidden: of_the_kernel(footing.rung, Hidden::ALL),
                locked: of_the_kernel(footing.rung, Locked::ALL),
                // Without CAP_SYS_ADMIN neither Landlock nor a filter takes less.
                no_new_privileges: asked == op::Security::NoNewPrivileges || footing.rung == Rung::Chroot,
            },
        }
    }
}

/// A chroot has nothing of the kernel's own file systems.
fn of_the_kernel<T: Clone>(rung: Rung, paths: &[T]) -> Vec<T> {
    match rung {
        Rung::Root | Rung::SubordinateIds | Rung::SingleId => paths.to_vec(),
        Rung::Chroot => Vec::new(),
    }
}

/// A capability that a step may have; those that are not here, no step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "capabilities(7) names them")]
pub enum Capability {
    Chown,
    DacOverride,
    Fowner,
    Fsetid,
    Kill,
    Setgid,
    Setuid,
    Setpcap,
    NetBindService,
    SysChroot,
    Mknod,
    Setfcap,
}

impl Capability {
    /// Docker's fourteen without NET_RAW and AUDIT_WRITE.
    pub const ALL: [Capability; 12] = [
        Self::Chown,
        Self::DacOverride,
        Self::Fowner,
        Self::Fsetid,
        Self::Kill,
        Self::Setgid,
        Self::Setuid,
        Self::Setpcap,
        Self::NetBindService,
        Self::SysChroot,
        Self::Mknod,
        Self::Setfcap,
    ];

    /// MKNOD means something with host ids only. A chroot has nothing else that makes a device useless, and is left by another
    /// one.
    fn default_for(rung: Rung) -> Vec<Capability> {
        let is_withheld = |capability: &Capability| match capability {
            Self::Mknod => rung != Rung::Root,
            Self::SysChroot => rung == Rung::Chroot,
            _ => false,
        };
        Self::ALL.into_iter().filter(|capability| !is_withheld(capability)).collect()
    }
}

/// A system call filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompProfile {
    /// The one in [`crate::sandbox::seccomp`].
    Default,
    /// The same for a step that sees other processes of its user: it sets limits of its own only. Landlock keeps
    /// signals from those others, but not a limit of processor time, which ends them as well.
    SharedProcesses,
}

/// Whether a command may make user namespaces, and in them what the kernel lets their root do: mounts, other namespaces, names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nesting {
    /// No.
    Denied,
    /// Yes: `--sandbox-allow=userns`.
    Allowed,
}

/// What is done where the machine does not give a line of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// The step is not run.
    Required,
    /// It is run without.
    WherePossible,
}

impl Need {
    /// A line that is required if nobody has let it go.
    pub(super) fn unless(relaxed: Relaxations, relaxation: Relaxation) -> Self {
        if relaxed.contain(relaxation) { Self::WherePossible } else { Self::Required }
    }
}

/// A closed list of paths of the kernel's own file systems; in a printed plan they are what they name.
macro_rules! paths {
    ($(#[$about:meta])* $name:ident { $($variant:ident = $path:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "their paths name them")]
        pub enum $name {
            $(#[serde(rename = $path)] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// Where it is.
            pub fn path(self) -> &'static str {
                match self {
                    $($name::$variant => $path,)*
                }
            }
        }
    };
}

paths! {
    /// What says more about the machine than a step may know, or lets it write there. `*` is the number of each processor.
    Hidden {
        Acpi = "/proc/acpi",
        Asound = "/proc/asound",
        Interrupts = "/proc/interrupts",
        Kallsyms = "/proc/kallsyms",
        Kcore = "/proc/kcore",
        KeyUsers = "/proc/key-users",
        Keys = "/proc/keys",
        LatencyStats = "/proc/latency_stats",
        SchedDebug = "/proc/sched_debug",
        Scsi = "/proc/scsi",
        TimerList = "/proc/timer_list",
        TimerStats = "/proc/timer_stats",
        Powercap = "/sys/devices/virtual/powercap",
        Firmware = "/sys/firmware",
        ThermalThrottle = "/sys/devices/system/cpu/cpu*/thermal_throttle",
    }
}

paths! {
    /// What root inside could else change for the whole machine.
    Locked {
        Bus = "/proc/bus",
        Fs = "/proc/fs",
        Irq = "/proc/irq",
        Sys = "/proc/sys",
        SysrqTrigger = "/proc/sysrq-trigger",
    }
}

/// Whom the signals and abstract sockets of a step reach: only its own processes, by Landlock's scopes (Linux 6.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The step is not run without.
    Required,
    /// Other namespaces keep its signals in. Abstract sockets of this machine are within its reach on an older kernel, which
    /// the build is told.
    WherePossible,
}

impl Scope {
    pub(super) fn new(processes: Processes) -> Self {
        match processes {
            Processes::Own | Processes::OuterProc => Self::WherePossible,
            Processes::Shared => Self::Required,
        }
    }
}

/// Whose keys a step has (keyrings(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keyring {
    /// A session keyring of its own, empty.
    Own,
    /// The same, or none where the filter of a container, as ours, lets nobody ask for keys.
    WherePossible,
}

impl Keyring {
    pub(super) fn new(rung: Rung, relaxed: Relaxations) -> Self {
        match rung {
            _ if relaxed.contain(Relaxation::NoKeyring) => Self::WherePossible,
            Rung::Root | Rung::SubordinateIds | Rung::SingleId => Self::Own,
            Rung::Chroot => Self::WherePossible,
        }
    }
}

//! `--ulimit`: what each process of a RUN step may use, in the words of setrlimit(2).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a process can be given a limit of: all that setrlimit(2) knows on Linux, by the names that Docker and Podman have
/// for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Bytes of its address space.
    As,
    /// Bytes of a core dump.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of its data segment.
    Data,
    /// Bytes of a file that it writes.
    Fsize,
    /// Locks.
    Locks,
    /// Bytes of locked memory.
    Memlock,
    /// Bytes in message queues.
    Msgqueue,
    /// How far its priority can be raised, 20 less the value.
    Nice,
    /// Open files.
    Nofile,
    /// Processes of its user.
    Nproc,
    /// Bytes of its resident set; no kernel since 2.4.30 heeds it.
    Rss,
    /// Its real-time priority.
    Rtprio,
    /// Microseconds of processor time at real-time priority without a system call that blocks.
    Rttime,
    /// Signals that wait for it.
    Sigpending,
    /// Bytes of its stack.
    Stack,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::As,
        Self::Core,
        Self::Cpu,
        Self::Data,
        Self::Fsize,
        Self::Locks,
        Self::Memlock,
        Self::Msgqueue,
        Self::Nice,
        Self::Nofile,
        Self::Nproc,
        Self::Rss,
        Self::Rtprio,
        Self::Rttime,
        Self::Sigpending,
        Self::Stack,
    ];
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::As => "as",
            Self::Core => "core",
            Self::Cpu => "cpu",
            Self::Data => "data",
            Self::Fsize => "fsize",
            Self::Locks => "locks",
            Self::Memlock => "memlock",
            Self::Msgqueue => "msgqueue",
            Self::Nice => "nice",
            Self::Nofile => "nofile",
            Self::Nproc => "nproc",
            Self::Rss => "rss",
            Self::Rtprio => "rtprio",
            Self::Rttime => "rttime",
            Self::Sigpending => "sigpending",
            Self::Stack => "stack",
        })
    }
}

impl FromStr for Resource {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|resource| resource.to_string() == text).ok_or(())
    }
}

/// How much of a resource, `None` for as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// What holds until the process asks for more.
    pub soft: Option<u64>,
    /// What it can ask for at most.
    pub hard: Option<u64>,
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount =
            |amount: Option<u64>| amount.map_or_else(|| "unlimited".to_owned(), |amount| amount.to_string());
        write!(f, "{}:{}", amount(self.soft), amount(self.hard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_known_by_its_name() {
        for resource in Resource::ALL {
            assert_eq!(resource.to_string().parse(), Ok(resource));
        }
        assert_eq!("files".parse::<Resource>(), Err(()));
    }
}

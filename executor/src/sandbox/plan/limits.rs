//! How much a step may use: each of its processes, and all of them together.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use solver::op::{Exec, Resource, Ulimit};

/// How much a step may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// What each process may use.
    pub processes: BTreeMap<Resource, ProcessLimit>,
    /// How many bytes `/dev/shm` holds.
    pub shared_memory: u64,
    /// What all processes may use together.
    pub group: Option<Group>,
    /// How long the command may take.
    pub time: Option<Duration>,
    /// How many bytes it may write where its file system is kept.
    pub room: Option<u64>,
}

/// A limit of each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessLimit {
    /// How much.
    pub limit: Ulimit,
    /// What is done where the builder itself may not have as much.
    pub shortage: Shortage,
}

/// What is done where a limit is above what the builder may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortage {
    /// The step gets as much as the builder has.
    TakeLess,
    /// The step is not run: somebody has asked for this limit.
    Refuse,
}

/// A control group that is made for the step, and goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The directory of the group it is made in.
    pub parent: PathBuf,
    /// What the step may use.
    pub limits: GroupLimits,
}

/// What all processes of a step may use together. What is `None`, nobody has limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupLimits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together, at least as many as `memory`.
    pub memory_and_swap: Option<Amount>,
    /// Microseconds of processor time.
    pub processor_time: Option<ProcessorTime>,
    /// Weight beside others who want the processor: 1024 is what everybody has who has not asked for more or less.
    pub processor_shares: Option<u64>,
    /// Processors, as `0-3,5`.
    pub processors: Option<String>,
    /// Memory nodes, in the same way.
    pub memory_nodes: Option<String>,
    /// Processes and threads.
    pub processes: Option<Amount>,
}

/// How much of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// As much as there is.
    Unlimited,
    /// At most this.
    AtMost(u64),
}

/// Processor time in each period; a second of each processor has a million microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessorTime {
    /// Microseconds of all processors together.
    pub quota: Amount,
    /// Microseconds.
    pub period: u64,
}

impl ProcessorTime {
    /// The kernel's own period.
    pub const USUAL_PERIOD: u64 = 100_000;
}

/// What the command line says about every step, and what is in no key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepLimits {
    /// The control group, where steps have one.
    pub group: Option<Group>,
    /// `--step-timeout`
    pub time: Option<Duration>,
    /// `--step-max-disk`
    pub room: Option<u64>,
}

/// Open files: a million here makes old package managers close a million descriptors before every exec.
const OPEN_FILES: u64 = 1024;
/// As many as a program can ask for that knows what it does.
pub const OPEN_FILES_HARD: u64 = 524_288;
/// Processes and threads of the user, and of a step where its group is ours.
pub const PROCESSES: u64 = 16_384;
/// Docker's.
const SHARED_MEMORY: u64 = 64 << 20;

impl Limits {
    /// Those of an operation.
    pub(super) fn new(exec: &Exec, limits: &StepLimits) -> Self {
        let mut processes: BTreeMap<_, _> = [
            (Resource::Nofile, OPEN_FILES, OPEN_FILES_HARD),
            (Resource::Nproc, PROCESSES, PROCESSES),
            (Resource::Core, 0, 0),
        ]
        .into_iter()
        .map(|(resource, soft, hard)| {
            let limit = Ulimit { soft: Some(soft), hard: Some(hard) };
            (resource, ProcessLimit { limit, shortage: Shortage::TakeLess })
        })
        .collect();
        let asked = |(resource, limit): (&Resource, &Ulimit)| {
            (*resource, ProcessLimit { limit: *limit, shortage: Shortage::Refuse })
        };
        processes.extend(exec.ulimits.iter().map(asked));
        Self {
            processes,
            shared_memory: exec.shared_memory.unwrap_or(SHARED_MEMORY),
            group: limits.group.clone(),
            time: limits.time,
            room: limits.room,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_takes_the_place_of_what_is_usual() {
        let few = Ulimit { soft: Some(64), hard: None };
        let exec = Exec { ulimits: BTreeMap::from([(Resource::Nofile, few)]), ..Exec::new(["true"]) };
        let limits = Limits::new(&exec, &StepLimits::default());
        let of = |resource| limits.processes.get(&resource).copied();
        assert_eq!(of(Resource::Nofile), Some(ProcessLimit { limit: few, shortage: Shortage::Refuse }));
        assert_eq!(of(Resource::Core).map(|core| core.shortage), Some(Shortage::TakeLess));
        assert_eq!(of(Resource::Stack), None);
    }
}

//! What RUN steps may use, from flags that say it one by one to what the plan and the executor take.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use executor::sandbox::{self, Amount, Dns, GroupLease, GroupLimits, ProcessorTime, SandboxError};
use solver::op::{Resource, Security, Ulimit};

use super::RequestError;
use crate::{args::LimitArgs, spec::limit::ResourceSpec};

/// What steps may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepLimits {
    /// `--ulimit`, the last of a name.
    pub ulimits: BTreeMap<Resource, Ulimit>,
    /// `--shm-size`
    pub shared_memory: Option<u64>,
    /// `--memory` and all others that a control group keeps.
    pub group: GroupLimits,
    /// `--cgroup-parent`
    pub cgroup_parent: Option<PathBuf>,
    /// `--no-new-privs`
    pub no_new_privs: bool,
    /// `--step-timeout`
    pub time: Option<Duration>,
    /// `--step-max-disk`
    pub room: Option<u64>,
    /// `--dns` and its like.
    pub dns: Dns,
}

/// The least that a process can be started in, as with Docker.
const LEAST_MEMORY: u64 = 6 << 20;

/// Works out what the flags ask for.
///
/// # Errors
/// They contradict each other.
pub fn read(args: LimitArgs) -> Result<StepLimits, RequestError> {
    let args = with_resources(args)?;
    Ok(StepLimits {
        ulimits: args.ulimits.iter().map(|spec| (spec.resource, spec.limit)).collect(),
        shared_memory: args.shm_size,
        group: group(&args)?,
        cgroup_parent: args.cgroup_parent,
        no_new_privs: args.no_new_privs,
        time: args.step_timeout,
        room: args.step_max_disk,
        dns: Dns { servers: args.dns, search: args.dns_search, options: args.dns_options },
    })
}

impl StepLimits {
    /// What a step has that asks for nothing else.
    pub fn security(&self) -> Security {
        if self.no_new_privs { Security::NoNewPrivileges } else { Security::Sandbox }
    }

    /// Whether `--pids-limit -1` is all that is said of groups.
    fn asks_for_no_limit(&self) -> bool {
        let unlimited = GroupLimits { processes: Some(Amount::Unlimited), ..GroupLimits::default() };
        self.group == unlimited && self.cgroup_parent.is_none()
    }

    /// Refuses what this machine cannot keep, and finds the control group in which steps get theirs: what the flags need,
    /// or what there is where they need none.
    ///
    /// # Errors
    /// The flag that cannot be had here, why, and the one setting that would lift it.
    pub fn prepare(&self) -> Result<Option<GroupLease>, SandboxError> {
        sandbox::check_ulimits(&self.ulimits)?;
        if self.asks_for_no_limit() {
            // It lifts the one that a step has where there are groups; elsewhere there is none to be lifted.
            return Ok(sandbox::find_group(&self.group, None).ok());
        }
        let needs_group = self.group != GroupLimits::default() || self.cgroup_parent.is_some();
        match needs_group {
            true => sandbox::find_group(&self.group, self.cgroup_parent.as_deref()).map(Some),
            false => Ok(sandbox::find_usual_group()),
        }
    }
}

/// `--resource` says what flags say.
fn with_resources(mut args: LimitArgs) -> Result<LimitArgs, RequestError> {
    for resource in std::mem::take(&mut args.resources) {
        match resource {
            ResourceSpec::Memory(bytes) => fill(&mut args.memory, bytes)?,
            ResourceSpec::MemorySwap(bytes) => fill(&mut args.memory_swap, bytes)?,
            ResourceSpec::CpuShares(shares) => fill(&mut args.cpu_shares, shares)?,
            ResourceSpec::CpuPeriod(period) => fill(&mut args.cpu_period, period)?,
            ResourceSpec::CpuQuota(quota) => fill(&mut args.cpu_quota, quota)?,
            ResourceSpec::CpusetCpus(list) => fill(&mut args.cpuset_cpus, list)?,
            ResourceSpec::CpusetMems(list) => fill(&mut args.cpuset_mems, list)?,
        }
    }
    Ok(args)
}

fn fill<T>(slot: &mut Option<T>, value: T) -> Result<(), RequestError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(RequestError::Conflict("--resource says once more what has been said")),
    }
}

fn group(args: &LimitArgs) -> Result<GroupLimits, RequestError> {
    let LimitArgs { memory, memory_swap, cpu_shares, cpuset_cpus, cpuset_mems, pids_limit, .. } = args;
    if memory.is_some_and(|memory| memory < LEAST_MEMORY) {
        return Err(RequestError::Conflict("--memory: the least that a step can have is 6m"));
    }
    match (memory, memory_swap) {
        (None, Some(_)) => Err(RequestError::Conflict("--memory-swap needs --memory")),
        (Some(memory), Some(Amount::AtMost(both))) if both < memory => Err(RequestError::Conflict(
            "--memory-swap is memory and swap together, so it cannot be less than --memory",
        )),
        _ => Ok(()),
    }?;
    Ok(GroupLimits {
        memory: *memory,
        memory_and_swap: *memory_swap,
        processor_time: processor_time(args)?,
        processor_shares: *cpu_shares,
        processors: cpuset_cpus.clone(),
        memory_nodes: cpuset_mems.clone(),
        processes: *pids_limit,
    })
}

fn processor_time(args: &LimitArgs) -> Result<Option<ProcessorTime>, RequestError> {
    let LimitArgs { cpus, cpu_quota, cpu_period, .. } = args;
    if cpus.is_some() && (cpu_quota.is_some() || cpu_period.is_some()) {
        return Err(RequestError::Conflict(
            "--cpus says the same as --cpu-quota and --cpu-period: use one way",
        ));
    }
    let quota = cpus.map(Amount::AtMost).or(*cpu_quota);
    // Nobody else has limited it, so no limit asks for no group that would keep one, whatever its period.
    let quota = quota.filter(|quota| *quota != Amount::Unlimited);
    let period = cpu_period.unwrap_or(ProcessorTime::USUAL_PERIOD);
    Ok(quota.map(|quota| ProcessorTime { quota, period }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> LimitArgs {
        LimitArgs::default()
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let cases = [
            LimitArgs { memory: Some(1 << 20), ..args() },
            LimitArgs { memory_swap: Some(Amount::Unlimited), ..args() },
            LimitArgs { memory: Some(1 << 30), memory_swap: Some(Amount::AtMost(1 << 29)), ..args() },
            LimitArgs { cpus: Some(100_000), cpu_period: Some(100_000), ..args() },
            LimitArgs { memory: Some(1 << 30), resources: vec![ResourceSpec::Memory(1 << 30)], ..args() },
        ];
        for case in cases {
            let shown = format!("{case:?}");
            assert!(matches!(read(case), Err(RequestError::Conflict(_))), "{shown}");
        }
    }

    #[test]
    fn processor_time_has_a_quota_and_a_period() {
        let time = |args: LimitArgs| read(args).expect("limits").group.processor_time;
        let of = |quota, period| Some(ProcessorTime { quota, period });
        assert_eq!(time(args()), None);
        assert_eq!(time(LimitArgs { cpus: Some(150_000), ..args() }), of(Amount::AtMost(150_000), 100_000));
        assert_eq!(time(LimitArgs { cpu_period: Some(5000), ..args() }), None);
        let none = LimitArgs { cpu_quota: Some(Amount::Unlimited), cpu_period: Some(5000), ..args() };
        assert_eq!(time(none), None);
        let both = LimitArgs { cpu_quota: Some(Amount::AtMost(2000)), cpu_period: Some(5000), ..args() };
        assert_eq!(time(both), of(Amount::AtMost(2000), 5000));
        assert_eq!(time(LimitArgs { cpu_quota: Some(Amount::Unlimited), ..args() }), None);
        let resources = vec![ResourceSpec::CpuQuota(Amount::Unlimited)];
        assert_eq!(time(LimitArgs { resources, ..args() }), None);
    }

    #[test]
    fn resources_are_flags() {
        let resources = vec![
            ResourceSpec::Memory(1 << 30),
            ResourceSpec::MemorySwap(Amount::Unlimited),
            ResourceSpec::CpusetCpus("0".to_owned()),
        ];
        let group = read(LimitArgs { resources, ..args() }).expect("limits").group;
        assert_eq!((group.memory, group.memory_and_swap), (Some(1 << 30), Some(Amount::Unlimited)));
        assert_eq!(group.processors.as_deref(), Some("0"));
    }
}

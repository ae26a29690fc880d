//! Limits of single processes, by setrlimit(2).
//!
//! They are set by the step's own process, last of all that it does as root: an init that ran into one could not say
//! how the step has ended.

use std::{collections::BTreeMap, fs};

use rustix::{
    io::Errno,
    process::{self, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, capabilities},
};
use solver::op::{Resource, Ulimit};

use crate::sandbox::{
    SandboxError,
    failure::Failure,
    ids,
    plan::{ProcessLimit, Shortage},
};

/// What a builder opens at most: some files for each layer of a base and each worker.
const BUILDERS_OPEN_FILES: u64 = 65_536;

/// Lets the builder itself open as many files as its hard limit allows, within reason: a login gives 1024, and a base of as many
/// layers is locked layer by layer. What the steps may open is theirs.
pub(super) fn raise_open_files() -> Result<(), Errno> {
    let limit = getrlimit(process::Resource::Nofile);
    let most = limit.maximum.map_or(BUILDERS_OPEN_FILES, |hard| hard.min(BUILDERS_OPEN_FILES));
    match limit.current {
        Some(soft) if soft < most => {
            setrlimit(process::Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum })
        }
        _ => Ok(()),
    }
}

/// Sets them for this process and all that it starts.
pub fn set(limits: &BTreeMap<Resource, ProcessLimit>) -> Result<(), Failure> {
    limits.iter().try_for_each(|(resource, limit)| set_one(*resource, *limit))
}

fn set_one(resource: Resource, ProcessLimit { limit, shortage }: ProcessLimit) -> Result<(), Failure> {
    let kind = kind(resource);
    let wanted = Rlimit { current: limit.soft, maximum: limit.hard };
    let answer = setrlimit(kind, wanted);
    let ours = getrlimit(kind).maximum;
    let answer = match (answer, shortage) {
        (Err(Errno::PERM), Shortage::TakeLess) => {
            let less = |amount: Option<u64>| Some(amount.unwrap_or(u64::MAX).min(ours.unwrap_or(u64::MAX)));
            setrlimit(kind, Rlimit { current: less(limit.soft), maximum: less(limit.hard) })
        }
        (answer, _) => answer,
    };
    answer.map_err(|errno| match errno {
        Errno::PERM => above(resource, limit, ours),
        errno => Failure::new(&step(resource, limit), errno.to_string()),
    })
}

/// Refuses what no step could be given here, before anything is done for it.
///
/// # Errors
/// A limit is above the builder's own hard limit, which it may not raise.
pub fn check(limits: &BTreeMap<Resource, Ulimit>) -> Result<(), SandboxError> {
    if may_raise() {
        return Ok(());
    }
    for (resource, limit) in limits {
        let ours = getrlimit(kind(*resource)).maximum;
        if limit.hard.unwrap_or(u64::MAX) > ours.unwrap_or(u64::MAX) {
            return Err(above(*resource, *limit, ours).into());
        }
    }
    Ok(())
}

fn step(resource: Resource, limit: Ulimit) -> String {
    format!("--ulimit {resource}={limit}")
}

fn above(resource: Resource, limit: Ulimit, ours: Option<u64>) -> Failure {
    let ours = ours.map_or_else(|| "unlimited".to_owned(), |ours| ours.to_string());
    let message = format!("it is above the hard limit that the builder itself has, {ours}");
    let hint = format!(
        "raise the hard limit of {resource} for this user (/etc/security/limits.conf, or Limit{}= of a systemd unit)",
        resource.to_string().to_uppercase()
    );
    Failure::new(&step(resource, limit), message).hint(hint)
}

/// Whether this process may raise its hard limits: only with the capability outside of every user namespace.
pub fn may_raise() -> bool {
    ids::is_initial(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
        && capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

fn kind(resource: Resource) -> process::Resource {
    match resource {
        Resource::As => process::Resource::As,
        Resource::Core => process::Resource::Core,
        Resource::Cpu => process::Resource::Cpu,
        Resource::Data => process::Resource::Data,
        Resource::Fsize => process::Resource::Fsize,
        Resource::Locks => process::Resource::Locks,
        Resource::Memlock => process::Resource::Memlock,
        Resource::Msgqueue => process::Resource::Msgqueue,
        Resource::Nice => process::Resource::Nice,
        Resource::Nofile => process::Resource::Nofile,
        Resource::Nproc => process::Resource::Nproc,
        Resource::Rss => process::Resource::Rss,
        Resource::Rtprio => process::Resource::Rtprio,
        Resource::Rttime => process::Resource::Rttime,
        Resource::Sigpending => process::Resource::Sigpending,
        Resource::Stack => process::Resource::Stack,
    }
}

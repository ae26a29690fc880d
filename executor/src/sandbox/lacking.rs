//! Lines of the sandbox that a machine can lack and a build can do without, if a person says so (`--sandbox-allow`): which
//! step of the set-up each is, and what the kernel says where it is not to be had. Whatever else it says is an error, allowed
//! or not.

use std::io;

use rustix::io::Errno;
use solver::op::Relaxation;

use crate::sandbox::{
    failure::{Failure, NameStep},
    plan::Need,
};

/// A line that a machine can lack.
pub struct Line {
    step: &'static str,
    relaxation: Relaxation,
    lacking: &'static [Errno],
}

/// The system call filter. A kernel can have none (CONFIG_SECCOMP_FILTER), and what is around us can let nobody ask for one.
pub const FILTER: Line = Line {
    step: "load seccomp filter",
    relaxation: Relaxation::NoSeccomp,
    lacking: &[Errno::INVAL, Errno::NOSYS, Errno::PERM],
};

/// A session keyring. The filter of a container, as ours, lets nobody ask for one; and a user can have used up his share.
pub const KEYRING: Line = Line {
    step: "new session keyring",
    relaxation: Relaxation::NoKeyring,
    lacking: &[Errno::PERM, Errno::ACCESS, Errno::DQUOT],
};

/// A control group namespace. A kernel can have none (CONFIG_CGROUPS), or let this user have no more.
pub const CGROUP_NAMESPACE: Line = Line {
    step: "unshare cgroup namespace",
    relaxation: Relaxation::NoCgroupns,
    lacking: &[Errno::INVAL, Errno::NOSPC, Errno::PERM, Errno::USERS],
};

/// How readily the kernel ends a step. Where `/proc` is read-only, nobody can say so.
pub const OOM_SCORE: Line = Line {
    step: "adjust oom score",
    relaxation: Relaxation::NoOomScore,
    lacking: &[Errno::ROFS, Errno::ACCESS, Errno::PERM, Errno::NOENT],
};

const ALL: [&Line; 4] = [&FILTER, &KEYRING, &CGROUP_NAMESPACE, &OOM_SCORE];

impl Line {
    /// What was tried, or nothing where that is lacking and may be.
    pub fn if_had<T>(&self, tried: io::Result<T>, need: Need) -> Result<Option<T>, Failure> {
        match tried {
            Err(error) if need == Need::WherePossible && self.is_lacking(&error) => Ok(None),
            tried => tried.map(Some).step(self.step),
        }
    }

    fn is_lacking(&self, error: &io::Error) -> bool {
        error.raw_os_error().is_some_and(|number| self.lacking.contains(&Errno::from_raw_os_error(number)))
    }
}

/// The flag with which a build goes without what failed.
pub fn flag(step: &str, errno: Option<Errno>) -> Option<String> {
    let errno = errno?;
    let line = ALL.into_iter().find(|line| line.step == step && line.lacking.contains(&errno))?;
    Some(format!("--sandbox-allow={} builds without it (docs/sandbox.md)", line.relaxation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_passed_over_only_if_it_may_be() {
        let refused = || Err::<(), _>(io::Error::from(Errno::PERM));
        assert!(KEYRING.if_had(refused(), Need::Required).is_err());
        assert_eq!(KEYRING.if_had(refused(), Need::WherePossible).ok(), Some(None));
        assert_eq!(KEYRING.if_had(Ok(()), Need::WherePossible).ok(), Some(Some(())));
        let no_memory = Err::<(), _>(io::Error::from(Errno::NOMEM));
        assert!(KEYRING.if_had(no_memory, Need::WherePossible).is_err(), "that is no answer about keyrings");
    }

    #[test]
    fn the_flag_is_named_where_it_helps() {
        let named = |step, errno| flag(step, Some(errno)).unwrap_or_default();
        assert!(named("new session keyring", Errno::PERM).starts_with("--sandbox-allow=no-keyring "));
        assert_eq!(named("new session keyring", Errno::NOMEM), "");
        assert_eq!(named("pivot_root", Errno::PERM), "");
    }
}

//! RUN: a command in the sandbox, on top of the step's parent.

mod mounts;

use oci::Layer;
use solver::{
    Event, FailureKind, Step, StepFailure,
    op::{Exec, Relaxation},
};

use std::{
    mem::take,
    sync::{Arc, PoisonError},
};

use self::mounts::Lent;
use super::{Ground, LocalExecutor, disk, held_together};
use crate::{
    cache_mounts::Held,
    container::FailedStep,
    diff::{Brought, TimeRules},
    error::cancelled,
    listing::Owners,
    sandbox::{Connection, Exit, PlanInputs, Rung, SandboxPlan, User, more_ids},
    users::run_user,
};

impl LocalExecutor {
    pub(super) fn run(&self, step: &Step<'_>, exec: &Exec) -> Result<Layer, StepFailure> {
        self.check_platform(&step.vertex.platform)?;
        let mut ground = self.ground(step)?;
        refuse_foreign_owners("RUN", &ground.owners)?;
        // Before any lock that another one with a job may have: nobody waits for a job who keeps others waiting.
        let job = self
            .job_server
            .as_ref()
            .map(|server| server.job(&self.events, step.cancel).ok_or_else(cancelled));
        let _job = job.transpose()?;
        let held = self.cache_mounts.acquire(step, exec)?;
        let ran = self.run_with(step, exec, &mut ground, &held);
        let ended = held.end(&ground.writable.upper());
        let Ran { exit, plan, lent } = ran?;
        let ended = ended?;
        let full_disk = || disk::full_disk(self.snapshots.store(), self.footing.rung);
        let lacking = || full_disk().or_else(|| not_given(&lent.missing));
        if let Err(failure) = succeeded(exit, exec, self.footing.rung, lacking) {
            if let Some(failed) = &self.failed_steps {
                let kept = (ground.writable, lent, ended, Arc::clone(&self.emulation));
                failed.keep(step.id, FailedStep::new(self.snapshots.clone(), plan, kept));
            }
            return Err(failure);
        }
        // Others need not wait for what is still to be done.
        drop(ended);
        let brought = self.snapshots.brought(ground.parent)?;
        let rules = TimeRules { timestamps: exec.timestamps, brought: Brought::Contents(&brought) };
        if let Some(target) = lent.held_together()?
            && !exec.relaxed.contain(Relaxation::HardLinks)
        {
            return Err(held_together(&format!("in the mount {target}")));
        }
        self.commit(ground, exec.relaxed, rules, &Owners::new())
    }

    /// Runs the command; when this returns, no process of the step is left.
    fn run_with(
        &self,
        step: &Step<'_>,
        exec: &Exec,
        ground: &mut Ground<'_>,
        held: &Held,
    ) -> Result<Ran, StepFailure> {
        let user = run_user(ground.view.root(), &exec.user)?;
        let mut lent = self.lend(step, exec, held)?;
        let root = ground.writable.root(self.footing.rung, held.fresh_root())?;
        let connection = Connection::new(exec.network, &self.dns)?;
        if let Some(doubt) = connection.doubt() {
            self.resolver_told.call_once(|| (self.events)(Event::Warning(doubt)));
        }
        let plan = SandboxPlan::new(PlanInputs {
            exec,
            ambient_env: &step.vertex.ambient_env,
            footing: self.footing,
            root,
            mounts: take(&mut lent.mounts),
            device_env: take(&mut lent.device_env),
            secret_env: take(&mut lent.secret_env),
            user: User { uid: user.uid, gid: user.gid, groups: user.groups },
            home: Some(&user.home),
            connection,
            limits: &self.limits,
        })?;
        let _turn = self.turn.as_ref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        let exit = self.spares.run(&plan, step.log, step.cancel)?;
        Ok(Ran { exit, plan, lent })
    }
}

/// A command that has ended.
struct Ran {
    exit: Exit,
    plan: SandboxPlan,
    /// What it was lent.
    lent: Lent,
}

/// A step that fails may have missed what it declares and does not require.
fn not_given(missing: &[String]) -> Option<String> {
    (!missing.is_empty())
        .then(|| format!("this build was not given {}, which the step can use", missing.join(", ")))
}

/// With one id, every file on disk is root's. A command would see that, and could write it into a layer.
pub(crate) fn refuse_foreign_owners(what: &str, owners: &Owners) -> Result<(), StepFailure> {
    let Some((path, (uid, gid))) = owners.iter().find(|(_, owner)| **owner != (0, 0)) else {
        return Ok(());
    };
    let path = String::from_utf8_lossy(path);
    let message = format!(
        "{what} is not possible here: the file system it would run on has files of other owners than 0:0 \
         (/{path} is {uid}:{gid}), and this user has no such ids"
    );
    Err(StepFailure::new(FailureKind::Machine, message).hint(more_ids()))
}

/// What shells exit with when there is no such command, which is nobody's lack of ids.
const NOT_FOUND: i32 = 127;

fn succeeded(
    exit: Exit,
    exec: &Exec,
    rung: Rung,
    lacking: impl FnOnce() -> Option<String>,
) -> Result<(), StepFailure> {
    let was_executed = !matches!(exit, Exit::NotExecuted { .. });
    let code = exit.code();
    if exit == Exit::Code(0) {
        return Ok(());
    }
    let message = format!("process {:?} did not complete successfully: {exit}", exec.args.join(" "));
    let failure = StepFailure { exit_code: Some(code), ..StepFailure::new(FailureKind::Build, message) };
    if let Some(hint) = limited(&exit).or_else(lacking) {
        return Err(failure.hint(hint));
    }
    if was_executed && code != NOT_FOUND && rung == Rung::SingleId {
        let hint = "this user has one id, so a command that gives files to others fails";
        return Err(failure.hint(format!("{hint}; {}", more_ids())));
    }
    Err(failure)
}

/// What the user has limited, where that is what ended the command.
fn limited(exit: &Exit) -> Option<String> {
    match exit {
        Exit::OutOfMemory { .. } => Some("give the steps more memory with --memory".to_owned()),
        Exit::TimedOut { .. } => Some("give the steps more time with --step-timeout".to_owned()),
        Exit::TookTooMuchRoom(_) => Some("give the steps more room with --step-max-disk".to_owned()),
        Exit::Code(_) | Exit::Signal(_) | Exit::NotExecuted { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sandbox::Excess;

    fn exec() -> Exec {
        Exec::new(["/bin/sh", "-c", "exit 3"])
    }

    #[test]
    fn a_failure_names_the_command_and_how_it_ended() {
        let not_executed = || Exit::NotExecuted { code: 126, message: "exec format error".to_owned() };
        let (root, single) = (Rung::Root, Rung::SingleId);
        let timed_out = Exit::TimedOut { limit: Duration::from_secs(90) };
        let most = Some(("/tmp".to_owned(), 4096));
        let too_much = Exit::TookTooMuchRoom(Excess { limit: 1024, written: 5120, most });
        for (exit, rung, how, code, hint) in [
            (Exit::Code(3), root, "exit code: 3", 3, None),
            (Exit::Code(3), single, "exit code: 3", 3, Some("this user has one id")),
            (Exit::Signal(9), root, "killed by signal 9", 137, None),
            (not_executed(), single, "exec format error", 126, None),
            (
                Exit::OutOfMemory { code: 137 },
                root,
                "exit code: 137: cannot allocate memory",
                137,
                Some("--memory"),
            ),
            (
                too_much,
                root,
                "it has written 5120 bytes, and may write 1024; the most is in /tmp (4096 bytes)",
                153,
                Some("--step-max-disk"),
            ),
            (timed_out, single, "it took longer than 90s", 124, Some("--step-timeout")),
        ] {
            let failure = succeeded(exit, &exec(), rung, || None).expect_err("it failed");
            let want = format!("process \"/bin/sh -c exit 3\" did not complete successfully: {how}");
            assert_eq!((&failure.message, failure.exit_code), (&want, Some(code)));
            assert_eq!(failure.kind, FailureKind::Build);
            assert_eq!(failure.hint.is_some(), hint.is_some(), "{how}");
            assert!(hint.is_none_or(|hint| failure.hint.is_some_and(|text| text.contains(hint))), "{how}");
        }
        let failure = succeeded(Exit::Code(127), &exec(), single, || None).expect_err("it failed");
        assert_eq!(failure.hint, None, "no such command");
        let full = || Some("the disk is full".to_owned());
        let failure = succeeded(Exit::Code(1), &exec(), single, full).expect_err("it failed");
        assert_eq!(failure.hint, full());
        assert!(succeeded(Exit::Code(0), &exec(), root, full).is_ok());
    }

    #[test]
    fn owners_that_the_disk_does_not_hold_keep_commands_away() {
        assert!(refuse_foreign_owners("RUN", &Owners::new()).is_ok());
        assert!(refuse_foreign_owners("RUN", &Owners::from([(b"root".to_vec(), (0, 0))])).is_ok());
        let owners = Owners::from([(b"etc/shadow".to_vec(), (0, 42))]);
        let failure = refuse_foreign_owners("RUN", &owners).expect_err("there is one");
        assert!(failure.message.contains("/etc/shadow is 0:42"), "{failure}");
        assert_eq!(failure.hint, Some(more_ids()));
    }
}

//! What is left of a RUN that has failed, for a shell that looks at it (`--on-failure=shell`).
//!
//! The shell gets the step's own plan: its environment, user, directory, network and mounts. Whatever the step could write
//! lies below a new directory now, so that what the shell changes goes nowhere, not even into cache mounts. These stay the
//! step's until then: nobody empties one below the shell, and who may not share it waits.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use solver::{Cancel, StepFailure, VertexId};

use crate::{
    Snapshots, Writable,
    sandbox::{
        self, Access, Attachment, Exit, FileTree, MountSource, PlannedMount, Root, SandboxPlan, Stdio,
    },
};

/// The steps of a build that have failed, by their place in the graph. A clone is the same list.
#[derive(Clone, Default)]
pub struct FailedSteps {
    steps: Arc<Mutex<BTreeMap<VertexId, FailedStep>>>,
}

impl FailedSteps {
    /// Keeps a step; the last attempt counts.
    pub(crate) fn keep(&self, vertex: VertexId, step: FailedStep) {
        self.steps().insert(vertex, step);
    }

    /// Lets go of all of them, for another attempt, which would wait for what they hold.
    pub fn clear(&self) {
        self.steps().clear();
    }

    /// What is left of a step, if that was a RUN whose command ended badly.
    pub fn take(&self, vertex: VertexId) -> Option<FailedStep> {
        self.steps().remove(&vertex)
    }

    fn steps(&self) -> MutexGuard<'_, BTreeMap<VertexId, FailedStep>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step whose command has ended badly; its files go with this value.
pub struct FailedStep {
    snapshots: Snapshots,
    plan: SandboxPlan,
    _kept: Box<dyn Send>,
}

impl FailedStep {
    /// A step with this plan. `kept` is what must stay for that: where the step has written, and what it was lent.
    pub(crate) fn new(snapshots: Snapshots, plan: SandboxPlan, kept: impl Send + 'static) -> Self {
        Self { snapshots, plan, _kept: Box::new(kept) }
    }

    /// The shell that fits: the step's own, else `/bin/sh`.
    pub fn shell(&self) -> &str {
        shell_of(&self.plan.args)
    }

    /// Runs the shell to its end, on a terminal of this kind (`TERM`) if the step does not set another.
    ///
    /// # Errors
    /// As those of [`sandbox::attach`], or the store cannot be written.
    pub fn run_shell(
        &self,
        stdio: Stdio,
        terminal_kind: &str,
        attachment: &Attachment<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, StepFailure> {
        let (plan, written) = self.shell_plan(terminal_kind)?;
        let exit = sandbox::attach(&plan.with_stdio(stdio), attachment, cancel);
        drop(written);
        Ok(exit?)
    }

    /// The plan, and where it writes.
    fn shell_plan(&self, terminal_kind: &str) -> Result<(SandboxPlan, Vec<Writable>), StepFailure> {
        let mut plan = SandboxPlan { args: vec![self.shell().to_owned()], ..self.plan.clone() };
        // It is neither the step's time that goes by nor its room that is taken.
        plan.limits.time = None;
        plan.limits.room = None;
        if !plan.env.iter().any(|(name, _)| name == "TERM") {
            plan.env.push(("TERM".to_owned(), terminal_kind.to_owned()));
        }
        let mut written = Vec::new();
        let below = match &self.plan.root {
            Root::Overlay { lowers, upper, .. } => on_top(upper, lowers),
            Root::Directory(directory) | Root::Chroot { directory, .. } => vec![directory.clone()],
        };
        let mut scratch = self.snapshots.scratch_over(below)?;
        plan.root = scratch.root(plan.rung, None)?;
        written.push(scratch);
        for PlannedMount { source, .. } in &mut plan.mounts {
            let MountSource::Files { tree, access: Access::Write, .. } = source else { continue };
            let below = match tree {
                FileTree::Place(directory) => vec![directory.clone()],
                FileTree::Merged(lowers) => lowers.clone(),
                FileTree::Scratch { lowers, upper, .. } => on_top(upper, lowers),
            };
            let mut scratch = self.snapshots.scratch_over(below)?;
            *tree = scratch.tree(None)?;
            written.push(scratch);
        }
        Ok((plan, written))
    }
}

fn on_top(upper: &Path, lowers: &[PathBuf]) -> Vec<PathBuf> {
    [upper.to_owned()].into_iter().chain(lowers.iter().cloned()).collect()
}

fn shell_of(args: &[String]) -> &str {
    const SHELLS: [&str; 7] = ["sh", "ash", "bash", "dash", "zsh", "ksh", "fish"];
    let is_shell = |program: &str| SHELLS.contains(&program.rsplit('/').next().unwrap_or(program));
    match args {
        [shell, .., flag, _] if is_shell(shell) && flag.starts_with('-') && flag.ends_with('c') => shell,
        _ => "/bin/sh",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_is_the_steps_own_where_it_has_one() {
        for (args, expected) in [
            ("/bin/sh -c exit", "/bin/sh"),
            ("/bin/bash -o pipefail -c exit", "/bin/bash"),
            ("bash -euxc exit", "bash"),
            ("python3 -c exit", "/bin/sh"),
            ("/bin/bash script", "/bin/sh"),
            ("/app/test", "/bin/sh"),
        ] {
            let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
            assert_eq!(shell_of(&args), expected, "{args:?}");
        }
    }
}

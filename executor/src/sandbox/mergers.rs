//! The programs that merge the layers of one step, where the kernel does not ([`crate::fuse`]): children of its outer init.
//!
//! They begin before the step and end after it, when nobody uses what they serve any more; one that ends earlier takes the step
//! with it, and that is told as what it is and not as the command's fault.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Pid, WaitStatus},
};

use crate::{
    fuse::{self, CloseError, Ended, Merged, Merger},
    sandbox::{
        failure::{Failure, NameStep},
        plan::{Root, SandboxPlan},
    },
};

/// What fails, by name.
pub const STEP: &str = "merge layers";

/// Those of one step.
#[derive(Default)]
pub struct Mergers {
    /// The step's root, and who serves it.
    root: Option<Merged>,
    /// Who serves what is mounted in it.
    others: Vec<Merger>,
    /// Who has ended too early.
    ended: Option<Ended>,
}

impl Mergers {
    /// Who serves a root.
    pub fn of_root(root: &OwnedFd, merger: Option<Merger>) -> Result<Self, Failure> {
        let Some(merger) = merger else { return Ok(Self::default()) };
        let root = fcntl_dupfd_cloexec(root, 3).step(STEP)?;
        Ok(Self { root: Some(Merged::by_program(root, merger)), ..Self::default() })
    }

    /// The same, and those of mounts.
    pub fn and(self, others: Vec<Merger>) -> Self {
        Self { others, ..self }
    }

    /// Their numbers.
    pub fn processes(&self) -> Vec<Pid> {
        let root = self.root.as_ref().and_then(Merged::merger);
        root.into_iter().chain(&self.others).filter_map(Merger::process).collect()
    }

    /// Whether the process that has ended is one of them.
    pub fn note_end(&mut self, process: Pid, status: WaitStatus) -> bool {
        let root = self.root.as_mut().and_then(Merged::merger_mut);
        let mut all = root.into_iter().chain(&mut self.others);
        let Some(merger) = all.find(|merger| merger.process() == Some(process)) else { return false };
        // What it served may have gone with the step, whose end we hear of next: then this is none.
        if let Err(ended) = merger.was_waited_for(status) {
            self.ended.get_or_insert(ended);
        }
        true
    }

    /// Leaves them to the parent, in a child.
    pub fn disown(self) {
        self.root.into_iter().for_each(Merged::disown);
        self.others.into_iter().for_each(Merger::disown);
    }

    /// Ends them, when the step is no more, and settles what it has written to its root.
    pub fn close(self, plan: &SandboxPlan) -> Result<(), Failure> {
        if let Some(ended) = self.ended {
            return Err(Failure::new(STEP, ended.to_string()));
        }
        if let (Some(root), Root::Overlay { lowers, upper, .. }) = (self.root, &plan.root) {
            close_root(root, upper, lowers)?;
        }
        // What they serve is nobody's any more, and nobody keeps what was written there.
        self.others
            .into_iter()
            .try_for_each(Merger::end)
            .map_err(|ended| Failure::new(STEP, ended.to_string()))
    }
}

fn close_root(root: Merged, upper: &Path, lowers: &[PathBuf]) -> Result<(), Failure> {
    fuse::close(root, upper, lowers).map_err(|error| match error {
        CloseError::Unlike(_) => Failure::new(STEP, error.to_string()).hint(fuse::OTHERWISE),
        CloseError::Ended(ended) => Failure::new(STEP, ended.to_string()),
        CloseError::Path(error) => Failure::new(STEP, format!("{error}: {}", error.source)),
    })
}

//! What the steps of a build stand on: whose ids they have, what separates their processes, where their file systems come from.

use serde::{Deserialize, Serialize};
use solver::op::Relaxations;

/// Whose ids a build has: how much of the machine is behind the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Real root, host ids.
    Root,
    /// A user namespace with a range of ids.
    SubordinateIds,
    /// A user namespace that holds one id, 0.
    SingleId,
    /// Root of a container that allows neither namespaces nor mounts: a directory is all that a step has of its own. Nobody gets
    /// it who has not named it.
    Chroot,
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Rung::Root => "root",
            Rung::SubordinateIds => "user namespace with subordinate ids",
            Rung::SingleId => "user namespace with one id",
            Rung::Chroot => "chroot, without namespaces, mounts and /proc",
        })
    }
}

/// How the processes of a step are kept apart from all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Processes {
    /// A PID namespace and a `/proc` of its own.
    #[default]
    Own,
    /// A PID namespace, and the machine's `/proc`, read-only. There the step sees that other processes exist, and what
    /// their command lines are.
    OuterProc,
    /// The machine's PID namespace, and its `/proc`, read-only (in a chroot none at all). Only Landlock keeps it from signalling
    /// others of the same user.
    Shared,
}

/// How the file system of a step comes about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Files {
    /// The kernel merges layers.
    #[default]
    Merged,
    /// fuse-overlayfs does, where the kernel refuses.
    Fused,
    /// It is a copy of the one before, and all of it is looked at afterwards.
    Copied,
}

/// What the steps of a build stand on: the rung of the ladder that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footing {
    /// Whose ids.
    pub rung: Rung,
    /// What separates processes.
    pub processes: Processes,
    /// Where file systems come from; [`crate::sandbox::settle_files`] says.
    pub files: Files,
    /// What the command line lets go.
    pub relaxed: Relaxations,
}

impl std::fmt::Display for Footing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.rung.fmt(f)?;
        if self.rung != Rung::Chroot {
            f.write_str(match self.processes {
                Processes::Own => "",
                Processes::OuterProc => ", with this machine's /proc",
                Processes::Shared => ", with this machine's /proc and processes",
            })?;
            f.write_str(match self.files {
                Files::Merged => "",
                Files::Fused => ", with fuse-overlayfs",
                Files::Copied => ", with copies for overlays",
            })?;
        }
        match self.relaxed.is_empty() {
            true => Ok(()),
            false => write!(f, "; allowed: {}", self.relaxed),
        }
    }
}

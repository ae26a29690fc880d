//! A command in a file system that nobody keeps: what `layerwright run` runs, and the shell of `--on-failure`.
//!
//! Both stand in the sandbox of RUN, on a fresh overlay whose upper directory is one of the store's temporaries: it goes with
//! the value that holds it, and after `kill -9` with the next opening of the store.

mod failed;

use std::{collections::BTreeSet, fs, path::Path};

use oci::{Platform, Snapshot, store::TempDir};
use rustix::{fs::OFlags, io::Errno};
use solver::{Cancel, FailureKind, StepFailure, op::Exec};

use crate::{
    Snapshots, Writable,
    error::{blame, in_store},
    executor::refuse_foreign_owners,
    sandbox::{
        self, Access, Attachment, Connection, Dns, Exit, FileTree, Footing, MountSource, Naming, PlanInputs,
        PlannedMount, Rung, SandboxPlan, Stdio, StepLimits, User,
        emulation::{self, Emulation},
    },
    snapshot::SnapshotError,
    users::run_user,
};
pub use failed::{FailedStep, FailedSteps};

/// What is run in an image.
#[derive(Debug, Clone)]
pub struct Container {
    /// The command and what it is given; `mounts`, `devices` and `script` of it must be empty.
    pub exec: Exec,
    /// The platform of the image.
    pub platform: Platform,
    /// Directories and files of the machine, and memory.
    pub mounts: Vec<PlannedMount>,
    /// Absolute clean paths that can be written whatever `root` says, and hold at first what the image has there. Where
    /// something is mounted, that is there instead.
    pub volumes: BTreeSet<String>,
    /// Whether the rest of the file system can be written.
    pub root: Access,
    /// Its standard streams.
    pub stdio: Stdio,
    /// What it may use.
    pub limits: StepLimits,
    /// Its resolver configuration, where it is not ours.
    pub dns: Dns,
    /// Whether somebody has asked for the host name in `exec`.
    pub naming: Naming,
}

/// A container whose image is on disk; what it writes goes with this value.
pub struct Prepared {
    plan: SandboxPlan,
    _written: Vec<Writable>,
    _volumes: Vec<TempDir>,
    /// What runs the programs, if that is registered for us: it goes with this.
    _emulation: Emulation,
}

impl Container {
    /// Makes everything ready; what is missing of the image is pulled.
    ///
    /// # Errors
    /// The image cannot be had, or cannot be run by these ids; its user is none of its own.
    pub fn prepare(
        &self,
        snapshots: &Snapshots,
        footing: Footing,
        image: &Snapshot,
    ) -> Result<Prepared, StepFailure> {
        // What is written for it is in the store.
        self.make(snapshots, footing, image).map_err(|failure| in_store(failure, snapshots.store().root()))
    }

    fn make(
        &self,
        snapshots: &Snapshots,
        footing: Footing,
        image: &Snapshot,
    ) -> Result<Prepared, StepFailure> {
        let emulation = self.check_platform(snapshots, footing)?;
        snapshots.check_mountable(image)?;
        let owners = snapshots.owners(image)?;
        refuse_foreign_owners("a container", &owners)?;
        let view = snapshots.view(image)?;
        let user = run_user(view.root(), &self.exec.user)?;
        let mut root = snapshots.scratch(image)?;
        let mut prepared = Volumes { mounts: self.mounts.clone(), written: Vec::new(), made: Vec::new() };
        let is_covered = |volume: &&String| !self.mounts.iter().any(|mount| mount.target == **volume);
        if footing.rung == Rung::Chroot {
            // Nobody keeps the rest either.
            sandbox::make_directories(&root.upper(), &self.volumes)?;
        }
        let mounted = self.volumes.iter().filter(|_| footing.rung != Rung::Chroot);
        for volume in mounted.filter(is_covered) {
            let is_there = match view.open(volume.as_bytes(), OFlags::PATH) {
                Ok(_) => true,
                Err(Errno::NOENT) => false,
                Err(errno) => return Err(blame(FailureKind::Build, std::io::Error::from(errno))),
            };
            prepared.add(snapshots, image, volume, is_there)?;
        }
        let Volumes { mounts, mut written, made } = prepared;
        let connection = Connection::new(self.exec.network, &self.dns)?;
        connection.doubt().into_iter().for_each(|doubt| snapshots.warn(doubt));
        let plan = SandboxPlan::new(PlanInputs {
            exec: &self.exec,
            ambient_env: &[],
            footing,
            root: root.root(footing.rung, None)?,
            mounts,
            device_env: Vec::new(),
            secret_env: Vec::new(),
            user: User { uid: user.uid, gid: user.gid, groups: user.groups },
            home: Some(&user.home),
            connection,
            limits: &self.limits,
        })?
        .with_stdio(self.stdio)
        .with_naming(self.naming);
        written.push(root);
        let plan = match self.root {
            Access::Write => plan,
            Access::Read => plan.with_read_only_root()?,
        };
        Ok(Prepared { plan, _written: written, _volumes: made, _emulation: emulation })
    }

    /// Finds out whether its programs can run; they can for as long as the answer is kept.
    fn check_platform(&self, snapshots: &Snapshots, footing: Footing) -> Result<Emulation, StepFailure> {
        let emulation = Emulation::new(footing);
        if emulation::is_native(&self.platform) {
            return Ok(emulation);
        }
        let scratch = snapshots.store().temp_dir("platform").map_err(SnapshotError::from)?;
        match emulation.support(&self.platform, &scratch.path().join("trial")) {
            Ok(_) => Ok(emulation),
            Err(error) => Err(StepFailure::new(FailureKind::Machine, error.to_string()).hint(error.hint())),
        }
    }
}

impl Prepared {
    /// What it will see and may do.
    pub fn plan(&self) -> &SandboxPlan {
        &self.plan
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The sandbox could not be set up; what it says could not be passed on; it was stopped.
    pub fn run(&self, attachment: &Attachment<'_>, cancel: &Cancel) -> Result<Exit, StepFailure> {
        Ok(sandbox::attach(&self.plan, attachment, cancel)?)
    }
}

/// The volumes of an image on their way into the plan.
struct Volumes {
    mounts: Vec<PlannedMount>,
    written: Vec<Writable>,
    made: Vec<TempDir>,
}

impl Volumes {
    fn add(
        &mut self,
        snapshots: &Snapshots,
        image: &Snapshot,
        volume: &str,
        is_there: bool,
    ) -> Result<(), StepFailure> {
        let (tree, path) = if is_there {
            let mut scratch = snapshots.scratch(image)?;
            let tree = scratch.tree(None)?;
            self.written.push(scratch);
            (tree, volume)
        } else {
            let directory = snapshots.store().temp_dir("volume").map_err(SnapshotError::from)?;
            let inside = directory.path().join("volume");
            make_directory(&inside)?;
            self.made.push(directory);
            (FileTree::Place(inside), "/")
        };
        let source = MountSource::Files { tree, path: path.to_owned(), access: Access::Write };
        self.mounts.push(PlannedMount { target: volume.to_owned(), source });
        Ok(())
    }
}

/// A directory that everybody in a container can enter.
fn make_directory(path: &Path) -> Result<(), StepFailure> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|error| blame(FailureKind::Machine, error))
}

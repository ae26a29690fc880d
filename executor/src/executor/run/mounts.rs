//! What the mounts of a RUN come to on this machine: directories of snapshots, values of secrets, sockets of agents.

use std::path::{Path, PathBuf};

use oci::store::TempDir;
use rustix::{fs::OFlags, io::Errno};
use solver::{
    FailureKind, Input, Step, StepFailure, Stream,
    op::{BindMount, CacheMount, Exec, Mount, SecretMount, SshMount},
};

use super::super::{LocalExecutor, planner_mistake};
use crate::{
    View,
    agents::Proxy,
    cache_mounts::Held,
    cdi::{self, Edits},
    error::blame,
    listing::Owners,
    sandbox::{Access, FileTree, Files, MountSource, PlanError, PlannedMount, Rung, SecretBytes, more_ids},
    snapshot::Writable,
};

/// What a step is lent. To be kept until it has ended: what is written to it goes with this value.
#[derive(Default)]
pub struct Lent {
    pub mounts: Vec<PlannedMount>,
    pub device_env: Vec<(String, String)>,
    pub secret_env: Vec<(String, SecretBytes)>,
    /// What the step would take and nobody gave, with the flags that give it.
    pub missing: Vec<String>,
    /// Where bind mounts are written, and where the step sees them.
    scratch: Vec<(String, Writable)>,
    /// Sockets of agents, and where they lie.
    sockets: Vec<(Proxy, TempDir)>,
}

impl Lent {
    /// A mount in which the step did something to a file with several names that copies keep one: what it has made of it may be
    /// another thing on an overlay.
    pub fn held_together(&self) -> Result<Option<&str>, StepFailure> {
        for (target, scratch) in &self.scratch {
            if scratch.holds_together()? {
                return Ok(Some(target));
            }
        }
        Ok(None)
    }
}

impl LocalExecutor {
    /// Gets everything that the step's mounts name.
    pub(super) fn lend(&self, step: &Step<'_>, exec: &Exec, held: &Held) -> Result<Lent, StepFailure> {
        let mut lent = Lent::default();
        devices(step, exec, &mut lent)?;
        for (index, mount) in exec.mounts.iter().enumerate() {
            match mount {
                Mount::Bind(bind) => self.bind(step, bind, held.fresh(index), &mut lent)?,
                Mount::Cache(cache) => lent.mounts.push(cache_mount(cache, held.directory(index))?),
                Mount::Tmpfs { target, size } => {
                    let source = MountSource::Tmpfs { size: *size };
                    lent.mounts.push(PlannedMount { target: target.clone(), source });
                }
                Mount::Secret(secret) => self.secret(secret, &mut lent)?,
                Mount::Ssh(ssh) => self.ssh(ssh, &mut lent)?,
            }
        }
        Ok(lent)
    }

    fn bind(
        &self,
        step: &Step<'_>,
        bind: &BindMount,
        fresh: Option<&Path>,
        lent: &mut Lent,
    ) -> Result<(), StepFailure> {
        let BindMount { target, input, source, writable } = bind;
        let input = step.inputs.get(*input).ok_or_else(|| planner_mistake("a mount names no input"))?;
        self.check_source(input, source)?;
        // Other times than those of the snapshot need a copy of it where they cannot lie on top.
        let is_copied = *writable || (fresh.is_some() && self.footing.files == Files::Copied);
        let access = if *writable { Access::Write } else { Access::Read };
        let tree = if is_copied {
            let mut scratch = self.snapshots.scratch(input.snapshot)?;
            let tree = scratch.tree(fresh)?;
            lent.scratch.push((target.clone(), scratch));
            tree
        } else {
            let fresh = fresh.map(Path::to_owned).into_iter();
            read_only(fresh.chain(self.snapshots.readable(input.snapshot)?).collect())
        };
        let source = MountSource::Files { tree, path: source.clone(), access };
        lent.mounts.push(PlannedMount { target: target.clone(), source });
        Ok(())
    }

    /// Whether there is something at a mount's source that this user's ids can show.
    fn check_source(&self, input: &Input<'_>, source: &str) -> Result<(), StepFailure> {
        let view = self.snapshots.view(input.snapshot)?;
        let found = view.open(source.as_bytes(), OFlags::PATH).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => {
                StepFailure::new(FailureKind::Build, format!("{source:?}: not found"))
            }
            errno => blame(FailureKind::Build, std::io::Error::from(errno)),
        })?;
        let owners = self.snapshots.owners(input.snapshot)?;
        if owners.values().all(|owner| *owner == (0, 0)) {
            return Ok(());
        }
        refuse_foreign_owners(&owners, &path_in(&view, &found)?)
    }

    fn secret(&self, secret: &SecretMount, lent: &mut Lent) -> Result<(), StepFailure> {
        let SecretMount { id, required, file, variable } = secret;
        let Some(value) = self.secrets.get(id).map_err(|error| blame(FailureKind::Build, error))? else {
            let missing = StepFailure::new(FailureKind::Build, format!("secret {id}: not found"));
            let flags = format!("--secret id={id},src=FILE or --secret id={id},env=VARIABLE");
            if *required {
                return Err(missing.hint(format!("give it with {flags}")));
            }
            lent.missing.push(format!("the secret {id} ({flags})"));
            return Ok(());
        };
        if let Some(file) = file {
            let content = SecretBytes(value.clone());
            let source = MountSource::Secret { content, mode: file.mode, uid: file.uid, gid: file.gid };
            lent.mounts.push(PlannedMount { target: file.target.clone(), source });
        }
        lent.secret_env.extend(variable.iter().map(|name| (name.clone(), SecretBytes(value.clone()))));
        Ok(())
    }

    fn ssh(&self, ssh: &SshMount, lent: &mut Lent) -> Result<(), StepFailure> {
        let SshMount { id, required, socket } = ssh;
        let (target, uid, gid) = (&socket.target, socket.uid, socket.gid);
        if self.footing.rung == Rung::SingleId && (uid, gid) != (0, 0) {
            return Err(PlanError::MountOwner { target: target.clone(), uid, gid }.into());
        }
        let directory =
            self.snapshots.store().temp_dir("ssh").map_err(|error| blame(FailureKind::Machine, error))?;
        let Some(proxy) = self.agents.proxy(id, directory.path())? else {
            let missing = format!("no SSH key {id:?} forwarded from the client");
            if *required {
                let hint = format!("give it with --ssh {id}, or --ssh {id}=SOCKET or a key file");
                return Err(StepFailure::new(FailureKind::Build, missing).hint(hint));
            }
            lent.missing.push(format!("an SSH agent (--ssh {id})"));
            return Ok(());
        };
        proxy.give_to(uid, gid, socket.mode).map_err(|error| {
            let message = format!("the socket at {target} cannot be given to {uid}:{gid}: {error}");
            StepFailure::caused(FailureKind::Machine, message, error)
        })?;
        let source = MountSource::Socket(proxy.socket().to_owned());
        lent.mounts.push(PlannedMount { target: target.clone(), source });
        lent.sockets.push((proxy, directory));
        Ok(())
    }
}

fn devices(step: &Step<'_>, exec: &Exec, lent: &mut Lent) -> Result<(), StepFailure> {
    let Edits { mounts, env, missing } = cdi::edits(&exec.devices, &cdi::DIRECTORIES.map(Path::new))?;
    for name in missing {
        (step.log)(Stream::Stderr, format!("optional device {name:?} is not registered").as_bytes());
    }
    lent.mounts.extend(mounts);
    lent.device_env.extend(env);
    Ok(())
}

/// An overlay that nobody writes has two directories at least; the only one there can be is that of `scratch` or a copy.
fn read_only(mut lowers: Vec<PathBuf>) -> FileTree {
    match lowers.pop() {
        Some(only) if lowers.is_empty() => FileTree::Place(only),
        last => FileTree::Merged(lowers.into_iter().chain(last).collect()),
    }
}

fn cache_mount(cache: &CacheMount, directory: Option<&Path>) -> Result<PlannedMount, StepFailure> {
    let directory = directory.ok_or_else(|| planner_mistake("a cache mount has no directory"))?;
    let source = MountSource::Files {
        tree: FileTree::Place(directory.to_owned()),
        path: "/".to_owned(),
        access: if cache.read_only { Access::Read } else { Access::Write },
    };
    Ok(PlannedMount { target: cache.target.clone(), source })
}

/// Where an open file lies in a view, without a slash in front.
fn path_in(view: &View, found: &std::os::fd::OwnedFd) -> Result<Vec<u8>, StepFailure> {
    use std::os::{fd::AsRawFd, unix::ffi::OsStringExt};
    let name = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}"));
    let failed = |error| blame(FailureKind::Machine, error);
    let root = name(view.root().as_raw_fd()).map_err(failed)?;
    let path = name(found.as_raw_fd()).map_err(failed)?;
    let below = path.strip_prefix(&root).unwrap_or(&path);
    Ok(below.to_owned().into_os_string().into_vec())
}

/// With one id, every file on disk is root's: who copies out of such a mount would copy the wrong owners.
fn refuse_foreign_owners(owners: &Owners, below: &[u8]) -> Result<(), StepFailure> {
    let is_shown = |path: &[u8]| match path.strip_prefix(below) {
        Some(rest) => below.is_empty() || rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    };
    let foreign = owners.iter().find(|(path, owner)| **owner != (0, 0) && is_shown(path));
    let Some((path, (uid, gid))) = foreign else { return Ok(()) };
    let path = String::from_utf8_lossy(path);
    let message = format!(
        "a bind mount is not possible here: it would show files of other owners than 0:0 (/{path} is {uid}:{gid}), and \
         this user has no such ids"
    );
    Err(StepFailure::new(FailureKind::Machine, message).hint(more_ids()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_count_where_the_mount_shows_them() {
        let owners = Owners::from([(b"usr/bin/x".to_vec(), (0, 8)), (b"usr/lib".to_vec(), (0, 0))]);
        for (below, is_refused) in [
            ("", true),
            ("usr", true),
            ("usr/bin", true),
            ("usr/bin/x", true),
            ("usr/lib", false),
            ("usr/b", false),
            ("us", false),
            ("usr/bin/x/y", false),
        ] {
            assert_eq!(refuse_foreign_owners(&owners, below.as_bytes()).is_err(), is_refused, "{below}");
        }
    }

    #[test]
    fn one_directory_is_no_overlay() {
        let paths = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(PathBuf::from).collect() };
        assert_eq!(read_only(paths(&["a"])), FileTree::Place("a".into()));
        assert_eq!(read_only(paths(&["a", "b", "c"])), FileTree::Merged(paths(&["a", "b", "c"])));
    }
}

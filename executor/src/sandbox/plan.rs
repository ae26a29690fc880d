//! What a step sees and may do, as plain data: the init does what stands here and nothing else.
//!
//! A plan can be compared, printed and sent over a pipe. Everything in it is a number, a path or a closed enum; names
//! were looked up before, and an unknown value does not deserialise. There is one constructor, so no entry point can
//! forget a protection.

mod chroot;
mod command;
mod error;
mod footing;
mod limits;
mod mounts;
mod names;
mod security;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use solver::op::{self, Relaxation};

use crate::{fuse, mount::OverlayMarks, sandbox::network::Connection};

use chroot::beyond_chroot;
pub use chroot::refuse_beyond_chroot;
use command::{add_agent, check_strings, checked_secrets, environment};
pub use error::PlanError;
pub use footing::{Files, Footing, Processes, Rung};
pub use limits::{
    Amount, Group, GroupLimits, Limits, OPEN_FILES_HARD, PROCESSES, ProcessLimit, ProcessorTime, Shortage,
    StepLimits,
};
pub use mounts::{Access, FileTree, MountSource, PlannedMount, SecretBytes};
pub use names::Naming;
use names::{hostname, hosts};
pub use security::{Capability, Hidden, Keyring, Locked, Need, Nesting, Scope, SeccompProfile, Security};

/// Everything a step sees and may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxPlan {
    /// Whose ids the builder has.
    pub rung: Rung,
    /// The program that merges layers, where the kernel does not.
    pub merger: Option<PathBuf>,
    /// The root file system.
    pub root: Root,
    /// Files that are there while the step runs and in no layer.
    pub files: Vec<ProvidedFile>,
    /// What is mounted besides, in the order in which it is mounted: what is above comes first.
    pub mounts: Vec<PlannedMount>,
    /// Command and arguments; the command is looked up in the environment's PATH.
    pub args: Vec<String>,
    /// The whole environment but for `secret_env`, every name once.
    pub env: Vec<(String, String)>,
    /// Variables whose values are secrets; no name of them is in `env`.
    pub secret_env: Vec<(String, SecretBytes)>,
    /// Absolute working directory; made, owned by root, where it is missing.
    pub cwd: String,
    /// Whose process it is.
    pub user: User,
    /// What `hostname` says.
    pub hostname: String,
    /// Whether anybody has asked for that name.
    pub naming: Naming,
    /// The network.
    pub network: Network,
    /// What separates its processes.
    pub processes: Processes,
    /// How much it may use.
    pub limits: Limits,
    /// How much the kernel lets it do.
    pub security: Security,
    /// Whom its signals and abstract sockets reach.
    pub scope: Scope,
    /// Whose keys it has.
    pub keyring: Keyring,
    /// Whether it must have a control group namespace of its own.
    pub cgroup_namespace: Need,
    /// Whether it must go before others when memory runs out.
    pub oom_score: Need,
    /// What its standard streams are.
    pub stdio: Stdio,
    /// Whether it can write to its root file system; what is mounted there has its own say.
    pub root_access: Access,
}

/// The root file system of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// Directories to merge.
    Overlay {
        /// The directories below, topmost first; at least one.
        lowers: Vec<PathBuf>,
        /// Where changes arrive. Its own mode and owner are those of `/`. It can be run on once: the overlay keeps no
        /// promise about a second time.
        upper: PathBuf,
        /// The overlay's own directory, empty, on the same file system as `upper`.
        work: PathBuf,
    },
    /// One directory that the step changes in place.
    Directory(PathBuf),
    /// The same without a mount: what the step is to find in the place of the image's own is put there, and taken away after.
    Chroot {
        /// The whole file system.
        directory: PathBuf,
        /// Where what is of the image is kept meanwhile, and where what was in its place goes: on the same file system, and out
        /// of reach of the step.
        aside: PathBuf,
    },
}

/// The standard streams of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// There is nothing to read, and two pipes to the builder take what it says.
    Logged,
    /// The same, with a pipe to read from.
    Fed,
    /// A terminal of its own, of this size at first.
    Terminal {
        /// Lines; 0 is unknown.
        rows: u16,
        /// Characters in a line; 0 is unknown.
        columns: u16,
    },
}

/// A read-only file that is mounted into a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvidedFile {
    /// Absolute path inside.
    pub target: String,
    /// What stands in it.
    pub content: String,
    /// Permission bits; the owner is root.
    pub mode: u32,
}

/// Ids of a process. Names were looked up in the image before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The network of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The one the builder has.
    Default,
    /// A network namespace with nothing but loopback.
    None,
    /// The host's, asked for by name; the same as [`Network::Default`], kept apart so that it can be seen.
    Host,
    /// A network namespace that a user-mode stack connects with the outside, and with nothing of this machine.
    Isolated {
        /// Where `pasta` is.
        program: PathBuf,
    },
}

/// What a plan is made of.
#[derive(Debug, Clone)]
pub struct PlanInputs<'a> {
    /// The operation.
    pub exec: &'a op::Exec,
    /// Variables that reach the process but no key; one that the operation sets itself wins.
    pub ambient_env: &'a [(String, String)],
    /// What the builder has found.
    pub footing: Footing,
    /// The root file system.
    pub root: Root,
    /// What `exec.mounts` come to, in any order.
    pub mounts: Vec<PlannedMount>,
    /// Variables of devices; they win over those of the operation.
    pub device_env: Vec<(String, String)>,
    /// Variables whose values are secrets; they win over those of the operation.
    pub secret_env: Vec<(String, SecretBytes)>,
    /// What `exec.user` was resolved to.
    pub user: User,
    /// The user's home directory in the image: `HOME` where the operation sets none.
    pub home: Option<&'a str>,
    /// What `exec.network` came to.
    pub connection: Connection,
    /// What the command line lets every step use.
    pub limits: &'a StepLimits,
}

impl SandboxPlan {
    /// The plan of an operation. The only way to make one.
    ///
    /// # Errors
    /// The operation asks for something that no process can be given, or for ids the rung does not have.
    pub fn new(inputs: PlanInputs<'_>) -> Result<SandboxPlan, PlanError> {
        let exec = inputs.exec;
        let Footing { rung, processes, relaxed, files } = inputs.footing;
        let merger = fuse::program().filter(|_| files == Files::Fused);
        let relaxed = relaxed.and(exec.relaxed);
        if rung == Rung::Chroot
            && let Some(what) = beyond_chroot(exec, &inputs.mounts).into_iter().next()
        {
            return Err(PlanError::BeyondChroot { what });
        }
        check_strings(exec, inputs.ambient_env)?;
        check_strings(exec, &inputs.device_env)?;
        let set: Vec<_> = exec.env.iter().chain(&inputs.device_env).cloned().collect();
        let mut env = environment(&set, inputs.ambient_env, inputs.home);
        add_agent(&mut env, &exec.mounts);
        env.retain(|(name, _)| !inputs.secret_env.iter().any(|(secret, _)| secret == name));
        Ok(SandboxPlan {
            rung,
            merger: merger.map(Path::to_owned),
            root: inputs.root,
            files: provided_files(exec, &inputs.connection)?,
            mounts: checked_mounts(inputs.mounts, rung)?,
            args: exec.args.clone(),
            env,
            secret_env: checked_secrets(inputs.secret_env)?,
            cwd: exec.workdir.clone(),
            user: checked_user(inputs.user, rung)?,
            hostname: hostname(exec).to_owned(),
            naming: Naming::of(exec.hostname.as_deref()),
            network: inputs.connection.network,
            processes,
            limits: Limits::new(exec, inputs.limits),
            security: Security::new(exec.security, inputs.footing, relaxed),
            scope: Scope::new(processes),
            keyring: Keyring::new(rung, relaxed),
            cgroup_namespace: Need::unless(relaxed, Relaxation::NoCgroupns),
            oom_score: Need::unless(relaxed, Relaxation::NoOomScore),
            stdio: Stdio::Logged,
            root_access: Access::Write,
        })
    }

    /// How its layers are marked.
    pub fn marks(&self) -> OverlayMarks {
        match self.merger {
            Some(_) => OverlayMarks::Names,
            None => self.rung.into(),
        }
    }

    /// The same for a command that somebody watches and may answer.
    pub fn with_stdio(self, stdio: Stdio) -> Self {
        Self { stdio, ..self }
    }

    /// The same with a name of the machine that is to be had, or that it can do without.
    pub fn with_naming(self, naming: Naming) -> Self {
        Self { naming, ..self }
    }

    /// The same with a root file system that cannot be written.
    ///
    /// # Errors
    /// [`PlanError::BeyondChroot`]
    pub fn with_read_only_root(self) -> Result<Self, PlanError> {
        match self.rung {
            Rung::Chroot => Err(PlanError::BeyondChroot { what: "a root that is read-only".to_owned() }),
            _ => Ok(Self { root_access: Access::Read, ..self }),
        }
    }

    /// The plan of one program without arguments, in a root of which nothing else is known.
    ///
    /// # Errors
    /// As [`SandboxPlan::new`].
    pub(super) fn bare(program: &str, footing: Footing, root: Root) -> Result<SandboxPlan, PlanError> {
        SandboxPlan::new(PlanInputs {
            exec: &op::Exec::new([program]),
            ambient_env: &[],
            footing,
            root,
            mounts: Vec::new(),
            device_env: Vec::new(),
            secret_env: Vec::new(),
            user: User::default(),
            home: None,
            connection: Connection::resolved_by(Network::Default, String::new()),
            limits: &StepLimits::default(),
        })
    }
}

/// One id: user and group must be 0. The kernel lets nobody change supplementary groups there, so the image's are left
/// out, and the building user's own stay; no file a step can see belongs to them.
fn checked_user(user: User, rung: Rung) -> Result<User, PlanError> {
    match rung {
        Rung::Root | Rung::SubordinateIds | Rung::Chroot => Ok(user),
        Rung::SingleId if (user.uid, user.gid) == (0, 0) => Ok(User::default()),
        Rung::SingleId => Err(PlanError::OneIdOnly { uid: user.uid, gid: user.gid }),
    }
}

/// Whatever is mounted below something comes after it; of several with one target, the last.
fn checked_mounts(mounts: Vec<PlannedMount>, rung: Rung) -> Result<Vec<PlannedMount>, PlanError> {
    let mut by_target = BTreeMap::new();
    for mount in mounts {
        let is_clean = mount.target.starts_with('/') && !mount.target.contains('\0');
        if !is_clean || mount.target.trim_matches('/').is_empty() {
            return Err(PlanError::MountTarget(mount.target));
        }
        if let MountSource::Secret { uid, gid, .. } = mount.source
            && rung == Rung::SingleId
            && (uid, gid) != (0, 0)
        {
            return Err(PlanError::MountOwner { target: mount.target, uid, gid });
        }
        by_target.insert(mount.target.clone(), mount);
    }
    Ok(by_target.into_values().collect())
}

fn provided_files(exec: &op::Exec, connection: &Connection) -> Result<Vec<ProvidedFile>, PlanError> {
    let hosts = hosts(exec, &connection.network)?;
    let resolv_conf = connection.resolv_conf.clone();
    let mut files = vec![
        ProvidedFile { target: "/etc/resolv.conf".to_owned(), content: resolv_conf, mode: 0o644 },
        ProvidedFile { target: "/etc/hosts".to_owned(), content: hosts, mode: 0o644 },
    ];
    if let Some(script) = &exec.script {
        files.push(ProvidedFile { target: script.path(), content: script.content.clone(), mode: 0o755 });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use solver::op::Relaxations;

    use super::*;

    fn exec() -> op::Exec {
        op::Exec::new(["true"])
    }

    fn plan(exec: &op::Exec, rung: Rung, user: User) -> Result<SandboxPlan, PlanError> {
        let root = Root::Directory("/".into());
        SandboxPlan::new(PlanInputs {
            exec,
            ambient_env: &[],
            footing: Footing {
                rung,
                processes: Processes::Own,
                files: Files::Merged,
                relaxed: Relaxations::default(),
            },
            root,
            mounts: Vec::new(),
            device_env: Vec::new(),
            secret_env: Vec::new(),
            user,
            home: None,
            connection: Connection::resolved_by(Network::Default, "ns".to_owned()),
            limits: &StepLimits::default(),
        })
    }

    #[test]
    fn one_id_is_root_without_groups() {
        let user = |uid, gid| User { uid, gid, groups: vec![1, 2] };
        assert_eq!(plan(&exec(), Rung::SingleId, user(0, 0)).unwrap().user, User::default());
        assert_eq!(plan(&exec(), Rung::SubordinateIds, user(7, 8)).unwrap().user, user(7, 8));
        for (uid, gid) in [(1, 0), (0, 1)] {
            let refused = plan(&exec(), Rung::SingleId, user(uid, gid)).unwrap_err();
            assert_eq!(refused, PlanError::OneIdOnly { uid, gid });
        }
    }

    #[test]
    fn this_machine_has_a_name_where_it_can_be_reached() {
        let named = op::Exec { hosts: vec![("me".to_owned(), "host-gateway".to_owned())], ..exec() };
        let isolated = Network::Isolated { program: "/usr/bin/pasta".into() };
        for network in [Network::Default, Network::Host] {
            assert!(hosts(&named, &network).unwrap().ends_with("127.0.0.1\tme\n"));
        }
        assert!(hosts(&named, &Network::None).unwrap().ends_with("192.0.0.8\tme\n"));
        assert_eq!(hosts(&named, &isolated).unwrap_err(), PlanError::HostGateway { name: "me".to_owned() });
    }

    #[test]
    fn what_no_process_can_be_given_is_refused() {
        let strange = |change: fn(&mut op::Exec)| {
            let mut exec = exec();
            change(&mut exec);
            plan(&exec, Rung::Root, User::default()).unwrap_err()
        };
        assert_eq!(strange(|exec| exec.args.clear()), PlanError::NoCommand);
        assert_eq!(strange(|exec| exec.args[0].clear()), PlanError::NoCommand);
        assert_eq!(strange(|exec| exec.args.push("a\0".to_owned())), PlanError::Nul { what: "an argument" });
        assert_eq!(
            strange(|exec| exec.env = vec![("a".to_owned(), "\0".to_owned())]),
            PlanError::Nul { what: "an environment variable" }
        );
        assert_eq!(
            strange(|exec| exec.workdir = "a".to_owned()),
            PlanError::RelativeDirectory("a".to_owned())
        );
    }

    #[test]
    fn unknown_values_are_no_plan() {
        let plan = plan(&exec(), Rung::Root, User::default()).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        let read = |json: &str| serde_json::from_str::<SandboxPlan>(json);
        assert_eq!(read(&json).unwrap(), plan);
        for (from, to) in [
            ("\"seccomp\":\"default\"", "\"seccomp\":\"off\""),
            ("\"network\":\"default\"", "\"network\":\"\""),
            ("\"SETFCAP\"", "\"SYS_ADMIN\""),
            ("\"/proc/kcore\"", "\"/proc/nothing\""),
            ("\"scope\":\"where-possible\"", "\"scope\":\"off\""),
            ("\"keyring\":\"own\"", "\"keyring\":\"shared\""),
            ("\"nesting\":\"denied\"", "\"nesting\":\"\""),
            ("\"filter\":\"required\"", "\"filter\":\"off\""),
            ("\"cwd\"", "\"privileged\":true,\"cwd\""),
        ] {
            let changed = json.replace(from, to);
            assert_ne!(changed, json, "{from} is not in the plan");
            assert!(read(&changed).is_err(), "{to}");
        }
    }
}

//! What a step sees and may do, as plain data: the init does what stands here and nothing else.
//!
//! A plan can be compared, printed and sent over a pipe. Everything in it is a number, a path or a closed enum; names
//! were looked up before, and an unknown value does not deserialise. There is one constructor, so no entry point can
//! forget a protection.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use solver::op;

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
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Rung::Root => "root",
            Rung::SubordinateIds => "user namespace with subordinate ids",
            Rung::SingleId => "user namespace with one id",
        })
    }
}

/// Everything a step sees and may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxPlan {
    /// Whose ids the builder has.
    pub rung: Rung,
    /// The root file system.
    pub root: Root,
    /// Files that are there while the step runs and in no layer.
    pub files: Vec<ProvidedFile>,
    /// What is mounted besides, in the order in which it is mounted: what is above comes first.
    pub mounts: Vec<PlannedMount>,
    /// Command and arguments; the command is looked up in the environment's PATH.
    pub args: Vec<String>,
    /// The whole environment, every name once.
    pub env: Vec<(String, String)>,
    /// Absolute working directory; made, owned by root, where it is missing.
    pub cwd: String,
    /// Whose process it is.
    pub user: User,
    /// What `hostname` says.
    pub hostname: String,
    /// The network.
    pub network: Network,
    /// Resource limits.
    pub limits: Limits,
    /// The capabilities of root inside; other users have none.
    pub capabilities: Vec<Capability>,
    /// The system call filter.
    pub seccomp: SeccompProfile,
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

/// Something that is mounted into a step. What is made on disk for it is gone afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedMount {
    /// Absolute clean path inside.
    pub target: String,
    /// What it shows.
    pub source: MountSource,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// Part of a file system.
    Files {
        /// Which file system.
        tree: FileTree,
        /// Absolute clean path of a file or directory in it; links are followed inside.
        path: String,
        /// Whether it can be written.
        access: Access,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// At most this many bytes; `None` is the kernel's default, half of the memory.
        size: Option<u64>,
    },
    /// A file in memory.
    Secret {
        /// What stands in it.
        content: SecretBytes,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket of the builder, which has its mode and owner already.
    Socket(PathBuf),
}

/// Files that a mount can show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileTree {
    /// One directory.
    Directory(PathBuf),
    /// Directories to merge, topmost first, at least two.
    Merged(Vec<PathBuf>),
    /// Directories to merge, topmost first, on which something is written that nobody keeps.
    Scratch {
        /// At least one.
        lowers: Vec<PathBuf>,
        /// Where changes arrive.
        upper: PathBuf,
        /// The overlay's own directory, empty, on the same file system as `upper`.
        work: PathBuf,
    },
}

/// What may be done with the files of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading; not even root can mount it anew for more.
    Read,
    /// Writing, too.
    Write,
}

/// Bytes that no log, error or file may show.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretBytes(pub Vec<u8>);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The one the builder has.
    Default,
    /// A network namespace with nothing but loopback.
    None,
    /// The host's, asked for by name; the same as [`Network::Default`], kept apart so that it can be seen.
    Host,
}

impl From<op::Network> for Network {
    fn from(network: op::Network) -> Self {
        match network {
            op::Network::Default => Network::Default,
            op::Network::None => Network::None,
            op::Network::Host => Network::Host,
        }
    }
}

/// Resource limits of a step, each bounded by the hard limit the builder itself has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Open files, soft. A million here makes old package managers close a million descriptors before every exec.
    pub open_files: u64,
    /// Open files, hard.
    pub open_files_hard: u64,
    /// Processes of the user.
    pub processes: u64,
    /// Bytes of a core dump.
    pub core: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open_files: 1024, open_files_hard: 524_288, processes: 16_384, core: 0 }
    }
}

/// A capability that a step may have; those that are not here, no step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "capabilities(7) names them")]
pub enum Capability {
    Chown,
    DacOverride,
    Fowner,
    Fsetid,
    Kill,
    Setgid,
    Setuid,
    Setpcap,
    NetBindService,
    SysChroot,
    Mknod,
    Setfcap,
}

impl Capability {
    /// Docker's fourteen without NET_RAW and AUDIT_WRITE. MKNOD means something with host ids only.
    fn default_for(rung: Rung) -> Vec<Capability> {
        use Capability::*;
        let all = [
            Chown,
            DacOverride,
            Fowner,
            Fsetid,
            Kill,
            Setgid,
            Setuid,
            Setpcap,
            NetBindService,
            SysChroot,
            Mknod,
            Setfcap,
        ];
        all.into_iter().filter(|capability| *capability != Mknod || rung == Rung::Root).collect()
    }
}

/// A system call filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompProfile {
    /// The one in [`super::seccomp`].
    Default,
}

/// What a plan is made of.
#[derive(Debug, Clone)]
pub struct PlanInputs<'a> {
    /// The operation.
    pub exec: &'a op::Exec,
    /// Variables that reach the process but no key; one that the operation sets itself wins.
    pub ambient_env: &'a [(String, String)],
    /// Whose ids the builder has.
    pub rung: Rung,
    /// The root file system.
    pub root: Root,
    /// What `exec.mounts` come to.
    pub mounts: Vec<PlannedMount>,
    /// What `exec.user` was resolved to.
    pub user: User,
    /// The user's home directory in the image: `HOME` where the operation sets none.
    pub home: Option<&'a str>,
    /// What `/etc/resolv.conf` says, from [`super::resolv_conf`].
    pub resolv_conf: &'a str,
}

/// Why a step cannot be run in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No command.
    #[error("there is no command to run")]
    NoCommand,
    /// A string that no process can be given.
    #[error("{what} contains a NUL character")]
    Nul {
        /// Which string.
        what: &'static str,
    },
    /// A working directory that is not absolute.
    #[error("the working directory {0:?} is not an absolute path")]
    RelativeDirectory(String),
    /// An id that the user namespace does not have.
    #[error("user {uid}:{gid} cannot be had: this build runs in a {}, which is 0", Rung::SingleId)]
    OneIdOnly {
        /// The user id that was asked for.
        uid: u32,
        /// The group id that was asked for.
        gid: u32,
    },
}

/// The name a step's machine has; BuildKit's, which scripts in the field know.
const HOSTNAME: &str = "buildkitsandbox";

impl SandboxPlan {
    /// The plan of an operation. The only way to make one.
    ///
    /// # Errors
    /// The operation asks for something that no process can be given, or for ids the rung does not have.
    pub fn new(inputs: PlanInputs<'_>) -> Result<SandboxPlan, PlanError> {
        let exec = inputs.exec;
        check_strings(exec, inputs.ambient_env)?;
        Ok(SandboxPlan {
            rung: inputs.rung,
            root: inputs.root,
            files: provided_files(exec, inputs.resolv_conf),
            mounts: inputs.mounts,
            args: exec.args.clone(),
            env: environment(&exec.env, inputs.ambient_env, inputs.home),
            cwd: exec.workdir.clone(),
            user: checked_user(inputs.user, inputs.rung)?,
            hostname: HOSTNAME.to_owned(),
            network: exec.network.into(),
            limits: Limits::default(),
            capabilities: Capability::default_for(inputs.rung),
            seccomp: SeccompProfile::Default,
        })
    }
}

fn check_strings(exec: &op::Exec, ambient_env: &[(String, String)]) -> Result<(), PlanError> {
    if exec.args.first().is_none_or(String::is_empty) {
        return Err(PlanError::NoCommand);
    }
    if !exec.workdir.starts_with('/') {
        return Err(PlanError::RelativeDirectory(exec.workdir.clone()));
    }
    let variables = exec.env.iter().chain(ambient_env);
    let has_nul = |text: &str| text.contains('\0');
    let nul = [
        ("an argument", exec.args.iter().any(|arg| has_nul(arg))),
        (
            "an environment variable",
            variables.into_iter().any(|(name, value)| has_nul(name) || has_nul(value)),
        ),
        ("the working directory", has_nul(&exec.workdir)),
    ];
    nul.into_iter().find(|(_, found)| *found).map_or(Ok(()), |(what, _)| Err(PlanError::Nul { what }))
}

/// One id: user and group must be 0. The kernel lets nobody change supplementary groups there, so the image's are left
/// out, and the building user's own stay; no file a step can see belongs to them.
fn checked_user(user: User, rung: Rung) -> Result<User, PlanError> {
    match rung {
        Rung::Root | Rung::SubordinateIds => Ok(user),
        Rung::SingleId if (user.uid, user.gid) == (0, 0) => Ok(User::default()),
        Rung::SingleId => Err(PlanError::OneIdOnly { uid: user.uid, gid: user.gid }),
    }
}

/// Every name once, at the place of its first mention, with its last value.
fn environment(
    env: &[(String, String)],
    ambient: &[(String, String)],
    home: Option<&str>,
) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::with_capacity(env.len() + ambient.len() + 1);
    for (name, value) in env {
        match merged.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => old.clone_from(value),
            None => merged.push((name.clone(), value.clone())),
        }
    }
    for (name, value) in ambient {
        if !merged.iter().any(|(known, _)| known == name) {
            merged.push((name.clone(), value.clone()));
        }
    }
    if let Some(home) = home
        && !merged.iter().any(|(name, value)| name == "HOME" && !value.is_empty())
    {
        merged.retain(|(name, _)| name != "HOME");
        merged.push(("HOME".to_owned(), home.to_owned()));
    }
    merged
}

fn provided_files(exec: &op::Exec, resolv_conf: &str) -> Vec<ProvidedFile> {
    // Without a network a resolver could only time out.
    let resolv_conf = if exec.network == op::Network::None { "" } else { resolv_conf };
    let hosts = format!("127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let mut files = vec![
        ProvidedFile { target: "/etc/resolv.conf".to_owned(), content: resolv_conf.to_owned(), mode: 0o644 },
        ProvidedFile { target: "/etc/hosts".to_owned(), content: hosts, mode: 0o644 },
    ];
    if let Some(script) = &exec.script {
        files.push(ProvidedFile { target: script.path(), content: script.content.clone(), mode: 0o755 });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec() -> op::Exec {
        op::Exec {
            args: vec!["true".to_owned()],
            env: Vec::new(),
            user: String::new(),
            workdir: "/".to_owned(),
            network: op::Network::Default,
            security: Default::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            hosts: Vec::new(),
            hostname: None,
            script: None,
            timestamps: op::Timestamps::Auto,
        }
    }

    fn plan(exec: &op::Exec, rung: Rung, user: User) -> Result<SandboxPlan, PlanError> {
        let root = Root::Directory("/".into());
        SandboxPlan::new(PlanInputs {
            exec,
            ambient_env: &[],
            rung,
            root,
            mounts: Vec::new(),
            user,
            home: None,
            resolv_conf: "ns",
        })
    }

    /// `a=1 b=2` as variables.
    fn variables(text: &str) -> Vec<(String, String)> {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn every_variable_is_there_once() {
        let cases = [
            ("a=1 b=2 a=3", "", None, "a=3 b=2"),
            ("a=1", "a=2 proxy=3", None, "a=1 proxy=3"),
            ("a=1", "", Some("/root"), "a=1 HOME=/root"),
            ("HOME=/x", "", Some("/root"), "HOME=/x"),
            ("HOME= a=1", "", Some("/root"), "a=1 HOME=/root"),
        ];
        for (env, ambient, home, expected) in cases {
            assert_eq!(
                environment(&variables(env), &variables(ambient), home),
                variables(expected),
                "{env} {ambient}"
            );
        }
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
    fn no_resolver_without_a_network() {
        let none = op::Exec { network: op::Network::None, ..exec() };
        for (exec, expected) in [(exec(), "ns"), (none, "")] {
            assert_eq!(plan(&exec, Rung::Root, User::default()).unwrap().files[0].content, expected);
        }
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
            strange(|exec| exec.env = variables("a=\0")),
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
            ("\"cwd\"", "\"privileged\":true,\"cwd\""),
        ] {
            let changed = json.replace(from, to);
            assert_ne!(changed, json, "{from} is not in the plan");
            assert!(read(&changed).is_err(), "{to}");
        }
    }
}

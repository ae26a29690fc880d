//! The operations of a build graph: what a step does, as plain data.
//!
//! Everything here is identity: two equal operations on equal inputs give the same file system, and every field enters
//! the step's keys ([`crate::key`]). What must not enter them (labels, spans, proxy settings) lives in
//! [`crate::graph::Vertex`] beside the operation.

mod relaxation;
mod ulimit;

use std::collections::BTreeMap;

use oci::{BaseLayer, Sha256Digest};

pub use self::{
    relaxation::{Relaxation, Relaxations},
    ulimit::{Resource, Ulimit},
};
use crate::remote::GitAddress;

/// What [`is_hostname`] asks for, in words.
pub const HOSTNAME_RULE: &str = "a host name has at most 64 letters, digits, dots, dashes and underscores";

/// Whether a step's machine can be called so: the kernel takes 64 bytes (sethostname(2)), and what is not a plain word would be
/// more than a name in `/etc/hosts`.
pub fn is_hostname(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
}

/// What a vertex does with its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Brings something into the build. No inputs.
    Source(Source),
    /// Runs a command on its only input.
    Exec(Exec),
    /// Copies files into its first input from the others.
    Copy(Copy),
    /// Makes a directory on its only input (WORKDIR).
    MakeDir(MakeDir),
    /// Puts the last layer of its second input on top of its first (COPY --link): no file of either is read.
    Merge,
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// No files at all: `FROM scratch`.
    Scratch,
    /// The layers of an image; they are not downloaded until something must read them.
    Image(Vec<BaseLayer>),
    /// The files of a place outside of the build that the selector picks.
    Context(ContextSource),
    /// Files whose content stands in the Dockerfile (heredocs of COPY and ADD), by name, with mode 0644.
    Inline(BTreeMap<String, String>),
}

/// Part of a place that files are taken from. Its identity is what the executor says these files hash to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContextSource {
    /// Where.
    pub place: Place,
    /// What a COPY or ADD can pick of it.
    pub selector: Selector,
}

/// Where the files of a context lie.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A context of the command line: `""` is the main one, else the name of `--build-context`.
    Context(String),
    /// A commit of a git repository (ADD).
    Git(GitAddress),
    /// One file behind a URL (ADD): a directory that holds nothing but it, by its name.
    Http(HttpFile),
}

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HttpFile {
    /// `http://` or `https://`.
    pub url: String,
    /// What the file is called, one component of a path: the last one of the URL's path.
    pub name: String,
    /// What its content must hash to.
    pub checksum: Option<Sha256Digest>,
}

/// Which files of a source a COPY or ADD picks.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// Sources as written after expansion, cleaned, without a leading slash; patterns of Go's `filepath.Match` where
    /// they hold wildcards. A directory stands for everything below it. With `parents`, see there.
    pub include: Vec<String>,
    /// Patterns of `--exclude`, in `.dockerignore`'s language.
    pub exclude: Vec<String>,
    /// Whether symbolic links in the source paths themselves are followed (always inside the source's root).
    pub follow_links: bool,
    /// `--parents`: a source keeps its first pivot, `base/./rest`, both parts cleaned; without one all of it is `rest`
    /// and the base is the root. What is below the base and matches `rest`, in `.dockerignore`'s language, is
    /// picked, and the directories between are picked with it.
    pub parents: bool,
}

impl Selector {
    /// Picks what is at this very path, relative to the root, whatever a pattern would make of its characters. Links on
    /// the way are followed. Empty is everything.
    pub fn of_path(path: &str) -> Self {
        let plain = !path.contains(['*', '?', '[']);
        let quoted = |character| match character {
            '*' | '?' | '[' => format!("[{character}]"),
            '\\' => r"[\\]".to_owned(),
            other => String::from(other),
        };
        let include = if plain { path.to_owned() } else { path.chars().map(quoted).collect() };
        Self { include: vec![include], follow_links: true, ..Self::default() }
    }
}

/// RUN
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Command and arguments, the shell included.
    pub args: Vec<String>,
    /// The whole environment, in order; later entries of a name win.
    pub env: Vec<(String, String)>,
    /// `user[:group]` as the config has it; empty is root. Names are looked up inside the file system.
    pub user: String,
    /// Absolute working directory; made if it is missing.
    pub workdir: String,
    /// Network of the step.
    pub network: Network,
    /// How much of the sandbox is kept.
    pub security: Security,
    /// Lines of the sandbox that the command line lets go, as far as a command can do something else without them.
    pub relaxed: Relaxations,
    /// What is mounted while it runs, in order.
    pub mounts: Vec<Mount>,
    /// Devices of the machine that it is given.
    pub devices: Vec<Device>,
    /// `--add-host`: names and the addresses that `/etc/hosts` gives them.
    pub hosts: Vec<(String, String)>,
    /// `BUILDKIT_SANDBOX_HOSTNAME`
    pub hostname: Option<String>,
    /// `--ulimit`
    pub ulimits: BTreeMap<Resource, Ulimit>,
    /// `--shm-size`: how many bytes `/dev/shm` holds, where it was given.
    pub shared_memory: Option<u64>,
    /// A script with a `#!` line that `args` name: mounted read-only at [`Script::path`] while the step runs.
    pub script: Option<Script>,
    /// How the times of what it writes are treated.
    pub timestamps: Timestamps,
}

impl Exec {
    /// A command that root runs in `/`, with nothing but its arguments.
    pub fn new(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            user: String::new(),
            workdir: "/".to_owned(),
            network: Network::default(),
            security: Security::default(),
            relaxed: Relaxations::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            hosts: Vec::new(),
            hostname: None,
            ulimits: BTreeMap::new(),
            shared_memory: None,
            script: None,
            timestamps: Timestamps::default(),
        }
    }
}

/// A heredoc of RUN that brings its own interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The heredoc's own name, one component of a path.
    pub name: String,
    /// The text, beginning with `#!`.
    pub content: String,
}

impl Script {
    /// Where the script is mounted; BuildKit's place for it.
    pub fn path(&self) -> String {
        format!("/dev/pipes/{}", self.name)
    }
}

/// Which network a RUN step has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The network the builder itself has.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's network, asked for by name.
    Host,
    /// A network of its own that leads outside and neither to this machine's loopback nor to link-local addresses.
    Isolated,
}

/// `RUN --security`, and what the command line says of all RUN steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Security {
    /// The whole sandbox.
    #[default]
    Sandbox,
    /// The whole sandbox, and no program has more rights than who runs it: `--no-new-privs`.
    NoNewPrivileges,
    /// All capabilities and no system call filter; needs `--allow security.insecure`.
    Insecure,
}

/// `RUN --device`: a device by its name in the Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// `vendor/class`, `vendor/class=name` or `vendor/class=*`.
    pub name: String,
    /// A step without it fails; else it runs without.
    pub required: bool,
}

/// `RUN --mount`. Every target is an absolute, clean path; what is made on disk for it is in no layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// Files of another vertex.
    Bind(BindMount),
    /// A directory that stays from build to build.
    Cache(CacheMount),
    /// An empty directory in memory.
    Tmpfs {
        /// Where.
        target: String,
        /// At most this many bytes.
        size: Option<u64>,
    },
    /// A secret of the command line.
    Secret(SecretMount),
    /// The socket of an SSH agent.
    Ssh(SshMount),
}

/// `--mount=type=bind`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Where.
    pub target: String,
    /// Which of the vertex's inputs it comes from; always one with a snapshot, never 0. Files of a context come as
    /// a step of their own that copies them to an empty file system.
    pub input: usize,
    /// Absolute clean path in that input, a file or a directory.
    pub source: String,
    /// `rw`: the command may write, and what it writes is thrown away.
    pub writable: bool,
}

/// `--mount=type=cache`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// Where.
    pub target: String,
    /// Which one: `id=`, else the target, in the namespace of `BUILDKIT_CACHE_MOUNT_NS`.
    pub id: String,
    /// Who may use it at the same time.
    pub sharing: Sharing,
    /// What it holds at first: an input of the vertex (as in [`BindMount::input`]) and an absolute clean path in it.
    pub seed: Option<(usize, String)>,
    /// Mode of a new one.
    pub mode: u32,
    /// Owner of a new one.
    pub uid: u32,
    /// Group of a new one.
    pub gid: u32,
    /// The command cannot write to it.
    pub read_only: bool,
}

/// `sharing=` of a cache mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sharing {
    /// Any number of steps at the same time.
    #[default]
    Shared,
    /// A step that finds it used gets another one.
    Private,
    /// A step that finds it used waits.
    Locked,
}

/// `--mount=type=secret`. Its value is in no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// `id=` of `--secret`.
    pub id: String,
    /// A step without it fails; else nothing is mounted or set.
    pub required: bool,
    /// The file that holds it.
    pub file: Option<MountedFile>,
    /// The environment variable that holds it.
    pub variable: Option<String>,
}

/// `--mount=type=ssh`; the variable `SSH_AUTH_SOCK` of the first one names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshMount {
    /// `id` of `--ssh`, `default` where it is not given.
    pub id: String,
    /// A step without it fails; else nothing is mounted.
    pub required: bool,
    /// The socket; without `target=`, BuildKit's `/run/buildkit/ssh_agent.N`.
    pub socket: MountedFile,
}

/// A file that is put into a step's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedFile {
    /// Where.
    pub target: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// How modification times enter layers (`--timestamps`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Timestamps {
    /// Times below [`oci::tree::TIME_LIMIT`] are kept, all others normalised.
    #[default]
    Auto,
    /// All times are kept, as Docker does.
    Preserve,
}

/// Why several sources without `into_directory` are refused: BuildKit would leave the last one under that name. The plan
/// says so where it sees them, the executor where wildcards decide.
pub const SEVERAL_SOURCES: &str =
    "with more than one source file, the destination must be a directory and end with a slash";

/// COPY and ADD
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// What is copied, in order.
    pub items: Vec<CopyItem>,
    /// Absolute destination path, cleaned.
    pub destination: String,
    /// Whether the destination must be a directory: it was written with a trailing slash, or is `.`-like. Without it
    /// several sources that a wildcard picks are refused ([`SEVERAL_SOURCES`]), unless a directory is there.
    pub into_directory: bool,
    /// `--chown`: `user[:group]`, names or ids looked up in the destination's file system. `None`: 0:0 for contexts,
    /// the owner they have for files of stages and images, as BuildKit does.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<Chmod>,
    /// How the times of what it writes are treated.
    pub timestamps: Timestamps,
}

/// One source path of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyItem {
    /// Which of the vertex's inputs it comes from; never 0, which is the destination.
    pub input: usize,
    /// What is picked of that input; exactly one path or pattern in `include`.
    pub selector: Selector,
    /// Whether a tar archive is unpacked instead of copied (ADD).
    pub unpack: bool,
}

/// `--chmod`, octal or symbolic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    /// Permission bits for files and directories alike.
    Octal(u32),
    /// A symbolic mode in the language of chmod(1), applied to the mode the file has.
    Symbolic(String),
}

/// WORKDIR
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MakeDir {
    /// Absolute path; parents are made too. Nothing happens where it exists.
    pub path: String,
    /// Owner of what is made (its mode is 0755), as `user[:group]`; empty is root.
    pub owner: String,
    /// How the times of what it makes are treated.
    pub timestamps: Timestamps,
}

//! The operations of a build graph: what a step does, as plain data.
//!
//! Everything here is identity: two equal operations on equal inputs give the same file system, and every field enters
//! the step's keys ([`crate::key`]). What must not enter them (labels, spans, proxy settings) lives in
//! [`crate::graph::Vertex`] beside the operation.

use std::collections::BTreeMap;

use oci::BaseLayer;

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
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// No files at all: `FROM scratch`.
    Scratch,
    /// The layers of an image; they are not downloaded until something must read them.
    Image(Vec<BaseLayer>),
    /// The files of a directory that the selector picks.
    Context(ContextSource),
    /// Files whose content stands in the Dockerfile (heredocs of COPY and ADD), by name, with mode 0644.
    Inline(BTreeMap<String, String>),
}

/// Part of a directory context.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContextSource {
    /// Which context: `""` is the main one, else the name of `--build-context`.
    pub context: String,
    /// What a COPY or ADD can pick of it.
    pub selector: Selector,
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
    /// A script with a `#!` line that `args` name: mounted read-only at [`Script::path`] while the step runs.
    pub script: Option<Script>,
    /// How the times of what it writes are treated.
    pub timestamps: Timestamps,
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

/// COPY and ADD
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// What is copied, in order.
    pub items: Vec<CopyItem>,
    /// Absolute destination path, cleaned.
    pub destination: String,
    /// Whether the destination must be a directory: it was written with a trailing slash, or is `.`-like. How many
    /// sources there are does not matter: several files to one name leave the last, as in BuildKit.
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
    /// Whether a local tar archive is unpacked instead of copied (ADD).
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
    /// Mode of what is made.
    pub mode: u32,
    /// Owner of what is made, as `user[:group]`; empty is root.
    pub owner: String,
    /// How the times of what it makes are treated.
    pub timestamps: Timestamps,
}

//! The syntax tree of a Dockerfile: what was written, with byte spans, before any variable is expanded.
//!
//! Every instruction of the language is here with all its flags, whether or not the planner can build it yet. Text
//! that may hold `$variables` is kept as written (quotes and escapes included) in [`Word`]s; expanding it is
//! [`crate::word`]'s work and the planner's decision.

/// A half-open range of bytes in the Dockerfile's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// Whether a place lies in it; an empty one holds nothing.
    pub fn contains(&self, place: usize) -> bool {
        self.start <= place && place < self.end
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

/// Text as written, with line continuations and comments inside them removed, nothing expanded.
pub type Word = Spanned<String>;

/// A whole Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// `# syntax=`, `# escape=`, `# check=`.
    pub directives: Directives,
    /// ARG instructions before the first FROM.
    pub global_args: Vec<Instruction>,
    /// The stages, at least one.
    pub stages: Vec<Stage>,
}

/// Parser directives, which stand before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=`: the frontend image asked for.
    pub syntax: Option<Word>,
    /// `# escape=`: `\` unless it says otherwise.
    pub escape: char,
    /// `# check=`: as written, `skip=...;error=...`; or what the command line says in its place, without a span.
    pub check: Option<Word>,
    /// `# check=` in the comments above an instruction, which counts for that instruction alone.
    pub local_checks: Vec<LocalCheck>,
}

/// `# check=` of one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCheck {
    /// The instruction.
    pub instruction: Span,
    /// What it says.
    pub check: String,
}

/// One FROM and the instructions after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// `FROM base`.
    pub base: Word,
    /// `FROM --platform=`.
    pub platform: Option<Word>,
    /// `AS name`, as written (names compare without case).
    pub name: Option<Word>,
    /// What a comment right above says about it: the rest of a line `# name description`.
    pub comment: Option<String>,
    /// The FROM line.
    pub span: Span,
    /// The FROM line's text, for messages.
    pub text: String,
    /// What comes after it.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub kind: InstructionKind,
    /// From the keyword to the end, heredoc bodies included.
    pub span: Span,
    /// The instruction with continuations joined by nothing and heredoc bodies left out, as BuildKit shows it in
    /// progress and history.
    pub text: String,
}

/// What an instruction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstructionKind {
    /// `ADD`
    Add(Copy),
    /// `ARG name[=default]...`
    Arg(Vec<ArgDeclaration>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(KeyValues),
    /// `EXPOSE port[/protocol]...`
    Expose(Vec<Word>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(KeyValues),
    /// `MAINTAINER`
    Maintainer(Word),
    /// `ONBUILD`: the trigger's text as it goes into the config, and its tree.
    Onbuild {
        /// Text of the trigger instruction.
        text: Word,
        /// The trigger.
        trigger: Box<Instruction>,
    },
    /// `RUN`
    Run(Run),
    /// `SHELL ["...", ...]`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    Stopsignal(Word),
    /// `USER`
    User(Word),
    /// `VOLUME`
    Volume(Vec<Word>),
    /// `WORKDIR`
    Workdir(Word),
}

/// One name of an ARG instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// The name.
    pub name: Word,
    /// The default, if there is one; may hold variables.
    pub default: Option<Word>,
    /// What a comment right above says about it: the rest of a line `# name description`.
    pub comment: Option<String>,
}

/// The pairs of ENV and LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValues {
    /// In the order written; keys and values as written.
    pub pairs: Vec<(Word, Word)>,
    /// `ENV key value`, the old form with one pair, whose value is the rest of the line.
    pub legacy: bool,
}

/// Shell form or exec form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A JSON array of strings.
    Exec(Vec<String>),
    /// Anything else: the text for the shell.
    Shell(String),
}

/// `RUN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command; for the heredoc form without a command of its own, an empty [`CommandLine::Shell`].
    pub command: CommandLine,
    /// Heredocs in the order they were opened.
    pub heredocs: Vec<Heredoc>,
    /// `--mount=...`, each as written after the equals sign.
    pub mounts: Vec<Word>,
    /// `--network=`
    pub network: Option<Word>,
    /// `--security=`
    pub security: Option<Word>,
    /// `--device=...`
    pub devices: Vec<Word>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter, without quotes; names the file of COPY and ADD.
    pub name: String,
    /// File descriptor before `<<`; 0 where none was written.
    pub fd: u32,
    /// Whether variables are expanded in it: no quote around the delimiter.
    pub expand: bool,
    /// `<<-`: leading tabs have been stripped from `content`.
    pub chomp: bool,
    /// The body, each line with its end.
    pub content: String,
    /// The body with its tabs, where `content` lost some: a shell that is given `<<-` takes them off itself.
    pub written: Option<String>,
    /// Where the body stands.
    pub span: Span,
}

/// `COPY` and `ADD`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Sources in order.
    pub sources: Vec<CopySource>,
    /// Where they go.
    pub destination: Word,
    /// `--from=` (COPY)
    pub from: Option<Word>,
    /// `--chown=`
    pub chown: Option<Word>,
    /// `--chmod=`
    pub chmod: Option<Word>,
    /// `--link[=true|false]`
    pub link: bool,
    /// `--parents[=true|false]` (COPY)
    pub parents: bool,
    /// `--exclude=...`, repeatable
    pub exclude: Vec<Word>,
    /// `--checksum=` (ADD)
    pub checksum: Option<Word>,
    /// `--keep-git-dir[=true|false]` (ADD)
    pub keep_git_dir: Option<bool>,
    /// `--unpack[=true|false]` (ADD)
    pub unpack: Option<bool>,
}

/// One source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A path, pattern, URL or git address.
    Path(Word),
    /// The body of a heredoc.
    Heredoc(Heredoc),
}

/// `RUN --mount`, options as given; what is not given is `None`, and what it then means is the planner's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// `type=bind`, also where no type is given.
    Bind(BindMount),
    /// `type=cache`
    Cache(CacheMount),
    /// `type=tmpfs`
    Tmpfs(TmpfsMount),
    /// `type=secret`
    Secret(SecretMount),
    /// `type=ssh`
    Ssh(SshMount),
}

/// `RUN --mount=type=bind`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Stage, image or named context; the main context where it is not given.
    pub from: Option<String>,
    /// Path in it; its root where it is not given.
    pub source: Option<String>,
    /// Where; relative to the working directory.
    pub target: Option<String>,
    /// `rw` or `ro=false`.
    pub writable: bool,
}

/// `RUN --mount=type=cache`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// Which one; the target where it is not given.
    pub id: Option<String>,
    /// Where; relative to the working directory.
    pub target: Option<String>,
    /// Stage, image or named context that a new one is filled from.
    pub from: Option<String>,
    /// Path in it.
    pub source: Option<String>,
    /// Who may use it at the same time.
    pub sharing: Option<Sharing>,
    /// Permission bits of a new one.
    pub mode: Option<u32>,
    /// Owner of a new one.
    pub uid: Option<u32>,
    /// Group of a new one.
    pub gid: Option<u32>,
    /// `ro`
    pub read_only: bool,
}

/// `sharing=` of a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of steps at the same time.
    Shared,
    /// A step that finds it used gets another one.
    Private,
    /// A step that finds it used waits.
    Locked,
}

/// `RUN --mount=type=tmpfs`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsMount {
    /// Where; relative to the working directory.
    pub target: Option<String>,
    /// At most this many bytes.
    pub size: Option<u64>,
    /// `ro`
    pub read_only: bool,
}

/// `RUN --mount=type=secret`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// `id=` or `source=`; the last component of the target where neither is given.
    pub id: Option<String>,
    /// The file; `/run/secrets/ID` where neither it nor a variable is given.
    pub target: Option<String>,
    /// The environment variable.
    pub env: Option<String>,
    /// Whether a build without it fails.
    pub required: bool,
    /// Permission bits of the file.
    pub mode: Option<u32>,
    /// Owner of the file.
    pub uid: Option<u32>,
    /// Group of the file.
    pub gid: Option<u32>,
}

/// `RUN --mount=type=ssh`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshMount {
    /// Which agent; `default` where it is not given.
    pub id: Option<String>,
    /// The socket.
    pub target: Option<String>,
    /// Whether a build without it fails.
    pub required: bool,
    /// Permission bits of the socket.
    pub mode: Option<u32>,
    /// Owner of the socket.
    pub uid: Option<u32>,
    /// Group of the socket.
    pub gid: Option<u32>,
}

/// `HEALTHCHECK`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK [options] CMD ...`
    Check {
        /// The command.
        command: CommandLine,
        /// Nanoseconds; 0 where not given.
        interval: i64,
        /// Nanoseconds; 0 where not given.
        timeout: i64,
        /// Nanoseconds; 0 where not given.
        start_period: i64,
        /// Nanoseconds; 0 where not given.
        start_interval: i64,
        /// 0 where not given.
        retries: i64,
    },
}

//! From the command line, the environment and the files they name to a [`BuildRequest`]: everything a build needs to
//! know, read once, before anything happens.
//!
//! This is the rim: the Dockerfile, `.dockerignore`, standard input and every variable that a result depends on are
//! read here and nowhere else. Mistakes found here are usage errors (exit code 2).

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal, Read},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use executor::context::IgnoreFile;
use exporter::{Encoder, TimePolicy};
use oci::{Platform, Reference};
use solver::op::{Network, Timestamps};

use crate::{
    args::{BuildArgs, ProgressMode},
    context_spec::{self, ContextSpecError, NamedSource},
    outputs::{self, Output, OutputError},
};

/// The largest Dockerfile or `.dockerignore` that is read, in bytes.
const TEXT_LIMIT: u64 = 4 << 20;

/// Everything a build needs to know.
#[derive(Debug)]
pub struct BuildRequest {
    /// What is built.
    pub dockerfile: Source,
    /// The main context.
    pub context: Directory,
    /// `--build-context`, by name.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--target`
    pub target: Option<String>,
    /// `--build-arg`, values from the environment filled in.
    pub build_args: BTreeMap<String, String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--platform`; `None` is this machine's.
    pub platform: Option<Platform>,
    /// `--no-cache`
    pub no_cache: bool,
    /// `--no-cache-filter`
    pub no_cache_filter: Vec<String>,
    /// `--network`
    pub network: Network,
    /// `--timestamps`
    pub timestamps: Timestamps,
    /// SOURCE_DATE_EPOCH in seconds, where it was given.
    pub epoch: Option<i64>,
    /// Where the result goes.
    pub outputs: Vec<Output>,
    /// `--progress`, with `auto` decided.
    pub progress: ProgressMode,
    /// `--iidfile`
    pub iidfile: Option<PathBuf>,
    /// `--metadata-file`
    pub metadata_file: Option<PathBuf>,
    /// The store's directory.
    pub root: PathBuf,
    /// `--jobs`
    pub jobs: usize,
    /// Registries that need no valid certificate.
    pub insecure_registries: Vec<String>,
    /// What the user should know before the build begins.
    pub notices: Vec<String>,
}

/// A Dockerfile.
#[derive(Debug, Clone)]
pub struct Source {
    /// How messages call it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A directory whose files COPY and ADD see.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Absolute path.
    pub path: PathBuf,
    /// The ignore file that applies to it.
    pub ignore: Option<IgnoreFile>,
}

/// A named context.
#[derive(Debug, Clone)]
pub enum NamedContext {
    /// Files.
    Directory(Directory),
    /// An image in a registry.
    Image(Reference),
    /// An image in an OCI layout.
    OciLayout {
        /// Absolute path of the layout.
        directory: PathBuf,
        /// Digest or tag.
        selector: Option<String>,
    },
    /// Nothing at all.
    Scratch,
}

/// What a build is started with besides its arguments.
pub struct Environment<'a> {
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// Standard input, for `-f -`.
    pub stdin: &'a mut dyn Read,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
}

impl BuildRequest {
    /// The ways in which layers are packed for the outputs, the first one's first. Without an output, or when the digest
    /// is asked for, there is one; there is none when only files are wanted.
    pub fn encoders(&self) -> Vec<Encoder> {
        let is_image = |output: &&Output| matches!(output.to, exporter::Output::Image(_));
        let mut encoders: Vec<Encoder> = Vec::new();
        for output in self.outputs.iter().filter(is_image) {
            if !encoders.contains(&output.encoder) {
                encoders.push(output.encoder);
            }
        }
        let asked =
            self.iidfile.is_some() || self.metadata_file.is_some() || self.progress == ProgressMode::Quiet;
        if encoders.is_empty() && (asked || self.outputs.is_empty()) {
            encoders.push(Encoder::default());
        }
        encoders
    }

    /// What SOURCE_DATE_EPOCH and `--timestamps` make of the times in the image.
    pub fn time_policy(&self) -> TimePolicy {
        match (self.timestamps, self.epoch) {
            (Timestamps::Preserve, _) => TimePolicy::Preserve,
            (Timestamps::Auto, Some(epoch)) => TimePolicy::Epoch(epoch),
            (Timestamps::Auto, None) => TimePolicy::Default,
        }
    }
}

impl<'a> Environment<'a> {
    /// That of this process.
    pub fn of_process(stdin: &'a mut dyn Read) -> Self {
        let stderr_is_terminal = io::stderr().is_terminal();
        Self { variables: std::env::vars_os().collect(), stdin, stderr_is_terminal }
    }

    /// A variable; one that is empty or not UTF-8 counts as not set, except for paths.
    fn text(&self, name: &str) -> Option<&str> {
        self.variables
            .get(OsStr::new(name))
            .and_then(|value| value.to_str())
            .filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(OsStr::new(name)).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// Why the request cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A file that is named, or that must be there, cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A named context that is no directory, and no other kind of source either.
    #[error("--build-context {name}={}", path.display())]
    NoContext {
        /// Its name.
        name: String,
        /// What was given, taken for a directory.
        path: PathBuf,
        /// Why it is none.
        #[source]
        source: io::Error,
    },
    /// No Dockerfile where it was looked for, but one of that name in the context.
    #[error("cannot read Dockerfile {}", path.display())]
    DockerfileInContext {
        /// Where it was looked for.
        path: PathBuf,
        /// What to say instead.
        hint: String,
        /// Why it could not be read.
        #[source]
        source: io::Error,
    },
    /// The Dockerfile on standard input cannot be read.
    #[error("cannot read the Dockerfile from standard input")]
    Stdin(#[source] io::Error),
    /// A context that is something else.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// A kind of context that does not exist here.
    #[error(transparent)]
    Context(#[from] ContextSpecError),
    /// Two `--build-context` of one name.
    #[error("--build-context {0}= is given twice")]
    ContextTwice(String),
    /// `--build-arg` or `--label` without a name.
    #[error("--{flag} {value:?} has no name before the equals sign")]
    NoName {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// A value from the environment or a flag that means nothing.
    #[error("{name}={value:?}: {expected}")]
    Value {
        /// The variable or flag.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: String,
    },
    /// A build argument from the environment whose value is no text.
    #[error("the environment variable {0}, asked for by --build-arg {0}, is not UTF-8")]
    NotText(String),
    /// Something that is a word of the command line but cannot be had yet.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Flags that contradict one another.
    #[error("{0}")]
    Conflict(&'static str),
    /// Outputs that cannot be made.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A file beside the result that cannot be written.
    #[error("--{flag} {}: {reason}", path.display())]
    NoPlace {
        /// The flag.
        flag: &'static str,
        /// Its file.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// No directory for the store.
    #[error("no place for the store: set --root or LAYERWRIGHT_ROOT, or HOME")]
    NoRoot,
}

impl RequestError {
    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::DockerfileInContext { hint, .. } => Some(hint),
            Self::NoContext { .. } => Some(context_spec::NAMED_EXPECTED),
            _ => None,
        }
    }
}

/// Reads everything the arguments name.
///
/// # Errors
/// [`RequestError`]
pub fn read(args: BuildArgs, environment: &mut Environment<'_>) -> Result<BuildRequest, RequestError> {
    let context_path = directory(context_spec::main_context(&args.context)?)?;
    let (dockerfile, dockerfile_path) = read_dockerfile(args.file.as_deref(), &context_path, environment)?;
    let ignore = read_ignore(&context_path, dockerfile_path.as_deref())?;
    let contexts = named_contexts(&args)?;
    let build_args = build_args(&args.build_args, environment)?;
    let platform = platform(&args.platforms, environment)?;
    let progress = progress(&args, environment)?;
    let outputs = outputs::resolve(&args.outputs, &args.tags, args.push);
    outputs::check(&outputs, progress)?;
    check_place("iidfile", args.iidfile.as_deref())?;
    check_place("metadata-file", args.metadata_file.as_deref())?;
    let mut notices = Vec::new();
    if args.outputs.is_empty() && !args.push {
        notices.push(NO_OUTPUT.to_owned());
    }
    Ok(BuildRequest {
        dockerfile,
        context: Directory { path: context_path, ignore },
        contexts,
        target: args.target,
        epoch: epoch(&build_args)?,
        build_args,
        labels: pairs("label", &args.labels, |_| Ok(Some(String::new())))?,
        platform,
        no_cache: args.no_cache,
        no_cache_filter: args.no_cache_filter,
        network: args.network,
        timestamps: args.timestamps,
        insecure_registries: outputs::insecure_registries(args.insecure_registries, &args.outputs, &outputs),
        outputs,
        progress,
        iidfile: args.iidfile,
        metadata_file: args.metadata_file,
        root: store_root(args.root, environment)?,
        jobs: args.jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
        notices,
    })
}

const NO_OUTPUT: &str = "no output was asked for: the result stays in the store. Use --push to push it to its -t \
                         names, or -o type=oci,dest=FILE to write it";

/// Refuses at once what would fail when all is built.
fn check_place(flag: &'static str, path: Option<&Path>) -> Result<(), RequestError> {
    let obstacle = |path: &Path| {
        let reason = exporter::outputs::file::obstacle(path)?;
        Some(RequestError::NoPlace { flag, path: path.to_owned(), reason })
    };
    path.and_then(obstacle).map_or(Ok(()), Err)
}

fn directory(path: &Path) -> Result<PathBuf, RequestError> {
    let read_error = |source| RequestError::Read { what: "context", path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read_error)?.is_dir() {
        return Err(RequestError::NotADirectory(path.display().to_string()));
    }
    std::path::absolute(path).map_err(read_error)
}

/// The Dockerfile and where it lies; it lies nowhere when it came from standard input.
fn read_dockerfile(
    file: Option<&str>,
    context: &Path,
    environment: &mut Environment<'_>,
) -> Result<(Source, Option<PathBuf>), RequestError> {
    if file == Some("-") {
        let text = read_text(&mut *environment.stdin).map_err(RequestError::Stdin)?;
        return Ok((Source { name: "<stdin>".to_owned(), text }, None));
    }
    if file.is_some_and(|file| file.contains("://")) {
        return Err(RequestError::Unsupported("a Dockerfile from a URL is not implemented yet"));
    }
    let (name, path) = match file {
        Some(file) => (file.to_owned(), PathBuf::from(file)),
        None => default_dockerfile(context),
    };
    let text = read_file("Dockerfile", &path).map_err(|error| in_context(error, context))?;
    Ok((Source { name, text }, Some(path)))
}

/// `-f` is relative to the working directory, as with Docker; who takes it for relative to the context is told.
fn in_context(error: RequestError, context: &Path) -> RequestError {
    match error {
        RequestError::Read { path, source, .. }
            if source.kind() == io::ErrorKind::NotFound
                && path.is_relative()
                && context.join(&path).is_file() =>
        {
            let meant = context.join(&path);
            let hint = format!(
                "-f is relative to the working directory, not to the context: -f {}",
                meant.display()
            );
            RequestError::DockerfileInContext { path, hint, source }
        }
        error => error,
    }
}

/// `Dockerfile`, else `dockerfile`, as BuildKit looks for it.
fn default_dockerfile(context: &Path) -> (String, PathBuf) {
    let lower = context.join("dockerfile");
    let upper = context.join("Dockerfile");
    match !upper.exists() && lower.exists() {
        true => ("dockerfile".to_owned(), lower),
        false => ("Dockerfile".to_owned(), upper),
    }
}

/// `<Dockerfile>.dockerignore`, else the context's `.dockerignore`, else nothing.
fn read_ignore(context: &Path, dockerfile: Option<&Path>) -> Result<Option<IgnoreFile>, RequestError> {
    let own = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    let Some(path) = own.into_iter().chain([context.join(".dockerignore")]).find(|path| path.exists()) else {
        return Ok(None);
    };
    let text = read_file("ignore file", &path)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Some(IgnoreFile { name, text }))
}

fn read_file(what: &'static str, path: &Path) -> Result<String, RequestError> {
    let text = std::fs::File::open(path).and_then(|mut file| read_text(&mut file));
    text.map_err(|source| RequestError::Read { what, path: path.to_owned(), source })
}

fn read_text(input: &mut dyn Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    input.take(TEXT_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_LIMIT {
        return Err(io::Error::other("it is larger than 4 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn named_contexts(args: &BuildArgs) -> Result<BTreeMap<String, NamedContext>, RequestError> {
    let mut contexts = BTreeMap::new();
    for spec in &args.contexts {
        let context = match &spec.source {
            NamedSource::Directory(path) => {
                let path = directory(path).map_err(|error| no_context(&spec.name, error))?;
                let ignore = read_ignore(&path, None)?;
                NamedContext::Directory(Directory { path, ignore })
            }
            NamedSource::Image(reference) => NamedContext::Image(reference.clone()),
            NamedSource::OciLayout { directory: path, selector } => {
                NamedContext::OciLayout { directory: directory(path)?, selector: selector.clone() }
            }
            NamedSource::Scratch => NamedContext::Scratch,
        };
        if contexts.insert(spec.name.clone(), context).is_some() {
            return Err(RequestError::ContextTwice(spec.name.clone()));
        }
    }
    Ok(contexts)
}

fn no_context(name: &str, error: RequestError) -> RequestError {
    match error {
        RequestError::Read { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            RequestError::NoContext { name: name.to_owned(), path, source }
        }
        error => error,
    }
}

/// `K=V` pairs, the last of a name wins; `bare` says what `K` alone is, `None` leaves it out.
fn pairs(
    flag: &'static str,
    values: &[String],
    bare: impl Fn(&str) -> Result<Option<String>, RequestError>,
) -> Result<BTreeMap<String, String>, RequestError> {
    let mut pairs = BTreeMap::new();
    for text in values {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), bare(text)?),
        };
        if name.is_empty() {
            return Err(RequestError::NoName { flag, value: text.clone() });
        }
        if let Some(value) = value {
            pairs.insert(name.to_owned(), value);
        }
    }
    Ok(pairs)
}

fn build_args(
    values: &[String],
    environment: &Environment<'_>,
) -> Result<BTreeMap<String, String>, RequestError> {
    let from_environment = |name: &str| {
        let Some(value) = environment.variables.get(OsStr::new(name)) else { return Ok(None) };
        let value = value.to_str().ok_or_else(|| RequestError::NotText(name.to_owned()))?;
        Ok(Some(value.to_owned()))
    };
    let mut args = pairs("build-arg", values, from_environment)?;
    if let Some(epoch) = environment.text(EPOCH)
        && !args.contains_key(EPOCH)
    {
        args.insert(EPOCH.to_owned(), epoch.to_owned());
    }
    Ok(args)
}

const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The build argument of that name as seconds; an empty one asks for nothing.
fn epoch(build_args: &BTreeMap<String, String>) -> Result<Option<i64>, RequestError> {
    let Some(value) = build_args.get(EPOCH).filter(|value| !value.is_empty()) else { return Ok(None) };
    match value.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
        _ => {
            let expected = "expected seconds since 1970, as `git log -1 --format=%ct` prints them".to_owned();
            Err(RequestError::Value { name: EPOCH, value: value.clone(), expected })
        }
    }
}

fn platform(given: &[Platform], environment: &Environment<'_>) -> Result<Option<Platform>, RequestError> {
    const NAME: &str = "DOCKER_DEFAULT_PLATFORM";
    match given {
        [] => {}
        [one] => return Ok(Some(one.clone())),
        _ => {
            let message =
                "building for several platforms at once is not implemented yet: give one --platform";
            return Err(RequestError::Unsupported(message));
        }
    }
    let Some(value) = environment.text(NAME) else { return Ok(None) };
    let invalid = |error: oci::platform::PlatformError| RequestError::Value {
        name: NAME,
        value: value.to_owned(),
        expected: error.to_string(),
    };
    value.parse().map(Some).map_err(invalid)
}

fn progress(args: &BuildArgs, environment: &Environment<'_>) -> Result<ProgressMode, RequestError> {
    const NAME: &str = "BUILDKIT_PROGRESS";
    if args.quiet {
        return match args.progress {
            None | Some(ProgressMode::Auto | ProgressMode::Quiet) => Ok(ProgressMode::Quiet),
            Some(_) => Err(RequestError::Conflict("--quiet and --progress contradict each other")),
        };
    }
    let mode = match (args.progress, environment.text(NAME)) {
        (Some(mode), _) => mode,
        (None, Some(text)) => text.parse().map_err(|expected| RequestError::Value {
            name: NAME,
            value: text.to_owned(),
            expected,
        })?,
        (None, None) => ProgressMode::Auto,
    };
    let can_move_the_cursor = environment.stderr_is_terminal && environment.text("TERM") != Some("dumb");
    Ok(match mode {
        ProgressMode::Auto if can_move_the_cursor => ProgressMode::Tty,
        ProgressMode::Auto => ProgressMode::Plain,
        mode => mode,
    })
}

/// Where the store is: `--root`, LAYERWRIGHT_ROOT, or below the user's data directory.
///
/// # Errors
/// [`RequestError::NoRoot`]
pub fn store_root(given: Option<PathBuf>, environment: &Environment<'_>) -> Result<PathBuf, RequestError> {
    let in_data_home = || environment.path("XDG_DATA_HOME").map(|data| data.join("layerwright"));
    let in_home = || environment.path("HOME").map(|home| home.join(".local/share/layerwright"));
    let root = given.or_else(|| environment.path("LAYERWRIGHT_ROOT")).or_else(in_data_home).or_else(in_home);
    let root = root.ok_or(RequestError::NoRoot)?;
    std::path::absolute(&root).map_err(|source| RequestError::Read { what: "store", path: root, source })
}

#[cfg(test)]
mod tests;

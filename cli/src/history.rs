//! `layerwright history`: the builds of a store, what each did, how long it took and what the cache saved.
//!
//! Every build leaves an [`Entry`] when it ends, well or not, and the log that its plain progress would have shown. Writing
//! it is the last thing a build does and can fail none.

mod entry;
mod kept;
mod log;
mod recorder;
mod text;

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use oci::store::Store;
use serde::Serialize;

use self::log::KeptLog;
pub use self::{
    entry::{Asked, BuildId, Ending, Entry, Outcome, Step},
    kept::{HistoryError, find, list, read},
    recorder::{Record, Recorder},
    text::{ago, ago_within, duration, name},
};
use crate::{
    args::{
        HistoryArgs, HistoryCommand, HistoryListArgs, HistoryLogsArgs, HistoryRemoveArgs, HistoryShowArgs,
    },
    call::pretty,
    du::no_store,
    failure::{self, Failure},
    inputs,
    outputs::Output,
    progress::shown,
    redact::redact,
    request::{self, BuildRequest, DockerfilePlace, Environment},
    spec::{
        call::Format,
        context::{ContextSpec, FilesSource},
    },
};

/// `layerwright history`: the text for standard output.
///
/// # Errors
/// There is no such build, or what is kept of it cannot be read.
pub fn run(args: HistoryArgs) -> Result<String, Failure> {
    let root = |root| request::store_root(root, &Environment::of_process());
    match args.command {
        None => list_all(&root(args.list.root.clone())?, &args.list),
        Some(HistoryCommand::Ls(args)) => list_all(&root(args.root.clone())?, &args),
        Some(HistoryCommand::Show(args)) => show(&root(args.root.clone())?, &args),
        Some(HistoryCommand::Logs(HistoryLogsArgs { build, root: directory })) => {
            let root = root(directory)?;
            log(&root, &find(&root, &build)?)
        }
        Some(HistoryCommand::Rm(args)) => remove(&root(args.root.clone())?, &args),
    }
}

fn list_all(root: &Path, args: &HistoryListArgs) -> Result<String, Failure> {
    let mut builds = Vec::new();
    for id in list(root)? {
        match read(root, &id) {
            Ok(entry) => builds.push(Build::Known(Box::new(entry))),
            // Somebody else's build has just ended, and its entry has pushed this one out.
            Err(HistoryError::NoBuild { .. }) => {}
            // It says nothing of the others.
            Err(error @ HistoryError::Entry(_)) => builds.push(Build::Unreadable(id, error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(match args.format {
        Format::Text => no_store(root)? + &text::list(&builds, now()),
        Format::Json => pretty(&builds.iter().map(Shown::of).collect::<Vec<_>>()),
    })
}

/// A build of the list.
enum Build {
    Known(Box<Entry>),
    Unreadable(BuildId, HistoryError),
}

fn show(root: &Path, args: &HistoryShowArgs) -> Result<String, Failure> {
    let entry = read(root, &find(root, &args.build)?)?;
    let log = args.log.then(|| log(root, &entry.id)).transpose()?;
    Ok(match args.format {
        Format::Text => text::show(&entry, now()) + &log.map(|log| format!("\n{log}")).unwrap_or_default(),
        Format::Json => pretty(&Detailed { summary: Listed::of(&entry), steps: &entry.steps, log }),
    })
}

/// The kept log, harmless to a terminal.
fn log(root: &Path, id: &BuildId) -> Result<String, Failure> {
    Ok(kept::read_log(root, id)?.split_inclusive(|byte| *byte == b'\n').map(shown).collect())
}

fn remove(root: &Path, args: &HistoryRemoveArgs) -> Result<String, Failure> {
    let ids = match args.all {
        true => list(root)?,
        false => args.builds.iter().map(|build| find(root, build)).collect::<Result<_, _>>()?,
    };
    ids.iter().try_for_each(|id| kept::remove(root, id))?;
    Ok(ids.iter().map(|id| format!("{id}\n")).collect())
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A build as a line of the list tells it.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a BuildId,
    created_at: String,
    #[serde(flatten)]
    asked: &'a Asked,
    #[serde(flatten)]
    result: &'a Ending,
    duration_ms: u64,
    total_steps: usize,
    cached_steps: usize,
    saved_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a str>,
}

/// A build of the list, for programs.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Known(Listed<'a>),
    Unreadable { id: &'a BuildId, status: &'static str, message: String },
}

impl<'a> Shown<'a> {
    fn of(build: &'a Build) -> Self {
        match build {
            Build::Known(entry) => Self::Known(Listed::of(entry)),
            Build::Unreadable(id, error) => {
                Self::Unreadable { id, status: "damaged", message: failure::chain(error) }
            }
        }
    }
}

/// A build with its steps.
#[derive(Serialize)]
struct Detailed<'a> {
    #[serde(flatten)]
    summary: Listed<'a>,
    steps: &'a [Step],
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

impl<'a> Listed<'a> {
    fn of(entry: &'a Entry) -> Self {
        let Entry { id, at, took_ms, asked, result, sandbox, .. } = entry;
        Self {
            id,
            created_at: text::rfc3339(*at),
            asked,
            result,
            duration_ms: *took_ms,
            total_steps: entry.counted().count(),
            cached_steps: entry.cached(),
            saved_ms: entry.saved_ms(),
            sandbox: sandbox.as_deref(),
        }
    }
}

/// A recorder for a build of this name.
pub fn recorder(id: BuildId, request: &BuildRequest) -> Recorder {
    Recorder::new(id, asked(request), KeptLog::new(&request.secrets))
}

/// Keeps what is to be remembered of a build.
///
/// # Errors
/// The store does not take it.
pub fn write(store: &Store, record: &Record) -> Result<(), HistoryError> {
    kept::write(store, &record.entry, &record.log)
}

fn asked(request: &BuildRequest) -> Asked {
    let context = match &request.places.context {
        ContextSpec::Stdin => "-".to_owned(),
        ContextSpec::Commit(commit) => absolute(&commit.place),
        ContextSpec::Files(FilesSource::Directory(path)) => absolute(path),
        ContextSpec::Files(FilesSource::Git(address)) => redact(&inputs::git_name(address)).into_owned(),
        ContextSpec::Files(FilesSource::Url(url)) => redact(url).into_owned(),
    };
    let dockerfile = match &request.places.dockerfile {
        DockerfilePlace::Default => "Dockerfile".to_owned(),
        DockerfilePlace::Path(path) => match &request.places.context {
            // What is no path of the work tree is one of the commit.
            ContextSpec::Commit(commit) => below(path, &commit.place)
                .filter(|found| found.is_relative() || in_work_tree(found, &commit.place)),
            ContextSpec::Files(FilesSource::Directory(context)) => below(path, context),
            ContextSpec::Stdin | ContextSpec::Files(_) => None,
        }
        .map_or_else(|| path.display().to_string(), |found| found.display().to_string()),
        DockerfilePlace::Stdin => "-".to_owned(),
        DockerfilePlace::Url(url) => redact(url).into_owned(),
    };
    let mut tags: Vec<String> = Vec::new();
    let names = request.outputs.iter().flat_map(Output::names).map(ToString::to_string);
    for name in names.chain(request.tags.iter().map(ToString::to_string)) {
        if !tags.contains(&name) {
            tags.push(name);
        }
    }
    let platforms = request.platforms.iter().map(ToString::to_string).collect();
    Asked { dockerfile, context, target: request.target.clone(), platforms, tags }
}

/// A Dockerfile of this machine by its path in the context, where it is below that, else by its whole path: nobody knows which
/// working directory `-f` was relative to when the history is read.
fn below(dockerfile: &Path, context: &Path) -> Option<PathBuf> {
    let directory = dockerfile.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new(".")).canonicalize().ok()?;
    let place = directory.join(dockerfile.file_name()?);
    let inside =
        context.canonicalize().ok().and_then(|context| place.strip_prefix(context).ok().map(Path::to_owned));
    Some(inside.unwrap_or(place))
}

/// Whether a whole path lies in the work tree that a context is part of.
fn in_work_tree(path: &Path, context: &Path) -> bool {
    let Ok(context) = context.canonicalize() else { return false };
    let top = context.ancestors().find(|directory| directory.join(".git").exists());
    top.is_some_and(|top| path.starts_with(top))
}

/// Paths are told from wherever the history is read.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

//! Where a build finds what it reads: its context, its Dockerfile and the contexts that have names.
//!
//! Directories are there when all this is known; nothing in them has been read.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use executor::{context::ContextModes, git::Revision};

use super::RequestError;
use crate::{
    args::{self, BuildArgs},
    inputs,
    spec::context::{CommitSpec, ContextSpec, FilesSource, NamedContextSpec, NamedSource},
};

/// Where a build finds what it reads.
#[derive(Debug, Clone)]
pub struct Places {
    /// The main context.
    pub context: ContextSpec,
    /// The Dockerfile.
    pub dockerfile: DockerfilePlace,
    /// `--build-context`, by name.
    pub named: BTreeMap<String, NamedSource>,
    /// `--context-modes`, for directories of this machine.
    pub modes: ContextModes,
    /// The commit of `--git`, opened: whatever its name comes to mean later, this one is built.
    pub commit: Option<Revision>,
}

/// Where the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfilePlace {
    /// `Dockerfile` in the context, or whatever the context says.
    Default,
    /// `-f PATH`: in the working directory, or in a context that is no directory.
    Path(PathBuf),
    /// `-f -`
    Stdin,
    /// `-f URL`
    Url(String),
}

impl Places {
    /// Whether something must be brought to this machine before the Dockerfile is known.
    pub fn are_elsewhere(&self) -> bool {
        !matches!(self.context, ContextSpec::Files(FilesSource::Directory(_)) | ContextSpec::Commit(_))
            || matches!(self.dockerfile, DockerfilePlace::Url(_))
    }
}

/// Where Dockerfile and files are; directories are there.
pub fn places(args: &BuildArgs, build_args: &BTreeMap<String, String>) -> Result<Places, RequestError> {
    let named = named_contexts(&args.contexts)?;
    let context = match &args.git {
        Some(revision) => commit(&args.context, revision, args.dirty)?,
        None => main_context(&args.context, keep_git_dir(build_args)?)?,
    };
    Ok(Places { named, modes: args.context_modes, ..main_places(context, args.file.as_deref())? })
}

/// The same for a context that is only to be looked at.
///
/// # Errors
/// It is not there, or makes no sense.
pub fn context_places(context: &str, git: Option<&str>, file: Option<&str>) -> Result<Places, RequestError> {
    let context = match git {
        Some(revision) => commit(context, revision, false)?,
        None => main_context(context, false)?,
    };
    main_places(context, file)
}

/// What `-f` means.
pub fn dockerfile_place(file: Option<&str>) -> DockerfilePlace {
    match file {
        None | Some("") => DockerfilePlace::Default,
        Some("-") => DockerfilePlace::Stdin,
        Some(url) if solver::remote::is_url(url) => DockerfilePlace::Url(url.to_owned()),
        Some(path) => DockerfilePlace::Path(PathBuf::from(path)),
    }
}

fn main_places(context: ContextSpec, file: Option<&str>) -> Result<Places, RequestError> {
    let dockerfile = dockerfile_place(file);
    if (&context, &dockerfile) == (&ContextSpec::Stdin, &DockerfilePlace::Stdin) {
        return Err(RequestError::Conflict(
            "standard input cannot be both the build context and the Dockerfile",
        ));
    }
    let commit = match &context {
        // By one thread: namespaces are entered next. Whether the work tree is clean is found out by several, later.
        ContextSpec::Commit(spec) => Some(inputs::opened(spec, &dockerfile)),
        _ => None,
    };
    let commit = commit.transpose().map_err(|error| RequestError::Git(Box::new(error.into())))?;
    let (named, modes) = Default::default();
    Ok(Places { context, dockerfile, named, modes, commit })
}

/// A directory of that name goes before an address that looks the same, as in buildx.
fn main_context(text: &str, keep_git_dir: bool) -> Result<ContextSpec, RequestError> {
    let spec = match text != "-" && Path::new(text).is_dir() {
        true => ContextSpec::Files(FilesSource::Directory(PathBuf::from(text))),
        false => text.parse()?,
    };
    Ok(match spec {
        ContextSpec::Files(FilesSource::Directory(path)) => {
            ContextSpec::Files(FilesSource::Directory(directory(&path)?))
        }
        ContextSpec::Files(FilesSource::Git(mut address)) => {
            address.keep_git_dir |= keep_git_dir;
            ContextSpec::Files(FilesSource::Git(address))
        }
        other => other,
    })
}

/// A commit of the repository that a path lies in, or is. The path itself need not be there.
fn commit(text: &str, revision: &str, is_dirty: bool) -> Result<ContextSpec, RequestError> {
    let place = match text.parse() {
        _ if text != "-" && Path::new(text).is_dir() => PathBuf::from(text),
        Ok(ContextSpec::Files(FilesSource::Directory(path))) => path,
        _ => {
            return Err(RequestError::GitElsewhere {
                context: text.to_owned(),
                revision: revision.to_owned(),
            });
        }
    };
    let read_error = |source| RequestError::Read { what: "context", path: place.clone(), source };
    let absolute = std::path::absolute(&place).map_err(read_error)?;
    Ok(ContextSpec::Commit(CommitSpec { place: absolute, revision: revision.to_owned(), is_dirty }))
}

/// The build argument that keeps `.git` of the main context.
fn keep_git_dir(build_args: &BTreeMap<String, String>) -> Result<bool, RequestError> {
    const NAME: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";
    let Some(value) = build_args.get(NAME).filter(|value| !value.is_empty()) else { return Ok(false) };
    let wrong = |expected| RequestError::Value { name: NAME, value: value.clone(), expected };
    args::go_bool(value).map_err(wrong)
}

fn directory(path: &Path) -> Result<PathBuf, RequestError> {
    let read_error = |source| RequestError::Read { what: "context", path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read_error)?.is_dir() {
        return Err(RequestError::NotADirectory(path.display().to_string()));
    }
    std::path::absolute(path).map_err(read_error)
}

fn named_contexts(specs: &[NamedContextSpec]) -> Result<BTreeMap<String, NamedSource>, RequestError> {
    let mut contexts = BTreeMap::new();
    for NamedContextSpec { name, source } in specs {
        let source = match source {
            NamedSource::Files(FilesSource::Directory(path)) => {
                let path = directory(path).map_err(|error| no_context(name, error))?;
                NamedSource::Files(FilesSource::Directory(path))
            }
            NamedSource::OciLayout { directory: path, selector } => {
                let directory = directory(path).map_err(|error| no_layout(name, path, error))?;
                NamedSource::OciLayout { directory, selector: selector.clone() }
            }
            other => other.clone(),
        };
        if contexts.insert(name.clone(), source).is_some() {
            return Err(RequestError::ContextTwice(name.clone()));
        }
    }
    Ok(contexts)
}

fn no_layout(name: &str, path: &Path, error: RequestError) -> RequestError {
    let source = match error {
        RequestError::Read { source, .. } => source,
        RequestError::NotADirectory(_) => std::io::ErrorKind::NotADirectory.into(),
        error => return error,
    };
    RequestError::NoLayout { name: name.to_owned(), path: path.to_owned(), source }
}

fn no_context(name: &str, error: RequestError) -> RequestError {
    match error {
        RequestError::Read { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            RequestError::NoContext { name: name.to_owned(), path, source }
        }
        error => error,
    }
}

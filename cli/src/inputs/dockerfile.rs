//! Which text is the Dockerfile, and which ignore file belongs to it.
//!
//! As with buildx, `-f PATH` is relative to the working directory where the context is a directory, and a path in the
//! context where it is anything else. `Dockerfile` may be written `dockerfile` wherever it is looked for.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use executor::context::{DEFAULT_IGNORE_FILE, IgnoreFile};
use solver::{op::HttpFile, remote};

use super::{
    Arrived, InputError, Outside, Source,
    place::{ContextPlace, in_commit},
    text,
};
use crate::{
    failure::Failure,
    request::{DockerfilePlace, Places},
    spec::context::{ContextSpec, FilesSource},
};

/// How messages call standard input.
pub const STDIN: &str = "<stdin>";

/// A Dockerfile and where it lies.
pub struct Found {
    pub source: Source,
    beside: Beside,
}

/// Where an ignore file of the Dockerfile's own would lie beside it.
enum Beside {
    /// On this machine.
    Here(PathBuf),
    /// In the context.
    InContext(PathBuf),
    /// The Dockerfile lies nowhere.
    Nowhere,
}

impl Found {
    /// What came instead of a context.
    pub fn alone(bytes: Vec<u8>, name: &str) -> Result<Self, InputError> {
        let text = text::of_bytes(bytes).map_err(unreadable(name, None))?;
        Ok(Self { source: Source::new(name, text), beside: Beside::Nowhere })
    }

    /// `<Dockerfile>.dockerignore`, else the context's `.dockerignore`, else nothing.
    pub fn ignore_file(&self, arrived: &Arrived) -> Result<Option<IgnoreFile>, InputError> {
        self.beside.ignore_file(arrived)
    }

    /// The Dockerfile and its ignore file, as far as they lie on this machine.
    pub fn read_here(&self, arrived: &Arrived) -> Vec<PathBuf> {
        let (dockerfile, own) = match &self.beside {
            Beside::Here(path) => (Some(path.clone()), Some(own_ignore_file(path))),
            Beside::InContext(_) | Beside::Nowhere => (None, None),
        };
        let of_context = match &arrived.place {
            ContextPlace::Directory(directory) if !arrived.foreign => {
                Some(directory.join(DEFAULT_IGNORE_FILE))
            }
            _ => None,
        };
        let ignore_file = own.into_iter().chain(of_context).find(|path| path.exists());
        dockerfile.into_iter().chain(ignore_file).collect()
    }
}

impl Beside {
    /// Where the ignore file would lie, whether there is a Dockerfile or not.
    fn of(place: &DockerfilePlace, arrived: &Arrived) -> Self {
        match (place, &arrived.place) {
            (DockerfilePlace::Stdin | DockerfilePlace::Url(_), _) => Self::Nowhere,
            (DockerfilePlace::Path(path), ContextPlace::Commit(revision)) => {
                in_commit(revision, path).map_or_else(|| Self::Here(path.clone()), Self::InContext)
            }
            (DockerfilePlace::Path(path), _) if !arrived.foreign || path.is_absolute() => {
                Self::Here(path.clone())
            }
            (DockerfilePlace::Path(path), _) => Self::InContext(path.clone()),
            (DockerfilePlace::Default, ContextPlace::Directory(directory)) if !arrived.foreign => {
                Self::Here(directory.join("Dockerfile"))
            }
            (DockerfilePlace::Default, place) => Self::InContext(place.path("Dockerfile")),
        }
    }

    fn ignore_file(&self, arrived: &Arrived) -> Result<Option<IgnoreFile>, InputError> {
        let (here, inside) = match self {
            Self::Here(path) => (Some(own_ignore_file(path)), None),
            Self::InContext(path) => (None, Some(own_ignore_file(path))),
            Self::Nowhere => (None, None),
        };
        let found = match &arrived.place {
            ContextPlace::Directory(directory) if !arrived.foreign => {
                let paths = here.into_iter().chain([directory.join(DEFAULT_IGNORE_FILE)]);
                return text::first_ignore_file(directory, paths);
            }
            ContextPlace::Directory(directory) => text::first_ignore_file(directory, here)?,
            ContextPlace::Commit(_) => text::first_ignore_file_here(here)?,
        };
        let of_context = arrived.place.path(DEFAULT_IGNORE_FILE);
        let paths = inside.into_iter().chain([of_context]);
        found.map_or_else(|| text::first_ignore_file_in(&arrived.place, paths), |found| Ok(Some(found)))
    }
}

/// The ignore file of a context whose Dockerfile nobody has asked for.
pub fn ignore_file_without(
    place: &DockerfilePlace,
    arrived: &Arrived,
) -> Result<Option<IgnoreFile>, InputError> {
    Beside::of(place, arrived).ignore_file(arrived)
}

/// The ignore file of a context that is a directory of this machine, without a look at the Dockerfile.
///
/// # Errors
/// It cannot be read.
pub fn ignore_file_here(place: &DockerfilePlace, context: &Path) -> Result<Option<IgnoreFile>, InputError> {
    let dockerfile = match place {
        DockerfilePlace::Stdin | DockerfilePlace::Url(_) => None,
        DockerfilePlace::Path(path) => Some(as_written(path)),
        DockerfilePlace::Default => Some(as_written(&context.join("Dockerfile"))),
    };
    let own = dockerfile.map(|path| own_ignore_file(&path));
    text::first_ignore_file(context, own.into_iter().chain([context.join(DEFAULT_IGNORE_FILE)]))
}

/// Where the ignore file of a Dockerfile's own lies.
pub fn own_ignore_file(dockerfile: &Path) -> PathBuf {
    let mut name = dockerfile.as_os_str().to_owned();
    name.push(".dockerignore");
    PathBuf::from(name)
}

/// The Dockerfile that can be read before the context is there; `None` where it lies in the context.
pub fn outside_of_context(
    places: &Places,
    outside: &Outside,
    stdin: &mut dyn Read,
) -> Result<Option<Found>, Failure> {
    let found = match (&places.dockerfile, &places.context) {
        (DockerfilePlace::Stdin, _) => Found { source: from_stdin(stdin)?, beside: Beside::Nowhere },
        (DockerfilePlace::Url(url), _) => from_url(url, outside)?,
        (place, ContextSpec::Files(FilesSource::Directory(context))) => on_disk(place, context)?,
        (DockerfilePlace::Path(path), ContextSpec::Files(_)) if path.is_absolute() => read_here(path, None)?,
        _ => return Ok(None),
    };
    Ok(Some(found))
}

fn from_stdin(stdin: &mut dyn Read) -> Result<Source, InputError> {
    let text = text::read(stdin).map_err(unreadable("from standard input", None))?;
    Ok(Source::new(STDIN, text))
}

/// A Dockerfile that is looked at by itself; `-` is standard input.
pub fn alone(path: &Path, stdin: &mut dyn Read) -> Result<Source, InputError> {
    if path == Path::new("-") {
        return from_stdin(stdin);
    }
    let name = path.display().to_string();
    let text = text::of_file(path).map_err(unreadable(&name, None))?;
    Ok(Source::new(name, text))
}

fn from_url(url: &str, outside: &Outside) -> Result<Found, Failure> {
    let file = HttpFile { url: url.to_owned(), name: remote::file_name(url), checksum: None };
    let download = outside.remotes()?.http(&file).map_err(Failure::remote)?;
    let text = text::of_file(&download.directory.join(&download.name)).map_err(unreadable(url, None))?;
    Ok(Found { source: Source::new(url, text), beside: Beside::Nowhere })
}

/// The Dockerfile of a context that is a directory.
fn on_disk(place: &DockerfilePlace, context: &Path) -> Result<Found, InputError> {
    if let DockerfilePlace::Path(path) = place {
        return read_here(path, Some(context));
    }
    let mut found = read_of(context)?;
    // What is where everybody looks for it needs no path in front.
    if let Beside::Here(path) = &found.beside
        && let Some(name) = path.file_name()
    {
        found.source.name = name.to_string_lossy().into_owned();
    }
    Ok(found)
}

/// A Dockerfile of this machine. Who takes `-f` for relative to the context is told.
fn read_here(path: &Path, context: Option<&Path>) -> Result<Found, InputError> {
    let path = as_written(path);
    let text = text::of_file(&path).map_err(|source| {
        let hint = context.and_then(|context| in_context_hint(&path, context, &source));
        unreadable(&path.display().to_string(), hint)(source)
    })?;
    let source = Source::new(path.display().to_string(), text);
    Ok(Found { source, beside: Beside::Here(path) })
}

/// The Dockerfile that a context of this machine has itself.
fn read_of(context: &Path) -> Result<Found, InputError> {
    let path = as_written(&context.join("Dockerfile"));
    let text = text::of_own_file(context, &path).map_err(unreadable(&path.display().to_string(), None))?;
    Ok(Found { source: Source::new(path.display().to_string(), text), beside: Beside::Here(path) })
}

fn in_context_hint(path: &Path, context: &Path, error: &io::Error) -> Option<String> {
    let meant = context.join(path);
    let slip = error.kind() == io::ErrorKind::NotFound && path.is_relative() && meant.is_file();
    slip.then(|| {
        format!("-f is relative to the working directory, not to the context: -f {}", meant.display())
    })
}

/// The Dockerfile inside a context that came from elsewhere.
pub fn in_context(place: &DockerfilePlace, arrived: &Arrived) -> Result<Found, InputError> {
    let mut path = match Beside::of(place, arrived) {
        Beside::InContext(path) => path,
        Beside::Here(path) => return read_here(&path, None),
        Beside::Nowhere => arrived.place.path("Dockerfile"),
    };
    let mut text = arrived.place.text(&path);
    if let Some(lower) = lower_case(&path)
        && text.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        && let Ok(found) = arrived.place.text(&lower)
    {
        (path, text) = (lower, Ok(found));
    }
    let of_elsewhere = |name: &str| {
        let name = format!("{name}{}{}", separator(name), path.display());
        (name, "this path is looked for in the context: -f PATH names another one there")
    };
    let (name, hint) = match &arrived.place {
        ContextPlace::Directory(_) => of_elsewhere(&arrived.name),
        ContextPlace::Commit(revision) if revision.is_fetched() => of_elsewhere(revision.name()),
        ContextPlace::Commit(revision) if revision.is_dirty() && revision.has_committed(&path) => (
            format!("{}:{}", revision.name(), path.display()),
            "the commit has it, and the work tree, which --dirty lays over that, no longer: git restore brings it back",
        ),
        ContextPlace::Commit(revision) => (
            format!("{}:{}", revision.name(), path.display()),
            "this path is looked for in the commit, not in the work tree: -f PATH names another one",
        ),
    };
    let text = text.map_err(|source| {
        if source.kind() != io::ErrorKind::NotFound {
            return unreadable(&name, None)(source);
        }
        match arrived.place.link(&path) {
            Some(target) => unreadable(&name, None)(text::leads_nowhere(&target, arrived.place.noun())),
            None => unreadable(&name, Some(hint.to_owned()))(source),
        }
    })?;
    Ok(Found { source: Source::new(name, text), beside: Beside::InContext(path) })
}

/// What stands between a context's name and a path in it: `#REF:PATH`, but `URL/PATH`.
fn separator(context: &str) -> &'static str {
    match context.split_once('#') {
        Some((_, fragment)) if !fragment.contains(':') => ":",
        _ => "/",
    }
}

/// `dockerfile` beside what is called `Dockerfile`.
fn lower_case(path: &Path) -> Option<PathBuf> {
    (path.file_name()? == "Dockerfile").then(|| path.with_file_name("dockerfile"))
}

/// The one of both that is there.
fn as_written(path: &Path) -> PathBuf {
    let lower = lower_case(path).filter(|lower| !path.exists() && lower.exists());
    lower.unwrap_or_else(|| path.to_owned())
}

fn unreadable(name: &str, hint: Option<String>) -> impl FnOnce(io::Error) -> InputError {
    let name = name.to_owned();
    move |source| InputError::Read { what: "Dockerfile", name, hint, source }
}

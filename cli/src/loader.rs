//! Who takes the image of `--load`: docker or podman, whichever is there; decided before the build begins.
//!
//! Docker goes first, if its program is in PATH *and* a daemon answers it, for many machines have the one without the
//! other; then podman, which needs no daemon. `LAYERWRIGHT_LOAD` names one of them, `context=` is docker's alone.

use std::{
    ffi::OsStr,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use exporter::{LoadError, LoadHelper, Loader};

use crate::{
    outputs::Output,
    request::{BuildRequest, Environment},
};

const VARIABLE: &str = "LAYERWRIGHT_LOAD";
/// How long a daemon may take to answer; one behind SSH takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is nobody who would take the image.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Neither of them is there.
    #[error("nothing here can load an image: {}", .0.join("; "))]
    None(Vec<String>),
    /// The variable names something else.
    #[error("{VARIABLE}={0:?}: expected docker or podman")]
    Unknown(String),
    /// A docker context was asked for, and podman.
    #[error("context={0} is a docker context, but {VARIABLE} is podman")]
    ContextOfPodman(String),
    /// The process that will load it.
    #[error(transparent)]
    Helper(#[from] LoadError),
}

/// Finds and prepares what the outputs of a request need; `None` where none of them is loaded. To be called before the
/// builder enters its namespaces.
///
/// # Errors
/// [`LoaderError`]
pub fn prepare(request: &BuildRequest, environment: &Environment) -> Result<Option<LoadHelper>, LoaderError> {
    let mut loaders: Vec<Loader> = Vec::new();
    for context in request.outputs.iter().filter_map(Output::loaded_into) {
        if !loaders.iter().any(|loader| loader.context.as_deref() == context) {
            loaders.push(find(context, environment)?);
        }
    }
    Ok(if loaders.is_empty() { None } else { Some(LoadHelper::start(loaders)?) })
}

/// Looks for one program in PATH; what it lacks is for people.
type Candidate = fn(context: Option<&str>, path: &OsStr) -> Result<Loader, String>;

fn find(context: Option<&str>, environment: &Environment) -> Result<Loader, LoaderError> {
    let wish = environment.text(VARIABLE);
    let candidates: &[Candidate] = match (wish, context) {
        (Some("podman"), Some(context)) => return Err(LoaderError::ContextOfPodman(context.to_owned())),
        (Some("podman"), None) => &[podman],
        (Some("docker"), _) | (None, Some(_)) => &[docker],
        (None, None) => &[docker, podman],
        (Some(other), _) => return Err(LoaderError::Unknown(other.to_owned())),
    };
    let path = environment.get("PATH").unwrap_or_default();
    let mut lacks = Vec::new();
    for candidate in candidates {
        match candidate(context, path) {
            Ok(loader) => return Ok(loader),
            Err(lack) => lacks.push(lack),
        }
    }
    Err(LoaderError::None(lacks))
}

fn docker(context: Option<&str>, path: &OsStr) -> Result<Loader, String> {
    let program = in_path("docker", path)?;
    let mut arguments: Vec<String> = Vec::new();
    arguments.extend(context.map(|context| format!("--context={context}")));
    let asked = [&arguments[..], &["version", "--format={{.Server.Version}}"].map(str::to_owned)].concat();
    answers(&program, &asked)?;
    arguments.push("load".to_owned());
    let name = context.map_or("docker".to_owned(), |context| format!("docker (context {context})"));
    Ok(Loader { name, context: context.map(str::to_owned), program, arguments })
}

fn podman(_: Option<&str>, path: &OsStr) -> Result<Loader, String> {
    let program = in_path("podman", path)?;
    Ok(Loader { name: "podman".to_owned(), context: None, program, arguments: vec!["load".to_owned()] })
}

/// A program, by its absolute path: what is found now is what will run.
fn in_path(name: &str, path: &OsStr) -> Result<PathBuf, String> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let found = std::env::split_paths(path).map(|directory| directory.join(name));
    let found = found.filter_map(|path| std::path::absolute(path).ok()).find(|path| is_program(path));
    found.ok_or_else(|| format!("{name} is not in PATH"))
}

/// Whether a daemon answers the program; if not, what was tried and what it said.
fn answers(program: &Path, arguments: &[String]) -> Result<(), String> {
    let failed = |why: &str| format!("{} does not answer: {why}", program.display());
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&error.to_string()))?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().map_err(|error| failed(&error.to_string()))?.is_none() {
        if Instant::now() >= deadline {
            // Where it cannot be killed it has just ended.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(failed(&format!("no answer after {} seconds", PATIENCE.as_secs())));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().map_err(|error: io::Error| failed(&error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(failed(said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it failed")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ffi::OsString, os::unix::fs::symlink};

    use super::*;

    /// A PATH with programs that are in truth others. Links: what one test writes another's child would hold open.
    fn programs(links: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        links.iter().for_each(|(name, to)| symlink(to, directory.path().join(name)).expect("linked"));
        directory
    }

    fn found(links: &[(&str, &str)], wish: &str, context: Option<&str>) -> Result<Loader, String> {
        let directory = programs(links);
        let variables: BTreeMap<OsString, OsString> =
            BTreeMap::from([("PATH".into(), directory.path().into()), (VARIABLE.into(), wish.into())]);
        find(
            context,
            &Environment { variables, stderr_is_terminal: false, stdin_is_terminal: false, is_root: false },
        )
        .map_err(|error| error.to_string())
    }

    const UP: (&str, &str) = ("docker", "/bin/true");
    /// Says on standard error that it has no option `--format`.
    const DOWN: (&str, &str) = ("docker", "/bin/cat");
    const PODMAN: (&str, &str) = ("podman", "/bin/true");

    #[test]
    fn docker_goes_first_where_it_answers() {
        for (scripts, wish, want) in [
            (&[UP, PODMAN][..], "", "docker"),
            (&[DOWN, PODMAN], "", "podman"),
            (&[PODMAN], "", "podman"),
            (&[UP, PODMAN], "podman", "podman"),
            (&[UP, PODMAN], "docker", "docker"),
        ] {
            assert_eq!(found(scripts, wish, None).expect("found").name, want, "{wish}");
        }
        let loader = found(&[UP, PODMAN], "", Some("remote")).expect("found");
        assert_eq!(loader.arguments, ["--context=remote", "load"]);
    }

    #[test]
    fn what_was_looked_for_is_named() {
        for (scripts, wish, context, want) in [
            (&[][..], "", None, "docker is not in PATH; podman is not in PATH"),
            (&[DOWN], "", None, "docker does not answer: "),
            (&[DOWN], "", None, "; podman is not in PATH"),
            (&[DOWN, PODMAN], "docker", None, "option"),
            (&[PODMAN], "", Some("remote"), "docker is not in PATH"),
            (&[UP], "podman", None, "podman is not in PATH"),
            (&[UP], "podman", Some("remote"), "is a docker context"),
            (&[UP], "nerdctl", None, "expected docker or podman"),
        ] {
            let error = found(scripts, wish, context).expect_err(wish);
            assert!(error.contains(want), "{error}");
        }
    }
}

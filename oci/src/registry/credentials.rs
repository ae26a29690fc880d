//! Credentials as Docker and the containers tools keep them: `config.json`, `auth.json` and credential helpers.
//!
//! Nothing is kept between calls: a login or a helper's new password during a long build is seen. No value of a secret
//! is ever part of an error.

mod edit;
mod file;
mod helper;

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

pub use self::edit::{Keeper, LoginFile};
use self::file::CredentialFile;
pub(super) use self::{file::normalised, helper::Leash};

/// Longest credential file that is read.
const MAX_FILE: u64 = 4 << 20;
/// What Docker calls Docker Hub in credential stores.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Why configured credentials cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not what Docker writes.
    #[error("{source_name} is not a credential file: {reason}")]
    Malformed {
        /// Path of the file, or name of the variable.
        source_name: String,
        /// What is wrong and where, without any of its text.
        reason: String,
    },
    /// The helper failed, or did not answer.
    #[error("credential helper {helper:?} of {named_by} {reason}")]
    Helper {
        /// Name of its program.
        helper: String,
        /// The file or variable that names it.
        named_by: String,
        /// What happened.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing says where logins are kept.
    #[error(
        "nothing says where to keep credentials: neither HOME nor DOCKER_CONFIG nor REGISTRY_AUTH_FILE is set"
    )]
    NoPlace,
    /// Helpers know registries only.
    #[error("credential helper {helper:?} of {named_by} keeps one login a registry, none for {key}")]
    Scoped {
        /// Name of its program.
        helper: String,
        /// The file that names it.
        named_by: String,
        /// What was asked for.
        key: String,
    },
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// This text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Whether there is nothing to hide.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text, for whoever it is meant for.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What proves to a registry who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// Name and password, for the registry or its token service.
    Password {
        /// User name.
        user: String,
        /// Password.
        password: Secret,
    },
    /// An OAuth2 refresh token for the registry's token service.
    IdentityToken(Secret),
    /// A bearer token for the registry itself.
    RegistryToken(Secret),
}

/// What a login leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// What proves that it is theirs.
    pub proof: Proof,
}

/// What proves who somebody is, in a way that can be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The password.
    Password(Secret),
    /// An OAuth2 refresh token that the token service gave for it.
    IdentityToken(Secret),
}

/// A credential, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// What proves who we are.
    pub credential: Credential,
    /// The path of the file, or the name of the variable, that has it or names the helper that does.
    pub source_name: String,
}

/// Where credentials are looked for.
#[derive(Debug, Clone)]
pub(super) enum CredentialStore {
    /// Here, in this order.
    Sources(Vec<Source>),
    /// This, for whoever asks.
    Given(Found),
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A file that the user named: it must be there.
    Named(PathBuf),
    /// A file in one of the usual places.
    Usual(PathBuf),
    /// The content of such a file, in the environment.
    Inline(Secret),
}

impl CredentialStore {
    /// The files that were named, then `DOCKER_AUTH_CONFIG` (as GitLab's runners give it), `REGISTRY_AUTH_FILE`,
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and what containers-auth.json(5) names.
    pub fn new(named: &[PathBuf], environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let inline = variable("DOCKER_AUTH_CONFIG").and_then(|text| text.into_string().ok());
        let settings = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")));
        let usual = [
            path("REGISTRY_AUTH_FILE"),
            docker_config(&path),
            path("XDG_RUNTIME_DIR").or_else(runtime_directory).map(|run| run.join("containers/auth.json")),
            settings.map(|directory| directory.join("containers/auth.json")),
        ];
        let named = named.iter().cloned().map(Source::Named);
        let inline = inline.map(|text| Source::Inline(Secret(text)));
        Self::Sources(named.chain(inline).chain(usual.into_iter().flatten().map(Source::Usual)).collect())
    }

    /// The credential for a repository, from the first source that has one. Blocks: it may run a helper, which ends when
    /// the leash is cut.
    ///
    /// # Errors
    /// [`CredentialError`], which says nothing about other sources: a broken file is not passed over.
    pub fn find(
        &self,
        registry: &str,
        repository: &str,
        leash: &Leash,
    ) -> Result<Option<Found>, CredentialError> {
        let sources = match self {
            Self::Sources(sources) => sources,
            Self::Given(found) => return Ok(Some(found.clone())),
        };
        for source in sources {
            let Some(file) = source.load()? else { continue };
            let source_name = source.name();
            if let Some(credential) = file.find(registry, repository, &source_name, leash)? {
                return Ok(Some(Found { credential, source_name }));
            }
        }
        Ok(None)
    }
}

/// Docker's own file.
fn docker_config(path: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let directory = path("DOCKER_CONFIG").or_else(|| Some(path("HOME")?.join(".docker")))?;
    Some(directory.join("config.json"))
}

/// Where Podman looks for what lasts until the machine stops, if nobody says where that is and we may look there: root's
/// Podman makes `/run/containers` for itself alone, and there is nothing of ours in it then. A builder in a user
/// namespace is still the user outside.
fn runtime_directory() -> Option<PathBuf> {
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let own = rustix::process::geteuid().as_raw();
    let outside = map.lines().find_map(|line| {
        let [inside, outside, count] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        let (inside, outside, count): (u32, u32, u32) =
            (inside.parse().ok()?, outside.parse().ok()?, count.parse().ok()?);
        own.checked_sub(inside).filter(|offset| *offset < count).map(|offset| outside + offset)
    })?;
    Some(PathBuf::from(format!("/run/containers/{outside}"))).filter(|directory| !is_closed(directory))
}

/// Whether a directory lies where we may not look.
fn is_closed(directory: &Path) -> bool {
    let error = fs::symlink_metadata(directory.join("containers")).err();
    error.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Named(path) | Self::Usual(path) => path.display().to_string(),
            Self::Inline(_) => "$DOCKER_AUTH_CONFIG".to_owned(),
        }
    }

    fn load(&self) -> Result<Option<CredentialFile>, CredentialError> {
        let text = match self {
            Self::Inline(text) => text.expose().as_bytes().to_vec(),
            Self::Named(path) | Self::Usual(path) => match read_limited(path) {
                Err(error) if is_absence(&error) && matches!(self, Self::Usual(_)) => return Ok(None),
                read => read.map_err(|source| CredentialError::Read { path: path.clone(), source })?,
            },
        };
        parse(&text, &self.name())
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What a file says; `None` for an empty one.
fn parse<T: DeserializeOwned>(text: &[u8], source_name: &str) -> Result<Option<T>, CredentialError> {
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    // Only the place: the parser's own message may quote a secret.
    let malformed = |error: serde_json::Error| CredentialError::Malformed {
        source_name: source_name.to_owned(),
        reason: format!("line {}, column {}", error.line(), error.column()),
    };
    serde_json::from_slice(text).map(Some).map_err(malformed)
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;

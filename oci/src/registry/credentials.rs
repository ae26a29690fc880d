//! Credentials as Docker and the containers tools keep them: `config.json`, `auth.json` and credential helpers.
//!
//! Nothing is kept between calls: a login or a helper's new password during a long build is seen. No value of a secret
//! is ever part of an error.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use super::error::one_line;
use crate::reference::DEFAULT_REGISTRY;

/// How long a credential helper may take.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest answer of a helper that is read.
const HELPER_OUTPUT: u64 = 64 << 10;
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
    #[error("credential helper {helper:?} {reason}")]
    Helper {
        /// Name of its program.
        helper: String,
        /// What happened.
        reason: String,
    },
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub fn expose(&self) -> &str {
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
pub(super) struct CredentialStore {
    sources: Vec<Source>,
}

#[derive(Debug, Clone)]
enum Source {
    /// A file that the user named: it must be there.
    Named(PathBuf),
    /// A file in one of the usual places.
    Usual(PathBuf),
    /// The content of such a file, in the environment.
    Inline(Secret),
}

impl CredentialStore {
    /// The files that were named, then `DOCKER_AUTH_CONFIG` (as GitLab's runners give it), `REGISTRY_AUTH_FILE`,
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and `$XDG_RUNTIME_DIR/containers/auth.json`.
    pub fn new(named: &[PathBuf], environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let inline = variable("DOCKER_AUTH_CONFIG").and_then(|text| text.into_string().ok());
        let docker = path("DOCKER_CONFIG").or_else(|| Some(path("HOME")?.join(".docker")));
        let usual = [
            path("REGISTRY_AUTH_FILE"),
            docker.map(|directory| directory.join("config.json")),
            path("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
        ];
        let named = named.iter().cloned().map(Source::Named);
        let inline = inline.map(|text| Source::Inline(Secret(text)));
        Self { sources: named.chain(inline).chain(usual.into_iter().flatten().map(Source::Usual)).collect() }
    }

    /// The credential for a repository, from the first source that has one. Blocks: it may run a helper.
    ///
    /// # Errors
    /// [`CredentialError`], which says nothing about other sources: a broken file is not passed over.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>, CredentialError> {
        for source in &self.sources {
            let Some(file) = source.load()? else { continue };
            let source_name = source.name();
            if let Some(credential) = file.find(registry, repository, &source_name)? {
                return Ok(Some(Found { credential, source_name }));
            }
        }
        Ok(None)
    }
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
                Err(error) if error.kind() == io::ErrorKind::NotFound && matches!(self, Self::Usual(_)) => {
                    return Ok(None);
                }
                read => read.map_err(|source| CredentialError::Read { path: path.clone(), source })?,
            },
        };
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        // Only the place: the parser's own message may quote a secret.
        let malformed = |error: serde_json::Error| CredentialError::Malformed {
            source_name: self.name(),
            reason: format!("line {}, column {}", error.line(), error.column()),
        };
        serde_json::from_slice(&text).map(Some).map_err(malformed)
    }
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// What we read of `config.json` and `auth.json`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CredentialFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl CredentialFile {
    /// A helper named for the registry, else the store for all of them, else what the file itself holds.
    fn find(
        &self,
        registry: &str,
        repository: &str,
        source_name: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        let keys = keys(registry, repository);
        let helper =
            best(&self.cred_helpers, &keys).or(Some(&self.creds_store).filter(|name| !name.is_empty()));
        if let Some(helper) = helper
            && let Some(credential) = ask_helper(helper, registry, HELPER_DEADLINE)?
        {
            return Ok(Some(credential));
        }
        let Some(entry) = best(&self.auths, &keys) else { return Ok(None) };
        entry.credential().map_err(|reason| CredentialError::Malformed {
            source_name: source_name.to_owned(),
            reason: format!("the entry for {registry} {reason}"),
        })
    }
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(Secret(self.registrytoken.clone()))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(Secret(self.identitytoken.clone()))));
        }
        if self.auth.is_empty() {
            let (user, password) = (self.username.clone(), Secret(self.password.clone()));
            return Ok((!user.is_empty()).then_some(Credential::Password { user, password }));
        }
        let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let decoded = GeneralPurpose::new(&STANDARD, lenient).decode(self.auth.trim());
        let decoded = decoded.map_err(|_| "is not base64")?;
        let text = String::from_utf8(decoded).map_err(|_| "is not UTF-8")?;
        let (user, password) = text.split_once(':').ok_or("is not user:password")?;
        let (user, password) = (user.to_owned(), Secret(password.trim_end_matches('\0').to_owned()));
        Ok((!user.is_empty()).then_some(Credential::Password { user, password }))
    }
}

/// The names a repository's entry may have, the most specific first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut path = repository;
    let mut keys = vec![format!("{registry}/{path}")];
    while let Some((parent, _)) = path.rsplit_once('/') {
        path = parent;
        keys.push(format!("{registry}/{path}"));
    }
    keys.push(registry.to_owned());
    keys
}

fn best<'a, T>(entries: &'a BTreeMap<String, T>, keys: &[String]) -> Option<&'a T> {
    let entry =
        |key: &String| entries.iter().find(|(name, _)| normalised(name) == *key).map(|(_, entry)| entry);
    keys.iter().find_map(entry)
}

/// `host[:port][/path]` of a key, which may be a URL of one of the registry's old APIs.
fn normalised(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let (host, path) = bare.split_once('/').map_or((bare, None), |(host, path)| (host, Some(path)));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    };
    match path {
        None | Some("v1" | "v2") => host.to_owned(),
        Some(path) => format!("{host}/{path}"),
    }
}

/// What a helper answers (docker-credential-helpers, "Development").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-NAME get`. `None` when the helper has nothing for the registry.
fn ask_helper(name: &str, registry: &str, deadline: Duration) -> Result<Option<Credential>, CredentialError> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| CredentialError::Helper { helper: program.clone(), reason };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(failed("is not the name of a program".to_owned()));
    }
    let server = if registry == DEFAULT_REGISTRY { DOCKER_HUB_SERVER } else { registry };
    let output = run_helper(&program, server, deadline).map_err(failed)?;
    if !output.success {
        return if output.text.contains("credentials not found") {
            Ok(None)
        } else {
            Err(failed(format!("failed: {}", one_line(&output.text))))
        };
    }
    let answer: HelperAnswer = serde_json::from_str(&output.text)
        .map_err(|_| failed("answered something else than JSON".to_owned()))?;
    let secret = Secret(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::IdentityToken(secret),
        _ => Credential::Password { user: answer.username, password: secret },
    }))
}

struct HelperOutput {
    success: bool,
    /// Its standard output, where helpers write errors too.
    text: String,
}

fn run_helper(program: &str, server: &str, deadline: Duration) -> Result<HelperOutput, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stdout = child.stdout.take().expect("stdout is piped");
    // A helper that exits without reading is judged by its answer.
    let _ = stdin.write_all(server.as_bytes());
    drop(stdin);

    let (sender, receiver) = mpsc::channel();
    // Not joined: a grandchild that keeps the pipe open may keep it waiting.
    thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.take(HELPER_OUTPUT).read_to_end(&mut text);
        let _ = sender.send(read.map(|_| String::from_utf8_lossy(&text).into_owned()));
    });
    let answer = receiver.recv_timeout(deadline);
    if answer.is_err() {
        // It may have ended just now; either way it is ours to reap.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("cannot be waited for: {error}"))?;
    let text = answer.map_err(|_| format!("did not answer within {} s", deadline.as_secs_f32()))?;
    Ok(HelperOutput { success: status.success(), text: text.map_err(|error| error.to_string())? })
}

#[cfg(test)]
mod tests;

//! What steps may use of this machine: secrets, agents, host names and rights that only the command line can give.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use executor::{
    SecretSource, Secrets,
    agents::{AgentSource, Agents},
    sandbox::Mode,
};
use solver::{
    op::{Network, Relaxation, Relaxations},
    plan::Entitlement,
};

use super::{Environment, RequestError};
use crate::spec::{
    allow::AllowSpec,
    host::HostSpec,
    secret::{SecretPlace, SecretSpec, SshSpec},
};

/// The secrets of `--secret`, and what the user should know about them. The last one of an id wins, as in buildx.
///
/// # Errors
/// A secret's file cannot be read, or its variable is no text.
pub fn secrets(
    specs: &[SecretSpec],
    environment: &Environment,
) -> Result<(Secrets, Vec<String>), RequestError> {
    let mut sources = BTreeMap::new();
    let mut notices = Vec::new();
    for SecretSpec { id, source } in specs {
        let source = match source {
            SecretPlace::File(path) => SecretSource::File(absolute(path, id)?),
            SecretPlace::Either if environment.get(id).is_none() => {
                SecretSource::File(absolute(Path::new(id), id)?)
            }
            SecretPlace::Either => SecretSource::Env(variable(id, id, environment)?.unwrap_or_default()),
            SecretPlace::Variable(name) => {
                SecretSource::Env(variable(id, name, environment)?.unwrap_or_else(|| {
                    notices.push(format!(
                        "the secret {id:?} is empty: the environment variable {name} of --secret is not set"
                    ));
                    String::new()
                }))
            }
        };
        sources.insert(id.clone(), source);
    }
    Ok((Secrets::new(sources)?, notices))
}

fn variable(id: &str, name: &str, environment: &Environment) -> Result<Option<String>, RequestError> {
    let text = |value: &std::ffi::OsStr| value.to_str().map(str::to_owned);
    let not_text = || RequestError::SecretNotText { id: id.to_owned(), variable: name.to_owned() };
    environment.get(name).map(|value| text(value).ok_or_else(not_text)).transpose()
}

fn absolute(path: &Path, id: &str) -> Result<PathBuf, RequestError> {
    let failed =
        |source| executor::secrets::SecretError::Read { id: id.to_owned(), path: path.to_owned(), source };
    Ok(std::path::absolute(path).map_err(failed)?)
}

/// The agents of `--ssh`.
///
/// # Errors
/// An id is given twice, a path cannot be read, or there is no agent.
pub fn agents(specs: &[SshSpec], environment: &Environment) -> Result<Agents, RequestError> {
    let mut sources = BTreeMap::new();
    for SshSpec { id, paths } in specs {
        let source = match &paths[..] {
            [] => {
                let socket = environment.path("SSH_AUTH_SOCK");
                agent(id, &[socket.ok_or_else(|| RequestError::NoAgent { id: id.clone() })?])?
            }
            paths => agent(id, paths)?,
        };
        if sources.insert(id.clone(), source).is_some() {
            return Err(RequestError::Twice { flag: "ssh", id: id.clone() });
        }
    }
    Ok(Agents::new(sources))
}

/// One socket, or files of keys.
fn agent(id: &str, paths: &[PathBuf]) -> Result<AgentSource, RequestError> {
    let failed = |path: &PathBuf| {
        let (id, path) = (id.to_owned(), path.clone());
        move |source: io::Error| RequestError::Agent { id, path, source }
    };
    let mut sockets = 0;
    let mut found = Vec::new();
    for path in paths {
        sockets += usize::from(fs::metadata(path).map_err(failed(path))?.file_type().is_socket());
        found.push(std::path::absolute(path).map_err(failed(path))?);
    }
    match (sockets, found.len()) {
        (0, _) => Ok(AgentSource::Keys(found)),
        (1, 1) => Ok(AgentSource::Socket(found.remove(0))),
        _ => Err(RequestError::SocketAndKeys(id.to_owned())),
    }
}

/// What `--allow` says, and what `--network host` implies.
pub fn entitlements(specs: Vec<AllowSpec>, network: Network) -> BTreeSet<Entitlement> {
    let implied = (network == Network::Host).then_some(Entitlement::NetworkHost);
    specs.into_iter().map(|AllowSpec(entitlement)| entitlement).chain(implied).collect()
}

/// Names and addresses, in the order of the command line.
pub fn hosts(specs: &[HostSpec]) -> Vec<(String, String)> {
    let pairs = |host: &HostSpec| {
        let name = host.name.clone();
        host.addresses.clone().into_iter().map(move |address| (name.clone(), address.to_string()))
    };
    specs.iter().flat_map(pairs).collect()
}

/// What of the sandbox is let go.
///
/// # Errors
/// It is to be strict, too.
pub fn relaxed(mode: Mode, allowed: &[Relaxation]) -> Result<Relaxations, RequestError> {
    match mode {
        Mode::Strict if !allowed.is_empty() => Err(RequestError::Conflict(STRICT_AND_RELAXED)),
        _ => Ok(allowed.iter().copied().collect()),
    }
}

const STRICT_AND_RELAXED: &str = "--sandbox=strict and --sandbox-allow contradict each other: strict builds nothing with less than the whole sandbox";

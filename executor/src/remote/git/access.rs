//! How git is run for a remote: with the credentials that the user has given for it, and with those alone.

use std::{path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    command::{Authorization, Git},
    error::GitError,
    remote::{Protocol, Remote},
};
use crate::remote::RemoteOptions;

/// Which agent git over SSH is given, as by BuildKit.
const AGENT: &str = "default";

/// How git is run for a remote, with the credentials that the user has given for it.
///
/// # Errors
/// A secret or the agent cannot be used.
pub fn git(options: &RemoteOptions, remote: &Remote) -> Result<Git, GitError> {
    let authorization = match remote.protocol {
        Protocol::Http => authorization(options, remote)?,
        Protocol::Ssh | Protocol::Git => None,
    };
    let authorization = match authorization {
        Some(header) if header.chars().any(char::is_control) => {
            return Err(GitError::BadSecret { remote: remote.shown.clone() });
        }
        Some(header) => {
            Some(Authorization::new(&remote.scope(), &header).map_err(GitError::io("keep", "a secret"))?)
        }
        None => None,
    };
    Ok(Git {
        remote: remote.shown.clone(),
        authorization: authorization.map(Arc::new),
        ssh: ssh(options)?,
        filters: Arc::default(),
        cancel: options.cancel.clone(),
        events: options.events.clone(),
        pack_max: options.pack_max,
    })
}

impl Git {
    /// How git is run for a submodule: a login that its address has from its parent holds there, too.
    ///
    /// # Errors
    /// The system has no place for it.
    pub fn for_submodule(&self, remote: &Remote) -> Result<Git, GitError> {
        let mut git = Git { remote: remote.shown.clone(), ..self.clone() };
        if let Some(login) = &remote.login {
            let kept = Authorization::new(&remote.scope(), &basic(login))
                .map_err(GitError::io("keep", "a secret"))?;
            git.authorization = Some(Arc::new(kept));
        }
        Ok(git)
    }
}

/// RFC 7617
fn basic(login: &str) -> String {
    format!("basic {}", STANDARD.encode(login))
}

/// BuildKit's secrets, those of the host before those of all hosts, then the address's own login.
fn authorization(options: &RemoteOptions, remote: &Remote) -> Result<Option<String>, GitError> {
    for suffix in [format!(".{}", remote.host), String::new()] {
        for (id, is_token) in [("GIT_AUTH_HEADER", false), ("GIT_AUTH_TOKEN", true)] {
            let Some(secret) = options.secrets.get(&format!("{id}{suffix}"))? else { continue };
            let secret = String::from_utf8_lossy(&secret);
            let secret = secret.trim_end_matches(['\n', '\r']);
            return Ok(Some(if is_token {
                basic(&format!("x-access-token:{secret}"))
            } else {
                secret.to_owned()
            }));
        }
    }
    Ok(remote.login.as_deref().map(basic))
}

/// The SSH command: the user's agent and nobody's keys or configuration. A host that is not known is believed once and
/// remembered; one that has changed is refused. (BuildKit believes whatever key it sees.)
fn ssh(options: &RemoteOptions) -> Result<String, GitError> {
    let quoted =
        |path: &Path| format!("\"{}\"", path.display().to_string().replace('"', "").replace('%', "%%"));
    let own = options.fetcher.store().area("git").join("known_hosts");
    let users = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ssh/known_hosts"));
    let known: Vec<String> = [Some(own), users].into_iter().flatten().map(|path| quoted(&path)).collect();
    let agent = options.agents.socket(AGENT).map_err(GitError::Agent)?;
    let agent = agent.as_deref().map_or("none".to_owned(), quoted);
    let options = [
        "BatchMode=yes".to_owned(),
        "ConnectTimeout=30".to_owned(),
        "ServerAliveInterval=15".to_owned(),
        "ServerAliveCountMax=4".to_owned(),
        "ForwardAgent=no".to_owned(),
        "IdentityFile=none".to_owned(),
        "StrictHostKeyChecking=accept-new".to_owned(),
        format!("UserKnownHostsFile={}", known.join(" ")),
        format!("IdentityAgent={agent}"),
    ];
    let options: Vec<String> =
        options.iter().map(|option| format!("-o '{}'", option.replace('\'', "'\\''"))).collect();
    Ok(format!("ssh -F /dev/null {}", options.join(" ")))
}

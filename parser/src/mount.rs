//! The options of `RUN --mount`, in BuildKit's words where something is wrong with them.
//!
//! The value is a record of comma-separated `key=value` fields. Fields are split first and each value is expanded by
//! itself, so a comma that a variable brings separates nothing. Only `from=` is never expanded: which stages a Dockerfile
//! needs is known before any value is.

mod options;

use crate::ast::{BindMount, CacheMount, Mount, SecretMount, SshMount, TmpfsMount};
use crate::go;

use options::Options;

/// What is wrong with a mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// What is wrong, in one line without a period.
    pub message: String,
    /// What to do about it, if we know.
    pub hint: Option<String>,
}

impl MountError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }
}

/// Reads a `--mount` value whose variables have been replaced already, or that has none.
///
/// # Errors
/// [`MountError`] for what BuildKit refuses.
pub fn parse(text: &str) -> Result<Mount, MountError> {
    parse_expanding(text, &mut |value| Ok(value.to_owned()))
}

/// Reads a `--mount` value as written; `expand` is given each option's value (but not that of `from`) and says what it
/// becomes, or why it cannot be expanded.
///
/// # Errors
/// [`MountError`] for what BuildKit refuses.
pub fn parse_expanding(
    text: &str,
    expand: &mut dyn FnMut(&str) -> Result<String, String>,
) -> Result<Mount, MountError> {
    from(text)?;
    Options::read(&fields(text)?, expand)?.mount()
}

/// `from=` of a `--mount` value as written. The last one counts.
///
/// # Errors
/// [`MountError`] where the value is no record, or where `from` holds a variable.
pub fn from(text: &str) -> Result<Option<String>, MountError> {
    let mut found = None;
    for field in fields(text)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        // A dollar at the very end is only a dollar.
        if value.find('$').is_some_and(|at| at + 1 < value.len()) {
            let message = "'from' doesn't support variable expansion, define alias stage instead";
            let hint = "write FROM ${VARIABLE} AS name before this stage, and from=name here";
            return Err(MountError { message: message.to_owned(), hint: Some(hint.to_owned()) });
        }
        found = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    Ok(found)
}

fn fields(text: &str) -> Result<Vec<String>, MountError> {
    go::csv(text).map_err(|problem| MountError::new(format!("failed to parse csv mounts: {problem}")))
}

impl Options {
    /// Puts together what the fields have said.
    fn mount(self) -> Result<Mount, MountError> {
        self.check_owner()?;
        self.check_secret()?;
        self.check_sharing()?;
        let Options {
            kind,
            from,
            source,
            target,
            read_only,
            required,
            size,
            id,
            sharing,
            env,
            mode,
            uid,
            gid,
        } = self;
        Ok(match kind {
            Kind::Bind => Mount::Bind(BindMount { from, source, target, writable: read_only == Some(false) }),
            Kind::Cache => {
                let read_only = read_only.unwrap_or(false);
                Mount::Cache(CacheMount { id, target, from, source, sharing, mode, uid, gid, read_only })
            }
            Kind::Tmpfs => Mount::Tmpfs(TmpfsMount { target, size, read_only: read_only.unwrap_or(false) }),
            Kind::Secret => {
                Mount::Secret(SecretMount { id: source.or(id), target, env, required, mode, uid, gid })
            }
            Kind::Ssh => Mount::Ssh(SshMount { id, target, required, mode, uid, gid }),
        })
    }

    fn check_owner(&self) -> Result<(), MountError> {
        if matches!(self.kind, Kind::Secret | Kind::Ssh | Kind::Cache) {
            return Ok(());
        }
        let given = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
        match given.into_iter().find(|(_, value)| value.is_some()) {
            Some((key, _)) => {
                Err(MountError::new(format!("{key} not allowed for {:?} type mounts", self.kind.name())))
            }
            None => Ok(()),
        }
    }

    fn check_secret(&self) -> Result<(), MountError> {
        if self.kind != Kind::Secret {
            return Ok(());
        }
        let problem = match self {
            Options { from: Some(_), .. } => "secret mount should not have a from",
            Options { sharing: Some(_), .. } => "secret mount should not define sharing",
            Options { source: None, target: None, id: None, .. } => {
                "invalid secret mount. one of source, target required"
            }
            Options { source: Some(_), id: Some(_), .. } => "both source and id can't be set",
            _ => return Ok(()),
        };
        Err(MountError::new(problem))
    }

    fn check_sharing(&self) -> Result<(), MountError> {
        if self.sharing.is_none() || self.kind == Kind::Cache {
            return Ok(());
        }
        Err(MountError::new(format!("invalid cache sharing set for {} mount", self.kind.name())))
    }
}

/// `type=`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Bind, Kind::Cache, Kind::Tmpfs, Kind::Secret, Kind::Ssh];

    fn name(self) -> &'static str {
        match self {
            Kind::Bind => "bind",
            Kind::Cache => "cache",
            Kind::Tmpfs => "tmpfs",
            Kind::Secret => "secret",
            Kind::Ssh => "ssh",
        }
    }
}

#[cfg(test)]
mod tests;

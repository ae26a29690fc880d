//! What can go wrong with a git repository. No message holds credentials.

use std::{io, path::PathBuf, time::Duration};

use oci::store::{StoreError, checked::CheckedError};
use solver::{FailureKind, StepFailure};

use crate::{agents::AgentError, error::blame, rootfs::PathError, secrets::SecretError};

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program is not there.
    #[error("cannot run git, which contexts and ADD from git repositories need")]
    NoGit(#[source] io::Error),
    /// The program would not heed what keeps it in its place.
    #[error("{found} is too old: contexts and ADD from git repositories need 2.31 or later")]
    Old {
        /// What it says of itself.
        found: String,
    },
    /// The program failed.
    #[error("git {action} of {remote} failed: {said}")]
    Failed {
        /// `fetch`, `ls-remote`, ...
        action: String,
        /// The repository.
        remote: String,
        /// Its last words.
        said: String,
    },
    /// The program waits for a server that does not talk.
    #[error("git {action} of {remote} failed: nothing was heard for {waited:?}{}", after(said))]
    Silent {
        /// `fetch`, `ls-remote`, ...
        action: String,
        /// The repository.
        remote: String,
        /// For how long.
        waited: Duration,
        /// What was, before that, if anything.
        said: String,
    },
    /// The disk that it writes to is full.
    #[error("git {action} of {remote} cannot write what it gets")]
    Full {
        /// `fetch`, `init`, ...
        action: String,
        /// The repository.
        remote: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A server that sends more than anybody wants.
    #[error("{remote} sends more than {}, which is the most that is fetched at once", size(*most))]
    TooMuch {
        /// The repository.
        remote: String,
        /// So many bytes are taken.
        most: u64,
    },
    /// A way of reaching repositories that we do not go.
    #[error("{remote} is no git repository of an http, https, ssh or git address")]
    Protocol {
        /// The address.
        remote: String,
    },
    /// Nothing of that name.
    #[error("repository {remote} does not contain ref {reference}")]
    NoReference {
        /// The repository.
        remote: String,
        /// Branch, tag or commit.
        reference: String,
    },
    /// It is another commit.
    #[error("expected checksum to match {expected}, got {found}")]
    Checksum {
        /// What was asked for.
        expected: String,
        /// Which commit (or tag and commit) it is.
        found: String,
    },
    /// A subdirectory that is none.
    #[error("{subdir:?} of {remote} is not a directory in it")]
    Subdir {
        /// The repository.
        remote: String,
        /// What was asked for.
        subdir: String,
    },
    /// A submodule that cannot be had.
    #[error("submodule {path:?} of {remote}: {reason}")]
    Submodule {
        /// The repository that names it.
        remote: String,
        /// Where it belongs.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A secret for it.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A secret that is no header.
    #[error("the secret for {remote} holds a line break or another control character")]
    BadSecret {
        /// The repository.
        remote: String,
    },
    /// The agent of `--ssh`.
    #[error(transparent)]
    Agent(AgentError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is known of a checkout cannot be read.
    #[error(transparent)]
    Meta(#[from] CheckedError),
    /// What the store has of a repository is damaged, and another build may be using it, so it stays where it is.
    #[error("{} is damaged, and another build uses it: {what}", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A path in the checkout.
    #[error(transparent)]
    Path(#[from] PathError),
    /// What was fetched cannot be read.
    #[error(transparent)]
    Read(#[from] crate::git::GitError),
}

impl GitError {
    pub(super) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self::Io { action, path, source: error.into() }
    }

    fn hint(&self) -> Option<&'static str> {
        let said = match self {
            Self::Failed { said, .. } => said,
            Self::NoGit(_) => return Some("install git"),
            Self::Silent { .. } => {
                return Some(
                    "the server has stopped, or something on the way to it has: --retry N tries up to N times more",
                );
            }
            _ => return None,
        };
        let says = |text: &str| said.contains(text);
        if says("terminal prompts disabled") || says("Authentication failed") || says("error: 403") {
            return Some("give a token with --secret id=GIT_AUTH_TOKEN,env=...");
        }
        if says("Permission denied (publickey") {
            return Some("give an SSH agent with --ssh default");
        }
        if says("error: 30") {
            return Some("credentials do not follow redirects: write the address that it leads to");
        }
        says("ssh: not found").then_some("install an SSH client (openssh-client)")
    }
}

/// What was heard before a silence.
fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" after {said:?}") }
}

/// A limit, for people.
fn size(bytes: u64) -> String {
    match bytes.is_multiple_of(1 << 30) {
        true => format!("{} GiB", bytes >> 30),
        false => format!("{bytes} bytes"),
    }
}

impl From<GitError> for StepFailure {
    fn from(error: GitError) -> Self {
        let error = match error {
            GitError::Read(error) => return error.into(),
            error => error,
        };
        let hint = error.hint();
        let kind = match &error {
            GitError::Cancelled => return Self::new(FailureKind::Cancelled, "cancelled"),
            GitError::NoGit(_)
            | GitError::Old { .. }
            | GitError::Full { .. }
            | GitError::Store(_)
            | GitError::Meta(_)
            | GitError::Io { .. } => FailureKind::Machine,
            GitError::Failed { .. } | GitError::Silent { .. } => FailureKind::Registry,
            _ => FailureKind::Build,
        };
        let failure = blame(kind, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

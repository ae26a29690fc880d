//! Why a request cannot be followed: mistakes in the command line, and in what it names on this machine.

use std::{io, path::PathBuf};

use executor::secrets::SecretError;

use super::annotations::AnnotationError;
use crate::{
    outputs::OutputError,
    spec::context::{self, ContextSpecError},
};

/// Why the request cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A file that is named, or that must be there, cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A named context that is no directory, and no other kind of source either.
    #[error("--build-context {name}={}", path.display())]
    NoContext {
        /// Its name.
        name: String,
        /// What was given, taken for a directory.
        path: PathBuf,
        /// Why it is none.
        #[source]
        source: io::Error,
    },
    /// An OCI layout that is not there.
    #[error("--build-context {name}: cannot read the OCI layout {}", path.display())]
    NoLayout {
        /// The context's name.
        name: String,
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// A context that is something else.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// A commit of what is no repository of this machine.
    #[error("--git {revision}: {context} is no directory in a git repository of this machine")]
    GitElsewhere {
        /// What was given.
        context: String,
        /// The commit.
        revision: String,
    },
    /// A kind of context that does not exist here.
    #[error(transparent)]
    Context(#[from] ContextSpecError),
    /// Two `--build-context` of one name.
    #[error("--build-context {0}= is given twice")]
    ContextTwice(String),
    /// `--build-arg` or `--label` without a name.
    #[error("--{flag} {value:?} has no name before the equals sign")]
    NoName {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// What should be an image's name.
    #[error(transparent)]
    Reference(#[from] oci::reference::ReferenceError),
    /// A value from the environment or a flag that means nothing.
    #[error("{name}={value:?}: {expected}")]
    Value {
        /// The variable or flag.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: String,
    },
    /// A build argument from the environment whose value is no text.
    #[error("the environment variable {0}, asked for by --build-arg {0}, is not UTF-8")]
    NotText(String),
    /// An image that says it is for another platform than the one that was asked for.
    #[error("the image is for {actual}, not for {wanted}")]
    OtherPlatform {
        /// What it says.
        actual: Box<oci::Platform>,
        /// What was asked for.
        wanted: Box<oci::Platform>,
    },
    /// A flag of a build that a verification would have to ignore.
    #[error("verify takes no {flag}: {why}")]
    NotInVerify {
        /// Which.
        flag: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// An image where a verification has a context.
    #[error("{0} is no directory, and verify builds one")]
    ImageInVerify(String),
    /// A name with a placeholder that makes none.
    #[error(transparent)]
    Tag(crate::spec::tag::TagSpecError),
    /// A placeholder of `-t` without a commit.
    #[error(
        "-t: {0} needs a commit: give --git REV (an address of a repository gives none: clone it, or write the name)"
    )]
    NoGit(crate::spec::tag::GitName),
    /// A commit that has no such name, or several.
    #[error("-t: {name}: commit {commit} has {}", if found.is_empty() {
        format!("no {name}", name = name.noun())
    } else {
        format!("several of them: {}", found.join(", "))
    })]
    NotCalled {
        /// What is asked for.
        name: crate::spec::tag::GitName,
        /// Which.
        commit: String,
        /// The names that there are.
        found: Vec<String>,
    },
    /// What `--git` names.
    #[error("{0}")]
    Git(#[source] Box<solver::StepFailure>),
    /// Two mounts at one place.
    #[error("{0} is mounted twice")]
    MountTwice(String),
    /// Flags that contradict one another.
    #[error("{0}")]
    Conflict(&'static str),
    /// A secret that cannot be had.
    #[error("--secret")]
    Secret(#[from] SecretError),
    /// The value of a secret that is no text.
    #[error("--secret id={id}: the environment variable {variable} is not UTF-8")]
    SecretNotText {
        /// Which secret.
        id: String,
        /// Its variable.
        variable: String,
    },
    /// The same id twice.
    #[error("--{flag} id {id:?} is given twice")]
    Twice {
        /// The flag.
        flag: &'static str,
        /// The id.
        id: String,
    },
    /// An agent nobody can be asked for.
    #[error("--ssh {id}: there is no SSH agent: SSH_AUTH_SOCK is not set")]
    NoAgent {
        /// What the Dockerfile calls it.
        id: String,
    },
    /// A socket or key that cannot be used.
    #[error("--ssh {id}: cannot read {}", path.display())]
    Agent {
        /// What the Dockerfile calls it.
        id: String,
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A socket among other things.
    #[error("--ssh {0}: expected one socket of an agent, or the files of keys, not both")]
    SocketAndKeys(String),
    /// An annotation that has no place.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// Outputs that cannot be made.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A file beside the result that cannot be written.
    #[error("--{flag} {}: {reason}", path.display())]
    NoPlace {
        /// The flag.
        flag: &'static str,
        /// Its file.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// A test asks for what makes no sense.
    #[error("LAYERWRIGHT_DEBUG_HURRY={0}: expected a number from 1 on")]
    Hurry(String),
    /// No directory for the store.
    #[error("no place for the store: set --root or LAYERWRIGHT_ROOT, or HOME")]
    NoRoot,
}

impl RequestError {
    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoAgent { .. } => {
                Some("start one with ssh-agent, or give its socket or the file of a key: --ssh default=PATH")
            }
            Self::GitElsewhere { .. } => {
                Some("a commit of a repository elsewhere is named in its address: https://HOST/x.git#REF")
            }
            Self::Git(failure) => failure.hint.as_deref(),
            Self::NotCalled { .. } => Some(
                "name it in --git, or write the name itself: CI systems check out commits, and tell the branch in a variable",
            ),
            Self::NoContext { .. } => Some(context::NAMED_EXPECTED),
            Self::ImageInVerify(_) => Some(
                "an image to compare with is given by --against: layerwright verify --against IMAGE CONTEXT",
            ),
            Self::NotADirectory(_) => Some(
                "the context is a directory, and -f names the Dockerfile; a tar archive comes on standard input: -",
            ),
            _ => None,
        }
    }
}

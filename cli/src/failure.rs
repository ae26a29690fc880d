//! Everything that ends a command without success, and the exit code it stands for.

use std::{error::Error, io, path::PathBuf};

use executor::{
    sandbox::{SandboxError, SettleError},
    tarball::TarError,
};
use exporter::{AssembleError, ExportError, SealError, cache::sign::KeyError, upload::FoundError};
use oci::{
    Sha256Digest, fetch::FetchError, image::ImageError, layout::LayoutError, registry::RegistryError,
    store::StoreError,
};
use parser::{Diagnostic, Span};
use solver::{FailureKind, StepFailure, VertexId};

use crate::{
    history::HistoryError, inputs::InputError, loader::LoaderError, login::LoginError, mend,
    outputs::OutputError, request::RequestError, scarce, signals::Signal, verify::VerifyError,
};

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line, or a file it names.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What the command line names on this machine.
    #[error(transparent)]
    Input(#[from] InputError),
    /// What it names elsewhere.
    #[error("{0}")]
    Remote(#[source] Box<StepFailure>),
    /// The Dockerfile.
    #[error("{}", summary(diagnostics))]
    Dockerfile {
        /// All that is wrong or doubtful, at least one error among it.
        diagnostics: Vec<Diagnostic>,
    },
    /// What a check has found wrong.
    #[error("{}", summary(diagnostics))]
    Checked {
        /// As those of a Dockerfile.
        diagnostics: Vec<Diagnostic>,
        /// Whose fault it is that an image could not be had.
        unavailable: Option<FailureKind>,
    },
    /// A base image that cannot be had.
    #[error("{failure}")]
    Image {
        /// Where it is asked for.
        span: Span,
        /// Why not.
        #[source]
        failure: Box<StepFailure>,
    },
    /// A step that failed.
    #[error("{failure}")]
    Step {
        /// Its place in the graph.
        vertex: VertexId,
        /// `[build 2/4] RUN make`
        label: String,
        /// Where it stands; steps that no line asks for have no place.
        span: Option<Span>,
        /// Why.
        #[source]
        failure: Box<StepFailure>,
    },
    /// The pattern of an ignore file.
    #[error(transparent)]
    Context(#[from] executor::context::ContextError),
    /// An image that cannot be looked at.
    #[error("cannot inspect {name}")]
    Inspect {
        /// What was asked for.
        name: String,
        /// Why not.
        #[source]
        source: Box<ImageError>,
    },
    /// A layer that cannot be looked into.
    #[error("cannot read layer {digest} of {name}")]
    Layer {
        /// The image.
        name: String,
        /// The layer's blob.
        digest: Sha256Digest,
        /// Why not.
        #[source]
        source: Box<TarError>,
    },
    /// A verification.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Images that cannot be joined.
    #[error(transparent)]
    Index(#[from] exporter::IndexError),
    /// A login.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// An image of a layout that cannot be pushed.
    #[error("cannot push {name}")]
    Found {
        /// The layout, and which image of it.
        name: String,
        /// Why not.
        #[source]
        source: Box<FoundError>,
    },
    /// A remote cache that had to be filled (`ignore-error=false`).
    #[error(transparent)]
    Cache(#[from] exporter::cache::WriteError),
    /// A key that records of caches are signed with, or verified by.
    #[error(transparent)]
    CacheKey(#[from] KeyError),
    /// A remote cache that is looked after.
    #[error(transparent)]
    Care(crate::cache::CareError),
    /// The registry client.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// There is no store.
    #[error("there is no store at {}", root.display())]
    NoStore {
        /// Where it should be.
        root: PathBuf,
    },
    /// The store, while it is verified.
    #[error(transparent)]
    Fsck(#[from] executor::fsck::FsckError),
    /// What the store holds could not be counted or removed.
    #[error(transparent)]
    Gc(executor::gc::GcError),
    /// Nobody takes the image of `--load`.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// A container that could not be run.
    #[error("{0}")]
    Container(#[source] Box<StepFailure>),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file system that cannot be shown.
    #[error("{0}")]
    FileSystem(#[source] Box<StepFailure>),
    /// Layers that cannot be packed.
    #[error(transparent)]
    Seal(#[from] exporter::SealError),
    /// An image that cannot be put together.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// An output.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A thread or a signal handler.
    #[error("cannot start {what}")]
    Start {
        /// What for.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file the user asked for beside the image, or an output that takes nothing, found out before the build.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The clock stands before the times that images hold.
    #[error("the clock says it is before 2025: set it, since times in images depend on it being later")]
    Clock,
    /// The user stopped the build.
    #[error("stopped by {0}")]
    Stopped(Signal),
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| found.severity == parser::Severity::Error);
    errors.map(|found| found.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// The code of a build that failed by itself.
pub const BUILD: u8 = 1;
/// The code of mistakes in the command line or the Dockerfile.
pub const USAGE: u8 = 2;
/// The code of registries and the network.
pub const REGISTRY: u8 = 3;
/// The code of the store, the disk and the sandbox.
pub const MACHINE: u8 = 4;
/// The code of our own bugs.
pub const BUG: u8 = 255;

impl From<SettleError> for Failure {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Store(error) => Self::Store(error),
            SettleError::Sandbox(error) => Self::Sandbox(error),
        }
    }
}

impl Failure {
    /// What could not be brought from elsewhere.
    pub fn remote(failure: StepFailure) -> Self {
        Self::Remote(Box::new(failure))
    }

    /// The exit code, as the help lists them.
    pub fn exit_code(&self) -> u8 {
        match scarce::lacks_files(self) {
            true => MACHINE,
            false => self.own_exit_code(),
        }
    }

    fn own_exit_code(&self) -> u8 {
        match self {
            Self::Request(RequestError::Git(failure)) => kind_code(failure.kind),
            Self::Input(error) => error.elsewhere().map_or(USAGE, |failure| kind_code(failure.kind)),
            Self::Request(_) | Self::Dockerfile { .. } | Self::Context(_) => USAGE,
            Self::CacheKey(_) => USAGE,
            Self::Checked { unavailable, .. } => unavailable.map_or(USAGE, kind_code),
            Self::Image { failure, .. } | Self::Step { failure, .. } => kind_code(failure.kind),
            Self::FileSystem(failure) | Self::Remote(failure) | Self::Container(failure) => {
                kind_code(failure.kind)
            }
            Self::History(
                HistoryError::Empty { .. } | HistoryError::NoBuild { .. } | HistoryError::Ambiguous { .. },
            ) => USAGE,
            Self::NoStore { .. } => USAGE,
            Self::Inspect { source, .. } => image_code(source),
            Self::Layer { source, .. } if caused_by_registry(&**source) => REGISTRY,
            Self::Index(_) => USAGE,
            Self::Login(error) if error.is_usage() => USAGE,
            Self::Loader(LoaderError::Unknown(_) | LoaderError::ContextOfPodman(_)) => USAGE,
            Self::Care(error) => error.exit_code(),
            Self::Registry(_) | Self::Cache(_) => REGISTRY,
            Self::Export(error) => export_code(error),
            Self::Found { source, .. } => found_code(source),
            Self::Assemble(AssembleError::Seal(error)) if error.is_the_builds_own() => BUILD,
            Self::Assemble(AssembleError::Seal(error)) if let SealError::Origin { source, .. } = &**error => {
                kind_code(source.kind)
            }
            Self::Assemble(AssembleError::Seal(error)) if caused_by_registry(&**error) => REGISTRY,
            Self::Store(_)
            | Self::Fsck(_)
            | Self::Gc(_)
            | Self::History(_)
            | Self::Loader(_)
            | Self::Sandbox(_)
            | Self::Seal(_)
            | Self::Assemble(_)
            | Self::Layer { .. }
            | Self::Verify(_)
            | Self::Start { .. }
            | Self::Login(_)
            | Self::Write { .. }
            | Self::Clock => MACHINE,
            Self::Stopped(signal) => signal.exit_code(),
        }
    }

    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        self.own_hint().or_else(|| scarce::hint(self))
    }

    /// What goes with what it is.
    fn own_hint(&self) -> Option<&str> {
        match self {
            Self::Image { failure, .. }
            | Self::Step { failure, .. }
            | Self::FileSystem(failure)
            | Self::Remote(failure)
            | Self::Container(failure)
                if failure.hint.is_some() =>
            {
                failure.hint.as_deref()
            }
            Self::Sandbox(error) => error.hint(),
            Self::Loader(LoaderError::None(_)) => Some(LOAD_A_FILE),
            Self::Request(RequestError::Output(OutputError::Unsupported(ExportError::SeveralPlatforms(
                _,
            )))) => Some(WRITE_A_LAYOUT),
            Self::Store(error) | Self::History(HistoryError::Store(error)) => store_hint(error),
            Self::History(error) => error.hint(),
            Self::NoStore { .. } => {
                Some("--root or LAYERWRIGHT_ROOT says where the store is; the first build makes it")
            }
            Self::CacheKey(error) => error.hint(),
            Self::Request(error) => error.hint(),
            Self::Input(error) => error.hint(),
            Self::Login(error) => error.hint(),
            Self::Care(error) => error.hint(),
            Self::Seal(error) if lacks_room(error) => Some(MAKE_ROOM),
            Self::Assemble(AssembleError::Seal(error)) if lacks_room(error) => Some(MAKE_ROOM),
            Self::Assemble(AssembleError::Seal(error)) if let SealError::Origin { source, .. } = &**error => {
                source.hint.as_deref()
            }
            _ if mend::damage(self).is_some() => Some(mend::HINT),
            _ => None,
        }
    }
}

/// What to do where nothing takes an image.
const LOAD_A_FILE: &str = "start docker, or install podman, or write a file with -o type=docker,dest=FILE and load that \
                           where one of them is";
/// What holds the images of several platforms.
const WRITE_A_LAYOUT: &str =
    "type=oci and type=registry hold the images of several platforms; or give one --platform";

/// How another store is named.
const ELSEWHERE: &str = "this is the store; --root or LAYERWRIGHT_ROOT puts it elsewhere";

/// What to do about a full disk, where the message names it.
const MAKE_ROOM: &str =
    "make room there, with layerwright gc if nothing else can go, or put the store elsewhere with --root";

/// What to do about a store that cannot be written.
const READ_ONLY: &str = "mount it writable, or name a copy or another store with --root";

/// Whether the store's disk takes no more of a layer's blob.
fn lacks_room(error: &SealError) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, SealError::Write { source, .. } if full.contains(&source.kind()))
}

/// Where the store cannot be, another place may do; nothing in the message names a flag.
fn store_hint(error: &StoreError) -> Option<&'static str> {
    use io::ErrorKind::{
        AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull,
    };
    let not_own =
        "each user needs an own store, and so does root: --root or LAYERWRIGHT_ROOT says where it is";
    let elsewhere = match error {
        StoreError::OtherUser { .. } => return Some(not_own),
        StoreError::Io { source, .. } => {
            [AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull]
                .contains(&source.kind())
        }
        StoreError::ReadOnly { .. } => return Some(READ_ONLY),
        StoreError::Foreign { .. } | StoreError::NotAStore { .. } | StoreError::NetworkFileSystem { .. } => {
            true
        }
        _ => false,
    };
    if let StoreError::Unmarked { .. } = error {
        return Some(
            "if the store is yours, layerwright fsck --repair says so anew and verifies all that is in it",
        );
    }
    elsewhere.then_some(ELSEWHERE)
}

/// The code of a step's failure. A cancelled step of a build that nobody stopped would be our bug.
fn kind_code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Build => BUILD,
        FailureKind::Usage => USAGE,
        FailureKind::Registry | FailureKind::Unavailable => REGISTRY,
        FailureKind::Machine => MACHINE,
        FailureKind::Cancelled => BUG,
    }
}

/// The code of an image that cannot be had or used.
fn image_code(error: &ImageError) -> u8 {
    match error {
        ImageError::Registry(_) | ImageError::Read { .. } => REGISTRY,
        ImageError::Document { .. } | ImageError::Layout(LayoutError::Document { .. }) => BUILD,
        ImageError::Layout(_) => USAGE,
    }
}

fn export_code(error: &ExportError) -> u8 {
    match error {
        ExportError::Unsupported(_)
        | ExportError::NoName
        | ExportError::NameWithDigest(_)
        | ExportError::TagOfDigest(_)
        | ExportError::SameTag(..)
        | ExportError::SeveralPlatforms(_)
        | ExportError::NoPlace { .. }
        | ExportError::NotALayout(_) => USAGE,
        ExportError::Push { .. } | ExportError::Vanished { .. } | ExportError::Overwritten { .. } => REGISTRY,
        other if caused_by_registry(other) => REGISTRY,
        _ => MACHINE,
    }
}

/// A layout that is there, but cannot be read, is the machine's; that there is none, or not this image in it, is what the
/// command line says.
fn found_code(error: &FoundError) -> u8 {
    match error {
        FoundError::Image(ImageError::Registry(_)) => REGISTRY,
        FoundError::Image(ImageError::Layout(LayoutError::Io { source, .. }))
            if source.kind() != io::ErrorKind::NotFound =>
        {
            MACHINE
        }
        _ => USAGE,
    }
}

/// Whether a registry's refusal stands behind an error, which may be a blob that was fetched while it was wanted.
fn caused_by_registry(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| cause(*error)).any(|error| {
        matches!(error.downcast_ref(), Some(FetchError::Registry(_))) || error.is::<RegistryError>()
    })
}

/// What an error names as its cause; an I/O error that wraps another one names that.
pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source())
}

/// An error and what caused it, in one line; a cause that its effect has told already is not repeated. What registries
/// and images have put into it cannot control a terminal.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = harmless(&error.to_string());
    for error in std::iter::successors(cause(error), |error| cause(*error)) {
        let message = harmless(&error.to_string());
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
    }
    text
}

/// The text without control characters.
pub fn harmless(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', " ")
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let read = io::Error::other("disk on fire");
        let failure = StepFailure::caused(FailureKind::Machine, "cannot read layer", read);
        let failure = Failure::Step {
            vertex: VertexId(0),
            label: "[1/1] RUN x".into(),
            span: None,
            failure: Box::new(failure),
        };
        assert_eq!(chain(&failure), "cannot read layer: disk on fire");
        assert_eq!(failure.exit_code(), 4);
    }

    #[test]
    fn a_layer_that_has_no_room_says_what_to_do() {
        for (kind, hint) in
            [(io::ErrorKind::StorageFull, Some(MAKE_ROOM)), (io::ErrorKind::FileTooLarge, None)]
        {
            let failure = Failure::Seal(SealError::Write { root: "/s".into(), source: kind.into() });
            assert_eq!((failure.hint(), failure.exit_code()), (hint, 4));
        }
    }

    #[test]
    fn what_an_image_says_does_not_control_the_terminal() {
        let read = io::Error::other("media type \x1b]0;x\x07 is\nnot \u{9b}2Jknown\r");
        let failure = StepFailure::caused(FailureKind::Machine, "\x1b[2Jlayer", read);
        assert_eq!(chain(&failure), " [2Jlayer: media type  ]0;x  is\nnot  2Jknown ");
    }

    #[test]
    fn a_registry_is_blamed_wherever_it_stands() {
        let refused = || RegistryError::Setup { what: "x", source: "no".into() };
        let fetched = || io::Error::other(FetchError::from(refused()));
        let digest = oci::Sha256Digest::of(b"");
        let reference = Box::new("h/a:1".parse().expect("a reference"));
        for (failure, code) in [
            (Failure::from(refused()), REGISTRY),
            (ExportError::Blob { digest, source: fetched() }.into(), REGISTRY),
            (
                AssembleError::from(std::sync::Arc::new(SealError::Base { digest, source: fetched() }))
                    .into(),
                REGISTRY,
            ),
            (ExportError::Blob { digest, source: io::Error::other("disk") }.into(), MACHINE),
            (ExportError::Push { reference, source: Box::new(refused()) }.into(), REGISTRY),
            (ExportError::NoName.into(), USAGE),
            // Who may open no further file cannot ask one.
            (
                Failure::from(RegistryError::Setup {
                    what: "x",
                    source: io::Error::from(Errno::MFILE).into(),
                }),
                MACHINE,
            ),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
    }
}

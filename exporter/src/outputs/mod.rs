//! Where images go: a registry, an OCI layout (directory or tar), a docker archive, the image store of docker or podman,
//! or, flattened, a tar or a directory.
//!
//! Everything an export writes appears whole or not at all, in an order in which nothing points at what is not there
//! yet: blobs, then manifests, then the index or tag that names them. An export that is interrupted leaves what was
//! there before.

mod blobs;
mod docker;
mod error;
pub mod file;
mod flat;
mod layout;
pub mod load;
mod local;
mod metadata;
mod tarball;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci::{ContentDigest, Platform, Reference, Sha256Digest, Snapshot, fetch::Fetcher};
use solver::{Cancel, Event, EventSink};

use crate::{archive::ArchiveError, assemble::Assembled, layer::TimePolicy, upload::Tagging};

pub use error::ExportError;
pub use load::{LoadError, LoadHelper, Loader};
pub use metadata::metadata;

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// An image, with config and layers.
    Image(ImageOutput),
    /// The files of an image.
    Files(FilesOutput),
}

/// Where an image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageOutput {
    /// `type=oci,tar=false`: added to the OCI layout in a directory, which is made if it is not there.
    OciLayout {
        /// The directory.
        directory: PathBuf,
        /// Under which names; without one it replaces the layout's unnamed image.
        names: Vec<Reference>,
    },
    /// `type=oci`: an OCI layout in a tar.
    OciArchive {
        /// Where the tar goes.
        destination: Destination,
        /// Under which names.
        names: Vec<Reference>,
    },
    /// `type=docker,dest=`: an archive that `docker load` takes.
    DockerArchive {
        /// Where the archive goes.
        destination: Destination,
        /// Under which names.
        names: Vec<Reference>,
    },
    /// `--load`, `type=docker` without `dest=`: that archive, given to docker or podman.
    Load {
        /// `context=`: the docker context to load into; `None` where the first that answers is right.
        context: Option<String>,
        /// Under which names.
        names: Vec<Reference>,
    },
    /// `type=registry` or `type=image,push=true`: brought by [`Uploads`](crate::upload::Uploads).
    Registry {
        /// Under which names, at least one.
        names: Vec<Reference>,
        /// What becomes of the names.
        tagging: Tagging,
    },
    /// `type=image` without `push=true`: refused by [`check`], as there is no image store.
    ImageStore,
}

/// Where the files of an image go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesOutput {
    /// `type=tar`
    Tar {
        /// Where the tar goes.
        destination: Destination,
        /// Where in it the files of each platform go.
        split: PlatformSplit,
    },
    /// `type=local`: into a directory, over what is there.
    Local {
        /// The directory.
        directory: PathBuf,
        /// Where in it the files of each platform go.
        split: PlatformSplit,
    },
}

/// `platform-split=`: whether the files of a platform go below a directory of its own, `linux_amd64`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PlatformSplit {
    /// Where there are several platforms.
    #[default]
    Several,
    /// `true`: also where there is one.
    Always,
    /// `false`: never. No file may be of two platforms then.
    Never,
}

/// Where a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, which appears when it is complete.
    File(PathBuf),
    /// Standard output (`dest=-`).
    Stdout,
}

/// The file system of one solved image, as the executor shows it.
#[derive(Debug)]
pub struct FileSystem {
    /// The image's platform: names its part of an output for several platforms.
    pub platform: Platform,
    /// The image's layers: what built layers say of their entries goes before what is on disk.
    pub snapshot: Snapshot,
    /// The root of the merged file system, mounted read-only.
    pub root: OwnedFd,
    /// User and group of those paths, without a leading slash, whose owners the disk could not hold.
    pub owners: BTreeMap<Vec<u8>, (u32, u32)>,
    /// The contents of files that came by COPY or ADD, here or in the build of the base image: their times are derived
    /// from their content.
    pub brought: BTreeSet<ContentDigest>,
}

/// What an export works with.
pub struct Tools<'a> {
    /// The store, the registries, and blobs of base images.
    pub fetcher: &'a Fetcher,
    /// Is told of stages, transfers and warnings.
    pub events: &'a EventSink<'a>,
    /// Stops the export.
    pub cancel: &'a Cancel,
    /// Runs what loads images into docker or podman; there is one where an output is [`ImageOutput::Load`].
    pub helper: Option<&'a LoadHelper>,
}

/// What an export has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Where it went, for people: a path or references.
    pub destination: String,
    /// Digest of the manifest or index, for images.
    pub digest: Option<Sha256Digest>,
}

/// Refuses, before the first step of a build, what an output cannot do. Nothing is written or sent.
///
/// # Errors
/// [`ExportError::Unsupported`], [`ExportError::NoName`], [`ExportError::NameWithDigest`], [`ExportError::SameTag`],
/// [`ExportError::NoPlace`] or [`ExportError::NotALayout`].
pub fn check(output: &Output) -> Result<(), ExportError> {
    match output {
        Output::Image(ImageOutput::ImageStore) => Err(ExportError::Unsupported(
            "type=image needs push=true: there is no local image store to put it in",
        )),
        Output::Image(ImageOutput::Registry { names, .. }) if names.is_empty() => Err(ExportError::NoName),
        Output::Image(ImageOutput::Registry { names, tagging: Tagging::Tags }) => check_names(names),
        Output::Image(ImageOutput::Registry { names, tagging: Tagging::DigestOnly }) => {
            check_names(names)?;
            match names.iter().find(|name| name.tag.is_some()) {
                Some(name) => Err(ExportError::TagOfDigest(Box::new(name.clone()))),
                None => Ok(()),
            }
        }
        Output::Image(ImageOutput::OciLayout { directory, names }) => {
            check_names(names)?;
            layout::check_tags(names)?;
            layout::check_directory(directory)
        }
        Output::Image(ImageOutput::OciArchive { destination, names }) => {
            check_names(names)?;
            layout::check_tags(names)?;
            check_destination(destination)
        }
        Output::Image(ImageOutput::DockerArchive { destination, names }) => {
            check_names(names)?;
            check_destination(destination)
        }
        Output::Image(ImageOutput::Load { names, .. }) => check_names(names),
        Output::Files(FilesOutput::Tar { destination, .. }) => check_destination(destination),
        Output::Files(FilesOutput::Local { directory, .. }) => {
            match directory.is_dir() || !directory.exists() {
                true => Ok(()),
                false => {
                    Err(ExportError::NoPlace { path: directory.clone(), reason: "it is not a directory" })
                }
            }
        }
    }
}

/// Refuses, before the first step of a build, what cannot hold the images of so many platforms.
///
/// # Errors
/// [`ExportError::SeveralPlatforms`]
pub fn check_platforms(output: &Output, platforms: usize) -> Result<(), ExportError> {
    match output {
        Output::Image(ImageOutput::DockerArchive { .. } | ImageOutput::Load { .. }) if platforms > 1 => {
            Err(ExportError::SeveralPlatforms(platforms))
        }
        _ => Ok(()),
    }
}

fn check_names(names: &[Reference]) -> Result<(), ExportError> {
    match names.iter().find(|name| name.digest.is_some()) {
        Some(name) => Err(ExportError::NameWithDigest(Box::new(name.clone()))),
        None => Ok(()),
    }
}

fn check_destination(destination: &Destination) -> Result<(), ExportError> {
    match destination {
        Destination::Stdout if io::stdout().is_terminal() => {
            Err(ExportError::Unsupported("refusing to write a tar to a terminal: give dest=FILE"))
        }
        Destination::Stdout => Ok(()),
        Destination::File(path) => match file::obstacle(path) {
            Some(reason) => Err(ExportError::NoPlace { path: path.clone(), reason }),
            None => Ok(()),
        },
    }
}

/// Brings an image to where it is wanted.
///
/// # Errors
/// Any [`ExportError`]; the destination is then as it was, but for blobs that nothing names.
pub fn export_image(
    assembled: &Assembled,
    output: &ImageOutput,
    tools: &Tools<'_>,
) -> Result<Exported, ExportError> {
    check(&Output::Image(output.clone()))?;
    let destination = match output {
        ImageOutput::OciLayout { directory, names } => staged(
            tools,
            format!("exporting to OCI layout {}", directory.display()),
            directory.display().to_string(),
            || layout::export(assembled, directory, names, tools),
        ),
        ImageOutput::OciArchive { destination, names } => {
            staged(tools, format!("exporting to OCI archive {destination}"), destination.to_string(), || {
                tarball::export_image(assembled, destination, names, tools)
            })
        }
        ImageOutput::DockerArchive { destination, names } => staged(
            tools,
            format!("exporting to docker archive {destination}"),
            destination.to_string(),
            || docker::export(assembled, destination, names, tools),
        ),
        ImageOutput::Load { context, names } => load::export(assembled, context.as_deref(), names, tools),
        ImageOutput::Registry { .. } => unreachable!("uploads bring it, from the first step on"),
        ImageOutput::ImageStore => unreachable!("refused by check"),
    }?;
    Ok(Exported { destination, digest: Some(assembled.root.digest) })
}

/// Brings the files of images to where they are wanted: those of several platforms each below a directory like
/// `linux_amd64`, unless [`PlatformSplit`] says otherwise.
///
/// # Errors
/// Any [`ExportError`]. A tar appears whole or not at all; in a directory that holds for each file.
pub fn export_files(
    systems: &[FileSystem],
    output: &FilesOutput,
    times: TimePolicy,
    tools: &Tools<'_>,
) -> Result<Exported, ExportError> {
    check(&Output::Files(output.clone()))?;
    let destination = match output {
        FilesOutput::Tar { destination, split } => {
            staged(tools, format!("exporting files to tar {destination}"), destination.to_string(), || {
                tarball::export_files(systems, destination, *split, times, tools)
            })
        }
        FilesOutput::Local { directory, split } => staged(
            tools,
            format!("exporting files to {}", directory.display()),
            directory.display().to_string(),
            || local::export(systems, directory, *split, times, tools),
        ),
    }?;
    Ok(Exported { destination, digest: None })
}

/// Announces a stage, does it, and announces its end.
fn staged(
    tools: &Tools<'_>,
    stage: String,
    destination: String,
    work: impl FnOnce() -> Result<(), ExportError>,
) -> Result<String, ExportError> {
    (tools.events)(Event::Stage(stage.clone()));
    work()?;
    (tools.events)(Event::StageDone(stage));
    Ok(destination)
}

/// Fails once the user has asked for it.
fn go_on(cancel: &Cancel) -> Result<(), ExportError> {
    if cancel.is_requested() { Err(ExportError::Cancelled) } else { Ok(()) }
}

/// What an I/O error outside the store becomes.
fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ExportError {
    move |source| ExportError::Io { action, path: path.to_owned(), source }
}

impl Destination {
    /// Lets `produce` write the stream.
    fn write(
        &self,
        produce: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                let path = Path::new("standard output");
                produce(&mut out).map_err(|error| named(error, path))?;
                out.flush().map_err(failed("write", path))
            }
            Self::File(path) => {
                let produced = file::write_with(path, |out| produce(out).map_err(Interrupted::Export));
                produced.map_err(|error| match error {
                    Interrupted::Export(error) => named(error, path),
                    Interrupted::Io(source) => failed("write", path)(source),
                })
            }
        }
    }
}

/// A tar that takes no more is called by the name of its file, which its writer does not know.
fn named(error: ExportError, path: &Path) -> ExportError {
    match error {
        ExportError::Archive(ArchiveError::Write(source)) => failed("write", path)(source),
        error => error,
    }
}

/// Keeps apart what went wrong inside a file and with it.
enum Interrupted {
    Export(ExportError),
    Io(io::Error),
}

impl From<io::Error> for Interrupted {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdout => f.write_str("standard output"),
        }
    }
}

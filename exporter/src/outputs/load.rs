//! An image into the store of docker or podman (`--load`, `type=docker` without `dest=`): the archive of [`docker`]
//! goes to the standard input of `docker load` or `podman load`.
//!
//! The builder lives in namespaces of its own, where those programs would see other users, other mounts and not the
//! store they keep for the caller. So a *helper*, this binary once more, is started before the builder enters them. It
//! waits on a socket; over it comes, when all is built, the end of a pipe, and it starts the one program that it was
//! given at its start, with that as standard input. The helper ends with the builder, and what it has started with it.
//! Nothing of an image is ever executed here (RELIABILITY R11).
//!
//! The archive names its blobs at its end, so a program that is killed or cut off has loaded nothing.

mod helper;

use std::{
    fmt,
    io::{self, BufRead, BufReader, IoSlice, PipeReader, PipeWriter, Write, pipe},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use oci::Reference;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{Errno, retry_on_intr},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use serde::{Deserialize, Serialize};
use solver::Cancel;

use super::{ExportError, Tools, docker, go_on, staged, tarball};
use crate::assemble::Assembled;

pub use helper::{is_helper_call, serve};

/// How often somebody is asked whether all is to stop.
const ATTENTION: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A program that takes an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loader {
    /// `docker`, `podman`: for people.
    pub name: String,
    /// The docker context that was asked for.
    pub context: Option<String>,
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// What lets it read an archive from its standard input.
    pub arguments: Vec<String>,
}

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The helper could not be started or spoken to.
    #[error("cannot run the process that loads images")]
    Helper(#[source] io::Error),
    /// There is no helper, or it does not know the context: our bug.
    #[error("internal error: nothing was prepared to load the image")]
    Unprepared,
    /// The program did not take the image.
    #[error("{loader} did not load the image: {report}")]
    Refused {
        /// Its name.
        loader: String,
        /// How it ended, and what it said.
        report: Box<Report>,
    },
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How, in words: `exit status: 1`.
    pub status: String,
    /// Whether that is success.
    pub succeeded: bool,
    /// The last of what it wrote, to standard output and standard error.
    pub output: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.output.trim() {
            "" => f.write_str(&self.status),
            said => write!(f, "{}\n{said}", self.status),
        }
    }
}

/// The process that stays outside of the builder's namespaces. When it is dropped, that process ends.
#[derive(Debug)]
pub struct LoadHelper {
    loaders: Vec<Loader>,
    /// One image is loaded at a time.
    control: Mutex<BufReader<UnixStream>>,
    process: Child,
}

impl LoadHelper {
    /// Starts the helper, which will run nothing but `loaders`. To be called before the builder enters its namespaces.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(loaders: Vec<Loader>) -> Result<Self, LoadError> {
        let (ours, theirs) = UnixStream::pair().map_err(LoadError::Helper)?;
        let told = serde_json::to_string(&loaders).expect("plain data with string keys");
        let mut command = Command::new("/proc/self/exe");
        command.arg0("layerwright").args([helper::ARGUMENT, &told]).stdin(OwnedFd::from(theirs));
        let process = command.stdout(Stdio::null()).spawn().map_err(LoadError::Helper)?;
        Ok(Self { loaders, control: Mutex::new(BufReader::new(ours)), process })
    }

    fn find(&self, context: Option<&str>) -> Option<(u8, &Loader)> {
        let index = self.loaders.iter().position(|loader| loader.context.as_deref() == context)?;
        Some((u8::try_from(index).ok()?, &self.loaders[index]))
    }

    /// Runs the loader with this number on what `produce` writes.
    fn run(
        &self,
        index: u8,
        cancel: &Cancel,
        produce: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
    ) -> Result<Report, ExportError> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let (reader, writer) = pipe().map_err(LoadError::Helper)?;
        begin(control.get_ref(), index, reader).map_err(LoadError::Helper)?;
        let mut archive = Archive::new(writer, cancel).map_err(LoadError::Helper)?;
        let produced = produce(&mut archive);
        let is_cut_off = archive.is_cut_off;
        if produced.is_err() && !is_cut_off {
            // Before the pipe ends, so that the program never takes this for the end of an archive.
            stop(&mut control);
        }
        drop(archive);
        let report = wait(&mut control, cancel);
        match (produced, is_cut_off) {
            (Err(error), false) => Err(error),
            (_, true) => report.map(|report| Report { succeeded: false, ..report }),
            (Ok(()), false) => report,
        }
    }
}

impl Drop for LoadHelper {
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Where that fails, it is gone already.
        let _ = control.get_ref().shutdown(std::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// Gives the archive of an image to docker or podman; returns where it went, in words.
pub fn export(
    assembled: &Assembled,
    context: Option<&str>,
    names: &[Reference],
    tools: &Tools<'_>,
) -> Result<String, ExportError> {
    let prepared = tools.helper.and_then(|helper| Some((helper, helper.find(context)?)));
    let (helper, (index, loader)) = prepared.ok_or(LoadError::Unprepared)?;
    let manifest = docker::manifest_json(assembled, names)?;
    let shown: Vec<_> = names.iter().map(|name| name.with_default_tag().familiar()).collect();
    let destination = match shown.is_empty() {
        true => loader.name.clone(),
        false => format!("{} as {}", loader.name, shown.join(", ")),
    };
    staged(tools, format!("loading into {}", loader.name), destination, || {
        go_on(tools.cancel)?;
        let report = helper.run(index, tools.cancel, |out| {
            tarball::write_image(assembled, names, Some(&manifest), out, tools)
        })?;
        let loader = loader.name.clone();
        match report.succeeded {
            true => Ok(()),
            false => Err(LoadError::Refused { loader, report: Box::new(report) }.into()),
        }
    })
}

/// Hands the helper the number of a loader and its standard input.
fn begin(control: &UnixStream, index: u8, input: PipeReader) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [input.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent =
        retry_on_intr(|| sendmsg(control, &[IoSlice::new(&[index])], &mut ancillary, SendFlags::NOSIGNAL))?;
    debug_assert_eq!(sent, 1, "a stream socket takes the one byte or fails");
    Ok(())
}

/// Asks the helper to end what it runs. Where it cannot be asked, it is gone, and what it ran with it.
fn stop(control: &mut BufReader<UnixStream>) {
    let _ = control.get_mut().write_all(&[helper::STOP]);
}

/// Waits until the program has ended, which is soon once the user wants to stop.
fn wait(control: &mut BufReader<UnixStream>, cancel: &Cancel) -> Result<Report, ExportError> {
    let mut asked = false;
    while control.buffer().is_empty() && !is_ready(control.get_ref(), PollFlags::IN)? {
        if cancel.is_requested() && !asked {
            asked = true;
            stop(control);
        }
    }
    let mut line = String::new();
    control.read_line(&mut line).map_err(LoadError::Helper)?;
    go_on(cancel)?;
    let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended");
    let report =
        if line.is_empty() { Err(gone()) } else { serde_json::from_str(&line).map_err(io::Error::other) };
    Ok(report.map_err(LoadError::Helper)?)
}

/// Whether a descriptor is ready after at most [`ATTENTION`].
fn is_ready(descriptor: impl AsFd, flags: PollFlags) -> Result<bool, LoadError> {
    let mut polled = [PollFd::new(&descriptor, flags)];
    match poll(&mut polled, Some(&ATTENTION)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(LoadError::Helper(error.into())),
    }
}

/// The pipe to a program that may stop to read: whoever writes can still be stopped.
struct Archive<'a> {
    pipe: PipeWriter,
    cancel: &'a Cancel,
    /// The program has closed its end.
    is_cut_off: bool,
}

impl<'a> Archive<'a> {
    fn new(pipe: PipeWriter, cancel: &'a Cancel) -> io::Result<Self> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Self { pipe, cancel, is_cut_off: false })
    }
}

impl Write for Archive<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.pipe.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.is_cut_off = error.kind() == io::ErrorKind::BrokenPipe;
                    return Err(error);
                }
                written => return written,
            }
            is_ready(&self.pipe, PollFlags::OUT).map_err(io::Error::other)?;
            if self.cancel.is_requested() {
                return Err(io::Error::other("stopped"));
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

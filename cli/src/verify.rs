//! `layerwright verify`: whether what is built is the same wherever and whenever it is built, found out by doing it again.
//!
//! Each build is a process of its own, this binary with the same arguments and the hidden `--rebuild DIR`: so nothing that one
//! of them remembers or is can reach the other. DIR says where everything is that the build has for itself: `store`, `image`
//! (an OCI layout), and, for a build that is made *elsewhere*, `context`, a copy of the main context ([`mirror`]), and `named-N`.
//! These directories lie in one beside the store, which is locked as long as we live, and removed in the end; what a killed
//! one has left is removed by the next.

mod elsewhere;
mod mirror;
mod room;

use std::{
    env, io,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use oci::registry::Registry;
use rustix::process::{Pid, Signal as Number, kill_process};
use solver::Cancel;

pub use self::elsewhere::settle;
use self::{
    mirror::MirrorError,
    room::{ELSEWHERE, HERE, Room},
};
use crate::{
    args::VerifyArgs,
    call::pretty,
    client,
    diff::{self, Comparison},
    failure::{self, Failure},
    request::{self, Environment, RequestError},
    signals::{self, Watch},
    spec::call::Format,
};

/// So long after the end of the first build the second begins that whole seconds of a clock tell every step from itself.
const APART: Duration = Duration::from_millis(1100);
/// How often a build is looked at for its end.
const LOOK: Duration = Duration::from_millis(20);

/// Why a verification could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A context cannot be copied.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A directory beside the store.
    #[error("cannot {action} {}", path.display())]
    Room {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// This program.
    #[error("cannot start the build")]
    Start(#[source] io::Error),
}

/// What came of it.
#[derive(Debug)]
pub enum Verified {
    /// The text for standard output, and whether both are the same.
    Compared(String, bool),
    /// A build ended with this exit code of its own, and has said why.
    NotBuilt(u8),
}

/// `layerwright verify`
///
/// # Errors
/// The arguments contradict each other, or it cannot be tried.
pub fn run(args: &VerifyArgs) -> Result<Verified, Failure> {
    elsewhere::check(&args.build)?;
    let environment = Environment::of_process();
    let store = request::store_root(args.build.root.clone(), &environment)?;
    let cancel = Arc::new(Cancel::default());
    let watch = Watch::start(Arc::clone(&cancel), Arc::new(drop), signals::STOPPING)
        .map_err(|source| Failure::Start { what: "to watch for signals", source })?;
    let room = Room::make(&store)?;
    let answer = compare(args, &room, &cancel);
    room.leave();
    match watch.received() {
        Some(signal) => Err(Failure::Stopped(signal)),
        None => answer,
    }
}

fn compare(args: &VerifyArgs, room: &Room, cancel: &Arc<Cancel>) -> Result<Verified, Failure> {
    let first = match &args.against {
        Some(image) => image.clone(),
        None => {
            let here = room.directory(HERE)?;
            match build(&here, cancel)? {
                0 => {}
                code => return Ok(Verified::NotBuilt(code)),
            }
            thread::sleep(APART);
            image_of(&here)
        }
    };
    let there = room.directory(ELSEWHERE)?;
    elsewhere::mirror_contexts(&args.build, &there, cancel)?;
    match build(&there, cancel)? {
        0 => {}
        code => return Ok(Verified::NotBuilt(code)),
    }
    let registry = client::asking(&args.build.registries)?;
    let found = named(compare_until([first, image_of(&there)], registry, cancel)?, args);
    let text = match args.format {
        Format::Json => pretty(&diff::json(&found)),
        Format::Text => text(&found, args.limit),
    };
    Ok(Verified::Compared(text, found.is_same()))
}

/// Compares on a thread that is left behind when we are to stop: it reads what is there, and may read long.
fn compare_until(names: [String; 2], registry: Registry, cancel: &Cancel) -> Result<Comparison, Failure> {
    let start = |source| Failure::Start { what: "the comparison", source };
    let comparing = thread::Builder::new()
        .spawn(move || diff::compare([&names[0], &names[1]], None, &registry))
        .map_err(start)?;
    while !comparing.is_finished() {
        if cancel.is_requested() {
            return Err(start(io::ErrorKind::Interrupted.into()));
        }
        thread::sleep(LOOK);
    }
    // A panic has ended the process.
    comparing.join().unwrap_or_else(|_| Err(start(io::ErrorKind::Other.into())))
}

/// The paths of layouts that are gone by then say nothing to anybody.
fn named(mut found: Comparison, args: &VerifyArgs) -> Comparison {
    let [first, second] = &mut found.names;
    if args.twice {
        first.0 = "the first build".to_owned();
        second.0 = "the second build".to_owned();
    } else {
        second.0 = "the build".to_owned();
    }
    found
}

fn text(found: &Comparison, limit: usize) -> String {
    if found.is_same() {
        return format!("reproducible: {}\n", found.names[0].1.digest);
    }
    let cause = diff::first_cause(found).map(|cause| format!(": the first difference is {cause}"));
    format!("{}\nnot reproducible{}\n", diff::text(found, limit), cause.unwrap_or_default())
}

fn image_of(directory: &Path) -> String {
    format!("oci-layout://{}", directory.join(IMAGE).display())
}

/// The exit code of builds that did not give an image: 1 says that both did, and that these differ. What is to blame elsewhere
/// keeps its code.
pub fn exit_code_of(code: u8) -> u8 {
    if code == failure::BUILD { NOT_BUILT } else { code }
}

/// A build failed by itself.
const NOT_BUILT: u8 = 5;

/// Where a build's image is, in its directory.
const IMAGE: &str = "image";
/// Where its store is.
const STORE: &str = "store";

/// Runs a build to its end, and passes on that we are to stop. Gives its exit code.
fn build(directory: &Path, cancel: &Cancel) -> Result<u8, Failure> {
    let mut arguments = env::args_os().skip(1);
    let verify = arguments.next();
    let start = |source| Failure::from(VerifyError::Start(source));
    let mut build = Command::new(env::current_exe().map_err(start)?)
        .args(verify)
        .arg("--rebuild")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(start)?;
    let mut is_told = false;
    loop {
        if let Some(status) = build.try_wait().map_err(start)? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.unwrap_or(failure::BUG));
        }
        if cancel.is_requested() && !is_told {
            is_told = true;
            let pid = i32::try_from(build.id()).ok().and_then(Pid::from_raw);
            // It has ended where this fails.
            let _ = pid.map(|pid| kill_process(pid, Number::TERM));
        }
        thread::sleep(LOOK);
    }
}

impl From<MirrorError> for Failure {
    fn from(error: MirrorError) -> Self {
        Self::Verify(error.into())
    }
}

/// What cannot be had here.
fn refused(flag: &'static str, why: &'static str) -> RequestError {
    RequestError::NotInVerify { flag, why }
}

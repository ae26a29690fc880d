//! `layerwright run`: an image, built here or anywhere, with its command in the sandbox of RUN.
//!
//! What the flags and the image say together is decided by [`options`]; here is the order of events. Nothing is shown
//! any more once the command runs: standard output and error are its own then.

mod environment;
mod options;

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

use executor::{
    Container, ImageResolver, Retry, Secrets, Snapshots,
    agents::Agents,
    container::Prepared,
    sandbox::{self, Attachment, Exit, Footing, Group, Mode, Settled, Stdio},
};
use oci::{Layer, Snapshot, registry::Limits};
use solver::{Cancel, Event, FailureKind, ImageName, Resolver, StepFailure};

use self::options::Options;
use crate::{
    args::RunArgs,
    build::Events,
    complain,
    failure::{self, Failure},
    gc,
    inputs::{Outside, OutsideOptions},
    named,
    place::ImagePlace,
    progress::{End, Progress, Work},
    redact::redact,
    report,
    request::{self, Environment},
    signals::{self, Signal, Watch},
    terminal,
};

/// The code of everything that is not the command's own: docker's.
pub const FAILED: u8 = 125;

/// Runs; gives the exit code.
pub fn run(args: &RunArgs) -> u8 {
    match start(args) {
        Ok(code) => code,
        Err(failure @ Failure::Stopped(_)) => complain(&report::render(&failure, None), failure.exit_code()),
        Err(failure) => complain(&report::render(&failure, None), FAILED),
    }
}

fn start(args: &RunArgs) -> Result<u8, Failure> {
    let environment = Environment::of_process();
    let options = Options::read(args, &environment)?;
    let entered = sandbox::enter_builder(args.sandbox, options.relaxed)?;
    let notes = if args.quiet { Vec::new() } else { entered.notes };
    let lease = options.group()?;
    let group = lease.as_ref().map(|lease| lease.group().clone());
    let place = Place { footing: entered.footing, notes, mode: args.sandbox, group };
    let cancel = Arc::new(Cancel::default());
    let is_running = Arc::new(AtomicBool::new(false));
    let watch = Watch::default();
    let last = Arc::new(AtomicI32::new(0));
    let signals = {
        let (cancel, is_running, watch) = (Arc::clone(&cancel), Arc::clone(&is_running), watch.clone());
        let last = Arc::clone(&last);
        signals::relay(signals::PASSED_ON, move |number| {
            last.store(number, Ordering::SeqCst);
            if !is_running.load(Ordering::SeqCst) && watch.note(number) {
                cancel.request();
            }
        })
    };
    let signals = signals.map_err(|source| Failure::Start { what: "to watch for signals", source })?;
    let explained = |failure| watch.received().map_or(failure, Failure::Stopped);
    let ready = ready(&options, &environment, args, place, &cancel).map_err(explained)?;
    is_running.store(true, Ordering::SeqCst);
    let Ready { prepared, outside } = ready;
    if let Some(signal) = watch.received() {
        drop(prepared);
        leave(&outside);
        return Err(Failure::Stopped(signal));
    }
    let exit = attach(&prepared, &options, signals.as_fd());
    let command = prepared.plan().args.join(" ");
    drop(prepared);
    if let Some(store) = outside.store() {
        let nobody: Events = Arc::new(drop);
        gc::keep_under(&store, options.cap, &nobody);
    }
    leave(&outside);
    match exit {
        Ok(exit) => Ok(told(&exit, &command)),
        Err(failure) if failure.kind == FailureKind::Cancelled => {
            let last = Signal::of(last.load(Ordering::SeqCst));
            Err(Failure::Stopped(last.unwrap_or(Signal::Interrupt)))
        }
        Err(failure) => Err(Failure::Container(Box::new(failure))),
    }
}

/// Makes sure of what the store has been given, so that our temporary directory can go when we do: it stays where something
/// is not on disk, for the next start to know. Where that fails, it knows from what we leave.
fn leave(outside: &Outside) {
    if let Some(fetcher) = outside.opened() {
        let _ = fetcher.store().sync();
    }
}

/// What shells make of an end; what the command cannot say itself is told.
fn told(exit: &Exit, command: &str) -> u8 {
    let code = u8::try_from(exit.code()).unwrap_or(FAILED);
    let limited = |hint| {
        let message = format!("process {command:?} did not complete successfully: {exit}");
        complain(&report::simple(&message, Some(hint)), code)
    };
    match exit {
        Exit::Code(_) | Exit::Signal(_) => code,
        Exit::NotExecuted { message, .. } => complain(&report::simple(message, None), code),
        Exit::OutOfMemory { .. } => limited("give it more memory with --memory"),
        Exit::TimedOut { .. } => limited("give it more time with --step-timeout"),
        Exit::TookTooMuchRoom(_) => limited("give it more room with --step-max-disk"),
    }
}

/// Where this process is.
struct Place {
    footing: Footing,
    /// What there is to know about that.
    notes: Vec<String>,
    mode: Mode,
    /// The control group in which the command gets its own.
    group: Option<Group>,
}

/// What is there when the command can begin.
struct Ready {
    prepared: Prepared,
    outside: Outside,
}

/// Brings the image, and shows that.
fn ready(
    options: &Options,
    environment: &Environment,
    args: &RunArgs,
    place: Place,
    cancel: &Arc<Cancel>,
) -> Result<Ready, Failure> {
    let mode = request::progress_mode(args.progress, args.quiet, environment)?;
    let progress = Progress::start(mode, Work::Pull, &options.root, None, None)
        .map_err(|source| Failure::Start { what: "a thread for the progress", source })?;
    let outside = OutsideOptions {
        root: options.root.clone(),
        hosts: args.registries.hosts(environment)?,
        limits: Limits::default().hurried(request::hurry(environment)?),
        secrets: Secrets::default(),
        agents: Agents::default(),
        retry: Retry::default(),
    };
    let outside = Outside::new(outside, progress.sink(), Arc::clone(cancel));
    match bring(options, &outside, &progress.sink(), place, cancel) {
        Ok(prepared) => {
            progress.end(End::Answered);
            Ok(Ready { prepared, outside })
        }
        Err(failure) => {
            let message = redact(&failure::chain(&failure)).into_owned();
            let report = anstream::adapter::strip_str(&report::render(&failure, None)).to_string();
            progress.end(End::Failed { message, exit_code: FAILED, report, delivered: None });
            leave(&outside);
            Err(failure)
        }
    }
}

fn bring(
    options: &Options,
    outside: &Outside,
    events: &Events,
    Place { footing, notes, mode, group }: Place,
    cancel: &Arc<Cancel>,
) -> Result<Prepared, Failure> {
    let failed = |failure: StepFailure| Failure::Container(Box::new(failure));
    let fetcher = outside.fetcher()?;
    let resolver = ImageResolver::with_store(outside.asking()?, Arc::clone(fetcher.store()));
    let image = outside.announcing(resolver).image(&image_name(&options.image), &options.platform);
    let image = image.map_err(|failure| failed(explained(failure, options)))?;
    let container: Container = options.container(&image.config, group)?;
    let layers = image.layers.into_iter().map(Box::new).map(Layer::Base).collect();
    let Settled { footing, note } = sandbox::settle_files(footing, fetcher.store(), mode)?;
    events(Event::Sandbox(footing.to_string()));
    notes.into_iter().chain(note).for_each(|note| events(Event::Warning(note)));
    let snapshots = Snapshots::new(fetcher.clone(), footing.into(), Arc::clone(events), Arc::clone(cancel));
    container.prepare(&snapshots, footing, &Snapshot { layers }).map_err(failed)
}

/// Says what to do about a name that only a build has given.
fn explained(failure: StepFailure, options: &Options) -> StepFailure {
    let hint = match (&options.image, &failure.hint) {
        (ImagePlace::Registry(reference), None) => named::hint(&options.root, reference),
        _ => None,
    };
    StepFailure { hint: failure.hint.or(hint), ..failure }
}

fn image_name(place: &ImagePlace) -> ImageName {
    match place.clone() {
        ImagePlace::Registry(reference) => ImageName::Registry(reference),
        ImagePlace::Path { path, selector } => ImageName::OciLayout { directory: path, selector },
    }
}

/// The command, with our own standard streams.
fn attach(
    prepared: &Prepared,
    options: &Options,
    signals: std::os::fd::BorrowedFd<'_>,
) -> Result<Exit, StepFailure> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let is_terminal = matches!(options.stdio, Stdio::Terminal { .. });
    let raw = (is_terminal && options.reads_input && stdin.is_terminal()).then(terminal::Raw::begin);
    let raw = raw.transpose().map_err(|error| {
        StepFailure::caused(FailureKind::Machine, "cannot give the terminal to the command", error)
    })?;
    let attachment = Attachment {
        input: options.reads_input.then_some(stdin.as_fd()),
        output: stdout.as_fd(),
        errors: stderr.as_fd(),
        signals,
        terminal: is_terminal.then_some(stdout.as_fd()),
    };
    let exit = prepared.run(&attachment, &Cancel::default());
    drop(raw);
    exit
}

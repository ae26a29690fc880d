//! The command line of layerwright: flags → [`request::BuildRequest`] → [`inputs::Inputs`] → [`build::build`] → progress,
//! report and exit code.
//!
//! Order matters in [`main`]. A process started as the init of a sandbox, or as the helper of `--load`, goes there at
//! once; the builder enters its
//! own namespaces while it still has one thread; only then do threads start, and only then is anything fetched.
#![forbid(unsafe_code)]

mod args;
mod build;
mod cache;
mod caches;
mod call;
mod client;
mod context;
mod debug;
mod depfile;
mod diff;
mod doctor;
mod du;
mod explain;
mod failure;
mod fsck;
mod gc;
mod history;
mod index;
mod inputs;
mod inspect;
#[cfg(test)]
mod keys;
mod loader;
mod login;
mod mend;
mod named;
mod outputs;
mod place;
mod progress;
mod push;
mod redact;
mod refused;
mod report;
mod request;
mod run;
mod shell;
mod signals;
mod spec;
mod terminal;
mod verify;

use std::{
    io::{self, Write},
    panic::PanicHookInfo,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use executor::{
    FailedSteps,
    sandbox::{self, Entered, GroupLease},
};
use exporter::LoadHelper;
use oci::{Sha256Digest, tree::TIME_LIMIT};
use solver::{Cancel, Event};

use crate::{
    args::{
        BuildArgs, Command, ContextCommand, DebugCommand, DiffArgs, DoctorArgs, FsckArgs, IndexCommand,
        NotParsed, OnFailure, ProgressMode, VerifyArgs,
    },
    build::{Built, Surroundings},
    caches::RemoteCaches,
    call::Answer,
    explain::{Elsewhere, Explainer},
    failure::Failure,
    history::{BuildId, Entry},
    inputs::{Inputs, Outside, Source, Stdin},
    progress::{Board, Delivered, End, Ended, Progress, Work},
    request::{BuildRequest, Environment},
    signals::Watch,
    spec::call::Call,
    verify::Verified,
};

/// musl's own allocator is many times slower when several threads use it.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if sandbox::is_init_call() {
        sandbox::init_main();
    }
    if exporter::outputs::load::is_helper_call() {
        exporter::outputs::load::serve();
    }
    std::panic::set_hook(Box::new(end_with_bug));
    signals::survive_file_size_limit();
    ExitCode::from(match args::parse(std::env::args_os()) {
        Ok(cli) => match cli.command {
            Command::Build(args) => build(*args),
            Command::Cache(command) => answer(cache::run(&command)),
            Command::Context(ContextCommand::Ls(args)) => answer(context::list(args)),
            Command::Debug(DebugCommand::Ast { file }) => show_tree(&file),
            Command::Diff(args) => differ(&args),
            Command::Doctor(args) => doctor(args),
            Command::Explain(args) => answer(explain::run(args)),
            Command::Fsck(args) => check_store(args),
            Command::Du(args) => answer(du::run(&args)),
            Command::Gc(args) => answer(gc::run(&args)),
            Command::History(args) => answer(history::run(args)),
            Command::Index(IndexCommand::Create(args)) => index::create(&args),
            Command::Index(IndexCommand::Inspect(args)) => answer(inspect::index(&args)),
            Command::Inspect(args) => answer(inspect::run(&args)),
            Command::Login(args) => answer(login::login(&args)),
            Command::Logout(args) => answer(login::logout(&args)),
            Command::Push(args) => push::run(&args),
            Command::Run(args) => run::run(&args),
            Command::Verify(args) => check_twice(*args),
            Command::Version => print(&format!("layerwright {}\n", env!("CARGO_PKG_VERSION"))),
        },
        Err(NotParsed::Clap(error)) => help(&error, args::usage_code(std::env::args_os())),
        Err(NotParsed::Refused(error)) => {
            complain(&report::simple(&error.to_string(), None), args::usage_code(std::env::args_os()))
        }
    })
}

/// A panic anywhere ends the process: what it was doing may be half done, and an image must not come of it.
fn end_with_bug(panic: &PanicHookInfo<'_>) {
    terminal::restore();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    let hint =
        "this is a bug in layerwright: please report it, with this message and the Dockerfile if you can";
    let text = report::simple(&format!("panicked at {place}: {message}"), Some(hint));
    let _ = write!(anstream::stderr(), "{}", redact::redact(&text));
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        let _ = writeln!(io::stderr(), "{}", std::backtrace::Backtrace::force_capture());
    }
    std::process::exit(failure::BUG.into());
}

/// Help, version, or what is wrong with the command line.
fn help(error: &clap::Error, usage: u8) -> u8 {
    let text = error.render().ansi().to_string();
    match error.use_stderr() {
        true => complain(&redact::redact(&text), usage),
        false => print(&text),
    }
}

/// What a question gives.
fn answer(answer: Result<String, Failure>) -> u8 {
    match answer {
        Ok(text) => print(&text),
        Err(failure) => complain(&report::render(&failure, None), failure.exit_code()),
    }
}

/// Prints what differs, and says by the exit code whether anything does.
fn differ(args: &DiffArgs) -> u8 {
    match diff::run(args) {
        Ok((text, is_same)) => match print(&text) {
            0 => diff::exit_code(is_same),
            code => code,
        },
        Err(failure) => complain(&report::render(&failure, None), diff::exit_code_of(&failure)),
    }
}

/// `layerwright verify`, or one of the builds that it starts.
fn check_twice(args: VerifyArgs) -> u8 {
    if let Some(directory) = &args.rebuild {
        return build(verify::settle(args.build, directory));
    }
    match verify::run(&args) {
        Ok(Verified::Compared(text, is_same)) => match print(&text) {
            0 => diff::exit_code(is_same),
            code => code,
        },
        Ok(Verified::NotBuilt(code)) => verify::exit_code_of(code),
        Err(failure) => complain(&report::render(&failure, None), diff::exit_code_of(&failure)),
    }
}

/// Data for standard output. Nobody reading it is not our failure; a full disk is.
fn print(text: &str) -> u8 {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => complain(
            &report::simple(&format!("cannot write to standard output: {error}"), None),
            failure::MACHINE,
        ),
        _ => 0,
    }
}

fn complain(text: &str, exit_code: u8) -> u8 {
    let _ = anstream::stderr().write_all(text.as_bytes());
    exit_code
}

fn doctor(args: DoctorArgs) -> u8 {
    let root = request::store_root(args.root, &Environment::of_process());
    match root {
        Ok(root) => {
            let findings = doctor::examine(&root);
            let printed = print(&findings.text);
            if findings.can_run { printed } else { failure::MACHINE }
        }
        Err(error) => complain(&report::simple(&error.to_string(), None), failure::USAGE),
    }
}

/// `layerwright fsck`
fn check_store(args: FsckArgs) -> u8 {
    match fsck::run(args) {
        Ok(fsck::Answer { text, exit_code }) => match print(&text) {
            0 => exit_code,
            failed => failed,
        },
        Err(failure) => complain(&report::render(&failure, None), failure.exit_code()),
    }
}

/// `layerwright debug ast`
fn show_tree(file: &Path) -> u8 {
    match debug::ast(file, &mut io::stdin().lock()) {
        Ok(tree) => print(&tree),
        Err(refused) => {
            complain(&report::render(&refused.failure, refused.source.as_ref()), refused.failure.exit_code())
        }
    }
}

fn build(args: BuildArgs) -> u8 {
    match prepare(args) {
        Ok(prepared) => run(prepared),
        Err(failure) => complain(&report::render(&failure, None), failure.exit_code()),
    }
}

/// What there is before the first thread.
struct Prepared {
    request: BuildRequest,
    /// What loads images from outside of the namespaces that the builder then enters.
    helper: Option<LoadHelper>,
    entered: Option<Entered>,
    /// The control group in which steps get theirs.
    group: Option<GroupLease>,
}

/// Everything that is done while the process has one thread.
fn prepare(args: BuildArgs) -> Result<Prepared, Failure> {
    check_clock()?;
    let environment = Environment::of_process();
    let request = request::read(args, &environment)?;
    build::try_destinations(&request)?;
    let helper = loader::prepare(&request, &environment)?;
    let entered = request
        .needs_store()
        .then(|| sandbox::enter_builder(request.sandbox, request.relaxed))
        .transpose()?;
    let builds = request.call.call == Call::Build;
    let group = if builds { request.limits.prepare()? } else { None };
    Ok(Prepared { request, helper, entered, group })
}

/// Times from before the limit are kept in images, so a clock that stands there would leak into them.
fn check_clock() -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    match i64::try_from(now.as_secs()) {
        Ok(seconds) if seconds < TIME_LIMIT => Err(Failure::Clock),
        _ => Ok(()),
    }
}

fn run(prepared: Prepared) -> u8 {
    let Prepared { request, helper, entered, group } = prepared;
    let request = &request;
    let cancel = Arc::new(Cancel::default());
    let (id, began) = (BuildId::now(), SystemTime::now());
    let recorder = (request.call.call == Call::Build).then(|| history::recorder(id.clone(), request));
    let root = &request.root;
    let elsewhere = Elsewhere::default();
    let explainer = (request.call.call == Call::Build).then(|| explainer(request, &elsewhere));
    let progress = match Progress::start(request.progress, Work::Build, root, recorder, explainer) {
        Ok(progress) => progress,
        Err(source) => {
            let failure = Failure::Start { what: "a thread for the progress", source };
            return complain(&report::render(&failure, None), failure.exit_code());
        }
    };
    let events = progress.sink();
    let outside = Outside::new(request.outside(), Arc::clone(&events), Arc::clone(&cancel));
    let failed = FailedSteps::default();
    let session =
        Session { request, outside: &outside, progress, failed: failed.clone(), cancel: Arc::clone(&cancel) };
    let watch = match Watch::start(Arc::clone(&cancel), Arc::clone(&events), signals::STEPS_END) {
        Ok(watch) => watch,
        Err(source) => return session.fail(None, &Failure::Start { what: "to watch for signals", source }),
    };
    let mut caches = match RemoteCaches::open(request, &outside, &events, &cancel) {
        Ok(caches) => caches,
        Err(failure) => return session.fail(None, &failure),
    };
    request.notices.iter().for_each(|notice| events(Event::Warning(notice.clone())));
    // A signal explains every failure that comes after it.
    let explained = |failure| watch.received().map(Failure::Stopped).unwrap_or(failure);
    let loaded = build::remove_iidfile(request)
        .and_then(|()| inputs::load(&request.places, &outside, &mut Stdin::new(io::stdin(), &cancel)));
    let inputs = match loaded.map_err(explained) {
        Ok(inputs) => inputs,
        Err(failure) => return session.fail(None, &failure),
    };
    let done = match (request.call.call, entered) {
        (Call::Build, Some(entered)) => {
            let is_quiet = request.progress == ProgressMode::Quiet;
            let notes = if is_quiet { Vec::new() } else { entered.notes };
            caches.name(request, &inputs.dockerfile);
            let footing = entered.footing;
            let failed_steps = request.on_failure.map(|OnFailure::Shell| failed);
            let surroundings = Surroundings {
                id,
                began,
                footing,
                notes,
                group: group.as_ref().map(|lease| lease.group().clone()),
                helper,
                caches,
                events,
                cancel,
                failed_steps,
            };
            let built = build_mended(request, &inputs, &outside, &surroundings);
            let caches = &surroundings.caches;
            caches.tell_ignored(&surroundings.events);
            caches.tell_silent(&surroundings.events);
            outside.opened().into_iter().for_each(|fetcher| elsewhere.learn(caches.read(), fetcher));
            built.map(Done::Built)
        }
        _ => call::answer(request, &inputs, &outside).map(Done::Answered),
    };
    let done = inputs.clean.unless_refused(done);
    if request.call.call == Call::Build
        && let Some(store) = outside.store()
    {
        gc::keep_under(&store, request.cap, &session.progress.sink());
    }
    match done.map_err(explained) {
        Ok(Done::Built(Built { delivered, lack: None })) => session.succeed(delivered),
        Ok(Done::Built(Built { delivered, lack: Some(failure) })) => {
            session.fail_after(Some(delivered), Some(&inputs.dockerfile), &explained(failure))
        }
        // What it could not look up is no note any more, since that is ours.
        Ok(Done::Answered(_)) if let Some(signal) = watch.received() => {
            session.fail(Some(&inputs.dockerfile), &Failure::Stopped(signal))
        }
        Ok(Done::Answered(answer)) => session.tell(&inputs, answer),
        Err(failure) => session.fail(Some(&inputs.dockerfile), &failure),
    }
}

/// Builds; once more if the store turned out to be damaged and the damage could be taken out of the way, and as often as a
/// remote cache turned out to have lost something: nothing is lost twice, and what else is gone by then is lost with it.
fn build_mended(
    request: &BuildRequest,
    inputs: &Inputs,
    outside: &Outside,
    surroundings: &Surroundings,
) -> Result<Built, Failure> {
    let mut is_mended = false;
    loop {
        let count_lost = || outside.opened().map_or(0, |fetcher| fetcher.elsewhere().count_lost());
        let lost = count_lost();
        let built = build::build(request, inputs, outside, surroundings);
        let failure = match &built {
            Err(failure) | Ok(Built { lack: Some(failure), .. }) if !surroundings.cancel.is_requested() => {
                failure
            }
            _ => return built,
        };
        let Some(fetcher) = outside.opened() else { return built };
        let loss = mend::loss(failure, fetcher);
        let has_lost = count_lost() > lost;
        let Some(damaged) = loss.or_else(|| mend::damage(failure)) else { return built };
        if is_mended && !has_lost || !mend::clear(fetcher.store(), &damaged, &surroundings.events) {
            return built;
        }
        is_mended |= !has_lost;
        if has_lost {
            exporter::cache::lose_what_is_gone(fetcher, &surroundings.cancel);
        }
        let what = if has_lost { "a remote cache has lost a layer" } else { "the store was damaged" };
        let told = mend::told(failure);
        let text = format!("the build is made once more, since {what}: {told}");
        (surroundings.events)(Event::Warning(text));
        surroundings.failed_steps.iter().for_each(FailedSteps::clear);
    }
}

/// What looks back at a build; it tells only with `--explain`.
fn explainer(request: &BuildRequest, elsewhere: &Elsewhere) -> Explainer {
    let (root, elsewhere, is_asked) = (request.root.clone(), elsewhere.clone(), request.explain);
    Box::new(move |entry: &mut Entry| {
        elsewhere.complete(entry);
        is_asked.then(|| explain::explain(&root, entry, &|files| elsewhere.inventory(&root, files)))
    })
}

/// How a command went well.
enum Done {
    Built(Built),
    Answered(Answer),
}

/// What the end of a command needs, however it ends.
struct Session<'a> {
    request: &'a BuildRequest,
    outside: &'a Outside,
    progress: Progress,
    /// The steps that have failed, where somebody wants to look at them.
    failed: FailedSteps,
    cancel: Arc<Cancel>,
}

impl Session<'_> {
    fn succeed(self, delivered: Delivered) -> u8 {
        let (mode, digest) = (self.request.progress, delivered.digest);
        self.end(End::Built(delivered));
        print_digest(mode, digest)
    }

    /// The answer on standard output; what is wrong beside it, or findings, decide the exit code.
    fn tell(self, inputs: &Inputs, answer: Answer) -> u8 {
        let Answer { text, warnings, failure, exit_code } = answer;
        let events = self.progress.sink();
        warnings.into_iter().for_each(|warning| events(Event::Warning(warning)));
        if let Some(failure) = &failure {
            let printed = print(&redact::redact(&text));
            let failed = self.fail(Some(&inputs.dockerfile), failure);
            return if printed == 0 { failed } else { printed };
        }
        self.end(End::Answered);
        match print(&redact::redact(&text)) {
            0 => exit_code,
            failed => failed,
        }
    }

    fn fail(self, source: Option<&Source>, failure: &Failure) -> u8 {
        self.fail_after(None, source, failure)
    }

    /// The same; what has been delivered is told of first.
    fn fail_after(self, delivered: Option<Delivered>, source: Option<&Source>, failure: &Failure) -> u8 {
        let (failed, cancel) = (self.failed.clone(), Arc::clone(&self.cancel));
        let exit_code = self.tell_failure(delivered, source, failure);
        if let Failure::Step { vertex, .. } = failure
            && let Some(step) = failed.take(*vertex)
        {
            shell::open(&step, &cancel);
        }
        exit_code
    }

    fn tell_failure(self, delivered: Option<Delivered>, source: Option<&Source>, failure: &Failure) -> u8 {
        let exit_code = failure.exit_code();
        let message = redact::redact(&failure::chain(failure)).into_owned();
        let text = report::render(failure, source);
        let report = anstream::adapter::strip_str(&text).to_string();
        let (mode, digest) = (self.request.progress, delivered.as_ref().and_then(|made| made.digest));
        let mut board = self.end(End::Failed { message, exit_code, report, delivered });
        print_digest(mode, digest);
        if mode == ProgressMode::Json {
            return exit_code;
        }
        if let Failure::Step { vertex, .. } = failure
            && let Some(step) = board.take_step(*vertex)
        {
            let _ = report::write_output(&mut anstream::stderr().lock(), step);
        }
        complain(&text, exit_code)
    }

    /// Shows the end, and lets the history remember it.
    fn end(self, end: End) -> Board {
        let is_json = self.request.progress == ProgressMode::Json;
        let Ended { board, record, explanation } = self.progress.end(end);
        if let Some(explanation) = explanation.filter(|_| !is_json) {
            let text = explain::tell(&explanation, history::now());
            let _ = anstream::stderr().write_all(text.as_bytes());
        }
        let (Some(record), Some(store)) = (record, self.outside.store()) else { return board };
        if let Err(error) = history::write(&store, &record) {
            let text =
                format!("warning: the history does not remember this build: {}\n", failure::chain(&error));
            let _ = anstream::stderr().write_all(redact::redact(&text).as_bytes());
        }
        // Of a build that failed, too, others use the finished steps. Where it fails, they know from what we leave.
        let _ = store.sync();
        board
    }
}

/// With `-q` the digest is all that is told, on standard output.
fn print_digest(mode: ProgressMode, digest: Option<Sha256Digest>) -> u8 {
    match (mode, digest) {
        (ProgressMode::Quiet, Some(digest)) => print(&format!("{digest}\n")),
        _ => 0,
    }
}

//! The command line of layerwright: flags → commands; that of `build` is [`building`].
//!
//! Order matters in [`main`]. A process started as the init of a sandbox, or as the helper of `--load`, goes there at
//! once; the builder enters its
//! own namespaces while it still has one thread; only then do threads start, and only then is anything fetched.
#![forbid(unsafe_code)]

mod args;
mod build;
mod building;
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
mod scarce;
mod session;
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
};

use executor::sandbox;

use crate::{
    args::{
        Command, ContextCommand, DebugCommand, DiffArgs, DoctorArgs, FsckArgs, IndexCommand, NotParsed,
        VerifyArgs,
    },
    failure::Failure,
    request::Environment,
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
            Command::Build(args) => building::build(*args),
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

/// A panic anywhere ends the process: what it was doing may be half done, and an image must not come of it. Libraries panic
/// where they get no thread, which is no bug, but the machine's limit.
fn end_with_bug(panic: &PanicHookInfo<'_>) {
    terminal::restore();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    if let Some(reason) = scarce::no_thread(message) {
        let text = report::simple(&format!("{}: {reason}", scarce::NO_THREAD), Some(sandbox::FEW_PROCESSES));
        let usage = args::usage_code(std::env::args_os());
        let code = if usage == failure::USAGE { failure::MACHINE } else { usage };
        std::process::exit(complain(&text, code).into());
    }
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
        return building::build(verify::settle(args.build, directory));
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

//! The end of a build, or of what it was asked instead: what people, scripts and the history are told, and the exit code.

use std::{io::Write, sync::Arc};

use executor::FailedSteps;
use oci::Sha256Digest;
use solver::{Cancel, Event};

use crate::{
    args::ProgressMode,
    build::Built,
    call::Answer,
    complain, explain,
    failure::{self, Failure},
    history,
    inputs::{Inputs, Outside, Source},
    print,
    progress::{Board, Delivered, End, Ended, Progress},
    redact, report,
    request::BuildRequest,
    shell,
    signals::Watch,
};

/// What the end of a command needs, however it ends.
pub struct Session<'a> {
    pub request: &'a BuildRequest,
    pub outside: &'a Outside,
    pub progress: Progress,
    /// The steps that have failed, where somebody wants to look at them.
    pub failed: FailedSteps,
    pub cancel: Arc<Cancel>,
}

/// How a command went well.
pub enum Done {
    Built(Built),
    Answered(Answer),
}

impl Session<'_> {
    /// Tells what came of it; the exit code.
    pub fn close(self, inputs: &Inputs, done: Result<Done, Failure>, watch: &Watch) -> u8 {
        let source = Some(&inputs.dockerfile);
        match done {
            Ok(Done::Built(Built { delivered, lack: None })) => self.succeed(delivered),
            Ok(Done::Built(Built { delivered, lack: Some(failure) })) => {
                self.fail_after(Some(delivered), source, &explained(watch, failure))
            }
            // What it could not look up is no note any more, since that is ours.
            Ok(Done::Answered(_)) if let Some(signal) = watch.received() => {
                self.fail(source, &Failure::Stopped(signal))
            }
            Ok(Done::Answered(answer)) => self.tell(inputs, answer),
            Err(failure) => self.fail(source, &failure),
        }
    }

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

    /// Tells why nothing came of it; the exit code.
    pub fn fail(self, source: Option<&Source>, failure: &Failure) -> u8 {
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

/// A signal explains every failure that comes after it.
pub fn explained(watch: &Watch, failure: Failure) -> Failure {
    watch.received().map(Failure::Stopped).unwrap_or(failure)
}

/// With `-q` the digest is all that is told, on standard output.
fn print_digest(mode: ProgressMode, digest: Option<Sha256Digest>) -> u8 {
    match (mode, digest) {
        (ProgressMode::Quiet, Some(digest)) => print(&format!("{digest}\n")),
        _ => 0,
    }
}

//! `build --on-failure=shell`: a shell where a RUN has failed, on the terminal of whoever builds.

use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

use executor::{
    FailedStep,
    sandbox::{Attachment, Exit},
};
use solver::{Cancel, FailureKind, StepFailure};

use crate::{failure::Failure, report, signals, terminal};

/// Opens it, and returns when it has ended. What goes wrong is told, and changes nothing about the build's own failure.
pub fn open(step: &FailedStep, cancel: &Cancel) {
    let told = format!("{} in the failed step; what it changes goes nowhere\n", step.shell());
    let _ = anstream::stderr().write_all(told.as_bytes());
    let lack = match attend(step, cancel) {
        Ok(Exit::NotExecuted { message, .. }) => report::simple(&message, None),
        Ok(_) => return,
        Err(failure) => report::render(&Failure::Container(Box::new(failure)), None),
    };
    let _ = anstream::stderr().write_all(lack.as_bytes());
}

fn attend(step: &FailedStep, cancel: &Cancel) -> Result<Exit, StepFailure> {
    let failed =
        |error| StepFailure::caused(FailureKind::Machine, "cannot give the terminal to a shell", error);
    let signals = signals::relay(signals::OF_THE_TERMINAL, |_| {}).map_err(failed)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    // Standard output may be where the image goes.
    let output = if stderr.is_terminal() { stderr.as_fd() } else { stdout.as_fd() };
    let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    let _raw = terminal::Raw::begin().map_err(failed)?;
    let attachment = Attachment {
        input: Some(stdin.as_fd()),
        output,
        errors: output,
        signals: signals.as_fd(),
        terminal: Some(stdin.as_fd()),
    };
    step.run_shell(terminal::like_ours(), &kind, &attachment, cancel)
}

//! What a step sees and what it can break: a program that tests run as RUN steps of real builds.
//!
//! `probes FAMILY` prints a line for each probe, its name, a tab and what came of it. What belongs to the machine, and not to
//! the sandbox, is left out or named by what it means, so that the lines can be compared with a table; that table, for each
//! rung of the ladder, is `testdata/probes`. An attack says `refused` or, with capital letters, what it could do.
//!
//! - `see`: ids, capabilities, namespaces, mounts, devices, limits, environment, descriptors.
//! - `user`: the ids and capabilities of somebody who is not root.
//! - `network`: what there is of a network in a step that has none.
//! - `calls`: which system calls the filter lets through.
//! - `flood`: how much can be had of what everybody shares; `processes`: the same, of processes.
//! - `escape`: ways out, each tried.
//! - `steal`: everywhere a secret of the builder or of another step could be read.
//!
//! `probes deep DIRECTORY LEVELS` and `probes socket PATH` leave something behind that is hard to remove.
//!
//! It is static, so that it runs in an image that holds nothing else (`scripts/probes` makes it).

#![allow(clippy::print_stdout, reason = "it is a program")]
#![deny(unsafe_code)]

mod calls;
mod children;
mod escape;
mod flood;
mod mess;
#[allow(unsafe_code)]
mod raw;
mod see;
mod status;
mod steal;

use std::{io, process::ExitCode};

use rustix::io::Errno;

/// The name of a probe and what came of it.
type Line = (String, String);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let lines = match words.as_slice() {
        ["see"] => see::all(),
        ["network"] => see::network(),
        ["user"] => see::user(),
        ["flood"] => flood::all(),
        ["processes"] => flood::processes(),
        ["calls"] => calls::all(),
        ["escape"] => escape::all(),
        ["steal"] => steal::all(),
        ["child", name] => return children::main(name),
        ["deep", directory, levels] => return told(mess::nest(directory, levels)),
        ["socket", path] => return told(mess::socket(path)),
        _ => {
            eprintln!(
                "usage: probes see|user|network|calls|flood|processes|escape|steal|deep DIRECTORY LEVELS|socket PATH"
            );
            return ExitCode::from(2);
        }
    };
    for (name, result) in lines {
        println!("{name}\t{result}");
    }
    ExitCode::SUCCESS
}

fn told(done: io::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probes: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What an attack came to. Which of the ordinary refusals it is depends on who owns a thing outside, and on the kernel.
fn verdict(result: Result<(), Errno>) -> String {
    match result {
        Ok(()) => "DONE".to_owned(),
        Err(
            Errno::PERM
            | Errno::ACCESS
            | Errno::ROFS
            | Errno::NOENT
            | Errno::NXIO
            | Errno::NODEV
            | Errno::SRCH
            | Errno::CONNREFUSED,
        ) => "refused".to_owned(),
        Err(errno) => format!("refused: {}", errno_name(errno)),
    }
}

fn errno_name(errno: Errno) -> String {
    let known = [
        (Errno::PERM, "EPERM"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::AFNOSUPPORT, "EAFNOSUPPORT"),
        (Errno::INVAL, "EINVAL"),
        (Errno::STALE, "ESTALE"),
        (Errno::NOTDIR, "ENOTDIR"),
    ];
    let name = known.iter().find(|(known, _)| *known == errno).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| errno.to_string())
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

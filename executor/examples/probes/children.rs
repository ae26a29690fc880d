//! Attacks that end, or change for good, the process that tries them: each is done by a child.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::{Command, ExitCode, Stdio},
};

use rustix::{
    fs::{CWD, Mode, XattrFlags, setxattr, statat},
    process::{chroot, fchdir},
};

use crate::{Line, status::status};

/// Where this program is while it runs: without `/proc`, where it was started.
pub fn own_program() -> String {
    const BY_THE_KERNEL: &str = "/proc/self/exe";
    let started = || std::env::args().next().unwrap_or_default();
    if fs::exists(BY_THE_KERNEL).unwrap_or(false) { BY_THE_KERNEL.to_owned() } else { started() }
}

/// What a child does.
pub fn main(name: &str) -> ExitCode {
    match name {
        "chroot" => ExitCode::from(u8::from(leave_by_chroot().unwrap_or(false))),
        "i386" => ExitCode::from(u8::from(runs_i386())),
        "capabilities" => {
            println!("{}", status().remove("CapEff").unwrap_or_default());
            ExitCode::SUCCESS
        }
        "wait" => {
            // Its parent ends it, and if not, the step.
            std::thread::sleep(std::time::Duration::from_secs(600));
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}

/// All of them.
pub fn all() -> Vec<Line> {
    vec![
        ("escape.leave-by-chroot".to_owned(), done_or_refused("chroot")),
        ("escape.i386-call".to_owned(), done_or_refused("i386")),
        ("escape.file-capabilities".to_owned(), file_capabilities()),
    ]
}

fn done_or_refused(name: &str) -> String {
    let status = Command::new(own_program()).args(["child", name]).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.code() == Some(1) => "DONE".to_owned(),
        Ok(_) => "refused".to_owned(),
        Err(error) => format!("refused: {error}"),
    }
}

/// The classic: with a working directory outside of the new root, `..` never meets it. It leads to the root of the mount
/// namespace, which must be the step's own.
fn leave_by_chroot() -> rustix::io::Result<bool> {
    let before = fs::metadata("/").map(|root| (root.dev(), root.ino()));
    let outside = rustix::fs::open("/", rustix::fs::OFlags::DIRECTORY, Mode::empty())?;
    let _ = fs::create_dir("/tmp/jail");
    chroot("/tmp/jail")?;
    fchdir(&outside)?;
    for _ in 0..64 {
        rustix::process::chdir("..")?;
    }
    chroot(".")?;
    let found = statat(CWD, "/", rustix::fs::AtFlags::empty())?;
    Ok(before.is_ok_and(|before| before != (found.st_dev, found.st_ino)))
}

#[cfg(target_arch = "x86_64")]
fn runs_i386() -> bool {
    crate::raw::getpid_of_i386() > 0
}

#[cfg(not(target_arch = "x86_64"))]
fn runs_i386() -> bool {
    false
}

/// A program that claims CAP_SYS_ADMIN, CAP_SYS_PTRACE and all others for whoever runs it.
fn file_capabilities() -> String {
    const EVERY_ONE: [u8; 20] = [1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 1, 0, 0, 0, 0, 0, 0];
    let path = "/tmp/claims";
    let made = fs::copy(own_program(), path)
        .map_err(|error| crate::errno_of(&error))
        .and_then(|_| setxattr(path, "security.capability", &EVERY_ONE, XattrFlags::empty()));
    if let Err(errno) = made {
        return crate::verdict(Err(errno));
    }
    let told = capabilities_of(path);
    let _ = fs::remove_file(path);
    // The kernel refuses to run a program that claims what it cannot get.
    let Ok(gained) = u64::from_str_radix(&told, 16) else { return "refused".to_owned() };
    let more = gained & !u64::from_str_radix(&bounding(), 16).unwrap_or(0);
    if more == 0 { "refused".to_owned() } else { format!("DONE: {more:x}") }
}

/// The effective capabilities of a copy of this program, or why it does not run.
pub fn capabilities_of(path: &str) -> String {
    match Command::new(path).args(["child", "capabilities"]).output() {
        Err(error) => crate::verdict(Err(crate::errno_of(&error))),
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    }
}

fn bounding() -> String {
    status().remove("CapBnd").unwrap_or_default()
}

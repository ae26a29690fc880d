//! Whether steps can have a PID namespace and a `/proc` of their own, found out by making both.
//!
//! The kernel gives a user namespace a new `/proc` only where the one around it is whole; in a container that masks parts
//! of it, as nearly all do, it says EPERM.

use std::{
    io::{self, PipeWriter, Read, Write, pipe},
    process::exit,
};

use rustix::{
    io::{Errno, retry_on_intr},
    mount::MountAttrFlags,
    process::{WaitOptions, waitpid},
    thread::UnshareFlags,
};

use serde::{Deserialize, Serialize};

use crate::sandbox::{
    SandboxError,
    filesystem::new_file_system,
    sys::{self, Fork},
};

/// What there is. Numbers are those of errors, as the kernel has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Both.
    Own,
    /// A namespace, but no `/proc` for it.
    NoProc(i32),
    /// No namespace.
    NoNamespace(i32),
    /// That could not be found out: this moment lacks memory or processes, and another one may not.
    Unknown(i32),
}

/// Tries it in a child, for only children are inside of a new PID namespace. The process must have one thread.
///
/// # Errors
/// There could be no child, or it has not said what it found.
pub fn probe() -> Result<Found, SandboxError> {
    let failed = |error: io::Error| SandboxError::io("try a pid namespace", &error);
    let (mut answer, writer) = pipe().map_err(failed)?;
    let child = match sys::fork().map_err(|errno| failed(errno.into()))? {
        Fork::Child => {
            if let Err(errno) = make_namespace(&writer) {
                tell(&writer, Found::Unknown(errno.raw_os_error()));
            }
            exit(0)
        }
        Fork::Parent(child) => child,
    };
    drop(writer);
    let mut told = Vec::new();
    answer.read_to_end(&mut told).map_err(failed)?;
    retry_on_intr(|| waitpid(Some(child), WaitOptions::empty())).map_err(|errno| failed(errno.into()))?;
    serde_json::from_slice(&told).map_err(|error| failed(error.into()))
}

/// What there is to say of `/proc` a child of the child says, who is inside.
fn make_namespace(writer: &PipeWriter) -> Result<(), Errno> {
    match sys::unshare(UnshareFlags::NEWPID) {
        Err(errno) if is_refusal(errno) => {
            tell(writer, Found::NoNamespace(errno.raw_os_error()));
            return Ok(());
        }
        made => made?,
    }
    let inside = match sys::fork()? {
        Fork::Child => {
            let made = new_file_system("proc", &[], MountAttrFlags::empty());
            tell(
                writer,
                match made {
                    Ok(_) => Found::Own,
                    Err(errno) if is_refusal(errno) => Found::NoProc(errno.raw_os_error()),
                    Err(errno) => Found::Unknown(errno.raw_os_error()),
                },
            );
            exit(0)
        }
        Fork::Parent(inside) => inside,
    };
    retry_on_intr(|| waitpid(Some(inside), WaitOptions::empty())).map(drop)
}

/// Whether this machine forbids it, or does not know it. NOSPC and USERS are limits on namespaces.
fn is_refusal(errno: Errno) -> bool {
    [Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::INVAL, Errno::NODEV, Errno::NOSPC, Errno::USERS]
        .contains(&errno)
}

/// Nobody hears it only when the builder is gone.
fn tell(mut writer: &PipeWriter, found: Found) {
    let _ = writer.write_all(&serde_json::to_vec(&found).unwrap_or_default());
}

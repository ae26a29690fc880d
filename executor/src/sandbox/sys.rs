//! The system calls that neither `std` nor `rustix` offers as safe functions: the only `unsafe` code of the project.
//!
//! Every function here is safe to call: what its system call demands is checked or made sure by its type.

use rustix::{
    io::Errno,
    thread::{UnshareFlags, unshare_unsafe},
};

/// Gives the calling thread a mount namespace (and root and working directory) of its own.
///
/// # Errors
/// What unshare(2) says.
pub fn unshare_thread_mounts() -> Result<(), Errno> {
    // SAFETY: unshare is unsafe for CLONE_FILES only, which is not among the flags.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
}

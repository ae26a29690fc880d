//! System calls for which there is no safe function, since nobody but an attacker wants them.
//!
//! The only `unsafe` beside the sandbox's own: a probe has to ask the kernel for what no library offers.

use std::ffi::CStr;

use libc::{c_long, c_void, iovec};
use rustix::io::Errno;

/// More than any call of these probes writes.
pub type Room = [u8; 4096];

/// An argument of a system call.
#[derive(Debug)]
pub enum Argument<'a> {
    /// Flags, a descriptor, a size; as a pointer it leads nowhere.
    Number(u32),
    /// A string.
    Text(&'a CStr),
    /// Memory that can be read and written.
    Room(&'a mut Room),
}

/// -1 for whatever takes 32 bits; for a pointer an address where nothing is.
pub const NONSENSE: Argument<'static> = Argument::Number(u32::MAX);

/// Makes a system call that neither ends, copies nor replaces this process, nor changes its mappings.
pub fn call(number: c_long, arguments: &mut [Argument<'_>]) -> Result<c_long, Errno> {
    let mut words: [c_long; 6] = [0; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = match argument {
            Argument::Number(number) => c_long::from(*number),
            Argument::Text(text) => text.as_ptr() as c_long,
            Argument::Room(room) => room.as_mut_ptr() as c_long,
        };
    }
    let [a, b, c, d, e, f] = words;
    // SAFETY: what is a pointer is one to memory that is borrowed for this call, ends in NUL where it is a string, and is
    // larger than what these calls write where it is not; a number is no address of ours, for a position-independent
    // program of 64 bits has nothing below 4 GiB.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if answer == -1 { Err(last_errno()) } else { Ok(answer) }
}

/// Makes a child with these namespaces, which ends at once.
pub fn clone_into(namespaces: u32) -> Result<(), Errno> {
    let flags = c_long::from(namespaces) | c_long::from(libc::SIGCHLD);
    // SAFETY: without a stack and CLONE_VM this is fork(2), and this program has one thread.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(last_errno()),
        // SAFETY: it ends the child, and runs nothing of ours on the way.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

/// Reads a byte of another process.
pub fn read_memory(pid: u32) -> Result<(), Errno> {
    let mut byte = 0_u8;
    let local = iovec { iov_base: (&raw mut byte).cast::<c_void>(), iov_len: 1 };
    let remote = iovec { iov_base: 0x1000 as *mut c_void, iov_len: 1 };
    // All of the word counts: the kernel refuses flags it does not know, before it looks who asks.
    const ONE: c_long = 1;
    const NO_FLAGS: c_long = 0;
    let (call, pid) = (libc::SYS_process_vm_readv, c_long::from(pid));
    // SAFETY: one byte is written, to `byte`; the other address is one of the other process.
    let read = unsafe { libc::syscall(call, pid, &raw const local, ONE, &raw const remote, ONE, NO_FLAGS) };
    match (read, last_errno()) {
        // It may look, and there is nothing.
        (-1, Errno::FAULT) => Ok(()),
        (-1, errno) => Err(errno),
        _ => Ok(()),
    }
}

/// Asks for the process id by the 32-bit way into a 64-bit kernel, and gives the answer; a filter may end us for it.
#[cfg(target_arch = "x86_64")]
pub fn getpid_of_i386() -> i32 {
    let mut answer = 20;
    // SAFETY: system call 20 of i386 is getpid; it takes and changes nothing but these registers.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    answer
}

fn last_errno() -> Errno {
    crate::errno_of(&std::io::Error::last_os_error())
}

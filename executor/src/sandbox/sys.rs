//! The system calls that neither `std` nor `rustix` offers as safe functions: the only `unsafe` code of the project.
//!
//! Every function here is safe to call: what its system call demands is checked or made sure by its types.

use std::{
    ffi::{CString, c_int, c_long, c_void},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use libc::sock_filter;
use rustix::{
    io::Errno,
    mount::MountAttrFlags,
    process::{Pid, Signal},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Which side of a [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, and the new one's id.
    Parent(Pid),
}

/// Copies this process.
///
/// # Errors
/// `EDEADLK` when the process has more than one thread: the child could wait for a lock that a thread it does not have
/// holds. Else what fork(2) says.
pub fn fork() -> Result<Fork, Errno> {
    wait_for_ended_threads()?;
    // SAFETY: one thread, so every lock in the process is free or held by the thread that goes on in the child.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid).expect("fork returns a positive id"))),
    }
}

/// A thread that has been waited for is still there for a moment: the kernel says that it has ended before it has.
fn wait_for_ended_threads() -> Result<(), Errno> {
    const ATTEMPTS: u32 = 1000;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
    for _ in 0..ATTEMPTS {
        if is_single_threaded() {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Err(Errno::DEADLK)
}

/// Whether this process has one thread, as far as `/proc` can tell; without `/proc` it does not count as one.
pub fn is_single_threaded() -> bool {
    // Two links for the directory itself, one for each thread.
    std::fs::metadata("/proc/self/task").is_ok_and(|task| std::os::unix::fs::MetadataExt::nlink(&task) == 3)
}

/// Has a program be told to end (SIGTERM) when the thread that starts it ends, also by `kill -9`: whoever starts it
/// has to wait for it in the same thread.
pub fn end_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let us = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        // We may have ended before it asked.
        if rustix::process::getppid() == Some(us) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
    unsafe { command.pre_exec(ask) };
}

/// Has a program, and those that it starts, write no files of more than so many bytes (SIGXFSZ), or of less where they already
/// may write less only.
pub fn limit_files(command: &mut std::process::Command, bytes: u64) {
    use std::os::unix::process::CommandExt;
    let limit = move || {
        let kind = rustix::process::Resource::Fsize;
        let own = rustix::process::getrlimit(kind);
        let current = Some(own.current.map_or(bytes, |own| own.min(bytes)));
        Ok(rustix::process::setrlimit(kind, rustix::process::Rlimit { current, maximum: own.maximum })?)
    };
    // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
    unsafe { command.pre_exec(limit) };
}

/// Has a program run in a mount namespace of its own, in which the directory it starts in, and all below, opens no device.
///
/// # Errors
/// The path has a NUL.
pub fn start_without_devices(
    command: &mut std::process::Command,
    directory: &std::path::Path,
) -> Result<(), Errno> {
    use rustix::{
        fs::CWD,
        mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree},
    };
    use std::os::unix::{ffi::OsStrExt, process::CommandExt};
    let directory = CString::new(directory.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let cover = move || {
        unshare(UnshareFlags::NEWNS)?;
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let cover = open_tree(CWD, directory.as_c_str(), flags)?;
        restrict_mount(&cover, MountAttrFlags::MOUNT_ATTR_NODEV)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&cover, c"", CWD, directory.as_c_str(), flags)?;
        Ok(rustix::process::chdir(directory.as_c_str())?)
    };
    // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
    unsafe { command.pre_exec(cover) };
    Ok(())
}

/// Gives the calling thread, which must be the only one for some of them, namespaces of its own.
///
/// # Errors
/// What unshare(2) says; `EINVAL` for `CLONE_FILES`, which could take descriptors from under their owners.
pub fn unshare(namespaces: UnshareFlags) -> Result<(), Errno> {
    if namespaces.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL);
    }
    // SAFETY: unshare is unsafe for CLONE_FILES only, which was refused above.
    unsafe { unshare_unsafe(namespaces) }
}

/// Blocks SIGCHLD and hands it out by a descriptor instead, which becomes readable when a child ends.
///
/// # Errors
/// What sigprocmask(2) and signalfd(2) say.
pub fn child_signals() -> Result<OwnedFd, Errno> {
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: `set` is initialised; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) })?;
    // SAFETY: `set` is initialised, and -1 asks for a new descriptor.
    let descriptor = check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sets every signal to its default action and unblocks all: what a new program expects.
pub fn reset_signals() {
    /// `struct kernel_sigaction` with the default action, no flags and an empty mask: all zeroes on every architecture.
    static DEFAULT: [u64; 4] = [0; 4];
    const SIGNAL_SET_SIZE: usize = 8;
    for signal in 1..=64 {
        // SAFETY: the kernel reads the structure, and the default action runs no code of ours. The C library's own
        // function would refuse the signals it keeps for itself. SIGKILL and SIGSTOP refuse, and need no reset.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const DEFAULT,
                std::ptr::null::<u64>(),
                SIGNAL_SET_SIZE,
            )
        };
    }
    let none = signal_set(&[]);
    // SAFETY: `none` is initialised; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) };
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set, and fails for no valid pointer.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in signals {
        // SAFETY: `set` is initialised.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}

/// Sends a signal to every process this one may signal, itself excepted: as PID 1, to all of its namespace; in a Landlock
/// domain that scopes signals, to all that are in it.
pub fn signal_all_others(signal: Signal) {
    // SAFETY: kill touches no memory. It fails when there is nobody, which is as good.
    unsafe { libc::kill(-1, signal.as_raw()) };
}

/// Replaces this process's program; returns only when that fails.
pub fn execve(path: &CString, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    last_error()
}

/// Marks every descriptor from 3 on to be closed by the next exec.
///
/// # Errors
/// What close_range(2) says.
pub fn close_rest_on_exec() -> Result<(), Errno> {
    // SAFETY: CLOEXEC closes nothing now, so no owner loses its descriptor.
    let result =
        unsafe { syscall3(libc::SYS_close_range, 3, libc::c_uint::MAX as usize, CLOSE_RANGE_CLOEXEC) };
    result.map(drop)
}

const CLOSE_RANGE_CLOEXEC: usize = 1 << 2;

/// Loads a system call filter. Without no_new_privs this needs CAP_SYS_ADMIN in the user namespace.
///
/// # Errors
/// What seccomp(2) says.
pub fn load_seccomp(program: &[sock_filter]) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as usize;
    let operation = libc::SECCOMP_SET_MODE_FILTER as usize;
    // SAFETY: the kernel copies `len` instructions from `filter` during the call and writes nothing.
    unsafe { syscall3(libc::SYS_seccomp, operation, flags, &raw const program as usize) }.map(drop)
}

/// Joins a new, empty session keyring, so the one of the user who builds is out of reach. A kernel without keyrings
/// has nothing to hide.
///
/// # Errors
/// What keyctl(2) says.
pub fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: a null name makes an anonymous keyring; no memory is touched.
    match unsafe { syscall3(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0) } {
        Ok(_) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The first Landlock version that knows scopes.
pub const LANDLOCK_ABI_WITH_SCOPES: u32 = 6;

/// The Landlock version of this kernel; 0 where it has none or it is switched off.
pub fn landlock_abi() -> u32 {
    const LANDLOCK_CREATE_RULESET_VERSION: usize = 1;
    // SAFETY: with this flag and no attributes the call only answers a number.
    let version = unsafe { syscall3(LANDLOCK_CREATE_RULESET, 0, 0, LANDLOCK_CREATE_RULESET_VERSION) };
    version.ok().and_then(|version| u32::try_from(version).ok()).unwrap_or(0)
}

/// Shuts this process and its children off from abstract sockets and signals outside; restricts no file. Needs
/// [`LANDLOCK_ABI_WITH_SCOPES`], and CAP_SYS_ADMIN in the user namespace unless no_new_privs is set.
///
/// # Errors
/// What landlock_create_ruleset(2) and landlock_restrict_self(2) say.
pub fn landlock_scope() -> Result<(), Errno> {
    /// `struct landlock_ruleset_attr`, ABI 6.
    #[repr(C)]
    struct Attributes {
        handled_access_fs: u64,
        handled_access_net: u64,
        scoped: u64,
    }
    const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
    const SCOPE_SIGNAL: u64 = 2;
    let scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL;
    let attributes = Attributes { handled_access_fs: 0, handled_access_net: 0, scoped };
    let (pointer, size) = (&raw const attributes as usize, size_of::<Attributes>());
    // SAFETY: the kernel reads `size` bytes of the structure during the call.
    let ruleset = unsafe { syscall3(LANDLOCK_CREATE_RULESET, pointer, size, 0) }?;
    let ruleset = c_int::try_from(ruleset).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made it for us and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    // SAFETY: takes a descriptor that is open during the call.
    unsafe { syscall3(LANDLOCK_RESTRICT_SELF, ruleset.as_raw_fd() as usize, 0, 0) }.map(drop)
}

// The same numbers on every architecture.
const LANDLOCK_CREATE_RULESET: c_long = 444;
const LANDLOCK_RESTRICT_SELF: c_long = 446;

/// Adds flags to a mount, attached or not, and to everything below it; those it has stay.
///
/// # Errors
/// What mount_setattr(2) says; `ENOSYS` before Linux 5.12.
pub fn restrict_mount(mount: impl AsFd, flags: MountAttrFlags) -> Result<(), Errno> {
    set_mount_flags(mount, flags, libc::AT_RECURSIVE)
}

/// The same for the mount alone, whatever is mounted below it.
///
/// # Errors
/// As those of [`restrict_mount`].
pub fn restrict_mount_alone(mount: impl AsFd, flags: MountAttrFlags) -> Result<(), Errno> {
    set_mount_flags(mount, flags, 0)
}

fn set_mount_flags(mount: impl AsFd, flags: MountAttrFlags, depth: c_int) -> Result<(), Errno> {
    /// `struct mount_attr`.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes { set: flags.bits().into(), clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is an empty C string, and the kernel reads the size given of the structure during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            c_long::from(mount.as_fd().as_raw_fd()),
            c"".as_ptr(),
            c_long::from(libc::AT_EMPTY_PATH | depth),
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
/// What socket(2) and netdevice(7) say.
pub fn bring_loopback_up() -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq with a name that ends in a zero and writes nothing.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// # Safety
/// The arguments must be what the call wants; pointers among them must be valid for what it does with them.
unsafe fn syscall3(number: c_long, first: usize, second: usize, third: usize) -> Result<c_long, Errno> {
    // SAFETY: promised by the caller.
    let result = unsafe { libc::syscall(number, first as *const c_void, second, third) };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

fn check(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_the_thread_that_started_it() {
        use std::{os::unix::process::ExitStatusExt, process::Command};
        let start = || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "read never"]).stdin(std::process::Stdio::piped());
            end_with_us(&mut command);
            command.spawn().expect("there is a shell")
        };
        let mut program = std::thread::spawn(start).join().expect("no panic");
        // Else waiting for it would close it, and `read` would end.
        let _input = program.stdin.take();
        assert_eq!(program.wait().expect("ours").signal(), Some(libc::SIGTERM));
    }
}

//! Ways out of the sandbox, each tried: what is told is `refused`, or what was done.

use std::{
    fs,
    io::{Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::{SocketAddr, UnixStream},
        },
    },
};

use libc::c_long;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open},
    io::Errno,
    process::{Pid, Signal, getppid, kill_process, test_kill_process},
};

use crate::{
    Line, children, errno_of,
    raw::{self, Argument, NONSENSE},
    verdict,
};

/// Files through which root changes the whole machine.
const SETTINGS: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/mtrr",
    "/proc/sys/user/max_user_namespaces",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/module/loop/parameters/max_loop",
    "/sys/devices/system/cpu/cpu1/online",
];

/// Name, kind, major and minor number of devices no step has.
const DEVICES: &[(&str, FileType, u32, u32)] = &[
    ("mem", FileType::CharacterDevice, 1, 1),
    ("port", FileType::CharacterDevice, 1, 4),
    ("kmsg", FileType::CharacterDevice, 1, 11),
    ("console", FileType::CharacterDevice, 5, 1),
    ("tty0", FileType::CharacterDevice, 4, 0),
    ("fuse", FileType::CharacterDevice, 10, 229),
    ("tun", FileType::CharacterDevice, 10, 200),
    ("kvm", FileType::CharacterDevice, 10, 232),
    ("loop-control", FileType::CharacterDevice, 10, 237),
    ("loop0", FileType::BlockDevice, 7, 0),
    ("sda", FileType::BlockDevice, 8, 0),
    ("vda", FileType::BlockDevice, 254, 0),
    // A whiteout of overlayfs: a step that could make one would delete by mknod what it may not.
    ("nvme0n1", FileType::BlockDevice, 259, 0),
];

/// What `/proc` has of the process that started this one, which is the sandbox's own.
const OF_PARENT: &[&str] = &[
    "exe",
    "mem",
    "environ",
    "root/.",
    "cwd/.",
    "fd/0",
    "maps",
    "auxv",
    "io",
    "ns/mnt",
    "map_files",
    "personality",
];

/// All of it.
pub fn all() -> Vec<Line> {
    let mut lines = Vec::new();
    let mut tell =
        |name: &str, result: Result<(), Errno>| lines.push((format!("escape.{name}"), verdict(result)));
    for path in SETTINGS {
        tell(&format!("write{path}"), write(path));
    }
    for device in DEVICES {
        tell(&format!("device-in-tmp.{}", device.0), device_node("/tmp", *device));
        tell(&format!("device-in-dev.{}", device.0), device_node("/dev", *device));
    }
    let parent = getppid();
    let path = |name: &str| format!("/proc/{}/{name}", parent.map_or(1, number));
    for name in OF_PARENT {
        tell(&format!("parent.{name}"), look(&path(name)));
    }
    tell("parent.overwrite-program", open(path("exe"), OFlags::RDWR, Mode::empty()).map(drop));
    tell("parent.write-memory", open(path("mem"), OFlags::RDWR, Mode::empty()).map(drop));
    for (name, result) in on_parent(parent) {
        tell(&format!("parent.{name}"), result);
    }
    for (name, result) in mounts().into_iter().chain(handles()).chain(machine()) {
        tell(name, result);
    }
    tell("dot-dot-of-root", dot_dot());
    tell("signal-others", on_others(|pid| test_kill_process(pid).is_ok()));
    tell("limit-others", on_others(|pid| take_core_dumps(pid).is_ok()));
    tell("trace-others", on_others(|pid| trace(number(pid)).is_ok()));
    tell("read-memory-of-others", on_others(|pid| raw::read_memory(number(pid)).is_ok()));
    tell("abstract-socket", abstract_socket());
    tell("path-socket", path_socket());
    tell("kernel-log", open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).map(drop));
    tell("kernel-memory", read_some("/proc/kcore"));
    lines.extend(children::all());
    lines
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn write(path: &str) -> Result<(), Errno> {
    open(path, OFlags::WRONLY, Mode::empty()).map(drop)
}

/// Opens it and reads something: the kernel lets anybody open some of these, and then says no.
fn look(path: &str) -> Result<(), Errno> {
    let failed = |error| errno_of(&error);
    let found = fs::metadata(path).map_err(failed)?;
    if !found.is_dir() {
        // A memory has nothing at its beginning.
        return match read_some(path) {
            Err(Errno::IO) => Ok(()),
            answer => answer,
        };
    }
    match fs::read_dir(path).map_err(failed)?.next() {
        None => Err(Errno::NOENT),
        Some(entry) => entry.map(drop).map_err(failed),
    }
}

fn read_some(path: &str) -> Result<(), Errno> {
    let mut file = fs::File::open(path).map_err(|error| errno_of(&error))?;
    match file.read(&mut [0; 16]) {
        Ok(0) => Err(Errno::NXIO),
        Ok(_) => Ok(()),
        Err(error) => Err(errno_of(&error)),
    }
}

/// Making one is nothing; what counts is that it opens.
fn device_node(place: &str, (name, kind, major, minor): (&str, FileType, u32, u32)) -> Result<(), Errno> {
    let path = format!("{place}/probe-{name}");
    let mode = Mode::RUSR | Mode::WUSR;
    let made = mknodat(CWD, &path, kind, mode, makedev(major, minor));
    // NXIO and NODEV say that the kernel has looked for the device, and there is none on this machine.
    let opened = made.and_then(|()| match open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
        Err(Errno::NXIO | Errno::NODEV | Errno::BUSY) => Ok(()),
        answer => answer.map(drop),
    });
    let _ = fs::remove_file(&path);
    opened
}

/// Without stopping it. Whom it has hold of it lets go with its own end.
fn trace(pid: u32) -> Result<(), Errno> {
    const PTRACE_SEIZE: u32 = 0x4206;
    raw::call(libc::SYS_ptrace, &mut [Argument::Number(PTRACE_SEIZE), Argument::Number(pid)]).map(drop)
}

type Attempt = (&'static str, Result<(), Errno>);

fn on_parent(parent: Option<Pid>) -> Vec<Attempt> {
    let pid = parent.map_or(1, number);
    let call = |name: c_long, arguments: &mut [Argument<'_>]| raw::call(name, arguments).map(drop);
    let pid_argument = || Argument::Number(pid);
    let by_descriptor = raw::call(libc::SYS_pidfd_open, &mut [pid_argument(), Argument::Number(0)])
        .map(|descriptor| u32::try_from(descriptor).unwrap_or_default());
    let with_descriptor = |number: c_long| {
        let kill = Argument::Number(Signal::KILL.as_raw().unsigned_abs());
        by_descriptor.and_then(|fd| call(number, &mut [Argument::Number(fd), kill, Argument::Number(0)]))
    };
    vec![
        ("trace", trace(pid)),
        ("read-memory", raw::read_memory(pid)),
        ("kill", parent.map_or(Err(Errno::SRCH), |parent| kill_process(parent, Signal::KILL))),
        ("kill-by-descriptor", with_descriptor(libc::SYS_pidfd_send_signal)),
        ("take-descriptor", with_descriptor(libc::SYS_pidfd_getfd)),
        ("join-namespaces", with_descriptor(libc::SYS_setns)),
    ]
}

fn mounts() -> Vec<Attempt> {
    let text = |text: &'static std::ffi::CStr| Argument::Text(text);
    let call = |name: c_long, arguments: &mut [Argument<'_>]| raw::call(name, arguments).map(drop);
    let flags = |flags: u64| Argument::Number(u32::try_from(flags).unwrap_or(u32::MAX));
    let mount = |source, target, kind, options: u64| {
        call(
            libc::SYS_mount,
            &mut [text(source), text(target), text(kind), flags(options), Argument::Number(0)],
        )
    };
    const TREE_CLONE: u32 = 1;
    vec![
        ("mount-tmpfs", mount(c"none", c"/tmp", c"tmpfs", 0)),
        ("mount-proc", mount(c"proc", c"/tmp", c"proc", 0)),
        ("mount-cgroups", mount(c"none", c"/tmp", c"cgroup", 0)),
        ("mount-overlay", mount(c"none", c"/tmp", c"overlay", 0)),
        ("bind-root", mount(c"/", c"/tmp", c"", libc::MS_BIND)),
        ("mount-over-proc", mount(c"/tmp", c"/proc", c"", libc::MS_BIND)),
        ("remount-settings", mount(c"", c"/proc/sys", c"", libc::MS_REMOUNT | libc::MS_BIND)),
        ("remount-devices", mount(c"", c"/dev", c"", libc::MS_REMOUNT | libc::MS_BIND)),
        ("share-mounts", mount(c"", c"/", c"", libc::MS_SHARED)),
        ("unmount-mask", call(libc::SYS_umount2, &mut [text(c"/proc/kcore"), Argument::Number(2)])),
        ("pivot-root", call(libc::SYS_pivot_root, &mut [text(c"/tmp"), text(c"/tmp")])),
        ("open-file-system", call(libc::SYS_fsopen, &mut [text(c"tmpfs"), Argument::Number(0)])),
        ("clone-mount", call(libc::SYS_open_tree, &mut [NONSENSE, text(c"/"), Argument::Number(TREE_CLONE)])),
    ]
}

/// A file by its number on disk, past every directory above it (the "shocker" of 2014).
fn handles() -> Vec<Attempt> {
    let root = open("/etc/resolv.conf", OFlags::RDONLY, Mode::empty());
    // struct file_handle: eight bytes, FILEID_INO32_GEN, inode 2.
    let mut handle = [0; 4096];
    handle[..16].copy_from_slice(&[8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let opened = root.and_then(|root| {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&root).unsigned_abs();
        let arguments = &mut [Argument::Number(descriptor), Argument::Room(&mut handle), Argument::Number(0)];
        raw::call(libc::SYS_open_by_handle_at, arguments).map(drop)
    });
    vec![("open-by-handle", opened)]
}

/// What concerns the whole machine.
fn machine() -> Vec<Attempt> {
    let call = |name: c_long, arguments: &mut [Argument<'_>]| raw::call(name, arguments).map(drop);
    let mut time = [0; 4096];
    let mut adjustment = [0; 4096];
    adjustment[0] = 1; // ADJ_OFFSET, of nothing
    const KEYCTL_READ: u32 = 11;
    vec![
        ("set-host-name", call(libc::SYS_sethostname, &mut [Argument::Text(c"mine"), Argument::Number(4)])),
        (
            "set-domain-name",
            call(libc::SYS_setdomainname, &mut [Argument::Text(c"mine"), Argument::Number(4)]),
        ),
        ("set-clock", call(libc::SYS_clock_settime, &mut [Argument::Number(0), Argument::Room(&mut time)])),
        ("adjust-clock", call(libc::SYS_adjtimex, &mut [Argument::Room(&mut adjustment)])),
        (
            "read-keys",
            call(libc::SYS_keyctl, &mut [Argument::Number(KEYCTL_READ), Argument::Number(-4_i32 as u32)]),
        ),
        (
            "raw-socket",
            call(libc::SYS_socket, &mut [Argument::Number(2), Argument::Number(3), Argument::Number(1)]),
        ),
        (
            "raise-limit",
            rustix::process::setrlimit(
                rustix::process::Resource::Nproc,
                rustix::process::Rlimit { current: None, maximum: None },
            ),
        ),
        ("lower-nice", rustix::process::nice(-5).map(drop)),
        (
            "huge-pages-of-root",
            fs::OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/proc/sys/vm/nr_hugepages")
                .map(drop)
                .map_err(|e| errno_of(&e)),
        ),
    ]
}

fn dot_dot() -> Result<(), Errno> {
    let identity =
        |path: &str| fs::metadata(path).map(|it| (it.dev(), it.ino())).map_err(|error| errno_of(&error));
    if identity("/")? == identity("/../../../..")? { Err(Errno::PERM) } else { Ok(()) }
}

/// Does something to every process there is to see that is none of the step's: this one has no children now, and its parent
/// is the step's init.
fn on_others(mut does: impl FnMut(Pid) -> bool) -> Result<(), Errno> {
    let own = [Some(rustix::process::getpid()), getppid()];
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let seen: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Without /proc, all that there can be in a container that has just begun.
    let numbers = if seen.is_empty() { (1..=32_768).collect() } else { seen };
    let others = numbers.into_iter().filter_map(Pid::from_raw);
    // Where /proc is another namespace's, most of these numbers mean nothing here.
    let met = others.filter(|pid| !own.contains(&Some(*pid))).filter(|pid| does(*pid)).count();
    if met == 0 { Err(Errno::PERM) } else { Ok(()) }
}

/// Whoever may set this limit of another process may set those that end it.
fn take_core_dumps(pid: Pid) -> Result<(), Errno> {
    const RLIMIT_CORE: u32 = 4;
    let mut zeros = [0; 4096];
    let arguments =
        &mut [Argument::Number(number(pid)), Argument::Number(RLIMIT_CORE), Argument::Room(&mut zeros)];
    raw::call(libc::SYS_prlimit64, arguments).map(drop)
}

/// The name of a socket that listens outside, without a directory.
fn abstract_socket() -> Result<(), Errno> {
    let name = std::env::var("PROBE_ABSTRACT").unwrap_or_default();
    let address = SocketAddr::from_abstract_name(name).map_err(|error| errno_of(&error))?;
    UnixStream::connect_addr(&address).map(drop).map_err(|error| errno_of(&error))
}

fn path_socket() -> Result<(), Errno> {
    let path = std::env::var("PROBE_SOCKET").unwrap_or_default();
    let stream = UnixStream::connect(path).map_err(|error| errno_of(&error));
    stream.and_then(|mut stream| stream.write_all(b"?").map_err(|error| errno_of(&error)))
}

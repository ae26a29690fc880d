//! The system call filter, asked from inside. Arguments are nonsense, so that a call which is let through does nothing:
//! what is refused says EPERM before the kernel has looked at them, and all else is allowed.

use libc::c_long;
use rustix::io::Errno;

use crate::{
    Line, errno_name,
    raw::{self, Argument, NONSENSE},
};

/// A call and its name.
macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Docker's list of what nobody without further capabilities may ask for, and what it has forgotten.
const DANGEROUS: &[(&str, c_long)] = calls! {
    SYS_acct SYS_add_key SYS_bpf SYS_clock_settime SYS_delete_module SYS_fanotify_init SYS_finit_module SYS_fsconfig
    SYS_fsmount SYS_fsopen SYS_fspick SYS_get_mempolicy SYS_init_module SYS_io_uring_enter SYS_io_uring_register
    SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl SYS_lookup_dcookie SYS_mbind SYS_migrate_pages SYS_mount
    SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_nfsservctl SYS_open_by_handle_at SYS_open_tree
    SYS_perf_event_open SYS_pidfd_getfd SYS_pivot_root SYS_process_madvise SYS_quotactl SYS_quotactl_fd SYS_reboot
    SYS_request_key SYS_set_mempolicy SYS_set_mempolicy_home_node SYS_setdomainname SYS_sethostname SYS_setns
    SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2 SYS_unshare SYS_userfaultfd SYS_vhangup
};

#[cfg(target_arch = "x86_64")]
const DANGEROUS_HERE: &[(&str, c_long)] = calls! {
    SYS__sysctl SYS_ioperm SYS_iopl SYS_kexec_file_load SYS_sysfs SYS_uselib SYS_ustat
};
#[cfg(not(target_arch = "x86_64"))]
const DANGEROUS_HERE: &[(&str, c_long)] = &[];

/// What builds need, debuggers and sanitizers among them.
const NEEDED: &[(&str, c_long)] = calls! {
    SYS_capset SYS_chroot SYS_copy_file_range SYS_epoll_create1 SYS_faccessat2 SYS_fchownat SYS_flock SYS_inotify_init1
    SYS_io_setup SYS_landlock_create_ruleset SYS_linkat SYS_membarrier SYS_memfd_create SYS_mknodat SYS_name_to_handle_at
    SYS_openat2 SYS_pidfd_open SYS_prctl SYS_prlimit64 SYS_process_vm_readv SYS_ptrace SYS_renameat2
    SYS_sched_setaffinity SYS_seccomp SYS_setgroups SYS_setpriority SYS_setxattr SYS_splice SYS_statx SYS_symlinkat
};

/// Newer than anything the filter knows: a program has to hear that there is no such call, and then takes an older one.
const UNKNOWN: &[(&str, c_long)] = &[("467", 467), ("500", 500), ("1023", 1023)];

/// Family, type and protocol of a socket, and its name; the families nobody may have are answered for by their numbers.
const SOCKETS: &[(&str, i32, i32, i32)] = &[
    ("unix", libc::AF_UNIX, libc::SOCK_STREAM, 0),
    ("inet", libc::AF_INET, libc::SOCK_STREAM, 0),
    ("inet6", libc::AF_INET6, libc::SOCK_DGRAM, 0),
    ("inet-raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    ("netlink-route", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
    ("netlink-uevent", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT),
    ("netlink-netfilter", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
    ("netlink-xfrm", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM),
    ("netlink-crypto", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_CRYPTO),
    ("netlink-generic", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
    ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
    ("kernel-crypto", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ("virtual-machine", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 0),
    ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
    ("tipc", libc::AF_TIPC, libc::SOCK_STREAM, 0),
    ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
    ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
    ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
    ("appletalk", libc::AF_APPLETALK, libc::SOCK_DGRAM, 0),
    ("smc", 43, libc::SOCK_STREAM, 0),
    ("no-such-family", 250, libc::SOCK_STREAM, 0),
];

const PERSONALITIES: &[(&str, u32)] = &[
    ("question", u32::MAX),
    ("linux", 0),
    ("uname26", 0x0002_0000),
    ("no-randomisation", 0x0004_0000),
    ("read-implies-exec", 0x0040_0000),
];

const NAMESPACES: &[(&str, i32)] = &[
    ("user", libc::CLONE_NEWUSER),
    ("mount", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// Requests to a terminal: two that type for the user, two that programs need.
const REQUESTS: &[(&str, u32)] =
    &[("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C), ("TCGETS", 0x5401), ("TIOCGWINSZ", 0x5413)];

/// All of it.
pub fn all() -> Vec<Line> {
    let mut lines = Vec::new();
    for (name, number) in [DANGEROUS, DANGEROUS_HERE, NEEDED, UNKNOWN].concat() {
        lines.push((format!("call.{}", name.trim_start_matches("SYS_")), answer(ask(number))));
    }
    let clone3 = raw::call(libc::SYS_clone3, &mut [NONSENSE, NONSENSE]);
    lines.push(("call.clone3".to_owned(), answer(clone3.map(drop))));
    #[cfg(target_arch = "x86_64")]
    lines.push(("call.x32".to_owned(), answer(ask(0x4000_0000 | libc::SYS_getpid))));
    lines.extend(SOCKETS.iter().map(|(name, family, kind, protocol)| {
        let answer = socket(libc::SYS_socket, *family, *kind, *protocol);
        (format!("socket.{name}"), answer)
    }));
    for (name, family) in [("unix", libc::AF_UNIX), ("virtual-machine", libc::AF_VSOCK)] {
        lines.push((format!("socketpair.{name}"), socketpair(family)));
    }
    for (name, persona) in PERSONALITIES {
        let asked = raw::call(libc::SYS_personality, &mut [Argument::Number(*persona)]);
        lines.push((format!("personality.{name}"), answer(asked.map(drop))));
    }
    // What the last one of them would have left.
    let _ = raw::call(libc::SYS_personality, &mut [Argument::Number(0)]);
    for (name, flag) in NAMESPACES {
        let flag = u32::try_from(*flag).unwrap_or_default();
        lines.push((format!("clone.{name}"), answer(raw::clone_into(flag))));
        let unshared = raw::call(libc::SYS_unshare, &mut [Argument::Number(flag)]);
        lines.push((format!("unshare.{name}"), answer(unshared.map(drop))));
    }
    for (name, request) in REQUESTS {
        let mut room = [0; 4096];
        let mut arguments = [Argument::Number(0), Argument::Number(*request), Argument::Room(&mut room)];
        lines.push((format!("ioctl.{name}"), answer(raw::call(libc::SYS_ioctl, &mut arguments).map(drop))));
    }
    lines
}

fn ask(number: c_long) -> Result<(), Errno> {
    raw::call(number, &mut [NONSENSE, NONSENSE, NONSENSE, NONSENSE, NONSENSE, NONSENSE]).map(drop)
}

fn answer(asked: Result<(), Errno>) -> String {
    match asked {
        Err(errno @ (Errno::PERM | Errno::NOSYS)) => errno_name(errno),
        _ => "allowed".to_owned(),
    }
}

fn number(value: i32) -> Argument<'static> {
    Argument::Number(u32::try_from(value).unwrap_or(u32::MAX))
}

/// A kernel that was built without a family says the same as the filter; the number is refused either way.
fn socket(call: c_long, family: i32, kind: i32, protocol: i32) -> String {
    match raw::call(call, &mut [number(family), number(kind), number(protocol)]) {
        Ok(_) => "allowed".to_owned(),
        Err(errno) => errno_name(errno),
    }
}

fn socketpair(family: i32) -> String {
    let mut room = [0; 4096];
    let mut arguments = [number(family), number(libc::SOCK_STREAM), number(0), Argument::Room(&mut room)];
    match raw::call(libc::SYS_socketpair, &mut arguments) {
        Ok(_) => "allowed".to_owned(),
        Err(errno) => errno_name(errno),
    }
}

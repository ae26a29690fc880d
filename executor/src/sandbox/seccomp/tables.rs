//! What a step may not ask the kernel, and what it may ask in a few ways only: the tables that the filter is made of.

use libc::c_long;

// What the libc crate does not name for every C library.
const LSM_GET_SELF_ATTR: c_long = 459;
const LSM_SET_SELF_ATTR: c_long = 460;
const LSM_LIST_MODULES: c_long = 461;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: c_long = 294;
#[cfg(target_arch = "x86_64")]
const CREATE_MODULE: c_long = 174;
#[cfg(target_arch = "x86_64")]
const GET_KERNEL_SYMS: c_long = 177;
#[cfg(target_arch = "x86_64")]
const QUERY_MODULE: c_long = 178;

/// Calls that answer EPERM, but to what may build in namespaces of its own ([`Nesting::Allowed`]). Each of these asks the
/// kernel for a capability over the namespace it is about, which a command has in those that it has made and in no other; and a
/// new namespace begins with a new keyring, which is all that is given of `keyctl`.
///
/// [`Nesting::Allowed`]: crate::sandbox::plan::Nesting::Allowed
pub const NESTED: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_keyctl,
];

/// Calls that answer EPERM to all, whatever their arguments.
pub const DENIED: &[c_long] = &[
    // Keys belong to users, not to namespaces.
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Large or easily abused parts of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init,
    // Ways around the file system's and other processes' boundaries.
    libc::SYS_open_by_handle_at,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    LSM_GET_SELF_ATTR,
    LSM_SET_SELF_ATTR,
    LSM_LIST_MODULES,
    // Placement of memory: lets one process slow down others.
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
];

/// The same for calls that only this architecture has: port access, and what nobody has needed for decades.
#[cfg(target_arch = "x86_64")]
pub const DENIED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_getpmsg,
    libc::SYS_putpmsg,
    libc::SYS_afs_syscall,
    libc::SYS_tuxcall,
    libc::SYS_security,
    libc::SYS_vserver,
    CREATE_MODULE,
    GET_KERNEL_SYMS,
    QUERY_MODULE,
];
#[cfg(target_arch = "aarch64")]
pub const DENIED_HERE: &[c_long] = &[];

/// Socket families a step may open; netlink has [`NETLINK_ALLOWED`] besides.
pub const FAMILIES: &[u32] = &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32];

/// Netlink protocols a step may open: what name resolution, `ip`, PAM and udev's tools ask for.
pub const NETLINK_ALLOWED: &[u32] = &[
    libc::NETLINK_ROUTE as u32,
    libc::NETLINK_SELINUX as u32,
    libc::NETLINK_AUDIT as u32,
    libc::NETLINK_KOBJECT_UEVENT as u32,
];

/// Personalities a step may take: Linux, 32-bit Linux, both with UNAME26, and the question.
pub const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// `clone` flags that make namespaces.
pub const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// What pushes characters into a terminal's input.
pub const TERMINAL_REQUESTS: &[u32] = &[libc::TIOCSTI as u32, libc::TIOCLINUX as u32];

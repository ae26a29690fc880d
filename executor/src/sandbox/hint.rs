//! From a failed step to the one setting that would lift it. A pure function of the step, the errno and what the
//! machine says about itself; no hint is better than a wrong one.

use std::{collections::BTreeMap, fs};

use rustix::io::Errno;

use crate::sandbox::{enter, files, ids::Range, lacking};

/// For who has none.
pub(super) const MOUNT_PROC: &str =
    "mount /proc, which tells of threads, ids and files: mount -t proc proc /proc";

/// For who may have no further process or thread.
pub const FEW_PROCESSES: &str = "raise the limit of processes and threads: `ulimit -u` of the user, TasksMax of a service, pids.max of a \
    container's control group (`docker run --pids-limit`)";

/// For who may open no further file.
pub const FEW_FILES: &str = "raise the limit of open files before the builder starts: `ulimit -n 1024`, LimitNOFILE=1024 of a service, \
    `--ulimit nofile=1024` of a container";

/// For who may write no long file.
pub const SHORT_FILES: &str = "raise the limit of a file's size before the builder starts: `ulimit -f unlimited`, LimitFSIZE=infinity of a \
    service; where there is none, use a file system that takes files of that length";

/// For a store that can be read only.
pub(crate) const READ_ONLY_STORE: &str = "the file system of the store is read-only, as the kernel makes one on whose disk it has found an error (`dmesg` tells): \
    mount it to be written to, or put the store elsewhere with --root";

/// The steps that make a namespace, each of one kind, and what the kernel calls that in `user.max_*_namespaces`.
const KINDS: [(&str, &str); 7] = [
    ("unshare user namespace", "user"),
    ("unshare mount namespace", "mnt"),
    ("unshare pid namespace", "pid"),
    ("unshare ipc namespace", "ipc"),
    ("unshare uts namespace", "uts"),
    ("unshare network namespace", "net"),
    ("unshare cgroup namespace", "cgroup"),
];

/// What the kernel lets the first process of a new user namespace have: the limit is then one of a namespace around it.
const LIMITED_OUTSIDE: u64 = i32::MAX as u64;

/// What a machine says about itself, as far as it explains refusals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu since 23.10).
    pub apparmor_restricts: bool,
    /// The values of `user.max_*_namespaces`, by the kind that stands there.
    pub max_namespaces: BTreeMap<&'static str, u64>,
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's older kernels).
    pub userns_clone_off: bool,
    /// This process runs under a system call filter, as in a container.
    pub filtered: bool,
    /// This process can gain nothing from setuid programs.
    pub no_new_privileges: bool,
    /// Nothing this process starts can have CAP_SYS_ADMIN outside of namespaces of its own.
    pub lacks_sys_admin: bool,
    /// It was in a user namespace of one id before it entered any.
    pub one_id: bool,
    /// This program's path, for an AppArmor profile.
    pub program: String,
}

impl Circumstances {
    /// Those of this machine; what cannot be read counts as not so.
    pub fn of_this_machine() -> Self {
        let setting = |name: &str| -> Option<u64> {
            fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let program = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
        Self {
            apparmor_restricts: setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            max_namespaces: KINDS
                .iter()
                .filter_map(|&(_, kind)| Some((kind, setting(&format!("user/max_{kind}_namespaces"))?)))
                .collect(),
            userns_clone_off: setting("kernel/unprivileged_userns_clone") == Some(0),
            no_new_privileges: status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"])),
            lacks_sys_admin: status.lines().any(lacks_sys_admin),
            one_id: enter::had_one_id(),
            filtered: status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
            program,
        }
    }
}

/// Whether it is the line with the bounding set, and bit 21 is not in that.
fn lacks_sys_admin(line: &str) -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let set = line.strip_prefix("CapBnd:").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set & SYS_ADMIN == 0)
}

/// Where no grant and no program gives more ids.
pub const ONE_ID: &str = "this process is in a user namespace of one id already, in which no grant has an effect: start layerwright outside of \
    it, or let newuidmap and newgidmap give that namespace more ids";

/// How to grant a user subordinate ids, of which these are free. One without a name is not for usermod(8).
pub fn grant(name: Option<&str>, uid: u32, free: Option<Range>) -> String {
    let how = match (name, free) {
        (_, None) => "let /etc/subuid and /etc/subgid name a range of 65536".to_owned(),
        (Some(name), Some(Range { start, count })) => {
            let range = format!("{start}-{}", start + (count - 1));
            format!("usermod --add-subuids {range} --add-subgids {range} {name}")
        }
        (None, Some(Range { start, count })) => {
            format!("add `{uid}:{start}:{count}` to /etc/subuid and /etc/subgid")
        }
    };
    format!("give this user more ids: {how} (as root, with ids that nobody else has)")
}

/// What would let a step pass: the one setting that would lift it, or the flag that goes without. What failed for a reason of
/// our own, without an errno, neither lifts.
pub fn for_step(step: &str, errno: Option<Errno>, machine: &Circumstances) -> Option<String> {
    match (setting(step, errno, machine), lacking::flag(step, errno)) {
        (Some(setting), Some(flag)) => Some(format!("{setting}; or {flag}")),
        (setting, flag) => setting.or(flag),
    }
}

/// Whether it is the limit of processes that makes the kernel say that a step could be tried again.
fn makes_a_process(step: &str) -> bool {
    step.starts_with("fork") || step.starts_with("start ") || step == "try a pid namespace"
}

/// Whether it is a step that writes to the store, or mounts what lies in it to be written to.
fn writes_to_the_store(step: &str) -> bool {
    const BEGINNINGS: [&str; 5] = ["make ", "remove ", "cover /", "uncover ", "overlay"];
    const WHOLE: [&str; 2] = ["write to the store", "clean the store"];
    WHOLE.contains(&step)
        || step.starts_with("enter working directory")
        || BEGINNINGS.iter().any(|beginning| step.starts_with(beginning))
}

/// The limit that a user has used up, if it is one of namespaces.
fn limit_of_namespaces(step: &str, errno: Option<Errno>, machine: &Circumstances) -> Option<String> {
    let (_, kind) = KINDS.iter().find(|(name, _)| *name == step)?;
    if !matches!(errno, Some(Errno::NOSPC | Errno::USERS)) {
        return None;
    }
    let now = match machine.max_namespaces.get(kind) {
        Some(&max) if max >= LIMITED_OUTSIDE => " of a user namespace around this one".to_owned(),
        Some(max) => format!(" (now {max})"),
        None => String::new(),
    };
    Some(format!("raise the sysctl user.max_{kind}_namespaces{now}"))
}

/// The one setting.
fn setting(step: &str, errno: Option<Errno>, machine: &Circumstances) -> Option<String> {
    let refused = matches!(errno, Some(Errno::PERM | Errno::ACCESS));
    let profile = || {
        format!(
            "AppArmor restricts user namespaces; write `abi <abi/4.0>, include <tunables/global> profile layerwright \
             {} flags=(unconfined) {{ userns, }}` to /etc/apparmor.d/layerwright and load it with apparmor_parser -r",
            machine.program
        )
    };
    if let Some(limit) = limit_of_namespaces(step, errno, machine) {
        return Some(limit);
    }
    let hint = match step {
        step if errno == Some(Errno::AGAIN) && makes_a_process(step) => FEW_PROCESSES.to_owned(),
        _ if errno == Some(Errno::MFILE) => FEW_FILES.to_owned(),
        _ if errno == Some(Errno::FBIG) => SHORT_FILES.to_owned(),
        step if errno == Some(Errno::ROFS) && writes_to_the_store(step) => READ_ONLY_STORE.to_owned(),
        "unshare user namespace" | "unshare mount namespace" | "unshare pid namespace" => match errno {
            Some(Errno::INVAL) => "use a kernel with CONFIG_USER_NS".to_owned(),
            _ if machine.userns_clone_off => "set the sysctl kernel.unprivileged_userns_clone=1".to_owned(),
            _ if machine.apparmor_restricts => profile(),
            _ if machine.filtered => {
                "this process runs in a container whose seccomp profile forbids namespaces; let it allow unshare and \
                 mount (Docker: --security-opt seccomp=unconfined; a RUN of layerwright: --sandbox-allow=userns of that build)"
                    .to_owned()
            }
            _ => return None,
        },
        "new session keyring" if errno == Some(Errno::DQUOT) => {
            "raise the sysctl kernel.keys.maxkeys".to_owned()
        }
        "new session keyring" if refused && machine.filtered => {
            "this process runs in a container that forbids keyctl; let it allow that (Docker: --security-opt \
             seccomp=unconfined)"
                .to_owned()
        }
        "adjust oom score" if errno == Some(Errno::ROFS) => {
            "let this process write to its own files in /proc".to_owned()
        }
        "set hostname" if refused => {
            "this process runs in a container that forbids sethostname; let it allow that (Docker: --security-opt \
             seccomp=unconfined), or ask for no name: leave --hostname or BUILDKIT_SANDBOX_HOSTNAME out"
                .to_owned()
        }
        _ if refused && machine.apparmor_restricts => profile(),
        "write /proc/self/uid_map" if refused => {
            "root of a user namespace that is root outside as well needs CAP_SETFCAP there since Linux 5.12; give it to this \
             container (Docker's default set has it, Kubernetes: securityContext.capabilities.add: [SETFCAP])"
                .to_owned()
        }
        "write id maps" if machine.one_id => ONE_ID.to_owned(),
        "write id maps" if machine.lacks_sys_admin && !machine.no_new_privileges => {
            "newuidmap is a setuid program, which writes maps with CAP_SYS_ADMIN only, and this container withholds it; \
             give it what it needs alone: `chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap && setcap cap_setuid+ep \
             /usr/bin/newuidmap && setcap cap_setgid+ep /usr/bin/newgidmap`"
                .to_owned()
        }
        "write id maps" if machine.filtered || machine.no_new_privileges => {
            "setuid programs have no effect in this container; let it allow privilege escalation".to_owned()
        }
        "mount /proc" if refused => {
            "this machine's /proc is partly masked, as in a container; start it with an unmasked /proc (Docker: \
             --security-opt systempaths=unconfined, Kubernetes: procMount: Unmasked)"
                .to_owned()
        }
        "fuse find" => "install the package `fuse-overlayfs`; a version up to 1.14 also wants --sandbox-allow=fuse-overlayfs".to_owned(),
        "fuse open" if refused => {
            "let this user open /dev/fuse (`chmod 0666 /dev/fuse`, `--device /dev/fuse` of a container); a version up to 1.14 \
             also wants --sandbox-allow=fuse-overlayfs"
                .to_owned()
        }
        "fuse open" => "let there be /dev/fuse: `modprobe fuse`, `--device /dev/fuse` of a container".to_owned(),
        step if step.starts_with("overlay") => match errno {
            Some(Errno::INVAL) => {
                "overlay cannot lie on an overlay; let --root name a volume, a tmpfs or a disk's file system".to_owned()
            }
            Some(Errno::NODEV) => "load the kernel module `overlay`".to_owned(),
            Some(Errno::PERM) => "overlay in a user namespace needs Linux 5.11".to_owned(),
            _ => return None,
        },
        files::MERGES_OTHERWISE => {
            "--sandbox-allow=fuse-overlayfs takes it all the same, for results of its own (docs/sandbox.md)".to_owned()
        }
        "start init" | "copy own program" if refused => {
            "programs in memory must be allowed: set the sysctl vm.memfd_noexec=0".to_owned()
        }
        "copy own program" if errno == Some(Errno::NOENT) => MOUNT_PROC.to_owned(),
        "forbid devices" if errno == Some(Errno::NOSYS) => "use Linux 5.12 or newer".to_owned(),
        _ => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_the_user() {
        let free = Some(Range { start: 165_536, count: 65_536 });
        assert!(grant(Some("ann"), 1000, free).contains(" --add-subgids 165536-231071 ann ("));
        assert!(grant(None, 1000, free).contains("`1000:165536:65536`"));
        assert!(grant(Some("ann"), 1000, None).contains("a range of 65536"));
    }

    #[test]
    fn the_bounding_set_is_read_from_the_status() {
        assert!(lacks_sys_admin("CapBnd:\t00000000a80425fb"));
        assert!(!lacks_sys_admin("CapBnd:\t000001ffffffffff") && !lacks_sys_admin("CapEff:\t0"));
    }

    #[test]
    fn a_reason_of_our_own_is_no_setting_of_the_machine() {
        let ubuntu = Circumstances { apparmor_restricts: true, ..Circumstances::default() };
        for machine in [ubuntu, Circumstances::default()] {
            assert_eq!(for_step("mount /proc", None, &machine), None);
        }
    }

    #[test]
    fn a_hint_names_the_setting_that_is_in_the_way() {
        let plain = Circumstances { program: "/usr/bin/layerwright".to_owned(), ..Circumstances::default() };
        let ubuntu = Circumstances { apparmor_restricts: true, ..plain.clone() };
        let debian = Circumstances { userns_clone_off: true, ..plain.clone() };
        let limits = [("user", 0), ("mnt", 0), ("ipc", 0), ("uts", 7), ("net", LIMITED_OUTSIDE)];
        let none_left = Circumstances { max_namespaces: limits.into_iter().collect(), ..plain.clone() };
        let container = Circumstances { filtered: true, ..plain.clone() };
        let bounded = Circumstances { lacks_sys_admin: true, ..container.clone() };
        let confined = Circumstances { one_id: true, ..container.clone() };
        let fixed = Circumstances { no_new_privileges: true, ..bounded.clone() };
        let cases = [
            ("write id maps", Errno::PERM, &bounded, Some("setcap cap_setuid+ep")),
            ("write id maps", Errno::PERM, &fixed, Some("privilege escalation")),
            ("write id maps", Errno::PERM, &plain, None),
            ("write id maps", Errno::PERM, &confined, Some("outside of it")),
            ("unshare user namespace", Errno::PERM, &container, Some("--sandbox-allow=userns")),
            ("unshare user namespace", Errno::NOSPC, &none_left, Some("user.max_user_namespaces (now 0)")),
            ("unshare mount namespace", Errno::NOSPC, &none_left, Some("user.max_mnt_namespaces (now 0)")),
            ("unshare ipc namespace", Errno::NOSPC, &none_left, Some("user.max_ipc_namespaces (now 0)")),
            ("unshare uts namespace", Errno::NOSPC, &none_left, Some("user.max_uts_namespaces (now 7)")),
            ("unshare network namespace", Errno::NOSPC, &none_left, Some("max_net_namespaces of a user")),
            ("unshare user namespace", Errno::PERM, &debian, Some("unprivileged_userns_clone=1")),
            ("unshare user namespace", Errno::PERM, &container, Some("seccomp=unconfined")),
            ("unshare user namespace", Errno::PERM, &plain, None),
            (
                "write /proc/self/uid_map",
                Errno::PERM,
                &ubuntu,
                Some("profile layerwright /usr/bin/layerwright"),
            ),
            ("write /proc/self/uid_map", Errno::PERM, &container, Some("capabilities.add: [SETFCAP]")),
            ("unshare pid namespace", Errno::NOSPC, &plain, Some("user.max_pid_namespaces")),
            ("fuse find", Errno::NOENT, &plain, Some("the package `fuse-overlayfs`")),
            ("fuse open", Errno::ACCESS, &plain, Some("chmod 0666 /dev/fuse")),
            ("fuse open", Errno::NOENT, &plain, Some("modprobe fuse")),
            ("fuse mount", Errno::INVAL, &plain, None),
            ("mount /proc", Errno::PERM, &plain, Some("systempaths=unconfined")),
            ("overlay fsconfig create", Errno::INVAL, &plain, Some("--root")),
            ("overlay fsconfig create", Errno::NOSPC, &plain, None),
            ("forbid devices", Errno::NOSYS, &plain, Some("5.12")),
            ("start init", Errno::ACCESS, &plain, Some("vm.memfd_noexec=0")),
            ("start init", Errno::AGAIN, &plain, Some("`ulimit -u`")),
            ("try a pid namespace", Errno::AGAIN, &ubuntu, Some("pids.max")),
            ("mount /proc", Errno::AGAIN, &plain, None),
            ("start init", Errno::MFILE, &ubuntu, Some("`ulimit -n 1024`")),
            ("copy own program", Errno::FBIG, &plain, Some("`ulimit -f unlimited`")),
            ("write to the store", Errno::ROFS, &ubuntu, Some("with --root")),
            ("make /m", Errno::ROFS, &plain, Some("with --root")),
            ("remove mount points", Errno::ROFS, &plain, Some("with --root")),
            ("overlay fsconfig create", Errno::ROFS, &plain, Some("with --root")),
            ("write /proc/self/uid_map", Errno::ROFS, &plain, None),
            ("set hostname", Errno::PERM, &container, Some("leave --hostname")),
            ("new session keyring", Errno::PERM, &container, Some("; or --sandbox-allow=no-keyring ")),
            ("new session keyring", Errno::PERM, &plain, Some("--sandbox-allow=no-keyring ")),
            ("new session keyring", Errno::DQUOT, &plain, Some("kernel.keys.maxkeys; or --sandbox-allow=")),
            ("load seccomp filter", Errno::INVAL, &plain, Some("--sandbox-allow=no-seccomp ")),
            (
                "unshare cgroup namespace",
                Errno::NOSPC,
                &plain,
                Some("max_cgroup_namespaces; or --sandbox-allow="),
            ),
            ("adjust oom score", Errno::ROFS, &plain, Some("; or --sandbox-allow=no-oom-score ")),
        ];
        for (step, errno, machine, expected) in cases {
            let hint = for_step(step, Some(errno), machine);
            match expected {
                None => assert_eq!(hint, None, "{step}"),
                Some(part) => {
                    assert!(hint.as_ref().is_some_and(|hint| hint.contains(part)), "{step}: {hint:?}")
                }
            }
        }
    }
}

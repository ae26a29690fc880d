//! What this program does when it is the command of a step: it looks around, or tries what it must not be able to.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::{SocketAddr, UnixStream},
    },
    process::ExitCode,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, major, makedev, minor, mknodat, open},
    io::Errno,
    mount::{FsOpenFlags, MountFlags, UnmountFlags, fsopen, mount, mount_remount, unmount},
    net::{AddressFamily, SocketType, ipproto, socket},
    pipe::fcntl_setpipe_size,
    process::{
        Pid, Resource, Rlimit, Signal, chroot, getpgrp, getpid, getppid, getsid, kill_process, pivot_root,
        prlimit,
    },
    stdio::stdout,
    system::{sethostname, uname},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, no_new_privs},
};

/// Does one thing and prints what came of it.
pub fn main(what: &str) -> ExitCode {
    let lines = match what {
        "conformance" => conformance(),
        "attempts" => attempts(),
        "connect" => {
            let stream = UnixStream::connect(std::env::var("SOCKET").unwrap()).unwrap();
            vec![std::io::read_to_string(stream).unwrap().trim_end().to_owned()]
        }
        "say-much" => return say_much(),
        "chroot" => vec![
            format!("chroot: {}", answer(chroot("/"))),
            format!("mknod: {}", answer(make_node())),
            format!("no new privileges: {}", no_new_privs().unwrap()),
        ],
        "others" => others(),
        "program" => vec![fs::read_link("/proc/self/exe").unwrap().display().to_string()],
        other => panic!("nothing is called {other}"),
    };
    lines.iter().for_each(|line| println!("{line}"));
    ExitCode::SUCCESS
}

/// How many lines [`say_much`] says, of 64 KiB each.
pub const LINES: usize = 16;

/// Has the pipe take everything it has to say, and ends with it unread.
fn say_much() -> ExitCode {
    fcntl_setpipe_size(stdout(), LINES << 16).unwrap();
    let line = format!("{}\n", "x".repeat((64 << 10) - 1));
    std::io::stdout().write_all(line.repeat(LINES).as_bytes()).unwrap();
    ExitCode::SUCCESS
}

fn make_node() -> Result<(), Errno> {
    mknodat(CWD, "/tmp/node", FileType::CharacterDevice, Mode::RUSR, makedev(1, 3))
}

fn others() -> Vec<String> {
    let number: i32 = std::env::var("PID").unwrap().parse().unwrap();
    let pid = Pid::from_raw(number).unwrap();
    let limit = Rlimit { current: Some(0), maximum: Some(0) };
    vec![
        format!("kill: {}", answer(kill_process(pid, Signal::KILL))),
        format!("limit: {}", answer(prlimit(Some(pid), Resource::Cpu, limit).map(drop))),
    ]
}

fn answer(result: Result<(), Errno>) -> String {
    match result {
        Ok(()) => "done".to_owned(),
        Err(Errno::PERM) => "EPERM".to_owned(),
        Err(errno) => errno.to_string(),
    }
}

/// Everything a step can see of what it may do, one line each, the same on every machine.
fn conformance() -> Vec<String> {
    let mut lines = status();
    lines.push(format!(
        "pid {} parent {:?} group {:?} session {:?}",
        raw(getpid()),
        getppid().map(raw),
        raw(getpgrp()),
        getsid(None).map(raw)
    ));
    lines.push(format!("cwd {}", std::env::current_dir().unwrap().display()));
    lines.push(format!("hostname {}", uname().nodename().to_string_lossy()));
    lines.extend(std::env::vars().map(|(name, value)| format!("env {name}={value}")));
    lines.extend(descriptors());
    lines.extend(limits());
    lines.extend(mounts());
    lines.extend(devices());
    lines.extend(cgroups());
    lines
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

fn status() -> Vec<String> {
    const SHOWN: &[&str] = &[
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "SigBlk",
        "SigIgn",
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let is_shown = |line: &&str| SHOWN.contains(&line.split(':').next().unwrap_or_default());
    status
        .lines()
        .filter(is_shown)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn descriptors() -> Vec<String> {
    let mut numbers: Vec<u32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    // The directory that was read is the last and is closed by now.
    let link = |number: &u32| fs::read_link(format!("/proc/self/fd/{number}")).ok();
    let opened = numbers.iter().filter_map(|number| Some((number, link(number)?)));
    opened
        .map(|(number, target)| {
            format!("fd {number} {}", target.to_string_lossy().split(':').next().unwrap_or_default())
        })
        .collect()
}

fn limits() -> Vec<String> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let mut fields = line[name.len()..].split_whitespace().map(str::to_owned);
        (fields.next().unwrap(), fields.next().unwrap())
    };
    let (soft, hard) = line("Max open files");
    let bounded = hard.parse::<u64>().unwrap() <= 524_288;
    vec![
        format!("limit open files {soft}, hard at most 524288: {bounded}"),
        format!("limit processes {:?}", line("Max processes")),
        format!("limit core {:?}", line("Max core file size")),
    ]
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut mounts = Vec::new();
    for line in table.lines() {
        let (before, after) = line.split_once(" - ").unwrap();
        let fields: Vec<&str> = before.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        // Which of these there are depends on the kernel; another test looks at them.
        if point.starts_with("/proc/") || point.starts_with("/sys/") {
            continue;
        }
        let options: Vec<&str> = options.split(',').filter(|option| !option.ends_with("atime")).collect();
        let shared = fields[6..].iter().any(|field| field.contains(':'));
        // A lent device node is on whatever the host has at /dev.
        let is_node = fs::metadata(point).is_ok_and(|metadata| metadata.file_type().is_char_device());
        let kind = if is_node { "node" } else { after.split(' ').next().unwrap() };
        mounts.push(format!(
            "mount {point} {kind} {}{}",
            options.join(","),
            if shared { " PROPAGATES" } else { "" }
        ));
    }
    mounts
}

fn devices() -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir("/dev").unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let kind = if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if metadata.file_type().is_char_device() {
            format!(
                "device {}:{} {:o}",
                major(metadata.rdev()),
                minor(metadata.rdev()),
                metadata.mode() & 0o7777
            )
        } else if metadata.is_dir() {
            format!("directory {:o}", metadata.mode() & 0o7777)
        } else {
            format!("{:?}", metadata.file_type())
        };
        lines.push(format!("{} {kind}", path.display()));
    }
    lines.sort();
    lines
}

fn cgroups() -> Vec<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mut paths: Vec<String> =
        groups.lines().map(|line| format!("cgroup {}", line.splitn(3, ':').nth(2).unwrap())).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Everything a step must not get away with, and what it is told; `done` where it did.
fn attempts() -> Vec<String> {
    let on_pid_1 = |file: &str| open(format!("/proc/1/{file}"), OFlags::RDONLY, Mode::empty()).map(drop);
    let write = |file: &str| open(file, OFlags::WRONLY, Mode::empty()).map(drop);
    let family = |number: u16| {
        let family = AddressFamily::from_raw(number);
        socket(family, SocketType::DGRAM, None).map(drop)
    };
    let open_disk = |path: &str| {
        mknodat(CWD, path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, makedev(8, 0))?;
        open(path, OFlags::RDONLY, Mode::empty()).map(drop)
    };
    #[allow(deprecated, reason = "the safe one; it is refused anyway")]
    let unshare = rustix::thread::unshare;
    let own_namespace = open("/proc/self/ns/uts", OFlags::RDONLY, Mode::empty());
    let results: Vec<(&str, Result<(), Errno>)> = vec![
        ("mount a tmpfs", mount("none", "/tmp", "tmpfs", MountFlags::empty(), None)),
        ("unmount /proc/kcore", unmount("/proc/kcore", UnmountFlags::DETACH)),
        ("remount /proc/sys writable", mount_remount("/proc/sys", MountFlags::BIND, "")),
        ("open a file system", fsopen("tmpfs", FsOpenFlags::empty()).map(drop)),
        ("pivot_root", pivot_root("/tmp", "/tmp")),
        ("unshare user namespace", unshare(UnshareFlags::NEWUSER)),
        ("unshare mount namespace", unshare(UnshareFlags::NEWNS)),
        (
            "join a namespace",
            own_namespace.and_then(|namespace| {
                let kind = LinkNameSpaceType::HostNameAndNISDomainName;
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind))
            }),
        ),
        ("kernel crypto socket", family(38)),
        ("packet socket", family(17)),
        ("virtual machine socket", family(40)),
        ("raw socket", socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).map(drop)),
        ("set hostname", sethostname(b"mine")),
        ("write core_pattern", write("/proc/sys/kernel/core_pattern")),
        ("write sysrq-trigger", write("/proc/sysrq-trigger")),
        ("write a kernel setting", write("/proc/sys/vm/drop_caches")),
        ("write uevent_helper", write("/sys/kernel/uevent_helper")),
        ("open the kernel log", write("/dev/kmsg")),
        ("use a disk in /tmp", open_disk("/tmp/disk")),
        ("use a disk in /dev", open_disk("/dev/disk")),
        ("program of pid 1", on_pid_1("exe")),
        ("memory of pid 1", on_pid_1("mem")),
        ("environment of pid 1", on_pid_1("environ")),
        ("root of pid 1", on_pid_1("root/.")),
        ("descriptors of pid 1", on_pid_1("fd/0")),
        ("kill pid 1", kill_process(Pid::from_raw(1).unwrap(), Signal::KILL)),
    ];
    let mut lines: Vec<String> = results.into_iter().map(|(name, result)| verdict(name, result)).collect();
    lines.push(verdict("reach the host's abstract sockets", connect_abstract()));
    lines
}

fn verdict(name: &str, result: Result<(), Errno>) -> String {
    let told = match result {
        Ok(()) => "done".to_owned(),
        // Which of these it is depends on who owns the file outside, and on the kernel.
        Err(Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::NOENT) => "refused".to_owned(),
        Err(errno) => errno.to_string(),
    };
    format!("{name}: {told}")
}

/// The name under which the test outside listens.
pub fn abstract_name() -> Vec<u8> {
    let name = std::env::var("ABSTRACT_NAME").unwrap_or_default();
    name.into_bytes()
}

fn connect_abstract() -> Result<(), Errno> {
    use std::os::linux::net::SocketAddrExt;
    let address = SocketAddr::from_abstract_name(abstract_name()).unwrap();
    let connected = UnixStream::connect_addr(&address).map(drop);
    connected.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

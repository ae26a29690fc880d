//! What a step finds around it, a line for each thing.
//!
//! Left out is what the machine alone decides: how many processors, which kernel, how large the limits are that the builder
//! has and passes on. A file that one kernel has and another has not is "hidden" in both cases.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use rustix::{
    fs::{OFlags, StatVfsMountFlags, major, minor, open, statvfs},
    process::{Resource, dumpable_behavior, getpid, getppid},
    system::uname,
    thread::capabilities_secure_bits,
};

use crate::{
    Line, children,
    raw::{self, Argument},
    status::{limit, status},
};

/// What Docker masks, and what has been added since.
const HIDDEN: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What root could else change for the whole machine.
const LOCKED: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys"];

const NAMESPACES: &[&str] = &["user", "mnt", "pid", "ipc", "uts", "cgroup", "net", "time"];

/// Everything.
pub fn all() -> Vec<Line> {
    let mut lines = identity();
    lines.extend(process());
    lines.extend(
        NAMESPACES.iter().map(|name| line("namespace", name, link(&format!("/proc/self/ns/{name}")))),
    );
    lines.extend(mounts());
    lines.extend(HIDDEN.iter().map(|path| line("hidden", path, hidden(path))));
    lines.extend(LOCKED.iter().map(|path| line("locked", path, locked(path))));
    lines.extend(devices());
    lines.extend(limits());
    lines.extend(std::env::vars().map(|(name, value)| line("environment", &name, value)));
    lines.extend(descriptors());
    lines.extend(["/etc/hosts", "/etc/resolv.conf"].iter().map(|path| line("lent", path, writability(path))));
    lines
}

fn line(family: &str, name: &str, result: impl Into<String>) -> Line {
    (format!("{family}.{name}"), result.into())
}

fn identity() -> Vec<Line> {
    let status = status();
    let shown = [
        ("uid", "Uid"),
        ("gid", "Gid"),
        ("groups", "Groups"),
        ("capabilities-inheritable", "CapInh"),
        ("capabilities-permitted", "CapPrm"),
        ("capabilities-effective", "CapEff"),
        ("capabilities-bounding", "CapBnd"),
        ("capabilities-ambient", "CapAmb"),
        ("no-new-privileges", "NoNewPrivs"),
        ("seccomp-mode", "Seccomp"),
    ];
    let mut lines: Vec<Line> = shown
        .iter()
        .map(|(name, key)| line("identity", name, status.get(*key).cloned().unwrap_or_default()))
        .collect();
    let bits = capabilities_secure_bits()
        .map_or_else(|errno| errno.to_string(), |bits| format!("{:x}", bits.bits()));
    lines.push(line("identity", "secure-bits", bits));
    for name in ["uid_map", "gid_map", "setgroups"] {
        let words = read(&format!("/proc/self/{name}"));
        lines.push(line("identity", name, words.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    lines
}

fn process() -> Vec<Line> {
    let status = status();
    let field = |key: &str| status.get(key).cloned().unwrap_or_default();
    // The session of one that was started outside is 0, which rustix takes for impossible.
    let session = raw::call(libc::SYS_getsid, &mut [Argument::Number(0)]);
    let own_session = session.is_ok_and(|session| session == i64::from(getpid().as_raw_nonzero().get()));
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let visible = read_names("/proc").iter().filter(|name| name.parse::<u32>().is_ok()).count();
    let name = uname();
    vec![
        line("process", "umask", field("Umask")),
        line("process", "blocked-signals", field("SigBlk")),
        line("process", "ignored-signals", ignored_signals(&field("SigIgn"))),
        line("process", "session", if own_session { "own" } else { "inherited" }),
        line(
            "process",
            "terminal",
            if open("/dev/tty", OFlags::RDWR, 0.into()).is_ok() { "there" } else { "none" },
        ),
        line("process", "parent", if parent == 1 { "PID 1" } else { "another" }),
        line(
            "process",
            "visible",
            match visible {
                0 => "none",
                2 => "PID 1 and this one",
                _ => "the machine's",
            },
        ),
        line(
            "process",
            "dumpable",
            dumpable_behavior().map_or_else(|errno| errno.to_string(), |how| format!("{how:?}")),
        ),
        line(
            "process",
            "working-directory",
            std::env::current_dir().map_or_else(|e| e.to_string(), |d| d.display().to_string()),
        ),
        line("process", "host-name", name.nodename().to_string_lossy()),
        line("process", "cgroup", cgroups()),
        line("process", "out-of-memory-score", oom_score()),
    ]
}

/// All but SIGPIPE, which every program of Rust's ignores.
fn ignored_signals(mask: &str) -> String {
    const SIGPIPE: u64 = 1 << 12;
    u64::from_str_radix(mask, 16)
        .map_or_else(|error| error.to_string(), |mask| format!("{:016x}", mask & !SIGPIPE))
}

/// Raised above what the builder has, which it may itself have been given.
fn oom_score() -> String {
    let Ok(score) = read("/proc/self/oom_score_adj").trim().parse::<i32>() else {
        return "untold".to_owned();
    };
    if score >= 500 { "raised by 500".to_owned() } else { score.to_string() }
}

fn cgroups() -> String {
    let text = read("/proc/self/cgroup");
    let mut paths: Vec<&str> = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.join(" ")
}

/// Kinds, options and propagation of what is mounted; what hides and locks parts of /proc and /sys has lines of its own.
fn mounts() -> Vec<Line> {
    let table = read("/proc/self/mountinfo");
    let mut lines = Vec::new();
    for (before, after) in table.lines().filter_map(|line| line.split_once(" - ")) {
        let fields: Vec<&str> = before.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        if point.starts_with("/proc/") || point.starts_with("/sys/") {
            continue;
        }
        let options: Vec<&str> = options.split(',').filter(|option| !option.ends_with("atime")).collect();
        let is_node = fs::metadata(point).is_ok_and(|metadata| metadata.file_type().is_char_device());
        let kind = if is_node { "node" } else { after.split(' ').next().unwrap_or_default() };
        let propagates = fields[6..].iter().any(|field| field.contains(':'));
        let propagation = if propagates { " PROPAGATES" } else { "" };
        lines.push(line("mount", point, format!("{kind} {}{propagation}", options.join(","))));
    }
    lines
}

fn hidden(path: &str) -> String {
    match fs::metadata(path) {
        Err(_) => "hidden".to_owned(),
        Ok(metadata) if metadata.is_dir() && read_names(path).is_empty() => "hidden".to_owned(),
        Ok(metadata) if metadata.file_type().is_char_device() && read(path).is_empty() => "hidden".to_owned(),
        Ok(_) => "VISIBLE".to_owned(),
    }
}

fn locked(path: &str) -> String {
    match statvfs(path) {
        Ok(found) if found.f_flag.contains(StatVfsMountFlags::RDONLY) => "read-only".to_owned(),
        Ok(_) => "WRITABLE".to_owned(),
        // Not every kernel has all of them.
        Err(_) => "read-only".to_owned(),
    }
}

fn writability(path: &str) -> String {
    match fs::OpenOptions::new().append(true).open(path) {
        Ok(_) => "WRITABLE".to_owned(),
        Err(_) => "read-only".to_owned(),
    }
}

fn devices() -> Vec<Line> {
    let mut lines = Vec::new();
    for name in read_names("/dev") {
        let path = format!("/dev/{name}");
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let (mode, kind) = (metadata.mode() & 0o7777, metadata.file_type());
        let number = || format!("{}:{} {mode:o}", major(metadata.rdev()), minor(metadata.rdev()));
        let told = if kind.is_symlink() {
            format!("-> {}", link(&path))
        } else if kind.is_char_device() {
            let opens = OFlags::RDWR | OFlags::NOCTTY;
            let usable = if open(&path, opens, 0.into()).is_ok() { "" } else { ", does not open" };
            format!("character {}{usable}", number())
        } else if kind.is_block_device() {
            format!("BLOCK {}", number())
        } else if kind.is_dir() {
            format!("directory {mode:o}, holds {}", read_names(&path).join(" "))
                .trim_end_matches(", holds ")
                .to_owned()
        } else {
            "FILE".to_owned()
        };
        lines.push(line("device", &path, told));
    }
    lines
}

/// Those the sandbox sets; all others are the builder's.
fn limits() -> Vec<Line> {
    let shown = [("open-files", Resource::Nofile), ("processes", Resource::Nproc), ("core", Resource::Core)];
    let told = |resource: Resource| {
        let (soft, hard) = limit(resource);
        // An ordinary user can have no more than the machine grants.
        let hard = if resource == Resource::Nofile && hard.parse::<u64>().is_ok_and(|hard| hard <= 524_288) {
            "at most 524288".to_owned()
        } else {
            hard
        };
        format!("{soft}, hard {hard}")
    };
    shown.iter().map(|(name, resource)| line("limit", name, told(*resource))).collect()
}

fn descriptors() -> Vec<Line> {
    if !fs::exists("/proc/self/fd").unwrap_or(false) {
        const GET_FLAGS: u32 = 1;
        let is_open = |number: &u32| {
            raw::call(libc::SYS_fcntl, &mut [Argument::Number(*number), Argument::Number(GET_FLAGS)]).is_ok()
        };
        return (0..4096)
            .filter(is_open)
            .map(|number| line("descriptor", &number.to_string(), "open"))
            .collect();
    }
    let mut numbers: Vec<u32> =
        read_names("/proc/self/fd").iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    // The directory that was read is one of them and is closed by now.
    let targets = numbers.iter().filter_map(|number| {
        let target = fs::read_link(format!("/proc/self/fd/{number}")).ok()?.display().to_string();
        let kind = target.split(':').next().unwrap_or_default().to_owned();
        Some(line("descriptor", &number.to_string(), kind))
    });
    targets.collect()
}

/// What a user who is not root has, and what a program of root's that is set-user-ID gives him.
pub fn user() -> Vec<Line> {
    let renamed = |(name, result): Line| (name.replace("identity.", "user."), result);
    let mut lines: Vec<Line> = identity().into_iter().map(renamed).collect();
    lines.push(line("user", "set-user-id-program", children::capabilities_of("/set-user-id")));
    let opens = |path: &str| if fs::File::open(path).is_ok() { "READ" } else { "refused" };
    lines.push(line("user", "read-shadow", opens("/shadow")));
    lines.push(line(
        "user",
        "write-root",
        if fs::write("/written", "").is_ok() { "DONE" } else { "refused" },
    ));
    lines
}

/// What a step without a network has.
pub fn network() -> Vec<Line> {
    let devices = read("/proc/self/net/dev");
    let names: Vec<&str> =
        devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    let routes = read("/proc/self/net/route").lines().count().saturating_sub(1);
    let told = |result: std::io::Result<()>| match result {
        Ok(()) => "REACHED".to_owned(),
        Err(error) => crate::errno_name(crate::errno_of(&error)),
    };
    let ask = |address: &str| {
        std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"?", address)).map(drop)
    };
    vec![
        line("network", "interfaces", names.join(" ")),
        line("network", "routes", routes.to_string()),
        line(
            "network",
            "resolvers",
            read("/etc/resolv.conf")
                .lines()
                .filter(|line| line.starts_with("nameserver"))
                .count()
                .to_string(),
        ),
        line("network", "name-service", told(ask("192.0.2.1:53"))),
        line("network", "metadata-service", told(ask("169.254.169.254:80"))),
        line("network", "namespace", link("/proc/self/ns/net")),
    ]
}

fn link(path: &str) -> String {
    fs::read_link(path).map_or_else(|error| error.to_string(), |target| target.display().to_string())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn read_names(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

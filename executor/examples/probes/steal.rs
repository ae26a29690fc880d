//! Everywhere a secret could be read that is not the step's. The tests have put canaries there, each a word that says what
//! it is; what is told of each place is the canaries that were found in it, or `nothing`.
//!
//! The words themselves are known to nobody here, only what they begin with.

use std::{
    collections::BTreeSet,
    ffi::CStr,
    fs,
    io::{Read, Seek, SeekFrom},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    path::Path,
    time::Duration,
};

use crate::{
    Line, errno_of,
    raw::{self, Argument},
};

/// More than any file that has a canary holds.
const MOST: u64 = 1 << 20;

/// All places.
pub fn all() -> Vec<Line> {
    let others = other_processes();
    let places: Vec<(&str, BTreeSet<String>)> = vec![
        ("own-environment", canaries(&own("environ"))),
        ("own-descriptors", in_descriptors("self", 3)),
        (
            "environments",
            others.iter().flat_map(|pid| canaries(&file(format!("/proc/{pid}/environ")))).collect(),
        ),
        (
            "command-lines",
            others.iter().flat_map(|pid| canaries(&file(format!("/proc/{pid}/cmdline")))).collect(),
        ),
        ("memory", others.iter().flat_map(|pid| in_memory(pid)).collect()),
        ("descriptors", others.iter().flat_map(|pid| in_descriptors(pid, 0)).collect()),
        ("paths", canary_paths().iter().flat_map(|path| canaries(&file(path))).collect()),
        ("roots-of-others", others.iter().flat_map(|pid| through_link(pid, "root")).collect()),
        (
            "directories-of-others",
            others.iter().flat_map(|pid| in_directory(&format!("/proc/{pid}/cwd"))).collect(),
        ),
        ("secrets-and-caches-of-others", others.iter().flat_map(|pid| of_steps(pid)).collect()),
        ("own-secrets-directory", in_directory("/run/secrets")),
        ("shared-memory", in_directory("/dev/shm")),
        ("keyring", in_keyring()),
        ("abstract-socket", said_by(abstract_socket())),
        ("path-socket", said_by(path_socket())),
        ("agent-socket", said_by(agent_socket())),
        ("context", in_directory("/context")),
        ("kernel-log", canaries(&file("/dev/kmsg"))),
    ];
    places.into_iter().map(|(name, found)| (format!("theft.{name}"), told(found))).collect()
}

fn told(found: BTreeSet<String>) -> String {
    if found.is_empty() {
        return "nothing".to_owned();
    }
    format!("STOLEN {}", found.into_iter().collect::<Vec<_>>().join(" "))
}

/// The names in `LWCANARY:NAME:`, which stands nowhere in this program.
fn canaries(bytes: &[u8]) -> BTreeSet<String> {
    let beginning = [b"LWCAN".as_slice(), b"ARY:"].concat();
    let starts = bytes.windows(beginning.len()).enumerate().filter(|(_, window)| *window == beginning);
    let names = starts.filter_map(|(at, _)| {
        let rest = &bytes[at + beginning.len()..];
        let end = rest.iter().take(64).position(|byte| *byte == b':')?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    });
    names.collect()
}

fn own(name: &str) -> Vec<u8> {
    file(format!("/proc/self/{name}"))
}

/// What can be read of a file without waiting for anybody.
fn file(path: impl AsRef<Path>) -> Vec<u8> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut bytes = Vec::new();
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Ok(file) = opened {
        // What has been read until an error counts.
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    bytes
}

fn other_processes() -> Vec<String> {
    let own = fs::read_link("/proc/self").map(|link| link.display().to_string()).unwrap_or_default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.parse::<u32>().is_ok() && *name != own).collect()
}

/// Heap and stack.
fn in_memory(pid: &str) -> BTreeSet<String> {
    let maps = String::from_utf8_lossy(&file(format!("/proc/{pid}/maps"))).into_owned();
    let Ok(mut memory) = fs::File::open(format!("/proc/{pid}/mem")) else { return BTreeSet::new() };
    let mut found = BTreeSet::new();
    for line in maps.lines().filter(|line| line.contains("rw-p")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((start, end)) = range.and_then(|(start, end)| {
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        }) else {
            continue;
        };
        let mut bytes = vec![0; usize::try_from((end - start).min(4 * MOST)).unwrap_or_default()];
        let read = memory.seek(SeekFrom::Start(start)).and_then(|_| memory.read(&mut bytes));
        found.extend(canaries(&bytes[..read.unwrap_or_default()]));
    }
    found
}

fn in_descriptors(pid: &str, from: u32) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| {
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        // Of a pipe or a terminal reading would take what is somebody's.
        number.is_some_and(|number| number >= from)
            && fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
    });
    paths.flat_map(|path| canaries(&file(path))).collect()
}

fn canary_paths() -> Vec<String> {
    std::env::var("PROBE_PATHS")
        .unwrap_or_default()
        .split(':')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect()
}

fn through_link(pid: &str, link: &str) -> BTreeSet<String> {
    canary_paths().iter().flat_map(|path| canaries(&file(format!("/proc/{pid}/{link}{path}")))).collect()
}

/// Where a step has its secrets and cache mounts.
fn of_steps(pid: &str) -> BTreeSet<String> {
    ["root/run/secrets", "root/theirs"]
        .iter()
        .flat_map(|place| in_directory(&format!("/proc/{pid}/{place}")))
        .collect()
}

fn in_directory(path: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries.filter(|path| fs::metadata(path).is_ok_and(|metadata| metadata.is_file()));
    files.flat_map(|path| canaries(&file(path))).collect()
}

/// The key of this user that is called as the canary is.
fn in_keyring() -> BTreeSet<String> {
    const SEARCH: u32 = 10;
    const READ: u32 = 11;
    const USER_KEYRING: u32 = -4_i32 as u32;
    let text = |text: &'static CStr| Argument::Text(text);
    let search = &mut [
        Argument::Number(SEARCH),
        Argument::Number(USER_KEYRING),
        text(c"user"),
        text(c"lw-canary"),
        Argument::Number(0),
    ];
    let mut room = [0; 4096];
    let read = raw::call(libc::SYS_keyctl, search).and_then(|key| {
        let key = u32::try_from(key).unwrap_or_default();
        let size = Argument::Number(4096);
        raw::call(
            libc::SYS_keyctl,
            &mut [Argument::Number(READ), Argument::Number(key), Argument::Room(&mut room), size],
        )
    });
    if read.is_ok() { canaries(&room) } else { BTreeSet::new() }
}

fn said_by(stream: std::io::Result<impl Read>) -> BTreeSet<String> {
    let mut bytes = Vec::new();
    let read = stream.and_then(|stream| stream.take(4096).read_to_end(&mut bytes));
    if let Err(error) = read {
        // A refusal, or what came until the time was up.
        let _ = errno_of(&error);
    }
    canaries(&bytes)
}

const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));

fn abstract_socket() -> std::io::Result<UnixStream> {
    let address = SocketAddr::from_abstract_name(std::env::var("PROBE_ABSTRACT").unwrap_or_default())?;
    let stream = UnixStream::connect_addr(&address)?;
    stream.set_read_timeout(PATIENCE)?;
    Ok(stream)
}

fn path_socket() -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(std::env::var("PROBE_SOCKET").unwrap_or_default())?;
    stream.set_read_timeout(PATIENCE)?;
    Ok(stream)
}

/// The agent whose address is in the builder's environment.
fn agent_socket() -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(std::env::var("SSH_AUTH_SOCK").unwrap_or_default())?;
    stream.set_read_timeout(PATIENCE)?;
    Ok(stream)
}

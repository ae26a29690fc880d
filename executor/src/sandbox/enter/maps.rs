//! Which ids a user namespace of ours has, and who writes that down: newuidmap and newgidmap, by `/etc/subuid` and
//! `/etc/subgid`; the kernel, where they are a container's own; or the kernel for one id, which anybody may have.

use std::{
    fs,
    io::{self, PipeReader, PipeWriter, Read, Write, pipe},
    process::{Child, Command, Stdio},
};

use rustix::{
    process::{Gid, Pid, Uid, WaitOptions, getgid, getpid, getuid, waitpid},
    thread::{CapabilitySet, capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{HostIds, enter_user_namespace, failed, had_one_id, id_maps, is_privileged};
use crate::sandbox::{
    SandboxError, hint,
    ids::{self, Range},
    sys::{self, Fork},
};

/// How the user behind a namespace with one id gets more: the advice of the note that [`enter_builder`] left about it.
pub(crate) fn more_ids() -> String {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let own = ids::outside_root(&map).unwrap_or_else(|| getuid().as_raw());
    let lack = granted(own).and_then(|_| find_helpers()).err();
    let advice = lack.as_ref().and_then(SandboxError::hint).unwrap_or(HELPERS_REFUSED);
    advice.to_owned()
}

const HELPERS_REFUSED: &str =
    "let newuidmap and newgidmap work here: they are setuid programs, which a container may forbid";

/// The subordinate ids of this user.
pub(super) struct Grants {
    uids: Vec<Range>,
    gids: Vec<Range>,
    pub(super) by: Grantor,
}

/// Who lets us have them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Grantor {
    /// `/etc/subuid` and `/etc/subgid`: newuidmap(1) and newgidmap(1) write the maps.
    Files,
    /// The kernel, as root of a container with the capabilities for it: they are the container's own, and we write the maps.
    Kernel,
}

impl Grants {
    pub(super) fn smallest(&self) -> u32 {
        let total =
            |ranges: &[Range]| ranges.iter().fold(0_u32, |sum, range| sum.saturating_add(range.count));
        total(&self.uids).min(total(&self.gids))
    }
}

/// What the files grant, where that can be used, else what the kernel lets us have.
pub(super) fn grants(own: HostIds) -> Result<Grants, SandboxError> {
    let granted = granted(own.uid).and_then(|grants| find_helpers().map(|()| grants));
    granted.or_else(|error| own_ids(own).ok_or(error))
}

/// The ids of the container whose root this is, itself without the right to mount. A user namespace over them keeps steps further
/// away from it than a chroot would. A machine's root that somebody has taken the right to mount from looks the same: its steps
/// have the machine's ids, as on the rung of root.
fn own_ids(own: HostIds) -> Option<Grants> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
    let held = capabilities(None).ok()?.effective;
    if (own.uid, own.gid) != (0, 0) || is_privileged() || !held.contains(needed) {
        return None;
    }
    let (uid_map, gid_map) = id_maps().ok()?;
    let range = |map: &str| ids::beside_root(map).map(|range| vec![range]);
    Some(Grants { uids: range(&uid_map)?, gids: range(&gid_map)?, by: Grantor::Kernel })
}

/// What `/etc/subuid` and `/etc/subgid` say.
pub(super) fn granted(uid: u32) -> Result<Grants, SandboxError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = ids::user_name(&passwd, uid);
    let [subuid, subgid] =
        ["/etc/subuid", "/etc/subgid"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let (uids, gids) = (ids::ranges(&subuid, name, uid), ids::ranges(&subgid, name, uid));
    let file = match (uids.is_empty(), gids.is_empty()) {
        (false, false) => return Ok(Grants { uids, gids, by: Grantor::Files }),
        (true, _) => "/etc/subuid",
        (false, true) => "/etc/subgid",
    };
    let hint = match had_one_id() {
        true => hint::ONE_ID.to_owned(),
        false => hint::grant(name, uid, ids::free(&[&subuid, &subgid])),
    };
    Err(SandboxError::step(file, "no range for this user", Some(hint)))
}

const HELPERS: [&str; 2] = ["newuidmap", "newgidmap"];

pub(super) fn find_helpers() -> Result<(), SandboxError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |helper: &str| std::env::split_paths(&path).any(|directory| directory.join(helper).is_file());
    match HELPERS.into_iter().find(|helper| !is_there(helper)) {
        None => Ok(()),
        Some(missing) => Err(SandboxError::step(
            missing,
            "not found in PATH",
            Some("install the package `uidmap` (Debian) or `shadow-utils`".to_owned()),
        )),
    }
}

/// A process outside of a user namespace must write its map: the helpers run in a child that is forked before and
/// stays behind, and that ends as soon as the maps are written.
pub(super) fn enter_with_ranges(grants: &Grants) -> Result<Maps, SandboxError> {
    let io_failed = |error: std::io::Error| SandboxError::io("pipe", &error);
    let (entered_reader, mut entered_writer) = pipe().map_err(io_failed)?;
    let (mut answer_reader, answer_writer) = pipe().map_err(io_failed)?;
    let builder = getpid();
    let helper = match sys::fork().map_err(|errno| failed("fork", errno))? {
        Fork::Child => {
            drop((entered_writer, answer_reader));
            write_maps_from_outside(builder, grants, entered_reader, answer_writer)
        }
        Fork::Parent(helper) => helper,
    };
    drop((entered_reader, answer_writer));
    enter_user_namespace()?;
    entered_writer.write_all(b"!").map_err(io_failed)?;
    drop(entered_writer);
    let mut answer = String::new();
    answer_reader.read_to_string(&mut answer).map_err(io_failed)?;
    waitpid(Some(helper), WaitOptions::empty()).map_err(|errno| failed("wait for newuidmap", errno))?;
    if answer != MAPS_WRITTEN {
        return Ok(Maps::Refused(answer));
    }
    become_root()?;
    set_thread_groups(&[]).map_err(|errno| failed("setgroups", errno))?;
    Ok(Maps::Written)
}

/// What came of asking the helpers for id maps.
pub(super) enum Maps {
    Written,
    Refused(String),
}

const MAPS_WRITTEN: &str = "ok";

/// The child's part: never returns, answers [`MAPS_WRITTEN`] or what went wrong.
fn write_maps_from_outside(
    builder: Pid,
    grants: &Grants,
    mut entered: PipeReader,
    mut answer: PipeWriter,
) -> ! {
    // An end of file instead of the byte: the builder could not enter, and says so itself.
    if entered.read_exact(&mut [0]).is_ok() {
        let maps = [
            ids::map_arguments(getuid().as_raw(), &grants.uids),
            ids::map_arguments(getgid().as_raw(), &grants.gids),
        ];
        let written = match grants.by {
            Grantor::Files => run_helpers(builder, &maps),
            Grantor::Kernel => write_maps(builder, &maps),
        };
        let text = written.map_or_else(|message| message, |()| MAPS_WRITTEN.to_owned());
        // Nobody reads any more only when the builder is gone.
        let _ = answer.write_all(text.as_bytes());
    }
    std::process::exit(0)
}

/// As user_namespaces(7) lets a process of the parent namespace that has the capabilities there.
fn write_maps(target: Pid, maps: &[Vec<String>; 2]) -> Result<(), String> {
    for (file, map) in ["uid_map", "gid_map"].into_iter().zip(maps) {
        let path = format!("/proc/{}/{file}", target.as_raw_nonzero());
        let lines: Vec<_> = map.chunks(3).map(|line| line.join(" ")).collect();
        fs::write(&path, lines.join("\n")).map_err(|error| format!("write {file}: {error}"))?;
    }
    Ok(())
}

/// Both at once: most of the time they take is that of their start.
fn run_helpers(target: Pid, maps: &[Vec<String>; 2]) -> Result<(), String> {
    let start = |(helper, map): (&'static str, &Vec<String>)| {
        let mut command = Command::new(helper);
        command.arg(target.as_raw_nonzero().to_string()).args(map).stdin(Stdio::null());
        let started = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        (helper, started)
    };
    let started: Vec<_> = HELPERS.into_iter().zip(maps).map(start).collect();
    // Each is waited for, also where one has failed.
    let ended: Vec<_> = started.into_iter().map(|(helper, started)| finish_helper(helper, started)).collect();
    ended.into_iter().collect()
}

fn finish_helper(helper: &str, started: io::Result<Child>) -> Result<(), String> {
    let ended = started.and_then(Child::wait_with_output);
    let output = ended.map_err(|error| format!("{helper}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("{helper}: {} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status))
        }
    }
}

/// What every process may do where user namespaces are allowed: map its own ids to 0. The kernel wants `setgroups`
/// switched off first, so nobody can drop a group that denies him something.
pub(super) fn map_one_id(HostIds { uid, gid }: HostIds) -> Result<(), SandboxError> {
    let writes = [
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in writes {
        fs::write(file, text).map_err(|error| SandboxError::io(&format!("write {file}"), &error))?;
    }
    become_root()
}

fn become_root() -> Result<(), SandboxError> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).map_err(|errno| failed("setresgid", errno))?;
    set_thread_res_uid(uid, uid, uid).map_err(|errno| failed("setresuid", errno))
}

//! What `/proc/self` tells of a process, and the same from the kernel's own calls for a step that has no `/proc`.

use std::{collections::BTreeMap, fs};

use rustix::{
    fs::Mode,
    process::{Resource, getgroups, getrlimit, umask},
    thread::{
        CapabilitySet, capabilities, capability_is_in_ambient_set, capability_is_in_bounding_set,
        no_new_privs,
    },
};

use crate::raw::{self, Argument, Room};

/// The fields of `/proc/self/status` that probes show, blanks made one.
pub fn status() -> BTreeMap<String, String> {
    match fs::read_to_string("/proc/self/status") {
        Ok(text) => text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
            .collect(),
        Err(_) => asked().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// Soft and hard limit.
pub fn limit(resource: Resource) -> (String, String) {
    let told = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let limit = getrlimit(resource);
    (told(limit.current), told(limit.maximum))
}

fn asked() -> Vec<(&'static str, String)> {
    let old_umask = umask(Mode::empty());
    umask(old_umask);
    let held = |set: fn(&rustix::thread::CapabilitySets) -> CapabilitySet| {
        capabilities(None)
            .map_or_else(|errno| errno.to_string(), |sets| format!("{:016x}", set(&sets).bits()))
    };
    let groups = getgroups().unwrap_or_default();
    vec![
        ("Uid", ids(libc::SYS_getresuid, libc::SYS_setfsuid)),
        ("Gid", ids(libc::SYS_getresgid, libc::SYS_setfsgid)),
        ("Groups", groups.iter().map(|gid| gid.as_raw().to_string()).collect::<Vec<_>>().join(" ")),
        ("CapInh", held(|sets| sets.inheritable)),
        ("CapPrm", held(|sets| sets.permitted)),
        ("CapEff", held(|sets| sets.effective)),
        ("CapBnd", set_of(|one| capability_is_in_bounding_set(one).unwrap_or(false))),
        ("CapAmb", set_of(|one| capability_is_in_ambient_set(one).unwrap_or(false))),
        ("NoNewPrivs", no_new_privs().map_or(String::new(), |is_set| u8::from(is_set).to_string())),
        (
            "Seccomp",
            raw::call(libc::SYS_prctl, &mut [Argument::Number(PR_GET_SECCOMP)])
                .map_or(String::new(), |mode| mode.to_string()),
        ),
        ("Umask", format!("{:04o}", old_umask.bits())),
        ("SigBlk", blocked_signals()),
        ("SigIgn", ignored_signals()),
    ]
}

const PR_GET_SECCOMP: u32 = 21;

/// Real, effective, saved, and of the file system.
fn ids(get: libc::c_long, set_of_files: libc::c_long) -> String {
    let (mut real, mut effective, mut saved): (Room, Room, Room) = ([0; 4096], [0; 4096], [0; 4096]);
    let rooms = &mut [Argument::Room(&mut real), Argument::Room(&mut effective), Argument::Room(&mut saved)];
    if raw::call(get, rooms).is_err() {
        return String::new();
    }
    // Nobody is -1: nothing changes, and the old one is told.
    let of_files = raw::call(set_of_files, &mut [Argument::Number(u32::MAX)]).unwrap_or(-1);
    let number = |room: &Room| u32::from_le_bytes([room[0], room[1], room[2], room[3]]);
    format!("{} {} {} {of_files}", number(&real), number(&effective), number(&saved))
}

fn set_of(is_in: impl Fn(CapabilitySet) -> bool) -> String {
    let bits = (0..u64::BITS).filter(|bit| is_in(CapabilitySet::from_bits_retain(1 << bit)));
    format!("{:016x}", bits.fold(0_u64, |set, bit| set | 1 << bit))
}

const SET_SIZE: u32 = 8;

fn blocked_signals() -> String {
    let mut set: Room = [0; 4096];
    let arguments =
        &mut [Argument::Number(0), Argument::Number(0), Argument::Room(&mut set), Argument::Number(SET_SIZE)];
    match raw::call(libc::SYS_rt_sigprocmask, arguments) {
        Ok(_) => format!("{:016x}", first_word(&set)),
        Err(errno) => errno.to_string(),
    }
}

fn ignored_signals() -> String {
    const IGNORED: u64 = 1;
    let is_ignored = |signal: &u32| {
        let mut action: Room = [0; 4096];
        let arguments = &mut [
            Argument::Number(*signal),
            Argument::Number(0),
            Argument::Room(&mut action),
            Argument::Number(SET_SIZE),
        ];
        raw::call(libc::SYS_rt_sigaction, arguments).is_ok() && first_word(&action) == IGNORED
    };
    format!("{:016x}", (1..=64_u32).filter(is_ignored).fold(0_u64, |set, signal| set | 1 << (signal - 1)))
}

fn first_word(room: &Room) -> u64 {
    room[..8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

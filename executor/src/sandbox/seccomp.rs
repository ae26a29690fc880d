//! The system call filter of a step: a table of what is denied, and an assembler that makes a BPF program of it.
//!
//! It denies what Docker's default profile denies to a container with our capabilities, and more: all socket families
//! but four, the terminal tricks TIOCSTI and TIOCLINUX, foreign instruction sets. A denied call answers EPERM; one
//! that is newer than this table answers ENOSYS, so a C library falls back to the older call instead of giving up.
//! (`clone3` answers ENOSYS too: its flags lie in memory, where a filter cannot look.)
//!
//! A pure function of the architecture we are built for; [`super::sys::load_seccomp`] hands the program to the kernel.

mod tables;

use libc::{c_long, sock_filter};

use self::tables::{
    DENIED, DENIED_HERE, FAMILIES, NAMESPACE_FLAGS, NESTED, NETLINK_ALLOWED, PERSONALITIES, TERMINAL_REQUESTS,
};
use crate::sandbox::plan::{Nesting, SeccompProfile};

#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xC000_003E; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xC000_00B7; // AUDIT_ARCH_AARCH64
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the system call table is written for x86_64 and aarch64");

/// Calls through the x32 ABI have this bit set and the native architecture's number.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// The newest call this table has an opinion on: `removexattrat`, the same number everywhere since Linux 5.1.
const NEWEST: u32 = 466;

/// The program of a profile.
pub fn program(profile: SeccompProfile, nesting: Nesting) -> Vec<sock_filter> {
    let mut conditional = conditional_calls();
    match profile {
        SeccompProfile::Default => {}
        SeccompProfile::SharedProcesses => conditional.push(own_limits_only()),
    }
    match nesting {
        Nesting::Denied => assemble(conditional, &[NESTED, DENIED, DENIED_HERE].concat()),
        Nesting::Allowed => {
            conditional.retain(|(call, _)| *call != libc::SYS_clone);
            conditional.push(empty_keyrings_only());
            assemble(conditional, &[DENIED, DENIED_HERE].concat())
        }
    }
}

/// The heads decide on machine and number; then a search tree leads to the one leaf that has the number. The kernel runs a
/// new filter once for every call there is, to know those that it always allows, so a list would cost each step the
/// square of its length.
fn assemble(conditional: Vec<(c_long, Vec<sock_filter>)>, denied: &[c_long]) -> Vec<sock_filter> {
    let mut program = vec![load(ARCH), jump_if_equal(NATIVE_ARCH, 1, 0), answer(KILL), load(NUMBER)];
    #[cfg(target_arch = "x86_64")]
    program.extend([jump_if_any_bit(X32_BIT, 0, 1), answer(errno(libc::ENOSYS))]);
    program.extend([jump_if_greater(NEWEST, 0, 1), answer(errno(libc::ENOSYS))]);
    program.extend(search(&leaves(conditional, denied)));
    program
}

/// Neighbouring calls that are answered alike: those from `first` up to the next leaf.
struct Leaf {
    first: u32,
    body: Vec<sock_filter>,
}

/// All calls from 0 on, in order.
fn leaves(conditional: Vec<(c_long, Vec<sock_filter>)>, denied: &[c_long]) -> Vec<Leaf> {
    let allowed = || vec![answer(libc::SECCOMP_RET_ALLOW)];
    let denied = ranges(denied).into_iter();
    let mut known: Vec<(u32, u32, Vec<sock_filter>)> =
        denied.map(|(first, last)| (first, last, vec![answer(errno(libc::EPERM))])).collect();
    known.extend(conditional.into_iter().map(|(call, body)| (number(call), number(call), body)));
    known.sort_unstable_by_key(|(first, ..)| *first);
    let (mut leaves, mut next) = (Vec::new(), 0);
    for (first, last, body) in known {
        if first > next {
            leaves.push(Leaf { first: next, body: allowed() });
        }
        leaves.push(Leaf { first, body });
        next = last + 1;
    }
    leaves.push(Leaf { first: next, body: allowed() });
    leaves
}

/// Goes to the leaf of a number. A conditional jump reaches 255 instructions, so the upper half is jumped to by one that
/// reaches everything.
fn search(leaves: &[Leaf]) -> Vec<sock_filter> {
    if let [leaf] = leaves {
        return leaf.body.clone();
    }
    let (lower, upper) = leaves.split_at(leaves.len() / 2);
    let lower = search(lower);
    let mut program = match u8::try_from(lower.len()) {
        Ok(length) => vec![jump_if_at_least(upper[0].first, length, 0)],
        Err(_) => vec![jump_if_at_least(upper[0].first, 0, 1), jump(lower.len())],
    };
    program.extend(lower);
    program.extend(search(upper));
    program
}

/// Calls whose arguments decide; every body ends in an answer.
fn conditional_calls() -> Vec<(c_long, Vec<sock_filter>)> {
    let no_family = errno(libc::EAFNOSUPPORT);
    let mut socket = allow_listed(argument(0), FAMILIES);
    socket.extend([jump_if_equal(libc::AF_NETLINK as u32, 1, 0), answer(no_family)]);
    socket.extend(allow_listed(argument(2), NETLINK_ALLOWED));
    socket.push(answer(no_family));

    let mut socketpair = allow_listed(argument(0), FAMILIES);
    socketpair.push(answer(no_family));

    let mut personality = allow_listed(argument(0), PERSONALITIES);
    personality.push(answer(errno(libc::EPERM)));

    let mut ioctl = vec![load(argument(1))];
    for request in TERMINAL_REQUESTS {
        ioctl.extend([jump_if_equal(*request, 0, 1), answer(errno(libc::EPERM))]);
    }
    ioctl.push(answer(libc::SECCOMP_RET_ALLOW));

    let clone = vec![
        load(argument(0)),
        jump_if_any_bit(NAMESPACE_FLAGS, 0, 1),
        answer(errno(libc::EPERM)),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    vec![
        (libc::SYS_clone, clone),
        (libc::SYS_clone3, vec![answer(errno(libc::ENOSYS))]),
        (libc::SYS_socket, socket),
        (libc::SYS_socketpair, socketpair),
        (libc::SYS_personality, personality),
        (libc::SYS_ioctl, ioctl),
    ]
}

/// `prlimit64` of the process itself, which is what every C library makes of `setrlimit`.
fn own_limits_only() -> (c_long, Vec<sock_filter>) {
    let mut body = allow_listed(argument(0), &[0]);
    body.push(answer(errno(libc::EPERM)));
    (libc::SYS_prlimit64, body)
}

/// `keyctl` for what a builder does for each step: it joins a keyring that is new, empty and without a name.
fn empty_keyrings_only() -> (c_long, Vec<sock_filter>) {
    const JOIN_SESSION_KEYRING: u32 = 1;
    let denied = || answer(errno(libc::EPERM));
    let body = vec![
        load(argument(0)),
        jump_if_equal(JOIN_SESSION_KEYRING, 1, 0),
        denied(),
        load(argument(1)),
        jump_if_equal(0, 1, 0),
        denied(),
        // The name is a pointer, so its high half counts.
        load(argument(1) + 4),
        jump_if_equal(0, 1, 0),
        denied(),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    (libc::SYS_keyctl, body)
}

/// Loads a value and allows the call when it is one of the list; else falls through with the value loaded.
fn allow_listed(offset: u32, list: &[u32]) -> Vec<sock_filter> {
    let mut body = vec![load(offset)];
    for value in list {
        body.extend([jump_if_equal(*value, 0, 1), answer(libc::SECCOMP_RET_ALLOW)]);
    }
    body
}

/// Neighbouring numbers joined, in ascending order.
fn ranges(calls: &[c_long]) -> Vec<(u32, u32)> {
    let mut numbers: Vec<u32> = calls.iter().map(|call| number(*call)).collect();
    numbers.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("system call numbers are small and positive")
}

// Offsets in `struct seccomp_data`, seccomp(2).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Offset of the low half of an argument. The high half needs no look: the kernel takes these arguments as 32-bit
/// values. Both architectures are little-endian.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

const fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, otherwise, value)
}

const fn jump_if_greater(value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, then, otherwise, value)
}

const fn jump_if_at_least(value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, then, otherwise, value)
}

const fn jump_if_any_bit(bits: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, then, otherwise, bits)
}

fn jump(over: usize) -> sock_filter {
    let over = u32::try_from(over).expect("the whole program is short");
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, over)
}

const fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter sees of a call.
    #[derive(Clone, Copy)]
    struct Call {
        arch: u32,
        number: u32,
        arguments: [u64; 6],
    }

    fn native(number: c_long, arguments: &[u64]) -> Call {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Call { arch: NATIVE_ARCH, number: super::number(number), arguments: all }
    }

    /// Runs the program as the kernel would, for the handful of instructions it is made of.
    fn evaluate(program: &[sock_filter], call: Call) -> u32 {
        trace(program, call).0
    }

    /// The same, and how many instructions it took.
    fn trace(program: &[sock_filter], call: Call) -> (u32, usize) {
        let word = |offset: u32| match offset {
            NUMBER => call.number,
            ARCH => call.arch,
            _ => (call.arguments[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
        };
        let (mut next, mut accumulator) = (0, 0);
        for taken in 1.. {
            let sock_filter { code, jt, jf, k } = program[next];
            let holds = match u32::from(code) & 0xf7 {
                0x20 => {
                    accumulator = word(k);
                    next += 1;
                    continue;
                }
                0x06 => return (k, taken),
                0x05 => {
                    next += 1 + k as usize;
                    continue;
                }
                0x15 => accumulator == k,
                0x25 => accumulator > k,
                0x35 => accumulator >= k,
                0x45 => accumulator & k != 0,
                other => panic!("an instruction we never write: {other:#x}"),
            };
            next += 1 + usize::from(if holds { jt } else { jf });
        }
        unreachable!("every program ends in an answer")
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    #[test]
    fn calls_are_answered_by_table() {
        let newns = libc::CLONE_NEWNS as u64;
        let cases = [
            ("read", native(libc::SYS_read, &[]), ALLOW),
            ("execve", native(libc::SYS_execve, &[]), ALLOW),
            ("ptrace", native(libc::SYS_ptrace, &[]), ALLOW),
            ("chroot", native(libc::SYS_chroot, &[]), ALLOW),
            ("mount", native(libc::SYS_mount, &[]), errno(libc::EPERM)),
            ("unshare", native(libc::SYS_unshare, &[newns]), errno(libc::EPERM)),
            ("keyctl", native(libc::SYS_keyctl, &[]), errno(libc::EPERM)),
            ("bpf", native(libc::SYS_bpf, &[]), errno(libc::EPERM)),
            ("mount_setattr", native(libc::SYS_mount_setattr, &[]), errno(libc::EPERM)),
            ("fork by clone", native(libc::SYS_clone, &[libc::SIGCHLD as u64]), ALLOW),
            ("clone into a mount namespace", native(libc::SYS_clone, &[newns | 17]), errno(libc::EPERM)),
            ("clone3", native(libc::SYS_clone3, &[]), errno(libc::ENOSYS)),
            ("unix socket", native(libc::SYS_socket, &[1, 1, 0]), ALLOW),
            ("internet socket", native(libc::SYS_socket, &[10, 2, 17]), ALLOW),
            ("route netlink", native(libc::SYS_socket, &[16, 3, 0]), ALLOW),
            ("netfilter netlink", native(libc::SYS_socket, &[16, 3, 12]), errno(libc::EAFNOSUPPORT)),
            ("kernel crypto", native(libc::SYS_socket, &[38, 5, 0]), errno(libc::EAFNOSUPPORT)),
            ("packet socket", native(libc::SYS_socket, &[17, 3, 0]), errno(libc::EAFNOSUPPORT)),
            ("vsock", native(libc::SYS_socket, &[40, 1, 0]), errno(libc::EAFNOSUPPORT)),
            (
                "family hidden in the high half",
                native(libc::SYS_socket, &[1 << 32 | 38, 5]),
                errno(libc::EAFNOSUPPORT),
            ),
            ("socketpair", native(libc::SYS_socketpair, &[1, 1, 0]), ALLOW),
            ("pair of vsocks", native(libc::SYS_socketpair, &[40, 1, 0]), errno(libc::EAFNOSUPPORT)),
            ("personality question", native(libc::SYS_personality, &[0xFFFF_FFFF]), ALLOW),
            ("no address randomisation", native(libc::SYS_personality, &[0x0004_0000]), errno(libc::EPERM)),
            ("TCGETS", native(libc::SYS_ioctl, &[0, 0x5401]), ALLOW),
            ("TIOCSTI", native(libc::SYS_ioctl, &[0, 0x5412]), errno(libc::EPERM)),
            ("TIOCSTI in disguise", native(libc::SYS_ioctl, &[0, 1 << 32 | 0x5412]), errno(libc::EPERM)),
            ("TIOCLINUX", native(libc::SYS_ioctl, &[0, 0x541C]), errno(libc::EPERM)),
            ("newest known", native(466, &[]), ALLOW),
            ("newer than the table", native(467, &[]), errno(libc::ENOSYS)),
            ("from the future", native(4000, &[]), errno(libc::ENOSYS)),
            ("foreign instruction set", Call { arch: 0x4000_0003, ..native(libc::SYS_read, &[]) }, KILL),
        ];
        let program = program(SeccompProfile::Default, Nesting::Denied);
        for (name, call, expected) in cases {
            assert_eq!(evaluate(&program, call), expected, "{name}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_x32_abi_does_not_exist() {
        let call = Call { number: X32_BIT | 1, ..native(0, &[]) };
        assert_eq!(evaluate(&program(SeccompProfile::Default, Nesting::Denied), call), errno(libc::ENOSYS));
    }

    #[test]
    fn where_processes_are_shared_nobody_limits_others() {
        let shared = program(SeccompProfile::SharedProcesses, Nesting::Denied);
        let limit = |pid| native(libc::SYS_prlimit64, &[pid, 0]);
        assert_eq!(evaluate(&shared, limit(0)), ALLOW);
        assert_eq!(evaluate(&shared, limit(4711)), errno(libc::EPERM));
        assert_eq!(evaluate(&program(SeccompProfile::Default, Nesting::Denied), limit(4711)), ALLOW);
        assert_eq!(evaluate(&shared, native(libc::SYS_mount, &[])), errno(libc::EPERM));
        assert_eq!(evaluate(&shared, native(libc::SYS_read, &[])), ALLOW);
    }

    #[test]
    fn whoever_may_nest_is_given_what_that_takes_and_no_more() {
        let (nested, usual) = (
            program(SeccompProfile::Default, Nesting::Allowed),
            program(SeccompProfile::Default, Nesting::Denied),
        );
        let newuser = native(libc::SYS_clone, &[libc::CLONE_NEWUSER as u64 | 17]);
        assert_eq!(evaluate(&nested, newuser), ALLOW);
        for call in 0..=c_long::from(NEWEST) {
            let other = native(call, &[4, 1 << 40]);
            let is_given = NESTED.contains(&call) && call != libc::SYS_keyctl;
            let expected = if is_given { ALLOW } else { evaluate(&usual, other) };
            assert_eq!(evaluate(&nested, other), expected, "call {call}");
        }
        let keyring = |arguments| evaluate(&nested, native(libc::SYS_keyctl, arguments));
        assert_eq!(keyring(&[1, 0]), ALLOW);
        for refused in [&[1, 4096], &[1, 1 << 32], &[0, 0], &[11, 0]] {
            assert_eq!(keyring(refused), errno(libc::EPERM), "{refused:?}");
        }
    }

    #[test]
    fn no_call_takes_many_instructions() {
        let program = program(SeccompProfile::SharedProcesses, Nesting::Denied);
        for call in 0..=c_long::from(NEWEST) {
            let (_, taken) = trace(&program, native(call, &[u64::from(u32::MAX); 6]));
            assert!(taken <= 24, "call {call} takes {taken} of {}", program.len());
        }
    }

    #[test]
    fn no_number_has_two_leaves() {
        let leaves = leaves(conditional_calls(), &[NESTED, DENIED, DENIED_HERE].concat());
        assert!(leaves[0].first == 0 && leaves.is_sorted_by(|one, next| one.first < next.first));
    }

    #[test]
    fn every_denied_call_is_denied_and_no_other() {
        let program = program(SeccompProfile::Default, Nesting::Denied);
        let conditional: Vec<c_long> = conditional_calls().iter().map(|(call, _)| *call).collect();
        for call in 0..=c_long::from(NEWEST) {
            if conditional.contains(&call) {
                continue;
            }
            let is_denied = [NESTED, DENIED, DENIED_HERE].concat().contains(&call);
            let expected = if is_denied { errno(libc::EPERM) } else { ALLOW };
            assert_eq!(evaluate(&program, native(call, &[])), expected, "call {call}");
        }
    }
}

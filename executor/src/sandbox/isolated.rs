//! `isolated`: a network namespace of the step's own, which `pasta` connects with whatever this machine can reach
//! outside of itself.
//!
//! - Nothing in it leads to this machine's loopback, to link-local addresses or to the metadata services of clouds:
//!   pasta maps no address to this machine and opens no port on it, and what is [`FORBIDDEN`] cannot leave the
//!   namespace, since its routes end inside. A step has no capability to change routes or to write packets itself.
//! - pasta has a PID namespace of its own, or a subreaper where the machine gives none, whose first process, the
//!   *keeper*, holds one end of a socket. When the outer init lets go of the other end, or dies, so does pasta.
//! - When pasta ends by itself, so does the step: a command that waits for an answer could wait for long.
//!
//! Addresses are the same on every machine, so that no step can record which one it ran on.

use std::{
    fs::{self, File},
    io::{self, PipeReader, PipeWriter, Read, pipe},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::AsFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio, exit},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
    process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid},
    thread::UnshareFlags,
};

use crate::sandbox::{
    failure::{Failure, NameStep},
    init::{close_streams, die_with_parent},
    netlink::{Prefix, keep_local},
    plan::{Network, Processes, Rung, SandboxPlan},
    stdio::{receive_descriptor, send_descriptor},
    sys::{self, Fork},
    wire,
};

/// What fails, by name.
pub const STEP: &str = "isolate network";

/// What the interface is called inside, as in every container.
const INTERFACE: &str = "eth0";

/// How long pasta may take until it is ready; it takes a few milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// What is kept of what pasta says.
const WORDS_MAX: usize = 4 << 10;

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Prefix {
    Prefix { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
}

const fn v6(first: [u16; 3], last: u16, length: u8) -> Prefix {
    let [a, b, c] = first;
    Prefix { address: IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last)), length }
}

/// What a step cannot reach. Loopback is among it because a socket that is bound to an interface looks for it there.
const FORBIDDEN_V4: &[Prefix] = &[
    v4(0, 0, 0, 0, 8),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    // The metadata service of Alibaba Cloud.
    v4(100, 100, 100, 200, 32),
    // What gives virtual machines of Azure their settings and keys.
    v4(168, 63, 129, 16, 32),
];

/// The same of IPv6.
const FORBIDDEN_V6: &[Prefix] = &[
    v6([0, 0, 0], 1, 128),
    // IPv4 addresses, written as IPv6.
    Prefix { address: IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()), length: 96 },
    // Link-local IPv4 behind a translator (RFC 6052).
    Prefix { address: IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, 0)), length: 112 },
    v6([0xfe80, 0, 0], 0, 10),
    // The metadata services of Amazon and Google.
    v6([0xfd00, 0xec2, 0], 0x254, 128),
    v6([0xfd20, 0xce, 0], 0x254, 128),
];

/// Whether an isolated step is kept from this address, which is no IPv4 address written as IPv6.
pub fn is_forbidden(address: IpAddr) -> bool {
    FORBIDDEN_V4.iter().chain(FORBIDDEN_V6).any(|prefix| prefix.contains(address))
}

/// A user-mode stack that runs, seen from the outer init, which it has moved into its network namespace.
pub struct Stack {
    /// While this is open, pasta runs.
    lifeline: Option<UnixStream>,
    /// The child that ends when pasta has.
    pub keeper: Pid,
}

impl Stack {
    /// Starts one where the plan asks for it, and moves this process into its network.
    pub fn start(control: &UnixStream, plan: &SandboxPlan) -> Result<Option<Self>, Failure> {
        let Network::Isolated { program } = &plan.network else { return Ok(None) };
        let (ours, theirs) = UnixStream::pair().step(STEP)?;
        let (ready, says_ready) = pipe().step(STEP)?;
        // From a process that stays outside.
        let keeper = match sys::fork().step(STEP)? {
            Fork::Child => {
                drop((ours, ready));
                keep(control, Kept { lifeline: theirs, says_ready, program, plan })
            }
            Fork::Parent(pid) => pid,
        };
        drop((theirs, says_ready));
        let stack = Self { lifeline: Some(ours), keeper };
        stack.connect(ready)?;
        Ok(Some(stack))
    }

    fn connect(&self, ready: PipeReader) -> Result<(), Failure> {
        sys::unshare(UnshareFlags::NEWNET).step("unshare network namespace")?;
        sys::bring_loopback_up().step("bring loopback up")?;
        let namespace = File::open("/proc/self/ns/net").step(STEP)?;
        if let Some(lifeline) = &self.lifeline {
            send_descriptor(lifeline, &namespace).step(STEP)?;
        }
        wait_until(ready, Instant::now() + READY_WITHIN)?;
        keep_local(INTERFACE, FORBIDDEN_V4).step("forbid addresses")?;
        if speaks_ipv6(Path::new("/proc")) {
            keep_local(INTERFACE, FORBIDDEN_V6).step("forbid addresses")?;
        }
        Ok(())
    }

    /// Leaves it to the parent, in a child.
    pub fn disown(mut self) {
        self.lifeline = None;
        std::mem::forget(self);
    }
}

/// Ends it, and waits until nothing of it is left.
impl Drop for Stack {
    fn drop(&mut self) {
        self.lifeline = None;
        // Fails when somebody has waited for it already.
        let _ = retry_on_intr(|| waitpid(Some(self.keeper), WaitOptions::empty()));
    }
}

/// Whether the interface has IPv6. Where the kernel has none, or has it disabled (`disable_ipv6`, `ipv6.disable_ipv6=1`),
/// it takes no route either; no step can enable it. What cannot be read counts as enabled.
fn speaks_ipv6(proc: &Path) -> bool {
    let disabled = proc.join("sys/net/ipv6/conf").join(INTERFACE).join("disable_ipv6");
    let is_disabled = fs::read_to_string(disabled).is_ok_and(|text| text.trim() != "0");
    proc.join("self/net/if_inet6").exists() && !is_disabled
}

/// pasta says its process id when it is ready. The end of the file says that it never will be; its keeper tells why.
fn wait_until(mut ready: PipeReader, deadline: Instant) -> Result<(), Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(|_| Failure::new(STEP, "the clock is wrong"))?;
    let is_silent = {
        let mut fds = [PollFd::new(&ready, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, Some(&timeout))).step(STEP)? == 0
    };
    if is_silent {
        return Err(Failure::new(STEP, format!("pasta was not ready within {READY_WITHIN:?}")));
    }
    match ready.read(&mut [0; 64]).step(STEP)? {
        0 => Err(Failure::new(STEP, "pasta ended before it was ready")),
        _ => Ok(()),
    }
}

/// What the keeper has.
struct Kept<'a> {
    lifeline: UnixStream,
    says_ready: PipeWriter,
    program: &'a Path,
    plan: &'a SandboxPlan,
}

fn keep(control: &UnixStream, kept: Kept<'_>) -> ! {
    match kept.keep() {
        Ok(()) => exit(0),
        Err(failure) => {
            // When nobody listens, nobody needs to know.
            let _ = wire::send_report(control, &failure.report());
            exit(1)
        }
    }
}

impl Kept<'_> {
    fn keep(self) -> Result<(), Failure> {
        close_streams().step("close output")?;
        // There the keeper has to end pasta, so it must not just die: the end of the lifeline tells it.
        if self.plan.processes != Processes::Shared {
            die_with_parent(&self.lifeline)?;
            sys::unshare(UnshareFlags::NEWPID).step("unshare pid namespace")?;
            if let Fork::Parent(first) = sys::fork().step(STEP)? {
                drop(self);
                let ended = retry_on_intr(|| waitpid(Some(first), WaitOptions::empty())).step(STEP)?;
                exit(ended.and_then(|(_, status)| status.exit_status()).unwrap_or(1));
            }
            die_with_parent(&self.lifeline)?;
        }
        self.watch()
    }

    /// Runs pasta until it is needed no more; that it ends before is a failure.
    fn watch(self) -> Result<(), Failure> {
        let Self { lifeline, says_ready, program, plan } = self;
        let namespace = match receive_descriptor(&lifeline) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            received => received.step(STEP)?,
        };
        let mut pasta = Command::new(program)
            .arg0("pasta")
            .args(arguments(plan.rung))
            .env_clear()
            .current_dir("/")
            .stdin(namespace)
            .stdout(says_ready)
            .stderr(Stdio::piped())
            .spawn()
            .step(&format!("start {}", program.display()))?;
        let mut words = Words { pipe: pasta.stderr.take(), said: Vec::new() };
        match watch(&lifeline, &mut pasta, &mut words).step(STEP)? {
            None => Ok(()),
            Some(status) => Err(ended_early(status, &words.text())),
        }
    }
}

/// `-T` and `-U` would open this machine's loopback, `-t` and `-u` ports on it. Names of files are those of descriptors:
/// no path of this machine has to be readable by what pasta becomes.
fn arguments(rung: Rung) -> Vec<&'static str> {
    let mut arguments = vec!["--foreground", "--quiet"];
    if rung == Rung::Root {
        // Only root can enter root's namespaces. pasta gives up its capabilities and its file system itself.
        arguments.extend(["--runas", "0"]);
    }
    arguments.extend(["--netns-only", "--netns", "/proc/self/fd/0", "--no-netns-quit"]);
    arguments.extend(["--pid", "/proc/self/fd/1", "--config-net", "--ns-ifname", INTERFACE]);
    // RFC 7335's, which belong to nobody outside; and "layerw" in the unique local addresses of IPv6.
    arguments.extend(["--address", "192.0.0.2", "--netmask", "29", "--gateway", "192.0.0.1"]);
    arguments.extend(["--address", "fd6c:6179:6572:7700::2", "--gateway", "fd6c:6179:6572:7700::1"]);
    arguments.extend(["--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]);
    arguments.extend(["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra"]);
    // With both it does not read this machine's resolver configuration, where that is a pipe without end.
    arguments.extend(["--dns", "none", "--search", "none"]);
    arguments
}

/// Until the lifeline ends, and pasta with it; or how it ended by itself.
fn watch(lifeline: &UnixStream, pasta: &mut Child, words: &mut Words) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(pasta.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let is_wanted = loop {
        let [is_over, has_ended] = {
            let mut fds = vec![PollFd::new(lifeline, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
            fds.extend(words.pipe.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            retry_on_intr(|| poll(&mut fds, None))?;
            [0, 1].map(|index: usize| !fds[index].revents().is_empty())
        };
        if is_over || has_ended {
            break !is_over;
        }
        words.hear()?;
    };
    // One that has ended takes no signal any more: its status stays its own.
    pasta.kill()?;
    let status = pasta.wait()?;
    words.hear_the_rest()?;
    let is_our_doing = !is_wanted && status.signal() == Some(libc::SIGKILL);
    Ok((!is_our_doing).then_some(status))
}

/// The last of what pasta says.
struct Words {
    /// Until its end.
    pipe: Option<ChildStderr>,
    said: Vec<u8>,
}

impl Words {
    fn hear(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let mut buffer = [0; WORDS_MAX];
        let length = retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut buffer))?;
        if length == 0 {
            self.pipe = None;
        }
        self.said.extend_from_slice(&buffer[..length]);
        let superfluous = self.said.len().saturating_sub(WORDS_MAX);
        self.said.drain(..superfluous);
        Ok(())
    }

    /// What is there already.
    fn hear_the_rest(&mut self) -> io::Result<()> {
        while let Some(pipe) = &self.pipe {
            let mut fds = [PollFd::new(pipe, PollFlags::IN)];
            if retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))? == 0 {
                return Ok(());
            }
            self.hear()?;
        }
        Ok(())
    }

    /// Without what it says of a missing syslog.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.said);
        let lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.ends_with("to syslog"));
        lines.collect::<Vec<_>>().join("; ")
    }
}

fn ended_early(status: ExitStatus, words: &str) -> Failure {
    let said = if words.is_empty() { String::new() } else { format!(": {words}") };
    let failure = Failure::new(STEP, format!("pasta ended ({status}){said}"));
    match hint(words) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What would make pasta work, where its words tell.
fn hint(words: &str) -> Option<&'static str> {
    if words.contains("tun") {
        return Some(
            "let this user open /dev/net/tun: `chmod 0666 /dev/net/tun`, `--device /dev/net/tun` of a container",
        );
    }
    let lacks_outside =
        words.contains("routable interface") || words.contains("External interface not usable");
    lacks_outside.then_some("give this machine a default route, or build with --network=none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_can_be_there_and_disabled() {
        let proc = tempfile::tempdir().expect("a directory");
        let at = |path: &str| proc.path().join(path);
        assert!(!speaks_ipv6(proc.path()), "the kernel has none");
        fs::create_dir_all(at("self/net")).expect("made");
        fs::write(at("self/net/if_inet6"), "").expect("written");
        assert!(speaks_ipv6(proc.path()));
        fs::create_dir_all(at("sys/net/ipv6/conf/eth0")).expect("made");
        for (setting, speaks) in [("0\n", true), ("1\n", false)] {
            fs::write(at("sys/net/ipv6/conf/eth0/disable_ipv6"), setting).expect("written");
            assert_eq!(speaks_ipv6(proc.path()), speaks, "{setting}");
        }
    }
}

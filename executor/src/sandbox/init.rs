//! The two inits: what happens between the builder and the command, as a list of named steps.
//!
//! The *outer* one mounts the root file system, makes the mount points it lacks, and enters a new PID namespace by
//! forking; when that namespace has ended it takes the mount points away again, from outside, where they are mount
//! points no more. The *inner* one is PID 1: it makes the other namespaces, builds the file systems, forks the command,
//! reaps what is orphaned to it, and with its own end ends everything else.
//!
//! Both are single-threaded; neither runs code of the image.

mod supervise;

use std::{
    fs,
    io::{self, PipeReader, PipeWriter, Read, pipe},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileExt, FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    process::exit,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, makedev},
    io::{Errno, fcntl_dupfd_cloexec, retry_on_intr},
    process::{
        DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, set_dumpable_behavior,
        set_parent_process_death_signal, umask, wait,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    system::sethostname,
    thread::{UnshareFlags, set_no_new_privs},
};

use self::supervise::{Supervised, supervise};
use crate::fuse;
use crate::sandbox::{
    cgroups::StepGroup,
    chroot::Covers,
    command,
    failure::{Failure, NameStep},
    filesystem,
    isolated::Stack,
    kin::Kin,
    lacking,
    mergers::Mergers,
    mounts::{self, Opened},
    plan::{Access, Naming, Network, Processes, Root, SandboxPlan, Stdio},
    probe, stdio,
    stubs::{self, Stubs},
    sys::{self, Fork},
    wire::{self, Call, Report},
};

/// What `main` calls, and nothing after it, when [`super::is_init_call`] says so.
pub fn init_main() -> ! {
    let control = match take_control() {
        Ok(control) => control,
        Err(error) => {
            // Somebody typed the hidden argument: there is no builder to tell.
            eprintln!("layerwright {}: only layerwright itself can call this: {error}", wire::INIT_ARGUMENT);
            exit(2)
        }
    };
    if let Err(failure) = serve(&control) {
        report(&control, &failure.report());
    }
    exit(0)
}

/// The socket to the builder is our standard input; from here on standard input is empty.
fn take_control() -> io::Result<UnixStream> {
    let control = UnixStream::from(fcntl_dupfd_cloexec(io::stdin(), 3)?);
    control.peer_addr()?;
    dup2_stdin(open_null()?)?;
    Ok(control)
}

fn serve(control: &UnixStream) -> Result<(), Failure> {
    die_with_parent(control)?;
    match wire::receive_call(control).step("receive plan")? {
        Call::Run(plan) => outer(control, &plan),
        Call::Try(mode, store) => {
            report(control, &probe::attempt(mode, &store, Network::Default));
            Ok(())
        }
        Call::TryNetwork(mode, store, network) => {
            report(control, &probe::attempt(mode, &store, network));
            Ok(())
        }
        Call::TryPlatforms(mode, store) => {
            report(control, &probe::attempt_platforms(mode, &store));
            Ok(())
        }
    }
}

/// The builder reads until the end of file and takes silence for our death, so a report that cannot be sent needs no
/// other.
fn report(control: &UnixStream, report: &Report) {
    let _ = wire::send_report(control, report);
}

/// The signal alone leaves a gap, for a parent that died before it was asked for; its end of the socket closes that.
pub(super) fn die_with_parent(lifeline: impl AsFd) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("set parent death signal")?;
    let mut fds = [PollFd::new(&lifeline, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).step("look for parent")?;
    if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
        exit(1);
    }
    Ok(())
}

/// What the builder has sent behind the plan.
fn receive_handed(control: &UnixStream, kind: Stdio) -> Result<Option<OwnedFd>, Failure> {
    match kind {
        Stdio::Logged => Ok(None),
        Stdio::Fed | Stdio::Terminal { .. } => {
            stdio::receive_descriptor(control).map(Some).step("receive standard input")
        }
    }
}

fn outer(control: &UnixStream, plan: &SandboxPlan) -> Result<(), Failure> {
    umask(Mode::empty());
    let group = plan.limits.group.as_ref().map(StepGroup::make).transpose()?;
    let done = in_namespace(control, plan, group.as_ref());
    let removed = match group {
        Some(group) => {
            if group.was_out_of_memory() {
                report(control, &Report::OutOfMemory);
            }
            group.remove().step("remove control group")
        }
        None => Ok(()),
    };
    done.and(removed)
}

/// Everything between the control group of the step and its file system.
fn in_namespace(control: &UnixStream, plan: &SandboxPlan, group: Option<&StepGroup>) -> Result<(), Failure> {
    let stack = Stack::start(control, plan)?;
    // After that, for whoever keeps the network would hold it open as long as the step runs.
    let handed = receive_handed(control, plan.stdio)?;
    let (place, changes, mut mergers) = Place::prepare(plan)?;
    let (life, held_while_alive) = pipe().step("make life pipe")?;
    let kin = match plan.processes {
        Processes::Own | Processes::OuterProc => {
            sys::unshare(UnshareFlags::NEWPID).step("unshare pid namespace")?;
            None
        }
        // For what an inner init leaves that somebody has killed.
        Processes::Shared => Some(Kin::gather()?),
    };
    let inner_init = match sys::fork().step("fork init")? {
        Fork::Child => {
            drop((held_while_alive, changes));
            stack.into_iter().for_each(Stack::disown);
            mergers.disown();
            run_inner(control, &life, Ground { place, group, handed }, plan)
        }
        Fork::Parent(pid) => pid,
    };
    drop((life, place, handed));
    close_streams().step("close output")?;
    let keeper = stack.as_ref().map(|stack| stack.keeper);
    let ended = wait_for_init(inner_init, keeper, &mut mergers, held_while_alive).step("wait for init")?;
    drop(stack);
    if let Some(kin) = kin {
        kin.end_all(&mergers.processes()).step("end what is left")?;
    }
    let undone = changes.undo(plan);
    // Who merges tells better why nothing could be undone than what came of trying.
    mergers.close(plan)?;
    undone?;
    match ended.terminating_signal() {
        Some(signal) => Err(Failure::new("wait for init", format!("ended by signal {signal}"))),
        None => Ok(()),
    }
}

/// Waits for the inner init, and ends it when its network ends, or a file system of it; whoever kept that has said why, or
/// will.
fn wait_for_init(
    inner: Pid,
    keeper: Option<Pid>,
    mergers: &mut Mergers,
    held_while_alive: PipeWriter,
) -> Result<WaitStatus, Errno> {
    let mut lifeline = Some(held_while_alive);
    loop {
        match retry_on_intr(|| wait(WaitOptions::empty()))? {
            Some((pid, status)) if pid == inner => return Ok(status),
            Some((pid, _)) if Some(pid) == keeper => drop(lifeline.take()),
            Some((pid, status)) if mergers.note_end(pid, status) => drop(lifeline.take()),
            // An orphan that we have adopted.
            Some(_) | None => {}
        }
    }
}

/// Only the command may keep the builder reading, or be read to by it.
pub(super) fn close_streams() -> Result<(), Errno> {
    let null =
        open_null().map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)
}

/// The null device. A mount of the step can have put something else there, which may never open.
fn open_null() -> io::Result<fs::File> {
    let found = fs::metadata("/dev/null")?;
    if !found.file_type().is_char_device() || found.rdev() != makedev(1, 3) {
        return Err(io::Error::other("a mount covers it"));
    }
    fs::OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// The file system of a step, as the inner init gets it.
enum Place<'a> {
    /// To be put together in a mount namespace.
    Mounted {
        root: OwnedFd,
        opened: Vec<Opened<'a>>,
        /// Where the outer one hears what it has to take away.
        stubs: OwnedFd,
    },
    /// All of it is there, and nothing can be mounted.
    Directory(OwnedFd),
}

/// What the outer init has to take away of it after the step.
enum Changes {
    Stubs(OwnedFd),
    Covers(Covers),
}

impl<'a> Place<'a> {
    fn prepare(plan: &'a SandboxPlan) -> Result<(Self, Changes, Mergers), Failure> {
        if let Root::Chroot { directory, aside } = &plan.root {
            // As the plan has it for the command; the domains of the inits take it as well.
            set_no_new_privs(true).step("forbid new privileges")?;
            let covers = Covers::lay(directory, aside, &plan.files)?;
            let root = fcntl_dupfd_cloexec(covers.root(), 3).step("open root directory")?;
            return Ok((Self::Directory(root), Changes::Covers(covers), Mergers::default()));
        }
        fuse::let_it_be(plan.merger.as_deref());
        let (root, merger) = filesystem::mount_root(&plan.root, plan.marks())?.into_parts();
        let (opened, others) = mounts::open_sources(&plan.mounts, plan.marks())?;
        let mergers = Mergers::of_root(&root, merger)?.and(others);
        let (stubs, receiver) = stubs::channel().step("make stub channel")?;
        Ok((Self::Mounted { root, opened, stubs }, Changes::Stubs(receiver), mergers))
    }
}

impl Changes {
    fn undo(self, plan: &SandboxPlan) -> Result<(), Failure> {
        match self {
            Self::Covers(covers) => covers.lift(),
            Self::Stubs(receiver) => {
                let stubs = Stubs::receive(&receiver).step("learn of mount points")?;
                // Through a mount that is read-only nothing goes away; and what cannot be written becomes no layer.
                match plan.root_access {
                    Access::Write => stubs.remove().step("remove mount points"),
                    Access::Read => Ok(()),
                }
            }
        }
    }
}

/// What the outer init leaves to the inner one.
struct Ground<'a> {
    place: Place<'a>,
    /// What the command joins.
    group: Option<&'a StepGroup>,
    /// What the builder sent with the plan.
    handed: Option<OwnedFd>,
}

fn run_inner(control: &UnixStream, life: &PipeReader, ground: Ground<'_>, plan: &SandboxPlan) -> ! {
    let ended = inner(control, life, ground, plan).unwrap_or_else(|failure| Some(failure.report()));
    match ended {
        Some(ended) => report(control, &ended),
        // There is nobody to tell.
        None => exit(1),
    }
    exit(0)
}

fn inner(
    control: &UnixStream,
    life: &PipeReader,
    ground: Ground<'_>,
    plan: &SandboxPlan,
) -> Result<Option<Report>, Failure> {
    match plan.processes {
        Processes::Own | Processes::OuterProc => {
            die_with_parent(life)?;
            run_command(control, life, ground, plan)
        }
        // Whoever has to end others cannot just die. The life pipe tells.
        Processes::Shared => {
            let kin = Kin::gather()?;
            let ran = run_command(control, life, ground, plan);
            kin.end_all(&[]).step("end what is left")?;
            ran
        }
    }
}

fn run_command(
    control: &UnixStream,
    life: &PipeReader,
    ground: Ground<'_>,
    plan: &SandboxPlan,
) -> Result<Option<Report>, Failure> {
    let Ground { place, group, handed } = ground;
    if matches!(place, Place::Mounted { .. }) {
        unshare_namespaces(plan)?;
    }
    // Of a `/proc` that the step has not covered and that can be written.
    let oom_score = lacking::OOM_SCORE.if_had(OomScore::open(), plan.oom_score)?;
    let new_root = enter_place(place, plan)?;
    if let Some(score) = &oom_score {
        score.raise().step("adjust oom score")?;
    }
    let null = open_null().or_else(|error| match error.raw_os_error() {
        None => Err(Failure::of_image("open /dev/null", error.to_string())),
        Some(_) => Err(error).step("open /dev/null"),
    })?;
    stdio::connect(plan.stdio, handed, null)?;
    // Without this the step could open our program through /proc/1/exe, our memory and our descriptors.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("forbid dumps")?;
    let child_signals = sys::child_signals().step("watch children")?;
    let command = match sys::fork().step("fork command")? {
        Fork::Child => {
            let tell = |begun: &[u8]| _ = io::Write::write_all(&mut &*control, begun);
            report(control, &command::execute(plan, group, new_root.as_ref(), tell));
            exit(0)
        }
        Fork::Parent(pid) => pid,
    };
    if let Some(score) = oom_score {
        score.restore().step("adjust oom score")?;
    }
    close_streams().step("close output")?;
    supervise(Supervised { control, life, child_signals: &child_signals, command, plan })
        .step("wait for command")
}

/// Calls the step's machine by its name. A container's filter can forbid that (Docker's does, without CAP_SYS_ADMIN); the
/// usual name is a comfort and no protection, so the step then sees the one the container has.
fn set_hostname(plan: &SandboxPlan) -> Result<(), Errno> {
    match sethostname(plan.hostname.as_bytes()) {
        Err(Errno::PERM) if plan.naming == Naming::Usual => Ok(()),
        answer => answer,
    }
}

/// One after the other, for each has a limit of its own, and the kernel does not say which one was reached.
fn unshare_namespaces(plan: &SandboxPlan) -> Result<(), Failure> {
    sys::unshare(UnshareFlags::NEWNS).step("unshare mount namespace")?;
    sys::unshare(UnshareFlags::NEWIPC).step("unshare ipc namespace")?;
    sys::unshare(UnshareFlags::NEWUTS).step("unshare uts namespace")?;
    if plan.network == Network::None {
        sys::unshare(UnshareFlags::NEWNET).step("unshare network namespace")?;
    }
    let made = sys::unshare(UnshareFlags::NEWCGROUP).map_err(io::Error::from);
    lacking::CGROUP_NAMESPACE.if_had(made, plan.cgroup_namespace).map(drop)
}

/// Goes to the step's root, in namespaces of its own; gives the directory that the command itself has to make its root where
/// there are none, and where nothing of the machine is to be changed.
fn enter_place(place: Place<'_>, plan: &SandboxPlan) -> Result<Option<OwnedFd>, Failure> {
    let (root, opened, stubs_sender) = match place {
        Place::Directory(_) if plan.naming == Naming::Asked => {
            return Err(Failure::new("set hostname", "a step in a chroot shares this machine's name"));
        }
        Place::Directory(root) => return Ok(Some(root)),
        Place::Mounted { root, opened, stubs } => (root, opened, stubs),
    };
    let mut stubs = Stubs::default();
    let entered = filesystem::enter_root(root, plan, opened, &mut stubs);
    let told = stubs.send(&stubs_sender).step("tell of mount points");
    entered.and(told)?;
    set_hostname(plan).step("set hostname")?;
    if plan.network == Network::None {
        sys::bring_loopback_up().step("bring loopback up")?;
    }
    Ok(None)
}

/// How readily the kernel picks this process when memory runs out. A step goes before the builder and whatever else
/// is on the machine; we ourselves, who would take the step's exit code with us, do not.
struct OomScore {
    file: fs::File,
    before: i32,
}

impl OomScore {
    const RAISE: i32 = 500;
    const MAX: i32 = 1000;

    /// The file stays open, for it cannot be opened any more once we are not dumpable.
    fn open() -> io::Result<Self> {
        let mut file = fs::OpenOptions::new().read(true).write(true).open("/proc/self/oom_score_adj")?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let before = text.trim().parse().map_err(io::Error::other)?;
        Ok(Self { file, before })
    }

    /// Raises it, for children to inherit.
    fn raise(&self) -> io::Result<()> {
        self.set((self.before + Self::RAISE).min(Self::MAX))
    }

    fn restore(self) -> io::Result<()> {
        self.set(self.before)
    }

    fn set(&self, score: i32) -> io::Result<()> {
        self.file.write_all_at(score.to_string().as_bytes(), 0)
    }
}

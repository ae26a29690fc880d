//! A small root file system (busybox and this very program) and short ways to run something in it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use executor::sandbox::{
    self, Connection, Dns, Entered, Exit, Footing, Network, PlanError, PlanInputs, PlannedMount, Root, Rung,
    SandboxError, SandboxPlan, SecretBytes, StepLimits, User,
};
use solver::{Cancel, Stream, op};
use tempfile::TempDir;

const APPLETS: &[&str] = &[
    "cat", "chmod", "dd", "echo", "env", "false", "grep", "id", "ip", "kill", "ls", "mkdir", "mount", "mv",
    "rm", "seq", "setsid", "sh", "sleep", "stat", "touch", "tr", "true", "umount", "test",
];

/// Where the tests of one rung run.
pub struct Fixture {
    /// The rung.
    pub rung: Rung,
    /// It, and what separates processes.
    pub footing: Footing,
    /// Whether this kernel can shut steps off from the host's abstract sockets.
    pub has_scopes: bool,
    lower: TempDir,
}

/// A step with its own upper directory.
pub struct Step<'a> {
    /// What is run; tests change it before they run it.
    pub exec: op::Exec,
    /// Who runs it.
    pub user: User,
    /// Directories below, topmost first.
    pub lowers: Vec<PathBuf>,
    /// What is mounted.
    pub mounts: Vec<PlannedMount>,
    /// Secrets of its environment.
    pub secret_env: Vec<(String, SecretBytes)>,
    /// What it may use.
    pub limits: StepLimits,
    fixture: &'a Fixture,
    scratch: TempDir,
}

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub exit: Result<Exit, SandboxError>,
    /// Its output, line by line.
    pub lines: Vec<(Stream, String)>,
}

impl Fixture {
    /// `None` when there is no static busybox.
    pub fn new(entered: &Entered) -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| is_static(path))?;
        let lower = tempfile::tempdir().unwrap();
        let at = |path: &str| lower.path().join(path);
        for directory in ["bin", "lib64", "tmp"] {
            fs::create_dir(at(directory)).unwrap();
        }
        symlink("lib64", at("lib")).unwrap();
        fs::copy(busybox, at("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", at("bin").join(applet)).unwrap();
        }
        fs::copy("/proc/self/exe", at("bin/inside")).unwrap();
        for library in libraries() {
            fs::copy(&library, at("lib64").join(library.file_name().unwrap())).unwrap();
        }
        let has_scopes = !entered.notes.iter().any(|note| note.contains("Landlock"));
        let footing = entered.footing;
        Some(Self { rung: footing.rung, footing, has_scopes, lower })
    }

    /// The root file system.
    pub fn lower(&self) -> &Path {
        self.lower.path()
    }

    /// A step that runs a command line.
    pub fn shell(&self, command: &str) -> Step<'_> {
        self.step(&["/bin/sh", "-c", command])
    }

    /// A step that runs this program with `inside WHAT`.
    pub fn inside(&self, what: &str) -> Step<'_> {
        self.step(&["/bin/inside", "inside", what])
    }

    /// A step.
    pub fn step(&self, args: &[&str]) -> Step<'_> {
        let exec = op::Exec {
            env: [("PATH", "/bin"), ("LD_LIBRARY_PATH", "/lib64")]
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .into(),
            ..op::Exec::new(args.iter().copied())
        };
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("upper")).unwrap();
        fs::create_dir(scratch.path().join("work")).unwrap();
        let lowers = vec![self.lower().to_path_buf()];
        Step {
            exec,
            user: User::default(),
            lowers,
            mounts: Vec::new(),
            secret_env: Vec::new(),
            limits: StepLimits::default(),
            fixture: self,
            scratch,
        }
    }

    /// What a command line prints; it must succeed.
    pub fn output(&self, command: &str) -> String {
        self.shell(command).run().success()
    }
}

impl Step<'_> {
    /// What the step changed.
    pub fn upper(&self) -> PathBuf {
        self.scratch.path().join("upper")
    }

    /// Its plan.
    pub fn plan(&self) -> SandboxPlan {
        self.try_plan().unwrap()
    }

    /// Its plan, if it can have one.
    pub fn try_plan(&self) -> Result<SandboxPlan, PlanError> {
        let (upper, work) = (self.upper(), self.scratch.path().join("work"));
        SandboxPlan::new(PlanInputs {
            exec: &self.exec,
            ambient_env: &[],
            footing: self.fixture.footing,
            root: self.root(upper, work),
            mounts: self.mounts.clone(),
            device_env: Vec::new(),
            secret_env: self.secret_env.clone(),
            user: self.user.clone(),
            home: Some("/root"),
            connection: connection(self.exec.network),
            limits: &self.limits,
        })
    }

    /// What it is run in; a chroot has a copy.
    fn root(&self, upper: PathBuf, work: PathBuf) -> Root {
        if self.fixture.rung != Rung::Chroot {
            return Root::Overlay { lowers: self.lowers.clone(), upper, work };
        }
        let is_copied = fs::read_dir(&upper).unwrap().next().is_some();
        for lower in self.lowers.iter().rev().filter(|_| !is_copied) {
            let copied = Command::new("cp").arg("-a").arg(lower.join(".")).arg(&upper).status();
            assert!(copied.unwrap().success());
        }
        Root::Chroot { directory: upper, aside: work }
    }

    /// Runs it to its end.
    pub fn run(&self) -> Ran {
        self.run_watched(&Cancel::default(), &|_| {})
    }

    /// Runs it to its end; `watch` sees every line as it comes.
    pub fn run_watched(&self, cancel: &Cancel, watch: &(dyn Fn(&str) + Sync)) -> Ran {
        let lines = Mutex::new(Vec::new());
        let log = |stream: Stream, line: &[u8]| {
            let line = String::from_utf8_lossy(line).into_owned();
            watch(&line);
            lines.lock().unwrap().push((stream, line));
        };
        let exit = sandbox::run(&self.plan(), &log, cancel);
        Ran { exit, lines: lines.into_inner().unwrap() }
    }
}

impl Ran {
    /// Its output, when it succeeded.
    pub fn success(self) -> String {
        assert_eq!(self.exit.as_ref().ok(), Some(&Exit::Code(0)), "{self:#?}");
        self.text()
    }

    /// Its output on both streams, each line with a line end.
    pub fn text(&self) -> String {
        self.lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

/// What a step gets of a network, with a name server that nobody is.
fn connection(asked: op::Network) -> Connection {
    let shared = |network| Connection::resolved_by(network, "nameserver 192.0.2.1\n".to_owned());
    match asked {
        op::Network::Default => shared(Network::Default),
        op::Network::Host => shared(Network::Host),
        op::Network::None | op::Network::Isolated => {
            let servers = vec!["192.0.2.1".parse().unwrap()];
            Connection::new(asked, &Dns { servers, ..Dns::default() }).unwrap()
        }
    }
}

/// User and group id of a user of this machine.
pub fn ids_of(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next()?, ids.next()?))
}

/// Whether `/etc/subuid` has a line for whoever runs the tests.
pub fn subordinate_ids_of_this_user() -> bool {
    let uid = rustix::process::getuid().as_raw();
    let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
    subuid.lines().any(|line| {
        let owner = line.split(':').next().unwrap_or_default();
        owner == uid.to_string() || ids_of(owner).is_some_and(|(owner, _)| owner == uid)
    })
}

fn is_static(program: &str) -> bool {
    // The name of the dynamic loader stands in the first page of every dynamic program.
    fs::read(program)
        .is_ok_and(|bytes| !bytes[..4096.min(bytes.len())].windows(8).any(|window| window == b"/ld-linu"))
}

/// The shared libraries of this process, the loader among them; none when it is static.
fn libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    paths.filter(|path| path.contains(".so")).map(PathBuf::from).collect()
}

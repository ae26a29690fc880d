//! Programs of other machines: whether a step can run them, found out by doing it, and what it takes.
//!
//! The kernel hands programs of foreign machines to an emulator that is registered in binfmt_misc. What the host has
//! registered holds for everybody; since Linux 6.7 a user namespace can have registrations of its own, which ours gets
//! when QEMU is installed and not registered. They go with the namespace, and nobody else sees them. As root, where the
//! builder is in the host's user namespace, nothing is registered: that would change the host.
//!
//! Whoever asks gets an answer about steps: each trial is a run in the sandbox, of a program that does nothing.

mod machine;
mod qemu;

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Write,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use oci::Platform;
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::MountAttrFlags,
};
use solver::Cancel;

use self::machine::{MACHINES, Machine};
use crate::{
    once::OnceMap,
    sandbox::{Exit, Footing, Outcome, Probe, Rung, SandboxPlan, files, filesystem::new_file_system, run},
};

/// How a platform's programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// The machine or the host's registrations run them.
    Host,
    /// An emulator that this process has registered for itself runs them.
    Own,
}

/// Why a platform's programs cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this machine ({host}) cannot run programs for {platform}: {reason}", host = Platform::host())]
pub struct Unsupported {
    platform: Platform,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reason {
    /// Not for Linux, or of no machine that we know.
    Unknown,
    /// No emulator is installed that we could find.
    NotInstalled,
    /// An emulator is registered, but steps do not see its file.
    NotFixed(String),
    /// An emulator is installed, and root must register it.
    NotRegistered(PathBuf),
    /// An emulator is installed, and could not be registered.
    Refused(PathBuf, String),
    /// An emulator is registered and fails.
    Fails(PathBuf, String),
    /// The trial itself failed.
    Trial(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("only Linux's are known how to run"),
            Self::NotInstalled => f.write_str("no emulator is registered in binfmt_misc"),
            Self::NotFixed(name) => {
                write!(f, "the emulator {name} of binfmt_misc is registered without the flag F")
            }
            Self::NotRegistered(emulator) => {
                write!(f, "{} is installed, but not registered in binfmt_misc", emulator.display())
            }
            Self::Refused(emulator, why) => {
                write!(
                    f,
                    "{} is installed, but cannot be registered for this build: {why}",
                    emulator.display()
                )
            }
            Self::Fails(emulator, how) => write!(f, "{} does not work ({how})", emulator.display()),
            Self::Trial(why) => write!(f, "trying it failed: {why}"),
        }
    }
}

impl Unsupported {
    /// What to do about it.
    pub fn hint(&self) -> String {
        self.reason.hint(&self.platform.architecture)
    }
}

/// How root registers emulators that are installed.
const REGISTER: &str = "`mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc` where that is empty, then `systemctl \
    restart systemd-binfmt` or `update-binfmts --enable`";

impl Reason {
    /// What to do about it, for these architectures.
    fn hint(&self, architectures: &str) -> String {
        let install = |what: &str| {
            format!(
                "install {what}`qemu-user-static` (apt, dnf), or let root register one: `docker run --privileged --rm \
                 tonistiigi/binfmt --install {architectures}`; a stage that only compiles can run natively: FROM \
                 --platform=$BUILDPLATFORM"
            )
        };
        match self {
            Self::Unknown => "build such stages for this machine: FROM --platform=$BUILDPLATFORM".to_owned(),
            Self::NotInstalled => install(""),
            Self::Fails(..) | Self::Trial(_) => install("another version of "),
            Self::NotFixed(_) => format!("register it with F, so that it is there in every root: {REGISTER}"),
            Self::NotRegistered(_) => {
                format!("let root register it: {REGISTER}; for an ordinary user, layerwright does it itself")
            }
            Self::Refused(..) => {
                format!("that needs Linux 6.7 and CONFIG_BINFMT_MISC; else let root register it: {REGISTER}")
            }
        }
    }

    /// What several platforms have in common.
    fn summary(&self) -> String {
        match self {
            Self::NotRegistered(_) => "QEMU is installed, but not registered in binfmt_misc".to_owned(),
            Self::Refused(_, why) => {
                format!("QEMU is installed, but cannot be registered for a build: {why}")
            }
            Self::Fails(_, how) => format!("QEMU does not work ({how})"),
            other => other.to_string(),
        }
    }
}

/// What steps can run here besides this machine's own programs: a line for those that run and one for each reason why
/// others do not.
pub fn probes(footing: Footing, scratch: &Path) -> Vec<Probe> {
    let emulation = Emulation::new(footing);
    let mut found: BTreeMap<String, Vec<(String, Option<Reason>)>> = BTreeMap::new();
    for platform in foreign_platforms() {
        let (text, reason) = match emulation.support(&platform, scratch) {
            Ok(Support::Host) => ("run by what the host has registered".to_owned(), None),
            Ok(Support::Own) => ("run by QEMU, registered for each build".to_owned(), None),
            Err(error) => (error.reason.summary(), Some(error.reason)),
        };
        found.entry(text).or_default().push((platform.architecture, reason));
    }
    let mut probes: Vec<Probe> =
        found.into_iter().map(|(text, platforms)| probe(&text, &platforms)).collect();
    probes.sort_by_key(|probe| matches!(probe.outcome, Outcome::Fails { .. }));
    probes
}

fn probe(text: &str, platforms: &[(String, Option<Reason>)]) -> Probe {
    let names: Vec<&str> = platforms.iter().map(|(architecture, _)| architecture.as_str()).collect();
    let reason = format!("{}: {text}", names.join(", "));
    let outcome = match &platforms[0].1 {
        None => Outcome::Works(reason),
        Some(why) => Outcome::Fails { reason, remedy: Some(why.hint(&names.join(","))) },
    };
    Probe { name: "foreign programs".to_owned(), outcome }
}

/// What is known of foreign programs in this process. Everything is tried once.
#[derive(Debug)]
pub struct Emulation {
    footing: Footing,
    trials: OnceMap<&'static str, Result<Support, Box<Unsupported>>>,
    /// Our own binfmt_misc, which lives as long as its file system does.
    registered: OnceLock<Result<OwnedFd, String>>,
}

impl Emulation {
    /// Nothing is tried yet.
    pub fn new(footing: Footing) -> Self {
        Self { footing, trials: OnceMap::default(), registered: OnceLock::new() }
    }

    /// Whether steps can run a platform's programs, which is made so where this process can do it. `scratch` is a
    /// directory, empty or not yet there, on a file system that can hold an overlay; it is used up.
    ///
    /// # Errors
    /// [`Unsupported`]
    pub fn support(&self, platform: &Platform, scratch: &Path) -> Result<Support, Box<Unsupported>> {
        if is_native(platform) {
            return Ok(Support::Host);
        }
        let machine = Machine::of(&platform.architecture).filter(|_| platform.os == "linux");
        let unsupported = |reason| Box::new(Unsupported { platform: platform.clone(), reason });
        let machine = machine.ok_or_else(|| unsupported(Reason::Unknown))?;
        let found = self.trials.get_or_make(&machine.architecture, || {
            Ok::<_, std::convert::Infallible>(self.find(machine, scratch).map_err(unsupported))
        });
        let found = match found {
            Ok(found) => found,
            Err(never) => match never {},
        };
        // Of another variant, which is the same to an emulator, may have been asked first.
        found.map_err(|error| unsupported(error.reason))
    }

    fn has_registered(&self) -> bool {
        matches!(self.registered.get(), Some(Ok(_)))
    }

    fn find(&self, machine: &'static Machine, scratch: &Path) -> Result<Support, Reason> {
        if runs(machine, self.footing, scratch)?.is_ok() {
            return Ok(if self.has_registered() { Support::Own } else { Support::Host });
        }
        let Some(emulator) = qemu::find(machine) else {
            let unfixed = registered_without_file(machine);
            return Err(unfixed.map_or(Reason::NotInstalled, Reason::NotFixed));
        };
        if matches!(self.footing.rung, Rung::Root | Rung::Chroot) {
            return Err(Reason::NotRegistered(emulator));
        }
        let registered = self.registered.get_or_init(|| register_all(self.footing, scratch));
        if let Err(why) = registered {
            return Err(Reason::Refused(emulator, why.clone()));
        }
        match runs(machine, self.footing, scratch)? {
            Ok(()) => Ok(Support::Own),
            Err(how) => Err(Reason::Fails(emulator, how)),
        }
    }
}

/// Whether this machine runs a platform's programs itself. Variants are not looked at: a processor that lacks what a
/// program asks for says so.
pub fn is_native(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == Platform::host().architecture
}

/// The platforms that this module knows of, but for this machine's own.
fn foreign_platforms() -> Vec<Platform> {
    let host = Platform::host().architecture;
    let foreign = MACHINES.iter().filter(|machine| machine.architecture != host);
    foreign.map(|machine| Platform::new("linux", machine.architecture, None)).collect()
}

/// Runs the machine's smallest program as a step does its command; says how that ended where it is not well.
fn runs(machine: &Machine, footing: Footing, scratch: &Path) -> Result<Result<(), String>, Reason> {
    let trial = |why: &dyn fmt::Display| Reason::Trial(why.to_string());
    let plan = prepare(machine, footing, scratch).map_err(|error| trial(&error))?;
    let ended = run::run(&plan, &|_, _| {}, &Cancel::default());
    fs::remove_dir_all(scratch).map_err(|error| trial(&error))?;
    match ended.map_err(|error| trial(&error))? {
        Exit::Code(0) => Ok(Ok(())),
        other => Ok(Err(other.to_string())),
    }
}

fn prepare(
    machine: &Machine,
    footing: Footing,
    scratch: &Path,
) -> Result<SandboxPlan, Box<dyn std::error::Error + Send + Sync>> {
    const PROGRAM: &str = "program";
    let place = |name: &str| scratch.join(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir_all(place(name))?;
    }
    let program = place("lower").join(PROGRAM);
    fs::write(&program, machine.program())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let root = files::trial_root(footing, scratch);
    Ok(SandboxPlan::bare(&format!("/{PROGRAM}"), footing, root)?)
}

/// Gives our user namespace registrations of its own, one for each emulator that is installed. They take the place of
/// the host's: where one of those works that we could not replace, nothing is registered.
fn register_all(footing: Footing, scratch: &Path) -> Result<OwnedFd, String> {
    let host = Platform::host().architecture;
    let mut rules = Vec::new();
    for machine in MACHINES.iter().filter(|machine| machine.architecture != host) {
        match qemu::find(machine) {
            Some(emulator) => rules.push(machine.rule(&emulator.display().to_string())),
            None if matches!(runs(machine, footing, scratch), Ok(Ok(()))) => {
                return Err(format!("it would hide the host's emulator for {}", machine.architecture));
            }
            None => {}
        }
    }
    let failed = |what: &str, error: &dyn fmt::Display| format!("{what}: {error}");
    let mounted = new_file_system("binfmt_misc", &[], MountAttrFlags::empty())
        .map_err(|errno| failed("mount binfmt_misc", &errno))?;
    let place = openat(&mounted, "register", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed("open register", &errno))?;
    let mut place = fs::File::from(place);
    let written = rules.iter().try_for_each(|rule| place.write_all(rule.as_bytes()));
    written.map(|()| mounted).map_err(|error| failed("register", &error))
}

/// The name of an emulator that the host has registered, and whose file steps do not see because it lacks the flag F.
fn registered_without_file(machine: &Machine) -> Option<String> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let shown = fs::read_to_string(entry.path()).ok()?;
        let flags = shown.lines().find_map(|line| line.strip_prefix("flags: "))?;
        let lacks_file = machine.is_meant_by(&shown) && !flags.contains('F');
        lacks_file.then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

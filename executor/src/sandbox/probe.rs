//! What this machine allows, found out by doing it in a throw-away process: the table of `layerwright doctor`.
//!
//! Every rung is tried the whole way: enter it, mount an overlay in the store (without which there are copies), and set up a
//! step of which only the command is missing. "Not found" is then the answer that says everything before it works.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::{io::Errno, process::geteuid, system::uname};
use serde::{Deserialize, Serialize};
use solver::{Cancel, op::Relaxations};

use crate::{
    fuse,
    sandbox::{
        Exit, Files, Footing, Processes, Rung, SandboxError, SandboxPlan,
        begun::{Begun, not_any_more},
        cgroups::{self, Cgroups},
        emulation,
        enter::{self, Mode, enter_builder},
        files, network,
        plan::{Network, OPEN_FILES_HARD},
        run, sys,
        wire::{Call, Report},
    },
};

/// What [`Rung::Chroot`] is called in the table.
pub const CHROOT: &str = "chroot";

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What it is, for people: `overlay in the store`.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It works; the detail says how well (`ABI 7`, `65536 ids`).
    Works(String),
    /// It does not.
    Fails {
        /// The step that failed and what the kernel said.
        reason: String,
        /// The one setting that would lift it, where we know it.
        remedy: Option<String>,
    },
    /// It does not, and no build of this user here would use it.
    NotNeeded(String),
}

impl Outcome {
    fn fails(reason: impl Into<String>, remedy: Option<&str>) -> Self {
        Outcome::Fails { reason: reason.into(), remedy: remedy.map(str::to_owned) }
    }

    fn of(error: &SandboxError) -> Self {
        Outcome::fails(error.to_string(), error.hint())
    }

    /// The same where it does not matter that it fails.
    fn not_needed(self, why: &str) -> Self {
        match self {
            Outcome::Fails { .. } => Outcome::NotNeeded(why.to_owned()),
            other => other,
        }
    }
}

/// What came of everything, and what a build stands on.
#[derive(Debug)]
pub struct Findings {
    /// Everything that was tried.
    pub probes: Vec<Probe>,
    /// What a build with this store takes, where it can have anything.
    pub footing: Option<Footing>,
}

/// Tries everything. `store` is a store's root, which need not be there: the directory above is asked about overlay then. May be
/// called before or after [`enter_builder`], and tells what could be done from there.
pub fn probe(store: &Path) -> Findings {
    let trials = all_rungs(store);
    let mut probes = vec![Probe {
        name: "kernel".to_owned(),
        outcome: Outcome::Works(uname().release().to_string_lossy().into_owned()),
    }];
    probes.extend(rungs(&trials));
    probes.push(chroot(&trials, store));
    let features = [
        ("user namespaces", "unshare user namespace"),
        ("overlay in the store", "overlay"),
        ("PID namespaces", "unshare pid namespace"),
        ("a fresh /proc", "mount /proc"),
        ("system call filter", "load seccomp filter"),
    ];
    probes.extend(
        features.map(|(name, step)| Probe { name: name.to_owned(), outcome: feature(&trials, name, step) }),
    );
    let machine = [
        ("Landlock scopes", landlock()),
        ("open files", open_files(enter::too_few_open_files())),
        ("cgroups", control_groups(cgroups::of_this_process())),
        (fuse::NAME, fuse_overlayfs(&trials)),
    ];
    probes.extend(machine.map(|(name, outcome)| Probe { name: name.to_owned(), outcome }));
    let best = trials.iter().find(|trial| trial.result.is_ok());
    probes.extend(best.map(|trial| isolated_network(trial.mode, store)));
    probes.extend(best.into_iter().flat_map(|trial| foreign_programs(trial.mode, store)));
    let footing = best.and_then(|trial| trial.result.as_ref().ok()).map(|reached| reached.footing);
    Findings { probes, footing }
}

/// Tries the rungs, from the best one down.
fn all_rungs(store: &Path) -> Vec<Trial> {
    let mut trials = vec![(Rung::SubordinateIds, Mode::SubordinateIds), (Rung::SingleId, Mode::SingleId)];
    if enter::is_privileged() {
        trials.insert(0, (Rung::Root, Mode::Auto));
    }
    distinct(trials.into_iter().map(|(rung, mode)| attempt_apart(rung, mode, store)).collect())
}

/// Each rung once, by what was found there: root of a user namespace that somebody else has made, as of `unshare -r`, stands on
/// the rung of its ids.
fn distinct(mut trials: Vec<Trial>) -> Vec<Trial> {
    for trial in &mut trials {
        if let Ok(reached) = &trial.result {
            trial.rung = reached.footing.rung;
        }
    }
    let mut rungs: Vec<Trial> = Vec::new();
    for trial in trials {
        match rungs.iter().any(|known| known.rung == trial.rung && known.result.is_ok()) {
            true => {}
            false => rungs.push(trial),
        }
    }
    rungs.sort_by_key(|trial| trial.rung);
    rungs
}

/// The rung that nobody gets who has not named it, and for which there is a reason only where all others fail.
fn chroot(trials: &[Trial], store: &Path) -> Probe {
    let better = trials.iter().find(|trial| trial.result.is_ok());
    let outcome = match better {
        Some(better) => Outcome::NotNeeded(format!("not needed: {} works", better.rung)),
        None if !geteuid().is_root() => Outcome::NotNeeded("for root alone".to_owned()),
        None => match attempt_apart(Rung::Chroot, Mode::Chroot, store).result {
            Ok(_) => Outcome::Works("where it is named: --sandbox=chroot".to_owned()),
            Err(error) => Outcome::of(&error),
        },
    };
    Probe { name: CHROOT.to_owned(), outcome }
}

/// The rungs from the best one down; below one that works no other is needed.
fn rungs(trials: &[Trial]) -> Vec<Probe> {
    let mut working: Option<Rung> = None;
    let mut probes = Vec::new();
    for trial in trials {
        let outcome = match working {
            Some(better) => trial.outcome().not_needed(&not_needed(better, trial)),
            None => trial.outcome(),
        };
        if trial.result.is_ok() {
            working.get_or_insert(trial.rung);
        }
        probes.push(Probe { name: trial.rung.to_string(), outcome });
    }
    probes
}

/// What to say of a rung below one that works. Root can have asked for the user namespace by name.
fn not_needed(better: Rung, trial: &Trial) -> String {
    let usual = format!("not needed: {better} works");
    match &trial.result {
        Err(error) if (better, trial.rung) == (Rung::Root, Rung::SubordinateIds) => {
            let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{usual}; --sandbox=userns is refused: {error}{hint}")
        }
        _ => usual,
    }
}

/// What came of trying a rung.
struct Trial {
    rung: Rung,
    mode: Mode,
    result: Result<Reached, SandboxError>,
}

/// A rung that works.
struct Reached {
    footing: Footing,
    id_map: String,
    /// What the kernel said to processes and a `/proc` of a step's own, and to overlays.
    refusals: Vec<SandboxError>,
    /// Why there are copies.
    note: Option<String>,
}

impl Trial {
    fn outcome(&self) -> Outcome {
        match &self.result {
            Ok(Reached { footing, id_map, .. })
                if (footing.processes, footing.files) == (Processes::Own, Files::Merged) =>
            {
                Outcome::Works(id_map.clone())
            }
            Ok(Reached { footing, id_map, note, .. }) => {
                let note = note.iter().map(|note| format!("; {note}")).collect::<String>();
                Outcome::Works(format!("{id_map}; {footing}{note}"))
            }
            Err(error) => Outcome::of(error),
        }
    }
}

fn attempt_apart(rung: Rung, mode: Mode, store: &Path) -> Trial {
    Trial { rung, mode, result: ask_entered(&Call::Try(mode, store.to_path_buf())) }
}

fn ask_entered(call: &Call) -> Result<Reached, SandboxError> {
    match run::ask(call)?.into_iter().next() {
        Some(Report::Entered(footing, id_map, refusals, note)) => {
            let explained =
                |(step, errno): (String, i32)| SandboxError::errno(&step, Errno::from_raw_os_error(errno));
            Ok(Reached { footing, id_map, refusals: refusals.into_iter().map(explained).collect(), note })
        }
        Some(Report::Failed { step, message, errno, hint }) => {
            Err(SandboxError::reported(&step, message, errno, hint))
        }
        other => Err(SandboxError::InitDied(format!("{other:?}"))),
    }
}

/// A step with a network of its own, all the way. No build needs one that does not ask for it. Without a user-mode stack the
/// one with nothing but a loopback is tried, which needs none.
fn isolated_network(mode: Mode, store: &Path) -> Probe {
    let tried = |network| ask_entered(&Call::TryNetwork(mode, store.to_path_buf(), network)).err();
    let outcome = match network::find_stack() {
        None => no_stack(tried(Network::None)),
        Some(program) => match tried(Network::Isolated { program: program.clone() }) {
            None => Outcome::Works(program.display().to_string()),
            // The one with nothing but a loopback is made in the same way.
            Some(error) if of_step(&error, "unshare network namespace") => no_network(&error),
            Some(error) => Outcome::NotNeeded(format!("--network=isolated is refused: {}", advised(&error))),
        },
    };
    Probe { name: "isolated network".to_owned(), outcome }
}

/// What to say where there is no user-mode stack, and this came of a network without one.
fn no_stack(refused: Option<SandboxError>) -> Outcome {
    match refused {
        Some(error) => no_network(&error),
        None => Outcome::NotNeeded(format!("--network=isolated is refused: {}", network::INSTALL)),
    }
}

fn no_network(error: &SandboxError) -> Outcome {
    Outcome::NotNeeded(format!("--network=isolated and --network=none are refused: {}", advised(error)))
}

/// An error, and what would lift it.
fn advised(error: &SandboxError) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{error}{hint}")
}

fn foreign_programs(mode: Mode, store: &Path) -> Vec<Probe> {
    let name = "foreign programs".to_owned();
    match run::ask(&Call::TryPlatforms(mode, store.to_path_buf())).map(|mut reports| reports.pop()) {
        Ok(Some(Report::Probes(probes))) => probes,
        Ok(other) => vec![Probe { name, outcome: Outcome::fails(format!("no answer ({other:?})"), None) }],
        Err(error) => vec![Probe { name, outcome: Outcome::of(&error) }],
    }
}

/// In the throw-away process: enters and tries the programs of every machine.
pub(super) fn attempt_platforms(mode: Mode, store: &Path) -> Report {
    let directory = trial_directory(store);
    let probes = enter_builder(mode, Relaxations::default()).and_then(|entered| {
        let footing = with_files(entered.footing, store, &directory)?.footing;
        let probes = emulation::probes(footing, &directory.join("programs"));
        fs::remove_dir_all(&directory).map_err(|error| SandboxError::io("clean the store", &error))?;
        Ok(probes)
    });
    match probes {
        Ok(probes) => Report::Probes(probes),
        Err(error) => Report::Failed {
            step: "enter".to_owned(),
            message: error.to_string(),
            errno: None,
            hint: error.hint().map(str::to_owned),
        },
    }
}

/// In the throw-away process: enters and runs a step without a command.
pub(super) fn attempt(mode: Mode, store: &Path, network: Network) -> Report {
    match attempt_step(mode, store, network) {
        Ok(entered) => entered,
        Err(SandboxError::Step { step, message, errno, hint }) => {
            Report::Failed { step, message, errno: errno.map(Errno::raw_os_error), hint }
        }
        Err(error) => {
            Report::Failed { step: "try".to_owned(), message: error.to_string(), errno: None, hint: None }
        }
    }
}

fn attempt_step(mode: Mode, store: &Path, network: Network) -> Result<Report, SandboxError> {
    let entered = enter_builder(mode, Relaxations::default())?;
    let directory = trial_directory(store);
    let tried = try_step(entered.footing, store, &directory, network);
    let removed = fs::remove_dir_all(&directory);
    let (WithFiles { footing, refusals, note }, exit) = tried?;
    match exit {
        Exit::NotExecuted { code: 127, .. } => {}
        other => return Err(SandboxError::InitDied(format!("a command that is not there: {other:?}"))),
    }
    removed.map_err(|error| SandboxError::io("clean the store", &error))?;
    let refusals = entered.refusal.into_iter().chain(refusals.into_iter().filter_map(refusal)).collect();
    Ok(Report::Entered(footing, entered.id_map, refusals, note))
}

/// A directory of a trial's own in the store, or in the nearest directory above that is there: the same file system, as a rule.
fn trial_directory(store: &Path) -> PathBuf {
    let existing = store.ancestors().find(|directory| directory.is_dir()).unwrap_or(Path::new("/"));
    existing.join(format!("probe-{}", std::process::id()))
}

/// A step of a refusal, and its number.
type Refusal = (String, i32);

/// What a build with a store stands on.
struct WithFiles {
    footing: Footing,
    refusals: Vec<SandboxError>,
    note: Option<String>,
}

fn try_step(
    footing: Footing,
    store: &Path,
    directory: &Path,
    network: Network,
) -> Result<(WithFiles, Exit), SandboxError> {
    let found = with_files(footing, store, directory)?;
    let trial = directory.join("step");
    let made = ["lower", "upper", "work"].iter().try_for_each(|name| fs::create_dir_all(trial.join(name)));
    made.map_err(|error| SandboxError::io("write to the store", &error))?;
    let plan = SandboxPlan::bare("/nothing", found.footing, files::trial_root(found.footing, &trial))
        .map_err(|error| SandboxError::step("plan", &error.to_string(), None))?;
    let exit = super::run(&SandboxPlan { network, ..plan }, &|_, _| {}, &Cancel::default())?;
    Ok((found, exit))
}

/// The footing that a build with a store has, and what the kernel says to overlays below a directory, which is made.
fn with_files(footing: Footing, store: &Path, directory: &Path) -> Result<WithFiles, SandboxError> {
    let place = |name: &str| {
        let trial = directory.join(name);
        fs::create_dir_all(&trial).map_err(|error| SandboxError::io("write to the store", &error))?;
        Ok::<_, SandboxError>(trial)
    };
    let overlay = || files::try_overlay(&place("overlay")?, footing.rung);
    let begun = Begun::of(store)?;
    place("")?;
    let decided = match (footing.rung, begun) {
        (Rung::Chroot, _) => begun.for_chroot()?,
        // A build would not try, and its steps would fail.
        (_, Begun::Merged) => match overlay()? {
            Some(refusal) => return Err(not_any_more("overlay", &refusal)),
            None => begun.decide(|| Ok::<_, SandboxError>(None), || Ok(None))?,
        },
        _ => begun.decide(overlay, || files::try_fuse(&place("fuse")?, footing.relaxed))?,
    };
    let footing = Footing { files: decided.files, ..footing };
    Ok(WithFiles { footing, refusals: decided.refusals, note: decided.note })
}

/// What is told of a refusal.
fn refusal(error: SandboxError) -> Option<Refusal> {
    match error {
        SandboxError::Step { step, errno, .. } => {
            Some((step, errno.map_or(Errno::IO, |errno| errno).raw_os_error()))
        }
        SandboxError::NoPlace { .. } | SandboxError::InitDied(_) | SandboxError::Cancelled => None,
    }
}

/// A feature works when a rung that uses it does, and else is to blame for a failure at its own step only.
fn feature(trials: &[Trial], name: &str, step: &str) -> Outcome {
    let uses = |trial: &&Trial| name != "user namespaces" || trial.rung != Rung::Root;
    let mut earlier = None;
    for trial in trials.iter().filter(uses) {
        match &trial.result {
            Ok(Reached { refusals, .. }) => {
                let refusal = refusals.iter().find(|refusal| of_step(refusal, step));
                return refusal.map_or_else(|| Outcome::Works(trial.rung.to_string()), Outcome::of);
            }
            Err(error) if of_step(error, step) => return Outcome::of(error),
            Err(error) => earlier = earlier.or(Some(error)),
        }
    }
    Outcome::fails(earlier.map_or("not tried".to_owned(), |error| format!("not reached ({error})")), None)
}

fn of_step(error: &SandboxError, step: &str) -> bool {
    matches!(error, SandboxError::Step { step: failed, .. } if failed.starts_with(step))
}

fn landlock() -> Outcome {
    match sys::landlock_abi() {
        abi @ sys::LANDLOCK_ABI_WITH_SCOPES.. => Outcome::Works(format!("ABI {abi}")),
        0 => {
            Outcome::fails("this kernel has no Landlock", Some("boot a kernel with CONFIG_SECURITY_LANDLOCK"))
        }
        abi => Outcome::fails(
            format!("ABI {abi} cannot scope sockets and signals"),
            Some("use Linux 6.12 or newer"),
        ),
    }
}

/// How many files each process of a step can open: the hard limit, up to which it can raise its own.
fn open_files(limit: Option<u64>) -> Outcome {
    let wanted = OPEN_FILES_HARD;
    match limit {
        None => Outcome::Works(format!("up to {wanted} for each process of a step")),
        Some(limit) => Outcome::fails(
            format!("each process of a step can open {limit} files, not {wanted}"),
            Some(&format!(
                "raise the hard limit before the builder starts: `ulimit -Hn {wanted}` as root, `* hard nofile {wanted}` in \
                 /etc/security/limits.conf, LimitNOFILE={wanted} of a service, or `--ulimit nofile=1024:{wanted}` of a container"
            )),
        ),
    }
}

/// Needed by `--memory` and its like only.
fn control_groups(found: Cgroups) -> Outcome {
    match found {
        Cgroups::None => Outcome::NotNeeded("none are mounted; --memory and its like are refused".to_owned()),
        Cgroups::Version1(_) => Outcome::NotNeeded("version 1; --memory and its like are refused".to_owned()),
        Cgroups::Version2 { group, controllers } if cgroups::is_delegated(&group) => {
            let controllers: Vec<String> = controllers.into_iter().collect();
            Outcome::Works(format!("version 2, delegated at {group}: {}", controllers.join(" ")))
        }
        Cgroups::Version2 { group, .. } => Outcome::NotNeeded(format!(
            "version 2, {group} is not delegated; --memory and its like may be refused"
        )),
    }
}

/// Who merges layers where the kernel refuses.
fn fuse_overlayfs(trials: &[Trial]) -> Outcome {
    let Some(Reached { refusals, .. }) = trials.iter().find_map(|trial| trial.result.as_ref().ok()) else {
        return Outcome::NotNeeded("not reached".to_owned());
    };
    match refusals.iter().find(|refusal| of_step(refusal, "fuse")) {
        Some(refusal) => Outcome::of(refusal),
        None => Outcome::NotNeeded("not needed: overlay works".to_owned()),
    }
}

#[cfg(test)]
mod tests;

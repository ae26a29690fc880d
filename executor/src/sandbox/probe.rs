//! What this machine allows, found out by doing it in a throw-away process: the table of `layerwright doctor`.
//!
//! Every rung is tried the whole way: enter it, mount an overlay in the store (without which there are copies), and set up a
//! step of which only the command is missing. "Not found" is then the answer that says everything before it works.

use std::{fs, path::Path};

use rustix::{io::Errno, process::geteuid, system::uname};
use serde::{Deserialize, Serialize};
use solver::{Cancel, op::Relaxations};

use crate::{
    fuse,
    sandbox::{
        Exit, Files, Footing, Processes, Rung, SandboxError, SandboxPlan,
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

/// Tries everything. `store` is the directory whose file system is asked about overlay; it must exist. May be called
/// before or after [`enter_builder`], and tells what could be done from there.
pub fn probe(store: &Path) -> Vec<Probe> {
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
    probes
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
}

impl Trial {
    fn outcome(&self) -> Outcome {
        match &self.result {
            Ok(Reached { footing, id_map, .. })
                if (footing.processes, footing.files) == (Processes::Own, Files::Merged) =>
            {
                Outcome::Works(id_map.clone())
            }
            Ok(Reached { footing, id_map, .. }) => Outcome::Works(format!("{id_map}; {footing}")),
            Err(error) => Outcome::of(error),
        }
    }
}

fn attempt_apart(rung: Rung, mode: Mode, store: &Path) -> Trial {
    Trial { rung, mode, result: ask_entered(&Call::Try(mode, store.to_path_buf())) }
}

fn ask_entered(call: &Call) -> Result<Reached, SandboxError> {
    match run::ask(call)?.into_iter().next() {
        Some(Report::Entered(footing, id_map, refusals)) => {
            let explained =
                |(step, errno): (String, i32)| SandboxError::errno(&step, Errno::from_raw_os_error(errno));
            Ok(Reached { footing, id_map, refusals: refusals.into_iter().map(explained).collect() })
        }
        Some(Report::Failed { step, message, errno, hint }) => {
            Err(SandboxError::reported(&step, message, errno, hint))
        }
        other => Err(SandboxError::InitDied(format!("{other:?}"))),
    }
}

/// A step with a network of its own, all the way. No build needs one that does not ask for it.
fn isolated_network(mode: Mode, store: &Path) -> Probe {
    let outcome = match network::find_stack() {
        None => Outcome::NotNeeded(format!("--network=isolated is refused: {}", network::INSTALL)),
        Some(program) => match ask_entered(&Call::TryNetwork(mode, store.to_path_buf(), program.clone())) {
            Ok(_) => Outcome::Works(program.display().to_string()),
            Err(error) => {
                let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                Outcome::NotNeeded(format!("--network=isolated is refused: {error}{hint}"))
            }
        },
    };
    Probe { name: "isolated network".to_owned(), outcome }
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
    let directory = store.join(format!("probe-{}", std::process::id()));
    let probes = enter_builder(mode, Relaxations::default()).and_then(|entered| {
        let (footing, _) = with_files(entered.footing, &directory)?;
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
    let directory = store.join(format!("probe-{}", std::process::id()));
    let tried = try_step(entered.footing, &directory, network);
    let removed = fs::remove_dir_all(&directory);
    let (footing, refusals, exit) = tried?;
    match exit {
        Exit::NotExecuted { code: 127, .. } => {}
        other => return Err(SandboxError::InitDied(format!("a command that is not there: {other:?}"))),
    }
    removed.map_err(|error| SandboxError::io("clean the store", &error))?;
    Ok(Report::Entered(footing, entered.id_map, entered.refusal.into_iter().chain(refusals).collect()))
}

/// A step of a refusal, and its number.
type Refusal = (String, i32);

fn try_step(
    footing: Footing,
    directory: &Path,
    network: Network,
) -> Result<(Footing, Vec<Refusal>, Exit), SandboxError> {
    let (footing, refusals) = with_files(footing, directory)?;
    let trial = directory.join("step");
    let made = ["lower", "upper", "work"].iter().try_for_each(|name| fs::create_dir_all(trial.join(name)));
    made.map_err(|error| SandboxError::io("write to the store", &error))?;
    let plan = SandboxPlan::bare("/nothing", footing, files::trial_root(footing, &trial))
        .map_err(|error| SandboxError::step("plan", &error.to_string(), None))?;
    let exit = super::run(&SandboxPlan { network, ..plan }, &|_, _| {}, &Cancel::default())?;
    Ok((footing, refusals, exit))
}

/// The footing with what the kernel says to overlays below a directory, which is made.
fn with_files(footing: Footing, directory: &Path) -> Result<(Footing, Vec<Refusal>), SandboxError> {
    if footing.rung == Rung::Chroot {
        let made = fs::create_dir_all(directory);
        made.map_err(|error| SandboxError::io("write to the store", &error))?;
        return Ok((footing, Vec::new()));
    }
    let trial = directory.join("overlay");
    fs::create_dir_all(&trial).map_err(|error| SandboxError::io("write to the store", &error))?;
    Ok(match files::try_overlay(&trial, footing.rung)? {
        None => (footing, Vec::new()),
        Some(overlay) => {
            let trial = directory.join("fuse");
            fs::create_dir_all(&trial).map_err(|error| SandboxError::io("write to the store", &error))?;
            let fuse = files::try_fuse(&trial, Relaxations::default())?;
            let files = if fuse.is_some() { Files::Copied } else { Files::Fused };
            let refusals = [Some(overlay), fuse].into_iter().flatten().filter_map(refusal);
            (Footing { files, ..footing }, refusals.collect())
        }
    })
}

/// What is told of a refusal.
fn refusal(error: SandboxError) -> Option<Refusal> {
    match error {
        SandboxError::Step { step, errno, .. } => {
            Some((step, errno.map_or(Errno::IO, |errno| errno).raw_os_error()))
        }
        SandboxError::InitDied(_) | SandboxError::Cancelled => None,
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
    let Some(Reached { footing, refusals, .. }) = trials.iter().find_map(|trial| trial.result.as_ref().ok())
    else {
        return Outcome::NotNeeded("not reached".to_owned());
    };
    let program = || fuse::program().map(|program| program.display().to_string()).unwrap_or_default();
    match (footing.files, refusals.iter().find(|refusal| of_step(refusal, "fuse"))) {
        (Files::Fused, _) => Outcome::Works(program()),
        (Files::Copied, Some(refusal)) => Outcome::of(refusal),
        (Files::Merged | Files::Copied, _) => Outcome::NotNeeded("not needed: overlay works".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(rung: Rung) -> Reached {
        let footing = Footing {
            rung,
            processes: Processes::Own,
            files: Files::Merged,
            relaxed: Relaxations::default(),
        };
        Reached { footing, id_map: "ids".to_owned(), refusals: Vec::new() }
    }

    #[test]
    fn a_limit_of_open_files_stands_beside_what_lifts_it() {
        assert!(matches!(open_files(None), Outcome::Works(how) if how.contains("524288")));
        let Outcome::Fails { reason, remedy } = open_files(Some(20_000)) else { panic!("it is too low") };
        assert!(reason.contains("20000 files, not 524288"), "{reason}");
        assert!(remedy.expect("there is one").contains("LimitNOFILE=524288"));
    }

    #[test]
    fn root_of_a_namespace_stands_on_the_rung_of_its_ids() {
        let tried = |rung, found| Trial { rung, mode: Mode::Auto, result: Ok(reached(found)) };
        let failed = |rung| Trial {
            rung,
            mode: Mode::SubordinateIds,
            result: Err(SandboxError::step("/etc/subuid", "no range", Some("usermod".to_owned()))),
        };
        let one = Rung::SingleId;
        let trials = distinct(vec![tried(Rung::Root, one), failed(Rung::SubordinateIds), tried(one, one)]);
        let found: Vec<_> = trials.iter().map(|trial| (trial.rung, trial.result.is_ok())).collect();
        assert_eq!(found, [(Rung::SubordinateIds, false), (one, true)]);
        assert_eq!(trials[1].mode, Mode::Auto, "what a build would take");
    }

    #[test]
    fn root_hears_what_a_user_namespace_lacks_for_it() {
        let refused = SandboxError::step("/etc/subuid", "no range", Some("usermod".to_owned()));
        let trials = vec![
            Trial { rung: Rung::Root, mode: Mode::Auto, result: Ok(reached(Rung::Root)) },
            Trial { rung: Rung::SubordinateIds, mode: Mode::SubordinateIds, result: Err(refused) },
        ];
        let Outcome::NotNeeded(told) = &rungs(&trials)[1].outcome else { panic!("no build needs it") };
        assert!(
            told.contains("--sandbox=userns is refused: sandbox: /etc/subuid: no range (usermod)"),
            "{told}"
        );
    }

    #[test]
    fn below_a_rung_that_works_nothing_is_missed() {
        let trial = |rung, works: bool| Trial {
            rung,
            mode: Mode::Auto,
            result: if works { Ok(reached(rung)) } else { Err(SandboxError::step("x", "no", None)) },
        };
        let of = |outcomes: [bool; 3]| {
            let rungs_in_order = [Rung::Root, Rung::SubordinateIds, Rung::SingleId];
            let trials: Vec<Trial> =
                rungs_in_order.into_iter().zip(outcomes).map(|(rung, works)| trial(rung, works)).collect();
            let mark = |probe: Probe| match probe.outcome {
                Outcome::Works(_) => "ok",
                Outcome::Fails { .. } => "no",
                Outcome::NotNeeded(_) => "-",
            };
            rungs(&trials).into_iter().map(mark).collect::<Vec<_>>()
        };
        assert_eq!(of([true, false, true]), ["ok", "-", "ok"]);
        assert_eq!(of([false, true, false]), ["no", "ok", "-"]);
        assert_eq!(of([false, false, true]), ["no", "no", "ok"]);
    }
}

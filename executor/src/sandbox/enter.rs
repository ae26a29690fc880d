//! Moves the builder itself into a mount namespace of its own, and, as an ordinary user, into a user namespace.
//!
//! Both are entered in place: no wrapper process remains, so signals and `kill -9` meet the builder itself, and its
//! parent waits for the right process. Inside, the builder is root over the ids it was granted; store, diff and export
//! see the same ids as the steps do, and there is no second code path.

mod maps;

use std::{fs, path::Path, sync::OnceLock};

use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    process::{Resource, geteuid, getgid, getrlimit, getuid},
    thread::{CapabilitySet, UnshareFlags, capabilities},
};
use serde::{Deserialize, Serialize};
use solver::op::{Relaxation, Relaxations};

pub(crate) use self::maps::more_ids;
use self::maps::{Grantor, Grants, Maps, enter_with_ranges, grants, map_one_id};
use crate::sandbox::{
    Rung, SandboxError, chroot,
    hint::{self, Circumstances},
    ids,
    plan::{Files, Footing, OPEN_FILES_HARD, Processes},
    processes, rlimits, sys,
};

/// Which rung to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The first that works: root, subordinate ids, one id.
    #[default]
    Auto,
    /// Root or subordinate ids, or fail.
    Strict,
    /// A user namespace with subordinate ids, or fail; for root, too.
    SubordinateIds,
    /// A user namespace with one id, or fail; for root, too.
    SingleId,
    /// No namespace: a chroot, or fail.
    Chroot,
}

/// Where the builder is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// Whose ids it has, and what separates the processes of its steps.
    pub footing: Footing,
    /// The user and group id maps, `uid 0 1000 1,1 100000 65536 gid 0 1000 1,1 100000 65536`: what is in the store
    /// means something under these only.
    pub id_map: String,
    /// The step at which the kernel refused steps processes and a `/proc` of their own, and the error's number.
    pub refusal: Option<(String, i32)>,
    /// What a person should know: why it is not a better rung, which protections this kernel lacks.
    pub notes: Vec<String>,
}

/// Enters, without the lines that `relaxed` lets go where the machine lacks them. To be called first thing in `main`, while the
/// process has one thread.
///
/// # Errors
/// The step that failed, with errno and the one setting that would lift it.
pub fn enter_builder(mode: Mode, relaxed: Relaxations) -> Result<Entered, SandboxError> {
    // Only there the kernel tells of threads, maps and open files by number.
    if !Path::new("/proc/self").exists() {
        let hint = Some(hint::MOUNT_PROC.to_owned());
        return Err(SandboxError::step("enter namespaces", "there is no /proc", hint));
    }
    had_one_id();
    if !sys::is_single_threaded() {
        return Err(SandboxError::step("enter namespaces", "this process has several threads already", None));
    }
    rlimits::raise_open_files().map_err(|errno| failed("raise the limit of open files", errno))?;
    let mut entered = match mode {
        Mode::Chroot => chroot::enter(),
        Mode::Auto => {
            let offer = chroot::offer();
            enter(mode, relaxed).map_err(|error| error.or_else(offer))
        }
        Mode::Strict | Mode::SubordinateIds | Mode::SingleId => enter(mode, relaxed),
    }?;
    entered.footing.relaxed = relaxed;
    Ok(entered)
}

fn enter(mode: Mode, relaxed: Relaxations) -> Result<Entered, SandboxError> {
    // Inside a namespace without a map everybody is nobody: the ids must be asked for before.
    let own = HostIds { uid: getuid().as_raw(), gid: getgid().as_raw() };
    let mut notes = Vec::new();
    let userns = if is_privileged() && matches!(mode, Mode::Auto | Mode::Strict) {
        UserNamespace::Found
    } else {
        UserNamespace::Made
    };
    match mode {
        Mode::Auto | Mode::Strict if is_privileged() => own_mount_namespace()?,
        Mode::Auto => enter_best_user_namespace(own, &mut notes)?,
        Mode::Strict => {
            // What else is refused there would stop any build.
            let lacks_ids = |error: &SandboxError| matches!(error, SandboxError::Step { errno: None, .. });
            enter_full_user_namespace(own, &mut notes).map_err(|error| match lacks_ids(&error) {
                true => error.refused_by_strict("a single user id"),
                false => error,
            })?;
        }
        Mode::SubordinateIds => enter_full_user_namespace(own, &mut notes)?,
        Mode::SingleId => {
            enter_user_namespace()?;
            map_one_id(own)?;
        }
        Mode::Chroot => return chroot::enter(),
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| failed("make mounts private", errno))?;
    notes.extend(missing_protection());
    let (uid_map, gid_map) = id_maps()?;
    let rung = match ids::mapped(&uid_map).min(ids::mapped(&gid_map)) {
        _ if ids::is_initial(&uid_map) => Rung::Root,
        0 | 1 => Rung::SingleId,
        _ => Rung::SubordinateIds,
    };
    let (processes, refusal) = match rung {
        Rung::Root => (Processes::Own, None),
        Rung::SubordinateIds | Rung::SingleId | Rung::Chroot => {
            separation(mode, userns, relaxed, &mut notes)?
        }
    };
    if mode == Mode::Strict && rung == Rung::SingleId {
        // Root of a namespace that somebody else has made.
        let hint = "give the container this runs in more ids than one, or build without --sandbox=strict";
        let one = SandboxError::step("user namespace", "there is one user id only", Some(hint.to_owned()));
        return Err(one.refused_by_strict("a single user id"));
    }
    Ok(Entered {
        footing: Footing { rung, processes, files: Files::Merged, relaxed },
        id_map: ids::describe(&uid_map, &gid_map),
        refusal,
        notes,
    })
}

/// Whose the user namespace of a build is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UserNamespace {
    /// Its own: no other builder is in it.
    Made,
    /// That of a container, and of whatever else runs there.
    Found,
}

/// What separates the processes of steps here, and the refusal that made it so.
fn separation(
    mode: Mode,
    userns: UserNamespace,
    relaxed: Relaxations,
    notes: &mut Vec<String>,
) -> Result<(Processes, Option<(String, i32)>), SandboxError> {
    let (step, errno, processes) = match processes::probe()? {
        processes::Found::Own => return Ok((Processes::Own, None)),
        processes::Found::NoProc(errno) => ("mount /proc", errno, Processes::OuterProc),
        processes::Found::NoNamespace(errno) => ("unshare pid namespace", errno, Processes::Shared),
        processes::Found::Unknown(errno) => {
            return Err(failed("try a pid namespace", Errno::from_raw_os_error(errno)));
        }
    };
    let refusal = failed(step, Errno::from_raw_os_error(errno));
    let has_scopes = sys::landlock_abi() >= sys::LANDLOCK_ABI_WITH_SCOPES;
    let kept_apart = apart(processes, userns, has_scopes);
    let is_allowed = kept_apart == Apart::UnlessOthersLook && relaxed.contain(Relaxation::NoLandlock);
    if mode == Mode::Strict {
        return Err(refusal.refused_by_strict(match processes {
            Processes::Shared => "shared processes",
            _ => "this machine's /proc",
        }));
    }
    if kept_apart != Apart::Yes && !is_allowed {
        let way = kept_apart == Apart::UnlessOthersLook;
        return Err(refusal.or_else(way.then_some(WITHOUT_SCOPES)));
    }
    let hint = refusal.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    let what = match processes {
        Processes::Shared => "steps share this machine's processes and /proc",
        _ => "steps see this machine's /proc",
    };
    notes.push(format!("{what}: {refusal}{hint}"));
    Ok((processes, Some((step.to_owned(), errno))))
}

/// What should protect the host from steps and this kernel does not have.
fn missing_protection() -> Option<String> {
    (sys::landlock_abi() < sys::LANDLOCK_ABI_WITH_SCOPES).then(|| NO_SCOPES.to_owned())
}

/// Whether a step is kept from what is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apart {
    Yes,
    /// But for what else is in the builder's user namespace: that could be looked into.
    UnlessOthersLook,
    No,
}

/// Without the domain that scopes come with a step could end the builder, and whatever else this user runs, and nobody could end
/// all of it ([`super::kin`]); and with the machine's `/proc` it could look into the steps of other builders of its user
/// namespace.
fn apart(processes: Processes, userns: UserNamespace, has_scopes: bool) -> Apart {
    match (processes, userns) {
        _ if has_scopes => Apart::Yes,
        (Processes::Own, _) | (Processes::OuterProc, UserNamespace::Made) => Apart::Yes,
        (Processes::OuterProc, UserNamespace::Found) => Apart::UnlessOthersLook,
        (Processes::Shared, _) => Apart::No,
    }
}

/// What to say where nothing but the lack of them is in the way.
const WITHOUT_SCOPES: &str = "use Linux 6.12, whose Landlock keeps a step from others whose /proc it sees; or \
    --sandbox-allow=no-landlock builds without it (docs/sandbox.md)";

const NO_SCOPES: &str = "this kernel has no Landlock scopes (Linux 6.12): a step on the builder's network can reach \
    abstract sockets of the host";

/// Who this process is outside.
#[derive(Debug, Clone, Copy)]
struct HostIds {
    uid: u32,
    gid: u32,
}

/// Whether this process may mount: real root, or root of a user namespace somebody else has made.
pub(super) fn is_privileged() -> bool {
    let may_mount = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    geteuid().is_root() && may_mount
}

/// Whether this process was in a user namespace of one id before it entered its own. Inside nobody can tell, so
/// [`enter_builder`] asks first.
pub(super) fn had_one_id() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // Not by `id_maps`: where that fails, its error has a hint, which asks here.
    let map = || fs::read_to_string("/proc/self/uid_map");
    *FOUND.get_or_init(|| map().is_ok_and(|uids| ids::mapped(&uids) <= 1))
}

/// The hard limit, where it is lower than what steps should have and we may not raise it. Few steps open as many, so a build
/// says nothing of it.
pub(super) fn too_few_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile).maximum?;
    (limit < OPEN_FILES_HARD && !rlimits::may_raise()).then_some(limit)
}

fn own_mount_namespace() -> Result<(), SandboxError> {
    sys::unshare(UnshareFlags::NEWNS).map_err(|errno| failed("unshare mount namespace", errno))
}

/// Subordinate ids where they are granted, else one id and a note why.
fn enter_best_user_namespace(own: HostIds, notes: &mut Vec<String>) -> Result<(), SandboxError> {
    let grants = match grants(own) {
        Ok(grants) => grants,
        Err(error) => {
            let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            notes.push(format!("one user id only: {error}{hint}"));
            enter_user_namespace()?;
            return map_one_id(own);
        }
    };
    note_few_ids(&grants, notes);
    let machine = Circumstances::of_this_machine();
    match enter_with_ranges(&grants)? {
        Maps::Written => Ok(()),
        // Typically a container without setuid programs: no map is written yet, so our own can still be.
        Maps::Refused(why) => {
            let is_helpers = grants.by == Grantor::Files;
            let hint = is_helpers.then(|| hint::for_step(MAPS, None, &machine)).flatten();
            let hint = hint.map(|hint| format!(" ({hint})"));
            notes.push(format!("one user id only: {why}{}", hint.unwrap_or_default()));
            map_one_id(own)
        }
    }
}

/// Subordinate ids or an error that says what they lack.
fn enter_full_user_namespace(own: HostIds, notes: &mut Vec<String>) -> Result<(), SandboxError> {
    let grants = grants(own)?;
    note_few_ids(&grants, notes);
    let machine = Circumstances::of_this_machine();
    match enter_with_ranges(&grants)? {
        Maps::Written => Ok(()),
        Maps::Refused(why) => Err(maps_refused(&why, &machine)),
    }
}

const MAPS: &str = "write id maps";

/// `machine` is what it was outside: inside a user namespace a process seems to have all capabilities.
fn maps_refused(why: &str, machine: &Circumstances) -> SandboxError {
    SandboxError::step(MAPS, why, hint::for_step(MAPS, None, machine))
}

fn note_few_ids(grants: &Grants, notes: &mut Vec<String>) {
    let count = grants.smallest();
    if count < ids::ENOUGH {
        notes.push(format!("only {count} subordinate ids: steps that use a higher id will fail"));
    }
}

fn enter_user_namespace() -> Result<(), SandboxError> {
    sys::unshare(UnshareFlags::NEWUSER).map_err(|errno| failed("unshare user namespace", errno))?;
    own_mount_namespace()
}

/// What the ids of this process mean outside.
pub(super) fn id_maps() -> Result<(String, String), SandboxError> {
    let read = |file: &str| {
        fs::read_to_string(file).map_err(|error| SandboxError::io(&format!("read {file}"), &error))
    };
    Ok((read("/proc/self/uid_map")?, read("/proc/self/gid_map")?))
}

fn failed(step: &str, errno: Errno) -> SandboxError {
    SandboxError::errno(step, errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_landlock_is_needed_for_can_be_let_go_only_where_a_step_can_still_be_ended() {
        let (made, found) = (UserNamespace::Made, UserNamespace::Found);
        for (processes, userns, with, without) in [
            (Processes::OuterProc, made, Apart::Yes, Apart::Yes),
            (Processes::OuterProc, found, Apart::Yes, Apart::UnlessOthersLook),
            (Processes::Shared, made, Apart::Yes, Apart::No),
            (Processes::Shared, found, Apart::Yes, Apart::No),
        ] {
            assert_eq!((apart(processes, userns, true), apart(processes, userns, false)), (with, without));
        }
    }
}

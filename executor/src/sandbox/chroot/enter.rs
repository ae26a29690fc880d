//! Where a builder is that enters nothing: what it must be allowed for all that, and when somebody is told of this way.

use std::path::Path;

use oci::store::Store;
use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    process::geteuid,
    thread::{CapabilitySet, capabilities},
};
use solver::op::Relaxations;

use crate::sandbox::{
    Rung, SandboxError,
    begun::MARKER,
    enter::{Entered, Mode, enter_builder, id_maps},
    ids,
    plan::{Files, Footing, Processes},
    sys,
};

/// What the builder does that takes a capability: all of them are among those that Docker gives.
const NEEDED: [(CapabilitySet, &str); 10] = [
    (CapabilitySet::CHOWN, "CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "FOWNER"),
    (CapabilitySet::FSETID, "FSETID"),
    (CapabilitySet::KILL, "KILL"),
    (CapabilitySet::MKNOD, "MKNOD"),
    (CapabilitySet::SETGID, "SETGID"),
    (CapabilitySet::SETPCAP, "SETPCAP"),
    (CapabilitySet::SETUID, "SETUID"),
    (CapabilitySet::SYS_CHROOT, "SYS_CHROOT"),
];

/// What a person has to know who names it.
const LACKS: &str = "a step in a chroot has no namespaces: it shares this machine's processes, network and shared memory, \
    sees no /proc, and sudo has no effect in it (docs/sandbox.md)";

/// Looks whether a chroot can be had, and enters nothing.
///
/// # Errors
/// What it lacks.
pub fn enter() -> Result<Entered, SandboxError> {
    let lack = |message: &str, hint: &str| Err(SandboxError::step("chroot", message, Some(hint.to_owned())));
    if !geteuid().is_root() {
        return lack("only root can do it", "build without --sandbox=chroot: that takes a user namespace");
    }
    let missing = missing_capabilities();
    if !missing.is_empty() {
        let message = format!("this process lacks capabilities that Docker gives: {}", missing.join(" "));
        return lack(
            &message,
            "let the container keep them (Docker: --cap-add, Kubernetes: capabilities.add)",
        );
    }
    if sys::landlock_abi() < sys::LANDLOCK_ABI_WITH_SCOPES {
        let message = "there are no Landlock scopes, and nothing else would keep a step from this machine's other processes";
        return lack(
            message,
            "use Linux 6.12 or newer, and a system call filter that allows landlock_* as Docker's does",
        );
    }
    let (uid_map, gid_map) = id_maps()?;
    if ids::mapped(&uid_map).min(ids::mapped(&gid_map)) <= 1 {
        return lack("there is one user id only", "give the container this runs in more ids than one");
    }
    Ok(Entered {
        footing: Footing {
            rung: Rung::Chroot,
            processes: Processes::Shared,
            files: Files::Copied,
            relaxed: Relaxations::default(),
        },
        id_map: ids::describe(&uid_map, &gid_map),
        refusal: None,
        notes: vec![LACKS.to_owned()],
    })
}

/// Enters the namespaces that see the files of a store as the build did that made it, to look after it. A store of copies needs
/// none where its owner is root: a chroot has made it where there are no namespaces, and nothing in it is mounted.
///
/// # Errors
/// As those of [`enter_builder`].
pub fn enter_for_store(mode: Mode, store: &Path) -> Result<(), SandboxError> {
    let Err(error) = enter_builder(mode, Relaxations::default()) else { return Ok(()) };
    let needs_none =
        geteuid().is_root() && store.join(MARKER).exists() && Store::is_of_this_process(store) == Some(true);
    if needs_none { Ok(()) } else { Err(error) }
}

fn missing_capabilities() -> Vec<&'static str> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    NEEDED.into_iter().filter(|(needed, _)| !held.contains(*needed)).map(|(_, name)| name).collect()
}

/// Whether a node in the root file system would open anything: in a step of another build, for one, it would not.
fn opens_devices() -> bool {
    statvfs("/").is_ok_and(|found| !found.f_flag.contains(StatVfsMountFlags::NODEV))
}

/// What to say of it besides where nothing else can be had; nothing where it cannot be had either. To be asked before anything
/// is entered: inside of a namespace everybody seems to have all capabilities.
pub fn offer() -> Option<&'static str> {
    (enter().is_ok() && opens_devices()).then_some(
        "--sandbox=chroot builds without namespaces: a step then shares this machine's processes, network and shared memory, and \
         has no /proc, no mounts and no sudo (docs/sandbox.md)",
    )
}

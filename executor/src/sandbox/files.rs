//! Whether the kernel merges layers where the store lies, found out by mounting: it refuses on an overlay, on file systems
//! without attributes, in a user namespace before Linux 5.11, and wherever nothing may be mounted. There every file
//! system is a copy ([`crate::copies`]), or fuse-overlayfs merges them ([`crate::fuse`]), where somebody has allowed for that.
//!
//! A store is of one form, that of its first snapshot: [`MARKER`] lies in one of copies, [`FUSED`] in one whose layers
//! fuse-overlayfs reads ([`super::begun`]).

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci::store::{Store, StoreError};
use rustix::{
    fs::{AtFlags, Mode, OFlags, open, openat, unlinkat},
    io::Errno,
};
use solver::op::Relaxation;

use crate::{
    fuse::{self, Merged},
    mount::{MountError, Overlay, OverlayMarks, OverlaySync, aside, mount_overlay},
    sandbox::{
        Mode as Rungs, Root, SandboxError,
        begun::{Begun, FUSED, MARKER},
        failure::{Failure, NameStep},
        plan::{Files, Footing, Rung},
    },
    whiteout::make_whiteout,
};

/// What a build stands on, once its store is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The whole of it.
    pub footing: Footing,
    /// What a person should know: that file systems are copied, why, and what would change that.
    pub note: Option<String>,
}

/// Finds out how the file systems of a store come about; an empty one is of that form from then on.
///
/// # Errors
/// The store cannot be read or written, or `mode` is strict and there are no overlays.
pub fn settle(footing: Footing, store: &Store, mode: Rungs) -> Result<Settled, SettleError> {
    let begun = Begun::of(store.root())?;
    let overlay =
        || -> Result<_, SettleError> { Ok(try_overlay(store.temp_dir("overlay")?.path(), footing.rung)?) };
    let fuse = || match footing.relaxed.contain(Relaxation::FuseOverlayfs) {
        true => Ok::<_, SettleError>(try_fuse(store.temp_dir("fuse")?.path())?),
        false => Ok(Some(unallowed_fuse())),
    };
    let decided = match mode {
        _ if footing.rung == Rung::Chroot => begun.for_chroot()?,
        Rungs::Strict => begun.decide_strictly(overlay)?,
        _ => begun.decide(overlay, fuse)?,
    };
    match decided.files {
        Files::Fused if begun == Begun::Not => store.write_atomic(Path::new(FUSED), b"")?,
        Files::Copied if begun == Begun::Not => store.write_atomic(Path::new(MARKER), b"")?,
        Files::Merged | Files::Fused | Files::Copied => {}
    }
    Ok(Settled { footing: Footing { files: decided.files, ..footing }, note: decided.note })
}

/// Why it is not known how file systems come about.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are no overlays, and there must be; or trying failed by itself.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Mounts an overlay in an empty directory, and makes the marks that its layers need; gives the refusal, if it is one.
///
/// # Errors
/// It failed for another reason: no room, no descriptors.
pub fn try_overlay(directory: &Path, rung: Rung) -> Result<Option<SandboxError>, SandboxError> {
    let failed = |error| SandboxError::io("write to the store", &error);
    ["lower", "upper", "work"]
        .iter()
        .try_for_each(|name| fs::create_dir(directory.join(name)))
        .map_err(failed)?;
    let Err(failure) = overlay_with_marks(directory, rung) else { return Ok(None) };
    let error = SandboxError::from(failure);
    match &error {
        SandboxError::Step { errno: Some(errno), .. } if is_refusal(*errno) => Ok(Some(error)),
        _ => Err(error),
    }
}

fn is_refusal(errno: Errno) -> bool {
    let refusals = [Errno::INVAL, Errno::PERM, Errno::ACCESS, Errno::NODEV, Errno::NOSYS, Errno::OPNOTSUPP];
    refusals.contains(&errno)
}

fn overlay_with_marks(directory: &Path, rung: Rung) -> Result<(), Failure> {
    let place = |name: &str| directory.join(name);
    let (lower, upper, work) = (place("lower"), place("upper"), place("work"));
    let marks = OverlayMarks::from(rung);
    let overlay =
        Overlay { lowers: &[&lower], writable: Some((&upper, &work)), marks, sync: OverlaySync::Ignored };
    // The directory is a throw-away one, and says nothing to anybody.
    match mount_overlay(&overlay) {
        Ok(merged) => drop(merged),
        Err(error) => Err(error.errno).step(&format!("overlay {}", error.step))?,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lower = open(&lower, flags, Mode::empty()).step("open a layer")?;
    make_whiteout(&lower, b"gone").step("mark what is gone")?;
    marks.mark_opaque(&lower).step("mark an opaque directory")
}

/// Why fuse-overlayfs is not taken by who has not allowed for what it does wrong: that, or what it lacks at first sight.
pub fn unallowed_fuse() -> SandboxError {
    match fuse::reach() {
        Ok(_) => SandboxError::errno(MERGES_OTHERWISE, Errno::OPNOTSUPP),
        Err(error) => refused_mount(&error),
    }
}

fn refused_mount(error: &MountError) -> SandboxError {
    let message = format!("{}: {}{}", error.path.display(), error.errno, aside(&error.said));
    SandboxError::refused(error.step, message, Some(error.errno))
}

/// Has fuse-overlayfs merge something in an empty directory: writes, reads, removes, and looks at what is left of it; gives what
/// is missing, if anything is.
///
/// # Errors
/// It failed for another reason: no room, no descriptors.
pub fn try_fuse(directory: &Path) -> Result<Option<SandboxError>, SandboxError> {
    let place = |name: &str| directory.join(name);
    let (lower, upper, work) = (place("lower"), place("upper"), place("work"));
    let made = [&lower, &upper, &work].into_iter().try_for_each(fs::create_dir);
    made.and_then(|()| fs::write(lower.join("gone"), ""))
        .map_err(|error| SandboxError::io("write to the store", &error))?;
    let (marks, sync) = (OverlayMarks::Names, OverlaySync::Ignored);
    let overlay = Overlay { lowers: &[&lower], writable: Some((&upper, &work)), marks, sync };
    let merged = match mount_overlay(&overlay) {
        Ok(merged) => merged,
        Err(error) => return Ok(Some(refused_mount(&error))),
    };
    let worked = write_and_remove(&merged).map_err(|errno| SandboxError::errno("fuse write", errno));
    let closed = fuse::close(merged, &upper, &[lower])
        .map_err(|error| SandboxError::step("fuse close", &error.to_string(), None));
    if let Err(error) = worked.and(closed) {
        return Ok(Some(error));
    }
    let is_there = fs::read(upper.join("made")).is_ok_and(|made| made == b"made");
    let is_gone = upper.join(".wh.gone").exists() && !upper.join("gone").exists();
    let lack = || SandboxError::step("fuse close", "what was written is not there", None);
    Ok((!is_there || !is_gone).then(lack))
}

/// Why it is taken only where somebody allows for it: no version up to 1.14 leaves what the kernel's overlay does. After
/// `rm -r d; mkdir d; mv d e` of a lower directory `d` is there again; new directories do not have the group of one with the
/// set-group-ID bit; changing the owner of a file of several names parts them.
pub const MERGES_OTHERWISE: &str = "fuse-overlayfs merges otherwise than the kernel";

fn write_and_remove(root: &Merged) -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(root, "made", flags, Mode::RUSR | Mode::WUSR)?;
    rustix::io::write(&file, b"made")?;
    let mut back = [0; 8];
    let length = rustix::io::pread(&file, &mut back, 0)?;
    if &back[..length] != b"made" {
        return Err(Errno::IO);
    }
    unlinkat(root, "gone", AtFlags::empty())
}

/// The root file system of a trial: what is in `lower` of a directory that has `upper` and `work` as well.
pub fn trial_root(footing: Footing, directory: &Path) -> Root {
    let place = |name: &str| -> PathBuf { directory.join(name) };
    match footing.files {
        Files::Merged | Files::Fused => {
            Root::Overlay { lowers: vec![place("lower")], upper: place("upper"), work: place("work") }
        }
        Files::Copied if footing.rung == Rung::Chroot => {
            Root::Chroot { directory: place("lower"), aside: place("work") }
        }
        Files::Copied => Root::Directory(place("lower")),
    }
}

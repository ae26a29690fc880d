//! Whether the kernel merges layers where the store lies, found out by mounting: it refuses on an overlay, on file systems
//! without attributes, in a user namespace before Linux 5.11, and wherever nothing may be mounted. There every file
//! system is a copy ([`crate::copies`]), or fuse-overlayfs merges them ([`crate::fuse`]), where it does as the kernel would, or
//! somebody allows for what it does otherwise.
//!
//! A store is of one form, that of its first snapshot: [`MARKER`] lies in one of copies, [`FUSED`] in one whose layers
//! fuse-overlayfs reads ([`super::begun`]).

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci::store::{Store, StoreError};
use rustix::{
    fs::{AtFlags, Mode, OFlags, chmodat, mkdirat, open, openat, renameat, statat, unlinkat},
    io::Errno,
};
use solver::op::{Relaxation, Relaxations};

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
    let fuse =
        || -> Result<_, SettleError> { Ok(try_fuse(store.temp_dir("fuse")?.path(), footing.relaxed)?) };
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

fn refused_mount(error: &MountError) -> SandboxError {
    let message = format!("{}: {}{}", error.path.display(), error.errno, aside(&error.said));
    SandboxError::refused(error.step, message, Some(error.errno))
}

/// Has fuse-overlayfs merge something in an empty directory: writes, reads, removes, and looks at what is left of it; gives what
/// is missing, if anything is. One that merges otherwise than the kernel is none, but for who allows for that.
///
/// # Errors
/// It failed for another reason: no room, no descriptors.
pub fn try_fuse(directory: &Path, relaxed: Relaxations) -> Result<Option<SandboxError>, SandboxError> {
    let place = |name: &str| directory.join(name);
    let (lower, upper, work) = (place("lower"), place("upper"), place("work"));
    let directories = [&lower, &upper, &work, &lower.join(REPLACED)];
    let made = directories.into_iter().try_for_each(fs::create_dir);
    made.and_then(|()| fs::write(lower.join("gone"), ""))
        .map_err(|error| SandboxError::io("write to the store", &error))?;
    let (marks, sync) = (OverlayMarks::Names, OverlaySync::Ignored);
    let overlay = Overlay { lowers: &[&lower], writable: Some((&upper, &work)), marks, sync };
    let merged = match mount_overlay(&overlay) {
        Ok(merged) => merged,
        Err(error) => return Ok(Some(refused_mount(&error))),
    };
    let worked = write_and_remove(&merged).map_err(|errno| SandboxError::errno("fuse write", errno));
    let otherwise = match relaxed.contain(Relaxation::FuseOverlayfs) {
        true => Ok(()),
        false => merges_as_the_kernel(&merged),
    };
    let closed = fuse::close(merged, &upper, &[lower])
        .map_err(|error| SandboxError::step("fuse close", &error.to_string(), None));
    if let Err(error) = worked.and(otherwise).and(closed) {
        return Ok(Some(error));
    }
    let is_there = fs::read(upper.join("made")).is_ok_and(|made| made == b"made");
    let is_gone = upper.join(".wh.gone").exists() && !upper.join("gone").exists();
    let lack = || SandboxError::step("fuse close", "what was written is not there", None);
    Ok((!is_there || !is_gone).then(lack))
}

/// Why it is not taken by who has not allowed for that.
pub const MERGES_OTHERWISE: &str = "fuse-overlayfs merges otherwise than the kernel";

/// A directory of the lower layer of a trial.
const REPLACED: &str = "replaced";

/// Looks for what versions up to 1.14 are known to make of a step without a word: any of it, and an image would depend on what
/// has merged it.
fn merges_as_the_kernel(root: &Merged) -> Result<(), SandboxError> {
    let otherwise = |what: &str| Err(SandboxError::refused(MERGES_OTHERWISE, what.to_owned(), None));
    let failed = |errno| SandboxError::errno("fuse write", errno);
    if brings_back(root).map_err(failed)? {
        return otherwise("a directory that was removed, made again and renamed is there again");
    }
    if !hands_group_on(root).map_err(failed)? {
        return otherwise("a directory in one with the set-group-ID bit has not got it");
    }
    Ok(())
}

/// `rm -r d; mkdir d; mv d e` of a directory `d` of a lower layer.
fn brings_back(root: &Merged) -> Result<bool, Errno> {
    unlinkat(root, REPLACED, AtFlags::REMOVEDIR)?;
    mkdirat(root, REPLACED, Mode::RWXU)?;
    renameat(root, REPLACED, root, "renamed")?;
    match statat(root, REPLACED, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(false),
        found => found.map(|_| true),
    }
}

/// `mkdir d; chmod g+s d; mkdir d/e`.
fn hands_group_on(root: &Merged) -> Result<bool, Errno> {
    mkdirat(root, "group", Mode::RWXU)?;
    chmodat(root, "group", Mode::RWXU | Mode::SGID, AtFlags::empty())?;
    mkdirat(root, "group/made", Mode::RWXU)?;
    let made = statat(root, "group/made", AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Mode::from_raw_mode(made.st_mode).contains(Mode::SGID))
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_host_root;

    fn merged(directory: &Path, marks: OverlayMarks) -> Merged {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| directory.join(name));
        [&lower, &upper, &work, &lower.join(REPLACED)]
            .iter()
            .for_each(|at| fs::create_dir(at).expect("made"));
        let writable = Some((upper.as_path(), work.as_path()));
        mount_overlay(&Overlay { lowers: &[&lower], writable, marks, sync: OverlaySync::Ignored })
            .expect("it merges")
    }

    #[test]
    fn the_kernel_merges_as_the_kernel() {
        if !is_host_root() {
            eprintln!("SKIPPED: not root, who can mount");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let merged = merged(directory.path(), OverlayMarks::from(Rung::Root));
        merges_as_the_kernel(&merged).expect("it does");
    }

    #[test]
    fn a_program_that_does_otherwise_is_taken_by_who_allows_for_that() {
        if !is_host_root() || fuse::reach().is_err() {
            eprintln!("SKIPPED: fuse-overlayfs is not installed, or /dev/fuse is not ours to open");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let merged = merged(directory.path(), OverlayMarks::Names);
        let is_alike = !brings_back(&merged).expect("it works") && hands_group_on(&merged).expect("it works");
        let tried = |relaxed| {
            let directory = tempfile::tempdir().expect("a directory");
            try_fuse(directory.path(), relaxed).expect("it can be tried").map(|error| error.to_string())
        };
        let found = tried(Relaxations::default());
        assert_eq!(found.is_none(), is_alike, "{found:?}");
        assert_eq!(tried([Relaxation::FuseOverlayfs].into_iter().collect()), None);
    }
}

//! Whether the kernel merges layers where the store lies, found out by mounting: it refuses on an overlay, on file systems
//! without attributes, in a user namespace before Linux 5.11, and wherever nothing may be mounted. There fuse-overlayfs merges
//! them, where it is installed and may serve ([`crate::fuse`]); else every file system is a copy ([`crate::copies`]).
//!
//! A store is of one form, that of its first snapshot: [`MARKER`] lies in one of copies, [`FUSED`] in one whose layers
//! fuse-overlayfs reads.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci::store::{Store, StoreError};
use rustix::{
    fs::{AtFlags, Mode, OFlags, open, openat, unlinkat},
    io::Errno,
};
use solver::op::{Relaxation, Relaxations};

use crate::{
    fuse::{self, Merged},
    mount::{Overlay, OverlayMarks, OverlaySync, aside, mount_overlay},
    sandbox::{
        Mode as Rungs, Root, SandboxError,
        failure::{Failure, NameStep},
        plan::{Files, Footing, Rung},
    },
    whiteout::make_whiteout,
};

/// The file in a store that says that its snapshots are copies.
pub const MARKER: &str = "copies";

/// The file in a store that says that its layers are marked for fuse-overlayfs.
const FUSED: &str = "fuse-overlayfs";

/// Why it cannot go on where fuse-overlayfs does not work any more.
const BEGUN_WITH_FUSE: &str = "this store was begun with fuse-overlayfs, which does not work now";

/// Why there are copies where the kernel mounts an overlay, and what would change that.
const BEGUN_WITH_COPIES: &str = "this store was begun where overlay was refused, and holds copies";
const BEGIN_ANEW: &str = "let --root name another directory, or remove this one";

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
    if footing.rung == Rung::Chroot {
        return settle_chroot(footing, store);
    }
    let merged = Settled { footing: Footing { files: Files::Merged, ..footing }, note: None };
    if store.root().join(FUSED).exists() {
        return settle_fused(footing, store, mode);
    }
    let is_marked = store.root().join(MARKER).exists();
    if !is_marked && holds_snapshots(store)? {
        return Ok(merged);
    }
    let temp = store.temp_dir("overlay")?;
    let Some(refusal) = try_overlay(temp.path(), footing.rung)? else {
        if !is_marked {
            return Ok(merged);
        }
        if mode == Rungs::Strict {
            return Err(SandboxError::step("overlay", BEGUN_WITH_COPIES, Some(BEGIN_ANEW.to_owned())).into());
        }
        return Ok(copied(footing, &format!("{BEGUN_WITH_COPIES} ({BEGIN_ANEW})")));
    };
    if mode == Rungs::Strict {
        return Err(refusal.into());
    }
    if is_marked {
        return Ok(copied(footing, &with_hint(&refusal)));
    }
    match try_fuse(store.temp_dir("fuse")?.path(), footing.relaxed)? {
        None => {
            store.write_atomic(Path::new(FUSED), b"")?;
            Ok(fused(footing))
        }
        Some(lack) => {
            store.write_atomic(Path::new(MARKER), b"")?;
            Ok(copied(footing, &format!("{}; and {}", with_hint(&refusal), with_hint(&lack))))
        }
    }
}

/// A store that was begun with fuse-overlayfs goes on with it, also where the kernel would merge by now.
fn settle_fused(footing: Footing, store: &Store, mode: Rungs) -> Result<Settled, SettleError> {
    if mode == Rungs::Strict {
        let message = "this store was begun with fuse-overlayfs";
        return Err(SandboxError::step("overlay", message, Some(BEGIN_ANEW.to_owned())).into());
    }
    match try_fuse(store.temp_dir("fuse")?.path(), footing.relaxed)? {
        None => Ok(fused(footing)),
        Some(lack) => {
            let message = format!("{BEGUN_WITH_FUSE}: {lack}");
            let lift = lack.hint().map(|hint| format!("{hint}; or ")).unwrap_or_default();
            Err(SandboxError::step("fuse-overlayfs", &message, Some(format!("{lift}{BEGIN_ANEW}"))).into())
        }
    }
}

fn fused(footing: Footing) -> Settled {
    Settled { footing: Footing { files: Files::Fused, ..footing }, note: None }
}

fn with_hint(error: &SandboxError) -> String {
    format!("{error}{}", error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default())
}

/// A chroot has nothing but copies, and a store that holds overlays' layers has none.
fn settle_chroot(footing: Footing, store: &Store) -> Result<Settled, SettleError> {
    if !store.root().join(MARKER).exists() {
        if store.root().join(FUSED).exists() || holds_snapshots(store)? {
            let message = "this store was begun with overlays, and a chroot takes copies";
            return Err(SandboxError::step("chroot", message, Some(BEGIN_ANEW.to_owned())).into());
        }
        store.write_atomic(Path::new(MARKER), b"")?;
    }
    Ok(copied(footing, "a chroot has no overlays"))
}

fn copied(footing: Footing, why: &str) -> Settled {
    let note = format!("each step copies the whole file system, which takes time and room: {why}");
    Settled { footing: Footing { files: Files::Copied, ..footing }, note: Some(note) }
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

fn holds_snapshots(store: &Store) -> Result<bool, SandboxError> {
    let failed = |error| SandboxError::io("look for snapshots", &error);
    Ok(fs::read_dir(store.area("snapshots")).map_err(failed)?.next().is_some())
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
    drop(mount_overlay(&overlay).step("overlay")?);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lower = open(&lower, flags, Mode::empty()).step("open a layer")?;
    make_whiteout(&lower, b"gone").step("mark what is gone")?;
    marks.mark_opaque(&lower).step("mark an opaque directory")
}

/// Has fuse-overlayfs merge something in an empty directory: writes, reads, removes, and looks at what is left of it; gives what
/// is missing, if anything is. It works for nobody who has not allowed for what it does wrong ([`MERGES_OTHERWISE`]).
///
/// # Errors
/// It failed for another reason: no room, no descriptors.
pub fn try_fuse(directory: &Path, relaxed: Relaxations) -> Result<Option<SandboxError>, SandboxError> {
    let place = |name: &str| directory.join(name);
    let (lower, upper, work) = (place("lower"), place("upper"), place("work"));
    let made = [&lower, &upper, &work].into_iter().try_for_each(fs::create_dir);
    made.and_then(|()| fs::write(lower.join("gone"), ""))
        .map_err(|error| SandboxError::io("write to the store", &error))?;
    let (marks, sync) = (OverlayMarks::Names, OverlaySync::Ignored);
    let overlay = Overlay { lowers: &[&lower], writable: Some((&upper, &work)), marks, sync };
    let merged = match mount_overlay(&overlay) {
        Ok(merged) => merged,
        Err(error) => {
            let message = format!("{}: {}{}", error.path.display(), error.errno, aside(&error.said));
            return Ok(Some(SandboxError::refused(error.step, message, Some(error.errno))));
        }
    };
    let worked = write_and_remove(&merged).map_err(|errno| SandboxError::errno("fuse write", errno));
    let closed = fuse::close(merged, &upper, &[lower])
        .map_err(|error| SandboxError::step("fuse close", &error.to_string(), None));
    if let Err(error) = worked.and(closed) {
        return Ok(Some(error));
    }
    let is_there = fs::read(upper.join("made")).is_ok_and(|made| made == b"made");
    match is_there && upper.join(".wh.gone").exists() && !upper.join("gone").exists() {
        true if !relaxed.contain(Relaxation::FuseOverlayfs) => {
            Ok(Some(SandboxError::errno(MERGES_OTHERWISE, Errno::OPNOTSUPP)))
        }
        true => Ok(None),
        false => Ok(Some(SandboxError::step("fuse close", "what was written is not there", None))),
    }
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

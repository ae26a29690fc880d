//! Whether the kernel merges layers where the store lies, found out by mounting: it refuses on an overlay, on file systems
//! without attributes, in a user namespace before Linux 5.11, and wherever nothing may be mounted. There every file system is a
//! copy ([`crate::copies`]).
//!
//! A store is of one form, that of its first snapshot: [`MARKER`] lies in one of copies.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci::store::{Store, StoreError};
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

use crate::{
    mount::{Overlay, OverlayMarks, OverlaySync, mount_overlay},
    sandbox::{
        Mode as Rungs, Root, SandboxError,
        failure::{Failure, NameStep},
        plan::{Files, Footing, Rung},
    },
    whiteout::make_whiteout,
};

/// The file in a store that says that its snapshots are copies.
pub const MARKER: &str = "copies";

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
    if !is_marked {
        store.write_atomic(Path::new(MARKER), b"")?;
    }
    let hint = refusal.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    Ok(copied(footing, &format!("{refusal}{hint}")))
}

/// A chroot has nothing but copies, and a store that holds overlays' layers has none.
fn settle_chroot(footing: Footing, store: &Store) -> Result<Settled, SettleError> {
    if !store.root().join(MARKER).exists() {
        if holds_snapshots(store)? {
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

/// The root file system of a trial: what is in `lower` of a directory that has `upper` and `work` as well.
pub fn trial_root(footing: Footing, directory: &Path) -> Root {
    let place = |name: &str| -> PathBuf { directory.join(name) };
    match footing.files {
        Files::Merged => {
            Root::Overlay { lowers: vec![place("lower")], upper: place("upper"), work: place("work") }
        }
        Files::Copied if footing.rung == Rung::Chroot => {
            Root::Chroot { directory: place("lower"), aside: place("work") }
        }
        Files::Copied => Root::Directory(place("lower")),
    }
}

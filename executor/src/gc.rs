//! What a store holds, and how it is kept from growing without bound: `layerwright du`, `gc`, and the cap at the end of builds.
//!
//! It lives here and not beside the store because only this crate knows what stands on what: a record on the layers of its
//! result, a layer's directory on the one below and on its tree, a sealed record on its blob. Three steps, one a module:
//!
//! - [`survey`] lists every thing of a store with its size and last use; nothing is locked and nothing walked that was
//!   measured before ([`size`]);
//! - [`stands_on`] finds out which things need which, and which nobody can need any more;
//! - [`evict`] removes: what is useless first, then the least recently used, and never a thing before those that stand on
//!   it. Cache mounts go last, since they are the dearest to make again.
//!
//! Nothing that somebody has pinned is removed, nor what that stands on ([`oci::store::Removal`]). What is removed is a miss
//! for whoever looks for it next: it can cost time, and nothing else. Killed at any moment, it leaves a store that is
//! whole: things go from the top down, each by one rename into what the next opening of the store sweeps.

mod evict;
mod policy;
mod size;
mod stands_on;
mod survey;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use oci::store::{Store, StoreError};
use serde::Serialize;

pub use self::policy::{Cap, CapError, parse_size};
pub(crate) use self::size::FILE as SIZES;
use self::{
    evict::{Before, Eviction},
    size::Sizes,
    stands_on::Relations,
    survey::list,
};

/// What a thing of the store is, as people count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Layers of base images, unpacked, and catalogues of those that are not.
    BaseLayers,
    /// Layers that steps made, unpacked.
    BuiltLayers,
    /// Blobs: layers packed, configs, manifests.
    Blobs,
    /// Directories of `RUN --mount=type=cache`.
    CacheMounts,
    /// Repositories and checkouts.
    Git,
    /// Files from URLs.
    Downloads,
    /// Cache records, trees, sealed records, and the inventories that explain them.
    Records,
    /// What is known of build contexts.
    Contexts,
    /// Past builds and their logs.
    History,
    /// What running builds are at.
    Temporary,
    /// The store itself: its directories, locks and notes.
    Store,
}

impl Kind {
    /// All, in the order in which they are listed.
    pub const ALL: [Kind; 11] = [
        Kind::BaseLayers,
        Kind::BuiltLayers,
        Kind::Blobs,
        Kind::CacheMounts,
        Kind::Git,
        Kind::Downloads,
        Kind::Records,
        Kind::Contexts,
        Kind::History,
        Kind::Temporary,
        Kind::Store,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BaseLayers => "base layers",
            Self::BuiltLayers => "built layers",
            Self::Blobs => "blobs",
            Self::CacheMounts => "cache mounts",
            Self::Git => "git",
            Self::Downloads => "downloads",
            Self::Records => "records and trees",
            Self::Contexts => "contexts",
            Self::History => "history",
            Self::Temporary => "temporary",
            Self::Store => "the store itself",
        })
    }
}

/// One thing of a store: what is removed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// What it is.
    pub kind: Kind,
    /// Where it is, from the root of the store on.
    pub path: PathBuf,
    /// What it takes on disk.
    pub bytes: u64,
    /// When it was used last, to the hour.
    pub used: SystemTime,
    /// What it belongs to, in words: an instruction, an image, an id.
    pub what: Option<String>,
    /// Whether it could be removed now: nobody uses it, nor what stands on it.
    pub is_reclaimable: bool,
}

/// Why garbage could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory or file of the store.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl GcError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// What is to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing but what somebody uses.
    Nothing,
    /// So much, and whatever was used recently. What is useless goes in any case.
    Under {
        /// Things are removed until no more than this is left.
        cap: Cap,
        /// What was used within this time stays, whatever the cap.
        unused_for: Duration,
    },
}

/// Whether things are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are.
    Remove,
    /// They are only named.
    Pretend,
}

/// What was removed, or would be.
#[derive(Debug, Default)]
pub struct Collected {
    /// The things, in the order they went in.
    pub removed: Vec<Thing>,
    /// What is left, in bytes: what running builds are at does not count.
    pub left: u64,
    /// How much may be left, in bytes, where there is a limit.
    pub limit: Option<u64>,
}

impl Collected {
    /// How much was given back.
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|thing| thing.bytes).sum()
    }
}

/// Everything that a store holds.
///
/// # Errors
/// The store cannot be read.
pub fn usage(store: &Store) -> Result<Vec<Thing>, GcError> {
    let mut sizes = Sizes::read(store);
    let mut things = list(store, &mut sizes, Detail::Exact)?;
    things.retain(|thing| thing.path != store.own_temporary());
    sizes.write(store);
    let relations = Relations::find(store, &mut things);
    evict::mark_reclaimable(store, &mut things, &relations)?;
    Ok(things)
}

/// How exactly sizes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// Blocks on disk, walking once what was not measured before, and what has changed.
    Exact,
    /// As it was noted when a layer was made, or when a cache mount was measured last.
    Noted,
}

/// Removes what need not stay.
///
/// # Errors
/// The store cannot be read, or something cannot be removed. What was removed before is gone.
pub fn collect(store: &Store, keep: Keep, mode: Mode) -> Result<Collected, GcError> {
    let before = Before::now(store)?;
    let mut sizes = Sizes::read(store);
    let things = list(store, &mut sizes, Detail::Exact)?;
    sizes.write(store);
    collect_of(store, before, things, keep, mode)
}

fn collect_of(
    store: &Store,
    before: Before,
    mut things: Vec<Thing>,
    keep: Keep,
    mode: Mode,
) -> Result<Collected, GcError> {
    let relations = Relations::find(store, &mut things);
    Eviction::new(store, before, things, relations, keep)?.run(mode)
}

/// Keeps a store under a cap once a build has ended. Everything that this process has pinned is given up: to be called
/// when it needs nothing of the store any more. `None` where there was nothing to do, which costs one look at each thing.
///
/// # Errors
/// Those of [`collect`].
pub fn keep_under(store: &Store, cap: Cap) -> Result<Option<Collected>, GcError> {
    if cap == Cap::None {
        return Ok(None);
    }
    store.release_pins()?;
    let before = Before::now(store)?;
    let mut sizes = Sizes::read(store);
    let things = list(store, &mut sizes, Detail::Noted)?;
    sizes.write(store);
    let total = total(&things);
    if cap.limit(store, total)?.is_none_or(|limit| total <= limit) {
        return Ok(None);
    }
    collect_of(store, before, things, Keep::Under { cap, unused_for: Duration::ZERO }, Mode::Remove).map(Some)
}

/// What counts against a cap, in bytes.
fn total(things: &[Thing]) -> u64 {
    things.iter().filter(|thing| counts(thing)).map(|thing| thing.bytes).sum()
}

/// Whether something counts against a limit: what running builds are at is gone when they end.
fn counts(thing: &Thing) -> bool {
    !matches!(thing.kind, Kind::Temporary | Kind::Store)
}

/// The last component of a path of the store, all of which are text.
fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests;

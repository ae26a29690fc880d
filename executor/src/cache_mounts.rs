//! Cache mounts: directories that stay from build to build (`RUN --mount=type=cache`), and what keeps them right.
//!
//! - [`pool`]: which directory a mount gets, who may use it at the same time, how one is made and given up.
//! - [`times`]: make and cargo compare the times of what they find in a cache mount with those of its sources. So
//!   that a changed source is never taken for an old one, each mount remembers what its users have seen ([`ledger`]),
//!   and files that changed since are shown to the step with a later time ([`fresh`]), whatever layer they came from.
//!
//! The command owns what it sees of such a directory and nothing else; no path in it is ever followed from here.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci::{
    Snapshot, TreeDigest,
    canonical::Encoder,
    store::{StoreError, TempDir},
};
use solver::{
    Step, Stream,
    op::{CacheMount, Exec, Mount},
};

use crate::{
    SnapshotError, Snapshots, copy::CopyError, listing::ListError, once::OnceMap, rootfs::PathError,
    sandbox::Rung, snapshot::Stamp,
};
use pool::{Chosen, Pool};
use sight::{Sight, Visible};
use times::Past;

pub(crate) use make::last_use;
pub(crate) use pool::{is_retired, take_if_free};

mod fresh;
mod ledger;
mod make;
mod pool;
mod sight;
mod times;

/// Name of the file of what the users of a cache mount have seen, in its directory.
pub(crate) use ledger::FILE as LEDGER;

/// Whether a cache mount has a ledger, and one that cannot be used.
pub(crate) fn has_damaged_ledger(directory: &Path) -> bool {
    let damaged = ledger::Ledger::read(directory).is_none();
    // In this order: it may be removed between.
    damaged && directory.join(LEDGER).exists()
}

/// Whether a directory of `mounts/` is that of an id.
pub(crate) fn is_named(directory: &std::ffi::OsStr, id: &[u8]) -> bool {
    str::from_utf8(id).is_ok_and(|id| *directory == *name(id))
}

/// The cache mounts of one store, in one build.
#[derive(Clone)]
pub struct CacheMounts {
    snapshots: Snapshots,
    rung: Rung,
    /// Ids that were used in this build, each since it was given up if need be.
    used: Arc<OnceMap<String, ()>>,
}

/// Why a cache mount could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheMountError {
    /// Files could not be had.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it is to hold at first could not be copied.
    #[error("cannot fill the cache mount at {target} from {source_path}")]
    Seed {
        /// Where it is mounted.
        target: String,
        /// Path in the image or stage.
        source_path: String,
        /// Why not.
        #[source]
        source: Box<CopyError>,
    },
    /// What it is to hold at first is not there, or no directory.
    #[error("the cache mount at {target} cannot begin with {source_path}: {what}")]
    NoSeed {
        /// Where it is mounted.
        target: String,
        /// Path in the image or stage.
        source_path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The owner that it should have is none of this user's ids.
    #[error(
        "the cache mount at {target} cannot be given to {uid}:{gid}: this user has only one id, 0 in the build"
    )]
    OneIdOnly {
        /// Where it is mounted.
        target: String,
        /// User that it should belong to.
        uid: u32,
        /// Group that it should belong to.
        gid: u32,
    },
    /// A system call on a path of the store failed.
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
    /// A system call on a path of the step's file systems failed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The source of a bind mount cannot be found.
    #[error(transparent)]
    Source(#[from] ListError),
    /// The user stopped the build.
    #[error("cancelled")]
    Cancelled,
}

impl CacheMountError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The cache mounts of a step, in use. Their locks are free again when it is dropped.
#[derive(Debug, Default)]
pub struct Held {
    /// By the index of the mount.
    directories: BTreeMap<usize, PathBuf>,
    chosen: Vec<Chosen>,
    /// By the index of the mount; `None` is the step's root.
    fresh: BTreeMap<Option<usize>, TempDir>,
    masks: fresh::Masks,
}

/// The cache mounts of a step that has ended, and what it saw beside them. Dropped, their locks are free again and the
/// directories of [`Held::fresh`] and [`Held::fresh_root`] go.
#[derive(Debug, Default)]
pub struct Ended {
    _chosen: Vec<Chosen>,
    _fresh: BTreeMap<Option<usize>, TempDir>,
}

impl CacheMounts {
    /// The cache mounts of the store that the snapshots are in. To be made once a build.
    pub fn new(snapshots: &Snapshots, rung: Rung) -> Self {
        Self { snapshots: snapshots.clone(), rung, used: Arc::default() }
    }

    /// Gets all cache mounts of a step (none, mostly), making those that are not there yet. Says in the step's log what
    /// it waits for, and stops waiting when the step is to be cancelled.
    ///
    /// # Errors
    /// See [`CacheMountError`].
    pub fn acquire(&self, step: &Step<'_>, exec: &Exec) -> Result<Held, CacheMountError> {
        let mounts = exec.mounts.iter().enumerate().filter_map(|(index, mount)| match mount {
            Mount::Cache(mount) => Some((index, mount)),
            _ => None,
        });
        let wanted = mounts.map(|(index, mount)| Wanted::new(index, mount, step)).collect::<Vec<_>>();
        if wanted.is_empty() {
            return Ok(Held::default());
        }
        let mut held = Held::default();
        let are_empty = self.choose(step, wanted, &mut held)?;
        let settled = pool::settle(&held.chosen, step.cancel)?;
        self.show(step, exec, &are_empty, &mut held)?;
        drop(settled);
        Ok(held)
    }

    /// Takes the directories, in an order that is the same for all steps, so that none waits for another in a circle.
    /// Says of each whether it was made just now, with nothing in it.
    fn choose(
        &self,
        step: &Step<'_>,
        mut wanted: Vec<Wanted<'_>>,
        held: &mut Held,
    ) -> Result<Vec<bool>, CacheMountError> {
        wanted.sort_by(|a, b| (&a.mount.id, &a.variant, a.index).cmp(&(&b.mount.id, &b.variant, b.index)));
        let mut are_empty = Vec::new();
        for (at, want) in wanted.iter().enumerate() {
            let Wanted { index, mount, variant, .. } = want;
            if let Some(last) = at.checked_sub(1).map(|last| &wanted[last])
                && (&last.mount.id, &last.variant) == (&mount.id, variant)
            {
                // Twice in one step: it is the same directory, as the first one asks for it.
                held.directories.insert(*index, held.directories[&last.index].clone());
                continue;
            }
            let chosen = self.choose_one(step, want)?;
            held.directories.insert(*index, chosen.files());
            are_empty.push(chosen.is_new && want.seed.is_none());
            held.chosen.push(chosen);
        }
        Ok(are_empty)
    }

    fn choose_one(&self, step: &Step<'_>, want: &Wanted<'_>) -> Result<Chosen, CacheMountError> {
        let mount = want.mount;
        if self.rung == Rung::SingleId && want.seed.is_none() && (mount.uid, mount.gid) != (0, 0) {
            let CacheMount { target, uid, gid, .. } = mount.clone();
            return Err(CacheMountError::OneIdOnly { target, uid, gid });
        }
        let store = self.snapshots.store();
        let pool = Pool::open(store, &name(&mount.id), &mount.id, step.cancel)?;
        // As BuildKit does: a build without cache begins with empty cache mounts.
        self.used.get_or_make(&mount.id, || if step.vertex.use_cache { Ok(()) } else { pool.retire() })?;
        let waits = || {
            let text =
                format!("waiting for the cache mount at {}: another step or build uses it", mount.target);
            (step.log)(Stream::Stderr, text.as_bytes());
        };
        let make = |path: &Path| make::make(&self.snapshots, want, path, step.cancel);
        pool.choose(&want.variant, mount.sharing, make, waits)
    }

    /// Prepares what the step sees beside its cache mounts, and writes down that it did. To be called while they are
    /// settled: what two who come at once write down must tell of both.
    fn show(
        &self,
        step: &Step<'_>,
        exec: &Exec,
        are_empty: &[bool],
        held: &mut Held,
    ) -> Result<(), CacheMountError> {
        let pasts: Vec<Past> = held.chosen.iter().zip(are_empty).map(past).collect();
        let visible = visible(step, exec);
        let view = self.view_digest(&visible)?;
        let mut used = None;
        for chosen in &held.chosen {
            used = used.max(Some(make::take_used(chosen)?));
        }
        let is_known =
            |past: &Past| matches!(past, Past::Known(ledger) if ledger.is_settled && ledger.view == view);
        let Some(used) = used.filter(|_| !pasts.iter().all(is_known)) else { return Ok(()) };

        let targets: Vec<&str> = exec.mounts.iter().map(target).collect();
        let look = |(_, visible): &(Option<usize>, Visible<'_>)| {
            Sight::look(&self.snapshots, visible, &targets, step.cancel)
        };
        let mut sights = visible.iter().map(look).collect::<Result<Vec<_>, _>>()?;
        times::complete(&mut sights, &pasts, step.cancel)?;
        let overrides = times::decide(&sights, &pasts, used, step.cancel)?;
        for (((index, visible), sight), overrides) in visible.iter().zip(&sights).zip(&overrides) {
            if overrides.is_empty() {
                continue;
            }
            let temp = self.snapshots.store().temp_dir("fresh")?;
            let lowers = self.snapshots.ensure(visible.snapshot)?;
            fresh::write(sight, overrides, &lowers, temp.path(), step.cancel)?;
            held.fresh.insert(*index, temp);
            if index.is_none() {
                held.masks = fresh::Masks::of(sight, overrides);
            }
        }
        for (chosen, past) in held.chosen.iter().zip(&pasts) {
            let ledger = times::remember(&sights, &overrides, past, chosen.is_shared()?, view);
            let (path, bytes) = ledger.to_file(&chosen.directory);
            self.snapshots.store().write_atomic(&path, &bytes)?;
        }
        Ok(())
    }

    /// Identity of all that the step sees, as it is on disk here.
    fn view_digest(&self, visible: &[(Option<usize>, Visible<'_>)]) -> Result<TreeDigest, CacheMountError> {
        let mut encoder = Encoder::new("cache-mount-view");
        for (_, Visible { snapshot, source, target }) in visible {
            encoder.field(1, *source).field(2, *target).field(3, &snapshot.digest());
            for Stamp { seconds, nanoseconds } in self.snapshots.stamps(snapshot)? {
                encoder.field(4, &seconds).field(5, &nanoseconds);
            }
        }
        Ok(encoder.digest())
    }
}

/// What is known of a directory's users, who may have come since it was made.
fn past((chosen, is_empty): (&Chosen, &bool)) -> Past {
    match ledger::Ledger::read(&chosen.directory) {
        Some(ledger) => Past::Known(ledger),
        None if *is_empty => Past::Nothing,
        None => Past::Unknown,
    }
}

/// A cache mount that a step asks for.
struct Wanted<'a> {
    /// Its index among the step's mounts.
    index: usize,
    mount: &'a CacheMount,
    /// What it holds at first: a file system and an absolute path in it.
    seed: Option<(&'a Snapshot, &'a str)>,
    /// Names the way in which a new one is made.
    variant: String,
}

impl<'a> Wanted<'a> {
    fn new(index: usize, mount: &'a CacheMount, step: &Step<'a>) -> Self {
        let input =
            |(input, source): &'a (usize, String)| Some((step.inputs.get(*input)?.snapshot, source.as_str()));
        let seed = mount.seed.as_ref().and_then(input);
        let mut encoder = Encoder::new("cache-mount-variant");
        match &seed {
            Some((snapshot, source)) => encoder.field(1, &snapshot.digest()).field(2, *source),
            None => encoder.field(3, &mount.mode).field(4, &mount.uid).field(5, &mount.gid),
        };
        Self { index, mount, seed, variant: encoder.digest().hex() }
    }
}

/// An id may hold any characters; its name in the store is a hash.
fn name(id: &str) -> String {
    let mut encoder = Encoder::new("cache-mount");
    encoder.field(1, id);
    encoder.digest().hex()
}

/// The file systems that the step sees, with the index of the mount that shows them.
fn visible<'a>(step: &Step<'a>, exec: &'a Exec) -> Vec<(Option<usize>, Visible<'a>)> {
    let root = step.inputs.first();
    let root = root.map(|input| (None, Visible { snapshot: input.snapshot, source: "/", target: "/" }));
    let binds = exec.mounts.iter().enumerate().filter_map(|(index, mount)| {
        let Mount::Bind(bind) = mount else { return None };
        let snapshot = step.inputs.get(bind.input)?.snapshot;
        Some((Some(index), Visible { snapshot, source: &bind.source, target: &bind.target }))
    });
    root.into_iter().chain(binds).collect()
}

fn target(mount: &Mount) -> &str {
    match mount {
        Mount::Bind(bind) => &bind.target,
        Mount::Cache(cache) => &cache.target,
        Mount::Tmpfs { target, .. } => target,
        Mount::Secret(secret) => secret.file.as_ref().map_or("/", |file| &file.target),
        Mount::Ssh(ssh) => &ssh.socket.target,
    }
}

impl Held {
    /// The directory to mount for `exec.mounts[index]`; `None` if that is no cache mount.
    pub fn directory(&self, index: usize) -> Option<&Path> {
        self.directories.get(&index).map(PathBuf::as_path)
    }

    /// A directory to put on top of the lower directories of the step's root, where files need another time than they
    /// have there.
    pub fn fresh_root(&self) -> Option<&Path> {
        self.fresh.get(&None).map(TempDir::path)
    }

    /// The same for the file system of the bind mount `exec.mounts[index]`: a directory to put on top of that
    /// snapshot's, before the mount's source is looked up in it.
    pub fn fresh(&self, index: usize) -> Option<&Path> {
        self.fresh.get(&Some(index)).map(TempDir::path)
    }

    /// To be called when no process of the step lives any more, however it ended, and before its changes are looked
    /// at: `upper` is where they arrived. Whoever mounts the same once more keeps what it returns: so long nobody removes
    /// what is mounted, or changes it who does not share it.
    ///
    /// # Errors
    /// The store or the changes cannot be written.
    pub fn end(self, upper: &Path) -> Result<Ended, CacheMountError> {
        fresh::restore(upper, &self.masks)?;
        self.chosen.iter().try_for_each(make::note_used)?;
        Ok(Ended { _chosen: self.chosen, _fresh: self.fresh })
    }
}

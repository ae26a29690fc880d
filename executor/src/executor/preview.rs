//! While a command runs, what it has written so far is shown to whoever makes layers of it ([`LayerPreview`]).
//!
//! Most commands leave a processor idle, and most files of a layer are written long before its step ends: what can be
//! done with them by then need not be done after it. This is done on idle processor time only, from when the command has
//! run for a while, in looks with pauses between them, and never for a directory that holds very much.
//!
//! A thread that gets idle time only may get none for long, so nobody waits for it: it owns what it needs, holds no lock
//! of the store, and ends by itself once its step has. What it reads by then is a directory that nobody writes to.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use oci::{ContentDigest, LayerPreview, Tree};
use rayon::ThreadPool;
use solver::{Cancel, Step, VertexId, op::Timestamps};

use super::{Ground, LocalExecutor};
use crate::{
    diff::{Brought, DiffError, Lower, TimeRules, Upper, glance},
    listing::Owners,
    sandbox::sys,
    snapshot::open_directory,
};

/// How long a command has run when it is looked at first: most are over by then.
const FIRST: Duration = Duration::from_millis(1500);
/// From one look to the next, as long as there is something new; else twice as long each time, up to
const PAUSE: Duration = Duration::from_millis(250);
/// this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a look takes before it begins anew with what is there by then; what it has done stays.
const LONGEST_LOOK: Duration = Duration::from_millis(800);
/// What holds more than this is not looked at.
const MOST: u64 = 4 << 30;

/// Who looks at which steps.
#[derive(Clone)]
pub struct Previews {
    /// Is shown their layers.
    pub layers: Arc<dyn LayerPreview>,
    /// The steps.
    pub steps: BTreeSet<VertexId>,
}

impl LocalExecutor {
    /// Does `command`, which writes on the ground, and shows meanwhile what it has written.
    pub(super) fn previewed<T>(
        &self,
        step: &Step<'_>,
        (timestamps, brought): (Timestamps, &Arc<BTreeSet<ContentDigest>>),
        ground: &Ground<'_>,
        command: impl FnOnce() -> T,
    ) -> T {
        let wanted = self.previews.as_ref().filter(|previews| previews.steps.contains(&step.id));
        let over = step.cancel.child();
        let looking = wanted.and_then(|previews| {
            Some(Looking {
                layers: Arc::clone(&previews.layers),
                upper: open_directory(&ground.writable.upper()).ok()?,
                lower: ground.view.root().try_clone_to_owned().ok()?,
                owners: ground.owners.clone(),
                timestamps,
                brought: Arc::clone(brought),
                over: over.clone(),
            })
        });
        let (ends, ended) = channel::<()>();
        if let Some(looking) = looking {
            let thread = thread::Builder::new().name("preview".to_owned());
            // Without a thread nobody looks.
            let _ = thread.spawn(move || looking.look_on(&ended));
        }
        let done = command();
        over.request();
        drop(ends);
        done
    }
}

/// Somebody who looks at what a command writes.
struct Looking {
    layers: Arc<dyn LayerPreview>,
    upper: OwnedFd,
    lower: OwnedFd,
    owners: Owners,
    timestamps: Timestamps,
    brought: Arc<BTreeSet<ContentDigest>>,
    over: Cancel,
}

impl Looking {
    /// Looks again and again until the command has ended, or there is no point in it.
    fn look_on(self, ended: &Receiver<()>) -> Option<()> {
        // Also for the thread that reads, which this one starts.
        sys::run_when_idle().ok()?;
        let mut pause = FIRST;
        let mut reader = None;
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let began = Instant::now();
            let reader = match &mut reader {
                Some(reader) => reader,
                // A pool of its own: that of the process is in a hurry.
                none => none.insert(rayon::ThreadPoolBuilder::new().num_threads(1).build().ok()?),
            };
            let tree = self.glance(reader);
            let listed = began.elapsed();
            let until = Instant::now() + LONGEST_LOOK.max(4 * listed);
            let stop = || self.over.is_requested() || Instant::now() > until;
            let new = match tree {
                Ok(tree) => self.layers.look(&tree?, &Upper::Live(self.upper.as_fd()), &stop),
                // What no layer can hold is told when the step ends.
                Err(_) => 0,
            };
            pause = match new {
                0 => (2 * pause).min(LONGEST_PAUSE),
                _ => PAUSE.max(2 * listed),
            };
        }
        None
    }

    /// The layer as it would be now; `None` if it is too large.
    fn glance(&self, reader: &ThreadPool) -> Result<Option<Tree>, DiffError> {
        let rules = TimeRules { timestamps: self.timestamps, brought: Brought::Contents(&self.brought) };
        let lower = Lower { root: self.lower.as_fd(), owners: &self.owners };
        reader.install(|| glance(self.upper.as_fd(), lower, rules, MOST, &self.over))
    }
}

//! `--step-max-disk`: looks how much a step has written while it runs, and once more, exactly, when it has ended.
//!
//! A look is a walk through where the step writes, so its cost is the step's own doing. The thread sleeps after each one
//! twenty times as long as that took, and does without as long as the free space of the disk says that the limit cannot have been
//! reached: not for ever, since others may free what the step takes. Two looks in a row must agree, as a directory that is moved
//! during one of them may be seen twice.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::fs::statvfs;

use crate::sandbox::{
    SandboxError, SandboxPlan,
    plan::Root,
    room::{Room, measure},
};

/// A step that has written more than it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// How much it may write.
    pub limit: u64,
    /// How much it has written, in bytes that its disk has allocated.
    pub written: u64,
    /// Where the most of that is, and how much.
    pub most: Option<(String, u64)>,
}

/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// How much longer it is than a look takes.
const SHARE: u32 = 20;
/// After how many pauses a look is taken whatever the free space says.
const PATIENCE: u32 = 20;

/// Watches one step.
pub struct Watch {
    scale: Scale,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Where a step writes, and how much it may.
#[derive(Clone)]
struct Scale {
    directory: PathBuf,
    /// What was there before it began.
    before: u64,
    limit: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
    excess: Option<Excess>,
}

impl Watch {
    /// Begins, before the step does, if it has a limit.
    ///
    /// # Errors
    /// What is there cannot be measured, or there can be no thread.
    pub fn begin(plan: &SandboxPlan) -> Result<Option<Self>, SandboxError> {
        let Some(limit) = plan.limits.room else { return Ok(None) };
        let (directory, is_empty) = match &plan.root {
            Root::Overlay { upper, .. } => (upper, true),
            Root::Directory(directory) | Root::Chroot { directory, .. } => (directory, false),
        };
        let mut scale = Scale { directory: directory.clone(), before: 0, limit };
        if !is_empty {
            scale.before = scale.look(&|| false)?.bytes;
        }
        let shared = Arc::new(Shared::default());
        let work = {
            let (scale, shared) = (scale.clone(), Arc::clone(&shared));
            move || watch(&scale, &shared)
        };
        let thread = thread::Builder::new().name("step-max-disk".to_owned()).spawn(work);
        let thread = thread.map_err(|error| SandboxError::io(STEP, &error))?;
        Ok(Some(Self { scale, shared, thread: Some(thread) }))
    }

    /// What was found so far.
    pub fn excess(&self) -> Option<Excess> {
        self.shared.state().excess.clone()
    }

    /// What there is now that no process of the step is left.
    ///
    /// # Errors
    /// It cannot be measured.
    pub fn end(self) -> Result<Option<Excess>, SandboxError> {
        let scale = self.scale.clone();
        drop(self);
        Ok(scale.excess(scale.look(&|| false)?))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.woken.notify_all();
        let ended = self.thread.take().map(JoinHandle::join);
        debug_assert!(ended.is_none_or(|ended| ended.is_ok()), "the thread does nothing that panics");
    }
}

/// What errors call it.
const STEP: &str = "--step-max-disk";

impl Scale {
    fn look(&self, is_over: &dyn Fn() -> bool) -> Result<Room, SandboxError> {
        measure(&self.directory, is_over).map_err(|errno| SandboxError::errno(STEP, errno))
    }

    fn excess(&self, Room { bytes, most }: Room) -> Option<Excess> {
        let written = bytes.saturating_sub(self.before);
        // With a copy what was there before would be named as well, and says nothing.
        let most = most.filter(|_| self.before == 0);
        (written > self.limit).then_some(Excess { limit: self.limit, written, most })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps; says whether it is over.
    fn rest(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state();
        while !state.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.woken.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Until it is over or found. What cannot be looked at now is looked at later, and at the latest in the end, which says so.
fn watch(scale: &Scale, shared: &Shared) {
    let is_over = || shared.state().is_over;
    let mut gauge = Gauge::new(scale);
    let (mut pause, mut found_before) = (PAUSE, false);
    while !shared.rest(pause) {
        pause = PAUSE;
        if !gauge.wants_a_look(free(&scale.directory)) {
            continue;
        }
        let began = Instant::now();
        let looked = scale.look(&is_over);
        pause = PAUSE.max(began.elapsed() * SHARE);
        let Ok(room) = looked else { continue };
        gauge.note(room.bytes.saturating_sub(scale.before), free(&scale.directory));
        match scale.excess(room) {
            Some(excess) if found_before => {
                shared.state().excess = Some(excess);
                return;
            }
            found => {
                found_before = found.is_some();
                pause = if found_before { Duration::ZERO } else { pause };
            }
        }
    }
}

/// Bytes that are free where it is; nothing where nobody knows.
fn free(directory: &Path) -> Option<u64> {
    let disk = statvfs(directory).ok()?;
    Some(disk.f_bfree.saturating_mul(disk.f_frsize))
}

/// Whether a look can be of use, from the free space of the disk.
struct Gauge {
    limit: u64,
    /// How much was written, and was free, at the last look.
    last: (u64, Option<u64>),
    passed_over: u32,
}

impl Gauge {
    fn new(scale: &Scale) -> Self {
        Self { limit: scale.limit, last: (0, free(&scale.directory)), passed_over: 0 }
    }

    fn wants_a_look(&mut self, free: Option<u64>) -> bool {
        let (written, before) = self.last;
        let taken = before.zip(free).map(|(before, now)| before.saturating_sub(now));
        let is_possible = taken.is_none_or(|taken| written.saturating_add(taken) > self.limit);
        self.passed_over += 1;
        is_possible || self.passed_over > PATIENCE
    }

    fn note(&mut self, written: u64, free: Option<u64>) {
        self.last = (written, free);
        self.passed_over = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_space_tells_whether_a_look_is_of_use() {
        let mut gauge = Gauge { limit: 100, last: (0, Some(1000)), passed_over: 0 };
        assert!(!gauge.wants_a_look(Some(950)));
        assert!(gauge.wants_a_look(Some(890)));
        gauge.note(90, Some(890));
        assert!(gauge.wants_a_look(Some(870)) && !gauge.wants_a_look(Some(900)) && gauge.wants_a_look(None));
        // Others free what the step takes.
        gauge.note(0, Some(0));
        let looks = (0..=PATIENCE).filter(|_| gauge.wants_a_look(Some(0))).count();
        assert_eq!(looks, 1);
    }
}

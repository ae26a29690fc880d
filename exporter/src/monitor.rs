//! A value that several threads share and wait for: a mutex with its condition variable, which nobody has to tell apart.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often those look around who wait for what nobody announces, as that the user stops.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);

/// The value. A thread that panicked while it held it has left it as good as any other: each change is made whole.
#[derive(Debug, Default)]
pub(crate) struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody tells of a change.
    pub(crate) fn wait<'a>(&self, value: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.changed.wait(value).unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for [`GLANCE`] at most.
    pub(crate) fn wait_briefly<'a>(&self, value: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.changed.wait_timeout(value, GLANCE).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes all who wait.
    pub(crate) fn tell(&self) {
        self.changed.notify_all();
    }
}

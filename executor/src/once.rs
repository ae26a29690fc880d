//! Work that is done once for a key, while others who want the same wait for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Results by key. A failure is not remembered: who comes next tries again.
#[derive(Debug)]
pub struct OnceMap<K, V> {
    slots: Mutex<BTreeMap<K, Slot<V>>>,
}

/// A result that is being made, or was.
type Slot<V> = Arc<Mutex<Option<V>>>;

impl<K, V> Default for OnceMap<K, V> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<K: Ord + Clone, V: Clone> OnceMap<K, V> {
    /// The result for a key: made now by `make`, or by somebody before.
    ///
    /// # Errors
    /// That of `make`.
    pub fn get_or_make<E>(&self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(key.clone()).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(made) => Ok(made.clone()),
            None => Ok(slot.insert(make()?).clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_result_is_made_once_and_a_failure_again() {
        let map = OnceMap::default();
        let made = AtomicU32::new(0);
        let make = || Ok::<_, ()>(made.fetch_add(1, Ordering::Relaxed));
        assert_eq!(map.get_or_make(&"failed", || Err(())), Err(()));
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| map.get_or_make(&"key", make))).collect();
            all.into_iter().for_each(|one| assert_eq!(one.join().expect("no panic"), Ok(0)));
        });
        assert_eq!(map.get_or_make(&"failed", make), Ok(1));
    }
}

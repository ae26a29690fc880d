//! The same work for many things, several at a time.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    sync::{Mutex, PoisonError},
    thread,
};

/// Does something with each of `items`, on `threads` threads at most, this one among them. After a failure nothing further
/// is begun; of several failures the one of the earliest item is returned.
///
/// # Errors
/// What `work` gives.
pub fn in_parallel<T: Sync, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures = Mutex::new(BTreeMap::new());
    let worker = || {
        while !stopped.load(Ordering::SeqCst) {
            let index = next.fetch_add(1, Ordering::SeqCst);
            let Some(item) = items.get(index) else { return };
            if let Err(error) = work(item) {
                stopped.store(true, Ordering::SeqCst);
                failures.lock().unwrap_or_else(PoisonError::into_inner).insert(index, error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            // What no thread can be had for is done by those that are there.
            if thread::Builder::new().spawn_scoped(scope, worker).is_err() {
                break;
            }
        }
        worker();
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.into_values().next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stops_the_rest() {
        let begun = AtomicUsize::new(0);
        let failed = in_parallel(&[7; 50], 4, |number| {
            begun.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(*number)
        });
        assert_eq!(failed, Err(7));
        assert!(begun.load(Ordering::SeqCst) <= 4);
    }

    #[test]
    fn everything_is_done_once() {
        let done = Mutex::new(Vec::new());
        let items: Vec<u32> = (0..100).collect();
        let worked = in_parallel(&items, 4, |number| {
            done.lock().expect("no panic").push(*number);
            Ok::<(), ()>(())
        });
        let mut done = done.into_inner().expect("no panic");
        done.sort_unstable();
        assert_eq!((worked, done), (Ok(()), items));
    }
}

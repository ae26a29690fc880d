//! What of a cache is large in memory comes one at a time, so that all of it together costs what one does. What is small
//! goes beside it; how large something is when it is unpacked, nobody believes before it is.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::packed::{TREE_MAX, unpack};

/// A packed tree that is longer comes alone: one of some hundred thousand files.
const SMALL_PACKED: u64 = 4 << 20;
/// So does one that unpacks to more.
const SMALL: u64 = 16 << 20;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    large: Mutex<()>,
}

impl Turns {
    /// Waits until nothing else is large.
    pub(super) fn wait(&self) -> MutexGuard<'_, ()> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches a tree of so many packed bytes, and does something with what it unpacks to.
    pub(super) fn tree<T, E>(
        &self,
        packed: u64,
        fetch: impl FnOnce() -> Result<Vec<u8>, E>,
        unpacked: impl FnOnce(io::Result<Vec<u8>>) -> Result<T, E>,
    ) -> Result<T, E> {
        if packed > SMALL_PACKED {
            let _turn = self.wait();
            return unpacked(unpack(&fetch()?, TREE_MAX));
        }
        let bytes = fetch()?;
        if let Ok(small) = unpack(&bytes, SMALL) {
            return unpacked(Ok(small));
        }
        // Too long for that, or no good at all.
        let _turn = self.wait();
        unpacked(unpack(&bytes, TREE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::packed::pack;

    fn length(turns: &Turns, packed: &[u8], told: u64) -> usize {
        let fetch = || Ok(packed.to_vec());
        let length = |bytes: io::Result<Vec<u8>>| Ok(bytes.map_or(0, |bytes| bytes.len()));
        turns.tree::<_, Infallible>(told, fetch, length).expect("infallible")
    }

    #[test]
    fn what_is_small_waits_for_nothing_large() {
        let turns = Turns::default();
        let _large = turns.wait();
        assert_eq!(length(&turns, &pack(&[7; 1000]), 30), 1000);
        assert_eq!(length(&turns, &pack(&vec![7; SMALL as usize]), 600), SMALL as usize);
    }

    #[test]
    fn of_what_is_large_there_is_one_at_a_time() {
        let (turns, at_once, most) = (Turns::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let bomb = pack(&vec![7; SMALL as usize + 1]);
        let unpacked = |bytes: io::Result<Vec<u8>>| {
            most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(bytes.expect("packed").len())
        };
        thread::scope(|scope| {
            // Both what says that it is large and what turns out to be.
            for told in [bomb.len() as u64, SMALL_PACKED + 1, 1, 2] {
                let (turns, bomb) = (&turns, &bomb);
                scope.spawn(move || {
                    let fetch = || Ok::<_, Infallible>(bomb.clone());
                    assert_eq!(turns.tree(told, fetch, unpacked), Ok(SMALL as usize + 1));
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }
}

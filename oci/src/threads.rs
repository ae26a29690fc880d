//! Threads where there may be none: a machine's limits, or a container's, can leave a builder a few or a single one. What two
//! threads do at the same time without waiting for each other one can do, too, only later.

use std::{
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

/// Does both, at the same time where a thread is to be had for the one, and else one after the other. They must not wait
/// for each other. A panic of either goes on here.
pub fn both<A: Send, B>(elsewhere: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    let waiting = Mutex::new(Some(elsewhere));
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let perform = || take().expect("it is taken once, by the thread or for want of one")();
    thread::scope(|scope| {
        let started = thread::Builder::new().spawn_scoped(scope, perform);
        let done = here();
        let other = match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => perform(),
        };
        (other, done)
    })
}

/// Lets as many threads as are to be had, up to this many, do the same; this one does it where there are none. Whatever
/// they have to do they take from a store of their own, which the first can empty.
pub fn up_to(threads: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        let start = |_: &usize| thread::Builder::new().spawn_scoped(scope, &work).is_ok();
        if (0..threads).take_while(start).count() == 0 {
            work();
        }
    });
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        process::Command,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Tells the child that it is one.
    const CHILD: &str = "LAYERWRIGHT_TEST_WITHOUT_THREADS";

    #[test]
    fn both_are_done() {
        let text = "text".to_owned();
        assert_eq!(both(|| text.len(), || text.as_str()), (4, "text"));
    }

    #[test]
    fn as_many_as_wanted_or_this_one() {
        for threads in [0, 1, 3] {
            let begun = AtomicUsize::new(0);
            up_to(threads, || _ = begun.fetch_add(1, Ordering::SeqCst));
            assert_eq!(begun.into_inner(), threads.max(1));
        }
    }

    #[test]
    fn this_thread_does_all_where_there_is_no_other() {
        if env::var_os(CHILD).is_some() {
            assert!(thread::Builder::new().spawn(|| {}).is_err(), "there is no other");
            let here = thread::current().id();
            let (a, b) = both(|| thread::current().id(), || thread::current().id());
            assert_eq!((a, b), (here, here));
            let begun = AtomicUsize::new(0);
            up_to(3, || _ = begun.fetch_add(1, Ordering::SeqCst));
            assert_eq!(begun.into_inner(), 1);
            return;
        }
        let child = Command::new(env::current_exe().expect("a test knows its program"))
            .args(["--exact", "threads::tests::this_thread_does_all_where_there_is_no_other", "--nocapture"])
            .env(CHILD, "")
            // No machine has room for such a stack.
            .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
            .output()
            .expect("the test can start itself");
        let said = [child.stdout, child.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }
}

//! Work that nobody waits for: what is remembered for later builds is written beside the build.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};

type Work = Box<dyn FnOnce() + Send>;

/// One thread that does one thing after the other, started with the first. Dropping this waits for all.
#[derive(Debug, Default)]
pub struct Background {
    worker: Mutex<Option<(Sender<Work>, JoinHandle<()>)>>,
}

impl Background {
    /// Has something done soon. Where no thread can be started it is done now.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_none() {
            let (sender, receiver) = channel::<Work>();
            let thread = std::thread::Builder::new().name("background".to_owned());
            let started = thread.spawn(move || receiver.into_iter().for_each(|work| work()));
            *worker = started.ok().map(|thread| (sender, thread));
        }
        match &*worker {
            // It receives until there is nobody to send.
            Some((sender, _)) => sender.send(Box::new(work)).expect("the thread receives"),
            None => work(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((sender, thread)) = worker.take() {
            drop(sender);
            // What panicked there has said so itself, and was nothing that the build needs.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[test]
    fn all_is_done_in_order_once_it_is_dropped() {
        let done = Arc::new(AtomicU32::new(0));
        let background = Background::default();
        for number in 0..10 {
            let done = Arc::clone(&done);
            background.run(move || assert_eq!(done.fetch_add(1, Ordering::SeqCst), number));
        }
        drop(background);
        assert_eq!(done.load(Ordering::SeqCst), 10);
    }
}

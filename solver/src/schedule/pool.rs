//! The threads that do the work, and what they are told and tell. They hold no state: a task carries all it needs.
//!
//! Two crews, so that a step that runs for an hour keeps nobody from looking up, hashing and writing records: one runs
//! steps, as many at a time as the user allows; the other does everything else. Each has one worker from the beginning, and
//! gets others when there is work for them and the machine gives threads.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, Scope},
    time::Duration,
};

use oci::{Snapshot, TreeDigest};

use super::task::{Crew, Message, Task, perform};
use crate::{
    cache::Maker,
    event::EventSink,
    graph::{Graph, VertexId},
    traits::{CacheBackend, Cancel, Executor, RecordWriter},
};

/// Everything outside the scheduler, for the time of one build.
pub(super) struct World<'a> {
    pub(super) graph: &'a Graph,
    pub(super) executor: &'a dyn Executor,
    /// The near ones.
    pub(super) caches: &'a [&'a dyn CacheBackend],
    pub(super) writers: &'a [&'a dyn RecordWriter],
    pub(super) events: &'a EventSink<'a>,
    /// Requested by the user or by the first failure.
    pub(super) stop: &'a Cancel,
    pub(super) maker: &'a Maker,
    /// Records that were made before, in Unix seconds, do not count.
    pub(super) oldest: u64,
}

/// An input that is there.
#[derive(Clone)]
pub(super) struct Ready {
    pub(super) id: VertexId,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) digest: TreeDigest,
    pub(super) identity: Option<TreeDigest>,
}

/// Workers and the tasks they have not answered yet.
pub(super) struct Pool<'scope> {
    running: Queue,
    other: Queue,
    messages: Receiver<Letter>,
    outside: Sender<Letter>,
    hire: Box<dyn Fn(Crew, SharedTasks) -> io::Result<()> + 'scope>,
    jobs: usize,
}

/// A message; and from which crew, where it answers a task.
type Letter = (Option<Crew>, Message);

/// By which those who are no workers say something, also after everybody has stopped listening.
#[derive(Clone)]
pub(super) struct Outside(Sender<Letter>);

impl Outside {
    pub(super) fn say(&self, message: Message) {
        let _ = self.0.send((None, message));
    }
}

/// Where the workers of a crew get their tasks.
type SharedTasks = Arc<Mutex<Receiver<Task>>>;

/// The tasks of one crew.
struct Queue {
    sender: Sender<Task>,
    receiver: SharedTasks,
    threads: usize,
    unanswered: usize,
}

impl Queue {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { sender, receiver: Arc::new(Mutex::new(receiver)), threads: 0, unanswered: 0 }
    }
}

impl<'scope> Pool<'scope> {
    /// A pool whose workers, at most `jobs` a crew, end when it is dropped and its last task is done.
    ///
    /// # Errors
    /// There is no thread for one worker of each crew.
    pub(super) fn new(
        scope: &'scope Scope<'scope, '_>,
        world: &'scope World<'scope>,
        jobs: usize,
    ) -> io::Result<Self> {
        let (answers, messages) = mpsc::channel();
        let outside = answers.clone();
        let hire = move |crew, queue: SharedTasks| {
            let answers = answers.clone();
            let worker = thread::Builder::new().name("worker".to_owned());
            worker.spawn_scoped(scope, move || work(world, crew, &queue, &answers)).map(drop)
        };
        let (running, other) = (Queue::new(), Queue::new());
        let mut pool = Self { running, other, messages, outside, hire: Box::new(hire), jobs: jobs.max(1) };
        pool.engage(Crew::Steps)?;
        pool.engage(Crew::Other)?;
        Ok(pool)
    }

    pub(super) fn outside(&self) -> Outside {
        Outside(self.outside.clone())
    }

    /// How many steps run at the same time.
    pub(super) fn jobs(&self) -> usize {
        self.jobs
    }

    pub(super) fn submit(&mut self, task: Task) {
        let crew = task.crew();
        let jobs = self.jobs;
        let queue = self.queue(crew);
        queue.unanswered += 1;
        // The receiver lives as long as the queue does.
        let _ = queue.sender.send(task);
        if queue.threads < queue.unanswered.min(jobs) {
            // What no thread can be had for is done by those that are there: there is one.
            let _ = self.engage(crew);
        }
    }

    /// One worker more.
    fn engage(&mut self, crew: Crew) -> io::Result<()> {
        let receiver = Arc::clone(&self.queue(crew).receiver);
        (self.hire)(crew, receiver)?;
        self.queue(crew).threads += 1;
        Ok(())
    }

    /// What has been said already.
    ///
    /// # Panics
    /// If a worker has.
    pub(super) fn heard(&mut self) -> Option<Message> {
        self.messages.try_recv().ok().map(|letter| self.answered(letter))
    }

    /// The next message, or `None` when no worker is busy; the others are not waited for.
    ///
    /// # Panics
    /// If a worker has.
    pub(super) fn next(&mut self) -> Option<Message> {
        if self.running.unanswered + self.other.unanswered == 0 {
            return None;
        }
        let answer = self.messages.recv();
        Some(self.answered(answer.expect("the pool holds a sender itself")))
    }

    /// The next message, if one comes within some time.
    ///
    /// # Panics
    /// If a worker has.
    pub(super) fn next_within(&mut self, patience: Duration) -> Option<Message> {
        match self.messages.recv_timeout(patience) {
            Ok(answer) => Some(self.answered(answer)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("the pool holds a sender itself"),
        }
    }

    fn answered(&mut self, (crew, message): Letter) -> Message {
        assert!(!matches!(message, Message::Lost), "a worker of the scheduler panicked");
        if let Some(crew) = crew {
            self.queue(crew).unanswered -= 1;
        }
        message
    }

    fn queue(&mut self, crew: Crew) -> &mut Queue {
        match crew {
            Crew::Steps => &mut self.running,
            Crew::Other => &mut self.other,
        }
    }
}

/// Says so when its thread panics: nobody may wait for its answer.
struct LastWords<'a>(Crew, &'a Sender<Letter>);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.1.send((Some(self.0), Message::Lost));
        }
    }
}

fn work(world: &World, crew: Crew, queue: &Mutex<Receiver<Task>>, answers: &Sender<Letter>) {
    let last_words = LastWords(crew, answers);
    loop {
        let task = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        // Nobody listens any more after a panic elsewhere; what is queued is done nevertheless.
        let _ = last_words.1.send((Some(crew), perform(world, task)));
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::schedule::tests::fake;

    /// More than a test takes, so that work that nobody does is a failure and no wait.
    const WATCHDOG: Duration = Duration::from_secs(20);

    #[test]
    fn a_worker_does_what_no_further_thread_is_there_for() {
        let mut file = fake::Dockerfile::default();
        let contexts: Vec<VertexId> = ["a", "b", "c"].map(|path| file.context(path)).into();
        let (executor, maker) = (fake::World::default(), Maker::default());
        let (stop, events) = (Cancel::default(), |_| {});
        let world = World {
            graph: &file.0,
            executor: &executor,
            caches: &[],
            writers: &[],
            events: &events,
            stop: &stop,
            maker: &maker,
            oldest: 0,
        };
        thread::scope(|scope| {
            let mut pool = Pool::new(scope, &world, 4).expect("the first two threads");
            pool.hire = Box::new(|_, _| Err(io::ErrorKind::WouldBlock.into()));
            contexts.iter().for_each(|id| pool.submit(Task::Identify(*id)));
            let answers = iter::repeat_with(|| pool.next_within(WATCHDOG));
            assert_eq!(answers.map_while(|answer| answer).take(3).count(), 3);
            assert!(pool.next().is_none(), "nobody is busy");
            assert_eq!((pool.running.threads, pool.other.threads), (1, 1));
        });
    }
}

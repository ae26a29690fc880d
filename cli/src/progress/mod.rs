//! What a build shows while it runs: one thread owns the view and stamps every event with the time it came.
//!
//! Events come from many threads through a bounded channel, so a step that floods its output is slowed down rather
//! than filling memory. The [`Board`] is what is known so far; a [`View`] decides how it looks. Everything goes to
//! standard error, since standard output is for data; what cannot be written (a closed pipe) is given up quietly, for
//! a build must not fail because nobody watches it.

mod board;
mod json;
mod plain;
mod quiet;
mod spool;
mod text;
mod tty;

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use oci::Sha256Digest;
use solver::Event;

pub use self::{
    board::{Board, Earlier, Line, Step},
    plain::Plain,
    spool::{Gap, Piece},
    text::bytes,
};
use crate::{
    args::ProgressMode,
    explain::{Explainer, Explanation},
    history::{Record, Recorder},
};

/// How many events may wait to be shown. A line of output can have 64 KiB.
const QUEUE: usize = 512;
/// How many bytes of lines are written at once, PIPE_BUF of Linux: up to that a pipe keeps them together, and other processes
/// may write to the same one.
const AT_ONCE: usize = 4096;
/// Time between two looks at a view that nothing has happened to.
const TICK: Duration = Duration::from_millis(100);

/// How a build ended.
#[derive(Debug, Clone)]
pub enum End {
    /// It made an image.
    Built(Delivered),
    /// Nothing was built, but an image was brought somewhere.
    Pushed {
        /// Digest of the manifest or index.
        digest: Sha256Digest,
        /// Where it went, in words.
        destinations: Vec<String>,
    },
    /// It was asked about, and nothing was built.
    Answered,
    /// It did not.
    Failed {
        /// Why, in one line.
        message: String,
        /// The exit code to come.
        exit_code: u8,
        /// The whole story as people read it, without colours.
        report: String,
        /// What it has made for all that.
        delivered: Option<Delivered>,
    },
}

/// What a build has made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Delivered {
    /// Digest of the manifest or index; `None` where only files were wanted.
    pub digest: Option<Sha256Digest>,
    /// Where it went, in words: `pushed localhost:5000/app:1`.
    pub destinations: Vec<String>,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A build, which has steps.
    Build,
    /// Something that exists, brought to registries.
    Push,
    /// An image, brought here.
    Pull,
}

/// A way to show a build.
pub trait View: Send {
    /// Something has happened, `at` after the start; the board knows it already.
    fn event(&mut self, board: &Board, at: Duration, event: &Event);

    /// Time has passed; comes at most ten times a second.
    fn tick(&mut self, board: &Board, at: Duration);

    /// Why steps ran (`--explain`); comes before the end. Views for people leave it to whoever ends the build.
    fn explain(&mut self, at: Duration, explanation: &Explanation) {
        let _ = (at, explanation);
    }

    /// Nothing waits to be shown any more: what has been held back to be written at once is due.
    fn flush(&mut self) {}

    /// Nothing will happen any more.
    fn end(&mut self, board: &Board, at: Duration, end: &End);
}

enum Message {
    Event(Duration, Box<Event>),
    End(Duration, End),
}

/// The progress of one build.
pub struct Progress {
    start: Instant,
    sender: SyncSender<Message>,
    owner: JoinHandle<Ended>,
}

/// What is left of a build that has ended.
pub struct Ended {
    /// What is known of its steps.
    pub board: Board,
    /// What the history shall keep of it, where it was recorded.
    pub record: Option<Record>,
    /// Why its steps ran, where somebody asked.
    pub explanation: Option<Explanation>,
}

impl Progress {
    /// Starts to show a build on standard error. What a view does not show of a step's output is kept on the file system
    /// of `directory` until the step has ended well. The recorder hears everything, too, and what it has made of it is
    /// looked back at in the end.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        mode: ProgressMode,
        work: Work,
        directory: &Path,
        recorder: Option<Recorder>,
        explainer: Option<Explainer>,
    ) -> io::Result<Self> {
        let view: Box<dyn View> = match mode {
            ProgressMode::Tty => Box::new(tty::Tty::on_stderr(work)),
            ProgressMode::Auto | ProgressMode::Plain => {
                Box::new(Plain::new(at_once(io::stderr())).harmless(io::stderr().is_terminal()))
            }
            ProgressMode::Json => Box::new(json::Json::new(at_once(io::stderr()), SystemTime::now())),
            ProgressMode::Quiet => Box::new(quiet::Quiet::new(io::stderr())),
        };
        let board = match mode {
            ProgressMode::Tty | ProgressMode::Quiet => Board::keeping_lines(directory.to_owned()),
            ProgressMode::Auto | ProgressMode::Plain | ProgressMode::Json => Board::default(),
        };
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let start = Instant::now();
        let owner = thread::Builder::new().name("progress".to_owned());
        let owner = owner.spawn(move || own(view, board, recorder, explainer, &receiver, start))?;
        Ok(Self { start, sender, owner })
    }

    /// Takes events, from any thread.
    pub fn sink(&self) -> Arc<dyn Fn(Event) + Send + Sync> {
        let (sender, start) = (self.sender.clone(), self.start);
        // After the end nobody listens any more, and nobody needs to.
        Arc::new(move |event| drop(sender.send(Message::Event(start.elapsed(), Box::new(event)))))
    }

    /// Shows the end and gives back what is known of every step.
    pub fn end(self, end: End) -> Ended {
        let _ = self.sender.send(Message::End(self.start.elapsed(), end));
        self.owner.join().expect("a panic anywhere ends the process")
    }
}

fn own(
    mut view: Box<dyn View>,
    mut board: Board,
    mut recorder: Option<Recorder>,
    explainer: Option<Explainer>,
    receiver: &Receiver<Message>,
    start: Instant,
) -> Ended {
    loop {
        match next(receiver, view.as_mut()) {
            Ok(Message::Event(at, event)) => {
                board.apply(at, &event);
                view.event(&board, at, &event);
                if let Some(recorder) = &mut recorder {
                    recorder.event(&board, at, &event);
                }
            }
            Ok(Message::End(at, end)) => {
                let mut record = recorder.map(|recorder| recorder.end(&board, at, &end));
                let explain = |(explain, record): (Explainer, &mut Record)| explain(&mut record.entry);
                let explanation = explainer.zip(record.as_mut()).and_then(explain);
                if let Some(explanation) = &explanation {
                    view.explain(at, explanation);
                }
                view.end(&board, at, &end);
                view.flush();
                return Ended { board, record, explanation };
            }
            Err(RecvTimeoutError::Timeout) => view.tick(&board, start.elapsed()),
            Err(RecvTimeoutError::Disconnected) => {
                view.flush();
                return Ended { board, record: None, explanation: None };
            }
        }
    }
}

/// What comes next. Whoever has to wait for it sees everything that was before.
fn next(receiver: &Receiver<Message>, view: &mut dyn View) -> Result<Message, RecvTimeoutError> {
    match receiver.try_recv() {
        Ok(message) => Ok(message),
        Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
        Err(TryRecvError::Empty) => {
            view.flush();
            receiver.recv_timeout(TICK)
        }
    }
}

/// Writes lines that come one after the other together, each of them whole; a longer one than fits is written by itself.
fn at_once<W: Write>(out: W) -> BufWriter<W> {
    BufWriter::with_capacity(AT_ONCE, out)
}

/// A line of a log as a terminal may have it, with its end.
pub fn shown(line: &[u8]) -> String {
    match line.strip_suffix(b"\n") {
        Some(line) => text::harmless(line, usize::MAX, text::Colour::Kept) + "\n",
        None => text::harmless(line, usize::MAX, text::Colour::Kept),
    }
}

/// The last words; where something went wrong, whoever ended the build has more to say.
fn summary(out: &mut impl Write, board: &Board, at: Duration, end: &End) {
    let (first, destinations) = match end {
        End::Built(Delivered { digest, destinations })
        | End::Failed { delivered: Some(Delivered { digest, destinations }), .. } => {
            let (steps, cached) = (board.steps_but_sources(), board.cached());
            let plural = if steps == 1 { "" } else { "s" };
            let what = digest.map_or_else(|| "files".to_owned(), |digest| digest.to_string());
            let took = text::seconds(at);
            (format!("Built {what} in {took}: {steps} step{plural}, {cached} cached"), destinations)
        }
        End::Pushed { digest, destinations } => {
            (format!("Pushed {digest} in {}", text::seconds(at)), destinations)
        }
        End::Answered | End::Failed { delivered: None, .. } => {
            // Of a build that failed, too, others use the finished steps.
            board.notes().iter().for_each(|note| drop(writeln!(out, "{note}")));
            return;
        }
    };
    let _ = writeln!(out, "{first}");
    for line in destinations.iter().chain(board.notes()) {
        let _ = writeln!(out, "  {line}");
    }
}

#[cfg(test)]
mod tests;

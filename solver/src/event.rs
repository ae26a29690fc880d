//! What a build says while it runs. Events are the only thing that flows sideways; they carry no time, the receiver
//! stamps them.

use std::sync::Arc;

use oci::{Layer, Snapshot};

use crate::{
    cache::{Hit, Miss},
    graph::VertexId,
};

/// Which output of a process a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The steps that the targets need, in graph order; comes once, before all others of the solver.
    Planned(Vec<(VertexId, String)>),
    /// A step begins to run.
    Started(VertexId),
    /// A line of its output, without the line end.
    Log(VertexId, Stream, Vec<u8>),
    /// A step is answered by a cache; by a distant one also after it has been started. It has been stopped then, and nothing
    /// more is told of it.
    Cached(VertexId, Box<Hit>),
    /// The cache does not answer for a step: it will run, or wait for an equal one that does.
    Missed(VertexId, Box<Miss>),
    /// A step cannot begin yet, since somebody else has what it needs: who and what, for people. `Started` or `Cached`
    /// follows. After `Started`: the step has been stopped, since another builder runs it; or it ends before it is, and `Done`
    /// follows.
    Waiting(VertexId, String),
    /// A step has run, and this is its layer.
    Done(VertexId, Layer),
    /// The file system of a step or source is known, ran or not; whatever the build makes of it stands on exactly this.
    /// Comes at least once for every target and for what is below a step that runs, and before a record of it is written to a
    /// distant cache. Not for people.
    Settled(VertexId, Arc<Snapshot>),
    /// A step has failed, and why, in one line without a period; the build's error says the rest.
    Failed(VertexId, String),
    /// The content of a source is known; sources have no layer of their own. Comes for every source among the planned.
    Ready(VertexId),
    /// A step was running when the build was cancelled or failed elsewhere.
    Cancelled(VertexId),
    /// Bytes of a transfer, pull, unpack, compression or push, named for people; `total` is 0 while unknown. The last
    /// one of a task has `done == total`.
    Transfer {
        /// What is moved, unique within a build: `pull sha256:0123456789ab`.
        task: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A stage of the export begins, named for people: `exporting to oci layout out/`.
    Stage(String),
    /// The stage of that name has ended.
    StageDone(String),
    /// What commands run in, said before the first of them, once: `user namespace with subordinate ids`.
    Sandbox(String),
    /// Something that does not stop the build but must be seen.
    Warning(String),
    /// Something about what came of the build, to be read in its end: `cached 12 steps in REF, 3.40MB up`.
    Note(String),
}

/// Takes events, from several threads at the same time; must not block for long.
pub type EventSink<'a> = dyn Fn(Event) + Send + Sync + 'a;

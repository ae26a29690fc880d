//! From a Dockerfile to images: what to do, in which order, and what need not be done at all.
//!
//! [`plan()`] turns the syntax tree into a [`Graph`]; [`key`] gives every vertex its two identities; [`schedule`] asks the
//! cache and runs what is left; the result is one [`Image`] a target. No file, socket, clock or environment variable
//! is touched here: everything of the world comes through the traits of [`traits`].
#![forbid(unsafe_code)]
// Tests read fixtures and say what they skip; the crate itself is held to its clippy.toml.
#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_macros, clippy::disallowed_types))]

pub mod cache;
pub mod event;
pub mod explain;
pub mod graph;
pub mod key;
pub mod op;
pub mod pattern;
pub mod plan;
pub mod remote;
pub mod schedule;
pub mod traits;

pub use cache::{Claim, Hit, Key, Made, Maker, Miss, Record};
pub use event::{Event, EventSink, Stream};
pub use graph::{Graph, Target, Vertex, VertexId};
pub use op::Op;
pub use parser::ast::Span;
pub use plan::{Entitlement, NamedContext, PlanError, PlanOptions, Planned, clean_path, plan};
pub use schedule::{Caches, SolveError, SolveOptions, solve};
pub use traits::{
    BaseImage, Bulletin, CacheBackend, Cancel, DistantCache, Executed, Executor, FailureKind, Found,
    ImageName, Input, Notice, RecordWriter, Resolver, Step, StepFailure,
};

/// A solved image: everything but its bytes.
#[derive(Debug, Clone)]
pub struct Image {
    /// Config, history and platform as planned.
    pub target: Target,
    /// Its file system.
    pub snapshot: oci::Snapshot,
}

//! The build graph: steps, their inputs, and the images that are asked for.
//!
//! An edge can only name an earlier vertex, so a cycle cannot be written down and graph order is a topological order.

use std::collections::BTreeMap;

use oci::{ImageConfig, Platform, config::History};
use parser::Span;

use crate::op::Op;

/// Index of a vertex in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(pub usize);

/// A build, ready to be solved.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    vertices: Vec<Vertex>,
    /// The images to make, one a platform.
    pub targets: Vec<Target>,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// What it does. Identity.
    pub op: Op,
    /// What it does it to. Identity.
    pub inputs: Vec<VertexId>,
    /// The platform it runs on. Identity.
    pub platform: Platform,
    /// How it is shown: `[build 2/5] RUN make`. Not identity.
    pub label: String,
    /// Where it stands in the Dockerfile. Not identity.
    pub span: Option<Span>,
    /// Variables that reach the process but no key: the proxy arguments. Not identity.
    pub ambient_env: Vec<(String, String)>,
    /// Whether the cache may answer for it (`--no-cache`, `--no-cache-filter`). Not identity.
    pub use_cache: bool,
    /// What stands in the Dockerfile, for people. Not identity.
    pub written: Written,
}

/// What people know a step by: it is told of when a step is explained, and no part of what the step is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// The instruction, its variables not replaced; without credentials of URLs. Empty for what the planner adds.
    pub instruction: String,
    /// The ARGs that it names, or that its command can see, with their values.
    pub arguments: BTreeMap<String, String>,
    /// The ENVs that it names, with their values. What a command can see of them is in its operation.
    pub env: BTreeMap<String, String>,
}

/// An image that is asked for.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its platform.
    pub platform: Platform,
    /// The step whose snapshot it has.
    pub vertex: VertexId,
    /// Its config, with the base's history; `rootfs` and our own history entries are filled in when it is sealed.
    pub config: ImageConfig,
    /// How many layers the base image has: `config.history` speaks of those.
    pub base_layers: usize,
    /// One entry an instruction since the base, oldest first. Those with `produces_layer` belong, in order, to the
    /// layers of the snapshot after the base's.
    pub history: Vec<HistoryItem>,
}

/// A history entry and whether its instruction is a step.
#[derive(Debug, Clone)]
pub struct HistoryItem {
    /// The entry; `empty_layer` is decided when the layer is known.
    pub entry: History,
    /// Whether a vertex stands behind it.
    pub produces_layer: bool,
}

impl Graph {
    /// Adds a vertex after all others.
    ///
    /// # Panics
    /// If an input is not an earlier vertex: only a mistake in the planner can cause that.
    pub fn add(&mut self, vertex: Vertex) -> VertexId {
        let id = VertexId(self.vertices.len());
        assert!(vertex.inputs.iter().all(|input| *input < id), "an edge names a later vertex");
        self.vertices.push(vertex);
        id
    }

    /// A vertex of this graph.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.vertices[id.0]
    }

    /// All vertices in graph order.
    pub fn vertices(&self) -> impl DoubleEndedIterator<Item = (VertexId, &Vertex)> + ExactSizeIterator {
        self.vertices.iter().enumerate().map(|(index, vertex)| (VertexId(index), vertex))
    }
}

//! From the syntax tree to the build graph. Pure: asks only the [`Resolver`], and only for images that the target
//! needs.

use std::collections::BTreeMap;

use oci::Platform;
use parser::{Diagnostic, Dockerfile};

use crate::{
    graph::Graph,
    op::{Network, Timestamps},
    traits::{ImageName, Resolver, StepFailure},
};

/// What the command line says about a build.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// `--target`: a stage's name or number; the last stage where it is not given.
    pub target: Option<String>,
    /// `--build-arg`, proxy settings included.
    pub build_args: BTreeMap<String, String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--platform`; empty: the build platform.
    pub platforms: Vec<Platform>,
    /// The platform of this machine.
    pub build_platform: Platform,
    /// `--build-context`, by name as written.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--network`: what a RUN without a flag of its own gets.
    pub network: Network,
    /// `--no-cache`
    pub no_cache: bool,
    /// `--no-cache-filter`: names of stages.
    pub no_cache_filter: Vec<String>,
    /// `--timestamps`
    pub timestamps: Timestamps,
}

impl PlanOptions {
    /// Options of a build with no flags at all, for a machine of this platform.
    pub fn new(build_platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: Vec::new(),
            build_platform,
            contexts: BTreeMap::new(),
            network: Network::Default,
            no_cache: false,
            no_cache_filter: Vec::new(),
            timestamps: Timestamps::Auto,
        }
    }
}

/// What `--build-context NAME=` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory; the executor knows its path by the context's name.
    Directory,
    /// An image.
    Image(ImageName),
    /// No files at all: `docker-image://scratch`.
    Scratch,
}

/// A Dockerfile that is understood.
#[derive(Debug)]
pub struct Planned {
    /// What to do.
    pub graph: Graph,
    /// What is doubtful about it.
    pub warnings: Vec<Diagnostic>,
}

/// Why there is no graph.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The Dockerfile, or what the command line says about it, is wrong.
    #[error("{}", summary(diagnostics))]
    Dockerfile {
        /// Everything that is wrong or doubtful, at least one error among it.
        diagnostics: Vec<Diagnostic>,
    },
    /// A base image cannot be had.
    #[error("{failure}")]
    Image {
        /// Where it is asked for.
        span: parser::Span,
        /// Why not.
        #[source]
        failure: StepFailure,
    },
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| found.severity == parser::Severity::Error);
    errors.map(|found| found.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// Turns a Dockerfile into what must be done for its target, on every platform asked for.
///
/// # Errors
/// [`PlanError::Dockerfile`] with all mistakes together, [`PlanError::Image`] for the first image that cannot be had.
pub fn plan(
    _dockerfile: &Dockerfile,
    _text: &str,
    _options: &PlanOptions,
    _resolver: &dyn Resolver,
) -> Result<Planned, PlanError> {
    let found = Diagnostic::error(parser::Span::default(), "the planner is not written yet");
    Err(PlanError::Dockerfile { diagnostics: vec![found] })
}

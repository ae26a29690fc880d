//! From the syntax tree to the build graph. Pure: asks only the [`Resolver`], and only for images that the target
//! needs.
//!
//! For every platform, `survey` finds out which stages are needed and what they stand on, and `stage` goes through
//! their instructions in the order of the file. What a Dockerfile means is BuildKit's frontend's to say; history
//! entries and labels are in its words. Mistakes are collected; only an image that cannot be had ends the planning.

mod add;
mod bases;
mod check;
mod copy;
mod devices;
mod epoch;
mod lint;
mod modes;
mod mounts;
mod outline;
mod path;
mod ports;
mod report;
mod run;
mod settings;
mod source;
mod stage;
mod survey;
#[cfg(test)]
mod tests;
mod unused;
mod variables;
mod wording;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use oci::{Platform, Reference};
use parser::{
    Diagnostic, Dockerfile, Severity, Span,
    ast::{ArgDeclaration, Instruction, InstructionKind, Word},
    lint::{Scope, rule as lint_rule},
    word,
};

use crate::{
    graph::{Graph, Target, Vertex, VertexId},
    op::{Network, Op, Relaxations, Resource, Security, Source, Timestamps, Ulimit},
    traits::{ImageName, Resolver, StepFailure},
};
pub use check::{Checked, check, mistakes};
pub use outline::{CacheUse, Outline, OutlineArg, SecretUse, SshUse, StageInfo, outline, targets};

use bases::{Images, Unanswered};
use report::Report;
use stage::StageState;
use variables::Environment;

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
    /// `--build-context`, by name as written; `name::os/architecture` is for that platform only.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--network`: what a RUN without a flag of its own gets.
    pub network: Network,
    /// `--allow`, and what other flags imply (`--network host`).
    pub allow: BTreeSet<Entitlement>,
    /// `--add-host`: what `/etc/hosts` of a RUN gives besides, in order: name and address.
    pub hosts: Vec<(String, String)>,
    /// `--ulimit`
    pub ulimits: BTreeMap<Resource, Ulimit>,
    /// `--shm-size`, in bytes.
    pub shared_memory: Option<u64>,
    /// What a RUN has that asks for nothing else: [`Security::Sandbox`], or with `--no-new-privs`
    /// [`Security::NoNewPrivileges`].
    pub security: Security,
    /// `--sandbox-allow`
    pub relaxed: Relaxations,
    /// `--no-cache`
    pub no_cache: bool,
    /// `--no-cache-filter`: names of stages.
    pub no_cache_filter: Vec<String>,
    /// `--timestamps`
    pub timestamps: Timestamps,
    /// Patterns of the main context's ignore file, for what can be said about them before anything is read.
    pub ignore: Vec<String>,
    /// What the parser has found doubtful: those findings that are about what is planned count among the plan's own.
    pub findings: Vec<Diagnostic>,
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
            allow: BTreeSet::new(),
            hosts: Vec::new(),
            ulimits: BTreeMap::new(),
            shared_memory: None,
            security: Security::Sandbox,
            relaxed: Relaxations::default(),
            no_cache: false,
            no_cache_filter: Vec::new(),
            timestamps: Timestamps::Auto,
            ignore: Vec::new(),
            findings: Vec::new(),
        }
    }
}

/// Something that a Dockerfile may only do when the command line says so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
    /// `device`, all of them (`None`), or `device=NAME`.
    Device(Option<String>),
}

/// What `--build-context NAME=` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// Files, whatever they come from; the executor knows the place by the context's name.
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
    /// The global argument SOURCE_DATE_EPOCH, in seconds since 1970, where the Dockerfile has one.
    pub epoch: Option<i64>,
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
        span: Span,
        /// Why not.
        #[source]
        failure: StepFailure,
    },
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
    errors.map(|found| found.message.as_str()).collect::<Vec<_>>().join("; ")
}

impl From<Diagnostic> for PlanError {
    fn from(found: Diagnostic) -> Self {
        Self::Dockerfile { diagnostics: vec![found] }
    }
}

/// Turns a Dockerfile into what must be done for its target, on every platform asked for.
///
/// # Errors
/// [`PlanError::Dockerfile`] with all mistakes together, [`PlanError::Image`] for the first image that cannot be had.
pub fn plan(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    resolver: &dyn Resolver,
) -> Result<Planned, PlanError> {
    let mut planner = Planner::new(dockerfile, options, resolver, Unanswered::Failure);
    let planned = planner.check_frontend().and_then(|()| planner.all_platforms());
    let planned = planner.reported(planned);
    planner.take_over_findings();
    let Planner { graph, report, epoch, .. } = planner;
    let found = report.checked(dockerfile);
    let has_errors = found.iter().any(|found| found.severity == Severity::Error);
    match planned {
        _ if has_errors => Err(PlanError::Dockerfile { diagnostics: found }),
        Err(failure) => Err(failure),
        Ok(_) => Ok(Planned { graph, warnings: found, epoch }),
    }
}

/// The shortest path of an image that is the same by text alone, below `/`; `..` stops there.
pub fn clean_path(text: &str) -> String {
    path::clean(text)
}

/// A path cleaned by text alone, relative to the root that it never leaves.
pub(crate) fn clean_relative(text: &str) -> String {
    path::relative(text)
}

/// BuildKit's own frontend, by any name of a version 1: `1`, `1.26`, `1-labs`, `latest`, `master`.
fn is_built_in(frontend: &Reference) -> bool {
    let repository =
        matches!(frontend.repository.as_str(), "docker/dockerfile" | "docker/dockerfile-upstream");
    let tag = frontend.tag.as_deref().unwrap_or("latest");
    let major = tag.split(['.', '-']).next().and_then(|major| major.parse::<u32>().ok());
    frontend.registry == oci::reference::DEFAULT_REGISTRY
        && repository
        && major.is_none_or(|major| major == 1)
}

/// The numbers of the stages that have a name, in order, by that name in lower case: names compare without case.
fn stages_by_name(dockerfile: &Dockerfile) -> BTreeMap<String, Vec<usize>> {
    let mut stages: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, stage) in dockerfile.stages.iter().enumerate() {
        if let Some(name) = &stage.name {
            stages.entry(name.value.to_ascii_lowercase()).or_default().push(number);
        }
    }
    stages
}

/// What the whole of the planning shares.
struct Planner<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a PlanOptions,
    images: Images<'a>,
    stages_by_name: BTreeMap<String, Vec<usize>>,
    /// What every stage leads to, once somebody has to know ([`source::edges`]).
    edges: OnceCell<Vec<BTreeSet<usize>>>,
    /// The stages that have been looked at.
    surveyed: BTreeSet<usize>,
    graph: Graph,
    report: Report,
    /// See [`Planned::epoch`].
    epoch: Option<i64>,
}

impl<'a> Planner<'a> {
    fn new(
        dockerfile: &'a Dockerfile,
        options: &'a PlanOptions,
        resolver: &'a dyn Resolver,
        unanswered: Unanswered,
    ) -> Self {
        let names = dockerfile.stages.iter().filter_map(|stage| stage.name.as_ref());
        Self {
            dockerfile,
            options,
            images: Images::new(resolver, unanswered, names.map(|name| name.value.as_str()).collect()),
            stages_by_name: stages_by_name(dockerfile),
            edges: OnceCell::new(),
            surveyed: BTreeSet::new(),
            graph: Graph::default(),
            report: Report::default(),
            epoch: None,
        }
    }
}

impl Planner<'_> {
    /// The language we speak is BuildKit's own; a Dockerfile that asks for another must not be misread.
    fn check_frontend(&self) -> Result<(), PlanError> {
        let given = self.options.build_args.get("BUILDKIT_SYNTAX");
        let written = self.dockerfile.directives.syntax.as_ref();
        let (asked, span) = match (given, written) {
            (Some(given), _) => (given.as_str(), Span::default()),
            (None, Some(word)) => (word.value.as_str(), word.span),
            (None, None) => return Ok(()),
        };
        let frontend = asked.split_whitespace().next().unwrap_or("");
        if frontend.parse::<Reference>().is_ok_and(|reference| is_built_in(&reference)) {
            return Ok(());
        }
        let message = format!("the frontend {frontend} is not supported");
        Err(Diagnostic::error(span, message).hint("docker/dockerfile:1 is built in").into())
    }

    fn all_platforms(&mut self) -> Result<(), PlanError> {
        let target = survey::target(self)?;
        self.report.extend(unused::refused_args(self));
        self.report.extend(unused::cache_filters(self));
        self.report.extend(bases::unknown_platforms(self.options));
        let implicit = [self.options.build_platform.clone()];
        let asked = if self.options.platforms.is_empty() { &implicit[..] } else { &self.options.platforms };
        let mut seen = BTreeSet::new();
        for platform in asked.iter().filter(|platform| seen.insert(*platform)) {
            self.one_platform(target, platform)?;
        }
        Ok(())
    }

    fn one_platform(&mut self, target: usize, platform: &Platform) -> Result<(), PlanError> {
        let globals = self.globals(target, platform)?;
        self.note_epoch(&globals);
        let stages = survey::survey(self, target, &globals, platform)?;
        self.report.extend(unused::build_args(self, &stages));
        let mut done = BTreeMap::new();
        self.stages(&stages, &globals, platform, &mut done)?;
        if let Some(state) = done.remove(&target) {
            let target = self.target(state, platform);
            self.graph.targets.push(target);
        }
        Ok(())
    }

    /// The variables of FROM; what is doubtful about its use of them is reported.
    fn globals(&mut self, target: usize, platform: &Platform) -> Result<Environment, PlanError> {
        let name = self.options.target.clone().or_else(|| Some(self.name_of(target)?.to_lowercase()));
        let predefined = variables::predefined(self.options, platform, name.as_deref().unwrap_or(""));
        self.lint_from(&predefined);
        self.global_scope(predefined, &self.options.build_args)
    }

    /// Plans the stages that are not done yet.
    fn stages(
        &mut self,
        stages: &BTreeMap<usize, survey::Surveyed>,
        globals: &Environment,
        platform: &Platform,
        done: &mut BTreeMap<usize, StageState>,
    ) -> Result<(), PlanError> {
        for (number, surveyed) in stages {
            if !done.contains_key(number) {
                let state = stage::plan(self, *number, surveyed, globals, platform, done)?;
                done.extend(state.map(|state| (*number, state)));
            }
        }
        Ok(())
    }

    fn target(&self, state: StageState, platform: &Platform) -> Target {
        let StageState { tip, mut config, base_layers, history, .. } = state;
        config.config.labels.extend(self.options.labels.clone());
        if !self.options.platforms.is_empty() {
            let same = config.os == platform.os && config.architecture == platform.architecture;
            config.os.clone_from(&platform.os);
            config.architecture.clone_from(&platform.architecture);
            if platform.variant.is_some() || !same {
                config.variant.clone_from(&platform.variant);
            }
            if platform.os_version.is_some() || !same {
                config.os_version.clone_from(&platform.os_version);
            }
        }
        let platform = config.platform();
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
        config.variant.clone_from(&platform.variant);
        Target { platform, vertex: tip, config, base_layers, history }
    }

    /// The variables of FROM: those that are known to every build, then each global ARG in turn.
    fn global_scope(
        &self,
        predefined: Environment,
        build_args: &BTreeMap<String, String>,
    ) -> Result<Environment, PlanError> {
        let mut globals = predefined;
        for ArgDeclaration { name, default, comment: _ } in self.global_declarations() {
            let value = match (build_args.get(&name.value), default) {
                (Some(given), _) => given.clone(),
                (None, Some(default)) => {
                    let lookup = |name: &str| globals.get(name).map(str::to_owned);
                    word::expand(&default.value, self.dockerfile.directives.escape, &lookup)
                        .map_err(|error| Diagnostic::error(default.span, error.to_string()))?
                        .value
                }
                (None, None) => continue,
            };
            globals.set(&name.value, &value);
        }
        Ok(globals)
    }

    fn global_declarations(&self) -> impl Iterator<Item = &ArgDeclaration> {
        self.dockerfile.global_args.iter().flat_map(|instruction: &Instruction| match &instruction.kind {
            InstructionKind::Arg(declarations) => declarations.as_slice(),
            _ => &[],
        })
    }

    /// Whether a global ARG names this variable, with or without a value.
    fn declares_globally(&self, name: &str) -> bool {
        self.global_declarations().any(|declaration| declaration.name.value == name)
    }

    /// Stages that cannot be built without build arguments are doubtful, whether or not this build gives them, and
    /// so are names that mean nothing; in all stages, needed or not.
    fn lint_from(&mut self, predefined: &Environment) {
        let Ok(globals) = self.global_scope(predefined.clone(), &BTreeMap::new()) else { return };
        let lookup = |name: &str| globals.get(name).map(str::to_owned);
        let expand = |word: &Word| word::expand(&word.value, self.dockerfile.directives.escape, &lookup);
        for stage in &self.dockerfile.stages {
            let words = [Some(&stage.base), stage.platform.as_ref()].into_iter().flatten();
            for name in words.filter_map(|word| expand(word).ok()).flat_map(|expanded| expanded.unmatched) {
                if !self.declares_globally(&name) {
                    self.report.push(lint::undefined_arg_in_from(stage.span, &name, &globals));
                }
            }
            let name = expand(&stage.base);
            let valid = name.is_ok_and(|name| {
                self.stage_before(&name.value, usize::MAX).is_some()
                    || name.value.parse::<Reference>().is_ok()
            });
            if !valid && stage.base.value.contains('$') {
                self.report.push(lint::invalid_default_arg_in_from(stage));
            }
        }
    }

    /// Reports what the parser has found, but for what rules about instructions say of stages that nobody needs.
    fn take_over_findings(&mut self) {
        let stages = &self.dockerfile.stages;
        let counts = |found: &&Diagnostic| {
            let is_of_stage = found.rule.and_then(lint_rule).is_some_and(|rule| rule.scope == Scope::Stage);
            let behind = stages.partition_point(|stage| stage.span.start <= found.span.start);
            !is_of_stage || behind.checked_sub(1).is_none_or(|number| self.surveyed.contains(&number))
        };
        let found: Vec<Diagnostic> = self.options.findings.iter().filter(counts).cloned().collect();
        self.report.extend(found);
    }

    /// The last stage of this name among the first `limit`.
    fn stage_before(&self, name: &str, limit: usize) -> Option<usize> {
        let numbers = self.stages_by_name.get(&name.to_ascii_lowercase())?;
        let before = numbers.partition_point(|number| *number < limit);
        numbers[..before].last().copied()
    }

    fn name_of(&self, number: usize) -> Option<&str> {
        self.dockerfile.stages[number].name.as_ref().map(|name| name.value.as_str())
    }

    fn stage_names(&self) -> Vec<&str> {
        (0..self.dockerfile.stages.len()).filter_map(|number| self.name_of(number)).collect()
    }

    /// A stage as people are shown it.
    fn shown_stage_name(&self, number: usize) -> String {
        self.name_of(number).map_or_else(|| format!("stage-{number}"), str::to_lowercase)
    }

    /// Adds something that steps read.
    fn add_source(&mut self, source: Source, platform: &Platform, label: String, span: Span) -> VertexId {
        self.graph.add(Vertex {
            op: Op::Source(source),
            inputs: Vec::new(),
            platform: platform.clone(),
            label,
            span: Some(span),
            ambient_env: Vec::new(),
            use_cache: true,
            written: Default::default(),
        })
    }

    /// Takes mistakes out of the way: they are reported together, and planning goes on beside them.
    fn reported<T>(&mut self, result: Result<T, PlanError>) -> Result<Option<T>, PlanError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(PlanError::Dockerfile { diagnostics }) => {
                self.report.extend(diagnostics);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

//! `layerwright build`: parse → plan → solve → seal → export, each called once, each taking what the one before
//! returned. Nothing is decided here: [`options`] says what the request means to each of them, [`results`] where it goes.

mod commit;
mod options;
mod results;
mod sending;

use std::{sync::Arc, time::SystemTime};

use executor::{
    FailedSteps, ImageResolver, LocalCache, LocalExecutor,
    sandbox::{Footing, Group, refuse_beyond_chroot},
};
use exporter::{
    LoadHelper, SealAhead, Sealer, Tools,
    cache::{BuildEnd, InlineKeys},
};
use oci::{Snapshot, TreeDigest, threads::both};
use parser::{Diagnostic, Dockerfile, Parsed, Severity};
use solver::{
    Caches, Cancel, Event, Executed, Executor, FailureKind, Graph, Step, StepFailure, Vertex, op,
    plan::{self, PlanError, Planned},
    schedule::SolveError,
};

pub use self::{
    options::{executor_options, plan_options},
    results::{remove_iidfile, try_destinations},
};
use self::{
    options::{sealers, solve_options},
    results::{Made, assemble_all, write_results},
    sending::Sending,
};
use crate::{
    caches::{Filling, FillingOptions, RemoteCaches},
    depfile,
    failure::Failure,
    history::BuildId,
    inputs::{BuiltFrom, Clean, Inputs, Outside, Source},
    progress::Delivered,
    report,
    request::BuildRequest,
};

/// Takes events, from any thread.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// A build that has delivered what was asked for.
#[derive(Debug)]
pub struct Built {
    /// What, and where it went.
    pub delivered: Delivered,
    /// What it fails by for all that: a cache that had to be filled and is not.
    pub lack: Option<Failure>,
}

/// What a build works in.
pub struct Surroundings {
    /// Names the build.
    pub id: BuildId,
    /// When it began, before it read anything.
    pub began: SystemTime,
    /// What steps stand on.
    pub footing: Footing,
    /// What a person should know of the sandbox before a RUN step.
    pub notes: Vec<String>,
    /// The control group in which steps get theirs.
    pub group: Option<Group>,
    /// Loads images into docker or podman.
    pub helper: Option<LoadHelper>,
    /// The remote caches.
    pub caches: RemoteCaches,
    /// Takes what happens.
    pub events: Events,
    /// Stops everything.
    pub cancel: Arc<Cancel>,
    /// Takes the steps whose commands fail, where somebody wants to look at them.
    pub failed_steps: Option<FailedSteps>,
}

/// Builds what is asked for.
///
/// # Errors
/// The first thing that went wrong.
pub fn build(
    request: &BuildRequest,
    inputs: &Inputs,
    outside: &Outside,
    surroundings: &Surroundings,
) -> Result<Built, Failure> {
    let Surroundings { events, cancel, helper, .. } = surroundings;
    let parsed = parse(request, inputs, events)?;
    let fetcher = outside.fetcher()?;
    let resolver = ImageResolver::with_store(outside.asking()?, Arc::clone(fetcher.store()))
        .finding(surroundings.caches.find_document());
    let planned = plan(request, inputs, outside, &resolver, parsed, events)?;
    refuse_beyond_chroot(surroundings.footing, &planned.graph)?;
    let executor =
        LocalExecutor::new(executor_options(request, inputs, &planned.graph, fetcher, surroundings)?);
    let epoch = request.epoch.or(planned.epoch);
    let sending = Sending::new(request, fetcher, surroundings);
    let times = request.time_policy(epoch);
    let sealers = sealers(request, times, &executor, surroundings, &sending);
    let filling = FillingOptions {
        graph: &planned.graph,
        sealers: &sealers,
        sealer: &|packing| options::sealer(packing, &executor, surroundings),
        landings: sending.uploads.landings(),
        fetcher,
        events,
        cancel,
        clean: &inputs.clean,
    };
    let filling = Filling::new(request, &surroundings.caches, &filling);
    let inline = request.caches.inline;
    let inline = inline.then(|| InlineKeys::new(&planned.graph, fetcher.clone(), Arc::clone(events)).into());
    let commit = inputs.context.commit.as_ref();
    let clean = &inputs.clean;
    let making = Making { sealers: &sealers, filling: &filling, inline, sending: &sending, commit, clean };
    let made = make(request, epoch, &planned.graph, &executor, surroundings, &making);
    if made.is_err() {
        sending.uploads.give_up();
    }
    let end = if made.is_ok() { BuildEnd::Made } else { BuildEnd::Failed };
    let deliver = |made: Made| {
        let tools = Tools { fetcher, events: &**events, cancel, helper: helper.as_ref() };
        let destinations = made.deliver(request, times, &executor, &sending, &tools)?;
        let image = made.told(request);
        image.map(|image| write_results(request, image)).transpose()?;
        if let Some(depfile) = &request.depfile {
            depfile::write(depfile, request, inputs, &executor.reads(), surroundings.began, events)?;
        }
        Ok(Delivered { digest: image.map(|image| image.root.digest), destinations })
    };
    // Neither waits for the other.
    let fill = || filling.finish(end, &resolver.documents(), events);
    let (filled, delivered) = both(fill, || made.and_then(deliver));
    // Why there is no image says more than that a cache lacks something.
    Ok(Built { delivered: delivered?, lack: filled.err() })
}

/// What takes layers and records while steps run.
struct Making<'a> {
    sealers: &'a [Arc<Sealer>],
    filling: &'a Filling,
    inline: Option<Arc<InlineKeys>>,
    sending: &'a Sending<'a>,
    /// What is built, where it is a commit.
    commit: Option<&'a BuiltFrom>,
    /// Whether it may be.
    clean: &'a Clean,
}

/// An executor that lets uploads begin when it is certain that something runs: before any step does. Until the work tree is
/// known to be clean, nothing is.
struct Announcing<'a> {
    executor: &'a LocalExecutor,
    sending: &'a Sending<'a>,
    clean: &'a Clean,
}

impl Announcing<'_> {
    /// Whether anything may be run or written. Where not, all ends: why is told by whoever has asked for the build.
    fn may_begin(&self) -> bool {
        let is_clean = self.clean.is_clean();
        if !is_clean {
            self.sending.stop.request();
        }
        is_clean
    }
}

impl Executor for Announcing<'_> {
    fn identify(&self, source: &op::Source, cancel: &Cancel) -> Result<TreeDigest, StepFailure> {
        self.executor.identify(source, cancel)
    }

    fn select(
        &self,
        snapshot: &Snapshot,
        selector: &op::Selector,
        cancel: &Cancel,
    ) -> Result<TreeDigest, StepFailure> {
        self.executor.select(snapshot, selector, cancel)
    }

    fn check(&self, vertex: &Vertex) -> Result<(), StepFailure> {
        if !self.may_begin() {
            return Ok(());
        }
        self.sending.uploads.begin();
        self.executor.check(vertex)
    }

    fn prepare(&self, step: Step<'_>) {
        if self.may_begin() {
            self.executor.prepare(step);
        }
    }

    fn execute(&self, step: Step<'_>) -> Result<Executed, StepFailure> {
        match self.may_begin() {
            true => self.executor.execute(step),
            false => Err(StepFailure::new(FailureKind::Cancelled, "cancelled")),
        }
    }
}

/// Text to syntax tree, and what the parser has found doubtful.
fn parse(
    request: &BuildRequest,
    inputs: &Inputs,
    events: &Events,
) -> Result<(Dockerfile, Vec<Diagnostic>), Failure> {
    let source = &inputs.dockerfile;
    let check = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    let parsed = parser::parse_checked(source.text(), check);
    if let Some(dockerfile) = parsed.dockerfile {
        return Ok((dockerfile, parsed.diagnostics));
    }
    let diagnostics = mistakes(request, inputs, parsed);
    warn(&diagnostics, source, events);
    Err(Failure::Dockerfile { diagnostics })
}

/// Syntax tree to graph.
fn plan(
    request: &BuildRequest,
    inputs: &Inputs,
    outside: &Outside,
    resolver: &ImageResolver,
    (dockerfile, findings): (Dockerfile, Vec<Diagnostic>),
    events: &Events,
) -> Result<Planned, Failure> {
    let source = &inputs.dockerfile;
    let options = plan_options(request, inputs, findings);
    let planned = plan::plan(&dockerfile, &options, &outside.announcing(resolver.clone()));
    // Also where it fails: `# check=error=true` makes an error of warnings that says no more than their rules.
    if let Err(PlanError::Dockerfile { diagnostics }) = &planned {
        warn(diagnostics, source, events);
    }
    let planned = planned.map_err(plan_failure)?;
    warn(&planned.warnings, source, events);
    Ok(planned)
}

/// Graph to images, sealed.
fn make(
    request: &BuildRequest,
    epoch: Option<i64>,
    graph: &Graph,
    executor: &LocalExecutor,
    surroundings: &Surroundings,
    making: &Making<'_>,
) -> Result<Made, Failure> {
    let Surroundings { id, events, caches, .. } = surroundings;
    let Making { sealers, filling, inline, sending, commit, clean } = making;
    let store = executor.snapshots().store();
    let cache = LocalCache::new(Arc::clone(store), Arc::clone(events)).believing(caches.words().clone());
    let options = solve_options(request, id);
    let ahead = SealAhead::new(sealers, graph);
    let announcing = Announcing { executor, sending, clean };
    let told = |event| match event {
        Event::Settled(..) if !announcing.may_begin() => {}
        settled @ Event::Settled(..) => {
            ahead.take(&settled);
            filling.take(&settled);
        }
        event => {
            inline.iter().for_each(|keys| keys.take(&event));
            events(event);
        }
    };
    let writer = filling.writer();
    let caches = Caches {
        near: &[&cache],
        distant: &caches.distant(),
        writers: writer.as_slice(),
        bulletin: filling.bulletin(),
        clock: &|| caches.clock(),
    };
    let images = solver::schedule::solve(graph, &announcing, &caches, &options, &told, &sending.stop);
    let refused = |error| sending.take_refusal().map_or_else(|| solve_failure(graph, error), Failure::from);
    let images = clean.unless_refused(images.map_err(refused));
    let made = images.and_then(|images| {
        let assembled = assemble_all(request, epoch, *commit, &images, sealers, inline.as_ref())?;
        Ok(Made { images, assembled })
    });
    cache.flush();
    if made.is_err() {
        // A build that failed or was stopped keeps what its steps have made; why it failed says more than that it does not.
        let _ = store.sync();
    }
    made
}

fn warn(found: &[Diagnostic], source: &Source, events: &Events) {
    let warnings = found.iter().filter(|found| found.severity == Severity::Warning);
    warnings.for_each(|found| events(Event::Warning(report::warning_line(found, source))));
}

/// Everything that is wrong with a Dockerfile that could not be read whole, in the order of the file.
pub fn mistakes(request: &BuildRequest, inputs: &Inputs, parsed: Parsed) -> Vec<Diagnostic> {
    let Parsed { remains, mut diagnostics, .. } = parsed;
    if let Some(remains) = &remains {
        diagnostics.extend(plan::mistakes(remains, &plan_options(request, inputs, Vec::new())));
        diagnostics.sort_by_key(|found| found.span);
    }
    diagnostics
}

/// A plan that could not be made.
pub fn plan_failure(error: PlanError) -> Failure {
    match error {
        PlanError::Dockerfile { diagnostics } => Failure::Dockerfile { diagnostics },
        PlanError::Image { span, failure } => Failure::Image { span, failure: Box::new(failure) },
    }
}

fn solve_failure(graph: &Graph, error: SolveError) -> Failure {
    let SolveError { vertex, failure } = error;
    let step = graph.vertex(vertex);
    Failure::Step { vertex, label: step.label.clone(), span: step.span, failure: Box::new(failure) }
}

//! What a request means to the planner, the executor, the scheduler and the sealers, and nothing else: each function here
//! gives one of them the options that it takes.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use executor::{
    ExecutorOptions, LocalExecutor,
    sandbox::{self, Settled, StepLimits},
};
use exporter::{Courtesy, Packing, SealOptions, Sealer, TimePolicy};
use oci::{Platform, fetch::Fetcher};
use parser::Diagnostic;
use solver::{
    Graph, ImageName, Maker,
    plan::{NamedContext, PlanOptions},
    schedule::SolveOptions,
};

use super::{Surroundings, commit, sending::Sending};
use crate::{
    args::ProgressMode,
    failure::Failure,
    history::BuildId,
    inputs::Inputs,
    request::{self, BuildRequest},
    spec::context::NamedSource,
};

/// How records name their builder.
const BUILDER: &str = concat!("layerwright ", env!("CARGO_PKG_VERSION"));

/// What the request says about the plan, and what the parser has found doubtful.
pub fn plan_options(request: &BuildRequest, inputs: &Inputs, findings: Vec<Diagnostic>) -> PlanOptions {
    let contexts = request.places.named.iter().map(|(name, source)| (name.clone(), named_context(source)));
    let ignore = inputs.context.ignore.as_ref().map(|file| solver::pattern::ignore::read(&file.text));
    let mut labels = request.labels.clone();
    if let Some(commit) = inputs.context.commit.as_ref().filter(|_| request.git_labels) {
        commit::label(&mut labels, commit);
    }
    PlanOptions {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        labels,
        platforms: request.platforms.clone(),
        contexts: contexts.collect(),
        network: request.network,
        allow: request.allow.clone(),
        hosts: request.hosts.clone(),
        ulimits: request.limits.ulimits.clone(),
        shared_memory: request.limits.shared_memory,
        security: request.limits.security(),
        relaxed: request.relaxed,
        no_cache: request.no_cache,
        no_cache_filter: request.no_cache_filter.clone(),
        timestamps: request.timestamps,
        ignore: ignore.unwrap_or_default(),
        findings,
        ..PlanOptions::new(Platform::host())
    }
}

fn named_context(source: &NamedSource) -> NamedContext {
    match source {
        NamedSource::Files(_) => NamedContext::Directory,
        NamedSource::Image(reference) => NamedContext::Image(ImageName::Registry(reference.clone())),
        NamedSource::OciLayout { directory, selector } => NamedContext::Image(ImageName::OciLayout {
            directory: directory.clone(),
            selector: selector.clone(),
        }),
        NamedSource::Scratch => NamedContext::Scratch,
    }
}

/// What the request says about the executor.
pub fn executor_options(
    request: &BuildRequest,
    inputs: &Inputs,
    graph: &Graph,
    fetcher: &Fetcher,
    surroundings: &Surroundings,
) -> Result<ExecutorOptions, Failure> {
    let mut contexts = inputs.named.clone();
    contexts.insert(String::new(), inputs.context.origin()?);
    let Surroundings { footing, notes, group, events, cancel, failed_steps, .. } = surroundings;
    let Settled { footing, note } = sandbox::settle_files(*footing, fetcher.store(), request.sandbox)?;
    let note = note.filter(|_| request.progress != ProgressMode::Quiet);
    let is_sealed = !request.packings().is_empty();
    let virtual_steps = if is_sealed { executor::virtual_steps(graph) } else { BTreeSet::new() };
    Ok(ExecutorOptions {
        fetcher: fetcher.clone(),
        contexts,
        secrets: request.secrets.clone(),
        agents: request.agents.clone(),
        footing,
        notes: notes.iter().cloned().chain(note).collect(),
        events: Arc::clone(events),
        cancel: Arc::clone(cancel),
        looking_steps: executor::looking_steps(graph, &virtual_steps),
        virtual_steps,
        retry: request.retry,
        limits: StepLimits { group: group.clone(), time: request.limits.time, room: request.limits.room },
        dns: request.limits.dns.clone(),
        notes_reads: request.depfile.is_some(),
        failed_steps: failed_steps.clone(),
        job_server: request.job_server.clone(),
    })
}

/// What the request says about the schedule of the build with this ID.
pub(super) fn solve_options(request: &BuildRequest, id: &BuildId) -> SolveOptions {
    SolveOptions { jobs: request.jobs, oldest: oldest(request.cache_ttl), maker: maker(id) }
}

/// One sealer for each kind of layers that the outputs want, the first output's kind first; one where there is no output
/// but the digest is wanted, and none where it is not.
pub(super) fn sealers(
    request: &BuildRequest,
    times: TimePolicy,
    executor: &LocalExecutor,
    surroundings: &Surroundings,
    sending: &Sending<'_>,
) -> Vec<Arc<Sealer>> {
    let sealer = |packing: Packing| {
        let on_sealed = sending.taker(request, &packing);
        Arc::new(Sealer::new(SealOptions {
            on_sealed,
            times,
            ..seal_options(packing, executor, surroundings)
        }))
    };
    let mut kinds: Vec<Packing> = Vec::new();
    for packing in request.packings() {
        if !kinds.iter().any(|kind| (kind.encoder, kind.base) == (packing.encoder, packing.base)) {
            kinds.push(packing);
        }
    }
    kinds.into_iter().map(sealer).collect()
}

/// A sealer for layers that are packed like this and go to no image, with the times of their trees.
pub(super) fn sealer(packing: Packing, executor: &LocalExecutor, surroundings: &Surroundings) -> Sealer {
    Sealer::new(SealOptions {
        courtesy: Courtesy::ToAllOnHalf,
        ..seal_options(packing, executor, surroundings)
    })
}

fn seal_options(packing: Packing, executor: &LocalExecutor, surroundings: &Surroundings) -> SealOptions {
    SealOptions {
        store: Arc::clone(executor.snapshots().store()),
        encoder: packing.encoder,
        base: packing.base,
        times: TimePolicy::Default,
        jobs: request::processors(),
        courtesy: Courtesy::ToSteps,
        events: Arc::clone(&surroundings.events),
        cancel: Arc::clone(&surroundings.cancel),
        contents: Some(executor.contents()),
        fetcher: executor.snapshots().fetcher().clone(),
        on_sealed: Arc::new(|_| {}),
    }
}

/// The time before which no result counts, in Unix seconds.
fn oldest(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| now().saturating_sub(ttl).as_secs())
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// How this build signs its records.
fn maker(id: &BuildId) -> Maker {
    let at = now().as_secs();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Maker { builder: BUILDER.to_owned(), host, build: id.to_string(), at }
}

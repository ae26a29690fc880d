//! `layerwright build`: parse → plan → solve → seal → export, each called once, each taking what the one before
//! returned. Nothing is decided here.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use executor::{ContextOrigin, ExecutorOptions, LocalCache, LocalExecutor, SnapshotError, sandbox::Rung};
use exporter::{
    AssembleOptions, Assembled, Encoder, FileSystem, ImageOutput, SealAhead, SealOptions, Sealer, TimePolicy,
    Tools,
    outputs::file::{try_directory, try_file, write_file},
};
use oci::{Platform, Reference, Sha256Digest, fetch::Fetcher, tree::NORMAL_TIME};
use parser::{Diagnostic, Parsed, Severity};
use solver::{
    Cancel, Event, Graph, Image, ImageName, Maker,
    plan::{self, NamedContext, PlanError, PlanOptions},
    schedule::{SolveError, SolveOptions},
};

use crate::{
    depfile,
    failure::Failure,
    history::BuildId,
    inputs::{Inputs, Outside, Source},
    outputs::Output,
    report,
    request::{self, BuildRequest},
    spec::context::NamedSource,
};

/// Takes events, from any thread.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// How records name their builder.
const BUILDER: &str = concat!("layerwright ", env!("CARGO_PKG_VERSION"));

/// What a build has made.
#[derive(Debug)]
pub struct Built {
    /// Digest of the manifest or index; `None` where only files were wanted.
    pub digest: Option<Sha256Digest>,
    /// Where it went, in words.
    pub destinations: Vec<String>,
}

/// What a build works in.
pub struct Surroundings {
    /// Names the build.
    pub id: BuildId,
    /// When it began, before it read anything.
    pub began: SystemTime,
    /// Whose ids this process has.
    pub rung: Rung,
    /// What a person should know of the sandbox before a RUN step.
    pub notes: Vec<String>,
    /// Takes what happens.
    pub events: Events,
    /// Stops everything.
    pub cancel: Arc<Cancel>,
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
    let Surroundings { events, cancel, .. } = surroundings;
    let source = &inputs.dockerfile;
    let check = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    let parsed = parser::parse_checked(source.text(), check);
    let Some(dockerfile) = parsed.dockerfile else {
        let diagnostics = mistakes(request, inputs, parsed);
        warn(&diagnostics, source, events);
        return Err(Failure::Dockerfile { diagnostics });
    };
    let fetcher = outside.fetcher()?;
    let (store, registry) = (fetcher.store(), outside.asking()?);
    let pushed = request.outputs.iter().flat_map(Output::pushed_names);
    pushed.into_iter().try_for_each(|name| registry.check_push(name))?;
    let options = plan_options(request, inputs, parsed.diagnostics);
    let planned = solver::plan::plan(&dockerfile, &options, &outside.resolver()?);
    // Also where it fails: `# check=error=true` makes an error of warnings that says no more than their rules.
    if let Err(PlanError::Dockerfile { diagnostics }) = &planned {
        warn(diagnostics, source, events);
    }
    let planned = planned.map_err(plan_failure)?;
    warn(&planned.warnings, source, events);
    let executor =
        LocalExecutor::new(executor_options(request, inputs, &planned.graph, fetcher, surroundings)?);
    let cache = LocalCache::new(Arc::clone(store), Arc::clone(events));
    let options = SolveOptions {
        jobs: request.jobs,
        oldest: oldest(request.cache_ttl),
        maker: maker(&surroundings.id),
    };
    let epoch = request.epoch.or(planned.epoch);
    let sealers = sealers(request, request.time_policy(epoch), &executor, surroundings);
    let sealing = SealAhead::new(&executor, &sealers, &planned.graph);
    let images = solver::schedule::solve(&planned.graph, &sealing, &[&cache], &options, &**events, cancel);
    let images = images.map_err(|error| solve_failure(&planned.graph, error));
    let made = images.and_then(|images| Ok((assemble_all(request, epoch, &images, &sealers)?, images)));
    cache.flush();
    // Nothing may point at this build, a pushed tag the least, before what it stands on is durable; and a build that
    // failed or was stopped keeps what its steps have made.
    let synced = store.sync();
    let (assembled, images) = made?;
    synced?;
    let tools = Tools { fetcher, events: &**events, cancel };
    let export =
        |output: &Output| export(output, request.time_policy(epoch), &images, &assembled, &executor, &tools);
    let destinations = request.outputs.iter().map(export).collect::<Result<Vec<_>, _>>()?;
    let image = assembled.first().map(|(_, assembled)| assembled);
    image.map(|image| write_results(request, image)).transpose()?;
    if let Some(depfile) = &request.depfile {
        depfile::write(depfile, request, inputs, &executor.reads(), surroundings.began, events)?;
    }
    Ok(Built { digest: image.map(|image| image.root.digest), destinations })
}

/// Tries every path that the build is to write, before it begins: what is no place for files is refused with the request,
/// and what does not let this user write must not cost a build either.
///
/// # Errors
/// [`Failure::Write`] for the first that takes nothing.
pub fn try_destinations(request: &BuildRequest) -> Result<(), Failure> {
    let refused = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Write { path, source }
    };
    let written = request.outputs.iter().filter_map(Output::file);
    let beside = [&request.iidfile, &request.metadata_file, &request.depfile]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path);
    let mut files = written.chain(beside);
    files.try_for_each(|path| try_file(path).map_err(refused(path)))?;
    let mut directories = request.outputs.iter().filter_map(Output::directory);
    directories.try_for_each(|path| try_directory(path).map_err(refused(path)))
}

/// A build that fails must not leave the ID of another one behind.
///
/// # Errors
/// [`Failure::Write`]
pub fn remove_iidfile(request: &BuildRequest) -> Result<(), Failure> {
    let Some(path) = &request.iidfile else { return Ok(()) };
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::Write { path: path.clone(), source })
        }
        _ => Ok(()),
    }
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

/// What the request says about the plan, and what the parser has found doubtful.
pub fn plan_options(request: &BuildRequest, inputs: &Inputs, findings: Vec<Diagnostic>) -> PlanOptions {
    let contexts = request.places.named.iter().map(|(name, source)| (name.clone(), named_context(source)));
    let ignore = inputs.context.ignore.as_ref().map(|file| solver::pattern::ignore::read(&file.text));
    PlanOptions {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        labels: request.labels.clone(),
        platforms: request.platform.iter().cloned().collect(),
        contexts: contexts.collect(),
        network: request.network,
        allow: request.allow.clone(),
        hosts: request.hosts.clone(),
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
    contexts.insert(String::new(), ContextOrigin::Directory(inputs.context.files()?));
    let Surroundings { rung, notes, events, cancel, .. } = surroundings;
    let is_sealed = !request.encoders().is_empty();
    Ok(ExecutorOptions {
        fetcher: fetcher.clone(),
        contexts,
        secrets: request.secrets.clone(),
        agents: request.agents.clone(),
        rung: *rung,
        notes: notes.clone(),
        events: Arc::clone(events),
        cancel: Arc::clone(cancel),
        virtual_steps: if is_sealed { executor::virtual_steps(graph) } else { BTreeSet::new() },
        retry: request.retry,
    })
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

/// One sealer for each kind of layer that the outputs want, the first output's kind first; one where there is no output
/// but the digest is wanted, and none where it is not.
fn sealers(
    request: &BuildRequest,
    times: TimePolicy,
    executor: &LocalExecutor,
    surroundings: &Surroundings,
) -> Vec<Sealer> {
    let sealer = |encoder| {
        Sealer::new(SealOptions {
            store: Arc::clone(executor.snapshots().store()),
            encoder,
            times,
            jobs: request::processors(),
            events: Arc::clone(&surroundings.events),
            cancel: Arc::clone(&surroundings.cancel),
            contents: Some(executor.contents()),
        })
    };
    request.encoders().into_iter().map(sealer).collect()
}

/// The images as every kind of output wants them, in the order of the sealers.
fn assemble_all(
    request: &BuildRequest,
    epoch: Option<i64>,
    images: &[Image],
    sealers: &[Sealer],
) -> Result<Vec<(Encoder, Assembled)>, Failure> {
    let created = epoch.unwrap_or(NORMAL_TIME);
    let annotations = request.annotations.clone();
    let options = AssembleOptions {
        created,
        manifest_annotations: annotations.manifest,
        manifest_descriptor_annotations: annotations.manifest_descriptor,
        ..AssembleOptions::default()
    };
    let assemble = |sealer: &Sealer| Ok((sealer.encoder(), exporter::assemble(images, sealer, &options)?));
    sealers.iter().map(assemble).collect()
}

/// Brings the result to one output; returns where it went, in words.
fn export(
    output: &Output,
    times: TimePolicy,
    images: &[Image],
    assembled: &[(Encoder, Assembled)],
    executor: &LocalExecutor,
    tools: &Tools<'_>,
) -> Result<String, Failure> {
    match &output.to {
        exporter::Output::Image(to) => {
            let of_encoder = assembled.iter().find(|(encoder, _)| *encoder == output.encoder);
            let (_, assembled) = of_encoder.expect("assemble_all covers every output");
            let exported = exporter::export_image(assembled, to, tools)?;
            Ok(match to {
                ImageOutput::Registry { .. } => format!("pushed {}", exported.destination),
                _ => format!("OCI layout {}", exported.destination),
            })
        }
        exporter::Output::Files(to) => {
            let systems =
                images.iter().map(|image| file_system(image, executor)).collect::<Result<Vec<_>, _>>()?;
            let exported = exporter::export_files(&systems, to, times, tools)?;
            Ok(format!("files {}", exported.destination))
        }
    }
}

fn file_system(image: &Image, executor: &LocalExecutor) -> Result<FileSystem, Failure> {
    let Image { target, snapshot } = image;
    let snapshots = executor.snapshots();
    let shown = || {
        let root = snapshots.view(snapshot)?.into_root();
        let (owners, brought) = (snapshots.owners(snapshot)?, snapshots.brought(snapshot)?);
        Ok(FileSystem {
            platform: target.platform.clone(),
            snapshot: snapshot.clone(),
            root,
            owners,
            brought,
        })
    };
    shown().map_err(|error: SnapshotError| Failure::FileSystem(Box::new(error.into())))
}

/// `--iidfile` and `--metadata-file`.
fn write_results(request: &BuildRequest, assembled: &Assembled) -> Result<(), Failure> {
    let write = |path: &Path, bytes: &[u8]| {
        write_file(path, bytes).map_err(|source| Failure::Write { path: path.to_owned(), source })
    };
    if let Some(path) = &request.iidfile {
        // As buildx has it: an index has no config, and stands for itself.
        let id = match &assembled.images[..] {
            [image] => image.config.digest,
            _ => assembled.root.digest,
        };
        write(path, id.to_string().as_bytes())?;
    }
    if let Some(path) = &request.metadata_file {
        let mut names: Vec<Reference> = Vec::new();
        for name in request.outputs.iter().flat_map(Output::names) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let text = serde_json::to_string_pretty(&exporter::metadata(assembled, &names));
        write(path, text.expect("plain data with string keys").as_bytes())?;
    }
    Ok(())
}

/// The time before which no result counts.
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

//! From the command line and the environment to a [`BuildRequest`]: everything a build needs to know, decided before
//! anything happens.
//!
//! This is the rim: every variable that a result depends on is read here and nowhere else. Files are only asked whether
//! they are there; what stands in them, and what comes from elsewhere, is read by [`crate::inputs`] when all that
//! is said here makes sense. Mistakes found here are usage errors (exit code 2).

mod annotations;
pub mod caches;
mod commit;
mod environment;
mod error;
mod exposed;
mod limits;
mod places;
mod proxies;
mod root;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use executor::{Retry, Secrets, agents::Agents, gc::Cap, git::Revision, jobserver::JobServer, sandbox::Mode};
use exporter::{Annotations, Form, Packing, TimePolicy};
use oci::{
    Platform, Reference,
    registry::{Hosts, Limits},
};
use solver::{
    op::{Network, Relaxations, Timestamps},
    plan::Entitlement,
};

use self::places::places;
pub use self::{
    caches::Caches,
    environment::Environment,
    error::RequestError,
    exposed::{hosts, relaxed},
    limits::{StepLimits, read as limits},
    places::{DockerfilePlace, Places, context_places, dockerfile_place},
    root::{has_store, mode_of_store, store_root, store_root_for},
};
use crate::{
    args::{BuildArgs, OnFailure, ProgressMode},
    depfile, gc,
    inputs::OutsideOptions,
    outputs::{self, Asked, Output},
    spec::{
        annotation::{self, AnnotationSpec},
        call::{Call, CallSpec},
        tag::TagSpec,
    },
};

/// Everything a build needs to know.
#[derive(Debug)]
pub struct BuildRequest {
    /// Whether it is to be built at all.
    pub call: CallSpec,
    /// Where Dockerfile and files come from.
    pub places: Places,
    /// `--target`
    pub target: Option<String>,
    /// `--build-arg`, values from the environment filled in.
    pub build_args: BTreeMap<String, String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--platform`, each once; empty: this machine's.
    pub platforms: Vec<Platform>,
    /// `--no-cache`
    pub no_cache: bool,
    /// `--no-cache-filter`
    pub no_cache_filter: Vec<String>,
    /// `--cache-ttl`
    pub cache_ttl: Option<Duration>,
    /// `--cache-from`, `--cache-to`
    pub caches: Caches,
    /// `--retry`
    pub retry: Retry,
    /// `--network`
    pub network: Network,
    /// `--timestamps`
    pub timestamps: Timestamps,
    /// `--secret`
    pub secrets: Secrets,
    /// `--ssh`
    pub agents: Agents,
    /// `--allow`
    pub allow: BTreeSet<Entitlement>,
    /// `--add-host`: name and address.
    pub hosts: Vec<(String, String)>,
    /// `--ulimit`, `--memory`, `--dns` and their like.
    pub limits: StepLimits,
    /// `--annotation`
    pub annotations: Annotations,
    /// SOURCE_DATE_EPOCH in seconds, where it was given.
    pub epoch: Option<i64>,
    /// `--git-labels`
    pub git_labels: bool,
    /// `-t`, wherever that leads.
    pub tags: Vec<Reference>,
    /// Where the result goes.
    pub outputs: Vec<Output>,
    /// How large the store may grow.
    pub cap: Cap,
    /// By how much all deadlines and pauses of registries are divided.
    pub hurry: u32,
    /// `--progress`, with `auto` decided.
    pub progress: ProgressMode,
    /// `--explain`
    pub explain: bool,
    /// `--iidfile`
    pub iidfile: Option<PathBuf>,
    /// `--metadata-file`
    pub metadata_file: Option<PathBuf>,
    /// `--depfile`
    pub depfile: Option<PathBuf>,
    /// The store's directory.
    pub root: PathBuf,
    /// `--sandbox`
    pub sandbox: Mode,
    /// `--sandbox-allow`
    pub relaxed: Relaxations,
    /// `--jobs`
    pub jobs: usize,
    /// make's jobs, of which each RUN takes one.
    pub job_server: Option<Arc<JobServer>>,
    /// How registries are reached.
    pub registries: Hosts,
    /// `--on-failure`
    pub on_failure: Option<OnFailure>,
    /// What the user should know before the build begins.
    pub notices: Vec<String>,
}

impl BuildRequest {
    /// Whether anything is written to the store, by steps or by what comes from elsewhere.
    pub fn needs_store(&self) -> bool {
        self.call.call == Call::Build || self.places.are_elsewhere()
    }

    /// What the store and everything that fills it must know.
    pub fn outside(&self) -> OutsideOptions {
        OutsideOptions {
            root: self.root.clone(),
            hosts: self.registries.clone(),
            limits: match self.call.call {
                Call::Build => Limits::default(),
                Call::Check | Call::Outline | Call::Targets => hasty(),
            }
            .hurried(self.hurry),
            secrets: self.secrets.clone(),
            agents: self.agents.clone(),
            retry: self.retry,
        }
    }

    /// What images are like in the outputs, the first one's first. Without an output, or when the digest is asked for,
    /// there is one; there is none when only files are wanted.
    pub fn forms(&self) -> Vec<Form> {
        let is_image = |output: &&Output| matches!(output.to, exporter::Output::Image(_));
        let mut forms: Vec<Form> = Vec::new();
        for output in self.outputs.iter().filter(is_image) {
            if !forms.contains(&output.form) {
                forms.push(output.form.clone());
            }
        }
        let asked =
            self.iidfile.is_some() || self.metadata_file.is_some() || self.progress == ProgressMode::Quiet;
        if forms.is_empty() && (asked || self.outputs.is_empty()) {
            forms.push(Form { annotations: self.annotations.clone(), ..Form::default() });
        }
        forms
    }

    /// The ways in which images are packed for the outputs, as [`Self::forms`] has them.
    pub fn packings(&self) -> Vec<Packing> {
        self.forms().into_iter().map(|form| form.packing).collect()
    }

    /// What SOURCE_DATE_EPOCH (this request's or the Dockerfile's) and `--timestamps` make of the times in the image.
    pub fn time_policy(&self, epoch: Option<i64>) -> TimePolicy {
        match (self.timestamps, epoch) {
            (Timestamps::Preserve, _) => TimePolicy::Preserve,
            (Timestamps::Auto, Some(epoch)) => TimePolicy::Epoch(epoch),
            (Timestamps::Auto, None) => TimePolicy::Default,
        }
    }
}

/// Works out what the arguments ask for.
///
/// # Errors
/// [`RequestError`]
pub fn read(args: BuildArgs, environment: &Environment) -> Result<BuildRequest, RequestError> {
    let call = args.call().ok_or(RequestError::Conflict("--check and --call contradict each other"))?;
    if args.on_failure == Some(OnFailure::Shell) && !environment.stdin_is_terminal {
        return Err(RequestError::Conflict(NO_TERMINAL));
    }
    let mut build_args = build_args(&args.build_args, environment)?;
    let unread = proxies::add_configured(&mut build_args, environment);
    let places = places(&args, &build_args)?;
    let platforms = platforms(&args.platforms, environment)?;
    let progress = progress_mode(args.progress, args.quiet, environment)?;
    // Who asks for no name has none looked up.
    let asks = args.tags.iter().any(|tag| matches!(tag, TagSpec::Template(_)));
    let called = places.commit.as_ref().filter(|_| asks).map(Revision::called);
    let tags = commit::tags(&args.tags, called.as_ref())?;
    let wanted = wanted_outputs(&args, &tags, call, platforms.len(), progress)?;
    let (secrets, mut notices) = exposed::secrets(&args.secrets, environment)?;
    notices.extend(unread);
    annotations::check(&args.annotations, &wanted, &platforms)?;
    let mut labels = pairs("label", &args.labels, |_| Ok(Some(String::new())))?;
    notices.extend(said(&mut labels, &args.annotations));
    let allow = exposed::entitlements(args.allow.clone(), args.network);
    if args.limits.no_new_privs && allow.contains(&Entitlement::SecurityInsecure) {
        return Err(RequestError::Conflict(
            "--no-new-privs and --allow security.insecure contradict each other",
        ));
    }
    let caches = caches::read(&args, &build_args)?;
    let mut insecure = outputs::insecure_registries(&args.outputs, &wanted);
    insecure.extend(caches.insecure.iter().cloned());
    let builds = call.call == Call::Build;
    if builds && args.outputs.is_empty() && !args.push && !args.load {
        notices.push(NO_OUTPUT.to_owned());
    }
    let is_image = |output: &Output| matches!(output.to, exporter::Output::Image(_));
    if caches.inline && !wanted.iter().any(is_image) {
        notices.push(INLINE_LOST.to_owned());
    }
    Ok(BuildRequest {
        call,
        places,
        target: args.target,
        epoch: epoch(&build_args)?,
        build_args,
        labels,
        git_labels: args.git_labels,
        platforms,
        no_cache: args.no_cache,
        no_cache_filter: args.no_cache_filter,
        cache_ttl: args.cache_ttl,
        caches,
        retry: Retry { times: args.retry, ..Retry::default() },
        network: args.network,
        timestamps: args.timestamps,
        secrets,
        agents: exposed::agents(&args.ssh, environment)?,
        allow,
        hosts: exposed::hosts(&args.hosts),
        limits: limits::read(args.limits)?,
        annotations: annotation::sorted(&args.annotations),
        registries: args.registries.hosts_and_insecure(environment, insecure)?,
        outputs: wanted,
        tags,
        progress,
        explain: args.explain,
        iidfile: args.iidfile.filter(|_| builds),
        metadata_file: args.metadata_file.filter(|_| builds),
        depfile: args.depfile.filter(|_| builds),
        root: store_root_for(args.sandbox, args.root, environment)?,
        sandbox: args.sandbox,
        relaxed: relaxed(args.sandbox, &args.sandbox_allow)?,
        cap: gc::cap(environment)?,
        hurry: hurry(environment)?,
        job_server: environment.text("MAKEFLAGS").and_then(JobServer::named_by).map(Arc::new),
        jobs: args.jobs.map_or_else(default_jobs, NonZeroUsize::get),
        on_failure: args.on_failure,
        notices,
    })
}

/// A shell that reads from something else would run whatever comes.
const NO_TERMINAL: &str = "--on-failure=shell needs a terminal: standard input is none";

/// The outputs, if they can be had. A question about a Dockerfile has none, whatever the flags say.
fn wanted_outputs(
    args: &BuildArgs,
    tags: &[Reference],
    call: CallSpec,
    platforms: usize,
    progress: ProgressMode,
) -> Result<Vec<Output>, RequestError> {
    if call.call != Call::Build {
        return Ok(Vec::new());
    }
    let BuildArgs { outputs: specs, annotations, push, load, .. } = args;
    let wanted = outputs::resolve(Asked { specs, tags, annotations, push: *push, load: *load });
    outputs::check(&wanted, platforms, progress)?;
    check_place("iidfile", args.iidfile.as_deref())?;
    check_place("metadata-file", args.metadata_file.as_deref())?;
    check_place("depfile", args.depfile.as_deref())?;
    if args.depfile.is_some()
        && depfile::targets(&wanted, args.iidfile.as_deref(), args.metadata_file.as_deref()).is_empty()
    {
        return Err(RequestError::Conflict(DEPFILE_OF_NOTHING));
    }
    Ok(wanted)
}

/// For tests of what takes minutes; not for people, so it is not in `--help`.
const HURRY: &str = "LAYERWRIGHT_DEBUG_HURRY";

const NO_OUTPUT: &str = "no output was asked for: the result stays in the store. Use --push to push it to its -t \
                         names, or -o type=oci,dest=FILE to write it";

const INLINE_LOST: &str = "an inline cache is a part of the image, and no output takes the image anywhere: nobody can read \
                           it. Use --push, or --cache-to type=registry,ref=REF or type=local,dest=DIR";

const DEPFILE_OF_NOTHING: &str = "--depfile needs a file that depends on what is read: an output with dest=FILE, \
                                  --iidfile or --metadata-file";

/// Refuses at once what would fail when all is built.
fn check_place(flag: &'static str, path: Option<&Path>) -> Result<(), RequestError> {
    let obstacle = |path: &Path| {
        let reason = exporter::outputs::file::obstacle(path)?;
        Some(RequestError::NoPlace { flag, path: path.to_owned(), reason })
    };
    path.and_then(obstacle).map_or(Ok(()), Err)
}

/// `K=V` pairs, the last of a name wins; `bare` says what `K` alone is, `None` leaves it out.
fn pairs(
    flag: &'static str,
    values: &[String],
    bare: impl Fn(&str) -> Result<Option<String>, RequestError>,
) -> Result<BTreeMap<String, String>, RequestError> {
    let mut pairs = BTreeMap::new();
    for text in values {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), bare(text)?),
        };
        if name.is_empty() {
            return Err(RequestError::NoName { flag, value: text.clone() });
        }
        if let Some(value) = value {
            pairs.insert(name.to_owned(), value);
        }
    }
    Ok(pairs)
}

/// Makes labels what images say ([`annotation::told`]), as annotations become; gives what a person should know.
fn said(labels: &mut BTreeMap<String, String>, annotations: &[AnnotationSpec]) -> Vec<String> {
    let mut changed: BTreeSet<String> = annotations
        .iter()
        .filter(|spec| annotation::told(&spec.key, &spec.value) != spec.value)
        .map(|spec| format!("--annotation {}", spec.key))
        .collect();
    for (key, value) in labels {
        let told = annotation::told(key, value);
        if told != *value {
            changed.insert(format!("--label {key}"));
            *value = told;
        }
    }
    let notice =
        |flag| format!("{flag}: who logs in is left out of its URL, which anybody may read in the image");
    changed.into_iter().map(notice).collect()
}

fn build_args(
    values: &[String],
    environment: &Environment,
) -> Result<BTreeMap<String, String>, RequestError> {
    let from_environment = |name: &str| {
        let Some(value) = environment.get(name) else { return Ok(None) };
        let value = value.to_str().ok_or_else(|| RequestError::NotText(name.to_owned()))?;
        Ok(Some(value.to_owned()))
    };
    let mut args = pairs("build-arg", values, from_environment)?;
    if let Some(epoch) = environment.text(EPOCH)
        && !args.contains_key(EPOCH)
    {
        args.insert(EPOCH.to_owned(), epoch.to_owned());
    }
    Ok(args)
}

const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The build argument of that name as seconds; an empty one asks for nothing.
fn epoch(build_args: &BTreeMap<String, String>) -> Result<Option<i64>, RequestError> {
    let Some(value) = build_args.get(EPOCH).filter(|value| !value.is_empty()) else { return Ok(None) };
    match value.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
        _ => {
            let expected = "expected seconds since 1970, as `git log -1 --format=%ct` prints them".to_owned();
            Err(RequestError::Value { name: EPOCH, value: value.clone(), expected })
        }
    }
}

pub fn platforms(given: &[Platform], environment: &Environment) -> Result<Vec<Platform>, RequestError> {
    const NAME: &str = "DOCKER_DEFAULT_PLATFORM";
    let of_environment = environment.text(NAME).filter(|_| given.is_empty());
    let parse = |text: &str| {
        let invalid = |error: oci::platform::PlatformError| RequestError::Value {
            name: NAME,
            value: text.to_owned(),
            expected: error.to_string(),
        };
        text.parse::<Platform>().map_err(invalid)
    };
    let of_environment = of_environment.into_iter().flat_map(|text| text.split(',')).map(parse);
    let mut platforms = Vec::new();
    for platform in given.iter().cloned().map(Ok).chain(of_environment) {
        let platform = platform?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// `--progress` and `--quiet`, with `auto` decided.
///
/// # Errors
/// They contradict each other, or the variable means nothing.
pub fn progress_mode(
    progress: Option<ProgressMode>,
    quiet: bool,
    environment: &Environment,
) -> Result<ProgressMode, RequestError> {
    const NAME: &str = "BUILDKIT_PROGRESS";
    if quiet {
        return match progress {
            None | Some(ProgressMode::Auto | ProgressMode::Quiet) => Ok(ProgressMode::Quiet),
            Some(_) => Err(RequestError::Conflict("--quiet and --progress contradict each other")),
        };
    }
    let mode = match (progress, environment.text(NAME)) {
        (Some(mode), _) => mode,
        (None, Some(text)) => text.parse().map_err(|expected| RequestError::Value {
            name: NAME,
            value: text.to_owned(),
            expected,
        })?,
        (None, None) => ProgressMode::Auto,
    };
    let can_move_the_cursor = environment.stderr_is_terminal && environment.text("TERM") != Some("dumb");
    Ok(match mode {
        ProgressMode::Auto if can_move_the_cursor => ProgressMode::Tty,
        ProgressMode::Auto => ProgressMode::Plain,
        mode => mode,
    })
}

/// How many threads this machine keeps busy.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Steps that run at the same time, unless the user says how many. Most of them wait: for a server, a disk, one thread of
/// a tool. So there may be more than processors; not as many as there are stages, as with BuildKit, since those that do
/// not wait need memory, and eight compilers at once are what most machines can bear.
fn default_jobs() -> usize {
    (2 * processors()).max(8)
}

/// By how much all deadlines and pauses of registries are divided.
pub fn hurry(environment: &Environment) -> Result<u32, RequestError> {
    let Some(text) = environment.text(HURRY) else { return Ok(1) };
    let times = text.parse().ok().filter(|times| *times > 0);
    times.ok_or_else(|| RequestError::Hurry(text.to_owned()))
}

/// Whoever asks about a Dockerfile is not kept waiting for a registry that is not there.
fn hasty() -> Limits {
    Limits {
        connect: Duration::from_secs(10),
        idle: Duration::from_secs(10),
        patience: Duration::from_secs(10),
        short_patience: Duration::ZERO,
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests;

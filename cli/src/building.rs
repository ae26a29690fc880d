//! `layerwright build` from its arguments to its exit code: first what takes a process of one thread, then everything else.
//!
//! A signal explains every failure that comes after it; whatever happens, [`Session`] is what ends.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use executor::{
    FailedSteps,
    sandbox::{self, Entered, GroupLease},
};
use exporter::LoadHelper;
use oci::tree::TIME_LIMIT;
use solver::{Cancel, Event};

use crate::{
    args::{BuildArgs, OnFailure, ProgressMode},
    build::{self, Built, Surroundings},
    caches::RemoteCaches,
    call, complain,
    explain::{self, Elsewhere, Explainer},
    failure::Failure,
    gc,
    history::{self, BuildId, Entry},
    inputs::{self, Inputs, Outside, Stdin},
    loader, mend,
    progress::{Progress, Work},
    report,
    request::{self, BuildRequest, Environment},
    session::{Done, Session, explained},
    signals::{self, Watch},
    spec::call::Call,
};

/// Does what is asked for; the exit code.
pub fn build(args: BuildArgs) -> u8 {
    match prepare(args) {
        Ok(prepared) => run(prepared),
        Err(failure) => complain(&report::render(&failure, None), failure.exit_code()),
    }
}

/// What there is before the first thread.
struct Prepared {
    request: BuildRequest,
    /// What loads images from outside of the namespaces that the builder then enters.
    helper: Option<LoadHelper>,
    entered: Option<Entered>,
    /// The control group in which steps get theirs.
    group: Option<GroupLease>,
}

/// Everything that is done while the process has one thread.
fn prepare(args: BuildArgs) -> Result<Prepared, Failure> {
    check_clock()?;
    let environment = Environment::of_process();
    let request = request::read(args, &environment)?;
    build::try_destinations(&request)?;
    let helper = loader::prepare(&request, &environment)?;
    let entered = request
        .needs_store()
        .then(|| sandbox::enter_builder(request.sandbox, request.relaxed))
        .transpose()?;
    let builds = request.call.call == Call::Build;
    let group = if builds { request.limits.prepare()? } else { None };
    Ok(Prepared { request, helper, entered, group })
}

/// Times from before the limit are kept in images, so a clock that stands there would leak into them.
fn check_clock() -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    match i64::try_from(now.as_secs()) {
        Ok(seconds) if seconds < TIME_LIMIT => Err(Failure::Clock),
        _ => Ok(()),
    }
}

fn run(prepared: Prepared) -> u8 {
    let Prepared { request, helper, entered, group } = prepared;
    let request = &request;
    let cancel = Arc::new(Cancel::default());
    let (id, began) = (BuildId::now(), SystemTime::now());
    let recorder = (request.call.call == Call::Build).then(|| history::recorder(id.clone(), request));
    let root = &request.root;
    let elsewhere = Elsewhere::default();
    let explainer = (request.call.call == Call::Build).then(|| explainer(request, &elsewhere));
    let progress = match Progress::start(request.progress, Work::Build, root, recorder, explainer) {
        Ok(progress) => progress,
        Err(source) => {
            let failure = Failure::Start { what: "a thread for the progress", source };
            return complain(&report::render(&failure, None), failure.exit_code());
        }
    };
    let events = progress.sink();
    let outside = Outside::new(request.outside(), Arc::clone(&events), Arc::clone(&cancel));
    let failed = FailedSteps::default();
    let session =
        Session { request, outside: &outside, progress, failed: failed.clone(), cancel: Arc::clone(&cancel) };
    let watch = match Watch::start(Arc::clone(&cancel), Arc::clone(&events), signals::STEPS_END) {
        Ok(watch) => watch,
        Err(source) => return session.fail(None, &Failure::Start { what: "to watch for signals", source }),
    };
    let mut caches = match RemoteCaches::open(request, &outside, &events, &cancel) {
        Ok(caches) => caches,
        Err(failure) => return session.fail(None, &failure),
    };
    request.notices.iter().for_each(|notice| events(Event::Warning(notice.clone())));
    let explained = |failure| explained(&watch, failure);
    let loaded = build::remove_iidfile(request)
        .and_then(|()| inputs::load(&request.places, &outside, &mut Stdin::new(io::stdin(), &cancel)));
    let inputs = match loaded.map_err(explained) {
        Ok(inputs) => inputs,
        Err(failure) => return session.fail(None, &failure),
    };
    let done = match (request.call.call, entered) {
        (Call::Build, Some(entered)) => {
            let is_quiet = request.progress == ProgressMode::Quiet;
            let notes = if is_quiet { Vec::new() } else { entered.notes };
            caches.name(request, &inputs.dockerfile);
            let footing = entered.footing;
            let failed_steps = request.on_failure.map(|OnFailure::Shell| failed);
            let group = group.as_ref().map(|lease| lease.group().clone());
            let surroundings = Surroundings {
                id,
                began,
                footing,
                notes,
                group,
                helper,
                caches,
                events,
                cancel,
                failed_steps,
            };
            build_told(request, &inputs, &outside, &surroundings, &elsewhere).map(Done::Built)
        }
        _ => call::answer(request, &inputs, &outside).map(Done::Answered),
    };
    let done = inputs.clean.unless_refused(done);
    if request.call.call == Call::Build
        && let Some(store) = outside.store()
    {
        gc::keep_under(&store, request.cap, &session.progress.sink());
    }
    session.close(&inputs, done.map_err(explained), &watch)
}

/// Builds, and tells what the remote caches were like.
fn build_told(
    request: &BuildRequest,
    inputs: &Inputs,
    outside: &Outside,
    surroundings: &Surroundings,
    elsewhere: &Elsewhere,
) -> Result<Built, Failure> {
    let built = build_mended(request, inputs, outside, surroundings);
    let caches = &surroundings.caches;
    caches.tell_ignored(&surroundings.events);
    caches.tell_silent(&surroundings.events);
    outside.opened().into_iter().for_each(|fetcher| elsewhere.learn(caches.read(), fetcher));
    built
}

/// Builds; once more if the store turned out to be damaged and the damage could be taken out of the way, and as often as a
/// remote cache turned out to have lost something: nothing is lost twice, and what else is gone by then is lost with it.
fn build_mended(
    request: &BuildRequest,
    inputs: &Inputs,
    outside: &Outside,
    surroundings: &Surroundings,
) -> Result<Built, Failure> {
    let mut is_mended = false;
    loop {
        let count_lost = || outside.opened().map_or(0, |fetcher| fetcher.elsewhere().count_lost());
        let lost = count_lost();
        let built = build::build(request, inputs, outside, surroundings);
        let failure = match &built {
            Err(failure) | Ok(Built { lack: Some(failure), .. }) if !surroundings.cancel.is_requested() => {
                failure
            }
            _ => return built,
        };
        let Some(fetcher) = outside.opened() else { return built };
        let loss = mend::loss(failure, fetcher);
        let has_lost = count_lost() > lost;
        let Some(damaged) = loss.or_else(|| mend::damage(failure)) else { return built };
        if is_mended && !has_lost || !mend::clear(fetcher.store(), &damaged, &surroundings.events) {
            return built;
        }
        is_mended |= !has_lost;
        if has_lost {
            exporter::cache::lose_what_is_gone(fetcher, &surroundings.cancel);
        }
        let what = if has_lost { "a remote cache has lost a layer" } else { "the store was damaged" };
        let told = mend::told(failure);
        let text = format!("the build is made once more, since {what}: {told}");
        (surroundings.events)(Event::Warning(text));
        surroundings.failed_steps.iter().for_each(FailedSteps::clear);
    }
}

/// What looks back at a build; it tells only with `--explain`.
fn explainer(request: &BuildRequest, elsewhere: &Elsewhere) -> Explainer {
    let (root, elsewhere, is_asked) = (request.root.clone(), elsewhere.clone(), request.explain);
    Box::new(move |entry: &mut Entry| {
        elsewhere.complete(entry);
        is_asked.then(|| explain::explain(&root, entry, &|files| elsewhere.inventory(&root, files)))
    })
}

//! `layerwright push`: an image that a build has written, or anybody else, into registries. No store is needed.

use std::{io, path::Path, sync::Arc};

use exporter::{
    ImageOutput, Output, Push, Tagging, UploadOptions, Uploads, check,
    upload::{FoundError, Parcel},
};
use oci::Sha256Digest;
use solver::Cancel;

use crate::{
    args::{ProgressMode, PushArgs},
    build::Events,
    client, complain,
    failure::{self, Failure},
    print,
    progress::{End, Progress, Work},
    redact::redact,
    report,
    request::{self, Environment},
    signals::{STOPPING, Watch},
};

/// Pushes; gives the exit code.
pub fn run(args: &PushArgs) -> u8 {
    shown(args.progress, args.quiet, |environment, events, cancel| push(args, environment, events, cancel))
}

/// Work that brings something to registries, with its progress shown; gives the exit code.
pub fn shown(
    progress: Option<ProgressMode>,
    quiet: bool,
    work: impl FnOnce(&Environment, Events, &Cancel) -> Result<Pushed, Failure>,
) -> u8 {
    let environment = Environment::of_process();
    let mode = match request::progress_mode(progress, quiet, &environment) {
        Ok(mode) => mode,
        Err(error) => return end(&error.into(), ProgressMode::Plain),
    };
    // No step has lines that would have to be kept anywhere.
    let progress = match Progress::start(mode, Work::Push, Path::new("."), None, None) {
        Ok(progress) => progress,
        Err(source) => return end(&Failure::Start { what: "a thread for the progress", source }, mode),
    };
    match watched(&environment, progress.sink(), work) {
        Ok(pushed) => {
            let Pushed { digest, destination } = pushed;
            progress.end(End::Pushed { digest, destinations: vec![destination] });
            if mode == ProgressMode::Quiet { print(&format!("{digest}\n")) } else { 0 }
        }
        Err(failure) => {
            let message = redact(&failure::chain(&failure)).into_owned();
            let text = report::render(&failure, None);
            let report = anstream::adapter::strip_str(&text).to_string();
            progress.end(End::Failed { message, exit_code: failure.exit_code(), report, delivered: None });
            end(&failure, mode)
        }
    }
}

/// What has gone where.
pub struct Pushed {
    /// Digest of the manifest or index.
    pub digest: Sha256Digest,
    /// Where, in words.
    pub destination: String,
}

/// Tells people why not, unless the progress has told their program.
fn end(failure: &Failure, mode: ProgressMode) -> u8 {
    match mode {
        ProgressMode::Json => failure.exit_code(),
        _ => complain(&report::render(failure, None), failure.exit_code()),
    }
}

/// A signal stops it, and explains every failure that comes after.
fn watched(
    environment: &Environment,
    events: Events,
    work: impl FnOnce(&Environment, Events, &Cancel) -> Result<Pushed, Failure>,
) -> Result<Pushed, Failure> {
    let cancel = Arc::new(Cancel::default());
    let started = |source: io::Error| Failure::Start { what: "to watch for signals", source };
    let watch = Watch::start(Arc::clone(&cancel), Arc::clone(&events), STOPPING).map_err(started)?;
    work(environment, events, &cancel).map_err(|failure| watch.received().map_or(failure, Failure::Stopped))
}

fn push(
    args: &PushArgs,
    environment: &Environment,
    events: Events,
    cancel: &Cancel,
) -> Result<Pushed, Failure> {
    let PushArgs { source, names, platform, .. } = args;
    let names: Vec<_> = names.iter().map(oci::Reference::with_default_tag).collect();
    let tagging = Tagging::Tags;
    check(&Output::Image(ImageOutput::Registry { names: names.clone(), tagging }))?;
    let failed = |error: FoundError| Failure::Found { name: source.to_string(), source: Box::new(error) };
    let registry = client::until(&args.registries, environment, &events, cancel)?;
    let documents = source.documents(&registry).map_err(|error| failed(error.into()))?;
    let parcel = Parcel::found(&documents, platform.as_ref()).map_err(failed)?;
    let digest = parcel.root().descriptor.digest;
    let push = Push { parcel, names, tagging };
    let options = UploadOptions { registry, events, cancel: cancel.clone(), refused: Cancel::default() };
    let uploads = Uploads::new(options, &push.names);
    uploads.name(uploads.bring(&[&push])?)?;
    Ok(Pushed { digest, destination: push.told() })
}

//! Registry clients, and what people are told while these wait or pass a mirror over.

use std::{io::Write, sync::Arc};

use oci::registry::{Hosts, Limits, Note, Notes, Registry, RegistryOptions};
use solver::{Cancel, Event};

use crate::{args::RegistryArgs, build::Events, failure::Failure, redact::redact, request::Environment};

/// For work whose progress is shown.
///
/// # Errors
/// The client cannot be made.
pub fn with_events(hosts: Hosts, limits: Limits, events: &Events) -> Result<Registry, Failure> {
    let events = Arc::clone(events);
    let notes = Notes::to(move |note| show(&events, note));
    Ok(Registry::new(RegistryOptions { hosts, limits, notes, ..RegistryOptions::default() })?)
}

/// The same for commands that have no store; it gives up when they are stopped.
///
/// # Errors
/// A variable means nothing, or the client cannot be made.
pub fn until(
    registries: &RegistryArgs,
    environment: &Environment,
    events: &Events,
    cancel: &Cancel,
) -> Result<Registry, Failure> {
    let cancel = cancel.clone();
    let registry = with_events(registries.hosts(environment)?, Limits::default(), events)?;
    Ok(registry.until(move || cancel.is_requested()))
}

/// For questions, which are answered on standard output.
///
/// # Errors
/// A variable means nothing, or the client cannot be made.
pub fn asking(registries: &RegistryArgs) -> Result<Registry, Failure> {
    asking_insecure(registries, Vec::new())
}

/// The same, with more registries that are insecure.
///
/// # Errors
/// As those of [`asking`].
pub fn asking_insecure(registries: &RegistryArgs, insecure: Vec<String>) -> Result<Registry, Failure> {
    let hosts = registries.hosts_and_insecure(&Environment::of_process(), insecure)?;
    let (limits, notes) = (Limits::default(), Notes::to(warn));
    Ok(Registry::new(RegistryOptions { hosts, limits, notes, ..RegistryOptions::default() })?)
}

/// A mirror that fails must be seen; one that lacks an image is how mirrors are.
fn show(events: &Events, note: Note) {
    match note {
        Note::MirrorFails(text) | Note::PutOff(text) => events(Event::Warning(text)),
        Note::MirrorLacks(text) => {
            events(Event::Stage(text.clone()));
            events(Event::StageDone(text));
        }
    }
}

/// The same where there is no progress: it is no part of the answer.
fn warn(note: Note) {
    if let Note::MirrorFails(text) | Note::PutOff(text) = note {
        let _ = writeln!(anstream::stderr(), "warning: {}", redact(&text));
    }
}

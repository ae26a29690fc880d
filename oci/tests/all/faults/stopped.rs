//! Whoever is told to stop stops at once, whatever the registry is doing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use oci::registry::{Limits, RegistryError, RegistryOptions};

use super::common::{
    client_with,
    fault::{Reply, Request, Server, status},
    layer, read, reference,
};

/// Far below the deadlines of a client for people, far above what stopping takes.
const SOON: Duration = Duration::from_secs(10);

/// A client of a server that does not answer what `stalls`, told to stop as soon as it is asked that.
fn stopped_by(stalls: fn(&Request) -> bool) -> (Server, oci::registry::Registry) {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let server = Server::start(move |request| match request.method.as_str() {
        _ if stalls(request) => {
            asked.store(true, Ordering::SeqCst);
            Reply::Stall
        }
        "HEAD" => status(404, &[], ""),
        "POST" => status(202, &[("Location", "/v2/app/blobs/uploads/1")], ""),
        _ => status(200, &[], ""),
    });
    let options = RegistryOptions { limits: Limits::default(), ..RegistryOptions::default() };
    let client = oci::registry::Registry::new(options).expect("a client");
    (server, client.until(move || stop.load(Ordering::SeqCst)))
}

#[test]
fn a_push_that_is_stopped_ends_whatever_it_waits_for() {
    let waits: [fn(&Request) -> bool; 3] = [
        |request| request.method == "HEAD",
        |request| request.method == "POST",
        |request| request.method == "PUT",
    ];
    for stalls in waits {
        let (server, client) = stopped_by(stalls);
        let begun = Instant::now();
        let failed = super::common::push(&client, &reference(&server.address, "app"), b"layer");
        assert!(matches!(failed, Err(RegistryError::Cancelled)), "{failed:?}");
        assert!(begun.elapsed() < SOON);
    }
}

#[test]
fn a_push_of_what_comes_from_a_registry_that_does_not_send_ends_as_well() {
    let (slow, from) = stopped_by(|request| request.method == "GET" && request.path.contains("/blobs/"));
    let target = Server::start(|request| match request.method.as_str() {
        "HEAD" => status(404, &[], ""),
        "POST" => status(202, &[("Location", "/v2/app/blobs/uploads/1")], ""),
        _ => status(201, &[], ""),
    });
    let (descriptor, base) = (layer(b"layer"), reference(&slow.address, "base"));
    let open = || from.pull_blob(&base, &descriptor).map_err(std::io::Error::other);
    let begun = Instant::now();
    let to = client_with(RegistryOptions::default());
    let failed = to.push_blob(&reference(&target.address, "app"), &descriptor, None, &open, &|_| ());
    assert!(matches!(failed, Err(RegistryError::Source { .. })), "{failed:?}");
    assert!(begun.elapsed() < SOON);
}

#[test]
fn a_pull_that_is_stopped_between_two_bytes_ends() {
    let stop = Arc::new(AtomicBool::new(false));
    let server =
        Server::start(|_| Reply::Send(200, vec![("content-length".into(), "100".into())], vec![7; 10]));
    let asked = Arc::clone(&stop);
    let options = RegistryOptions { limits: Limits::default(), ..RegistryOptions::default() };
    let client = oci::registry::Registry::new(options).expect("a client");
    let client = client.until(move || asked.load(Ordering::SeqCst));
    let descriptor = layer(&[7; 100]);
    let reader = client.pull_blob(&reference(&server.address, "base"), &descriptor).expect("it has begun");
    let begun = Instant::now();
    stop.store(true, Ordering::SeqCst);
    read(reader).expect_err("stopped");
    assert!(begun.elapsed() < SOON);
}

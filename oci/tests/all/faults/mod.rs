//! The client against a registry that misbehaves, and one that would like to have our credentials.

mod auth;
mod renewal;
mod stopped;
mod transfers;

use std::sync::atomic::{AtomicUsize, Ordering};

use oci::Registry;

use crate::common::{
    self,
    fault::{Reply, Request, Server, status},
    layer, read, reference, told,
};

/// Says `true` for the first `count` requests that fit.
fn first(count: usize, fits: impl Fn(&Request) -> bool) -> impl Fn(&Request) -> bool {
    let seen = AtomicUsize::new(0);
    move |request| fits(request) && seen.fetch_add(1, Ordering::SeqCst) < count
}

/// Serves `content` as the only blob there is, `Range` included.
fn blob(request: &Request, content: &[u8]) -> Reply {
    let range = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match range {
        None => status(200, &[], content),
        Some(start) => {
            let start: usize = start;
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            status(206, &[("Content-Range", &range)], &content[start..])
        }
    }
}

fn pull(registry: &Registry, server: &Server, content: &[u8]) -> Result<Vec<u8>, String> {
    let reader = registry.pull_blob(&reference(&server.address, "app"), &layer(content));
    reader.map_err(|error| told(&error)).and_then(|reader| read(reader).map_err(|error| told(&error)))
}

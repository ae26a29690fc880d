//! Memory does not grow with the size of a blob. Alone in its process, since it looks at the process's peak.

mod common;

use std::{
    io::{self, Read},
    sync::Arc,
};

use common::{
    client,
    fault::{Reply, Server, status},
    reference,
};
use oci::{Descriptor, MediaType, registry::Pushed};

const SIZE: u64 = 512 << 20;
/// What a transfer may add to the peak, in bytes.
const BOUND: u64 = 48 << 20;

/// Peak resident memory so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel tells");
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

fn zeros() -> Descriptor {
    let mut hasher = oci::digest::Sha256Hasher::default();
    let piece = vec![0; 1 << 20];
    (0..SIZE >> 20).for_each(|_| hasher.update(&piece));
    Descriptor::new(MediaType::OciLayer, hasher.finish(), SIZE)
}

#[test]
fn blobs_stream_in_both_directions() {
    let server = Server::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v2/") => status(200, &[], ""),
        ("GET", _) => Reply::Zeros(SIZE),
        ("HEAD", _) => status(404, &[], ""),
        ("POST", _) => status(202, &[("Location", "/swallow")], ""),
        _ => status(201, &[], ""),
    });
    let (registry, app, descriptor) = (Arc::new(client(vec![])), reference(&server.address, "app"), zeros());
    let before = peak();
    let mut reader = registry.pull_blob(&app, &descriptor).expect("it begins");
    assert_eq!(io::copy(&mut reader, &mut io::sink()).expect("whole"), SIZE);
    let open = || Ok(Box::new(io::repeat(0).take(SIZE)) as Box<dyn Read + Send>);
    assert_eq!(
        registry.push_blob(&app, &descriptor, None, &open, &|_| {}).expect("pushed"),
        Pushed::Uploaded
    );
    let grown = peak() - before;
    assert!(grown < BOUND, "{} MiB more than before", grown >> 20);
}

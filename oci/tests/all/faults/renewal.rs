//! A token that ends at any call whatever, in front of a real registry: the call is made again with a new one, and nothing
//! else is.

use std::{
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use oci::{MediaType, Registry, Sha256Digest, registry::Pushed};

use super::{
    common::{
        DockerRegistry, client,
        fault::{Reply, Request, Server, status},
        layer, login, noise, push, push_mounting, reference,
    },
    first,
};

/// Whether it is the call that is meant.
type Fits = fn(&Request) -> bool;

/// The calls of a push and a pull: what they are, and how they are known.
const CALLS: [(&str, Fits); 13] = [
    ("the first call of all", |_| true),
    ("HEAD of a blob", |request| request.is("HEAD", "/app/blobs/")),
    ("POST of an upload", |request| {
        request.is("POST", "/app/blobs/uploads/") && !request.path.contains("mount=")
    }),
    ("POST of a mount", |request| request.path.contains("mount=")),
    ("PUT of a blob", |request| request.is("PUT", "/app/blobs/uploads/")),
    ("DELETE of an upload", |request| request.is("DELETE", "/app/blobs/uploads/")),
    ("PUT of a manifest", |request| request.is("PUT", "/app/manifests/")),
    ("HEAD of a manifest", |request| request.is("HEAD", "/app/manifests/")),
    ("GET of a manifest", |request| request.is("GET", "/app/manifests/")),
    ("GET of a blob", |request| request.is("GET", "/app/blobs/") && request.header("range").is_none()),
    ("GET of the rest of a blob", |request| request.header("range").is_some()),
    ("HEAD of a mounted blob", |request| request.is("HEAD", "/other/blobs/")),
    ("the renewed call itself", |request| request.header("authorization") == Some("Bearer token-1")),
];

/// A guard with tokens before a registry: one is good until the next is given, or a call that `ends` it.
fn guarded(upstream: &str, ends: Fits) -> (Server, Arc<AtomicUsize>) {
    let ended = Arc::new(AtomicUsize::new(0));
    let (count, good, given) = (Arc::clone(&ended), Mutex::new(String::new()), AtomicUsize::new(0));
    let (once, cut) = (first(1, ends), first(1, |request| request.is("GET", "/app/blobs/")));
    let server = Server::knowing_itself(upstream, |own| {
        let challenge = format!(r#"Bearer realm="http://{own}/token",service="test",error="invalid_token""#);
        move |request: &Request| {
            let mut good = good.lock().expect("nobody panics");
            if request.path.starts_with("/token") {
                let token = format!("token-{}", given.fetch_add(1, Ordering::SeqCst) + 1);
                *good = format!("Bearer {token}");
                return status(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#));
            }
            let shown = request.header("authorization");
            let is_good = !good.is_empty() && shown == Some(good.as_str());
            if is_good && once(request) {
                count.fetch_add(1, Ordering::SeqCst);
                good.clear();
            } else if is_good {
                // A download breaks once, so that its rest has to be asked for.
                return if cut(request) {
                    Reply::End(100_000, Box::new(Reply::Forward))
                } else {
                    Reply::Forward
                };
            }
            status(401, &[("WWW-Authenticate", &challenge)], "")
        }
    });
    (server, ended)
}

/// Everything that a build does with a registry, with blobs of this name.
fn everything(registry: &Registry, address: &str, name: &str) {
    let (other, app) = (reference(address, "other"), reference(address, "app:v1"));
    let (base, content) = (name.as_bytes().to_vec(), [name.as_bytes(), &noise(300_000)].concat());
    push(registry, &other, &base).expect("pushed");
    registry.check_push(&app).expect("allowed");
    assert_eq!(push_mounting(registry, &app, &base, Some(&other)).expect("mounted"), Pushed::Mounted);
    assert_eq!(push(registry, &app, &content).expect("pushed"), Pushed::Uploaded);
    let manifest =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let digest = registry.push_manifest(&app, &MediaType::OciIndex, manifest).expect("pushed").digest;
    assert_eq!(digest, Sha256Digest::of(manifest));
    assert_eq!(registry.resolve(&app).expect("answers").map(|found| found.digest), Some(digest));
    assert_eq!(registry.manifest(&app).expect("there").bytes, manifest);
    let mut pulled = Vec::new();
    registry.pull_blob(&app, &layer(&content)).expect("there").read_to_end(&mut pulled).expect("whole");
    assert!(pulled == content && registry.has_blob(&app, &Sha256Digest::of(&content)).expect("answers"));
}

#[test]
fn a_token_may_end_at_any_call() {
    let Some(upstream) = DockerRegistry::start() else { return };
    for (call, ends) in CALLS {
        let (server, ended) = guarded(&upstream.address, ends);
        let home = tempfile::tempdir().expect("tempdir");
        let registry = client(vec![login(home.path(), &server.address, "alice", "pw")]);
        everything(&registry, &server.address, call);
        assert_eq!(ended.load(Ordering::SeqCst), 1, "{call} is not made");
    }
}

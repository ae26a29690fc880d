//! RELIABILITY B2: what a push leaves behind that is cut short at its last request, and blobs that vanish meanwhile.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use oci::Reference;

use super::{
    common::{
        fault::{Reply, Request, Server, ask, status},
        reference,
    },
    site::Site,
};

fn is_tag(request: &Request) -> bool {
    request.is("PUT", "/manifests/v1")
}

/// `true` the first time.
fn once() -> impl Fn() -> bool {
    let done = AtomicBool::new(false);
    move || !done.swap(true, Ordering::SeqCst)
}

#[test]
fn a_registry_that_goes_away_at_the_last_request_leaves_all_or_nothing() {
    let Some(site) = Site::new() else { return };
    type Leave = fn() -> Reply;
    let cases: [(&str, Leave, bool); 2] = [
        ("before", || Reply::Vanish(0, Box::new(status(500, &[], ""))), false),
        ("after", || Reply::Vanish(0, Box::new(Reply::Forward)), true),
    ];
    for (repository, leave, is_named) in cases {
        let tag = format!("{repository}:v1");
        let proxy = Server::before(&site.upstream.address, move |request| match is_tag(request) {
            true => leave(),
            false => Reply::Forward,
        });
        let ended = site.run(&mut site.app(&proxy.address, "warm", &[&reference(&proxy.address, &tag)]));
        assert_eq!(ended.code, Some(3), "{}", ended.stderr);
        assert!(ended.stderr.contains(&proxy.address), "{}", ended.stderr);
        let direct = site.upstream.reference(&tag);
        assert_eq!(site.finds(&direct), Ok(is_named.then_some(site.digest)), "{repository}");
        again(&site, &tag, &direct);
    }
}

/// The same push works now, and sends nothing that is there.
fn again(site: &Site, tag: &str, direct: &Reference) {
    let proxy = Server::before(&site.upstream.address, |_| Reply::Forward);
    site.succeeds(&mut site.app(&proxy.address, "warm", &[&reference(&proxy.address, tag)]));
    assert_eq!(proxy.count("PUT", "/blobs/uploads/"), 0, "{:#?}", proxy.lines());
    assert_eq!(site.finds(direct), Ok(Some(site.digest)));
}

#[test]
fn blobs_that_are_deleted_after_they_were_confirmed_are_sent_again() {
    let Some(site) = Site::new() else { return };
    let (upstream, first) = (site.upstream.address.clone(), once());
    let proxy = Server::before(&site.upstream.address, move |request| {
        if is_tag(request) && first() {
            let manifest: serde_json::Value = serde_json::from_slice(&request.body).expect("a manifest");
            let layers = manifest["layers"].as_array().expect("layers");
            let own = layers.last().expect("some")["digest"].as_str().expect("a digest");
            let deleted = ask(&upstream, "DELETE", &format!("/v2/vanishing/blobs/{own}"));
            assert_eq!(deleted.expect("it answers").0, 202);
        }
        Reply::Forward
    });
    let name = reference(&proxy.address, "vanishing:v1");
    site.succeeds(&mut site.app(&proxy.address, "warm", &[&name]));
    assert_eq!(site.finds(&site.upstream.reference("vanishing:v1")), Ok(Some(site.digest)));
    assert_eq!(proxy.count("PUT", "/manifests/v1"), 2);
}

#[test]
fn a_base_layer_that_its_repository_has_lost_is_named() {
    let Some(site) = Site::new() else { return };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let known = Arc::clone(&asked);
    let proxy = Server::before(&site.upstream.address, move |request| {
        if !request.path.starts_with("/v2/base/blobs/") {
            return Reply::Forward;
        }
        let digest = request.path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut known = known.lock().expect("no panic");
        if !known.contains(&digest) {
            known.push(digest.clone());
        }
        // The config comes first.
        match known.get(1) == Some(&digest) {
            true => status(404, &[], r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#),
            false => Reply::Forward,
        }
    });
    let name = reference(&proxy.address, "orphan:v1");
    let ended = site.run(&mut site.app(&proxy.address, "cold", &[&name]));
    let lost = asked.lock().expect("no panic")[1].clone();
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let error = ended.stderr.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(error.contains(&lost) && error.contains("/base does not exist: BLOB_UNKNOWN"), "{error}");
    assert_eq!(site.finds(&site.upstream.reference("orphan:v1")), Ok(None));
    fs::remove_dir_all(site.path("cold")).expect("ours");
}

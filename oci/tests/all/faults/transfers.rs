//! Transfers that break, stall, lie or never end.

use std::{
    collections::HashMap,
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use oci::{
    RegistryOptions, Sha256Digest,
    registry::{Note, Notes, Pushed, RegistryError},
    verify::BlobError,
};

use super::{
    blob,
    common::{
        DockerRegistry, client, client_with,
        fault::{Reply, Server, status},
        layer, noise, push, push_mounting, quick, read, reference, told,
    },
    first, pull,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let content = Arc::new(noise(1 << 20));
    type Damage = fn(Reply) -> Reply;
    let damages: [(&str, Damage); 3] = [
        ("reset", |reply| Reply::Cut(300_000, Box::new(reply))),
        ("truncated", |reply| Reply::End(300_000, Box::new(reply))),
        ("reset at once", |reply| Reply::Cut(0, Box::new(reply))),
    ];
    for (name, damage) in damages {
        let (served, twice) = (content.clone(), first(2, |_| true));
        let server = Server::start(move |request| {
            let reply = blob(request, &served);
            if request.path == "/v2/" || !twice(request) { reply } else { damage(reply) }
        });
        assert_eq!(pull(&client(vec![]), &server, &content).as_ref(), Ok(&*content), "{name}");
        let ranges: Vec<_> =
            server.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect();
        let resumed = ["bytes=300000-", "bytes=600000-"].map(|range| Some(range.to_owned()));
        match name {
            // What was in flight when the connection was reset may be lost.
            "reset" => assert!(ranges.len() == 3 && ranges[0].is_none(), "{ranges:?}"),
            "truncated" => assert_eq!(ranges[1..], resumed),
            _ => assert_eq!(ranges, [None, None, None]),
        }
    }
}

#[test]
fn a_server_without_ranges_is_read_from_its_beginning_again() {
    let content = Arc::new(noise(600_000));
    let (served, once) = (content.clone(), first(1, |request| request.path.contains("/blobs/")));
    let server = Server::start(move |request| {
        let whole = status(200, &[], &*served);
        if once(request) { Reply::End(250_000, Box::new(whole)) } else { whole }
    });
    assert_eq!(pull(&client(vec![]), &server, &content).as_ref(), Ok(&*content));
}

#[test]
fn a_server_that_refuses_ranges_is_read_from_its_beginning_again() {
    let content = Arc::new(noise(600_000));
    let (served, once) = (content.clone(), first(1, |request| request.path.contains("/blobs/")));
    let server = Server::start(move |request| match request.header("range") {
        Some(_) => status(416, &[], ""),
        None if once(request) => Reply::End(250_000, Box::new(status(200, &[], &*served))),
        None => status(200, &[], &*served),
    });
    assert_eq!(pull(&client(vec![]), &server, &content).as_ref(), Ok(&*content));
    assert_eq!(server.count("GET", "/blobs/"), 3);
}

#[test]
fn crumbs_are_as_good_as_silence() {
    let content = Arc::new(noise(100_000));
    let served = content.clone();
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/" => status(200, &[], ""),
        _ => Reply::Trickle(usize::MAX, Box::new(blob(request, &served))),
    });
    let error = pull(&client(vec![]), &server, &content).expect_err("it would take 100 s");
    assert!(error.contains("sent no more than") && error.contains("bytes in 2 s"), "{error}");
}

#[test]
fn an_answer_about_another_blob_is_not_believed() {
    let Some(upstream) = DockerRegistry::start() else { return };
    let once = first(1, |request| request.method == "HEAD");
    let other = Sha256Digest::of(b"other").to_string();
    let server = Server::before(&upstream.address, move |request| match once(request) {
        true => status(200, &[("Docker-Content-Digest", &other)], ""),
        false => Reply::Forward,
    });
    let pushed = push(&client(vec![]), &reference(&server.address, "app"), b"layer").expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded);
}

#[test]
fn wrong_bytes_never_pass() {
    let content = noise(100_000);
    let (mut wrong, mut long) = (content.clone(), content.clone());
    wrong[50_000] ^= 1;
    long.push(0);
    let short = content[..99_999].to_vec();
    for (served, want) in
        [(wrong, "is damaged"), (long, "goes on after"), (short, "ends after 99999 of 100000")]
    {
        let server = Server::start(move |request| match request.header("range") {
            Some(_) => status(200, &[], &served),
            None => blob(request, &served),
        });
        let error = pull(&client(vec![]), &server, &content).expect_err(want);
        // What a server has is a matter of seconds, as wrong bytes are: of 502 it would be one of minutes.
        assert!(
            error.contains(want) && error.contains("sent a wrong blob") && !error.contains("502"),
            "{error}"
        );
    }
    let server = Server::start(|_| status(206, &[("Content-Range", "bytes 5-9/10")], b"56789"));
    let error = pull(&client(vec![]), &server, b"0123456789").expect_err("not what was asked for");
    assert!(error.contains("asked for bytes from 0"), "{error}");
}

#[test]
fn what_comes_out_wrong_is_told_with_who_sent_it() {
    let server = Server::start(|_| status(200, &[], b"l4yer"));
    let reader = client(vec![]).pull_blob(&reference(&server.address, "app"), &layer(b"layer"));
    let error = read(reader.expect("it begins")).expect_err("other bytes");
    let inner = error.into_inner().expect("ours").downcast::<RegistryError>().expect("ours");
    let wrong =
        BlobError::WrongDigest { digest: Sha256Digest::of(b"layer"), found: Sha256Digest::of(b"l4yer") };
    assert!(matches!(*inner, RegistryError::Damaged { source, .. } if *source == wrong));
}

#[test]
fn busy_servers_are_asked_again() {
    for code in [429, 500, 502, 503, 504] {
        let twice = first(2, |request| request.path.contains("/blobs/"));
        let server = Server::start(move |request| match twice(request) {
            true => status(code, &[], "busy"),
            false => blob(request, b"layer"),
        });
        assert_eq!(pull(&client(vec![]), &server, b"layer"), Ok(b"layer".to_vec()), "{code}");
        assert_eq!(server.requests().len(), 3, "{code}");
    }
    for (code, want) in
        [(400, "answered 400"), (404, "does not exist"), (403, "is denied"), (501, "answered 501")]
    {
        let server =
            Server::start(move |_| status(code, &[], r#"{"errors":[{"code":"X","message":"because"}]}"#));
        let error = pull(&client(vec![]), &server, b"layer").expect_err(want);
        assert!(error.contains(want) && error.contains("X because"), "{error}");
        assert_eq!(server.requests().len(), 1, "{code}");
    }
}

#[test]
fn a_server_that_stays_broken_is_given_up_and_named() {
    let server = Server::start(|_| status(503, &[], "<html>down for maintenance</html>"));
    let started = Instant::now();
    let error = pull(&client(vec![]), &server, b"layer").expect_err("down");
    assert!(error.contains(&format!("http://{}/v2/app/blobs/sha256:", server.address)), "{error}");
    assert!(error.ends_with("answered 503"), "no HTML: {error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_pause_that_is_asked_for_is_kept() {
    for retry_after in ["1", "Sun, 06 Nov 1994 08:49:38 GMT"] {
        let once = first(1, |request| request.path.contains("/blobs/"));
        let server = Server::start(move |request| match once(request) {
            true => {
                let date = ("Date", "Sun, 06 Nov 1994 08:49:37 GMT");
                status(429, &[("Retry-After", retry_after), date], "")
            }
            false => blob(request, b"layer"),
        });
        let started = Instant::now();
        assert_eq!(pull(&client(vec![]), &server, b"layer"), Ok(b"layer".to_vec()));
        let took = started.elapsed();
        assert!((1.0..3.0).contains(&took.as_secs_f64()), "{retry_after}: {took:?}");
    }
}

#[test]
fn a_long_pause_is_told_once_to_people() {
    let once = first(1, |request| request.path.contains("/blobs/"));
    let server = Server::start(move |request| match once(request) {
        true => status(429, &[("Retry-After", "5")], ""),
        false => blob(request, b"layer"),
    });
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let notes = Notes::to(move |note| sink.lock().expect("no panic").push(note));
    let registry = client_with(RegistryOptions { notes, ..RegistryOptions::default() });
    assert_eq!(pull(&registry, &server, b"layer"), Ok(b"layer".to_vec()));
    let told = told.lock().expect("no panic");
    let [Note::PutOff(text)] = told.as_slice() else { panic!("{told:?}") };
    assert!(text.contains("answered 429; trying again in "), "{text}");
}

/// RELIABILITY B4.
#[test]
fn many_pulls_from_a_registry_that_allows_few_all_end() {
    const PULLS: usize = 64;
    const ALLOWED: usize = 2;
    let Some(upstream) = DockerRegistry::start() else { return };
    let contents: Vec<_> = (0..PULLS).map(|number| noise(20_000 + number)).collect();
    for content in &contents {
        push(&client(vec![]), &upstream.reference("app"), content).expect("pushed");
    }
    let (active, pauses) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Pauses::default())));
    let (now, kept) = (active.clone(), pauses.clone());
    let server = Server::before(&upstream.address, move |request| {
        let guard = Turn::take(&now);
        let mut pauses = kept.lock().expect("no panic");
        pauses.ended(&request.path);
        if now.load(Ordering::SeqCst) > ALLOWED && request.path != "/v2/" {
            pauses.begun(&request.path);
            return status(429, &[("Retry-After", "0")], "");
        }
        Reply::Guarded(Box::new(guard), Box::new(Reply::Forward))
    });
    let (registry, server) = (&client(vec![]), &server);
    std::thread::scope(|scope| {
        for content in &contents {
            scope.spawn(move || assert_eq!(pull(registry, server, content).as_ref(), Ok(content)));
        }
    });
    let asked = server.requests().len();
    let lengths = &pauses.lock().expect("no panic").lengths;
    assert!(!lengths.is_empty(), "the limit has been met");
    assert_eq!(asked, PULLS + lengths.len(), "one more request for each refusal, and no other");
    assert!(lengths.iter().all(|length| *length >= quick().first_pause), "not paused: {lengths:?}");
}

/// How long those who were refused have stayed away.
#[derive(Default)]
struct Pauses {
    refused: HashMap<String, Instant>,
    lengths: Vec<Duration>,
}

impl Pauses {
    fn begun(&mut self, path: &str) {
        self.refused.insert(path.to_owned(), Instant::now());
    }

    fn ended(&mut self, path: &str) {
        self.lengths.extend(self.refused.remove(path).map(|since| since.elapsed()));
    }
}

/// One of the requests that are being answered.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::SeqCst);
        Self(active.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn silence_has_an_end() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => status(200, &[], ""),
        _ => Reply::Stall,
    });
    let started = Instant::now();
    let error = pull(&client(vec![]), &server, b"layer").expect_err("nothing comes");
    assert!(error.contains("did not answer for 2 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    let nobody = client(vec![]).manifest(&reference("127.0.0.1:1", "app")).expect_err("nobody listens");
    assert_eq!(told(&nobody), "cannot connect to 127.0.0.1:1: connection refused");
}

#[test]
fn an_upload_that_nobody_takes_is_given_up() {
    // Reads heads and no bodies: the socket's buffers fill, and then nothing moves.
    let server = Server::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", _) => status(200, &[], ""),
        ("HEAD", _) => status(404, &[], ""),
        ("POST", _) => status(202, &[("Location", "/unread")], ""),
        _ => Reply::Stall,
    });
    let started = Instant::now();
    let error =
        push(&client(vec![]), &reference(&server.address, "app"), &noise(64 << 20)).expect_err("stuck");
    assert!(matches!(error, RegistryError::Timeout { .. }), "{}", told(&error));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn bodies_of_errors_and_documents_are_bounded() {
    let server = Server::start(|request| match request.path.contains("/manifests/") {
        true => Reply::Endless(200),
        false => Reply::Endless(400),
    });
    let started = Instant::now();
    let error = client(vec![]).manifest(&reference(&server.address, "app")).expect_err("too long");
    assert!(told(&error).contains("the limit is 4194304"), "{}", told(&error));
    let error = pull(&client(vec![]), &server, b"layer").expect_err("an error");
    assert!(error.contains("answered 400"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_manifest_must_be_what_it_is_called() {
    let body = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    let digest = Sha256Digest::of(body.as_bytes()).to_string();
    let other = Sha256Digest::of(b"other").to_string();
    let cases: [(&str, &str, &str, &str); 7] = [
        ("v1", MANIFEST, body, "ok"),
        (&digest, MANIFEST, body, "ok"),
        (&other, MANIFEST, body, "sent content with digest"),
        (
            "v1",
            "application/json; x=y",
            r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#,
            "but its body says",
        ),
        ("v1", MANIFEST, r#"{"manifests":[],"layers":[]}"#, "both an index and a manifest"),
        ("v1", MANIFEST, "<html>", "not valid JSON"),
        ("v1", "", body, "nothing says what type"),
    ];
    for (selector, content_type, body, want) in cases {
        let server = Server::start(move |_| match content_type {
            "" => status(200, &[], body),
            given => status(200, &[("Content-Type", given)], body),
        });
        let separator = if selector.starts_with("sha256") { '@' } else { ':' };
        let name = format!("app{separator}{selector}");
        let found = client(vec![]).manifest(&reference(&server.address, &name));
        let found = found.map_or_else(|error| told(&error), |_| "ok".to_owned());
        assert!(found.contains(want), "expected {want}, got {found}");
    }
    let lying = Server::start(move |_| {
        status(
            200,
            &[("Content-Type", MANIFEST), ("Docker-Content-Digest", &Sha256Digest::of(b"x").to_string())],
            body,
        )
    });
    let app = reference(&lying.address, "app");
    assert!(matches!(client(vec![]).manifest(&app), Err(RegistryError::Digest { .. })));
    let pinned = app.with_digest(Sha256Digest::of(b"y"));
    assert!(matches!(client(vec![]).resolve(&pinned), Err(RegistryError::Digest { .. })));
}

#[test]
fn an_upload_session_that_a_mount_has_opened_is_used() {
    let Some(upstream) = DockerRegistry::start() else { return };
    let server = Server::before(&upstream.address, |_| Reply::Forward);
    let (app, other) = (reference(&server.address, "app"), reference(&server.address, "nowhere"));
    let pushed = push_mounting(&client(vec![]), &app, b"layer", Some(&other)).expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(
        (server.count("POST", "mount="), server.count("POST", ""), server.count("PUT", "")),
        (1, 1, 1)
    );
}

#[test]
fn a_push_that_breaks_begins_again() {
    let Some(upstream) = DockerRegistry::start() else { return };
    let unknown = || status(404, &[], r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}"#);
    type Break = Box<dyn Fn() -> Reply + Send + Sync>;
    let breaks: [(&str, Break); 4] = [
        ("session lost", Box::new(unknown)),
        ("not found", Box::new(|| status(404, &[], ""))),
        ("busy", Box::new(|| status(503, &[], ""))),
        ("reset", Box::new(|| Reply::Lose(Box::new(status(201, &[], ""))))),
    ];
    for (at, (name, reply)) in breaks.into_iter().enumerate() {
        let once = first(1, |request| request.method == "PUT");
        let server = Server::before(
            &upstream.address,
            move |request| if once(request) { reply() } else { Reply::Forward },
        );
        let (app, content) = (reference(&server.address, "app"), noise(700_000 + at));
        assert_eq!(push(&client(vec![]), &app, &content).expect(name), Pushed::Uploaded, "{name}");
        assert_eq!(
            (server.count("HEAD", ""), server.count("POST", ""), server.count("PUT", "")),
            (2, 2, 2),
            "{name}"
        );
    }
}

#[test]
fn an_upload_whose_answer_is_lost_is_found_to_be_there() {
    let Some(upstream) = DockerRegistry::start() else { return };
    let once = first(1, |request| request.method == "PUT");
    let server = Server::before(&upstream.address, move |request| match once(request) {
        true => Reply::Lose(Box::new(Reply::Forward)),
        false => Reply::Forward,
    });
    let app = reference(&server.address, "app");
    assert_eq!(push(&client(vec![]), &app, b"layer").expect("pushed"), Pushed::Existed);
    assert_eq!(server.count("PUT", ""), 1);
    assert!(client(vec![]).has_blob(&app, &Sha256Digest::of(b"layer")).expect("answers"));
}

#[test]
fn plain_http_is_for_loopback_and_insecure_hosts() {
    // A name that is nobody's: the URL in the error says what would have been spoken.
    let app = reference("registry.invalid:5000", "app");
    let error = client(vec![]).manifest(&app).expect_err("does not resolve");
    assert!(
        matches!(&error, RegistryError::Transport { url, .. } if url.starts_with("https://")),
        "{error:?}"
    );
    assert!(told(&error).starts_with("cannot connect to registry.invalid:5000: "), "{error}");
    let insecure = client_with(RegistryOptions {
        insecure: vec!["registry.invalid:5000".to_owned()],
        ..Default::default()
    });
    assert!(told(&insecure.manifest(&app).expect_err("does not resolve")).starts_with("cannot connect to "));
}

#[test]
fn a_blob_that_only_downloads_can_see_is_pushed_again() {
    let storage = Arc::new(Server::start(|_| status(403, &[], "signed for GET")));
    let to = storage.address.clone();
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => status(307, &[("Location", &format!("http://{to}/signed"))], ""),
        "POST" => status(202, &[("Location", "/upload")], ""),
        "PUT" => status(201, &[], ""),
        _ => status(200, &[], ""),
    });
    let pushed = push(&client(vec![]), &reference(&server.address, "app"), b"layer").expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded);
}

#[test]
fn a_hiccup_is_not_taken_for_tls() {
    // The answer to what is wanted, and to the question what it speaks.
    let twice = first(2, |_| true);
    let server = Server::start(move |request| match twice(request) {
        true => Reply::Lose(Box::new(status(200, &[], ""))),
        false => blob(request, b"layer"),
    });
    assert_eq!(pull(&client(vec![]), &server, b"layer"), Ok(b"layer".to_vec()));
}

#[test]
fn a_reader_that_is_dropped_ends_the_transfer() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => status(200, &[], ""),
        _ => Reply::Endless(200),
    });
    let registry = client(vec![]);
    let descriptor = oci::Descriptor { size: u64::MAX >> 1, ..layer(b"") };
    let mut reader = registry.pull_blob(&reference(&server.address, "app"), &descriptor).expect("it begins");
    reader.read_exact(&mut vec![0; 1 << 20]).expect("zeros");
    drop(registry);
    reader.read_exact(&mut vec![0; 1 << 20]).expect("the reader keeps the client alive");
}

#[test]
fn only_where_it_may_be_tls_a_loopback_host_is_asked_what_it_speaks_and_once_by_all() {
    let plain = || status(404, &[], r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    let tls = || status(400, &[], "Client sent an HTTP request to an HTTPS server.");
    for (speaks_tls, probes) in [(false, 0), (true, 1)] {
        let server = Server::start(move |_| if speaks_tls { tls() } else { plain() });
        let registry = client(vec![]);
        let (brief, reference) = (registry.briefly(), reference(&server.address, "app:1"));
        std::thread::scope(|scope| {
            for client in [&registry, &brief].repeat(4) {
                let reference = &reference;
                scope
                    .spawn(move || assert_eq!(client.resolve(reference).ok(), (!speaks_tls).then_some(None)));
            }
        });
        assert_eq!(server.probes(), probes);
        // Who comes when TLS is known sends nothing plainly.
        assert!(speaks_tls || server.requests().len() == 8, "{:?}", server.lines());
    }
}

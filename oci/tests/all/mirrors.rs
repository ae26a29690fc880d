//! Pulling from mirrors in front of a real registry: which are asked and in which order, what makes the next one take over,
//! and what they get to know.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use oci::{
    BlobOrigin, Fetcher, MediaType, Reference, Registry, RegistryOptions, Sha256Digest, Store,
    registry::{HostOptions, Hosts, Note, Notes},
};

use crate::common::{
    self, DockerRegistry, client_with,
    fault::{Reply, Request, Server, status},
    layer, login, noise, push, read, told,
};

const MANIFEST: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// A registry that has an image in two repositories: its own, and that of a mirror.
struct Ground {
    registry: DockerRegistry,
    content: Vec<u8>,
}

impl Ground {
    fn new() -> Option<Self> {
        let ground = Self { registry: DockerRegistry::start()?, content: noise(600_000) };
        ground.fill("team/app");
        ground.fill("hub/app");
        Some(ground)
    }

    fn fill(&self, repository: &str) {
        let client = client_with(RegistryOptions::default());
        let image = self.registry.reference(&format!("{repository}:1"));
        push(&client, &image, &self.content).expect("pushed");
        client.push_manifest(&image, &MediaType::OciIndex, MANIFEST.as_bytes()).expect("pushed");
    }

    fn before(&self, rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        Server::before(&self.registry.address, rule)
    }
}

/// A client that has these mirrors for `team` of a registry, and what it has noted.
fn mirrored(
    own: &Server,
    mirrors: &[String],
    auth: Option<std::path::PathBuf>,
) -> (Registry, Arc<Mutex<Vec<Note>>>) {
    let prefix = format!("{}/team", own.address);
    let mirrors = mirrors
        .iter()
        .map(|address| (prefix.clone(), format!("{address}/hub").parse().expect("a location")))
        .collect();
    let hosts = Hosts::new(HostOptions { mirrors, ..HostOptions::default() }, &|_| None);
    let notes = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&notes);
    let options = RegistryOptions {
        hosts,
        auth_files: auth.into_iter().collect(),
        notes: Notes::to(move |note| sink.lock().expect("no test panics in it").push(note)),
        ..RegistryOptions::default()
    };
    (client_with(options), notes)
}

fn pulled(client: &Registry, image: &Reference, content: &[u8]) -> Result<(), String> {
    let fetched = client.manifest(image).map_err(|error| told(&error))?;
    assert_eq!(fetched.bytes, MANIFEST.as_bytes());
    let found = client.resolve(image).map_err(|error| told(&error))?.expect("it exists");
    assert_eq!(found.digest, Sha256Digest::of(MANIFEST.as_bytes()));
    let blob = client.pull_blob(image, &layer(content)).map_err(|error| told(&error))?;
    let bytes = read(blob).map_err(|error| told(&error))?;
    assert!(bytes == content);
    Ok(())
}

fn told_of(notes: &Mutex<Vec<Note>>) -> Vec<String> {
    let notes = notes.lock().expect("no test panics in it");
    notes
        .iter()
        .map(|note| match note {
            Note::MirrorLacks(text) => format!("lacks: {text}"),
            Note::MirrorFails(text) => format!("fails: {text}"),
            Note::PutOff(text) => format!("put off: {text}"),
        })
        .collect()
}

#[test]
fn a_mirror_that_has_it_is_all_that_is_asked_and_pushes_do_not_go_there() {
    let Some(ground) = Ground::new() else { return };
    let (own, mirror) = (ground.before(|_| Reply::Forward), ground.before(|_| Reply::Forward));
    let (client, notes) = mirrored(&own, std::slice::from_ref(&mirror.address), None);
    let image = common::reference(&own.address, "team/app:1");
    assert_eq!(pulled(&client, &image, &ground.content), Ok(()));
    assert_eq!(own.lines(), [""; 0]);
    assert_eq!(mirror.count("GET", "/v2/hub/app/"), 2);
    assert_eq!(told_of(&notes), [""; 0]);

    let asked = mirror.requests().len();
    let direct = client.direct();
    direct.resolve(&image).expect("it exists");
    client.check_push(&image).expect("we may");
    push(&client, &image, &noise(70_000)).expect("pushed");
    client.push_manifest(&image, &MediaType::OciIndex, MANIFEST.as_bytes()).expect("pushed");
    assert!(client.has_blob(&image, &layer(&ground.content).digest).expect("answers"));
    assert_eq!(mirror.requests().len(), asked, "{:?}", mirror.lines());
}

#[test]
fn whatever_a_mirror_fails_with_the_next_place_is_asked() {
    let Some(ground) = Ground::new() else { return };
    type Rule = fn(&Request) -> Reply;
    let cases: [(&str, Rule, &str); 9] = [
        ("404", |_| status(404, &[], ""), "lacks: "),
        ("403", |_| status(403, &[], ""), "fails: "),
        ("401", |_| status(401, &[("WWW-Authenticate", "Basic realm=x")], ""), "fails: "),
        ("500", |_| status(500, &[], ""), "fails: "),
        ("429", |_| status(429, &[("Retry-After", "3600")], ""), "fails: "),
        ("reset", |_| Reply::Lose(Box::new(Reply::Forward)), "fails: "),
        ("teapot", |_| status(418, &[], ""), "fails: "),
        ("garbage", |_| status(200, &[("Content-Type", "text/html")], "<html>"), "fails: "),
        ("elsewhere", |_| status(307, &[("Location", "http://example.com/")], ""), "fails: "),
    ];
    for (name, rule, kind) in cases {
        let own = ground.before(|_| Reply::Forward);
        let bad = Server::start(move |request| match request.path.as_str() {
            "/v2/" => status(200, &[], ""),
            _ => rule(request),
        });
        let good = ground.before(|_| Reply::Forward);
        let image = common::reference(&own.address, "team/app:1");
        let began = Instant::now();
        let (client, notes) = mirrored(&own, &[bad.address.clone(), good.address.clone()], None);
        assert_eq!(pulled(&client, &image, &ground.content), Ok(()), "{name}");
        assert_eq!(own.lines(), [""; 0], "{name}: the second mirror has it");
        let (client, _) = mirrored(&own, std::slice::from_ref(&bad.address), None);
        assert_eq!(pulled(&client, &image, &ground.content), Ok(()), "{name}");
        assert_eq!(own.count("GET", "/v2/team/app/"), 2, "{name}");
        assert!(began.elapsed() < Duration::from_secs(8), "{name}: {:?}", began.elapsed());
        let said = told_of(&notes);
        let fits = |text: &String| text.starts_with(kind) && text.contains(&bad.address);
        assert!(said.len() == 1 && said.iter().all(fits), "{name}: {said:?}");
    }
}

#[test]
fn a_mirror_that_is_gone_is_asked_once() {
    let Some(ground) = Ground::new() else { return };
    let own = ground.before(|_| Reply::Forward);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gone = free.local_addr().expect("bound").to_string();
    drop(free);
    let (client, notes) = mirrored(&own, std::slice::from_ref(&gone), None);
    let image = common::reference(&own.address, "team/app:1");
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(pulled(&client, &image, &ground.content), Ok(()));
        assert!(began.elapsed() < Duration::from_secs(3));
    }
    let want = format!("fails: mirror {gone} is passed over: cannot connect to {gone}: connection refused");
    assert_eq!(told_of(&notes), [want]);
}

#[test]
fn a_blob_goes_on_at_the_next_place_where_a_mirror_broke_off() {
    let Some(ground) = Ground::new() else { return };
    let own = ground.before(|_| Reply::Forward);
    let mirror = ground.before(|request| match request.is("GET", "/blobs/") {
        true if request.header("range").is_none() => Reply::Cut(300_000, Box::new(Reply::Forward)),
        true => status(503, &[], ""),
        false => Reply::Forward,
    });
    let (client, notes) = mirrored(&own, std::slice::from_ref(&mirror.address), None);
    let image = common::reference(&own.address, "team/app:1");
    assert_eq!(pulled(&client, &image, &ground.content), Ok(()));
    let rest = own.requests().into_iter().find(|request| request.is("GET", "/blobs/")).expect("it was asked");
    assert!(rest.header("range").is_some_and(|range| range.starts_with("bytes=")), "{:?}", rest.headers);
    assert!(told_of(&notes)[0].contains("503"), "{:?}", told_of(&notes));
}

#[test]
fn wrong_bytes_of_a_mirror_are_noticed_and_had_from_the_next_place() {
    let Some(ground) = Ground::new() else { return };
    let own = ground.before(|_| Reply::Forward);
    let mirror = ground.before(|request| match request.is("GET", "/blobs/") {
        true => Reply::Bent(|_, body| body[77] ^= 1),
        false => Reply::Forward,
    });
    let (client, notes) = mirrored(&own, std::slice::from_ref(&mirror.address), None);
    let image = common::reference(&own.address, "team/app:1");
    let directory = tempfile::tempdir().expect("tempdir");
    let store = Arc::new(Store::open(directory.path()).expect("a store"));
    let fetcher = Fetcher::new(Arc::clone(&store), client);
    let descriptor = layer(&ground.content);
    fetcher.ensure(&descriptor, &BlobOrigin::Registry(image)).expect("from the registry");
    assert!(store.has_blob(&descriptor.digest, descriptor.size));
    assert_eq!((mirror.count("GET", "/blobs/"), own.count("GET", "/blobs/")), (1, 1));
    assert!(told_of(&notes)[0].contains("it has sent wrong bytes for blob sha256:"), "{:?}", told_of(&notes));
}

#[test]
fn a_mirror_sees_its_own_credentials_and_no_others() {
    let Some(ground) = Ground::new() else { return };
    let challenge = |request: &Request| match request.header("authorization") {
        None if request.path != "/v2/" => status(401, &[("WWW-Authenticate", "Basic realm=x")], ""),
        _ => Reply::ForwardWithout("authorization"),
    };
    let (own, mirror) = (ground.before(challenge), ground.before(challenge));
    let image = common::reference(&own.address, "team/app:1");
    let home = tempfile::tempdir().expect("tempdir");
    let shown = |server: &Server| {
        let mut seen: Vec<String> = server
            .requests()
            .iter()
            .filter_map(|request| Some(request.header("authorization")?.to_owned()))
            .collect();
        seen.dedup();
        seen
    };
    let of_mirror = login(home.path(), &mirror.address, "mirror", "one");
    let (client, _) = mirrored(&own, std::slice::from_ref(&mirror.address), Some(of_mirror));
    assert_eq!(pulled(&client, &image, &ground.content), Ok(()));
    assert_eq!((shown(&mirror), shown(&own)), (vec!["Basic bWlycm9yOm9uZQ==".to_owned()], vec![]));

    let mirror = ground.before(challenge);
    let of_own = login(home.path(), &own.address, "own", "two");
    let (client, _) = mirrored(&own, std::slice::from_ref(&mirror.address), Some(of_own));
    assert_eq!(pulled(&client, &image, &ground.content), Ok(()));
    assert_eq!((shown(&mirror), shown(&own)), (vec![], vec!["Basic b3duOnR3bw==".to_owned()]));
}

#[test]
fn settings_that_cannot_be_read_are_not_passed_over() {
    let Some(ground) = Ground::new() else { return };
    let own = ground.before(|_| Reply::Forward);
    let image = common::reference(&own.address, "team/app:1");
    let home = tempfile::tempdir().expect("tempdir");
    let broken = common::write_config(home.path(), "{");
    let mirror = Server::start(|_| status(401, &[("WWW-Authenticate", "Basic realm=x")], ""));
    let (client, _) = mirrored(&own, std::slice::from_ref(&mirror.address), Some(broken));
    let error = told(&client.manifest(&image).expect_err("it cannot be read"));
    assert!(error.contains("is not a credential file"), "{error}");
    assert_eq!(own.lines(), [""; 0]);
}

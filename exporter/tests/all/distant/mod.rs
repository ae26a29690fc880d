//! Reading a remote cache in a real registry, behind a proxy that counts what is asked and bends what is answered.

mod bent;
mod gone;
mod records;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use exporter::cache::{
    Artifact, ArtifactKind, Bundle, Reading, RegistryStorage, RemoteCache, SignKey, Storage, TrustKeys,
    names, seen::Seen,
};
use oci::{RemoteLayers, Sha256Digest};
use records::{key, record, signed, with_layer};
use solver::{
    Cancel, Event,
    cache::Key,
    traits::{Answer, DistantCache, Found},
};

use crate::common::{
    self, DockerRegistry, client,
    fault::{Reply, Request, Server, status},
};

const REPOSITORY: &str = "app/cache";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What nothing that is right ever takes.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A registry and a proxy before it; writers go to the one, the reader that is looked at through the other.
struct Bench {
    registry: DockerRegistry,
    proxy: Server,
}

impl Bench {
    fn start(rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Option<Self> {
        let registry = DockerRegistry::start()?;
        let proxy = Server::before(&registry.address, rule);
        Some(Self { registry, proxy })
    }

    /// The place as writers see it.
    fn place(&self) -> RegistryStorage {
        RegistryStorage::new(&client(vec![]), &self.registry.reference(REPOSITORY))
    }

    fn put(&self, names: &[&str], artifact: &Artifact) {
        self.place().put(names, artifact, &Cancel::default()).expect("written");
    }

    fn put_bundle(&self, bundle: &Bundle) {
        self.put(&["main"], &artifact(ArtifactKind::Bundle, bundle.encode()));
    }

    fn reader(&self) -> Reader {
        Reader::of(&self.proxy.address, TrustKeys::default())
    }
}

fn artifact(kind: ArtifactKind, document: Vec<u8>) -> Artifact {
    Artifact { kind, document, signature: None, blobs: Vec::new() }
}

/// A reader with what it has told.
struct Reader {
    cache: RemoteCache,
    layers: RemoteLayers,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Reader {
    fn of(host: &str, trust: TrustKeys) -> Self {
        let (layers, warnings) = (RemoteLayers::default(), Arc::<Mutex<Vec<String>>>::default());
        let sink = Arc::clone(&warnings);
        let events = move |event| match event {
            Event::Warning(text) => sink.lock().expect("no test panics in it").push(text),
            other => panic!("a reader has nothing to say of {other:?}"),
        };
        let reading = Reading {
            storage: Arc::new(RegistryStorage::new(&client(vec![]), &common::reference(host, REPOSITORY))),
            trust,
            layers: layers.clone(),
            seen: Seen::default(),
            events: Arc::new(events),
            cancel: Cancel::default(),
        };
        Self { cache: RemoteCache::new(reading, Some("main".to_owned())), layers, warnings }
    }

    /// What is told of keys: of each one once.
    fn look(&self, keys: &[Key]) -> BTreeMap<Key, Option<Found>> {
        let told = Mutex::new(BTreeMap::new());
        let began = Instant::now();
        self.cache.lookup(keys, &Cancel::default(), &|answers| {
            for (key, found) in answers {
                let before = told.lock().expect("no test panics in it").insert(key, found);
                assert!(before.is_none(), "{key:?} is told twice");
            }
        });
        assert!(began.elapsed() < WATCHDOG);
        let told = told.into_inner().expect("no test panics in it");
        assert_eq!(told.len(), keys.len(), "every key is told");
        told
    }

    fn hits(&self, keys: &[Key]) -> usize {
        self.look(keys).values().flatten().count()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().expect("no test panics in it").clone()
    }
}

fn keys(count: u8) -> Vec<Key> {
    (0..count).map(key).collect()
}

#[test]
fn all_that_a_bundle_has_costs_one_request() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    let documents = BTreeMap::from([(Sha256Digest::of(b"{}"), b"{}".to_vec())]);
    bench.put_bundle(&Bundle { records: (0..20).map(|n| signed(&with_layer(n))).collect(), documents });
    let reader = bench.reader();
    let told = reader.look(&keys(20));
    assert_eq!(bench.proxy.lines(), [format!("GET /v2/{REPOSITORY}/manifests/main")]);
    for n in 0..20 {
        let found = told[&key(n)].as_ref().expect("a hit");
        assert_eq!(found.record.content, with_layer(n).record.content);
        assert_eq!(found.cache, format!("{}/{REPOSITORY}", bench.proxy.address));
        let described = reader.layers.get(with_layer(n).layers.keys().next().expect("one"));
        assert_eq!(described.expect("it is noted").origin, found_origin(&bench.proxy.address));
    }
    // At once: who heard of some would begin what the others make needless.
    let counts = Mutex::default();
    let count =
        |answers: Vec<Answer>| Vec::push(&mut counts.lock().expect("no test panics in it"), answers.len());
    reader.cache.lookup(&keys(20), &Cancel::default(), &count);
    assert_eq!(counts.into_inner().expect("no test panics in it"), [20]);
    let by_content = (0..20).map(|n| Key::Content(with_layer(n).record.content)).collect::<Vec<_>>();
    assert_eq!(reader.hits(&by_content), 20);
    assert_eq!(reader.cache.document(&Sha256Digest::of(b"{}"), WATCHDOG).as_deref(), Some(&b"{}"[..]));
    assert_eq!(reader.cache.records().len(), 20);
    assert_eq!(bench.proxy.requests().len(), 1);
    assert_eq!(reader.warnings(), Vec::<String>::new());
}

fn found_origin(host: &str) -> oci::BlobOrigin {
    oci::BlobOrigin::Registry(common::reference(host, REPOSITORY))
}

#[test]
fn an_empty_cache_costs_a_request_for_the_bundle_and_one_for_each_key() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    let reader = bench.reader();
    assert_eq!(reader.hits(&keys(20)), 0);
    let lines = bench.proxy.lines();
    assert_eq!(lines.len(), 21, "{lines:?}");
    assert_eq!(lines[0], format!("GET /v2/{REPOSITORY}/manifests/main"), "the bundle comes first");
    assert_eq!(reader.warnings(), Vec::<String>::new(), "that a cache is empty is not worth a word");
}

#[test]
fn keys_that_the_bundle_lacks_are_asked_for_by_themselves() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    bench.put_bundle(&Bundle { records: [signed(&record(0))].into(), ..Bundle::default() });
    let own = artifact(ArtifactKind::Record, record(1).to_document().expect("good"));
    let name = names::of(&key(1));
    bench.put(&[&name, &names::content(&record(1).record.content)], &own);
    let reader = bench.reader();
    let told = reader.look(&keys(3));
    assert_eq!(keys(3).iter().map(|key| told[key].is_some()).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(bench.proxy.requests().len(), 3);
    assert_eq!(reader.hits(&[Key::Content(record(1).record.content)]), 1, "its other key is known by now");
    assert_eq!(bench.proxy.requests().len(), 3);
}

#[test]
fn a_document_too_long_to_be_embedded_is_read_apart() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    let noise = common::noise(700 << 10);
    let documents = BTreeMap::from([(Sha256Digest::of(&noise), noise)]);
    bench.put_bundle(&Bundle { records: [signed(&record(0))].into(), documents });
    assert_eq!(bench.reader().hits(&keys(1)), 1);
    assert_eq!(bench.proxy.requests().len(), 2);
}

#[test]
fn a_record_whose_layer_is_lost_is_a_miss() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    bench.put_bundle(&Bundle { records: [signed(&with_layer(0))].into(), ..Bundle::default() });
    let reader = bench.reader();
    assert_eq!(reader.hits(&keys(1)), 1);
    reader.layers.lose(*with_layer(0).layers.keys().next().expect("one"));
    assert_eq!(reader.hits(&keys(1)), 0);
}

#[test]
fn with_a_trust_key_only_what_it_has_signed_exists() {
    let Some(bench) = Bench::start(|_| Reply::Forward) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let Some(own) = sign_key(directory.path(), "own") else { return };
    let other = sign_key(directory.path(), "other").expect("as the first");
    let sign = |n, sign: &SignKey| {
        let mut record = signed(&record(n));
        record.signature = Some(sign.sign(ArtifactKind::Record, &record.document));
        record
    };
    let mut swapped = sign(3, &own);
    swapped.signature = sign(0, &own).signature;
    let records = [sign(0, &own), sign(1, &other), signed(&record(2)), swapped].into();
    bench.put_bundle(&Bundle { records, ..Bundle::default() });
    let trusting = Reader::of(&bench.proxy.address, own.trusted());
    let told = trusting.look(&keys(4));
    assert_eq!(
        keys(4).iter().map(|key| told[key].is_some()).collect::<Vec<_>>(),
        [true, false, false, false]
    );
    assert_eq!(trusting.cache.ignored(), 3);
    assert_eq!(trusting.warnings(), Vec::<String>::new());
    assert_eq!(bench.reader().hits(&keys(4)), 4, "who trusts everybody sees all");
}

fn sign_key(directory: &std::path::Path, name: &str) -> Option<SignKey> {
    let path = directory.join(name);
    let mut openssl = std::process::Command::new("openssl");
    let made = openssl.args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&path).output();
    if !made.is_ok_and(|output| output.status.success()) {
        common::skip("openssl is not installed");
        return None;
    }
    Some(SignKey::read(&path).expect("a key"))
}

/// An artifact that is as it should be, but for what it holds.
fn no_record() -> Vec<u8> {
    exporter::cache::artifact::manifest(&artifact(ArtifactKind::Record, b"{}".to_vec()))
}

/// What a cache that misbehaves costs: never a hit, never an error, one warning, and requests within a bound.
#[test]
fn a_cache_that_fails_costs_a_bounded_number_of_requests() {
    type Rule = fn(&Request) -> Reply;
    let cases: [(&str, Rule, usize); 8] = [
        ("500", |_| status(500, &[], ""), 18),
        ("503, later", |_| status(503, &[("retry-after", "3600")], ""), 20),
        ("breaks off", |_| Reply::Cut(3, Box::new(status(200, &[], "{\"schemaVersion\":2}"))), 18),
        ("no registry", |_| status(200, &[("content-type", "text/html")], "<html>hello</html>"), 36),
        ("refuses", |_| status(403, &[], ""), 1),
        ("wants a password", |_| status(401, &[("www-authenticate", "Basic realm=\"x\"")], ""), 1),
        ("endless", |_| Reply::Endless(200), 36),
        ("what is no record", |_| status(200, &[("content-type", MANIFEST)], no_record()), 36),
    ];
    for (what, rule, most) in cases {
        let server = Server::start(rule);
        let reader = Reader::of(&server.address, TrustKeys::default());
        let began = Instant::now();
        assert_eq!(reader.hits(&keys(100)), 0, "{what}");
        let (took, requests) = (began.elapsed(), server.requests().len());
        assert!(requests <= most, "{what}: {requests} requests");
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        assert_eq!(reader.warnings().len(), 1, "{what}: {:?}", reader.warnings());
        let asked = server.requests().len();
        assert_eq!(reader.hits(&keys(100)), 0, "{what}");
        assert_eq!(server.requests().len(), asked, "{what}: it is asked no more");
    }
}

#[test]
fn a_cache_that_is_silent_is_not_waited_for_once_nobody_wants_to_know() {
    let server = Server::start(|_| Reply::Stall);
    let reader = Reader::of(&server.address, TrustKeys::default());
    let cancel = Cancel::default();
    let none = |answers: Vec<Answer>| assert!(answers.iter().all(|(_, found)| found.is_none()));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| reader.cache.lookup(&keys(20), &cancel, &none));
        cancel.request();
        looking.join().expect("it comes back");
    });
    assert!(reader.cache.document(&Sha256Digest::of(b""), Duration::ZERO).is_none());
}

//! Writing a remote cache into a real registry, behind a proxy that remembers every request.

mod ground;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use exporter::{
    Encoder, TimePolicy,
    cache::{
        Artifact, ArtifactKind, BuildEnd, Bundle, DirectoryStorage, Mode, Named, OnError, OwnChain, Seen,
        SignKey, SignedRecord, Storage, TrustKeys, names,
    },
};
use ground::{Builder, Ground, keys, lines, ours};
use oci::{Sha256Digest, elsewhere::bring};
use solver::{Cancel, Event, Graph, Key, Op, Record, RecordWriter, key::hidden::is_hidden, op::Source};

use crate::common::{
    self,
    fault::{Reply, Request, status},
};
use crate::support::{
    self,
    graph::{directory, vertex},
};

/// What nothing that is right ever takes.
const WATCHDOG: Duration = Duration::from_secs(60);

/// The blobs whose bytes a request has brought to a repository, by their digests.
fn sent(requests: &[Request]) -> Vec<String> {
    let digest = |request: &Request| Some(request.path.rsplit_once("digest=")?.1.replace("%3A", ":"));
    requests.iter().filter(|request| request.is("PUT", "/blobs/uploads/")).filter_map(digest).collect()
}

fn once(digests: &[String]) -> bool {
    digests.iter().collect::<BTreeSet<_>>().len() == digests.len()
}

#[test]
fn blobs_come_before_what_names_them_and_the_bundle_after_all_of_them() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("app", 4);
    let writer = builder.writer(&ground, |_| ());
    records.iter().for_each(|record| writer.store(record));
    // What comes twice goes once.
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    let requests = ground.proxy.requests();
    assert!(once(&sent(&requests)), "{:#?}", lines(&requests));
    let mut there = BTreeSet::new();
    for request in &requests {
        there.extend(sent(std::slice::from_ref(request)));
        if request.is("PUT", "/manifests/") {
            let manifest: oci::manifest::Manifest =
                serde_json::from_slice(&request.body).expect("a manifest");
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                assert!(there.contains(&blob.digest.to_string()), "{} names what is not there", request.path);
            }
        }
    }
    let named = requests.iter().filter(|request| request.is("PUT", "/manifests/")).count();
    assert_eq!(named, 2 * records.len() + 1, "{:#?}", lines(&requests));
    let bundle = requests.iter().position(|request| request.is("PUT", "/manifests/main")).expect("written");
    let rest = &requests[bundle..];
    assert!(rest.iter().all(|request| request.is("PUT", "/manifests/")), "{:#?}", lines(&requests));
    assert_eq!(builder.warnings(), [""; 0]);
    for bundle in ["main", "no-such-bundle"] {
        let fresh = Builder::new();
        let found = fresh.read(&ground, bundle, &keys(&records));
        assert!(found.values().all(Option::is_some), "{bundle}");
        for layer in records.iter().flat_map(ours) {
            assert!(bring::tree(&fresh.fetcher, &layer).expect("brought"));
            assert!(bring::blob(&fresh.fetcher, &layer, None, &|_| Ok(())).expect("brought").is_some());
        }
    }
}

#[test]
fn the_same_goes_for_a_directory() {
    let builder = Builder::new();
    let records = builder.records("app", 3);
    let directory = builder.workshop.path("cache");
    let place: Arc<dyn Storage> = Arc::new(DirectoryStorage::new(&directory));
    let writer = builder.writer_to(Arc::clone(&place), |_| ());
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    let fresh = Builder::new();
    let found = fresh.read_from(Arc::clone(&place), "main", &keys(&records));
    assert!(found.values().all(Option::is_some));
    for layer in records.iter().flat_map(ours) {
        assert!(bring::blob(&fresh.fetcher, &layer, None, &|_| Ok(())).expect("brought").is_some());
    }
    assert_eq!(builder.warnings(), [""; 0]);
}

#[test]
fn no_value_of_a_variable_gets_into_a_cache() {
    let builder = Builder::new();
    let mut records = builder.records("app", 1);
    records[0].pre_image.insert("env TOKEN".to_owned(), "s3cret".to_owned());
    let place: Arc<dyn Storage> = Arc::new(DirectoryStorage::new(&builder.workshop.path("cache")));
    let fill = |builder: &Builder| {
        let writer = builder.writer_to(Arc::clone(&place), |_| ());
        writer.store(&records[0]);
        writer.finish(BuildEnd::Made, &[]).expect("written");
        writer.written().steps
    };
    assert_eq!(fill(&builder), 1);
    let found = builder.read_from(Arc::clone(&place), "main", &keys(&records));
    for record in found.values() {
        let told = &record.as_ref().expect("written").record.pre_image["env TOKEN"];
        assert!(is_hidden(told), "{told}");
    }
    assert_eq!(fill(&builder), 0, "it is there, as this machine would write it");
}

#[test]
fn image_and_cache_share_the_bytes() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("app", 3);
    let names = [common::reference(&ground.proxy.address, "app/image:1")];
    let uploads = builder.workshop.uploads(&names);
    let taker = uploads.taker(&names, &builder.fetcher);
    let sealer = Arc::new(builder.workshop.sealer_telling(Encoder::GZIP, TimePolicy::Default, 2, taker));
    let writer = builder.writer(&ground, |options| {
        options.sealer = Arc::clone(&sealer);
        // Nobody tells here which layers are the image's: all are.
        options.aside = Arc::clone(&sealer);
        options.landings = Some(uploads.landings());
    });
    for record in &records {
        sealer.offer(&record.snapshot);
        writer.store(record);
    }
    writer.finish(BuildEnd::Made, &[]).expect("written");
    let sealed = sealer.seal(&records[2].snapshot).expect("sealed");
    let requests = ground.proxy.requests();
    for layer in sealed {
        let digest = layer.descriptor.digest.to_string();
        let count = sent(&requests).iter().filter(|sent| **sent == digest).count();
        assert_eq!(count, 1, "{digest}\n{:#?}", lines(&requests));
    }
    let mounts = ground.proxy.count("POST", "from=app%2Fimage");
    assert_eq!(mounts, 3, "{:#?}", lines(&requests));
    assert!(uploads.landings().moved() > 0, "what the cache waits for moves");
}

#[test]
fn a_layer_that_only_the_cache_wants_is_none_of_the_images() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("app", 2);
    let names = [common::reference(&ground.proxy.address, "app/image:1")];
    let uploads = builder.workshop.uploads(&names);
    let taker = uploads.taker(&names, &builder.fetcher);
    let sealer = Arc::new(builder.workshop.sealer_telling(Encoder::GZIP, TimePolicy::Default, 2, taker));
    let writer = builder.writer(&ground, |options| {
        options.sealer = Arc::clone(&sealer);
        options.landings = Some(uploads.landings());
    });
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    assert_eq!(ground.proxy.count("HEAD", "/v2/app/image/"), 0);
    // Once the image has it, its uploads hear of it.
    sealer.offer(&records[0].snapshot);
    let begun = Instant::now();
    while ground.proxy.count("HEAD", "/v2/app/image/") == 0 {
        assert!(begun.elapsed() < WATCHDOG, "{:#?}", ground.proxy.lines());
        std::thread::yield_now();
    }
}

#[test]
fn what_is_there_costs_one_look_or_none() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("app", 3);
    builder.fill(&ground, &records);
    let before = ground.proxy.requests().len();
    builder.fill(&ground, &records);
    let look = &ground.proxy.requests()[before..];
    assert_eq!(lines(look), ["GET /v2/app/cache/manifests/main"]);
    let fresh = Builder::new();
    let found = fresh.read(&ground, "main", &keys(&records));
    let before = ground.proxy.requests().len();
    let writer = fresh.writer(&ground, |_| ());
    found.into_values().flatten().for_each(|found| writer.store(&found.record));
    writer.finish(BuildEnd::Made, &[]).expect("nothing to write");
    assert_eq!(lines(&ground.proxy.requests()[before..]), [""; 0]);
    assert_eq!(fresh.warnings(), [""; 0]);
}

#[test]
fn what_another_cache_has_goes_on_as_it_is() {
    let (Some(ground), Some(elsewhere)) = (Ground::start(), Ground::start()) else { return };
    let builder = Builder::new();
    let records = builder.records("app", 2);
    let Some(key) = ground::sign_key(&builder.workshop) else { return };
    let key = Arc::new(key);
    let writer = builder.writer(&ground, |options| options.sign = Some(Arc::clone(&key)));
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    // To another repository of the same registry, and to another registry.
    for (target, downloads) in [(&ground, 0), (&elsewhere, 5)] {
        let fresh = Builder::new();
        let found = fresh.read(&ground, "main", &keys(&records));
        let before = ground.proxy.requests().len();
        let place = target.place("app/other");
        let writer = fresh.writer_to(Arc::clone(&place), |_| ());
        found.into_values().flatten().for_each(|found| writer.store(&found.record));
        writer.finish(BuildEnd::Made, &[]).expect("written");
        let requests = &ground.proxy.requests()[before..];
        let pulled = requests.iter().filter(|request| request.is("GET", "/app/cache/blobs/")).count();
        assert_eq!(pulled, downloads, "{:#?}", lines(requests));
        let documents = if downloads == 0 { 3 } else { 0 };
        assert_eq!(sent(requests).len(), documents, "two records and a bundle\n{:#?}", lines(requests));
        let blobs = fresh.workshop.store.area("blobs/sha256");
        assert_eq!(std::fs::read_dir(blobs).expect("readable").count(), 0, "nothing is kept here");
        for record in &records {
            let name = names::content(&record.content);
            assert_eq!(document(&*place, &name), document(&*ground.place("app/cache"), &name));
        }
        let trusting = Builder::new();
        let found = trusting.read_trusting(&place, "main", &keys(&records), key.trusted());
        assert!(found.values().all(Option::is_some), "signatures are as they were");
    }
}

/// A record's document and signature.
fn document(place: &dyn Storage, name: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    let named = place.get(name, &Cancel::default()).expect("readable").expect("there");
    let Named::Artifact(Artifact { document, signature, .. }) = named else {
        panic!("{name} is no artifact")
    };
    (document, signature)
}

#[test]
fn a_registry_that_refuses_is_told_of_once() {
    let denied = || status(403, &[], r#"{"errors":[{"code":"DENIED","message":"not you"}]}"#);
    let refuse = move |request: &Request| match request.method.as_str() {
        "POST" | "PUT" => denied(),
        _ => Reply::Forward,
    };
    for on_error in [OnError::Warn, OnError::Fail] {
        let Some(ground) = Ground::with(refuse) else { return };
        let builder = Builder::new();
        let records = builder.records("app", 6);
        let writer = builder.writer(&ground, |options| options.on_error = on_error);
        records.iter().for_each(|record| writer.store(record));
        let finished = writer.finish(BuildEnd::Made, &[]);
        let asked = ground.proxy.requests().len();
        assert!(asked < 20, "{:#?}", ground.proxy.lines());
        let told = match finished {
            Ok(()) => builder.warnings(),
            Err(error) => vec![common::told(&error)],
        };
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("app/cache") && told[0].contains("not you"), "{told:?}");
        assert_eq!(builder.warnings().is_empty(), on_error == OnError::Fail);
    }
}

#[test]
fn two_writers_at_once_lose_nothing() {
    let Some(ground) = Ground::start() else { return };
    let builders = ["one", "two"].map(|name| {
        let builder = Builder::new();
        let shared = builder.records("shared", 3);
        let own = builder.records(name, 3);
        (builder, [shared, own].concat())
    });
    std::thread::scope(|scope| {
        for (builder, records) in &builders {
            scope.spawn(|| builder.fill(&ground, records));
        }
    });
    let all: Vec<_> = builders.iter().flat_map(|(_, records)| records.clone()).collect();
    let fresh = Builder::new();
    let found = fresh.read(&ground, "main", &keys(&all));
    assert!(found.values().all(Option::is_some), "{found:#?}");
    for (builder, _) in &builders {
        assert_eq!(builder.warnings(), [""; 0]);
    }
}

#[test]
fn a_build_that_is_killed_has_published_what_it_finished() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("app", 3);
    let writer = builder.writer(&ground, |_| ());
    for (index, record) in records[..2].iter().enumerate() {
        writer.store(record);
        let begun = Instant::now();
        // Before the next step is done. Whoever reads looks for it until it is there.
        while Builder::new().read(&ground, "none", &[Key::Definition(record.definition)])
            [&Key::Definition(record.definition)]
            .is_none()
        {
            assert!(begun.elapsed() < WATCHDOG, "step {index}: {:#?}", ground.proxy.lines());
        }
    }
    drop(writer);
    assert_eq!(ground.proxy.count("PUT", "/manifests/main"), 0, "nobody came to that");
}

#[test]
fn who_is_stopped_waits_for_nobody() {
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let builder = Builder::new();
    let place = ground::place(&silent.local_addr().expect("bound").to_string(), "app/cache");
    let writer = builder.writer_to(place, |options| options.on_error = OnError::Fail);
    builder.records("app", 3).iter().for_each(|record| writer.store(record));
    let (_asked, _) = silent.accept().expect("somebody asks");
    builder.workshop.cancel.request();
    let begun = Instant::now();
    writer.finish(BuildEnd::Failed, &[]).expect("a stop is no error of a cache");
    drop(writer);
    assert!(begun.elapsed() < Duration::from_secs(10), "far less than the registry's deadlines");
    assert_eq!(builder.warnings(), [""; 0]);
}

#[test]
fn what_no_image_has_is_packed_with_less_trouble() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let (own, other) = (builder.records("own", 1), builder.records("other", 1));
    let mut graph = Graph::default();
    let scratch = graph.add(vertex(Op::Source(Source::Scratch), vec![]));
    let aside = graph.add(vertex(directory(), vec![scratch]));
    let last = graph.add(vertex(directory(), vec![scratch, aside]));
    graph.targets.push(ground::target(last));
    let writer = builder.writer(&ground, |options| options.chain = OwnChain::of(&graph));
    for (id, record) in [(aside, &other[0]), (last, &own[0])] {
        writer.take(&Event::Settled(id, Arc::new(record.snapshot.clone())));
        writer.store(record);
    }
    writer.finish(BuildEnd::Made, &[]).expect("written");
    let fresh = Builder::new();
    fresh.read(&ground, "main", &keys(&[own.clone(), other.clone()].concat()));
    let layers = fresh.fetcher.elsewhere();
    let encoders = |record| {
        let layer = layers.get(&ours(record)[0]).expect("known");
        layer.blobs.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(encoders(&own[0]), [Encoder::GZIP.id()]);
    assert_eq!(encoders(&other[0]), [Encoder::ZSTD_FASTEST.id()]);
    // Where that stage is the image of another build, it is the same as if nobody had built it before.
    let seal = |builder: &Builder| {
        let sealer = builder.workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
        sealer.seal(&other[0].snapshot).expect("sealed").remove(0).descriptor
    };
    assert_eq!(seal(&fresh), seal(&builder));
}

/// Another machine builds an image of what a cache has, and has it written to that cache.
fn image_of(ground: &Ground, records: &[Record]) -> Builder {
    image_by(Builder::new(), ground, records)
}

fn image_by(machine: Builder, ground: &Ground, records: &[Record]) -> Builder {
    let found = machine.read(ground, "main", &keys(records));
    assert!(found.values().flatten().all(|found| records.contains(&found.record)));
    write_image(ground, &machine, records);
    machine
}

/// A build of an image of these steps, whose records the place has.
fn write_image(ground: &Ground, machine: &Builder, records: &[Record]) {
    let sealer = Arc::new(machine.workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2));
    sealer.offer(&records.last().expect("one").snapshot);
    let writer = machine.writer(ground, |options| options.sealer = sealer);
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    assert_eq!(writer.written().steps, 0, "the place lacked none of them");
    assert_eq!(machine.warnings(), [""; 0]);
}

/// The encoders by which a cache has the layer of a record.
fn encoders(ground: &Ground, record: &Record) -> Vec<String> {
    let machine = Builder::new();
    machine.read(ground, "main", &keys(std::slice::from_ref(record)));
    let layer = machine.fetcher.elsewhere().get(&ours(record)[0]).expect("known");
    layer.blobs.into_keys().collect()
}

#[test]
fn what_one_machine_has_packed_for_its_image_the_next_does_not_move() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("stage", 2);
    builder.fill(&ground, &records);
    let second = image_of(&ground, &records);
    assert!(second.read(&ground, "main", &keys(&records)).values().all(Option::is_some));
    for record in &records {
        assert_eq!(encoders(&ground, record), [Encoder::GZIP.id(), Encoder::ZSTD_FASTEST.id()]);
    }
    let third = Builder::new();
    third.read(&ground, "main", &keys(&records));
    let before = ground.proxy.requests().len();
    let sealer = third.workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
    let sealed = sealer.seal(&records[1].snapshot).expect("sealed");
    assert_eq!(lines(&ground.proxy.requests()[before..]), [""; 0], "nothing is brought");
    let own = builder.workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
    let own = own.seal(&records[1].snapshot).expect("sealed");
    assert!(sealed.iter().map(|layer| &layer.descriptor).eq(own.iter().map(|layer| &layer.descriptor)));
    // Whatever is there by now, nothing is told anew.
    let before = ground.proxy.requests().len();
    image_of(&ground, &records);
    assert!(ground.proxy.requests()[before..].iter().all(|request| request.method == "GET"));
}

#[test]
fn a_blob_of_another_tar_than_the_place_tells_of_is_not_sent_there() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("stage", 1);
    builder.fill(&ground, &records);
    let place = ground.place("app/cache");
    let whole = bundle(&*place);
    let only = whole.records.first().expect("one");
    let mut told = only.open(None, &TrustKeys::default(), &place.origin()).expect("a good record");
    told.layers.values_mut().for_each(|layer| layer.diff_id = Sha256Digest::of(b"another tar").into());
    let document = told.to_document().expect("nobody can tell");
    let forged = SignedRecord { document, signature: None };
    let document = Bundle { records: [forged].into(), ..whole }.encode();
    let artifact = Artifact { kind: ArtifactKind::Bundle, document, signature: None, blobs: told.blobs() };
    place.put(&["main"], &artifact, &Cancel::default()).expect("written");
    // This machine has the files, and believes them.
    let machine = Builder::new();
    assert_eq!(machine.records("stage", 1)[0].snapshot, records[0].snapshot);
    let before = ground.proxy.requests().len();
    let machine = image_by(machine, &ground, &records);
    let blob = machine.sealed(&ours(&records[0])[0]).descriptor.digest.to_string();
    assert!(!sent(&ground.proxy.requests()[before..]).contains(&blob));
}

#[test]
fn what_somebody_has_signed_is_not_told_anew() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let Some(key) = ground::sign_key(&builder.workshop) else { return };
    let records = builder.records("stage", 1);
    let writer = builder.writer(&ground, |options| options.sign = Some(Arc::new(key)));
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    image_of(&ground, &records);
    assert_eq!(encoders(&ground, &records[0]), [Encoder::ZSTD_FASTEST.id()]);
}

#[test]
fn what_the_place_has_otherwise_is_known_once_the_look_is_over() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("stage", 1);
    builder.fill(&ground, &records);
    // Nobody has read the cache: the build ends while the writer looks.
    let warm = Builder { seen: Seen::default(), ..builder };
    write_image(&ground, &warm, &records);
    assert_eq!(encoders(&ground, &records[0]), [Encoder::GZIP.id(), Encoder::ZSTD_FASTEST.id()]);
}

#[test]
fn with_mode_min_only_the_targets_own_chain_goes() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let (own, other) = (builder.records("own", 2), builder.records("other", 2));
    let mut graph = Graph::default();
    let scratch = graph.add(vertex(Op::Source(Source::Scratch), vec![]));
    let first = graph.add(vertex(directory(), vec![scratch]));
    let aside = graph.add(vertex(directory(), vec![scratch]));
    let second = graph.add(vertex(directory(), vec![first, aside]));
    graph.targets.push(ground::target(second));
    let writer = builder.writer(&ground, |options| {
        options.mode = Mode::Min;
        options.chain = OwnChain::of(&graph);
    });
    let settle = |id, snapshot: &oci::Snapshot| writer.take(&Event::Settled(id, Arc::new(snapshot.clone())));
    settle(first, &own[0].snapshot);
    [&own[0], &other[0], &own[1], &other[1]].into_iter().for_each(|record| writer.store(record));
    settle(aside, &other[1].snapshot);
    settle(second, &own[1].snapshot);
    writer.finish(BuildEnd::Made, &[]).expect("written");
    let fresh = Builder::new();
    let found = fresh.read(&ground, "main", &keys(&[own.clone(), other].concat()));
    let hits: BTreeSet<_> = found.into_iter().filter_map(|(key, found)| found.map(|_| key)).collect();
    assert_eq!(hits, keys(&own).into_iter().collect());
}

#[test]
fn a_bundle_keeps_what_this_build_has_not_come_to() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let (old, new) = (builder.records("old", 3), builder.records("new", 1));
    // One that failed may have come to all of it; of one that went well, only what its own results stand on counts.
    for (end, records, kept) in
        [(BuildEnd::Failed, &new[..], 4), (BuildEnd::Made, &old[2..], 3), (BuildEnd::Made, &new[..], 1)]
    {
        builder.fill(&ground, &old);
        let writer = builder.writer(&ground, |options| options.seen = Default::default());
        records.iter().for_each(|record| writer.store(record));
        writer.finish(end, &[]).expect("written");
        assert_eq!(bundle(&*ground.place("app/cache")).records.len(), kept, "{end:?}");
    }
}

fn bundle(place: &dyn Storage) -> Bundle {
    let named = place.get("main", &Cancel::default()).expect("readable").expect("there");
    let Named::Artifact(Artifact { kind: ArtifactKind::Bundle, document, .. }) = named else {
        panic!("{named:?} is no bundle")
    };
    Bundle::decode(&document).expect("a bundle")
}

#[test]
fn what_the_place_has_lost_is_brought_again_or_left_out() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let (records, more) = (builder.records("app", 3), builder.records("more", 1));
    builder.fill(&ground, &records);
    let last = ours(&records[2]).last().copied().expect("its own layer");
    let lose = || {
        let sealed = builder.sealed(&last);
        let path = format!("/v2/app/cache/blobs/{}", sealed.descriptor.digest);
        common::fault::ask(&ground.registry.address, "DELETE", &path).expect("asked");
    };
    // Whoever has the bytes sends them again; whoever has not leaves out what needs them.
    for (bringer, kept) in [(None, 3), (Some(&builder), 4)] {
        lose();
        let fresh = Builder::new();
        let found = fresh.read(&ground, "main", &keys(&records));
        let writing = bringer.unwrap_or(&fresh);
        let (seen, new) = (fresh.seen.clone(), writing.records("more", 1));
        let writer = writing.writer(&ground, |options| options.seen = seen);
        found.into_values().flatten().for_each(|found| writer.store(&found.record));
        new.iter().for_each(|record| writer.store(record));
        writer.finish(BuildEnd::Made, &[]).expect("written");
        assert_eq!(bundle(&*ground.place("app/cache")).records.len(), kept);
        assert_eq!(writing.warnings(), [""; 0]);
        builder.fill(&ground, &[records.clone(), more.clone()].concat());
    }
}

#[test]
fn documents_of_base_images_go_with_the_bundle() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let manifest = builder.keep(br#"{"schemaVersion":2}"#);
    let absent = oci::Sha256Digest::of(b"nowhere");
    let writer = builder.writer(&ground, |_| ());
    builder.records("app", 1).iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[manifest, absent]).expect("written");
    let documents: BTreeMap<_, _> = bundle(&*ground.place("app/cache")).documents;
    assert_eq!(documents, [(manifest, br#"{"schemaVersion":2}"#.to_vec())].into());
}

#[test]
fn a_layer_that_cannot_be_had_here_costs_what_stands_on_it() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let (good, bad) = (builder.records("good", 1), builder.records("bad", 2));
    std::fs::remove_dir_all(builder.workshop.files_of(&bad[0].snapshot).parent().expect("a directory"))
        .expect("removed");
    let writer = builder.writer(&ground, |_| ());
    bad.iter().chain(&good).for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("a warning at most");
    let found = Builder::new().read(&ground, "main", &keys(&[good.clone(), bad].concat()));
    assert_eq!(found.values().flatten().count(), 2, "both keys of the good one");
    let warnings = builder.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("2 steps are not in the cache "), "{warnings:?}");
}

#[test]
fn the_unsigned_is_written_anew_by_who_signs() {
    let Some(ground) = Ground::start() else { return };
    let builder = Builder::new();
    let records = builder.records("app", 2);
    let Some(key) = ground::sign_key(&builder.workshop) else { return };
    let trusted: TrustKeys = SignKey::trusted(&key);
    builder.fill(&ground, &records);
    let place = ground.place("app/cache");
    let hits = |trust| Builder::new().read_trusting(&place, "main", &keys(&records), trust);
    assert_eq!(hits(trusted.clone()).values().flatten().count(), 0);
    let key = Arc::new(key);
    let writer = builder.writer(&ground, |options| options.sign = Some(key));
    records.iter().for_each(|record| writer.store(record));
    writer.finish(BuildEnd::Made, &[]).expect("written");
    assert_eq!(hits(trusted).values().flatten().count(), 4);
}

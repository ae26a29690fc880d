//! What the tests of writing a cache share: a registry behind a proxy, and builders with stores of their own.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex},
};

use exporter::{
    Encoder, TimePolicy,
    cache::{
        BuildEnd, Mode, OnError, OwnChain, Reading, RegistryStorage, RemoteCache, Seen, SignKey, Storage,
        TrustKeys, Writer, WriterOptions,
    },
};
use oci::{
    ImageConfig, Layer, Sha256Digest, Snapshot, TreeDigest,
    fetch::Fetcher,
    registry::{Registry, RegistryOptions},
    store::sealed::{self, SealedRecord},
};
use solver::{Cancel, DistantCache, Event, Found, Key, Made, Maker, Record, RecordWriter, Target, VertexId};

use super::{
    common::{
        self, DockerRegistry,
        fault::{Reply, Request, Server},
    },
    support::{Described, Workshop, graph::platform},
};

/// A registry and a proxy before it.
pub struct Ground {
    pub registry: DockerRegistry,
    pub proxy: Server,
}

impl Ground {
    pub fn start() -> Option<Self> {
        Self::with(|_| Reply::Forward)
    }

    pub fn with(rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Option<Self> {
        let registry = DockerRegistry::start()?;
        let proxy = Server::before(&registry.address, rule);
        Some(Self { registry, proxy })
    }

    /// A repository, through the proxy.
    pub fn place(&self, repository: &str) -> Arc<dyn Storage> {
        place(&self.proxy.address, repository)
    }
}

pub fn place(host: &str, repository: &str) -> Arc<dyn Storage> {
    // Of a client that is as patient as a build's: the machine may be busy.
    let client = Registry::new(RegistryOptions::default()).expect("a client");
    Arc::new(RegistryStorage::new(&client, &common::reference(host, repository)))
}

/// A machine with a store of its own.
pub struct Builder {
    pub workshop: Workshop,
    pub fetcher: Fetcher,
    pub seen: Seen,
}

impl Builder {
    pub fn new() -> Self {
        let workshop = Workshop::new();
        let fetcher = workshop.fetcher.clone();
        Self { workshop, fetcher, seen: Seen::default() }
    }

    /// The records of so many steps, one on top of the other, whose layers are in the store.
    pub fn records(&self, name: &str, steps: usize) -> Vec<Record> {
        let mut snapshot = Snapshot::default();
        let step = |number: usize| {
            let file = format!("file {name}{number} 0644 0:0 epoch {{300*{name}{number}}}");
            let parent = snapshot.digest();
            snapshot = self.workshop.step(&snapshot, &Described::parse(&file));
            let digest =
                |kind: &str| TreeDigest::from(blake3::hash(format!("{kind} {name} {number}").as_bytes()));
            let by = Maker { builder: "layerwright 0".into(), host: "here".into(), build: "1".into(), at: 1 };
            Record {
                definition: digest("definition"),
                content: digest("content"),
                parent,
                snapshot: snapshot.clone(),
                pre_image: [("files **".to_owned(), digest("files").to_string())].into(),
                made: Made { by, took_ms: 3 },
            }
        };
        (0..steps).map(step).collect()
    }

    pub fn writer(&self, ground: &Ground, adjust: impl FnOnce(&mut WriterOptions)) -> Writer {
        self.writer_to(ground.place("app/cache"), adjust)
    }

    pub fn writer_to(&self, storage: Arc<dyn Storage>, adjust: impl FnOnce(&mut WriterOptions)) -> Writer {
        let events = self.workshop.events.clone();
        let list = solver::explain::Inventory::default();
        let mut options = WriterOptions {
            storage,
            mode: Mode::Max,
            bundle: "main".to_owned(),
            reader: None,
            on_error: OnError::Warn,
            sign: None,
            chain: OwnChain::default(),
            sealer: Arc::new(self.workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2)),
            aside: Arc::new(self.workshop.sealer(Encoder::ZSTD_FASTEST, TimePolicy::Default, 2)),
            landings: None,
            seen: self.seen.clone(),
            fetcher: self.fetcher.clone(),
            inventories: Arc::new(move |_| Some(list.clone())),
            events: Arc::new(move |event| events.lock().expect("no panic").push(event)),
            cancel: Cancel::clone(&self.workshop.cancel),
        };
        adjust(&mut options);
        Writer::new(options)
    }

    /// Writes records, and nothing is wrong with that.
    pub fn fill(&self, ground: &Ground, records: &[Record]) {
        let writer = self.writer(ground, |options| options.seen = Seen::default());
        records.iter().for_each(|record| writer.store(record));
        writer.finish(BuildEnd::Made, &[]).expect("written");
        assert_eq!(self.warnings(), [""; 0]);
    }

    /// What a cache answers for keys; what is read is noted.
    pub fn read(&self, ground: &Ground, bundle: &str, keys: &[Key]) -> BTreeMap<Key, Option<Found>> {
        self.read_from(ground.place("app/cache"), bundle, keys)
    }

    pub fn read_from(
        &self,
        storage: Arc<dyn Storage>,
        bundle: &str,
        keys: &[Key],
    ) -> BTreeMap<Key, Option<Found>> {
        self.read_trusting(&storage, bundle, keys, TrustKeys::default())
    }

    pub fn read_trusting(
        &self,
        storage: &Arc<dyn Storage>,
        bundle: &str,
        keys: &[Key],
        trust: TrustKeys,
    ) -> BTreeMap<Key, Option<Found>> {
        let events = self.workshop.events.clone();
        let reading = Reading {
            storage: Arc::clone(storage),
            trust,
            layers: self.fetcher.elsewhere().clone(),
            seen: self.seen.clone(),
            events: Arc::new(move |event| events.lock().expect("no panic").push(event)),
            cancel: Cancel::default(),
        };
        let told = Mutex::new(BTreeMap::new());
        RemoteCache::new(reading, Some(bundle.to_owned())).lookup(keys, &Cancel::default(), &|answers| {
            told.lock().expect("no panic").extend(answers);
        });
        told.into_inner().expect("no panic")
    }

    /// What people were told.
    pub fn warnings(&self) -> Vec<String> {
        let events = self.workshop.events.lock().expect("no panic");
        let text = |event: &Event| match event {
            Event::Warning(text) => Some(text.clone()),
            _ => None,
        };
        events.iter().filter_map(text).collect()
    }

    /// The blob that the store has of a layer.
    pub fn sealed(&self, tree: &TreeDigest) -> SealedRecord {
        sealed::all(&self.workshop.store, tree).pop().expect("it was sealed").1
    }

    /// Puts a blob into the store.
    pub fn keep(&self, bytes: &[u8]) -> Sha256Digest {
        let mut blob = self.workshop.store.blob_writer().expect("a blob");
        blob.write_all(bytes).expect("written");
        blob.commit().expect("stored").0
    }
}

/// Both keys of each record.
pub fn keys(records: &[Record]) -> Vec<Key> {
    let both = |record: &Record| [Key::Definition(record.definition), Key::Content(record.content)];
    records.iter().flat_map(both).collect()
}

/// The built layers of a record.
pub fn ours(record: &Record) -> Vec<TreeDigest> {
    record.snapshot.layers.iter().map(Layer::tree).collect()
}

pub fn lines(requests: &[Request]) -> Vec<String> {
    requests.iter().map(Request::line).collect()
}

/// A key of a workshop's own; says loudly where none can be made.
pub fn sign_key(workshop: &Workshop) -> Option<SignKey> {
    let path = workshop.path("key");
    let mut openssl = std::process::Command::new("openssl");
    let made = openssl.args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&path).output();
    if !made.is_ok_and(|output| output.status.success()) {
        common::skip("openssl is not installed");
        return None;
    }
    Some(SignKey::read(&path).expect("a key"))
}

pub fn target(vertex: VertexId) -> Target {
    let config = ImageConfig::empty(&platform());
    Target { platform: platform(), vertex, config, base_layers: 0, history: Vec::new() }
}

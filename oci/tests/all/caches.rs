//! Layers of a remote cache in a registry that fails: what is tried again, what is lost, and when the whole cache is.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use oci::{
    BlobOrigin, Descriptor, Entry, EntryKind, MediaType, Metadata, RemoteLayer, RemoteLayers, Sha256Digest,
    Tree,
    elsewhere::{
        GivenUp,
        bring::{self, BringError},
    },
    fetch::Fetcher,
    packed::{TREE_MEDIA_TYPE, pack},
    store::Store,
};

use crate::common::{
    client,
    fault::{Reply, Request, Server, status},
    noise, reference,
};

/// A machine with an empty store, and a registry with the layers of a cache.
struct Ground {
    _root: tempfile::TempDir,
    fetcher: Fetcher,
    layers: Vec<RemoteLayer>,
    /// What was given up, and why.
    told: Arc<Mutex<Vec<GivenUp>>>,
    server: Server,
}

/// A layer with its two blobs.
fn layer(number: u8, blobs: &mut BTreeMap<Sha256Digest, Vec<u8>>) -> RemoteLayer {
    let mut put = |media_type, bytes: Vec<u8>| {
        let blob = Descriptor::of(media_type, &bytes);
        blobs.insert(blob.digest, bytes);
        blob
    };
    let path = vec![b'a' + number];
    let entry = Entry { path, kind: EntryKind::Directory, metadata: Metadata::default() };
    let tree = Tree::new(vec![entry]).expect("one entry");
    let tar = [noise(100_000), vec![number]].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("in memory");
    RemoteLayer {
        tree: tree.digest(),
        diff_id: Sha256Digest::of(&tar).into(),
        blobs: [("gzip".to_owned(), put(MediaType::OciLayerGzip, gzip.finish().expect("in memory")))].into(),
        tree_blob: put(MediaType::Other(TREE_MEDIA_TYPE.to_owned()), pack(&tree.to_bytes())),
        origin: BlobOrigin::OciLayout("".into()),
    }
}

impl Ground {
    /// With three layers, of whose first the blob is answered for by `fault`: the first so many times.
    fn failing(times: usize, fault: fn(Reply) -> Reply) -> Self {
        let count = AtomicUsize::new(0);
        Self::new(3, move |request, layers, right| {
            let is_bad = is_for(request, &layers[0]) && count.fetch_add(1, Ordering::SeqCst) < times;
            if is_bad { fault(right) } else { right }
        })
    }

    /// With so many layers. `bend` gets every request with the answer that is right.
    fn new(
        count: u8,
        bend: impl Fn(&Request, &[RemoteLayer], Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let mut blobs = BTreeMap::new();
        let mut layers: Vec<_> = (0..count).map(|number| layer(number, &mut blobs)).collect();
        let known = layers.clone();
        let server = Server::start(move |request| {
            let named = request.path.rsplit_once("/blobs/").and_then(|(_, digest)| digest.parse().ok());
            let right = match named.and_then(|digest: Sha256Digest| blobs.get(&digest)) {
                Some(bytes) => status(200, &[], bytes),
                None if request.path == "/v2/" => return status(200, &[], ""),
                None => status(404, &[], ""),
            };
            bend(request, &known, right)
        });
        let root = tempfile::tempdir().expect("made");
        let store = Arc::new(Store::open(root.path()).expect("a store"));
        let told = Arc::<Mutex<Vec<GivenUp>>>::default();
        let sink = Arc::clone(&told);
        let elsewhere = RemoteLayers::telling(move |given_up| {
            sink.lock().expect("no test panics in it").push(given_up);
        });
        let fetcher = Fetcher::new(store, client(vec![])).with_elsewhere(elsewhere);
        for layer in &mut layers {
            layer.origin = BlobOrigin::Registry(reference(&server.address, "cache"));
            fetcher.elsewhere().note(layer.clone());
        }
        Self { _root: root, fetcher, layers, told, server }
    }

    /// Brings a layer whole.
    fn bring(&self, fetcher: &Fetcher, number: usize) -> Result<(), BringError> {
        let tree = &self.layers[number].tree;
        assert!(bring::tree(fetcher, tree)?, "it is known");
        bring::blob(fetcher, tree, None, &|_| Ok(())).map(drop)
    }

    /// How often a layer's blob was asked for.
    fn asked(&self, number: usize) -> usize {
        self.server.requests().iter().filter(|request| is_for(request, &self.layers[number])).count()
    }

    fn lost(&self) -> Vec<bool> {
        self.layers.iter().map(|layer| self.fetcher.elsewhere().is_lost(&layer.tree)).collect()
    }
}

/// Whether a request is for the blob of a layer.
fn is_for(request: &Request, layer: &RemoteLayer) -> bool {
    request.path.ends_with(&layer.blobs["gzip"].digest.to_string())
}

#[test]
fn who_is_stopped_while_a_layer_comes_has_lost_nothing() {
    type Bend = fn(Reply) -> Reply;
    let bends: [Bend; 2] = [|_| Reply::Stall, |right| Reply::Trickle(1 << 20, Box::new(right))];
    for bend in bends {
        let (is_asked, is_over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (told, over) = (Arc::clone(&is_asked), Arc::clone(&is_over));
        let ground = Ground::new(1, move |request, layers, right| {
            if !is_for(request, &layers[0]) || over.load(Ordering::SeqCst) {
                return right;
            }
            told.store(true, Ordering::SeqCst);
            bend(right)
        });
        let stopped = ground.fetcher.until(move || is_asked.load(Ordering::SeqCst));
        let outcome = ground.bring(&stopped, 0);
        assert!(matches!(outcome, Err(BringError::Cancelled)), "{outcome:?}");
        assert_eq!(ground.lost(), [false]);
        is_over.store(true, Ordering::SeqCst);
        ground.bring(&ground.fetcher, 0).expect("somebody else gets it");
    }
}

/// What a blob is answered for instead, and what that is called.
type Fault = (&'static str, fn(Reply) -> Reply);

const PASSING: [Fault; 6] = [
    ("500", |_| status(500, &[], "")),
    ("503", |_| status(503, &[], "")),
    ("503 with a pause", |_| status(503, &[("Retry-After", "0")], "")),
    ("429", |_| status(429, &[], "")),
    ("no answer", |right| Reply::Lose(Box::new(right))),
    ("cut", |right| Reply::Cut(1000, Box::new(right))),
];

#[test]
fn a_fault_that_passes_costs_nothing() {
    for (name, fault) in PASSING {
        for times in [1, 2] {
            let ground = Ground::failing(times, fault);
            for number in 0..3 {
                ground.bring(&ground.fetcher, number).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            assert_eq!((ground.lost(), ground.asked(0)), (vec![false; 3], 1 + times), "{name}");
        }
    }
}

#[test]
fn a_fault_of_one_blob_that_lasts_loses_its_layer_and_no_other() {
    let further: [Fault; 4] = [
        ("404", |_| status(404, &[], "")),
        ("damaged", |_| status(200, &[], noise(105_000))),
        ("ends early", |right| Reply::End(1000, Box::new(right))),
        ("silence", |_| Reply::Stall),
    ];
    for (name, fault) in PASSING.into_iter().chain(further).filter(|(name, _)| !name.contains("pause")) {
        let ground = Ground::failing(usize::MAX, fault);
        let failed = ground.bring(&ground.fetcher, 0).expect_err(name);
        assert!(matches!(failed, BringError::Lost { .. }), "{name}: {failed:?}");
        for number in [1, 2] {
            ground.bring(&ground.fetcher, number).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(ground.lost(), [true, false, false], "{name}");
        assert_eq!(ground.told.lock().expect("no test panics in it").len(), 0, "{name}");
        assert!(ground.asked(0) <= 8, "{name}: {}", ground.asked(0));
    }
}

#[test]
fn a_cache_in_which_several_things_in_a_row_fail_is_given_up_and_told_of_once() {
    let ground = Ground::new(6, |request, layers, right| {
        // One that comes is no end of it, since more fail after it.
        let is_good = layers[2..3].iter().any(|layer| is_for(request, layer));
        let is_blob = layers.iter().any(|layer| is_for(request, layer));
        if is_blob && !is_good { status(500, &[], "") } else { right }
    });
    for layer in &ground.layers {
        bring::tree(&ground.fetcher, &layer.tree).expect("a tree");
    }
    let bring = |number: usize| bring::blob(&ground.fetcher, &ground.layers[number].tree, None, &|_| Ok(()));
    for number in [0, 1] {
        bring(number).expect_err("it fails");
    }
    assert_eq!(ground.lost(), [true, true, false, false, false, false]);
    bring(2).expect("it is good").expect("it is known");
    for number in [3, 4] {
        bring(number).expect_err("it fails");
    }
    assert_eq!(ground.lost(), [true, true, false, true, true, false]);
    bring::blob(&ground.fetcher, &ground.layers[5].tree, None, &|_| Ok(())).expect_err("it fails");
    assert_eq!(ground.lost(), [true; 6]);
    let told = ground.told.lock().expect("no test panics in it").clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].why.contains("answered 500"), "{}", told[0].why);
}

#[test]
fn a_cache_that_may_not_be_read_is_given_up_at_once() {
    let ground = Ground::failing(usize::MAX, |_| status(403, &[], ""));
    ground.bring(&ground.fetcher, 0).expect_err("it is refused");
    assert_eq!(ground.lost(), [true; 3]);
    assert_eq!(ground.told.lock().expect("no test panics in it").len(), 1);
}

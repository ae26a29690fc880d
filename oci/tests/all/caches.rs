//! Layers of a remote cache in a registry that fails: what is tried again, what is lost, and when the whole cache is.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use oci::{
    BlobOrigin, Descriptor, Entry, EntryKind, MediaType, Metadata, RemoteLayer, Sha256Digest, Tree,
    elsewhere::bring::{self, BringError},
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
    _server: Server,
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
        let fetcher = Fetcher::new(store, client(vec![]));
        for layer in &mut layers {
            layer.origin = BlobOrigin::Registry(reference(&server.address, "cache"));
            fetcher.elsewhere().note(layer.clone());
        }
        Self { _root: root, fetcher, layers, _server: server }
    }

    /// Brings a layer whole.
    fn bring(&self, fetcher: &Fetcher, number: usize) -> Result<(), BringError> {
        let tree = &self.layers[number].tree;
        assert!(bring::tree(fetcher, tree)?, "it is known");
        bring::blob(fetcher, tree, None, &|_| Ok(())).map(drop)
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

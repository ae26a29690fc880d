//! Layers that only a remote cache has, here a directory: sealed by what lies there, or brought where other bytes are wanted.

use std::{fs, path::Path};

use exporter::{Encoder, SealError, SealedLayer, TimePolicy};
use oci::{
    BlobOrigin, Descriptor, Layer, MediaType, RemoteLayer, Snapshot,
    packed::{TREE_MEDIA_TYPE, pack},
    store::sealed,
};

use crate::support::{Described, Workshop};

const ENCODERS: [Encoder; 3] = [Encoder::GZIP, Encoder::ZSTD, Encoder::Uncompressed];

fn described() -> Described {
    Described::parse(
        "dir d 0750 5:6 1000\nopaque d\nfile d/f 0644 0:0 content {9000*text}\nxattr user.a b\n\
         file d/s 4755 0:7 1234 x\nhardlink e 0644 0:0 content d/f\nsymlink l 0777 0:0 epoch d/f\nwhiteout w",
    )
}

/// Makes a layer, and puts blobs of it into a cache: one by each of these encoders.
fn cached(cache: &Path, described: &Described, encoders: &[Encoder]) -> RemoteLayer {
    let maker = Workshop::new();
    let snapshot = maker.step(&Snapshot::default(), described);
    let blobs = cache.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    let put = |media_type, bytes: &[u8]| {
        let blob = Descriptor::of(media_type, bytes);
        fs::write(blobs.join(blob.digest.hex()), bytes).expect("written");
        blob
    };
    let mut layer = RemoteLayer {
        tree: described.tree.digest(),
        diff_id: oci::Sha256Digest::of(&described.tar(TimePolicy::Default)).into(),
        blobs: Default::default(),
        tree_blob: put(MediaType::Other(TREE_MEDIA_TYPE.to_owned()), &pack(&described.tree.to_bytes())),
        origin: BlobOrigin::OciLayout(cache.to_owned()),
    };
    for encoder in encoders {
        let sealed = seal(&maker, *encoder, TimePolicy::Default, &snapshot).expect("sealed");
        let bytes = fs::read(maker.store.blob_path(&sealed.descriptor.digest)).expect("there");
        layer.blobs.insert(encoder.id(), put(sealed.descriptor.media_type, &bytes));
    }
    layer
}

fn seal(
    workshop: &Workshop,
    encoder: Encoder,
    times: TimePolicy,
    snapshot: &Snapshot,
) -> Result<SealedLayer, std::sync::Arc<SealError>> {
    let mut layers = workshop.sealer(encoder, times, 2).seal(snapshot)?;
    assert_eq!(layers.len(), 1);
    Ok(layers.remove(0))
}

fn on_scratch(layer: &RemoteLayer) -> Snapshot {
    Snapshot::default().with(Layer::Built(layer.tree))
}

fn count(workshop: &Workshop, area: &str) -> usize {
    fs::read_dir(workshop.store.area(area)).expect("listed").count()
}

#[test]
fn what_lies_in_a_cache_as_it_is_wanted_is_not_brought() {
    let cache = tempfile::tempdir().expect("made");
    let layer = cached(cache.path(), &described(), &ENCODERS);
    for encoder in ENCODERS {
        let workshop = Workshop::new();
        workshop.fetcher.elsewhere().note(layer.clone());
        let sealed = seal(&workshop, encoder, TimePolicy::Default, &on_scratch(&layer)).expect("sealed");
        assert_eq!(sealed.descriptor, layer.blobs[&encoder.id()]);
        assert_eq!((sealed.diff_id, sealed.origin), (layer.diff_id, Some(layer.origin.clone())));
        assert_eq!((count(&workshop, "blobs/sha256"), count(&workshop, "trees")), (0, 0));
    }
}

#[test]
fn another_encoder_and_other_times_bring_it_and_give_the_bytes_of_whoever_made_it() {
    let (described, epoch) = (described(), TimePolicy::Epoch(1_700_000_000));
    let maker = Workshop::new();
    let made = maker.step(&Snapshot::default(), &described);
    for (has, wants, times) in [
        (Encoder::GZIP, Encoder::ZSTD, TimePolicy::Default),
        (Encoder::ZSTD, Encoder::Uncompressed, TimePolicy::Default),
        (Encoder::Uncompressed, Encoder::GZIP, TimePolicy::Default),
        (Encoder::GZIP, Encoder::GZIP, epoch),
        (Encoder::ZSTD, Encoder::GZIP, epoch),
    ] {
        let cache = tempfile::tempdir().expect("made");
        let layer = cached(cache.path(), &described, &[has]);
        let workshop = Workshop::new();
        workshop.fetcher.elsewhere().note(layer.clone());
        let sealed = seal(&workshop, wants, times, &on_scratch(&layer)).expect("sealed");
        let own = seal(&maker, wants, times, &made).expect("sealed");
        assert_eq!(sealed, own, "{has:?} to {wants:?}");
        let bytes =
            |workshop: &Workshop| fs::read(workshop.store.blob_path(&own.descriptor.digest)).expect("there");
        assert!(bytes(&workshop) == bytes(&maker));
        // What was brought is local: nothing is asked of the cache any more.
        fs::remove_dir_all(cache.path()).expect("ours");
        let sealed =
            seal(&workshop, Encoder::ZSTD, TimePolicy::Default, &on_scratch(&layer)).expect("sealed");
        let own = seal(&maker, Encoder::ZSTD, TimePolicy::Default, &made).expect("sealed");
        assert_eq!(sealed.descriptor, own.descriptor);
    }
}

#[test]
fn what_is_here_is_believed_before_a_cache() {
    let cache = tempfile::tempdir().expect("made");
    let mut layer = cached(cache.path(), &described(), &[Encoder::GZIP]);
    layer.diff_id = oci::Sha256Digest::of(b"wrong").into();
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &described());
    workshop.fetcher.elsewhere().note(layer.clone());
    let sealed = seal(&workshop, Encoder::GZIP, TimePolicy::Default, &snapshot).expect("sealed");
    assert_ne!(sealed.diff_id, layer.diff_id);
    // The blob turns out to be the one that the cache has: from there it can be mounted.
    assert_eq!(sealed.descriptor, layer.blobs[&Encoder::GZIP.id()]);
    let sealed = seal(&workshop, Encoder::GZIP, TimePolicy::Default, &snapshot).expect("sealed");
    assert_ne!(sealed.diff_id, layer.diff_id);
    assert_eq!(sealed.origin, Some(layer.origin));
}

#[test]
fn what_is_wrong_in_a_cache_is_lost_and_leaves_nothing_that_is_believed() {
    let other = Described::parse("file d/f 0644 0:0 content another");
    let cache = tempfile::tempdir().expect("made");
    let good = cached(cache.path(), &described(), &[Encoder::GZIP]);
    let foreign = cached(cache.path(), &other, &[Encoder::GZIP]);
    type Change = fn(&mut RemoteLayer, &RemoteLayer);
    let changes: [Change; 4] = [
        |layer, other| layer.diff_id = other.diff_id,
        |layer, other| layer.blobs.clone_from(&other.blobs),
        |layer, other| layer.tree_blob.clone_from(&other.tree_blob),
        // Another layer's blob, with all that belongs to it: only its files tell.
        |layer, other| (layer.diff_id, layer.blobs) = (other.diff_id, other.blobs.clone()),
    ];
    for change in changes {
        let mut layer = good.clone();
        change(&mut layer, &foreign);
        let workshop = Workshop::new();
        workshop.fetcher.elsewhere().note(layer.clone());
        let failed = seal(&workshop, Encoder::ZSTD, TimePolicy::Default, &on_scratch(&layer));
        let failed = failed.expect_err("it is not that layer");
        assert!(matches!(*failed, SealError::Elsewhere(_) | SealError::Gone { .. }), "{failed}");
        assert!(workshop.fetcher.elsewhere().is_lost(&layer.tree), "{failed}");
        assert!(!sealed::is_held(&workshop.store, &layer.tree), "{failed}");
    }
}

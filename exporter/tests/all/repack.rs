//! Layers of base images that are packed anew: `force-compression=true`.

use std::{
    fs,
    io::Write,
    sync::{Arc, Mutex},
};

use exporter::{Encoder, SealError, SealedLayer, TimePolicy};
use oci::{BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, MediaType, Sha256Digest, Snapshot};

use crate::support::{Described, Workshop, unpacked};

/// A tar of several chunks.
fn tar() -> Vec<u8> {
    Described::parse("file large 0644 0:0 epoch {300000*numbers-and-words-}\nfile small 0644 0:0 epoch x")
        .tar(TimePolicy::Default)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

/// A place with an OCI layout.
struct Place {
    workshop: Workshop,
}

impl Place {
    fn new() -> Self {
        let workshop = Workshop::new();
        fs::create_dir_all(workshop.path("layout/blobs/sha256")).expect("made");
        Self { workshop }
    }

    /// A base image with one layer, whose blob the layout has.
    fn base(&self, media_type: &str, blob: &[u8], tar: &[u8]) -> Snapshot {
        let descriptor = Descriptor::of(MediaType::from(media_type.to_owned()), blob);
        let layout = self.workshop.path("layout");
        fs::write(layout.join("blobs/sha256").join(descriptor.digest.hex()), blob).expect("written");
        let (diff_id, origin) = (Sha256Digest::of(tar).into(), BlobOrigin::OciLayout(layout));
        Snapshot { layers: vec![Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin }))] }
    }

    fn seal(&self, encoder: Encoder, base: &Snapshot) -> Result<SealedLayer, Arc<SealError>> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let on_sealed = move |layer: &SealedLayer| telling.lock().expect("no panic").push(layer.clone());
        let mut sealed = self.workshop.repacker(encoder, Arc::new(on_sealed)).seal(base)?;
        assert_eq!(*told.lock().expect("no panic"), sealed, "each is told of once");
        assert_eq!(sealed.len(), 1);
        Ok(sealed.remove(0))
    }

    fn blob(&self, sealed: &SealedLayer) -> Vec<u8> {
        fs::read(self.workshop.store.blob_path(&sealed.descriptor.digest)).expect("a blob")
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.workshop.store.area("blobs/sha256")).expect("an area").count()
    }
}

const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

#[test]
fn a_layer_in_another_format_becomes_what_our_encoder_makes_of_its_tar() {
    let tar = tar();
    let zstd = zstd::encode_all(&*tar, 1).expect("in memory");
    for (media_type, blob) in [(GZIP, gzip(&tar)), (ZSTD, zstd), (TAR, tar.clone())] {
        for encoder in [Encoder::GZIP, Encoder::ZSTD, Encoder::Uncompressed] {
            let place = Place::new();
            let base = place.base(media_type, &blob, &tar);
            let sealed = place.seal(encoder, &base).expect("sealed");
            assert_eq!(sealed.diff_id, DiffId::from(Sha256Digest::of(&tar)));
            if MediaType::from(media_type.to_owned()).to_oci() == encoder.media_type() {
                assert_eq!(sealed.descriptor.digest, Sha256Digest::of(&blob));
                assert!(sealed.origin.is_some() && place.blobs() == 0, "nothing is to be done");
                continue;
            }
            let bytes = place.blob(&sealed);
            assert_eq!(sealed.descriptor, Descriptor::of(encoder.media_type(), &bytes));
            assert!(unpacked(&encoder.media_type(), &bytes) == tar && sealed.origin.is_none());
        }
    }
}

#[test]
fn it_is_done_once_and_whatever_the_old_blob_was() {
    let (place, tar) = (Place::new(), tar());
    let base = place.base(GZIP, &gzip(&tar), &tar);
    let first = place.seal(Encoder::ZSTD, &base).expect("sealed");
    fs::remove_dir_all(place.workshop.path("layout/blobs")).expect("ours");
    assert_eq!(place.seal(Encoder::ZSTD, &base).expect("remembered"), first);
    fs::remove_file(place.workshop.store.blob_path(&first.descriptor.digest)).expect("ours");
    assert!(matches!(&*place.seal(Encoder::ZSTD, &base).expect_err("gone"), SealError::Base { .. }));
    fs::create_dir_all(place.workshop.path("layout/blobs/sha256")).expect("made");
    let again = place.base(TAR, &tar, &tar);
    assert_eq!(place.seal(Encoder::ZSTD, &again).expect("sealed"), first);
}

#[test]
fn what_is_not_the_layer_is_named_and_leaves_nothing() {
    let (place, tar) = (Place::new(), tar());
    let whole = gzip(&tar);
    let other = place.base(GZIP, &whole, b"another tar");
    let failed = place.seal(Encoder::ZSTD, &other).expect_err("another diff ID");
    assert!(
        matches!(&*failed, SealError::DiffId { found, .. } if *found == Sha256Digest::of(&tar).into()),
        "{failed}"
    );
    for blob in [&whole[..whole.len() / 2], b"\x1f\x8bnonsense", b"\x28\xb5\x2f\xfdnonsense"] {
        let failed = place.seal(Encoder::ZSTD, &place.base(GZIP, blob, &tar)).expect_err("damaged");
        assert!(
            matches!(&*failed, SealError::Base { digest, .. } if *digest == Sha256Digest::of(blob)),
            "{failed}"
        );
    }
    let foreign = place.base("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &whole, &tar);
    assert!(matches!(&*place.seal(Encoder::ZSTD, &foreign).expect_err("foreign"), SealError::MediaType(_)));
    assert_eq!(place.blobs(), 0);
}

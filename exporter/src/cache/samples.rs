//! Records for tests: the one that docs/remote-cache.md shows, and those of whole builds.

use std::{collections::BTreeMap, path::PathBuf};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, MediaType, Sha256Digest, Snapshot, Tree, TreeDigest,
    packed::{INVENTORY_MEDIA_TYPE, TREE_MEDIA_TYPE},
};
use solver::{Made, Maker, Record};

use super::{Described, RemoteRecord};

pub(super) fn origin() -> BlobOrigin {
    BlobOrigin::OciLayout(PathBuf::from("cache"))
}

pub(super) fn digest(text: &str) -> TreeDigest {
    blake3::hash(text.as_bytes()).into()
}

pub(super) fn blob(media_type: &str, text: &str, size: u64) -> Descriptor {
    Descriptor::new(media_type.to_owned().into(), Sha256Digest::of(text.as_bytes()), size)
}

fn gzip(text: &str, size: u64) -> Descriptor {
    blob(MediaType::OciLayerGzip.as_str(), text, size)
}

fn described(name: &str) -> Described {
    let encoder = crate::Encoder::GZIP.id();
    Described {
        diff_id: DiffId::from(Sha256Digest::of(format!("{name} tar").as_bytes())),
        blobs: [(encoder, gzip(name, 4096))].into(),
        tree_blob: blob(TREE_MEDIA_TYPE, &format!("{name} tree"), 310),
    }
}

/// A base image's layer.
pub(super) fn base() -> Layer {
    let (diff_id, descriptor) = (DiffId::from(Sha256Digest::of(b"base tar")), gzip("base", 48_000_000));
    Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin: origin() }))
}

/// `FROM base`, `WORKDIR /src` in a directory that was there, `COPY . .`: the record of the last.
pub(super) fn copy() -> RemoteRecord {
    let below = Snapshot { layers: vec![base(), Layer::Built(Tree::empty_digest())] };
    let files = digest("files");
    let pre_image = [
        ("op", "copy".to_owned()),
        ("destination", "/src/".to_owned()),
        ("files **", files.to_string()),
        ("parent", below.digest().to_string()),
        ("~instruction", "COPY . .".to_owned()),
        ("~label", "[3/3] COPY . .".to_owned()),
    ];
    let made = Made {
        by: Maker {
            builder: "layerwright 0.1.0".to_owned(),
            host: "runner-1".to_owned(),
            build: "20261121-201925-0001".to_owned(),
            at: 1_795_292_365,
        },
        took_ms: 12,
    };
    RemoteRecord {
        record: Record {
            definition: digest("definition"),
            content: digest("content"),
            parent: below.digest(),
            snapshot: below.with(Layer::Built(digest("copied"))),
            pre_image: pre_image.map(|(name, value)| (name.to_owned(), value)).into(),
            made,
        },
        layers: [(digest("copied"), described("copied"))].into(),
        inventories: [(files, blob(INVENTORY_MEDIA_TYPE, "files", 900))].into(),
    }
}

/// The records of a build of so many steps on a base of five layers, the lowest first: RUNs as people write them, with a
/// dozen variables.
pub(super) fn build(steps: usize) -> Vec<RemoteRecord> {
    let layer = |number: usize| {
        let text = format!("base {number}");
        let diff_id = DiffId::from(Sha256Digest::of(format!("{text} tar").as_bytes()));
        let descriptor = gzip(&text, 1_000_000);
        Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin: origin() }))
    };
    let mut snapshot = Snapshot { layers: (0..5).map(layer).collect() };
    let mut layers = BTreeMap::new();
    let mut records = Vec::new();
    for step in 0..steps {
        let parent = snapshot.digest();
        let tree = digest(&format!("layer {step}"));
        snapshot = snapshot.with(Layer::Built(tree));
        layers.insert(tree, described(&format!("layer {step}")));
        let record = Record {
            definition: digest(&format!("definition {step}")),
            content: digest(&format!("content {step}")),
            parent,
            snapshot: snapshot.clone(),
            pre_image: run(step, &parent),
            made: copy().record.made,
        };
        records.push(RemoteRecord { record, layers: layers.clone(), inventories: BTreeMap::new() });
    }
    records
}

fn run(step: usize, parent: &TreeDigest) -> BTreeMap<String, String> {
    let command =
        format!("make -C component-{step} install PREFIX=/usr/local && rm -rf component-{step}/build");
    let variables =
        (0..12).map(|number| (format!("env VARIABLE_{number}"), format!("/usr/lib/value-{number}")));
    let fields = [
        ("op", "run".to_owned()),
        ("args", format!("[\"/bin/sh\",\"-c\",\"{command}\"]")),
        ("platform", "linux/amd64".to_owned()),
        ("order of variables", (0..12).map(|number| format!("VARIABLE_{number} ")).collect()),
        ("user", "0".to_owned()),
        ("workdir", "/src".to_owned()),
        ("network", "default".to_owned()),
        ("security", "sandbox".to_owned()),
        ("timestamps", "normal".to_owned()),
        ("parent", parent.to_string()),
        ("~instruction", format!("RUN {command}")),
        ("~label", format!("[build {}/21] RUN {command}", step + 2)),
        ("~input 0", format!("[build {}/21] RUN make -C component-{}", step + 1, step.saturating_sub(1))),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(variables).collect()
}

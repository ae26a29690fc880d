use std::collections::BTreeMap;

use super::*;
use crate::{config::History, manifest::Index};

/// A layout being made; every part can be bent before it is written.
struct Bench {
    directory: tempfile::TempDir,
    layers: Vec<(MediaType, &'static [u8])>,
    config: ImageConfig,
    index_platform: &'static str,
}

impl Bench {
    fn new() -> Self {
        let mut config = ImageConfig::empty(&Platform::new("linux", "amd64", None));
        config.rootfs.diff_ids = vec![Sha256Digest::of(b"tar").into()];
        let step = |empty_layer| History { empty_layer, ..History::default() };
        config.history = vec![step(true), step(false)];
        let layers = vec![(MediaType::OciLayer, b"tar".as_slice())];
        let directory = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(directory.path().join("blobs/sha256")).expect("writable");
        Self { directory, layers, config, index_platform: "linux/amd64" }
    }

    fn blob(&self, media_type: MediaType, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        fs::write(self.path(&descriptor.digest), bytes).expect("writable");
        descriptor
    }

    fn path(&self, digest: &Sha256Digest) -> PathBuf {
        self.directory.path().join("blobs/sha256").join(digest.hex())
    }

    /// Writes all of it, the manifest inside an index inside `index.json`.
    fn write(&self) -> (Descriptor, Descriptor) {
        let config = self.blob(MediaType::OciConfig, &to_json(&self.config));
        let layers =
            self.layers.iter().map(|(media_type, bytes)| self.blob(media_type.clone(), bytes)).collect();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MediaType::OciManifest),
            config,
            layers,
            annotations: BTreeMap::new(),
        };
        let mut manifest = self.blob(MediaType::OciManifest, &to_json(&manifest));
        manifest.platform = Some(self.index_platform.parse().expect("a platform"));
        let index = self.blob(MediaType::OciIndex, &to_json(&index_of(manifest.clone())));
        let mut tagged = index.clone();
        tagged.annotations.insert(layout::REF_NAME.to_owned(), "v1".to_owned());
        fs::write(self.directory.path().join("index.json"), to_json(&index_of(tagged))).expect("writable");
        fs::write(self.directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("writable");
        (index, manifest)
    }

    fn check(&self) -> Result<Vec<Sha256Digest>, String> {
        super::layout(self.directory.path()).map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

fn index_of(descriptor: Descriptor) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: vec![descriptor],
        annotations: BTreeMap::new(),
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("serialisable")
}

#[test]
fn a_good_layout_passes_and_is_read_as_an_image() {
    let bench = Bench::new();
    let (index, manifest) = bench.write();
    assert_eq!(bench.check(), Ok(vec![index.digest]));

    let amd64 = Platform::new("linux", "amd64", None);
    for selector in [None, Some("v1"), Some(index.digest.to_string().as_str())] {
        let image = crate::image::resolve_layout(bench.directory.path(), selector, &amd64).expect("an image");
        assert_eq!((image.root_digest, image.manifest_digest), (index.digest, manifest.digest));
        assert_eq!(image.config, bench.config);
        let origin = crate::BlobOrigin::OciLayout(bench.directory.path().to_owned());
        assert_eq!(image.base_layers(&origin)[0].diff_id, Sha256Digest::of(b"tar").into());
    }
    let nested = layout::find_image(bench.directory.path(), Some(&manifest.digest.to_string()), &amd64);
    assert_eq!(nested.expect("there, though not listed").root_digest, manifest.digest);
    let absent = Sha256Digest::of(b"absent").to_string();
    assert!(matches!(
        layout::find_image(bench.directory.path(), Some(&absent), &amd64),
        Err(LayoutError::NotFound { .. })
    ));
    let missing = layout::find_image(bench.directory.path(), Some("v2"), &amd64).expect_err("no such tag");
    assert!(missing.to_string().ends_with("has no image \"v2\"; it has v1"), "{missing}");
    let arm64 = Platform::new("linux", "arm64", None);
    let missing =
        crate::image::resolve_layout(bench.directory.path(), None, &arm64).expect_err("no such platform");
    assert!(missing.is_missing_platform());
}

#[test]
fn what_does_not_fit_together_is_found() {
    type Bend = fn(&mut Bench);
    let cases: [(&str, Bend); 7] = [
        ("has 2 layers, but the config has 1 diff IDs", |b| b.layers.push((MediaType::OciLayer, b"more"))),
        ("the history 0 that are not empty", |b| b.config.history.truncate(1)),
        ("is not compressed, but its diff ID is", |b| b.layers[0].1 = b"rat"),
        ("the index says linux/arm64, the config linux/amd64", |b| b.index_platform = "linux/arm64"),
        ("rootfs.type is \"files\"", |b| b.config.rootfs.kind = "files".to_owned()),
        ("the config names no platform", |b| b.config.os.clear()),
        ("cannot be unpacked", |b| b.layers[0].0 = MediaType::Other("application/zip".to_owned())),
    ];
    for (want, bend) in cases {
        let mut bench = Bench::new();
        bend(&mut bench);
        bench.write();
        let found = bench.check().expect_err(want);
        assert!(found.contains(want), "expected {want}, got {found}");
    }
}

#[test]
fn damaged_missing_and_stray_blobs_are_found() {
    let digest = Sha256Digest::of(b"tar");
    type Damage = fn(&Bench, Sha256Digest);
    let cases: [(&str, Damage); 5] = [
        ("is not the blob it is called", |b, digest| fs::write(b.path(&digest), "rat").expect("written")),
        ("No such file", |b, digest| fs::remove_file(b.path(&digest)).expect("there")),
        ("is not the blob it is called", |b, _| {
            fs::write(b.path(&Sha256Digest::of(b"")), "stray").expect("written");
        }),
        ("is not the blob it is called", |b, _| {
            fs::create_dir(b.directory.path().join("blobs/md5")).expect("made");
        }),
        ("not a regular file", |b, digest| {
            fs::remove_file(b.path(&digest)).expect("there");
            let fifo = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, b.path(&digest), fifo, mode, 0).expect("made");
        }),
    ];
    for (want, damage) in cases {
        let bench = Bench::new();
        bench.write();
        damage(&bench, digest);
        let found = bench.check().expect_err(want);
        assert!(found.contains(want), "expected {want}, got {found}");
    }
}

#[test]
fn a_wrong_size_is_found_though_the_digest_is_right() {
    let bench = Bench::new();
    let (index, _) = bench.write();
    let wrong = Descriptor { size: index.size + 1, ..index };
    fs::write(bench.directory.path().join("index.json"), to_json(&index_of(wrong))).expect("writable");
    assert!(bench.check().expect_err("wrong size").contains("bytes, got"));
}

#[test]
fn layers_are_decompressed_to_their_diff_ids() {
    let mut bench = Bench::new();
    bench.layers[0] = (MediaType::OciLayerGzip, b"TAR");
    bench.write();
    bench.check().expect("what a compressed layer holds is not looked at");
    let lower: Decompress<'_> = &|compression, mut file| {
        assert_eq!(compression, Compression::Gzip);
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(Box::new(io::Cursor::new(text.to_lowercase())))
    };
    diff_ids(bench.directory.path(), lower).expect("TAR holds tar");
    let same: Decompress<'_> = &|_, file| Ok(Box::new(file));
    assert!(
        diff_ids(bench.directory.path(), same)
            .expect_err("TAR is not tar")
            .to_string()
            .contains("decompresses to")
    );
}

#[test]
fn without_a_selector_the_latest_or_the_only_fitting_image_is_meant() {
    let bench = Bench::new();
    let (index, manifest) = bench.write();
    let amd64 = Platform::new("linux", "amd64", None);
    let entry = |descriptor: &Descriptor, platform: Option<&str>, tag: Option<&str>| {
        let mut entry = descriptor.clone();
        entry.platform = platform.map(|text| text.parse().expect("a platform"));
        entry.annotations.extend(tag.map(|tag| (layout::REF_NAME.to_owned(), tag.to_owned())));
        entry
    };
    let find = |manifests: Vec<Descriptor>| {
        let all = Index { manifests, ..index_of(index.clone()) };
        fs::write(bench.directory.path().join("index.json"), to_json(&all)).expect("writable");
        let found = layout::find_image(bench.directory.path(), None, &amd64);
        found.map(|found| found.root_digest).map_err(|error| error.to_string())
    };
    let (one, other) = (&index, &manifest);
    assert_eq!(
        find(vec![entry(one, None, Some("v1")), entry(one, None, Some("v2"))]),
        Ok(one.digest),
        "the same twice"
    );
    assert_eq!(find(vec![entry(one, None, None), entry(other, None, Some("latest"))]), Ok(other.digest));
    assert_eq!(
        find(vec![entry(one, Some("arm64"), None), entry(other, Some("amd64"), None)]),
        Ok(other.digest)
    );
    let several =
        find(vec![entry(one, None, Some("v1")), entry(other, None, Some("v2"))]).expect_err("which?");
    assert!(several.ends_with("has several images: name one by tag or digest; it has v1, v2"), "{several}");
    assert!(find(vec![]).is_err());
}

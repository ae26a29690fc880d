//! Whole images: assembled, brought to layouts and archives, and judged by tools that we did not write.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use exporter::{
    AssembleOptions, Assembled, Destination, Encoder, ExportError, ImageOutput, MediaTypes, Output, Tagging,
    TimePolicy, assemble, check, check_platforms, export_image, metadata,
};
use oci::{
    BaseLayer, BlobOrigin, ImageConfig, Layer, MediaType, Platform, Snapshot, config::History, image,
    validate,
};
use solver::{Image, Target, VertexId, graph::HistoryItem};

use crate::support::{Described, Workshop, judge, workspace};

const LOWER: &str = "
    dir      bin          0755 0:0       epoch
    file     bin/tool     4755 0:0       epoch      tool
    xattr    security.capability \\x01\\x00\\x00\\x02\\x00\\x20\\x00\\x00\\n\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00
    hardlink bin/tool2    4755 0:0       epoch      bin/tool
    dir      etc          0755 0:0       epoch
    file     etc/passwd   0644 0:0       1000000000 root
    dir      home         0755 1000:1000 epoch
    file     home/old     0600 1000:1000 epoch      old
    file     gone         0644 0:0       epoch      gone
";
const UPPER: &str = "
    whiteout gone
    opaque   home
    dir      home         0755 1000:1000 epoch
    file     home/new     0600 1000:1000 content    new
    symlink  s            0777 0:0       epoch      etc/passwd
    file     {60*d}/{60*f} 0644 0:0      epoch      deep
    dir      {60*d}       0755 0:0       epoch
    file     zi\\xc3\\xa9l 0644 0:0      epoch      utf-8
    fifo     pipe         0600 0:0       epoch
";

fn item(created_by: &str, produces_layer: bool) -> HistoryItem {
    let comment = "layerwright.dockerfile.v0".to_owned();
    HistoryItem {
        entry: History { created_by: created_by.to_owned(), comment, ..History::default() },
        produces_layer,
    }
}

/// An image of `snapshot`, whose first `base` layers came with an image of this config.
fn image_of(snapshot: Snapshot, config: ImageConfig, base: usize, history: Vec<HistoryItem>) -> Image {
    let platform = config.platform();
    let vertex = VertexId(0);
    Image { target: Target { platform, vertex, config, base_layers: base, history }, snapshot }
}

/// Two layers, one step that wrote nothing, and one instruction without a step.
fn sample(workshop: &Workshop, platform: &str) -> Image {
    let lower = workshop.step(&Snapshot::default(), &Described::parse(LOWER));
    let upper = workshop.step(&lower, &Described::parse(UPPER));
    let snapshot = upper.with(Layer::Built(oci::Tree::empty_digest()));
    let mut config = ImageConfig::empty(&platform.parse().expect("a platform"));
    config.config.env = vec!["PATH=/bin".to_owned()];
    config.config.labels = BTreeMap::from([("a.label".to_owned(), "value".to_owned())]);
    config.config.cmd = Some(vec!["/bin/tool".to_owned()]);
    let history = vec![
        item("ENV PATH=/bin", false),
        item("COPY . /", true),
        item("RUN make", true),
        item("RUN true", true),
    ];
    image_of(snapshot, config, 0, history)
}

fn assembled(workshop: &Workshop, images: &[Image]) -> Assembled {
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
    assemble(images, &sealer, &AssembleOptions::default()).expect("assembled")
}

fn names(names: &[&str]) -> Vec<oci::Reference> {
    names.iter().map(|name| name.parse().expect("a reference")).collect()
}

fn layout(workshop: &Workshop, assembled: &Assembled, directory: &Path, with_names: &[&str]) {
    let output = ImageOutput::OciLayout { directory: directory.to_owned(), names: names(with_names) };
    let exported = export_image(assembled, &output, &workshop.tools()).expect("exported");
    assert_eq!(exported.digest, Some(assembled.root.digest));
    validate::layout(directory).expect("a sound layout");
    check_schemas(directory);
}

fn check_schemas(directory: &Path) {
    let schemas = workspace().join("../shared/fixtures/image-spec");
    if !schemas.is_dir() {
        return eprintln!("SKIPPED: there are no JSON schemas at {}", schemas.display());
    }
    let module = Command::new("python3").args(["-c", "import jsonschema"]).output();
    if !module.is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIPPED: python3 has no jsonschema");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check_layout.py");
    judge(Command::new("python3").arg(script).arg(schemas).arg(directory));
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn index(directory: &Path) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let index = json(&directory.join("index.json"));
    let entries = index["manifests"].as_array().expect("a list");
    let entry = |entry: &serde_json::Value| {
        let annotations = &entry["annotations"];
        (
            text(&annotations["org.opencontainers.image.ref.name"]),
            text(&annotations["io.containerd.image.name"]),
        )
    };
    entries.iter().map(entry).collect()
}

#[test]
fn the_config_is_what_was_planned_and_the_history_fits_the_layers() {
    let workshop = Workshop::new();
    let assembled = assembled(&workshop, &[sample(&workshop, "linux/arm64")]);
    let image = &assembled.images[0];
    let config: ImageConfig = serde_json::from_slice(&image.config_bytes).expect("a config");
    assert_eq!(config.created.as_deref(), Some("2000-01-01T00:00:00Z"));
    assert_eq!((config.os.as_str(), config.architecture.as_str()), ("linux", "arm64"));
    assert_eq!(config.rootfs.diff_ids.len(), 2);
    let history: Vec<_> =
        config.history.iter().map(|entry| (entry.created_by.as_str(), entry.empty_layer)).collect();
    let want = [("ENV PATH=/bin", true), ("COPY . /", false), ("RUN make", false), ("RUN true", true)];
    assert_eq!(history, want);
    assert!(config.history.iter().all(|entry| entry.created.as_deref() == Some("2000-01-01T00:00:00Z")));
    assert_eq!(assembled.root, image.manifest);
    assert_eq!(assembled.index, None);
}

#[test]
fn assembling_twice_gives_the_same_bytes() {
    let (first, second) = (Workshop::new(), Workshop::new());
    let images = |workshop: &Workshop| [sample(workshop, "linux/amd64"), sample(workshop, "linux/arm64")];
    assert_eq!(assembled(&first, &images(&first)), assembled(&second, &images(&second)));
}

#[test]
fn the_digest_of_an_image_is_part_of_the_format() {
    let workshop = Workshop::new();
    let digest = assembled(&workshop, &[sample(&workshop, "linux/amd64")]).root.digest.to_string();
    assert_eq!(digest, "sha256:7625c321201cf383d6ba6d51f049cf9cf830ce3d454bf80c2657f1ccc9454852");
}

#[test]
fn with_dockers_media_types_all_but_the_config_is_called_otherwise() {
    let workshop = Workshop::new();
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1);
    let images = [sample(&workshop, "linux/amd64"), sample(&workshop, "linux/arm64")];
    let options = AssembleOptions { media_types: MediaTypes::Docker, ..AssembleOptions::default() };
    let docker = assemble(&images, &sealer, &options).expect("assembled");
    let oci = assembled(&workshop, &images);
    assert_eq!(docker.root.media_type, MediaType::DockerIndex);
    for (docker, oci) in docker.images.iter().zip(&oci.images) {
        assert_eq!(docker.config_bytes, oci.config_bytes);
        let manifest: oci::manifest::Manifest =
            serde_json::from_slice(&docker.manifest_bytes).expect("a manifest");
        assert_eq!(manifest.media_type, Some(MediaType::DockerManifest));
        assert_eq!(manifest.config.media_type, MediaType::DockerConfig);
        assert!(manifest.layers.iter().all(|layer| layer.media_type == MediaType::DockerLayerGzip));
        let digests = |image: &exporter::AssembledImage| {
            image.layers.iter().map(|layer| layer.descriptor.digest).collect::<Vec<_>>()
        };
        assert_eq!(digests(docker), digests(oci));
    }
}

#[test]
fn zstd_has_no_name_among_dockers_media_types() {
    let workshop = Workshop::new();
    let sealer = workshop.sealer(Encoder::ZSTD, TimePolicy::Default, 1);
    let options = AssembleOptions { media_types: MediaTypes::Docker, ..AssembleOptions::default() };
    let refused = assemble(&[sample(&workshop, "linux/amd64")], &sealer, &options).expect_err("no name");
    assert!(refused.to_string().contains("is compressed with zstd"), "{refused}");
}

#[test]
fn a_docker_archive_holds_one_image() {
    let workshop = Workshop::new();
    let two = assembled(&workshop, &[sample(&workshop, "linux/amd64"), sample(&workshop, "linux/arm64")]);
    let path = workshop.path("image.tar");
    fs::write(&path, "old").expect("written");
    let destination = Destination::File(path.clone());
    let output = ImageOutput::DockerArchive { destination, names: names(&["app:1"]) };
    assert!(check_platforms(&Output::Image(output.clone()), 2).is_err());
    assert!(check_platforms(&Output::Image(output.clone()), 1).is_ok());
    let refused = export_image(&two, &output, &workshop.tools()).expect_err("two images");
    assert!(matches!(refused, ExportError::SeveralPlatforms(2)), "{refused}");
    assert_eq!(fs::read(&path).expect("readable"), b"old");
}

#[test]
fn an_image_that_contradicts_itself_is_not_assembled() {
    let workshop = Workshop::new();
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1);
    let mut image = sample(&workshop, "linux/amd64");
    image.target.history.pop();
    let refused = assemble(&[image], &sealer, &AssembleOptions::default()).expect_err("a step too few");
    assert!(refused.to_string().starts_with("internal error"), "{refused}");
}

#[test]
fn other_tools_read_the_layout() {
    let workshop = Workshop::new();
    let assembled = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let directory = workshop.path("layout");
    layout(&workshop, &assembled, &directory, &["example.org/app:v1"]);
    let source = format!("oci:{}:v1", directory.display());
    if let Some(inspected) = judge(Command::new("skopeo").args(["inspect", &source])) {
        let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
        assert_eq!(inspected["Digest"], assembled.root.digest.to_string());
        assert_eq!(inspected["Labels"]["a.label"], "value");
        assert_eq!(inspected["Layers"].as_array().map(Vec::len), Some(2));
    }
    for layer in &assembled.images[0].layers {
        let blob = directory.join("blobs/sha256").join(layer.descriptor.digest.hex());
        let copy = workshop.path("layer.gz");
        fs::copy(blob, &copy).expect("copied");
        judge(Command::new("gzip").arg("-t").arg(copy));
    }
}

#[test]
fn umoci_unpacks_what_was_described() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: unpacking with owners and capabilities needs root");
    }
    let workshop = Workshop::new();
    let assembled = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let (directory, bundle) = (workshop.path("layout"), workshop.path("bundle"));
    layout(&workshop, &assembled, &directory, &["app:v1"]);
    let source = format!("{}:v1", directory.display());
    if judge(Command::new("umoci").args(["unpack", "--image", &source]).arg(&bundle)).is_none() {
        return;
    }
    let root = bundle.join("rootfs");
    let stat = |path: &str| rustix::fs::lstat(root.join(path)).expect(path);
    assert!(!root.join("gone").exists() && !root.join("home/old").exists());
    assert_eq!(fs::read_to_string(root.join("home/new")).expect("readable"), "new");
    assert_eq!((stat("home/new").st_uid, stat("home/new").st_gid), (1000, 1000));
    assert_eq!(stat("bin/tool").st_ino, stat("bin/tool2").st_ino);
    assert_eq!(stat("bin/tool").st_mode & 0o7777, 0o4755);
    assert_eq!(stat("etc/passwd").st_mtime, 1_000_000_000);
    assert_eq!(stat("s").st_mtime, 946_684_800);
    assert_eq!(fs::read_to_string(root.join("zi\u{e9}l")).expect("readable"), "utf-8");
    assert_eq!(fs::read_to_string(root.join("d".repeat(60)).join("f".repeat(60))).expect("readable"), "deep");
    let mut value = [0; 64];
    let size = rustix::fs::getxattr(root.join("bin/tool"), "security.capability", &mut value).expect("set");
    assert_eq!(
        value[..size],
        Described::parse(LOWER).tree.get(b"bin/tool").expect("there").metadata.xattrs
            [b"security.capability".as_slice()]
    );
}

#[test]
fn a_layout_keeps_the_images_it_has() {
    let workshop = Workshop::new();
    let one = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let two = assembled(&workshop, &[sample(&workshop, "linux/arm64")]);
    let directory = workshop.path("layout");
    layout(&workshop, &one, &directory, &["app:one"]);
    layout(&workshop, &two, &directory, &["app:two", "localhost:5000/other:three"]);
    let tagged = |tag: &str, name: &str| (tag.to_owned(), name.to_owned());
    let app = "docker.io/library/app";
    assert_eq!(
        index(&directory),
        [
            tagged("one", &format!("{app}:one")),
            tagged("two", &format!("{app}:two")),
            tagged("three", "localhost:5000/other:three")
        ]
    );
    layout(&workshop, &two, &directory, &["app:one"]);
    layout(&workshop, &one, &directory, &[]);
    layout(&workshop, &two, &directory, &[]);
    let tags: Vec<_> = index(&directory).into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(tags, ["two", "three", "one", ""]);
    let arm = "linux/arm64".parse().expect("a platform");
    let found = image::resolve_layout(&directory, Some("one"), &arm).expect("found");
    assert_eq!(found.manifest_digest, two.root.digest);
}

#[test]
fn nothing_of_the_other_images_in_a_layout_is_lost() {
    let workshop = Workshop::new();
    let image = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let directory = workshop.path("layout");
    layout(&workshop, &image, &directory, &["app:mine"]);
    let path = directory.join("index.json");
    let mut index = json(&path);
    let mut foreign = index["manifests"][0].clone();
    foreign["artifactType"] = "application/x.y".into();
    foreign["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "theirs" });
    index["manifests"].as_array_mut().expect("a list").push(foreign.clone());
    fs::write(&path, index.to_string()).expect("written");
    layout(&workshop, &image, &directory, &["app:mine"]);
    assert_eq!(json(&path)["manifests"][0], foreign);
    for damage in ["", "[]", "{}", r#"{"manifests":{}}"#] {
        fs::write(&path, damage).expect("written");
        let output = ImageOutput::OciLayout { directory: directory.clone(), names: vec![] };
        let refused = export_image(&image, &output, &workshop.tools()).expect_err("damaged");
        assert!(matches!(refused, ExportError::DamagedLayout { .. }), "{refused}");
    }
}

#[test]
fn several_platforms_become_an_index() {
    let workshop = Workshop::new();
    let assembled =
        assembled(&workshop, &[sample(&workshop, "linux/amd64"), sample(&workshop, "linux/arm/v7")]);
    assert_eq!(assembled.root.media_type, MediaType::OciIndex);
    let directory = workshop.path("layout");
    layout(&workshop, &assembled, &directory, &["app"]);
    for (platform, image) in ["linux/amd64", "linux/arm/v7"].iter().zip(&assembled.images) {
        let platform: Platform = platform.parse().expect("a platform");
        let found = image::resolve_layout(&directory, Some("latest"), &platform).expect("found");
        assert_eq!(found.manifest_digest, image.manifest.digest);
    }
}

#[test]
fn layers_of_a_base_image_pass_through() {
    let workshop = Workshop::new();
    let base = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let base_directory = workshop.path("base");
    layout(&workshop, &base, &base_directory, &[]);
    let resolved = image::resolve_layout(&base_directory, None, &base.images[0].platform).expect("an image");
    let layers = resolved.base_layers(&BlobOrigin::OciLayout(base_directory.clone()));
    let fresh = Workshop::new();
    let snapshot = Snapshot { layers: layers.iter().cloned().map(Box::new).map(Layer::Base).collect() };
    let top = fresh.step(&snapshot, &Described::parse("file top 0644 0:0 epoch top"));
    let image = image_of(top, resolved.config.clone(), layers.len(), vec![item("COPY top /", true)]);
    let built = assembled(&fresh, &[image]);
    let directory = fresh.path("layout");
    layout(&fresh, &built, &directory, &["app"]);
    let descriptors = |layers: &[BaseLayer]| layers.iter().map(|l| l.descriptor.clone()).collect::<Vec<_>>();
    let ours: Vec<_> = built.images[0].layers.iter().map(|layer| layer.descriptor.clone()).collect();
    assert_eq!(ours[..2], descriptors(&layers));
    let config: ImageConfig = serde_json::from_slice(&built.images[0].config_bytes).expect("a config");
    assert_eq!(config.history[..4], resolved.config.history);
    assert_eq!(config.history.len(), 5);
}

#[test]
fn a_blob_that_cannot_be_had_leaves_the_index_as_it_was() {
    let workshop = Workshop::new();
    let one = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let directory = workshop.path("layout");
    layout(&workshop, &one, &directory, &["app"]);
    let before = fs::read(directory.join("index.json")).expect("readable");
    let text = format!("file f 0644 0:0 epoch {}", "unique");
    let snapshot = workshop.step(&Snapshot::default(), &Described::parse(&text));
    let config = ImageConfig::empty(&one.images[0].platform);
    let two = assembled(&workshop, &[image_of(snapshot, config, 0, vec![item("COPY f /", true)])]);
    let blob = workshop.store.blob_path(&two.images[0].layers[0].descriptor.digest);
    let mut bytes = fs::read(&blob).expect("readable");
    bytes[20] ^= 1;
    fs::remove_file(&blob).expect("ours");
    fs::write(&blob, bytes).expect("ours");
    let output = ImageOutput::OciLayout { directory: directory.clone(), names: names(&["app"]) };
    let failed = export_image(&two, &output, &workshop.tools()).expect_err("damaged");
    assert!(matches!(failed, ExportError::Blob { .. }), "{failed}");
    assert_eq!(fs::read(directory.join("index.json")).expect("readable"), before);
    validate::layout(&directory).expect("still sound");
    assert!(!blob.exists(), "a damaged blob is a missing one from then on");
}

#[test]
fn an_archive_is_deterministic_and_appears_whole() {
    let workshop = Workshop::new();
    let assembled = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let export = |path: &Path| {
        let output = ImageOutput::OciArchive {
            destination: Destination::File(path.to_owned()),
            names: names(&["example.org/app:v1"]),
        };
        export_image(&assembled, &output, &workshop.tools()).map(|_| fs::read(path).expect("readable"))
    };
    let (first, second) = (workshop.path("first.tar"), workshop.path("second.tar"));
    assert_eq!(export(&first).expect("exported"), export(&second).expect("exported"));
    let source = format!("oci-archive:{}:v1", first.display());
    if let Some(inspected) = judge(Command::new("skopeo").args(["inspect", &source])) {
        assert!(inspected.contains(&assembled.root.digest.to_string()));
    }
    let unpacked = workshop.path("unpacked");
    fs::create_dir(&unpacked).expect("made");
    judge(Command::new("tar").arg("-xf").arg(&first).arg("-C").arg(&unpacked));
    validate::layout(&unpacked).expect("a sound layout");
    let blob = workshop.store.blob_path(&assembled.images[0].layers[0].descriptor.digest);
    fs::remove_file(blob).expect("ours");
    let before = fs::read(&first).expect("readable");
    export(&first).expect_err("a blob is missing");
    assert_eq!(fs::read(&first).expect("readable"), before);
    assert_eq!(fs::read_dir(workshop.directory.path()).expect("readable").count(), 4, "no temporary is left");
}

#[test]
fn what_cannot_be_exported_is_refused_before_anything_is_done() {
    let workshop = Workshop::new();
    let occupied = workshop.path("occupied");
    fs::create_dir(&occupied).expect("made");
    fs::write(occupied.join("file"), "mine").expect("written");
    let layout = |directory: &Path, with: &[&str]| {
        Output::Image(ImageOutput::OciLayout { directory: directory.to_owned(), names: names(with) })
    };
    let by_digest = format!("app@{}", oci::Sha256Digest::of(b"x"));
    for (output, want) in [
        (Output::Image(ImageOutput::ImageStore), "type=image needs push=true"),
        (
            Output::Image(ImageOutput::Registry { names: vec![], tagging: Tagging::Tags }),
            "pushing needs a name",
        ),
        (
            Output::Image(ImageOutput::Registry { names: names(&[&by_digest]), tagging: Tagging::Tags }),
            "digest is not known",
        ),
        (layout(&occupied, &[]), "neither empty nor an OCI layout"),
        (layout(&workshop.path("new"), &["a/x:1", "b/x:1"]), "cannot write both"),
    ] {
        let refused = check(&output).expect_err(want).to_string();
        assert!(refused.contains(want), "{refused}");
    }
    check(&layout(&workshop.path("new"), &["a/x:1", "a/x:1", "b/x:2"])).expect("can be exported");
    assert_eq!(fs::read_dir(&occupied).expect("readable").count(), 1);
    assert_eq!(fs::metadata(occupied.join("file")).expect("there").permissions().mode() & 0o777, 0o644);
}

#[test]
fn metadata_is_what_buildx_writes() {
    let workshop = Workshop::new();
    let single = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let digest = single.root.digest.to_string();
    let config = single.images[0].config.digest.to_string();
    assert_eq!(
        metadata(&single, &names(&["app:latest", "localhost:5000/x:1"])),
        serde_json::json!({
            "containerimage.config.digest": config,
            "containerimage.digest": digest,
            "containerimage.descriptor": {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest,
                "size": single.root.size,
                "annotations": {
                    "config.digest": config,
                    "org.opencontainers.image.created": "2000-01-01T00:00:00Z",
                },
            },
            "image.name": "docker.io/library/app:latest,localhost:5000/x:1",
        })
    );
    let several = assembled(&workshop, &[sample(&workshop, "linux/amd64"), sample(&workshop, "linux/arm64")]);
    let metadata = metadata(&several, &[]);
    assert_eq!(metadata.get("containerimage.config.digest"), None);
    assert_eq!(metadata.get("image.name"), None);
}

//! Pushing to a real registry, and pulling back with a tool that we did not write.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use exporter::{AssembleOptions, Assembled, Encoder, ExportError, Push, Tagging, TimePolicy, assemble};
use oci::{
    BaseLayer, BlobOrigin, ImageConfig, Layer, Reference, RemoteLayer, Snapshot, config::History, image,
    validate,
};
use solver::{Event, Image, Target, VertexId, graph::HistoryItem};

use crate::{
    common::{
        fault::{Reply, Request, Server, status},
        reference,
    },
    support::{Described, Workshop, judge},
};

/// A docker-registry on a free loopback port, with its data in a directory of its own; ends with the value.
struct Registry {
    process: Child,
    host: String,
    directory: tempfile::TempDir,
}

impl Registry {
    /// Starts it, or says loudly that it is not installed.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, \
             delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            directory.path().join("data").display()
        );
        fs::write(directory.path().join("config.yml"), config).expect("written");
        let log = fs::File::create(directory.path().join("log")).expect("made");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(directory.path().join("config.yml"));
        command.stdout(log.try_clone().expect("cloned")).stderr(log).stdin(Stdio::null());
        let process = match command.spawn() {
            Err(_) => {
                eprintln!("SKIPPED: docker-registry is not installed");
                return None;
            }
            Ok(process) => process,
        };
        let registry = Self { process, host: format!("127.0.0.1:{port}"), directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.host).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen:\n{}", registry.log());
            std::thread::yield_now();
        }
        Some(registry)
    }

    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().expect("a reference")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).expect("readable")
    }

    /// How many requests of a method the registry has answered with a path that holds `part`.
    fn requests(&self, method: &str, part: &str) -> usize {
        let method = format!("http.request.method={method} ");
        let answered = |line: &&str| line.contains("response completed") && line.contains(&method);
        let matches = |line: &&str| {
            line.split("http.request.uri=")
                .nth(1)
                .is_some_and(|uri| uri.split_whitespace().next().is_some_and(|uri| uri.contains(part)))
        };
        self.log().lines().filter(answered).filter(matches).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().expect("still ours");
        self.process.wait().expect("ended");
    }
}

fn image_of(snapshot: Snapshot, config: ImageConfig, base: usize, steps: usize) -> Image {
    let step = |number| HistoryItem {
        entry: History { created_by: format!("RUN {number}"), ..History::default() },
        produces_layer: true,
    };
    let (platform, vertex) = (config.platform(), VertexId(0));
    let history = (0..steps).map(step).collect();
    Image { target: Target { platform, vertex, config, base_layers: base, history }, snapshot }
}

fn sample(workshop: &Workshop, platform: &str) -> Image {
    let lower = workshop.step(&Snapshot::default(), &Described::parse("file a 0644 0:0 epoch {3000*lower}"));
    let upper = workshop.step(&lower, &Described::parse(&format!("file b 0644 0:0 epoch {platform}")));
    image_of(upper, ImageConfig::empty(&platform.parse().expect("a platform")), 0, 2)
}

fn assembled(workshop: &Workshop, images: &[Image]) -> Assembled {
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
    assemble(images, &sealer, &AssembleOptions::default()).expect("assembled")
}

/// Of what was made before: nothing runs for it.
fn push(workshop: &Workshop, assembled: &Assembled, names: &[Reference]) -> Result<(), ExportError> {
    let uploads = workshop.waiting_uploads(names);
    let parcel = uploads.parcel(assembled, &workshop.fetcher);
    let push = Push { parcel, names: names.to_vec(), tagging: Tagging::Tags };
    uploads.name(uploads.bring(&[&push])?)
}

/// Pulls a name back into a layout and returns the digest of what it names there.
fn pull(name: &Reference, directory: &Path) -> Option<String> {
    let (source, target) = (format!("docker://{name}"), format!("oci:{}", directory.display()));
    judge(Command::new("skopeo").args(["copy", "--all", "--src-tls-verify=false", "-q", &source, &target]))?;
    validate::layout(directory).expect("a sound layout");
    let index = fs::read_to_string(directory.join("index.json")).expect("readable");
    let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    Some(index["manifests"][0]["digest"].as_str().expect("a digest").to_owned())
}

#[test]
fn an_image_comes_back_as_it_was_pushed() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let single = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let several = assembled(&workshop, &[sample(&workshop, "linux/amd64"), sample(&workshop, "linux/arm64")]);
    for (name, assembled) in [("single", &single), ("team/several:v1", &several)] {
        let name = registry.reference(name);
        push(&workshop, assembled, std::slice::from_ref(&name)).expect("pushed");
        let found = workshop.fetcher.registry().manifest(&name.with_default_tag()).expect("there");
        assert_eq!(found.digest, assembled.root.digest);
        if let Some(digest) = pull(&name, &workshop.path(&name.repository.replace('/', "-"))) {
            assert_eq!(digest, assembled.root.digest.to_string());
        }
    }
}

#[test]
fn what_is_there_is_not_sent_again() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let assembled = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let name = registry.reference("app");
    push(&workshop, &assembled, std::slice::from_ref(&name)).expect("pushed");
    let sent = registry.requests("POST", "/blobs/uploads/");
    assert_eq!(sent, 3, "two layers and a config\n{}", registry.log());
    let asked = registry.requests("HEAD", "/blobs/");
    push(&workshop, &assembled, std::slice::from_ref(&name)).expect("pushed");
    assert_eq!(registry.requests("POST", "/blobs/uploads/"), sent);
    assert_eq!(registry.requests("HEAD", "/blobs/"), asked, "the image is looked for, not its parts");
}

#[test]
fn blobs_are_mounted_from_the_base_and_from_the_first_name() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let base_name = registry.reference("base");
    let base = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    push(&workshop, &base, std::slice::from_ref(&base_name)).expect("pushed");

    let fresh = Workshop::new();
    let platform = &base.images[0].platform;
    let resolved = image::resolve_registry(fresh.fetcher.registry(), &base_name, platform).expect("resolved");
    let layers = resolved.base_layers(&BlobOrigin::Registry(base_name));
    let below = Snapshot { layers: layers.into_iter().map(Box::new).map(Layer::Base).collect() };
    let snapshot = fresh.step(&below, &Described::parse("file c 0644 0:0 epoch top"));
    let built = assembled(&fresh, &[image_of(snapshot, resolved.config, 2, 1)]);
    let names = [registry.reference("app:1"), registry.reference("other/app:2"), registry.reference("app:3")];
    push(&fresh, &built, &names).expect("pushed");
    assert_eq!(registry.requests("POST", "from=base"), 2, "two layers\n{}", registry.log());
    assert_eq!(registry.requests("POST", "from=app"), 4, "all layers and the config\n{}", registry.log());
    let pulls = registry.requests("GET", "/v2/base/blobs/");
    assert_eq!(pulls, 1, "only the config of the base was read");
    for name in &names {
        let digest = workshop.fetcher.registry().resolve(name).expect("asked").expect("there").digest;
        assert_eq!(digest, built.root.digest);
    }
}

#[test]
fn what_the_base_does_not_give_is_sent_once_all_the_same() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let image = sample(&workshop, "linux/amd64");
    let mut base = assembled(&workshop, std::slice::from_ref(&image));
    for layer in &mut base.images[0].layers {
        layer.origin = Some(BlobOrigin::Registry(registry.reference("gone")));
    }
    let names = [registry.reference("app"), registry.reference("other")];
    push(&workshop, &base, &names).expect("pushed");
    assert_eq!(registry.requests("POST", "from=gone"), 2, "two layers\n{}", registry.log());
    assert_eq!(registry.requests("PUT", "/v2/app/blobs/uploads/"), 3, "and the config\n{}", registry.log());
    assert_eq!(registry.requests("PUT", "/v2/other/blobs/uploads/"), 0, "{}", registry.log());
}

#[test]
fn a_mount_that_the_registry_only_says_it_has_done_is_made_good_before_anything_is_named() {
    let Some(registry) = Registry::start() else { return };
    let lies = |request: &Request| match request.is("POST", "mount=") {
        true => status(201, &[("Location", "/v2/app/blobs/x")], ""),
        false => Reply::Forward,
    };
    let liar = Server::before(&registry.host, lies);
    let workshop = Workshop::new();
    let mut built = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    for layer in &mut built.images[0].layers {
        layer.origin = Some(BlobOrigin::Registry(reference(&liar.address, "cache")));
    }
    push(&workshop, &built, &[reference(&liar.address, "app")]).expect("pushed");
    assert_eq!(liar.count("POST", "mount="), 2, "two layers: {:?}", liar.lines());
    assert_eq!(registry.requests("PUT", "/v2/app/blobs/uploads/"), 3, "and the config\n{}", registry.log());
    let confirmed = liar.count("HEAD", "/v2/app/blobs/");
    // Before, to confirm, before it is sent, and after that; the config before and to confirm.
    assert!(confirmed <= 2 * 4 + 2, "{confirmed}: {:?}", liar.lines());
}

/// A workshop that knows nothing but the base image in this registry: its config and its layers.
fn with_base_in(registry: &Registry) -> (Workshop, ImageConfig, Vec<BaseLayer>) {
    let workshop = Workshop::new();
    let name = registry.reference("base");
    let base = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    push(&workshop, &base, std::slice::from_ref(&name)).expect("pushed");
    let fresh = Workshop::new();
    let platform = &base.images[0].platform;
    let resolved = image::resolve_registry(fresh.fetcher.registry(), &name, platform).expect("resolved");
    let layers = resolved.base_layers(&BlobOrigin::Registry(name));
    (fresh, resolved.config, layers)
}

#[test]
fn layers_of_a_base_elsewhere_are_copied_without_the_store() {
    let (Some(here), Some(there)) = (Registry::start(), Registry::start()) else { return };
    let (fresh, config, layers) = with_base_in(&there);
    let snapshot = Snapshot { layers: layers.into_iter().map(Box::new).map(Layer::Base).collect() };
    let built = assembled(&fresh, &[image_of(snapshot, config, 2, 0)]);
    let name = here.reference("copy");
    push(&fresh, &built, std::slice::from_ref(&name)).expect("pushed");
    assert_eq!(fs::read_dir(fresh.store.area("blobs/sha256")).expect("readable").count(), 0);
    pull(&name, &fresh.path("copy"));
}

#[test]
fn a_push_without_its_blobs_leaves_the_tag_alone() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let name = registry.reference("app");
    let one = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    push(&workshop, &one, std::slice::from_ref(&name)).expect("pushed");
    let snapshot = workshop.step(&Snapshot::default(), &Described::parse("file z 0644 0:0 epoch other"));
    let two = assembled(&workshop, &[image_of(snapshot, ImageConfig::empty(&one.images[0].platform), 0, 1)]);
    fs::remove_file(workshop.store.blob_path(&two.images[0].layers[0].descriptor.digest)).expect("ours");
    let failed = push(&workshop, &two, std::slice::from_ref(&name)).expect_err("a blob is missing");
    assert!(matches!(failed, ExportError::Blob { .. }), "{failed}");
    let found = workshop.fetcher.registry().resolve(&name.with_default_tag()).expect("asked").expect("there");
    assert_eq!(found.digest, one.root.digest);
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let workshop = Workshop::new();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let assembled = assembled(&workshop, &[sample(&workshop, "linux/amd64")]);
    let name: Reference = format!("127.0.0.1:{port}/app").parse().expect("a reference");
    let failed = push(&workshop, &assembled, std::slice::from_ref(&name)).expect_err("nobody listens");
    assert_eq!(failed.to_string(), format!("cannot push {name}"));
}

#[test]
fn progress_of_a_large_blob_is_told_and_ends_complete() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let mut state = 1u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 60) as u8)
    });
    let content: String = noise.take(8 << 20).collect();
    let snapshot =
        workshop.step(&Snapshot::default(), &Described::parse(&format!("file f 0644 0:0 epoch {content}")));
    let config = ImageConfig::empty(&"linux/amd64".parse().expect("a platform"));
    let assembled = assembled(&workshop, &[image_of(snapshot, config, 0, 1)]);
    push(&workshop, &assembled, &[registry.reference("large")]).expect("pushed");
    let layer = &assembled.images[0].layers[0].descriptor;
    let task = format!("push sha256:{}", &layer.digest.hex()[..12]);
    let events = workshop.events.lock().expect("no panic");
    let done: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Transfer { task: of, done, total } if *of == task => Some((*done, *total)),
            _ => None,
        })
        .collect();
    assert!(done.len() > 2, "{done:?}");
    assert!(done.is_sorted(), "{done:?}");
    assert_eq!(done.last(), Some(&(layer.size, layer.size)));
}

#[test]
fn what_is_taken_early_is_not_sent_again() {
    let Some(registry) = Registry::start() else { return };
    let workshop = Workshop::new();
    let names = [registry.reference("app:1"), registry.reference("other:1")];
    let image = sample(&workshop, "linux/amd64");
    let uploads = workshop.uploads(&names);
    let taker = uploads.taker(&names, &workshop.fetcher);
    let sealer = workshop.sealer_telling(Encoder::GZIP, TimePolicy::Default, 2, taker);
    sealer.offer(&image.snapshot);
    let deadline = Instant::now() + Duration::from_secs(30);
    while registry.requests("POST", "/v2/other/blobs/uploads/?mount=") < 2 {
        assert!(Instant::now() < deadline, "nothing is sent before the end:\n{}", registry.log());
        std::thread::yield_now();
    }
    let built = assemble(&[image], &sealer, &AssembleOptions::default()).expect("assembled");
    let parcel = uploads.parcel(&built, &workshop.fetcher);
    let push = Push { parcel, names: names.to_vec(), tagging: Tagging::DigestOnly };
    uploads.name(uploads.bring(&[&push]).expect("brought")).expect("named");
    assert_eq!(registry.requests("PUT", "/v2/app/blobs/uploads/"), 3, "two layers and a config");
    assert_eq!(registry.requests("PUT", "/v2/other/blobs/uploads/"), 0);
    for name in names {
        let found = workshop.fetcher.registry().resolve(&name).expect("asked");
        assert_eq!(found, None, "no tag is put");
        let by_digest = name.with_digest(built.root.digest);
        assert!(workshop.fetcher.registry().resolve(&by_digest).expect("asked").is_some());
        assert!(push.final_names().any(|name| name == by_digest));
    }
}

#[test]
fn layers_of_a_base_elsewhere_are_not_downloaded_for_the_push_and_for_a_step() {
    let (Some(here), Some(there)) = (Registry::start(), Registry::start()) else { return };
    let (fresh, config, layers) = with_base_in(&there);
    let snapshot = Snapshot { layers: layers.iter().cloned().map(Box::new).map(Layer::Base).collect() };
    let name = here.reference("app");
    let uploads = fresh.uploads(std::slice::from_ref(&name));
    let taker = uploads.taker(std::slice::from_ref(&name), &fresh.fetcher);
    let sealer = fresh.sealer_telling(Encoder::GZIP, TimePolicy::Default, 1, taker);
    sealer.offer(&snapshot);
    // A step reads them, and ends.
    for layer in &layers {
        fresh.fetcher.ensure(&layer.descriptor, &layer.origin).expect("pulled");
    }
    sealer.offer(&snapshot);
    let deadline = Instant::now() + Duration::from_secs(30);
    while here.requests("PUT", "/v2/app/blobs/uploads/") < layers.len() {
        assert!(Instant::now() < deadline, "nothing is sent before the end:\n{}", here.log());
        std::thread::yield_now();
    }
    let built = assemble(&[image_of(snapshot, config, 2, 0)], &sealer, &AssembleOptions::default());
    let parcel = uploads.parcel(&built.expect("assembled"), &fresh.fetcher);
    let push = Push { parcel, names: vec![name], tagging: Tagging::Tags };
    uploads.name(uploads.bring(&[&push]).expect("brought")).expect("named");
    assert_eq!(there.requests("GET", "/v2/base/blobs/"), 1 + layers.len(), "the config, and each layer once");
}

/// A workshop that has nothing of an image but knows that its layers are in this cache, and the image's snapshot.
fn cached_in(cache: &Reference, image: &Image) -> (Workshop, Snapshot) {
    let maker = Workshop::new();
    let made = assembled(&maker, &[sample(&maker, "linux/amd64")]);
    push(&maker, &made, std::slice::from_ref(cache)).expect("pushed");
    let fresh = Workshop::new();
    let trees = image.snapshot.layers.iter().map(Layer::tree);
    for (tree, layer) in trees.zip(&made.images[0].layers) {
        fresh.fetcher.elsewhere().note(RemoteLayer {
            tree,
            diff_id: layer.diff_id,
            blobs: [(Encoder::GZIP.id(), layer.descriptor.clone())].into(),
            // Nobody looks into the trees here.
            tree_blob: layer.descriptor.clone(),
            origin: BlobOrigin::Registry(cache.clone()),
        });
    }
    (fresh, image.snapshot.clone())
}

#[test]
fn layers_in_a_cache_are_mounted_in_its_registry_and_streamed_to_another() {
    let (Some(here), Some(there)) = (Registry::start(), Registry::start()) else { return };
    let maker = Workshop::new();
    let image = sample(&maker, "linux/amd64");
    let wanted = assembled(&maker, std::slice::from_ref(&image)).root.digest;
    let (fresh, snapshot) = cached_in(&here.reference("cache"), &image);
    let image = Image { snapshot, ..image };
    let built = assembled(&fresh, std::slice::from_ref(&image));
    assert_eq!(built.root.digest, wanted);
    for (registry, mounted, sent) in [(&here, 2, 1), (&there, 0, 3)] {
        let name = registry.reference("app");
        push(&fresh, &built, std::slice::from_ref(&name)).expect("pushed");
        assert_eq!(registry.requests("POST", "mount="), mounted, "{}", registry.log());
        assert_eq!(registry.requests("PUT", "/v2/app/blobs/uploads/"), sent, "{}", registry.log());
        let found =
            fresh.fetcher.registry().resolve(&name.with_default_tag()).expect("asked").expect("there");
        assert_eq!(found.digest, wanted);
    }
    assert_eq!(here.requests("GET", "/v2/cache/blobs/"), 2, "each layer once, for the other registry");
    assert_eq!(fs::read_dir(fresh.store.area("blobs/sha256")).expect("listed").count(), 0);
}

#[test]
fn what_a_cache_has_lost_by_the_time_of_the_push_is_told_by_its_blob() {
    let Some(registry) = Registry::start() else { return };
    let maker = Workshop::new();
    let image = sample(&maker, "linux/amd64");
    let (fresh, snapshot) = cached_in(&registry.reference("cache"), &image);
    let built = assembled(&fresh, &[Image { snapshot, ..image }]);
    // As a collection of garbage leaves it.
    let lost = &built.images[0].layers[1];
    let digest = lost.descriptor.digest;
    let data = registry.directory.path().join("data/docker/registry/v2/blobs/sha256");
    fs::remove_dir_all(data.join(&digest.hex()[..2]).join(digest.hex())).expect("there");
    let failed = push(&fresh, &built, &[registry.reference("app")]).expect_err("a layer is gone");
    assert!(matches!(&failed, ExportError::Blob { digest: found, .. } if *found == digest), "{failed:?}");
    assert_eq!(fresh.fetcher.elsewhere().lose_blob(&digest), lost.origin);
}

#[test]
fn who_gives_up_waits_for_nobody() {
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name: Reference =
        format!("{}/app", silent.local_addr().expect("bound")).parse().expect("a reference");
    let workshop = Workshop::new();
    let image = sample(&workshop, "linux/amd64");
    // Of which nobody has asked whether they may.
    let uploads = workshop.uploads(&[]);
    let taker = uploads.taker(std::slice::from_ref(&name), &workshop.fetcher);
    let sealer = workshop.sealer_telling(Encoder::GZIP, TimePolicy::Default, 2, taker);
    sealer.seal(&image.snapshot).expect("sealed");
    let (_asked, _) = silent.accept().expect("somebody asks");
    let begun = Instant::now();
    drop(uploads);
    assert!(begun.elapsed() < Duration::from_secs(10), "far less than the registry's deadlines");
}

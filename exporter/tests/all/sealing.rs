//! Sealing built layers, on a real store: same bytes whatever the threads, remembered, done once, never wrong.

use std::{fs, process::Command, sync::Arc};

use exporter::{Encoder, SealError, SealedLayer, Sealer, TimePolicy};
use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, Layer, MediaType, Sha256Digest, Snapshot,
    fetch::Fetcher,
    registry::{Registry, RegistryOptions},
};
use solver::Event;

use crate::support::{Described, Workshop, judge, unpacked};

const MIB: usize = 1024 * 1024;
const ENCODERS: [Encoder; 3] = [Encoder::GZIP, Encoder::ZSTD, Encoder::Uncompressed];

/// Bytes that do not compress and are the same everywhere.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 42u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A layer with these files.
fn layer(files: &[(&str, Vec<u8>)]) -> Described {
    let mut described = Described::default();
    let entry = |(path, content): &(&str, Vec<u8>)| oci::Entry {
        path: path.as_bytes().to_vec(),
        kind: oci::EntryKind::File { size: content.len() as u64, content: oci::ContentDigest::of(content) },
        metadata: oci::Metadata { mode: 0o644, ..Default::default() },
    };
    described.tree = oci::Tree::new(files.iter().map(entry).collect()).expect("valid");
    described.files =
        files.iter().map(|(path, content)| (path.as_bytes().to_vec(), content.clone())).collect();
    described
}

fn text(length: usize) -> Vec<u8> {
    "a line that repeats itself, with a number: 12345\n".bytes().cycle().take(length).collect()
}

fn large_layer() -> Described {
    layer(&[("a/text", text(6 * MIB)), ("b/noise", noise(5 * MIB)), ("c/small", b"small".to_vec())])
}

fn seal(sealer: &Sealer, snapshot: &Snapshot) -> SealedLayer {
    let mut layers = sealer.seal(snapshot).expect("sealed");
    assert_eq!(layers.len(), 1);
    layers.remove(0)
}

fn blob(workshop: &Workshop, layer: &SealedLayer) -> Vec<u8> {
    fs::read(workshop.store.blob_path(&layer.descriptor.digest)).expect("a blob")
}

#[test]
fn threads_do_not_reach_a_byte() {
    let described = large_layer();
    for encoder in ENCODERS {
        let mut seen = Vec::new();
        for jobs in [1, 2, 4] {
            let workshop = Workshop::new();
            let snapshot = workshop.step(&Snapshot::default(), &described);
            let sealed = seal(&workshop.sealer(encoder, TimePolicy::Default, jobs), &snapshot);
            let blob = blob(&workshop, &sealed);
            assert_eq!(sealed.descriptor, Descriptor::of(encoder.media_type(), &blob));
            let tar = unpacked(&sealed.descriptor.media_type, &blob);
            assert_eq!(tar, described.tar(TimePolicy::Default));
            assert_eq!(DiffId::from(Sha256Digest::of(&tar)), sealed.diff_id);
            seen.push(sealed);
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }
}

#[test]
fn what_does_not_compress_is_stored_and_the_rest_is_compressed() {
    let workshop = Workshop::new();
    for encoder in [Encoder::GZIP, Encoder::ZSTD] {
        let size = |content: Vec<u8>| {
            let snapshot = workshop.step(&Snapshot::default(), &layer(&[("f", content)]));
            seal(&workshop.sealer(encoder, TimePolicy::Default, 2), &snapshot).descriptor.size
        };
        let raw = 4 * MIB as u64;
        assert!((raw..raw + raw / 500).contains(&size(noise(4 * MIB))), "{encoder:?}");
        assert!(size(text(4 * MIB)) < raw / 20, "{encoder:?}");
    }
}

#[test]
fn the_usual_tools_read_what_we_write() {
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &large_layer());
    for (encoder, tool) in [(Encoder::GZIP, "gzip"), (Encoder::ZSTD, "zstd")] {
        let sealed = seal(&workshop.sealer(encoder, TimePolicy::Default, 2), &snapshot);
        let file = workshop.path("layer");
        fs::copy(workshop.store.blob_path(&sealed.descriptor.digest), &file).expect("copied");
        judge(Command::new(tool).arg("-t").stdin(fs::File::open(&file).expect("ours")));
    }
}

#[test]
fn an_uncompressed_layer_is_its_tar() {
    let workshop = Workshop::new();
    let described = large_layer();
    let snapshot = workshop.step(&Snapshot::default(), &described);
    let sealed = seal(&workshop.sealer(Encoder::Uncompressed, TimePolicy::Default, 2), &snapshot);
    assert_eq!(sealed.descriptor.media_type, MediaType::OciLayer);
    assert_eq!(sealed.diff_id, sealed.descriptor.digest.into());
    assert_eq!(blob(&workshop, &sealed), described.tar(TimePolicy::Default));
}

#[test]
fn encoders_and_times_are_remembered_apart() {
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &layer(&[("f", b"x".to_vec())]));
    let digest = |encoder, times| seal(&workshop.sealer(encoder, times, 1), &snapshot).descriptor.digest;
    let first = digest(Encoder::GZIP, TimePolicy::Default);
    assert_ne!(first, digest(Encoder::Uncompressed, TimePolicy::Default));
    assert_ne!(first, digest(Encoder::ZSTD, TimePolicy::Default));
    assert_ne!(first, digest(Encoder::GZIP, TimePolicy::Epoch(1)));
    assert_eq!(first, digest(Encoder::GZIP, TimePolicy::Preserve));
    fs::remove_dir_all(workshop.files_of(&snapshot)).expect("ours");
    assert_eq!(first, digest(Encoder::GZIP, TimePolicy::Default), "answered without the files");
}

#[test]
fn a_lost_blob_or_a_damaged_record_is_made_again() {
    let workshop = Workshop::new();
    let described = layer(&[("f", b"x".to_vec())]);
    let snapshot = workshop.step(&Snapshot::default(), &described);
    let again = || seal(&workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1), &snapshot);
    let first = again();
    let path = workshop.store.blob_path(&first.descriptor.digest);
    let record = workshop.store.area("sealed").join(described.tree.digest().hex());
    let record = record.join(format!("{}.normal.json", Encoder::GZIP.id()));
    assert!(record.exists());
    fs::remove_file(&path).expect("ours");
    assert_eq!(again(), first);
    let bytes = fs::read(&path).expect("made again");
    for damage in ["", "{}", "null", "{\"diff_id\":"] {
        fs::write(&record, damage).expect("ours");
        assert_eq!(again(), first);
    }
    fs::remove_file(&path).expect("ours");
    fs::write(&path, &bytes[1..]).expect("ours");
    assert_eq!(again(), first);
    assert_eq!(fs::read(&path).expect("made again"), bytes);
}

#[test]
fn a_file_that_was_tampered_with_is_named_and_nothing_is_remembered() {
    let workshop = Workshop::new();
    let described = layer(&[("etc/passwd", b"root".to_vec())]);
    let snapshot = workshop.step(&Snapshot::default(), &described);
    fs::write(workshop.files_of(&snapshot).join("etc/passwd"), "r00t").expect("ours");
    let failed =
        workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1).seal(&snapshot).expect_err("tampered");
    let SealError::Damaged { chain, tree, path, .. } = &*failed else { panic!("{failed}") };
    assert_eq!((*chain, *tree, &**path), (snapshot.digest(), described.tree.digest(), &b"etc/passwd"[..]));
    assert!(!workshop.store.area("sealed").join(described.tree.digest().hex()).exists());
}

#[test]
fn a_name_that_layers_reserve_is_the_builds_own_mistake() {
    let workshop = Workshop::new();
    for path in [".wh.gone", "d/.wh..wh..opq", ".wh.d/f"] {
        let snapshot = workshop.step(&Snapshot::default(), &layer(&[(path, b"x".to_vec())]));
        let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1);
        let refused = sealer.seal(&snapshot).expect_err("reserved");
        assert!(refused.is_the_builds_own() && refused.to_string().contains(path), "{refused}");
    }
}

#[test]
fn no_link_is_followed_to_a_file() {
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &layer(&[("d/f", b"secret".to_vec())]));
    let (files, outside) = (workshop.files_of(&snapshot), workshop.path("outside"));
    fs::rename(files.join("d"), &outside).expect("ours");
    std::os::unix::fs::symlink(&outside, files.join("d")).expect("ours");
    let failed = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1).seal(&snapshot).expect_err("a link");
    assert!(failed.to_string().contains("\"d/f\": cannot be read"), "{failed}");
}

#[test]
fn a_damaged_tree_is_no_layer() {
    let workshop = Workshop::new();
    let described = layer(&[("f", b"x".to_vec())]);
    let snapshot = workshop.step(&Snapshot::default(), &described);
    let tree = workshop.store.area("trees").join(described.tree.digest().hex());
    for damaged in [b"".to_vec(), layer(&[("g", b"x".to_vec())]).tree.to_bytes()] {
        fs::write(&tree, damaged).expect("ours");
        let failed =
            workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1).seal(&snapshot).expect_err("damaged");
        assert!(matches!(*failed, SealError::DamagedTree { .. }), "{failed}");
    }
}

#[test]
fn each_layer_is_sealed_once_whoever_asks() {
    let workshop = Workshop::new();
    let bottom = workshop.step(&Snapshot::default(), &layer(&[("a", text(9 * MIB))]));
    let top = workshop.step(&bottom, &layer(&[("b", text(10 * MIB))]));
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
    sealer.offer(&bottom);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| sealer.seal(&top).expect("sealed"))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    let ended = |event: &&Event| matches!(event, Event::Transfer { done, total, .. } if done == total);
    assert_eq!(workshop.events.lock().expect("no panic").iter().filter(ended).count(), 2);
}

#[test]
fn threads_that_seal_let_steps_go_first() {
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &layer(&[("a", text(MIB))]));
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2);
    sealer.seal(&snapshot).expect("sealed");
    // Threads of other tests come and go.
    let niceness = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let is_ours = name.starts_with("seal-") || name.starts_with("compress-");
        is_ours.then(|| fields.split(' ').nth(16).map(str::to_owned))?
    };
    let found = || -> Vec<String> {
        fs::read_dir("/proc/self/task").expect("procfs").flatten().filter_map(niceness).collect()
    };
    let own = fs::read_to_string("/proc/self/stat").expect("procfs");
    let own: i32 = own
        .rsplit_once(") ")
        .expect("a name")
        .1
        .split(' ')
        .nth(16)
        .expect("a niceness")
        .parse()
        .expect("a number");
    let expected = (own + 5).min(19).to_string();
    // One that seals, for one layer, and two that compress; they may still be starting, or somebody else's.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while found().iter().filter(|nice| **nice == expected).count() < 3 {
        assert!(std::time::Instant::now() < deadline, "{:?}", found());
        std::thread::yield_now();
    }
}

#[test]
fn layers_without_entries_are_left_out() {
    let workshop = Workshop::new();
    let bottom = workshop.step(&Snapshot::default(), &layer(&[("a", b"x".to_vec())]));
    let snapshot = bottom.with(Layer::Built(oci::Tree::empty_digest()));
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1);
    assert_eq!(sealer.seal(&snapshot).expect("sealed"), sealer.seal(&bottom).expect("sealed"));
}

#[test]
fn layers_of_a_base_image_pass_through_with_oci_media_types() {
    let workshop = Workshop::new();
    let sealer = workshop.sealer(Encoder::GZIP, TimePolicy::Default, 1);
    let origin = BlobOrigin::OciLayout("/nowhere".into());
    let base = |media_type: &str| {
        let descriptor = Descriptor::of(MediaType::from(media_type.to_owned()), b"blob");
        let diff_id = Sha256Digest::of(b"tar").into();
        Snapshot {
            layers: vec![Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin: origin.clone() }))],
        }
    };
    for (media_type, want) in [
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", MediaType::OciLayerGzip),
        ("application/vnd.docker.image.rootfs.diff.tar", MediaType::OciLayer),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", MediaType::OciLayerZstd),
        ("application/vnd.oci.image.layer.v1.tar+zstd", MediaType::OciLayerZstd),
        ("application/vnd.oci.image.layer.v1.tar+gzip", MediaType::OciLayerGzip),
    ] {
        let sealed = seal(&sealer, &base(media_type));
        assert_eq!(sealed.descriptor, Descriptor::of(want, b"blob"));
        assert_eq!(sealed.origin, Some(origin.clone()));
    }
    let foreign = base("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    let refused = sealer.seal(&foreign).expect_err("foreign");
    assert!(matches!(*refused, SealError::MediaType(_)), "{refused}");
}

#[test]
fn a_cancelled_build_stops_sealing() {
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &large_layer());
    workshop.cancel.request();
    let stopped =
        workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2).seal(&snapshot).expect_err("stopped");
    assert!(matches!(*stopped, SealError::Cancelled), "{stopped}");
}

#[test]
fn a_store_that_takes_no_blob_is_an_error_not_a_hang() {
    let workshop = Workshop::new();
    let snapshot = workshop.step(&Snapshot::default(), &large_layer());
    // Ignored, the signal of a file that grows too far becomes a failed write, as on a full disk.
    let script = r#"trap "" XFSZ; ulimit -f 2048; exec "$@""#;
    let mut limited = Command::new("sh");
    limited.args(["-c", script, "sh"]).arg(std::env::current_exe().expect("a test binary"));
    limited.args(["--ignored", "--exact", "sealing::child_with_a_file_size_limit"]);
    limited.env("LAYERWRIGHT_TEST_STORE", workshop.store.root());
    limited.env("LAYERWRIGHT_TEST_SNAPSHOT", serde_json::to_string(&snapshot).expect("plain data"));
    let output = limited.output().expect("started");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{out}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs::read_dir(workshop.store.area("blobs/sha256")).expect("readable").count(), 0);
}

/// Run by the test above, in a process whose files may have one MiB at most.
#[test]
#[ignore = "a child of another test"]
fn child_with_a_file_size_limit() {
    let Some(root) = std::env::var_os("LAYERWRIGHT_TEST_STORE") else { return };
    let snapshot = std::env::var("LAYERWRIGHT_TEST_SNAPSHOT").expect("given");
    let snapshot: Snapshot = serde_json::from_str(&snapshot).expect("a snapshot");
    let store = Arc::new(oci::store::Store::open(root.as_ref()).expect("a store"));
    let options = exporter::SealOptions {
        base: exporter::BaseLayers::default(),
        store: store.clone(),
        fetcher: Fetcher::new(store, Registry::new(RegistryOptions::default()).expect("a client")),
        encoder: Encoder::GZIP,
        times: TimePolicy::Default,
        jobs: 2,
        courtesy: Default::default(),
        events: Arc::new(|_| ()),
        cancel: Arc::default(),
        contents: None,
        on_sealed: Arc::new(|_| ()),
    };
    let failed = Sealer::new(options).seal(&snapshot).expect_err("no room");
    let SealError::Write { root: told, .. } = &*failed else { panic!("{failed}") };
    assert_eq!(told, &std::path::PathBuf::from(root).canonicalize().expect("there"));
}

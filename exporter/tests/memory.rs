//! The memory that sealing takes, in a process of its own. Slow: runs where LAYERWRIGHT_NIGHTLY is set.

mod support;

use std::{fs, io::Write};

use exporter::{Encoder, TimePolicy};
use oci::Snapshot;
use support::{Described, Workshop};

const MIB: u64 = 1024 * 1024;
const LIMIT_KIB: u64 = 256 * 1024;

#[test]
fn two_gibibytes_are_sealed_in_an_eighth_of_that() {
    if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_none() {
        return eprintln!("SKIPPED: set LAYERWRIGHT_NIGHTLY to seal layers of two GiB");
    }
    let workshop = Workshop::new();
    let zeros = large_layer(&workshop, "zeros", |_| {});
    let noise = large_layer(&workshop, "noise", fill);
    for encoder in [Encoder::GZIP, Encoder::ZSTD] {
        let sealer = workshop.sealer(encoder, TimePolicy::Default, 8);
        for snapshot in [&zeros, &noise] {
            sealer.offer(snapshot);
        }
        for snapshot in [&zeros, &noise] {
            sealer.seal(snapshot).expect("sealed");
        }
    }
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < LIMIT_KIB, "sealing took {} MiB", peak / 1024);
    eprintln!("sealing two layers of two GiB at once took {} MiB", peak / 1024);
}

fn fill(block: &mut [u8]) {
    let mut state = u64::from_le_bytes(block[..8].try_into().expect("eight bytes")) | 1;
    for byte in block {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
}

/// A layer with one file of two GiB, which is never in memory whole.
fn large_layer(workshop: &Workshop, name: &str, next: impl Fn(&mut [u8])) -> Snapshot {
    let path = workshop.path(name);
    let mut file = fs::File::create(&path).expect("made");
    let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; MIB as usize]);
    for _ in 0..2048 {
        next(&mut block);
        hasher.update(&block);
        file.write_all(&block).expect("written");
    }
    let kind = oci::EntryKind::File { size: 2048 * MIB, content: hasher.finalize().into() };
    let entry = oci::Entry { path: name.into(), kind, metadata: oci::Metadata::default() };
    let tree = oci::Tree::new(vec![entry]).expect("valid");
    let snapshot = workshop.step(&Snapshot::default(), &Described { tree, files: Default::default() });
    fs::rename(path, workshop.files_of(&snapshot).join(name)).expect("moved");
    snapshot
}

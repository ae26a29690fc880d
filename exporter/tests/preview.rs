//! What was compressed while a step ran helps with its layer, and never reaches a byte of it.

mod support;

use std::{collections::BTreeMap, fs, sync::Arc};

use exporter::{Encoder, Preview, TimePolicy};
use oci::{ContentDigest, Entry, EntryKind, FileSource, LayerPreview, Metadata, Snapshot, Tree};
use proptest::prelude::*;
use support::{Described, Workshop};

type Files = BTreeMap<String, Vec<u8>>;

/// Bytes that look random and are the same everywhere: of every four three are random, so that they compress a little.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = (seed << 1) | 1;
    let next = |index| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if index % 4 == 0 { b'x' } else { (state >> 56) as u8 }
    };
    (0..length).map(next).collect()
}

fn described(files: &Files) -> Described {
    let entry = |(path, content): (&String, &Vec<u8>)| Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::File { size: content.len() as u64, content: ContentDigest::of(content) },
        metadata: Metadata { mode: 0o644, ..Metadata::default() },
    };
    let tree = Tree::new(files.iter().map(entry).collect()).expect("valid");
    Described {
        tree,
        files: files.iter().map(|(path, content)| (path.clone().into(), content.clone())).collect(),
    }
}

/// Looks at a layer whose files are those of another moment.
fn look(preview: &Preview, tree: &Tree, files: &dyn FileSource) {
    preview.look(tree, files, &|| false);
}

/// The digest of the layer of these files.
fn sealed(workshop: &Workshop, files: &Files, preview: Option<&Arc<Preview>>) -> oci::Sha256Digest {
    let snapshot = workshop.step(&Snapshot::default(), &described(files));
    let sealer = match preview {
        None => workshop.sealer(Encoder::GZIP, TimePolicy::Default, 2),
        Some(preview) => workshop.previewed_sealer(preview, Encoder::GZIP),
    };
    let digest = sealer.seal(&snapshot).expect("sealed")[0].descriptor.digest;
    let blob = fs::read(workshop.store.blob_path(&digest)).expect("a blob");
    assert_eq!(oci::Sha256Digest::of(&blob), digest);
    digest
}

/// What a step does between two looks.
#[derive(Debug, Clone)]
enum Edit {
    Write(u8, usize, u64),
    Remove(u8),
    Truncate(u8, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let (name, length) = (0u8..24, 0usize..300_000);
    prop_oneof![
        4 => (name.clone(), length.clone(), any::<u64>()).prop_map(|(name, length, seed)| Edit::Write(name, length, seed)),
        1 => name.clone().prop_map(Edit::Remove),
        1 => (name, length).prop_map(|(name, length)| Edit::Truncate(name, length)),
    ]
}

fn apply(files: &mut Files, edit: &Edit) {
    let path = |name: &u8| format!("d/{name:02}");
    match edit {
        Edit::Write(name, length, seed) => drop(files.insert(path(name), noise(*length, *seed))),
        Edit::Remove(name) => drop(files.remove(&path(name))),
        Edit::Truncate(name, length) => files.entry(path(name)).or_default().truncate(*length),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn looks_at_any_moment_of_a_changing_tree_do_not_change_the_layer(
        steps in prop::collection::vec((prop::collection::vec(edit(), 1..8), any::<bool>()), 1..6),
    ) {
        let workshop = Workshop::new();
        let preview = Arc::new(Preview::new(workshop.store.clone(), Encoder::GZIP, TimePolicy::Default));
        let mut files = Files::new();
        for (edits, is_torn) in &steps {
            let before = described(&files);
            edits.iter().for_each(|edit| apply(&mut files, edit));
            let now = described(&files);
            // Torn: what is read is newer than what was listed.
            look(&preview, if *is_torn { &before.tree } else { &now.tree }, &now);
        }
        apply(&mut files, &Edit::Write(0, 10, 1));
        let with = sealed(&workshop, &files, Some(&preview));
        prop_assert_eq!(with, sealed(&Workshop::new(), &files, None));
    }
}

#[test]
fn what_is_kept_comes_again_and_not_when_it_is_another_encoder() {
    let files: Files = (0..40).map(|index| (format!("d/{index:02}"), noise(200_000, index))).collect();
    let workshop = Workshop::new();
    for encoder in [Encoder::ZSTD, Encoder::Gzip(exporter::GzipLevel::new(9).expect("a level"))] {
        let preview = Arc::new(Preview::new(workshop.store.clone(), encoder, TimePolicy::Default));
        look(&preview, &described(&files).tree, &described(&files));
        assert_eq!(sealed(&Workshop::new(), &files, Some(&preview)), sealed(&Workshop::new(), &files, None));
    }
}

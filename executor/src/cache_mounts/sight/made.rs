//! What steps have made on top of a base, as the trees of their layers tell it: which paths there are, what they hide of what
//! is below, and a hash of what each is. No file is read for it.

use std::collections::{BTreeMap, BTreeSet};

use oci::{ContentDigest, EntryKind, Layer, Snapshot, Tree, TreeDigest};

use super::super::{CacheMountError, ledger::Face};
use crate::{Snapshots, rootfs::split};

/// What a layer's entries say of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    File(Face),
    Symlink(Face),
    Directory,
    Special,
}

impl Made {
    fn letter(self) -> u8 {
        match self {
            Self::File(_) => b'f',
            Self::Symlink(_) => b'l',
            Self::Directory => b'd',
            Self::Special => b's',
        }
    }
}

/// What steps have made on top of a base.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Above {
    pub(super) files: BTreeMap<Vec<u8>, Made>,
    pub(super) hidden: BTreeSet<Vec<u8>>,
}

pub(super) fn layers(
    snapshots: &Snapshots,
    snapshot: &Snapshot,
) -> Result<(TreeDigest, Above), CacheMountError> {
    let is_base = |layer: &Layer| matches!(layer, Layer::Base(_));
    let base = snapshot.layers.iter().rposition(is_base).map_or(0, |last| last + 1);
    let (base, steps) = snapshot.layers.split_at(base);
    let mut above = Above::default();
    for layer in steps.iter().filter(|layer| !layer.is_empty()) {
        above.add(&snapshots.read_tree(&layer.tree())?);
    }
    Ok((Snapshot { layers: base.to_vec() }.digest(), above))
}

impl Above {
    fn add(&mut self, tree: &Tree) {
        for entry in tree.entries() {
            let path = &entry.path;
            let made = match &entry.kind {
                EntryKind::Whiteout => {
                    self.remove(path);
                    self.hidden.insert(path.clone());
                    continue;
                }
                EntryKind::Opaque => {
                    self.remove_below(path);
                    self.hidden.insert(path.clone());
                    continue;
                }
                EntryKind::Directory => Made::Directory,
                EntryKind::File { content, .. } => Made::File(file_face(entry.metadata.mode, content)),
                EntryKind::Symlink { target } => Made::Symlink(symlink_face(target)),
                // Its target comes first, and is a file or something special.
                EntryKind::HardLink { target } => self.files.get(target).copied().unwrap_or(Made::Special),
                EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                    Made::Special
                }
            };
            if made != Made::Directory {
                self.remove_below(path);
            }
            self.files.insert(path.clone(), made);
        }
    }

    fn remove(&mut self, path: &[u8]) {
        self.files.remove(path);
        self.remove_below(path);
    }

    fn remove_below(&mut self, path: &[u8]) {
        let (first, end) = ([path, b"/"].concat(), [path, b"0"].concat());
        let gone: Vec<_> = self.files.range(first..end).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.files.remove(&path);
        }
    }
}

/// The directories that steps have made or put something into, and a hash of what they have put there.
pub(super) fn directories(
    files: &BTreeMap<Vec<u8>, Made>,
    hidden: &BTreeSet<Vec<u8>>,
) -> BTreeMap<Vec<u8>, Face> {
    let mut names: BTreeMap<Vec<u8>, u8> = hidden.iter().map(|path| (path.clone(), b'-')).collect();
    names.extend(files.iter().map(|(path, made)| (path.clone(), made.letter())));
    for path in names.keys().cloned().collect::<Vec<_>>() {
        let mut parent = split(&path).0;
        while names.get(parent).is_none_or(|letter| *letter != b'd') {
            names.insert(parent.to_vec(), b'd');
            parent = split(parent).0;
        }
    }
    let mut faces: BTreeMap<Vec<u8>, blake3::Hasher> = BTreeMap::new();
    for (path, letter) in &names {
        if *letter == b'd' {
            faces.entry(path.clone()).or_default();
        }
        if !path.is_empty() {
            let (parent, name) = split(path);
            faces.entry(parent.to_vec()).or_default().update(name).update(&[0, *letter]);
        }
    }
    let face = |hasher: blake3::Hasher| finish(b'd', hasher.finalize().as_bytes());
    faces.into_iter().map(|(path, hasher)| (path, face(hasher))).collect()
}

pub(super) fn file_face(mode: u32, content: &ContentDigest) -> Face {
    finish(b'f', &[&mode.to_le_bytes()[..], content.as_bytes()].concat())
}

pub(super) fn symlink_face(target: &[u8]) -> Face {
    finish(b'l', target)
}

fn finish(letter: u8, bytes: &[u8]) -> Face {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[letter]).update(bytes);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use oci::{Entry, Metadata};

    use super::*;

    fn tree(entries: &[(&str, EntryKind)]) -> Tree {
        let entry = |(path, kind): &(&str, EntryKind)| Entry {
            path: path.as_bytes().to_vec(),
            kind: kind.clone(),
            metadata: Metadata::default(),
        };
        Tree::new(entries.iter().map(entry).collect()).unwrap()
    }

    fn file(content: &str) -> EntryKind {
        EntryKind::File { size: content.len() as u64, content: ContentDigest::of(content.as_bytes()) }
    }

    fn above(layers: &[&[(&str, EntryKind)]]) -> Above {
        let mut above = Above::default();
        layers.iter().for_each(|layer| above.add(&tree(layer)));
        above
    }

    fn text(paths: impl IntoIterator<Item = Vec<u8>>) -> Vec<String> {
        paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    }

    #[test]
    fn layers_hide_what_is_below() {
        use EntryKind::{Directory, Fifo, HardLink, Opaque, Whiteout};
        let first: &[(&str, EntryKind)] = &[
            ("d", Directory),
            ("d/a", file("a")),
            ("d/e", Directory),
            ("d/e/b", file("b")),
            ("d.x", file("x")),
        ];
        let link = HardLink { target: b"d/a".to_vec() };
        for (second, files, hidden) in [
            (vec![("d", Whiteout)], vec!["d.x"], vec!["d"]),
            (vec![("d", Directory), ("d", Opaque)], vec!["d", "d.x"], vec!["d"]),
            (vec![("d", Fifo)], vec!["d", "d.x"], vec![]),
            (vec![("d/e", Whiteout), ("d/e", Directory)], vec!["d", "d.x", "d/a", "d/e"], vec!["d/e"]),
            (vec![("d/a", file("z")), ("z", link)], vec!["d", "d.x", "d/a", "d/e", "d/e/b", "z"], vec![]),
        ] {
            let above = above(&[first, &second]);
            assert_eq!(text(above.files.keys().cloned()), files, "{second:?}");
            assert_eq!(text(above.hidden), hidden, "{second:?}");
            if let (Some(z), Some(a)) = (above.files.get(&b"z"[..]), above.files.get(&b"d/a"[..])) {
                assert_eq!(z, a, "names of one file");
            }
        }
    }

    #[test]
    fn a_directory_is_its_names() {
        use EntryKind::{Directory, Symlink, Whiteout};
        let face = |layers: &[&[(&str, EntryKind)]], path: &str| {
            let Above { files, hidden } = above(layers);
            directories(&files, &hidden).remove(path.as_bytes())
        };
        let one: &[(&str, EntryKind)] = &[("a/b/c", file("1"))];
        let same: &[(&str, EntryKind)] = &[("a", Directory), ("a/b/c", file("2"))];
        for path in ["", "a", "a/b"] {
            assert!(face(&[one], path).is_some(), "{path:?} is there");
            assert_eq!(face(&[one], path), face(&[same], path), "{path:?}");
        }
        let link = Symlink { target: b"x".to_vec() };
        for other in [("a/b/d", file("1")), ("a/b/c", Whiteout), ("a/b/c", link), ("a/b/c", Directory)] {
            let other: &[(&str, EntryKind)] = &[other];
            assert_ne!(face(&[one], "a/b"), face(&[one, other], "a/b"), "{other:?}");
            assert_eq!(face(&[one], "a"), face(&[one, other], "a"), "{other:?}");
        }
    }
}

//! Compares what is on disk with what should be there.

use std::collections::BTreeSet;

use oci::{Entry, EntryKind, Tree};

use crate::{listing::Owners, rootfs::shown};

/// What a directory should hold.
pub(super) enum Wanted<'a> {
    /// Exactly what was there when it was written.
    All(&'a Tree),
    /// A layer that a step made, as overlayfs notes it down: beside the entries of its tree there may be directories on the
    /// way to them, marks, and in opaque directories copies of what these hide.
    Layer {
        /// The layer.
        tree: &'a Tree,
        /// Owners that the disk could not hold.
        owners: &'a Owners,
        /// Whether a file is the same one level down.
        is_below: &'a dyn Fn(&Entry) -> bool,
    },
    /// A whole file system that ends in a layer that a step made.
    Copy {
        /// The layer.
        tree: &'a Tree,
        /// Owners that the disk could not hold.
        owners: &'a Owners,
        /// Whether a file is the same one level down.
        is_below: &'a dyn Fn(&Entry) -> bool,
    },
}

/// The first difference, in words.
pub(super) fn difference(wanted: &Wanted<'_>, found: &Tree) -> Option<String> {
    match wanted {
        Wanted::All(tree) => {
            let lacks = tree.entries().iter().find_map(|entry| lack(entry, found, &Owners::new()));
            lacks.or_else(|| found.entries().iter().find(|entry| !has(tree, entry)).map(too_many))
        }
        Wanted::Copy { tree, owners, is_below } => difference_of_copy(tree, owners, is_below, found),
        Wanted::Layer { tree, owners, is_below } => {
            let hidden = Hidden::of(found);
            let lack = |entry: &Entry| match entry.kind {
                EntryKind::Whiteout if has(found, entry) || hidden.covers(&entry.path) => None,
                _ => lack(entry, found, owners),
            };
            let is_surplus = |entry: &&Entry| {
                let is_mark =
                    matches!(entry.kind, EntryKind::Directory | EntryKind::Opaque | EntryKind::Whiteout);
                let was_below = || hidden.covers(&entry.path) && is_below(entry);
                !(is_mark || has(tree, entry) || was_below())
            };
            let lacks = tree.entries().iter().find_map(lack);
            lacks.or_else(|| found.entries().iter().find(is_surplus).map(too_many))
        }
    }
}

/// The first difference of a copy.
fn difference_of_copy(
    tree: &Tree,
    owners: &Owners,
    is_below: &dyn Fn(&Entry) -> bool,
    found: &Tree,
) -> Option<String> {
    let lack = |entry: &Entry| match entry.kind {
        EntryKind::Whiteout if tree.get(&entry.path).is_some() => None,
        EntryKind::Whiteout => found.get(&entry.path).map(too_many),
        _ => lack(entry, found, owners),
    };
    let is_surplus = |entry: &&Entry| !(has(tree, entry) || is_below(entry));
    let lacks = tree.entries().iter().find_map(lack);
    lacks.or_else(|| found.entries().iter().find(is_surplus).map(too_many))
}

/// Directories on disk that hide all that is below them.
struct Hidden<'a>(BTreeSet<&'a [u8]>);

impl<'a> Hidden<'a> {
    fn of(tree: &'a Tree) -> Self {
        let opaque = tree.entries().iter().filter(|entry| entry.kind == EntryKind::Opaque);
        Self(opaque.map(|entry| entry.path.as_slice()).collect())
    }

    fn covers(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.map(|(at, _)| &path[..at]).any(|above| self.0.contains(above))
    }
}

/// Whether a tree has something of the same sort at an entry's path.
fn has(tree: &Tree, entry: &Entry) -> bool {
    at(tree, entry).is_some()
}

/// What a tree has at an entry's path: a mark for a mark, something for something.
fn at<'a>(tree: &'a Tree, entry: &Entry) -> Option<&'a Entry> {
    match entry.kind {
        EntryKind::Whiteout | EntryKind::Opaque => {
            let entries = tree.entries();
            let first = entries.partition_point(|other| other.path < entry.path);
            let same = entries[first..].iter().take_while(|other| other.path == entry.path);
            same.into_iter().find(|other| other.kind == entry.kind)
        }
        _ => tree.get(&entry.path),
    }
}

fn too_many(entry: &Entry) -> String {
    format!("it holds /{}, which does not belong there", shown(&entry.path))
}

fn lack(wanted: &Entry, found: &Tree, owners: &Owners) -> Option<String> {
    let path = shown(&wanted.path);
    let Some(found) = at(found, wanted) else {
        return Some(match wanted.kind {
            EntryKind::Whiteout => format!("the mark that /{path} is removed is missing"),
            EntryKind::Opaque => format!("the mark that /{path} is new is missing"),
            _ => format!("/{path} is missing"),
        });
    };
    let what = unlike(wanted, found, owners)?;
    Some(format!("/{path} has another {what}"))
}

/// In what two entries differ. Times are left out: those on disk are when things were written.
fn unlike(wanted: &Entry, found: &Entry, owners: &Owners) -> Option<&'static str> {
    let (is, was) = (&found.metadata, &wanted.metadata);
    let is_mark = matches!(wanted.kind, EntryKind::Whiteout | EntryKind::Opaque);
    match (&wanted.kind, &found.kind) {
        (EntryKind::File { size, .. }, EntryKind::File { size: other, .. }) if size != other => Some("size"),
        (EntryKind::File { content, .. }, EntryKind::File { content: other, .. }) if content != other => {
            Some("content")
        }
        (EntryKind::Symlink { target }, EntryKind::Symlink { target: other }) if target != other => {
            Some("link target")
        }
        (kind, other) if kind != other => Some("kind"),
        _ if is_mark => None,
        _ if is.mode != was.mode => Some("mode"),
        _ if (is.uid, is.gid) != (was.uid, was.gid) && !owners.contains_key(&wanted.path) => Some("owner"),
        _ if is.xattrs != was.xattrs => Some("set of extended attributes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use oci::{ContentDigest, Metadata};

    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.into(), kind, metadata: Metadata { mode: 0o755, ..Metadata::default() } }
    }

    fn file(path: &str, text: &str) -> Entry {
        entry(path, EntryKind::File { size: text.len() as u64, content: ContentDigest::of(text.as_bytes()) })
    }

    fn tree(entries: &[Entry]) -> Tree {
        Tree::new(entries.to_vec()).expect("valid entries")
    }

    fn base() -> Vec<Entry> {
        let link = entry("d/l", EntryKind::Symlink { target: b"f".to_vec() });
        let gone = Entry { metadata: Metadata::default(), ..entry("gone", EntryKind::Whiteout) };
        vec![entry("d", EntryKind::Directory), file("d/f", "text"), link, gone]
    }

    #[test]
    fn every_difference_is_told_where_it_is() {
        let wanted = tree(&base());
        assert_eq!(difference(&Wanted::All(&wanted), &wanted), None);
        let change = |at: usize, change: fn(&mut Entry)| {
            let mut entries = base();
            change(&mut entries[at]);
            tree(&entries)
        };
        let without = |at: usize| {
            let mut entries = base();
            entries.remove(at);
            tree(&entries)
        };
        for (found, told) in [
            (change(1, |entry| *entry = file("d/f", "texT")), "/d/f has another content"),
            (change(1, |entry| *entry = file("d/f", "texts")), "/d/f has another size"),
            (change(1, |entry| entry.metadata.mode = 0o4755), "/d/f has another mode"),
            (change(0, |entry| entry.metadata.gid = 1), "/d has another owner"),
            (change(1, |entry| entry.kind = EntryKind::Fifo), "/d/f has another kind"),
            (
                change(1, |entry| drop(entry.metadata.xattrs.insert(b"user.a".to_vec(), vec![]))),
                "/d/f has another set of extended attributes",
            ),
            (
                change(2, |entry| entry.kind = EntryKind::Symlink { target: b"g".to_vec() }),
                "/d/l has another link target",
            ),
            (without(1), "/d/f is missing"),
            (without(3), "the mark that /gone is removed is missing"),
            (tree(&[base(), vec![file("d/g", "")]].concat()), "it holds /d/g, which does not belong there"),
        ] {
            assert_eq!(difference(&Wanted::All(&wanted), &found).as_deref(), Some(told));
        }
    }

    #[test]
    fn overlayfs_notes_of_a_layer_are_no_difference() {
        let (layer, owners) = (tree(&base()), Owners::new());
        let layer_of = |is_below| Wanted::Layer { tree: &layer, owners: &owners, is_below };
        let mut found = base();
        found.extend([entry("on/the/way", EntryKind::Directory), entry("x", EntryKind::Whiteout)]);
        assert_eq!(difference(&layer_of(&|_| false), &tree(&found)), None);
        found.push(file("on/the/way/f", "x"));
        let told = difference(&layer_of(&|_| true), &tree(&found));
        assert_eq!(told.as_deref(), Some("it holds /on/the/way/f, which does not belong there"));
        found.push(entry("on", EntryKind::Opaque));
        assert_eq!(difference(&layer_of(&|_| true), &tree(&found)), None, "it was there before");
        assert!(difference(&layer_of(&|_| false), &tree(&found)).is_some(), "it was not");
    }

    #[test]
    fn what_an_opaque_directory_hides_needs_no_mark_and_lost_owners_are_not_compared() {
        let gone = Entry { metadata: Metadata::default(), ..entry("d/gone", EntryKind::Whiteout) };
        let mut owned = file("d/f", "text");
        owned.metadata.uid = 33;
        let layer = tree(&[entry("d", EntryKind::Directory), owned, gone]);
        let on_disk = [entry("d", EntryKind::Directory), file("d/f", "text")];
        let owners = Owners::from([(b"d/f".to_vec(), (33, 0))]);
        let wanted = Wanted::Layer { tree: &layer, owners: &owners, is_below: &|_| false };
        let told = difference(&wanted, &tree(&on_disk));
        assert_eq!(told.as_deref(), Some("the mark that /d/gone is removed is missing"));
        let opaque = [&on_disk[..], &[entry("d", EntryKind::Opaque)]].concat();
        assert_eq!(difference(&wanted, &tree(&opaque)), None);
    }
}

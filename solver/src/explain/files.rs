//! What differs between two lists of files.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Inventory, Item, ItemKind};

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Path from the source's root, without a leading slash; `.` is the root itself.
    pub path: String,
    /// In what.
    #[serde(flatten)]
    pub change: Change,
}

/// What differs about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum Change {
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
    /// Its bytes.
    Content,
    /// Its permission bits.
    Mode {
        /// As they were.
        from: u32,
        /// As they are.
        to: u32,
    },
    /// Where a link points.
    Link {
        /// Where it pointed.
        from: String,
        /// Where it points.
        to: String,
    },
    /// What it is.
    Kind {
        /// What it was.
        from: String,
        /// What it is.
        to: String,
    },
}

/// All that differs, by path. Directories that came or went with something in them are not told of.
pub fn changes(before: &Inventory, after: &Inventory) -> Vec<FileChange> {
    let (Inventory(before), Inventory(after)) = (before, after);
    let added = after.iter().filter(|(path, item)| !before.contains_key(*path) && is_told(after, path, item));
    let removed =
        before.iter().filter(|(path, item)| !after.contains_key(*path) && is_told(before, path, item));
    let both = before.iter().filter_map(|(path, item)| Some((path, item, after.get(path)?)));
    let told = |path: &String, change| FileChange { path: shown(path), change };
    let mut changes: Vec<FileChange> = added.map(|(path, _)| told(path, Change::Added)).collect();
    changes.extend(removed.map(|(path, _)| told(path, Change::Removed)));
    changes.extend(
        both.flat_map(|(path, from, to)| between(from, to).into_iter().map(move |change| told(path, change))),
    );
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn shown(path: &str) -> String {
    if path.is_empty() { ".".to_owned() } else { path.to_owned() }
}

fn is_told(items: &BTreeMap<String, Item>, path: &str, item: &Item) -> bool {
    let inside = format!("{path}/");
    let has_more = || items.range(inside.clone()..).next().is_some_and(|(next, _)| next.starts_with(&inside));
    item.kind != ItemKind::Directory || !has_more()
}

fn between(from: &Item, to: &Item) -> Vec<Change> {
    let kind = match (&from.kind, &to.kind) {
        (from, to) if from == to => None,
        (ItemKind::File(_), ItemKind::File(_)) => Some(Change::Content),
        (ItemKind::Link(from), ItemKind::Link(to)) => {
            Some(Change::Link { from: from.clone(), to: to.clone() })
        }
        (from, to) => Some(Change::Kind { from: in_words(from), to: in_words(to) }),
    };
    // The mode of another kind of thing is no news.
    let is_same_kind = !matches!(kind, Some(Change::Kind { .. }));
    let mode =
        (from.mode != to.mode && is_same_kind).then_some(Change::Mode { from: from.mode, to: to.mode });
    kind.into_iter().chain(mode).collect()
}

fn in_words(kind: &ItemKind) -> String {
    match kind {
        ItemKind::Directory => "directory".to_owned(),
        ItemKind::File(_) => "file".to_owned(),
        ItemKind::Link(_) => "link".to_owned(),
        ItemKind::Other(words) => words.clone(),
    }
}

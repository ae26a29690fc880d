//! What people are told about a context: all that it holds, and which line of the ignore file decides about a path.

use std::os::fd::AsFd;

use solver::{
    Cancel,
    op::Selector,
    pattern::ignore::{self, Matcher},
};

use super::{CommitContext, ContextDirectory, ContextError, Ignore};
use crate::{
    git::{CommitTerrain, known::Known},
    listing::{
        ListError, NodeKind,
        disk::{Disk, DiskKind},
        lookup::{LastLink, resolve},
        sight,
        walk::{Seen, is_unread},
    },
    rootfs::shown,
};

/// One thing in a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the context.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What a thing in a context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link, and where it points.
    Link(String),
    /// What no COPY takes: a device.
    Other,
}

/// What the ignore file says about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Whether COPY and ADD cannot see it.
    pub excluded: bool,
    /// Whether there is such a path, seen or not.
    pub exists: bool,
    /// The line that decides; none where no pattern matches.
    pub line: Option<IgnoreLine>,
}

/// A line of an ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreLine {
    /// What the file is called.
    pub file: String,
    /// Counted from 1.
    pub number: usize,
    /// As written, cleaned.
    pub pattern: String,
}

impl ContextDirectory {
    /// Everything that COPY and ADD can see, by path.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn entries(&self, cancel: &Cancel) -> Result<Vec<Entry>, ContextError> {
        let root = self.open()?;
        let ignore = self.ignore.as_ref().map(|ignore| &ignore.matcher);
        let disk = Disk { root: root.as_fd(), kind: DiskKind::Context { ignore }, cancel };
        let sight = sight::see(&disk, &all()).map_err(|error| self.told(error))?;
        Ok(sight.settled().0.into_iter().map(|thing| Entry::of(&thing.path, thing.node.kind)).collect())
    }

    /// What the ignore file says about a path, cleaned and relative to the context. Whether it is there is looked up.
    ///
    /// # Errors
    /// The context cannot be opened.
    pub fn ruling(&self, path: &str) -> Result<Ruling, ContextError> {
        let root = self.open()?;
        let disk =
            Disk { root: root.as_fd(), kind: DiskKind::Context { ignore: None }, cancel: &Cancel::default() };
        let found = resolve(&disk, path.as_bytes(), LastLink::Keep, &mut Vec::new());
        Ok(rule(self.ignore.as_ref(), path, matches!(found, Ok(Some(_)))))
    }
}

impl CommitContext {
    /// Everything that COPY and ADD can see, by path. How long a file is says its object, or the pointer of Git LFS; no other is
    /// read, and no file of LFS need be here.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn entries(&self, cancel: &Cancel) -> Result<Vec<Entry>, ContextError> {
        let (known, ignore) = (Known::default(), self.ignore().map(|ignore| &ignore.matcher));
        let terrain = CommitTerrain { tree: self.tree(), ignore, known: &known, cancel };
        let (seen, _) = sight::see(&terrain, &all())?.settled();
        let files = seen.iter().filter(|thing| is_unread(&thing.node));
        self.tree().bring(files.map(|thing| thing.path.as_slice()), Some(cancel)).map_err(ListError::from)?;
        let entry = |Seen { path, node, .. }: Seen| {
            let kind = match is_unread(&node) {
                true => NodeKind::File { size: self.tree().size(&path)?, content: None },
                false => node.kind,
            };
            Ok(Entry::of(&path, kind))
        };
        let entries: Result<_, ListError> = seen.into_iter().map(entry).collect();
        Ok(entries?)
    }

    /// What the ignore file says about a path, cleaned and relative to the context. Whether it is there is looked up.
    ///
    /// # Errors
    /// A directory on the way cannot be read.
    pub fn ruling(&self, path: &str) -> Result<Ruling, ContextError> {
        let (known, cancel) = (Known::default(), Cancel::default());
        let terrain = CommitTerrain { tree: self.tree(), ignore: None, known: &known, cancel: &cancel };
        let found = resolve(&terrain, path.as_bytes(), LastLink::Keep, &mut Vec::new())?;
        Ok(rule(self.ignore(), path, found.is_some()))
    }
}

impl Entry {
    fn of(path: &[u8], kind: NodeKind) -> Self {
        let kind = match kind {
            NodeKind::Directory => EntryKind::Directory,
            NodeKind::File { size, .. } => EntryKind::File(size),
            NodeKind::Symlink { target } => EntryKind::Link(shown(&target)),
            _ => EntryKind::Other,
        };
        Self { path: shown(path), kind }
    }
}

/// Picks everything.
fn all() -> Selector {
    Selector { include: vec![String::new()], ..Selector::default() }
}

fn rule(ignore: Option<&Ignore>, path: &str, exists: bool) -> Ruling {
    let (excluded, line) = match ignore {
        Some(ignore) => (ignore.matcher.matches(path), ignore.deciding_line(path)),
        None => (false, None),
    };
    Ruling { excluded, exists, line }
}

impl Ignore {
    /// The last line that changes what the lines before it say of the path.
    fn deciding_line(&self, path: &str) -> Option<IgnoreLine> {
        let lines = ignore::read_lines(&self.file.text);
        let patterns: Vec<String> = lines.iter().map(|(_, pattern)| pattern.clone()).collect();
        let excluded =
            |count: usize| Matcher::new(&patterns[..count]).is_ok_and(|matcher| matcher.matches(path));
        let (mut before, mut deciding) = (false, None);
        for count in 1..=patterns.len() {
            let now = excluded(count);
            if now != before {
                (before, deciding) = (now, Some(count - 1));
            }
        }
        let (number, pattern) = lines.into_iter().nth(deciding?)?;
        Some(IgnoreLine { file: self.file.name.clone(), number, pattern })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ContextModes, IgnoreFile};

    fn context(ignore: &str) -> (tempfile::TempDir, ContextDirectory) {
        let directory = tempfile::tempdir().expect("made");
        for path in ["a/one.txt", "a/keep.txt", "b/deep/x", "top"] {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
            std::fs::write(path, "12").expect("written");
        }
        std::os::unix::fs::symlink("top", directory.path().join("link")).expect("made");
        let file = IgnoreFile { name: ".dockerignore".to_owned(), text: ignore.to_owned() };
        let path = directory.path().to_owned();
        let files = ContextDirectory::new(path, Some(file), ContextModes::Normalise).expect("sound");
        (directory, files)
    }

    #[test]
    fn what_can_be_copied_is_listed() {
        let (_directory, files) = context("# no text\n\n*/*.txt\n!a/keep.txt\nb\n");
        let entries = files.entries(&Cancel::default()).expect("listed");
        let shown: Vec<(&str, &EntryKind)> =
            entries.iter().map(|entry| (entry.path.as_str(), &entry.kind)).collect();
        let link = EntryKind::Link("top".to_owned());
        assert_eq!(
            shown,
            [
                ("a", &EntryKind::Directory),
                ("a/keep.txt", &EntryKind::File(2)),
                ("link", &link),
                ("top", &EntryKind::File(2)),
            ]
        );
    }

    #[test]
    fn the_line_that_decides_is_told() {
        let (_directory, files) = context("# no text\n\n*/*.txt\n!a/keep.txt\nb\n");
        for (path, excluded, exists, line) in [
            ("a/one.txt", true, true, Some((3, "*/*.txt"))),
            ("a/keep.txt", false, true, Some((4, "!a/keep.txt"))),
            ("b/deep/x", true, true, Some((5, "b"))),
            ("b/none", true, false, Some((5, "b"))),
            ("top", false, true, None),
        ] {
            let ruling = files.ruling(path).expect("asked");
            let line = line.map(|(number, pattern): (usize, &str)| IgnoreLine {
                file: ".dockerignore".to_owned(),
                number,
                pattern: pattern.to_owned(),
            });
            assert_eq!(ruling, Ruling { excluded, exists, line }, "{path}");
        }
    }
}

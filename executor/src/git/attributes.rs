//! Which files of a commit git puts through a filter: what `.gitattributes` of the commit say, those of a directory and of all
//! above it, by git's rules (patterns by path, the last line that says something of an attribute, a deeper file before a higher
//! one, `-filter` and `!filter`, macros of the top, quoted patterns).
//!
//! `.git/info/attributes` and the files of users and machines are in no commit, so they do not count: two clones would be two
//! images.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use gix::{
    ObjectId,
    bstr::ByteSlice,
    glob::pattern::Case,
    objs::{Kind, TreeRefIter, tree::EntryKind},
};
use gix_attributes::{
    Search, StateRef,
    search::{MetadataCollection, Outcome},
};

use super::{GitError, tree::Directory};
use crate::rootfs::join;

/// The file that says what git does with others.
const NAME: &[u8] = b".gitattributes";
/// The attribute that names a filter.
const FILTER: &str = "filter";

/// Files of attributes: whose they are, by path from the top of the repository, and their ids.
pub(super) type AttributeFiles = Vec<(Vec<u8>, ObjectId)>;

/// What is said of the files of one directory.
#[derive(Debug)]
pub(super) struct Attributes {
    search: Search,
    names: MetadataCollection,
}

impl Attributes {
    /// What is said in a directory, and in those above it; `None` where nobody says anything of a filter.
    ///
    /// # Errors
    /// An object cannot be read.
    pub(super) fn of(directory: &Directory) -> Result<Option<Self>, GitError> {
        let mut names = MetadataCollection::default();
        let unread = |_| GitError::Refused { path: String::new(), reason: "its attributes cannot be read" };
        let none = std::iter::empty::<&Path>();
        let mut search = Search::new_globals(none, &mut Vec::new(), &mut names).map_err(unread)?;
        let mut says_something = false;
        for (dir, id) in directory.attribute_files()? {
            let place = join(dir, NAME);
            let text = directory.repository.object(id, Kind::Blob).map_err(|error| error.at(&place))?;
            says_something |= text.contains_str(FILTER);
            let (place, is_top) = (Path::new(OsStr::from_bytes(&place)).to_owned(), dir.is_empty());
            let added = search.add_patterns_buffer(&text, place, Some(Path::new("")), &mut names, is_top);
            added.map_err(unread)?;
        }
        Ok(says_something.then_some(Self { search, names }))
    }

    /// Whether a file, by its path from the top of the repository, goes through the filter of this name.
    pub(super) fn is_filtered(&self, path: &[u8], filter: &[u8]) -> bool {
        let mut outcome = Outcome::default();
        outcome.initialize_with_selection(&self.names, [FILTER]);
        self.search.pattern_matching_relative_path(
            path.as_bstr(),
            Case::Sensitive,
            Some(false),
            &mut outcome,
        );
        let is_named =
            |state| matches!(state, StateRef::Value(value) if value.as_bstr().as_bytes() == filter);
        outcome.iter_selected().any(|found| is_named(found.assignment.state))
    }
}

/// The files of attributes that count for a directory, the highest first. Git reads no links.
///
/// # Errors
/// An object cannot be read.
pub(super) fn files(directory: &Directory) -> Result<AttributeFiles, GitError> {
    let (repository, mut tree) = (&directory.repository, directory.commit.tree);
    let mut names = directory.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let (mut dir, mut found) = (Vec::new(), Vec::new());
    loop {
        let bytes = repository.object(&tree, Kind::Tree).map_err(|error| error.at(&dir))?;
        let find = |name: &[u8]| {
            let mut entries = TreeRefIter::from_bytes(&bytes, tree.kind()).flatten();
            let entry = entries.find(|entry| entry.filename == name);
            entry.map(|entry| (entry.mode.kind(), entry.oid.to_owned()))
        };
        if let Some((EntryKind::Blob | EntryKind::BlobExecutable, id)) = find(NAME) {
            found.push((dir.clone(), id));
        }
        let Some(name) = names.next() else { return Ok(found) };
        match find(name) {
            Some((EntryKind::Tree, below)) => (tree, dir) = (below, join(&dir, name)),
            _ => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{git::testing::Scratch, rootfs::split};

    /// Whether git would put each path through the filter, and whether we would.
    fn check(files: &[(&str, &str)], paths: &[&str]) -> Vec<String> {
        let scratch = Scratch::new();
        scratch.write(files);
        scratch.write(&paths.iter().map(|path| (*path, "x")).collect::<Vec<_>>());
        scratch.commit();
        let tree = scratch.tree("HEAD");
        let mut filtered = Vec::new();
        for path in paths {
            let said = scratch.git(&["-c", "core.quotePath=false", "check-attr", "-z", "filter", "--", path]);
            let by_git = said.split('\0').nth(2) == Some("lfs");
            let directory = tree.directory(split(path.as_bytes()).0).expect("read").expect("there");
            let attributes = Attributes::of(&directory).expect("read");
            let by_us = attributes.is_some_and(|rules| rules.is_filtered(path.as_bytes(), b"lfs"));
            assert_eq!(by_us, by_git, "{path} under {files:?}");
            filtered.extend(by_us.then(|| (*path).to_owned()));
        }
        filtered
    }

    #[test]
    fn attributes_are_what_git_takes_them_for() {
        let paths = ["a.bin", "a.txt", "d/a.bin", "d/e/a.bin", "d/e/b c.bin", "f/a.bin", "f/g/x"];
        for (files, filtered) in [
            (
                &[(".gitattributes", "*.bin filter=lfs diff=lfs -text\n")][..],
                "a.bin d/a.bin d/e/a.bin d/e/b c.bin f/a.bin",
            ),
            (&[(".gitattributes", "# *.bin filter=lfs\n*.txt text # filter=lfs\n")], ""),
            (&[(".gitattributes", "/*.bin filter=lfs\n")], "a.bin"),
            (&[(".gitattributes", "d/* filter=lfs\n")], "d/a.bin"),
            (&[(".gitattributes", "d/** filter=lfs\n")], "d/a.bin d/e/a.bin d/e/b c.bin"),
            (&[(".gitattributes", "d/ filter=lfs\n")], ""),
            (&[(".gitattributes", "\"b c.bin\" filter=lfs\n")], "d/e/b c.bin"),
            (&[(".gitattributes", "b\\ c.bin filter=lfs\n")], ""),
            (&[(".gitattributes", "[attr]large filter=lfs -text\nd/e/* large\n")], "d/e/a.bin d/e/b c.bin"),
            (
                &[(".gitattributes", "*.bin filter=lfs\nd/e/*.bin -filter\nf/*.bin !filter\n")],
                "a.bin d/a.bin",
            ),
            (
                &[(".gitattributes", "*.bin filter=lfs\n"), ("d/.gitattributes", "a.bin filter=other\n")],
                "a.bin d/e/b c.bin f/a.bin",
            ),
            (
                &[
                    ("d/.gitattributes", "/a.bin filter=lfs\n"),
                    ("d/e/.gitattributes", "*.bin filter=lfs\na.bin -filter\n"),
                ],
                "d/a.bin d/e/b c.bin",
            ),
            (&[("f/.gitattributes", "[attr]large filter=lfs\ng/x large\n")], ""),
            (&[(".gitattributes", "*.bin filter\n*.txt filter=LFS\n")], ""),
            (&[(".gitattributes@", "d/rules"), ("d/rules", "*.bin filter=lfs\n")], ""),
        ] {
            assert_eq!(check(files, &paths).join(" "), filtered, "{files:?}");
        }
    }

    #[test]
    fn what_is_in_no_commit_does_not_count() {
        let scratch = Scratch::new();
        scratch.write(&[("d/x", "1"), ("d/.gitattributes", "y filter=lfs\n")]);
        scratch.commit();
        scratch.write(&[(".git/info/attributes", "x filter=lfs\n"), (".gitattributes", "x filter=lfs\n")]);
        let directory = scratch.tree("HEAD").directory(b"d").expect("read").expect("there");
        let rules = Attributes::of(&directory).expect("read").expect("there are some");
        assert!(rules.is_filtered(b"d/y", b"lfs") && !rules.is_filtered(b"d/x", b"lfs"));
        assert_eq!(directory.attribute_files().expect("read").len(), 1);
    }
}

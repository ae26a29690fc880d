//! What changes on disk when a revision may come to mean another commit, for whoever watches files (`--depfile`).
//!
//! References are files, named in directories, or lines of `packed-refs`. Each is replaced by renaming, which changes the time of
//! its directory, so the directories below `refs` stand for all that is in them, and for what comes into them. They change
//! for other references as well: who watches asks once too often, and never too seldom. A whole hash means one commit for ever.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use gix::ObjectId;

use super::{Repository, Revision};

/// More directories of references than anybody has; the rest would not help who is asked to look at all.
const DIRECTORIES_MAX: usize = 10_000;

impl Revision {
    /// Files and directories of the repository of which one has another time when the revision means something else. `None` where
    /// that cannot be told by a few of them.
    pub fn watched(&self) -> Option<Vec<PathBuf>> {
        match ObjectId::from_hex(self.name().as_bytes()) {
            Ok(named) if named == self.commit().id => Some(Vec::new()),
            _ => self.top().repository().references_on_disk(self.name()),
        }
    }
}

impl Repository {
    /// Where references are kept, and the file of a pseudo-reference that a revision begins with.
    fn references_on_disk(&self, revision: &str) -> Option<Vec<PathBuf>> {
        let (own, common) = (self.directory().to_owned(), self.common_directory());
        let end = revision.find(['^', '~', '@', ':']).unwrap_or(revision.len());
        let begins = Some(&revision[..end]).filter(|name| !name.is_empty() && !name.contains('/'));
        let files = [own.join("HEAD"), common.join("packed-refs")];
        let files = files.into_iter().chain(begins.map(|name| own.join(name)));
        let mut found: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
        // What was in the past is told by logs, which end with what is.
        if revision.contains("@{") {
            found.extend([own.join("logs/HEAD")].into_iter().filter(|path| path.is_file()));
        }
        let mut seen = HashSet::new();
        for top in [common.join("refs"), own.join("refs")] {
            add_directories(&top, &mut seen, &mut found)?;
        }
        found.sort();
        found.dedup();
        Some(found)
    }
}

/// All directories below one, each once however links lead; `None` where there are too many.
fn add_directories(top: &Path, seen: &mut HashSet<(u64, u64)>, found: &mut Vec<PathBuf>) -> Option<()> {
    let mut todo = vec![top.to_owned()];
    while let Some(directory) = todo.pop() {
        let Ok(metadata) = fs::metadata(&directory) else { continue };
        if !metadata.is_dir() || !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        if seen.len() > DIRECTORIES_MAX {
            return None;
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let may_be_one = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| !kind.is_file());
        todo.extend(entries.filter(may_be_one).map(|entry| entry.path()));
        found.push(directory);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::git::testing::Scratch;

    /// The newest time of what is watched, and which paths there are.
    fn state(scratch: &Scratch, revision: &str) -> (Vec<PathBuf>, Vec<SystemTime>) {
        let watched = Revision::open(&scratch.top(), revision).expect("there").watched().expect("told");
        let time = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).expect("there");
        (watched.clone(), watched.iter().map(time).collect())
    }

    #[test]
    fn whatever_moves_a_reference_is_seen() {
        let scratch = Scratch::new();
        scratch.write(&[("a", "1")]);
        let first = scratch.commit();
        scratch.git(&["branch", "feature/x"]);
        scratch.git(&["tag", "v1"]);
        scratch.write(&[("a", "2")]);
        let second = scratch.commit();
        assert!(state(&scratch, &second).0.is_empty(), "a hash is no name");
        for (revision, moves) in [
            ("HEAD", &["commit", "-q", "--allow-empty", "-m", "y"][..]),
            ("HEAD", &["checkout", "-q", "feature/x"]),
            ("main~1", &["branch", "-f", "main", "main~1"]),
            ("feature/x", &["update-ref", "refs/heads/feature/x", &second]),
            ("v1", &["tag", "-f", "v1", &second]),
            ("v1^{commit}", &["tag", "-f", "v1", &first]),
            ("v1", &["pack-refs", "--all"]),
            ("v1", &["update-ref", "refs/tags/v1", &second]),
            ("HEAD", &["checkout", "-q", "--detach", &first]),
            ("HEAD", &["checkout", "-q", "--detach", &second]),
        ] {
            let before = state(&scratch, revision);
            scratch.git(moves);
            let (paths, times) = &before;
            let is_newer = |path: &PathBuf, time: &SystemTime| {
                path.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|now| now > *time)
            };
            let is_seen = paths.iter().zip(times).any(|(path, time)| !path.exists() || is_newer(path, time));
            assert!(is_seen, "{revision} {moves:?} {paths:?}");
        }
    }
}

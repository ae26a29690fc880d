//! Repositories of which not all is on this machine: what is lacking is brought by whoever knows where from.
//!
//! Trees are all here; blobs come when they are needed, many at a time. Whoever knows which files he will read says so
//! first ([`Repository::bring`]). A blob that nobody has spoken of, the Dockerfile for one, does not come alone either: with
//! it come those that say how names are to be read (links, `.gitattributes`, `.gitmodules`, ignore files), of the whole commit,
//! since they are small and would be asked for one by one otherwise.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::Seek,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
};

use gix::{
    ObjectId,
    objs::{Exists, Kind, TreeRefIter, tree::EntryKind},
};
use solver::{Cancel, FailureKind, StepFailure};

use super::{
    Commit, GitError, Repository,
    error::Cause,
    tree::{CommitTree, Directory},
};

/// Larger blobs are read from a file.
const IN_MEMORY: u64 = 32 << 20;
/// So many names of a commit are looked at for what comes along; a commit with more has its links brought one by one.
const NAMES_MAX: usize = 2_000_000;

/// Brings what a repository lacks. May be called from any number of threads at once; a failure leaves the repository as it was.
pub trait Supply: Send + Sync + fmt::Debug {
    /// Brings blobs: those that `lacking` names once nobody else brings any. Returns when all are there.
    fn bring(
        &self,
        lacking: &dyn Fn() -> BTreeSet<ObjectId>,
        cancel: Option<&Cancel>,
    ) -> Result<(), StepFailure>;

    /// The repository that has the commit of a submodule; `None` for one whose files nobody wants.
    fn submodule(&self, link: Gitlink<'_>) -> Result<Option<(Arc<Repository>, Commit)>, StepFailure>;

    /// Whether submodules are wanted at all.
    fn has_submodules(&self) -> bool;

    /// A blob that is here, in a file without a name. Nobody has verified it.
    fn stream(&self, id: &ObjectId) -> Result<File, StepFailure>;

    /// Takes a damaged repository out of the way, so that the next build has it fetched again; `false` where another one uses it.
    fn discard(&self) -> Result<bool, StepFailure>;
}

/// A submodule, as a commit names it.
#[derive(Debug, Clone, Copy)]
pub struct Gitlink<'a> {
    /// Its path, for people.
    pub path: &'a str,
    /// Its commit.
    pub commit: ObjectId,
    /// What `.gitmodules` says of it; `None` where that has no word of it.
    pub module: Option<&'a Module>,
}

/// An entry of `.gitmodules`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Module {
    /// What it is called.
    pub name: Vec<u8>,
    /// Where it is.
    pub path: Option<Vec<u8>>,
    /// Where it comes from.
    pub url: Option<Vec<u8>>,
    /// `update = none`
    pub is_unwanted: bool,
}

/// Who supplies a repository, of which one commit is read.
#[derive(Debug)]
pub(super) struct Supplied {
    pub(super) supply: Arc<dyn Supply>,
    commit: ObjectId,
    /// Held by who brings a blob that nobody has spoken of. Says whether its company has come, too.
    has_company: Mutex<bool>,
}

impl Supplied {
    pub(super) fn new(supply: Arc<dyn Supply>, commit: ObjectId) -> Self {
        Self { supply, commit, has_company: Mutex::new(false) }
    }
}

impl Repository {
    /// Makes sure that blobs are here, where they can be brought.
    ///
    /// # Errors
    /// [`GitError::Elsewhere`]
    pub fn bring(&self, blobs: &BTreeSet<ObjectId>, cancel: Option<&Cancel>) -> Result<(), GitError> {
        let Some(supplied) = self.supplied() else { return Ok(()) };
        if self.lacking(blobs).is_empty() {
            return Ok(());
        }
        let brought = supplied.supply.bring(&|| self.lacking(blobs), cancel);
        brought.map_err(|failure| GitError::Elsewhere(Box::new(failure)))
    }

    /// Brings a blob that is missing, and its company where that has not come; whether there is any hope for it.
    pub(super) fn bring_alone(&self, id: &ObjectId) -> Result<bool, GitError> {
        let Some(supplied) = self.supplied() else { return Ok(false) };
        let mut has_company = supplied.has_company.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = BTreeSet::from([*id]);
        if !*has_company {
            wanted.append(&mut self.company(supplied.commit)?);
        }
        self.bring(&wanted, None)?;
        *has_company = true;
        Ok(true)
    }

    /// A blob that is too large for memory, where somebody can stream it; `None` for any other.
    pub(super) fn large(&self, id: &ObjectId) -> Result<Option<File>, GitError> {
        let Some(supplied) = self.supplied() else { return Ok(None) };
        if !self.has(id) {
            self.bring_alone(id)?;
        }
        let header = self.with(|repository| repository.try_find_header(*id));
        // One that cannot be read is told by whoever reads it.
        let Some(size) = header.ok().flatten().map(|header| header.size()).filter(|size| *size > IN_MEMORY)
        else {
            return Ok(None);
        };
        let streamed = supplied.supply.stream(id);
        let mut file = streamed.map_err(|failure| GitError::Elsewhere(Box::new(failure)))?;
        let hashed = gix::objs::compute_stream_hash(
            id.kind(),
            Kind::Blob,
            &mut file,
            size,
            &mut gix::progress::Discard,
            &AtomicBool::new(false),
        );
        let damaged = |source: Cause| self.given_up(self.damaged(id, Kind::Blob, source));
        match hashed.map_err(|error| damaged(error.into()))? {
            actual if actual == *id => {}
            actual => return Err(damaged(format!("it holds what is called {actual}").into())),
        }
        file.rewind().map_err(|error| damaged(error.into()))?;
        Ok(Some(file))
    }

    /// What becomes of an object that is damaged.
    pub(super) fn given_up(&self, error: GitError) -> GitError {
        let Some(supplied) = self.supplied() else { return error };
        let hint = match supplied.supply.discard() {
            Ok(true) => {
                "what the store had of this repository is thrown away: the next build fetches it again"
                    .to_owned()
            }
            Ok(false) => {
                "another build uses it, so it stays: layerwright fsck --repair throws it away".to_owned()
            }
            Err(failure) => format!("it cannot be thrown away: {failure}"),
        };
        let failure = StepFailure::caused(FailureKind::Machine, error.to_string(), error).hint(hint);
        GitError::Elsewhere(Box::new(failure))
    }

    /// Whether a blob is here.
    pub(super) fn has(&self, id: &ObjectId) -> bool {
        self.with(|repository| repository.objects.exists(id))
    }

    /// Those of some blobs that are not here.
    fn lacking(&self, blobs: &BTreeSet<ObjectId>) -> BTreeSet<ObjectId> {
        self.with(|repository| {
            let lacking = || {
                let mut objects = repository.objects.clone();
                // Else the disk is looked at once for each.
                objects.refresh_never();
                blobs.iter().filter(|id| !objects.exists(id)).copied().collect::<BTreeSet<_>>()
            };
            let some = lacking();
            match some.first().map(|first| repository.objects.exists(first)) {
                None => some,
                // Now the disk was looked at: others may have brought some.
                Some(_) => lacking(),
            }
        })
    }

    /// The blobs of a commit that say how its names are to be read.
    fn company(&self, commit: ObjectId) -> Result<BTreeSet<ObjectId>, GitError> {
        let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut todo = vec![self.commit_by_id(commit)?.tree];
        let mut names = 0;
        while let Some(tree) = todo.pop() {
            let bytes = self.object(&tree, Kind::Tree)?;
            // A tree that cannot be read is told by whoever needs it.
            for entry in TreeRefIter::from_bytes(&bytes, tree.kind()).flatten() {
                names += 1;
                let id = entry.oid.to_owned();
                match entry.mode.kind() {
                    EntryKind::Tree if seen.insert(id) => todo.push(id),
                    EntryKind::Link => _ = found.insert(id),
                    EntryKind::Blob | EntryKind::BlobExecutable if says_how(entry.filename) => {
                        found.insert(id);
                    }
                    _ => {}
                }
            }
            if names > NAMES_MAX {
                return Ok(BTreeSet::new());
            }
        }
        Ok(found)
    }
}

impl CommitTree {
    /// Makes sure that the files at these paths, which hold no links, are here where they can be brought: all of a repository
    /// at once.
    ///
    /// # Errors
    /// They cannot be brought.
    pub fn bring<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a [u8]>,
        cancel: Option<&Cancel>,
    ) -> Result<(), GitError> {
        let mut wanted: Vec<(Arc<Repository>, BTreeSet<ObjectId>)> = Vec::new();
        for path in paths.into_iter().take_while(|_| self.root.repository.supplied().is_some()) {
            let Some((directory, id)) = self.blob(path)? else { continue };
            let repository = &directory.repository;
            match wanted.iter_mut().find(|(known, _)| Arc::ptr_eq(known, repository)) {
                Some((_, ids)) => _ = ids.insert(id),
                None => wanted.push((Arc::clone(repository), BTreeSet::from([id]))),
            }
        }
        wanted.iter().try_for_each(|(repository, ids)| repository.bring(ids, cancel))
    }

    /// Makes sure that the file at a path is here, and if it has to be brought the `others` with it, which will be read as well.
    ///
    /// # Errors
    /// They cannot be brought.
    pub fn bring_among<'a>(
        &self,
        path: &[u8],
        others: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), GitError> {
        if self.root.repository.supplied().is_none() {
            return Ok(());
        }
        let Some((directory, id)) = self.blob(path)? else { return Ok(()) };
        if directory.repository.has(&id) {
            return Ok(());
        }
        let _turn = self.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        match directory.repository.has(&id) {
            true => Ok(()),
            false => self.bring(others, None),
        }
    }

    /// The blob of the file at a path, and the directory that names it.
    fn blob(&self, path: &[u8]) -> Result<Option<(Arc<Directory>, ObjectId)>, GitError> {
        let found = self.entry(path)?.filter(|(_, entry)| !entry.is_directory());
        Ok(found.and_then(|(directory, entry)| Some((directory, entry.id?))))
    }
}

fn says_how(name: &[u8]) -> bool {
    matches!(name, b".gitattributes" | b".gitmodules") || name.ends_with(b".dockerignore")
}
